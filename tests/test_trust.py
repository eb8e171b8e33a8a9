"""What a file names is run only where it is the user's own code."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

import pytest
import torch
from torch import nn

import csqtool
from csqtool.errors import InputError
from csqtool.factories import call_factory, load_factory
from csqtool.finalized_file import write_finalized
from csqtool.model_info import DataInfo, ModelFactory, ModelInfo
from csqtool.nn.post_training import post_training_model
from csqtool.quantized_model import QuantizedModel
from csqtool.trust import is_named, project_folders, trusting
from tests.support.commands import DIGITS, invoke

NET = "from os import getpid\nimport functools\nfrom torch import nn\n\ndef net():\n    return nn.Linear(4, 3)\n"
MARKED = "from pathlib import Path\nPath(__file__).with_name('ran').touch()\n" + NET


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with a module and a package."""
    folder = tmp_path / "project"
    (folder / "package").mkdir(parents=True)
    (folder / "net.py").write_text(NET)
    (folder / "package" / "__init__.py").write_text("")
    (folder / "package" / "inner.py").write_text(NET)
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(str(folder))
    return folder


def linear() -> QuantizedModel:
    torch.manual_seed(0)
    return post_training_model(nn.Linear(4, 3), [torch.randn(8, 4)], planes=4, act_bits=None)


def hostile(model: QuantizedModel, factory: str, arguments: dict[str, object], data: str = "digits") -> QuantizedModel:
    info = ModelInfo.of(model=ModelFactory(factory, arguments), data=DataInfo(source=data, task="classification"))
    return dataclasses.replace(model, info=info)


@pytest.mark.parametrize("spec", ["net.py:net", "./package/../net.py:net", "package.inner:net", "{}/net.py:net"])
def test_what_lies_below_the_working_folder_is_run(project: Path, spec: str) -> None:
    assert callable(load_factory(spec.format(project), recorded=True))


@pytest.mark.parametrize(
    ("spec", "reason"),
    [
        ("os:system", "is part of Python"),
        ("builtins:exec", "is part of Python"),
        ("posix:system", "is part of Python"),
        ("importlib.util:module_from_spec", "is part of Python"),
        ("subprocess:run", "is part of Python"),
        ("torch.hub:load", "is of an installed package"),
        ("numpy:load", "is of an installed package"),
        ("pickle:loads", "is part of Python"),
        ("csqtool.files:write_json", "is part of csqtool"),
        ("no_such_module:x", "there is no module"),
        (f"{os.__file__}:system", "is part of Python"),
        (f"{torch.__file__}:load", "is of an installed package"),
        ("../outside.py:net", "neither below the working folder"),
        ("{}/outside.py:net", "neither below the working folder"),
        ("//host/share/net.py:net", "on another machine"),
        ("net.py:getpid", "it is posix's"),
        ("net.py:functools", "it is builtins's"),
        ("linked.py:net", None),
        ("site-packages/x.py:net", "is of an installed package"),
        ("venv/lib/x.py:net", "is of a virtual environment"),
    ],
)
def test_what_is_not_the_users_own_is_refused_with_what_to_do(project: Path, spec: str, reason: str | None) -> None:
    (project.parent / "outside.py").write_text(MARKED)
    for folder in ("site-packages", "venv/lib"):
        (project / folder).mkdir(parents=True)
        (project / folder / "x.py").write_text(MARKED)
    (project / "venv" / "pyvenv.cfg").write_text("")
    (project / "linked.py").symlink_to(project / "net.py")
    spec = spec.format(project.parent)
    if reason is None:  # a link in the project is the user's own doing
        assert callable(load_factory(spec, recorded=True))
        return
    with pytest.raises(InputError, match=reason) as caught:
        load_factory(spec, recorded=True)
    assert f"--trust-factory {spec}" in str(caught.value)
    assert not list(project.parent.rglob("ran"))


def test_a_partial_or_class_of_the_users_own_is_run(project: Path) -> None:
    (project / "more.py").write_text(
        "import functools, os, net\nfrom torch import nn\n\nclass Net(nn.Linear):\n    pass\n\n"
        "small = functools.partial(Net, 4, 3)\nfrom net import net as again\n"
        "bad = functools.partial(os.system, 'true')\n"
    )
    for name in ("Net", "small", "again"):
        assert callable(load_factory(f"more.py:{name}", recorded=True))
    with pytest.raises(InputError, match="it is posix's"):
        load_factory("more.py:bad", recorded=True)


def test_what_the_user_names_is_run_wherever_it_is(project: Path) -> None:
    elsewhere = project.parent / "elsewhere.py"
    elsewhere.write_text(NET)
    spec = f"{elsewhere}:net"
    with pytest.raises(InputError, match="was not run"):
        call_factory(spec, {}, recorded=True)
    with trusting(spec):
        assert isinstance(call_factory(spec, {}, recorded=True), nn.Linear)
    with pytest.raises(InputError, match="was not run"):
        call_factory(spec, {}, recorded=True)
    call_factory(spec, {})
    assert is_named(spec)
    assert isinstance(call_factory(spec, {}, recorded=True), nn.Linear)


