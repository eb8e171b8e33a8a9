"""All levels for a folder with an inference in C, against docs/c-inference.md and PyTorch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from csqtool.files import temporary_folder
from csqtool.model_info import Input
from csqtool.nn.signature import named_inputs
from csqtool.quantized_model import ActivationQuantizer
from csqtool.trees import chosen, samples
from csqtool.verifying import expected_graph
from csqtool.verifying.c_accounting import inference_of, unexplained
from csqtool.verifying.c_batches import cuts_by_sample
from csqtool.verifying.c_cortex import check_on_device, missing_tools
from csqtool.verifying.c_float_layers import as_bytes, from_bytes
from csqtool.verifying.c_graph import CReference
from csqtool.verifying.c_program import SANITIZERS, WARNINGS, CFolder, CProgram, Filter, Place, Run, compiler
from csqtool.verifying.c_sums import Computed, LayerNumbers
from csqtool.verifying.c_values import NotCoveredError
from csqtool.verifying.findings import LayerFinding, VerifyReport
from csqtool.verifying.layer_verdicts import Comparison
from csqtool.verifying.layers import Cut
from csqtool.verifying.outputs import Judge, compare_outputs, compare_task, reference_outputs
from csqtool.verifying.subject import Subject
from csqtool.verifying.synthetic import synthetic_inputs
from csqtool.verifying.weights import Problem

LAYER_SAMPLES = 16  # compared layer by layer, under sanitizers
FEW = 6  # samples of integers that are made up; more where a layer has few values
MOST_FAULTS = 5  # that are reported one by one
BATCH = 100  # samples at a time elsewhere


def verify_c(subject: Subject, folder: CFolder, *, cc: str | None = None, target: str | None = None) -> None:
    """Check an exported folder.

    Args:
        subject: what is verified.
        folder: the exported folder.
        cc: the compiler, None the first one that is installed.
        target: one of `csqtool.verifying.gates.TARGETS` to run it on as well; left out, with a line that says so,
            where its tools are missing.

    Raises:
        InputError: no C compiler is installed, or not the one that is named.
    """
    on_device = target is not None
    if on_device and (missing := missing_tools()):
        subject.tell(f"{target}: skipped, {missing} is not installed")
        on_device = False
    subject.check_origin(folder.sha256)
    try:
        capture = expected_graph.captured(subject.net, subject.model, ())
    except expected_graph.NotCapturedError as error:
        subject.report.add("structure", "network", False, str(error))
        return
    inference = inference_of(folder)
    if not every_line(subject.report, unexplained(folder, capture.graph, subject.model, inference=inference)):
        return
    subject.tell(f"{subject.report.file}: compiling …")
    with temporary_folder() as one, temporary_folder() as other:
        programs = []
        for name, here, flags in (
            ("compiles without warnings", one, [*WARNINGS, "-O2"]),
            ("compiles with sanitizers", other, [*WARNINGS, "-O1", "-g1", "-DMODEL_TRACE", *SANITIZERS]),
        ):
            try:
                programs.append(CProgram(folder, here, flags, cc))
            except RuntimeError as error:
                subject.report.add("integrity", name, False, str(error))
            else:
                subject.report.add("integrity", name, True, " ".join([compiler(cc), *flags]))
        if len(programs) == 2:
            reference = CReference(capture, subject.model, in_float=inference.rounds_in_float)
            _Checks(subject, folder, reference, *programs, on_device=on_device).run()


def every_line(report: VerifyReport, faults: list[str]) -> bool:
    """Add the check that everything in a folder is explained; where it is not, nothing of it may be compiled."""
    for fault in faults[:MOST_FAULTS]:
        report.add("structure", "every line", False, fault)
    if len(faults) > MOST_FAULTS:
        report.add("structure", "every line", False, f"and {len(faults) - MOST_FAULTS} more")
    if not faults:
        report.add("structure", "every line", True, "known code, and the model's own numbers and calls")
    return not faults


class _Checks:
    """The levels after integrity.

    Args:
        subject: what is verified.
        folder: the exported folder.
        reference: what it must compute.
        shipped: its program as it is.
        traced: its program with MODEL_TRACE, under sanitizers.
        on_device: whether to run it on the target as well.
    """

    def __init__(
        self, subject: Subject, folder: CFolder, reference: CReference, shipped: CProgram, traced: CProgram,
        *, on_device: bool,
    ) -> None:  # fmt: skip
        self._subject = subject
        self._report = subject.report
        self._folder = folder
        self._reference = reference
        self._shipped = shipped
        self._traced = traced
        self._on_device = on_device

    def run(self) -> None:
        subject, report = self._subject, self._report
        test = subject.test_set()
        if test is None:
            return
        inputs, targets = test
        arrays = self._arrays(inputs)
        few = arrays[:LAYER_SAMPLES]
        try:
            wanted = self._reference.run(few)
        except NotCoveredError as error:
            report.add("structure", "network", False, f"not defined for C: {error}")
            return
        subject.tell(f"structure, weights and layers on {len(few)} samples …")
        try:
            found = self._traced.run(few)
        except RuntimeError as error:
            report.add("structure", "runs under sanitizers", False, str(error))
            return
        if not self._structure(found, wanted, few[0].size):
            return
        problems = weight_problems(found.filters, wanted.layers)
        subject.add_problems("weights", "integers, biases, factors", problems, len(wanted.layers))
        self._layers(chosen(inputs, slice(LAYER_SAMPLES), samples(inputs)), few, found)
        self._any_integers(few, found, {name: place.shape[1:] for name, place in wanted.places.items()})
        self._same_bits("under sanitizers", found.output, wanted.output)
        if (place := self._reference.input_place) is not None:
            self._step_ends(place, wanted.places[place])
        self._beyond(inputs)
        subject.tell(f"outputs on {samples(inputs)} samples …")
        self._outputs(inputs, targets, arrays)
        if self._on_device:
            subject.tell("Cortex-M4 in QEMU …")
            check_on_device(report, self._folder, self._shipped, arrays)

    def _arrays(self, inputs: Any) -> NDArray[np.float32]:
        """Return the network's input [N, …]."""
        described = self._subject.model.info.inputs or (Input("input", ()),)
        named = named_inputs(inputs, described, self._subject.net.model)
        return np.asarray(next(iter(named.values())).numpy(), np.float32)

    def _structure(self, found: Run, wanted: Computed, inputs: int) -> bool:
        """Check sizes, quantizers and layers: each once, and no other."""
        sizes = {
            "input": (self._folder.sizes["INPUT"], inputs),
            "output": (self._folder.sizes["OUTPUT"], int(np.prod(wanted.output.shape[1:]))),
        }
        wrong = [f"{what}: {one} values instead of {other}" for what, (one, other) in sizes.items() if one != other]
        first = self._reference.input_place  # the code hands it out by itself
        expected = [name for name in wanted.places if name != first]
        wrong += [f"quantizer {name} is missing" for name in expected if name not in found.forms]
        wrong += [f"quantizer {name} is unknown" for name in found.forms if name not in expected]
        for name, form in found.forms.items():
            shape = tuple(form.sizes[form.axes.index(axis)] for axis in range(len(form.axes)))
            if name in expected and shape != wanted.places[name].shape[1:]:
                wrong.append(f"{name}: {list(shape)} instead of {list(wanted.places[name].shape[1:])}")
        have, want = Counter(name for name, _ in found.filters), Counter(layer.name for layer in wanted.layers)
        wrong += [
            f"layer {name} runs {have[name]} times, not {want[name]}"
            for name in have | want
            if have[name] != want[name]
        ]
        detail = (
            "; ".join(wrong) if wrong else f"{len(wanted.places)} places, {len(want)} layers, each where it must be"
        )
        return self._report.add("structure", "quantizers and layers", not wrong, detail)

    def _layers(self, inputs: Any, arrays: NDArray[np.float32], free: Run) -> None:
        """Compare every quantizer, given PyTorch's values before it."""
        report = self._report
        cuts = self._cuts(inputs, free)
        torch_values = {cut.name: cut.reference for cut in cuts}
        wanted = self._reference.run(arrays, torch_values)
        try:
            found, output = self._given(wanted.places | torch_values, arrays, free)
        except RuntimeError as error:
            report.add("layers", "runs under sanitizers", False, str(error))
            return
        bits = [name for name in wanted.places if not np.array_equal(found[name], wanted.places[name])]
        for name in bits[:1]:
            count = int((found[name] != wanted.places[name]).sum())
            detail = (
                f"{count} of {found[name].size} integers differ from docs/c-inference.md ({len(bits)} layers in all)"
            )
            report.add("layers", f"{name}, bit for bit", False, detail, name)
        if not bits:
            report.add(
                "layers", "bit for bit, teacher-forced", True, f"{len(found)} layers as docs/c-inference.md says"
            )
        self._against_torch(cuts, found)
        self._same_bits("given PyTorch's values", output, wanted.output)

    def _given(
        self, values: Mapping[str, NDArray[np.uint8]], arrays: NDArray[np.float32], free: Run
    ) -> tuple[dict[str, NDArray[np.uint8]], NDArray[np.float32]]:
        """Return each quantizer's integers, and the output, where `values` take their place for what comes after."""
        forced = {name: form.stored(values[name]) for name, form in free.forms.items()}
        first = self._reference.input_place
        input_form = None if first is None else Place.of_input(values[first].shape[1:])
        unquantized = np.resize(free.input, (len(arrays), free.input.shape[1]))  # repeated as `arrays` are
        forced[""] = unquantized if first is None or input_form is None else input_form.stored(values[first])
        run = self._traced.run(arrays, forced, like=free)
        found = {name: run.forms[name].values(array) for name, array in run.places.items()}
        if first is not None and input_form is not None:
            found[first] = input_form.values(run.input)
        return found, run.output

    def _any_integers(self, arrays: NDArray[np.float32], free: Run, shapes: Mapping[str, tuple[int, ...]]) -> None:
        """Compare what follows each quantizer for integers all over its grid, which samples may never have."""
        grids = {quantizer.name: quantizer.largest for quantizer in self._subject.model.activations}
        shapes = {name: shape for name, shape in shapes.items() if name in grids}
        if not shapes:
            return
        fewest = min(int(np.prod(shape)) for shape in shapes.values())
        count = min(LAYER_SAMPLES, max(FEW, 2 + -(-256 // max(fewest, 1))))
        arrays = np.resize(arrays, (count, *arrays.shape[1:]))
        values = {name: any_integers(grids[name], (count, *shape)) for name, shape in shapes.items()}
        wanted = self._reference.run(arrays, values)
        finite = self._reference.finite
        try:
            found, output = self._given(wanted.places | values, arrays, free)
        except RuntimeError as error:
            self._report.add("layers", "runs under sanitizers", False, str(error))
            return
        wrong = [name for name in shapes if not np.array_equal(found[name][finite], wanted.places[name][finite])]
        detail = f"{len(wrong)} layers differ, first {wrong[0]}" if wrong else f"{len(shapes)} layers, equal"
        self._report.add("layers", "bit for bit, given any integers", not wrong, detail, wrong[0] if wrong else None)
        self._same_bits("given any integers", output[finite], wanted.output[finite])

    def _cuts(self, inputs: Any, free: Run) -> list[Cut]:
        """Return PyTorch's integers of quantizers; where activations are float, bytes of what layers return.

        The latter are those of the layers whose values the code has; they have the names of their weights.
        """
        subject = self._subject
        found = cuts_by_sample(subject.net, subject.model, inputs, self._reference.moved_places)
        if subject.model.activations:
            return [c for c in found if c.is_quantizer]
        names = {layer.batch_norm or layer.name.rpartition(".")[0]: layer.name for layer in subject.model.layers}
        return [
            replace(c, name=names[c.name], reference=as_bytes(c.reference))
            for c in found if not c.is_output and (form := free.forms.get(names[c.name]))
            and form.sizes[:-1] == c.reference.shape[1:]
        ]  # fmt: skip

    def _against_torch(self, cuts: list[Cut], found: Mapping[str, NDArray[Any]]) -> None:
        report = self._report
        worst: dict[str, float] = {}
        failed = 0
        for cut in cuts:
            wanted, values = cut, found[cut.name]
            if not self._subject.model.activations:
                wanted, values = replace(cut, reference=from_bytes(cut.reference)), from_bytes(values)
            comparison = Comparison(wanted, report.tolerances)
            comparison.add(values, wanted)
            holds, detail, figures = comparison.verdict()
            report.layers.append(LayerFinding(cut.name, "off", holds, detail, figures))
            for key, value in figures.items():
                worst[key] = max(value, worst.get(key, 0.0))
            if not holds:
                failed += 1
                report.add("layers", f"{cut.name}, PyTorch", False, detail, cut.name)
        if not failed:
            detail = f"{worst.get('max_abs_diff', 0.0):.2g} off at most"
            if "steps" in worst:
                detail = f"{worst['steps']:.2g} steps off at most, {worst['share']:.2g} of a layer's values at most"
            report.add("layers", f"{len(cuts)} layers, teacher-forced", True, detail, None, **worst)

    def _same_bits(self, name: str, found: NDArray[np.float32], wanted: NDArray[np.float32]) -> None:
        """Add the check that outputs are those of docs/c-inference.md."""
        flat = np.ascontiguousarray(wanted.reshape(len(wanted), -1), np.float32)
        same = found.shape == flat.shape and found.tobytes() == flat.tobytes()
        if same:
            detail = f"{len(flat)} samples, equal"
        else:
            differ = [
                i for i in range(len(flat)) if found.shape != flat.shape or found[i].tobytes() != flat[i].tobytes()
            ]
            detail = f"{len(differ)} of {len(flat)} samples differ from docs/c-inference.md, first {differ[0]}"
        self._report.add("outputs", f"bit for bit, {name}", same, detail)

    def _step_ends(self, name: str, integers: NDArray[np.uint8]) -> None:
        """Compare the quantizer of the input where its rounding decides, which samples hardly reach."""
        quantizer = next(one for one in self._subject.model.activations if one.name == name)
        arrays = step_ends(quantizer, integers.shape[1:])
        try:
            run = self._traced.run(arrays, fill=170)
        except RuntimeError as error:
            self._report.add("layers", "runs under sanitizers", False, str(error))
            return
        wanted = self._reference.run(arrays)
        differ = int((Place.of_input(arrays.shape[1:]).values(run.input) != wanted.places[name]).sum())
        detail = f"{differ} of {arrays.size} integers differ from docs/c-inference.md" if differ else "equal"
        self._report.add("layers", f"{name}, at the ends of each step", not differ, detail, name)
        self._same_bits(f"{name} at the ends of each step", run.output, wanted.output)

    def _beyond(self, inputs: Any) -> None:
        """Compare synthetic inputs bit for bit, under sanitizers."""
        kinds = synthetic_inputs(inputs)
        arrays = np.concatenate([self._arrays(made) for made in kinds.values()])
        try:
            found = self._traced.run(arrays, fill=170)
        except RuntimeError as error:
            self._report.add("outputs", "synthetic inputs", False, str(error))
            return
        self._same_bits(f"synthetic inputs ({', '.join(kinds)})", found.output, self._reference.run(arrays).output)

    def _outputs(self, inputs: Any, targets: Any, arrays: NDArray[np.float32]) -> None:
        subject, report = self._subject, self._report
        wanted = reference_outputs(subject.net, inputs)
        try:
            found = np.concatenate([
                self._shipped.run(arrays[start : start + BATCH], traced=False, fill=255).output
                for start in range(0, len(arrays), BATCH)
            ])  # fmt: skip
        except RuntimeError as error:
            report.add("outputs", "runs", False, str(error))
            return
        reference = np.concatenate(
            [self._reference.run(arrays[start : start + BATCH]).output for start in range(0, len(arrays), BATCH)]
        )
        self._same_bits("the test set", found, reference)
        judge = Judge.of(subject.source.task, subject.net, chosen(inputs, slice(2), samples(inputs)))
        (name, like), *_ = wanted.items()
        shaped = {name: found.reshape(like.shape)} if found.size == like.size else {name: found}
        compare_outputs(shaped, wanted, judge, False, "against PyTorch", "on", report)
        compare_task(shaped, wanted, targets, judge, report)


def any_integers(largest: int, shape: tuple[int, ...]) -> NDArray[np.uint8]:
    """Return integers up to `largest`: of the first sample the lowest, of the second the highest, then a mixture."""
    found = np.zeros(shape, np.uint8)
    found[1:2] = largest
    mixture = np.resize(np.arange(largest + 1, dtype=np.uint8), found[2:].size)
    np.random.default_rng(0).shuffle(mixture)
    found[2:] = mixture.reshape(found[2:].shape)
    return found


def step_ends(quantizer: ActivationQuantizer, shape: tuple[int, ...]) -> NDArray[np.float32]:
    """Return inputs [N, *shape] of the values at which a quantizer rounds up or down, and the floats next to them.

    What is not finite comes with them.
    """
    steps = np.arange(-quantizer.zero_point - 2, quantizer.largest - quantizer.zero_point + 2, dtype=np.float32)
    ends = (steps + np.float32(0.5)) * quantizer.scale
    beside = [np.nextafter(ends, np.float32(way)) for way in (-np.inf, np.inf)]
    values = np.concatenate([ends, *beside, np.array([np.nan, np.inf, -np.inf, 3e38, -3e38, -0.0], np.float32)])
    return np.resize(values, (-(-len(values) // int(np.prod(shape))), *shape))


def weight_problems(found: list[tuple[str, list[Filter]]], wanted: list[LayerNumbers]) -> Iterator[Problem]:
    """Yield what differs between the filters that the code decodes and what a layer must hold."""
    expected: dict[str, list[LayerNumbers]] = {}
    for layer in wanted:
        expected.setdefault(layer.name, []).append(layer)
    for name, filters in found:
        layer = expected[name].pop(0)
        if [f.number for f in filters] != list(range(len(layer.filters))):
            yield name, f"{len(filters)} filters instead of {len(layer.filters)}"
            continue
        for f in filters:
            wanted_integers = layer.filters[f.number]
            integers = f.integers.astype(np.int64)
            if len(integers) == 2 * len(wanted_integers):  # nine bits: the lowest, and the rest
                low, rest = np.split(integers, 2)
                integers = low + 2 * rest
            if not np.array_equal(integers, wanted_integers):
                yield name, f"integers of filter {f.number} differ"
                break
            numbers: dict[str, NDArray[Any]] = {
                "bias": layer.bias, "multiplier": layer.multiplier, "shift": layer.shift, "step": layer.step
            }  # fmt: skip
            wrong = next((what for what, values in numbers.items() if values[f.number] != getattr(f, what)), None)
            if wrong:
                got, other = getattr(f, wrong), numbers[wrong][f.number]
                yield name, f"{wrong} of filter {f.number}: {got} instead of {other}"
                break
