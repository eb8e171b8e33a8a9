from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from click.testing import CliRunner

from csqtool.cli import cli
from csqtool.cli.output import tell
from csqtool.finalized_file import read_finalized
from csqtool.model_info import Input
from csqtool.onnx_isolated import optimized_operators
from csqtool.onnx_session import session
from csqtool.progress import stderr_progress
from csqtool.verifying.runtime import run_batches
from tests.support.commands import DIGITS, QUICK, ROOT, Built, invoke, ok, wait_for

SEARCH = ["search", DIGITS, "--data", "digits", "--target-bits", "3", "-o"]


def test_help_imports_neither_torch_nor_onnx() -> None:
    code = "import sys, csqtool.cli as c\ntry: c.cli(['--help'])\nexcept SystemExit: pass\n" \
           "print([m for m in ('torch', 'onnx', 'onnxruntime') if m in sys.modules])"  # fmt: skip
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip().endswith("[]")


def test_onnxruntime_runs_everything_on_integer_kernels(eight_bits: Built) -> None:
    operators = optimized_operators(eight_bits.onnx.read_bytes())
    assert operators.count("QLinearConv") == 6
    for kernel in ("QLinearAdd", "QLinearGlobalAveragePool", "QGemm"):
        assert kernel in operators
    assert not {"Conv", "Add", "GlobalAveragePool", "ReduceMean", "Gemm"} & set(operators)


def test_unpack_gives_back_the_finalized_file_bit_for_bit(eight_bits: Built, tmp_path: Path) -> None:
    ok("unpack", eight_bits.csq, "-o", tmp_path / "back.safetensors")
    assert (tmp_path / "back.safetensors").read_bytes() == eight_bits.model.read_bytes()


def test_finalized_weights_are_integers_times_scale(eight_bits: Built) -> None:
    from csqtool.rebuild import rebuilt_net

    model = read_finalized(eight_bits.model)
    net = rebuilt_net(model)
    for layer in model.layers:
        weight = net.model.get_submodule(layer.name.removesuffix(".weight")).weight
        assert np.array_equal(weight.numpy(), layer.q.astype(np.float32) * layer.scale)


def test_the_same_seed_gives_the_same_model(eight_bits: Built, tmp_path: Path) -> None:
    ok(*SEARCH, tmp_path / "run", "--act-bits", "8", *QUICK)
    ok("finalize", tmp_path / "run", "-o", tmp_path / "again.safetensors")
    assert (tmp_path / "again.safetensors").read_bytes() == eight_bits.model.read_bytes()


@pytest.mark.long
def test_an_interrupted_search_resumes_to_the_same_model(eight_bits: Built, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "csqtool", *SEARCH, str(tmp_path / "run"), "--act-bits", "8", *QUICK]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    wait_for(tmp_path / "run" / "log.jsonl", process)
    os.kill(process.pid, signal.SIGINT)
    assert process.wait(60) == 130
    ok("search", "--resume", tmp_path / "run")
    ok("finalize", tmp_path / "run", "-o", tmp_path / "resumed.safetensors")
    assert (tmp_path / "resumed.safetensors").read_bytes() == eight_bits.model.read_bytes()


@pytest.mark.long
@pytest.mark.usefixtures("one_capture")
def test_a_pipeline_runs_and_skips_what_has_not_changed(tmp_path: Path) -> None:
    text = f'[model]\nfactory = "{DIGITS}"\n[data]\nsource = "digits"\n[search]\ntarget_size = "9KB"\nepochs = 1\n' \
           "finetune_epochs = 1\npretrain_epochs = 2\nact_bits = 8\n[verify]\nsamples = 100\n"  # fmt: skip
    (tmp_path / "pipeline.toml").write_text(text)
    assert "(target 9KB)" in ok("run", tmp_path / "pipeline.toml").stdout
    assert "PASS" in (tmp_path / "build" / "report.html").read_text()
    again = json.loads(ok("run", tmp_path / "pipeline.toml", "--json").stdout)
    assert set(again["stages"].values()) == {"unchanged"}
    assert again["passed"] is True
    # A gate against a file is measured again when that file changes.
    baseline = tmp_path / "before.json"
    baseline.write_text((tmp_path / "build" / "verify-onnx.json").read_text())
    gates = 'baseline = "before.json"\nmax_regression = 0.5\n'
    # These are about ONNX files, and do not fail the packed one.
    gates += 'min_integer_share = 0.5\nbackends = ["onnxruntime", "reference"]\n'
    (tmp_path / "pipeline.toml").write_text(text + gates)
    ok("run", tmp_path / "pipeline.toml")
    baseline.write_text(json.dumps({**json.loads(baseline.read_text()), "size_bytes": 100}))
    assert invoke("run", tmp_path / "pipeline.toml").exit_code == 1