def test_a_files_project_reaches_up_to_the_strongest_marker(tmp_path: Path) -> None:
    deep = tmp_path / "a" / "b" / "c" / "model.safetensors"
    deep.parent.mkdir(parents=True)
    assert project_folders(None) == []
    assert project_folders(deep) == [deep.parent]
    (tmp_path / "a" / "b" / "pipeline.toml").write_text("")
    assert project_folders(deep)[-1] == tmp_path / "a" / "b"
    (tmp_path / "a" / "pyproject.toml").write_text("")
    assert project_folders(deep)[-1] == tmp_path / "a"
    (tmp_path / ".git").mkdir()
    assert project_folders(deep)[-1] == tmp_path


@pytest.mark.parametrize("verb", ["verify", "export", "pack --float16", "pack --with-graph", "to_torch"])
def test_a_hostile_factory_runs_no_command(project: Path, verb: str) -> None:
    marker = project / "ran"
    model = hostile(linear(), "os:system", {"command": f"touch {marker}"})
    write_finalized(model, project / "m.safetensors")
    csqtool.pack(linear(), "m.csq")
    if verb == "to_torch":
        with pytest.raises(InputError, match="was not run"):
            csqtool.to_torch("m.safetensors")
        return
    name, *flags = verb.split()
    arguments = ["m.csq", "--against", "m.safetensors"] if name == "verify" else ["m.safetensors", *flags, "-o", "out"]
    result = invoke(name, *arguments)
    assert result.exit_code == 2, result.output
    assert [line.startswith("error:") for line in result.stderr.splitlines()][-1:] == [True]
    if "float16" not in verb:
        assert "'os:system', which was not run" in result.stderr
    assert not marker.exists()


def test_hostile_data_run_no_command(project: Path) -> None:
    marker = project / "ran.data"
    (project.parent / "data.py").write_text(f"open({str(marker)!r}, 'w')\n\ndef sets():\n    return 1\n")
    write_finalized(hostile(linear(), "net.py:net", {}, f"{project.parent}/data.py:sets"), project / "m.safetensors")
    csqtool.pack(linear(), "m.csq")
    result = invoke("verify", "m.csq", "--against", "m.safetensors")
    assert result.exit_code == 2
    assert "was not run" in result.stderr
    assert not marker.exists()


@pytest.mark.parametrize("arguments", [{"status": 0}, {"command": "touch ran"}])
def test_verify_never_calls_the_factory_of_the_file_under_verification(
    project: Path, arguments: dict[str, object]
) -> None:
    name = "os:_exit" if "status" in arguments else "os:system"
    trusted = hostile(linear(), "net.py:net", {})
    csqtool.pack(hostile(linear(), name, arguments), "hostile.csq")
    csqtool.pack(hostile(linear(), "evil.py:net", {}), "evil.csq")
    (project / "evil.py").write_text(MARKED)
    x = torch.randn(6, 4).numpy()
    test = torch.utils.data.TensorDataset(torch.from_numpy(x), torch.zeros(6, dtype=torch.int64))
    for file in ("hostile.csq", "evil.csq"):
        report = csqtool.verify(file, trusted, data=test)
        assert not report.passed
        assert [c.level for c in report.failures if c.level == "weights"]  # the metadata differ
        assert "outputs" in {c.level for c in report.checks}
    assert not (project / "ran").exists()


def test_a_run_directorys_factory_is_the_users_own_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = tmp_path / "run"
    run.mkdir()
    text = '{"model": "os:system", "model_args": {"command": "touch ran"}, "data": "digits", "target_bits": 3}'
    (run / "config.json").write_text(text)
    monkeypatch.chdir(tmp_path)
    result = invoke("search", "--resume", run)
    assert result.exit_code == 2
    assert "'os:system', which was not run" in result.stderr
    assert not (tmp_path / "ran").exists()
    other = tmp_path / "other.py"
    other.write_text(MARKED)
    (run / "config.json").write_text(text.replace("os:system", "../other.py:net").replace('"command": "touch ran"', ""))
    monkeypatch.chdir(run)
    assert "was not run" in invoke("search", "--resume", run).stderr
    assert not (tmp_path / "ran").exists()
    invoke("search", "--resume", run, "--trust-factory", "../other.py:net")
    assert (tmp_path / "ran").exists()


def test_commands_that_build_nothing_import_nothing(project: Path) -> None:
    (project / "net.py").write_text(MARKED)
    write_finalized(hostile(linear(), "net.py:net", {}, "net.py:net"), project / "m.safetensors")
    for command in (
        ["inspect", "m.safetensors"], ["pack", "m.safetensors", "-o", "m.csq"], ["inspect", "m.csq"],
        ["unpack", "m.csq", "-o", "n.safetensors"], ["diff", "m.safetensors", "n.safetensors"],
        ["report", "m.safetensors", "m.csq", "-o", "page.html"],
    ):  # fmt: skip
        assert invoke(*command).exit_code == 0, command
    assert not (project / "ran").exists()


def test_a_sample_models_recorded_name_is_run_from_its_checkout(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    where = DIGITS.partition("/sample_models")[0]
    file = Path(where) / "sample_models" / "digits_cnn" / "build" / "model.safetensors"
    monkeypatch.chdir(tmp_path)
    if not (Path(where) / ".git").exists():
        pytest.skip("this is no checkout")
    assert callable(load_factory("sample_models/digits_cnn/model.py:digits_cnn", near=file, recorded=True))
