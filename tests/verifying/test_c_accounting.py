"""Everything in a folder of C is explained before it is compiled: known code by digests, the rest by a grammar."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from csqtool import verify
from csqtool.exporting import export
from csqtool.verifying.c_accounting import inference_of, unexplained
from csqtool.verifying.c_program import CFolder
from exporters.c.text import kernel
from tests.support.c_edits import MORE, MUTATIONS
from tests.support.c_hostile import EDITS, EXTRA, HARMLESS, before_run
from tests.support.c_known import KNOWN, text
from tests.support.commands import Built

pytestmark = pytest.mark.usefixtures("one_capture")
# The model's own numbers and names: other levels find these changes.
OF_NUMBERS = {
    "a weight", "a bias", "a multiplier", "a shift", "a bound of a quantizer", "a stride", "a factor of the addition",
    "a step of the output", "a quantizer left out", "biases of two layers exchanged",
    "multipliers of two layers exchanged", "weights of two layers exchanged", "the lowest integer of a layer",
    "the step between integers", "the bits of an integer", "another encoding", "the bytes of a filter",
    "one multiplier for all channels", "the last weight alone", "a bias in the last layer", "an input's zero point",
    "an output's zero point", "an upper bound", "a dilation", "the other branch of the addition",
    "a zero point of the addition", "the shift of the addition", "the average's divisor", "the input's scale",
    "the input's order", "a name of a quantizer", "a name of a layer", "a traced copy",
}  # fmt: skip


@pytest.fixture(scope="module")
def folder(eight_bits: Built, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("c") / "net"
    export(eight_bits.model, path, format="c")
    return path


def copied(folder: Path, to: Path) -> Path:
    return Path(shutil.copytree(folder, to / "net"))


def test_the_digests_are_those_of_the_code_that_is_written() -> None:
    assert KNOWN.read_text(encoding="utf-8") == text(), (
        "the kernels, the example or its Makefile were changed: look at the change as if a stranger had sent it, and "
        "write the new digests with: python -m tests.support.c_known"
    )


def test_an_untouched_folder_is_explained(folder: Path) -> None:
    assert unexplained(CFolder(folder)) == []


@pytest.mark.parametrize("name", EDITS)
def test_code_of_a_stranger_is_named_by_its_line(
    name: str, folder: Path, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    file, edit, words = EDITS[name]
    path = copied(folder, tmp_path)
    (path / file).write_text(edit((path / file).read_text()), newline="")
    found = unexplained(CFolder(path))
    record_property("caught", (f"C: {name}", "structure" if found else ""))
    assert found
    assert words in found[0]
    assert found[0].startswith(("model", "weights", "main", "Makefile", "CMake", "arena"))
    assert all(line.isprintable() and len(line) < 300 for line in found)


@pytest.mark.parametrize("name", EXTRA)
def test_another_file_in_the_folder_is_named(name: str, folder: Path, tmp_path: Path) -> None:
    path = copied(folder, tmp_path)
    EXTRA[name](path / name)
    assert unexplained(CFolder(path)) == [f"{name.encode('unicode_escape').decode()}: not part of an inference"]


def test_a_known_name_that_is_no_file_is_named(folder: Path, tmp_path: Path) -> None:
    path = copied(folder, tmp_path)
    (path / "main.c").unlink()
    os.mkfifo(path / "main.c")  # nothing waits for somebody to write to it
    assert unexplained(CFolder(path)) == ["main.c: not part of an inference"]


@pytest.mark.parametrize("name", HARMLESS)
def test_white_space_and_comments_are_the_owner_s(name: str, folder: Path, tmp_path: Path) -> None:
    file, edit = HARMLESS[name]
    path = copied(folder, tmp_path)
    (path / file).write_text(edit((path / file).read_text()), newline="")
    assert unexplained(CFolder(path)) == []


def test_the_files_around_the_inference_may_be_missing(folder: Path, tmp_path: Path) -> None:
    path = copied(folder, tmp_path)
    for name in ("main.c", "Makefile", "CMakeLists.txt", "arena.json"):
        (path / name).unlink()
    assert unexplained(CFolder(path)) == []


@pytest.mark.long
def test_of_the_table_of_changes_only_those_of_numbers_and_names_are_left_to_other_levels(
    folder: Path, tmp_path: Path
) -> None:
    passed = set()
    for number, (name, (file, edit, _)) in enumerate((MUTATIONS | MORE).items()):
        (tmp_path / str(number)).mkdir()
        path = copied(folder, tmp_path / str(number))
        (path / file).write_text(edit((path / file).read_text()))
        if not unexplained(CFolder(path)):
            passed.add(name)
    assert passed == OF_NUMBERS


def test_nothing_of_a_hostile_folder_is_compiled_or_run(folder: Path, eight_bits: Built, tmp_path: Path) -> None:
    ran, path = tmp_path / "ran", copied(folder, tmp_path)
    early = f'#include <stdio.h>\n__attribute__((constructor)) static void e(void) {{ fclose(fopen("{ran}", "w")); }}'
    for edit in (before_run(early), before_run('#error "read me"')):
        (path / "model.c").write_text(edit((folder / "model.c").read_text()))
        report = verify(path, eight_bits.model, samples=2)
        assert not report.passed
        assert not ran.exists()
        assert "compiles" not in " ".join(check.name for check in report.checks)
        first = report.failures[0]
        assert (first.level, first.name) == ("structure", "every line")
        assert re.match(r"model\.c:\d+: not explained: #", first.detail)


@pytest.mark.long
def test_of_many_faults_some_are_shown(folder: Path, eight_bits: Built, tmp_path: Path) -> None:
    path = copied(folder, tmp_path)
    for number in range(9):
        (path / f"{number}.c").write_text("int x;")
    lines = [c.detail for c in verify(path, eight_bits.model, samples=2).failures if c.name == "every line"]
    assert lines[0] == "0.c: not part of an inference"
    assert lines[5:] == ["and 4 more"]


@pytest.mark.long
def test_one_header_is_explained_like_several_files(eight_bits: Built, tmp_path: Path) -> None:
    export(eight_bits.model, tmp_path / "one", format="c", options={"single_file": True})
    assert unexplained(CFolder(tmp_path / "one")) == []
    header = (tmp_path / "one" / "model.h").read_text()
    for name, edit in (
        ("negated", lambda t: t.replace("\n}\n\n#endif", "\n    output[0] = -output[0];\n}\n\n#endif")),
        ("an array for others", lambda t: t.replace("static const uint8_t model_w", "const uint8_t model_w")),
        ("a second code", lambda t: t.replace("#endif\n\n/* In one", "int x;\n#endif\n\n/* In one")),
        ("nothing of it", lambda t: t.partition("\n/* In one")[0] + "\n/* MODEL_IMPLEMENTATION */\n"),
    ):  # fmt: skip
        assert edit(header) != header, name
        (tmp_path / "one" / "model.h").write_text(edit(header))
        assert unexplained(CFolder(tmp_path / "one")), name


@pytest.mark.long
def test_two_ways_of_rounding_are_not_mixed(eight_bits: Built, tmp_path: Path) -> None:
    for how in ("fixed", "float"):
        export(eight_bits.model, tmp_path / how, format="c", options={"requantize": how})
        assert unexplained(CFolder(tmp_path / how)) == []
        assert inference_of(CFolder(tmp_path / how)).rounds_in_float == (how == "float")
    text, fixed = ((tmp_path / how / "model.c").read_text() for how in ("float", "fixed"))
    # All of it is known code, or by the grammar.
    by_integers = text.replace(kernel("round_sums_float"), kernel("round_sums")).replace(
        kernel("on_grid"), f"{kernel('common')}\n{kernel('on_grid')}"
    )
    adding = re.sub(r"add_scaled\((arena.*), model_floats_0\)", r"add(\1)", by_integers).replace(
        kernel("add_scaled"), kernel("add")
    )
    unlike_its_code = fixed.replace(kernel("round_sums"), kernel("round_sums_float"))
    without = text.replace("#pragma STDC FP_CONTRACT OFF\n", "")
    for name, edited, how, words in (
        ("float", by_integers, "float", "conv: its layer is not one of integers that ends on a grid by integers"),
        ("float", adding, "float", "model.c: it moves some results to their grids by integers, others in float"),
        ("fixed", unlike_its_code, "fixed", "conv: its layer is not one of integers that ends on a grid in float"),
        ("float", text.replace(kernel("precision"), ""), "float", "model.c: a piece of its precision is missing"),
        ("float", text.replace("#include <float.h>\n", ""), "float", "model.c: a piece of its precision is missing"),
        ("float", without, "float", "not explained: #ifdef __clang__"),
    ):
        assert edited not in (text, fixed), words
        (tmp_path / name / "model.c").write_text(edited)
        found = unexplained(CFolder(tmp_path / name))
        assert any(words in line for line in found), (words, found)
        (tmp_path / name / "model.c").write_text(text if how == "float" else fixed)
