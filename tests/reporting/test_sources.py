from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from msgspec import structs

from csqtool.finalized_file import read_finalized, write_finalized
from csqtool.reporting.sources import gather
from tests.support.commands import Built


def test_parts_of_a_file_add_up_to_it_and_hold_the_packed_integers(eight_bits: Built) -> None:
    subject = gather([eight_bits.onnx, eight_bits.model, eight_bits.csq]).subjects[0]
    assert subject.model is not None
    packed = sum(layer.packed_bytes for layer in subject.model.layers)
    for export in subject.exports:
        assert sum(export.parts.values()) == export.size_bytes == export.path.stat().st_size
        assert all(size >= 0 for size in export.parts.values())
        if export.path.suffix == ".onnx":
            assert packed <= export.parts["integers"] < packed + 64
        else:
            assert 0.5 * packed < export.parts["integers"] <= packed
    assert len(subject.exports) == 2


def test_files_of_another_model_are_not_shown_as_this_ones(eight_bits: Built, other_seed: Built) -> None:
    found = gather([eight_bits.model, other_seed.onnx, other_seed.csq])
    assert [subject.label for subject in found.subjects] == [
        str(p) for p in (eight_bits.model, other_seed.onnx, other_seed.csq)
    ]
    assert found.subjects[0].exports == []


def test_a_run_and_its_model_are_one_subject(eight_bits: Built) -> None:
    for sources in ([eight_bits.run, eight_bits.model], [eight_bits.model, eight_bits.csq, eight_bits.run]):
        (subject,) = gather(sources).subjects
        assert subject.label == str(eight_bits.run)
        assert subject.model is not None
        assert subject.log
    assert len(subject.exports) == 1


def test_a_model_of_another_seed_is_not_put_to_a_run(eight_bits: Built, tmp_path: Path) -> None:
    model = read_finalized(eight_bits.model)
    assert model.info.method is not None
    info = model.info.replace(method=structs.replace(model.info.method, seed=7))
    write_finalized(replace(model, info=info), tmp_path / "m.safetensors")
    assert len(gather([eight_bits.run, tmp_path / "m.safetensors"]).subjects) == 2