@pytest.mark.long
def test_the_sample_pipeline_ends_in_pass_in_a_process_of_its_own(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "sample_models" / "digits_cnn", tmp_path / "sample", ignore=shutil.ignore_patterns("build"))
    command = [sys.executable, "-m", "csqtool", "run", "sample/pipeline.toml"]
    one_thread = {**os.environ, "OMP_NUM_THREADS": "1"}  # other tests run beside it
    done = subprocess.run(
        command, cwd=tmp_path, env=one_thread, capture_output=True, text=True, check=False, timeout=280
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip().splitlines()[-1].startswith("PASS")
    summary = json.loads((tmp_path / "sample" / "build" / "run" / "summary.json").read_text())
    assert abs(summary["average_precision"] - 3) <= 0.1


def test_inspect_explains_every_file(eight_bits: Built) -> None:
    run = eight_bits.run
    files = [eight_bits.model, eight_bits.onnx, eight_bits.csq, run, *run.iterdir(), run / "checkpoints" / "last.pt"]
    for path in files:
        if path.name not in ("checkpoints", ".lock"):
            assert path.name in ok("inspect", path).stdout
            json.loads(ok("inspect", path, "--json").stdout)


def test_methods_and_formats_are_listed() -> None:
    methods = json.loads(ok("methods", "--json").stdout)
    assert {"description", "options", "kind", "data"} == methods["csq"].keys()
    kinds = {name: (methods[name]["kind"], methods[name]["data"]) for name in ("csq", "lsq", "hawq-v3")}
    assert kinds == {"csq": ("both", "labelled"), "lsq": ("trainer", "labelled"), "hawq-v3": ("allocator", "labelled")}
    assert "beta_max" in methods["csq-uniform"]["options"]
    assert methods["ste-uniform"]["options"] == []
    assert "options of bsq: --strength" in ok("methods").stdout
    assert {"csq", "onnx"} <= set(json.loads(ok("formats", "--json").stdout))


WORDS = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding, self.head = nn.Embedding(20, 16), nn.Linear(16, 4)
    def forward(self, x):
        return self.head(torch.relu(self.embedding(x)).mean(1))

class Words(torch.utils.data.Dataset):
    def __init__(self, count, seed):
        self.words = torch.randint(20, (count, 12), generator=torch.Generator().manual_seed(seed))
    def __len__(self):
        return len(self.words)
    def __getitem__(self, index):
        return self.words[index], int((self.words[index] == 3).sum().clip(0, 3))

def net(): return Net()
def words(): return Words(200, 0), Words(64, 1)
"""


def test_a_model_of_integer_inputs_goes_all_the_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("words.py").write_text(WORDS)
    ok("search", "words.py:net", "--data", "words.py:words", "--target-bits", 3, "--act-bits", 8, *QUICK, "-o", "run")
    ok("finalize", "run", "-o", "m.safetensors")
    assert read_finalized(Path("m.safetensors")).info.inputs == (Input("input", (12,), "int64"),)
    ok("export", "m.safetensors", "-o", "m.onnx")
    assert onnx.load("m.onnx").graph.input[0].type.tensor_type.elem_type == onnx.TensorProto.INT64
    ok("verify", "m.onnx", "--against", "m.safetensors", "--data", "words.py:words")


BAD_MODELS = """
import torch
def raises(): raise RuntimeError("no weights here")
def no_module(): return 3
def nothing(): return torch.nn.Flatten()
class Named(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.head = torch.nn.Linear(64, 10)
    def forward(self, x): return str(self.head(x.flatten(1)))
def named(): return Named()
def pairs(): return [((torch.zeros(6), torch.zeros(5)), 0)] * 4, [((torch.zeros(6), torch.zeros(5)), 0)] * 4
"""


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["verify", "none.onnx", "--against", "none.safetensors"], "no such file"),
        (["search", "bad.py:raises", "--data", "digits", "--target-bits", "3", "-o", "r"], "no weights here"),
        (["search", "bad.py:no_module", "--data", "digits", "--target-bits", "3", "-o", "r"], "not a torch.nn.Module"),
        (["search", "bad.py:nothing", "--data", "digits", "--target-bits", "3", "-o", "r"], "no quantizable layers"),
        (
            ["search", "bad.py:named", "--data", "digits", "--target-bits", "3", "-o", "r"],
            "the model returns str; it must be",
        ),
        (
            ["search", DIGITS, "--data", "bad.py:pairs", "--target-bits", "3", "-o", "r"],
            "takes 2 positional arguments but 3 were given",
        ),
        (["search", "none.py:x", "--data", "digits", "--target-bits", "3", "-o", "r"], "no such file"),
        (["search", DIGITS, "--data", "digits", "--target-bits", "0", "-o", "r"], "--target-bits must be 1 to 8"),
        (["search", DIGITS, "--data", "digits", "--target-bits", "9", "-o", "r"], "--target-bits must be 1 to 8"),
        (["search", DIGITS, "--data", "digts", "--target-bits", "3", "-o", "r"], "did you mean 'digits'"),
        (["search", DIGITS, "--data", "digits", "--target-bits", "3", "--weights", "w.pt", "-o", "r"], "missing"),
        (["search", DIGITS, "--data", "digits", "--target-bits", "3", "-o", "/dev/null/r"], "cannot write"),
        (["run", "bad.toml"], "did you mean 'target_bits'"),
        (["unpack", "short.csq", "-o", "x"], "truncated"),
        (["export", "short.csq", "-o", "x"], "not a safetensors file"),
        (["inspect", "text.onnx"], "not an ONNX file"),
        (["serch"], "serch"),
    ],
)
def test_bad_input_is_one_error_line_and_exit_2(
    arguments: list[str], expected: str, eight_bits: Built, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("bad.py").write_text(BAD_MODELS)
    Path("bad.toml").write_text(f'[model]\nfactory = "{DIGITS}"\n[data]\nsource = "digits"\n[search]\ntarget_bit = 3\n')
    Path("short.csq").write_bytes(eight_bits.csq.read_bytes()[:1000])
    Path("text.onnx").write_text("this is no model")
    torch.save({"stem.0.weight": torch.zeros(1)}, "w.pt")
    before = {p.name for p in Path().iterdir()}
    result = invoke(*arguments)
    assert result.exit_code == 2, result.output
    lines = result.stderr.strip().splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("error:")
    assert expected in lines[0]
    assert {p.name for p in Path().iterdir()} - {"__pycache__"} == before


def test_names_from_files_reach_no_terminal_raw(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    nasty = "\x1b[31m\x1b]0;title\x07"
    missing = tmp_path / f"{nasty}.csq"
    result = CliRunner().invoke(cli, ["inspect", str(missing)], color=True)
    assert result.exit_code == 2
    tell(f"next: {missing}\nand {nasty}")
    with stderr_progress() as progress:
        progress.line(f"progress {nasty}")
    said = capfd.readouterr().err
    for text in (result.output, said):
        assert "\\x1b[31m\\x1b]0;title\\x07" in text
        assert not {"\x1b", "\x07"} & set(text)
    assert said.count("\n") == 3


def test_onnxruntime_prints_no_names_of_a_file(capfd: pytest.CaptureFixture[str]) -> None:
    shape = onnx.helper.make_tensor("shape", onnx.TensorProto.INT64, [2], [3, 7])
    places = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in "xy"]
    node = onnx.helper.make_node("Reshape", ["x", "shape"], ["y"], name="\x1b[31mnode")
    graph = onnx.helper.make_graph([node], "g", places[:1], places[1:], [shape])
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)
    with pytest.raises(RuntimeError, match="Reshape"):
        run_batches(session(model.SerializeToString(), "off"), {"x": np.zeros((2, 4), np.float32)})
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize(
    ("verb", "meant"), [("serch", "did you mean 'search'?"), ("quux", "known: bench, best, blame, check")]
)
def test_a_misspelt_verb_is_named_with_the_nearest_one(verb: str, meant: str) -> None:
    result = invoke(verb, "model.onnx")
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.startswith(f"error: no verb '{verb}'; {meant}")


def test_the_version_names_what_results_depend_on_without_importing_it() -> None:
    code = (
        "import sys\nfrom csqtool.cli import cli\n"
        "try:\n    cli(['--version'])\nexcept SystemExit as end:\n    assert end.code == 0\n"
        "print(sorted({'torch', 'onnx', 'onnxruntime', 'numpy'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    first, imported = done.stdout.splitlines()
    assert first.startswith(f"csqtool {metadata.version('csqtool')} (Python 3.")
    assert f"torch {metadata.version('torch')}, onnx {metadata.version('onnx')}, onnxruntime " in first
    assert imported == "[]"
