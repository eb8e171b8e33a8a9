from __future__ import annotations

import ast
from pathlib import Path

ROOT = Path(__file__).parent.parent
# Each part may import what stands before it, and itself.
ORDER = [
    "csqtool.errors csqtool.files csqtool.text csqtool.model_info csqtool.quantized_model csqtool.integers "
    "csqtool.folding csqtool.progress csqtool.documents csqtool.onnx_file csqtool.onnx_session "
    "csqtool.sandbox csqtool.onnx_isolated csqtool.onnx_limits csqtool.onnx_worker csqtool.trust "
    "csqtool.onnx_kernels csqtool.benchmarking csqtool.registry csqtool.version",
    "csqtool.finalized_file csqtool.factories csqtool.task csqtool.randomness",
    "csqtool.nn.modes",
    "csqtool.data",
    "csqtool.nn",
    "csqtool.processes",
    "csqtool.rebuild csqtool.evaluation csqtool.model_source",
    "csqtool.csq",
    "csqtool.exporting csqtool.searching",
    "csqtool.float16",
    "csqtool.packing",
    "exporters csqtool.summaries",
    "csqtool.verifying",
    "csqtool.pipeline_file csqtool.fingerprints",
    "csqtool.pipeline_runner",
    "csqtool.reporting",
    "csqtool.inspecting csqtool.diffing csqtool.starting",
    "csqtool.api",
    "csqtool.cli csqtool.__main__",
]
RANK = {name: rank for rank, names in enumerate(ORDER) for name in names.split()}
FORBIDDEN = {
    "exporters": ("csqtool.searching", "csqtool.verifying"),
    "csqtool": ("exporters", "sample_models"),
    "csqtool.verifying": ("csqtool.csq",),  # it decodes with code of its own, so that a shared mistake cannot pass
}


def imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            # `from csqtool import csq` imports a module, too; names that are none match their module's rules.
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


def part(module: str) -> str | None:
    matches = [name for name in RANK if module == name or module.startswith(f"{name}.")]
    return max(matches, key=len, default=None)


def test_imports_point_one_way() -> None:
    for path in [*(ROOT / "csqtool").rglob("*.py"), *(ROOT / "exporters").rglob("*.py")]:
        module = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        own = part(module)
        for imported in imports(path):
            for owner, foreign in FORBIDDEN.items():
                assert not (
                    f"{module}.".startswith(f"{owner}.") and f"{imported}.".startswith(tuple(f"{f}." for f in foreign))
                ), (module, imported)
            if own is not None and (other := part(imported)) is not None:
                assert RANK[other] <= RANK[own], (module, imported)
