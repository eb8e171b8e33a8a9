"""Networks of torchvision, timm, transformers, ultralytics and smp on the whole way: search, finalize, export, verify.

``python benchmarks/zoo.py`` takes every network, with float and with 8-bit activations, each in a process of its own,
and appends a line to ``zoo.jsonl``; what is in it is not done again. ``--write`` makes the table. The networks have
their shipped form, random weights that learn the inputs for 20 steps, and BatchNorm statistics of the inputs; inputs
are small and random, and a search takes two steps: the question is whether a network comes through, and whether the
files compute the same. Images have large and small shapes, as photographs do. Extra ``zoo``.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import re
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

RESULTS = Path(__file__).parent / "results" / "zoo.md"
SAMPLES = 8
Example = Callable[[], Any]


def image(size: int, channels: int = 3) -> Example:
    def made() -> Tensor:
        octaves = (torch.randn(SAMPLES, channels, 2**i, 2**i) for i in range(size.bit_length() - 2))
        images = sum(functional.interpolate(o, (size, size), mode="bilinear") for o in octaves)
        return images / images.std()

    return made


def tokens(length: int = 16, vocabulary: int = 100, **more: bool) -> Example:
    def made() -> dict[str, Tensor]:
        found = {"input_ids": torch.randint(3, vocabulary, (SAMPLES, length))}
        if more.get("mask", True):
            mask = torch.ones(SAMPLES, length, dtype=torch.int64)
            mask[:2, length // 2 :] = 0
            found["attention_mask"] = mask
        if more.get("decoder"):
            found["decoder_input_ids"] = torch.randint(3, vocabulary, (SAMPLES, length))
        return found

    return made


class AnyOutputs:
    """A task for outputs of any structure: the mean square of all of them, which says nothing about a network.

    The metric is its logarithm: `verify` allows a difference of 0.01, which must mean the same for outputs of any size.
    """

    name, metric_name, labels = "any", "-log10 of the mean square", False

    def loss(self, outputs: Any, targets: Any) -> Tensor:
        from csqtool.trees import tensors

        values = [t.float().square().mean() for t in tensors(outputs) if t.is_floating_point()]
        return torch.stack(values).mean()

    def metric(self, outputs: Any, targets: Any) -> float:
        return -math.log10(max(float(self.loss(outputs, targets)), 1e-30))


VISION = {
    "alexnet": 64, "convnext_tiny": 64, "densenet121": 64, "efficientnet_b0": 64, "efficientnet_v2_s": 64,
    "googlenet": 64, "inception_v3": 299, "mnasnet0_5": 64, "mnasnet1_0": 64, "mobilenet_v2": 64,
    "mobilenet_v3_small": 64, "mobilenet_v3_large": 64, "regnet_x_400mf": 64, "regnet_y_400mf": 64, "resnet18": 64,
    "resnet34": 64, "resnet50": 64, "resnext50_32x4d": 64, "shufflenet_v2_x0_5": 64, "shufflenet_v2_x1_0": 64,
    "squeezenet1_0": 64, "squeezenet1_1": 64, "swin_t": 64, "vgg11_bn": 64, "vit_b_32": 224, "wide_resnet50_2": 64,
    "lraspp_mobilenet_v3_large": 64, "deeplabv3_mobilenet_v3_large": 64, "fcn_resnet50": 64, "swin_v2_t": 64,
}  # fmt: skip
VISION_MORE: dict[str, dict[str, Any]] = {
    "lraspp_mobilenet_v3_large": {"weights_backbone": None}, "deeplabv3_mobilenet_v3_large": {"weights_backbone": None},
    "fcn_resnet50": {"weights_backbone": None}, "googlenet": {"init_weights": False},
    "inception_v3": {"init_weights": False},
}  # fmt: skip
TIMM = {
    "resnet18": 64, "resnet26d": 64, "resnetv2_50": 64, "seresnet18": 64, "efficientnet_lite0": 64,
    "tf_efficientnetv2_b0": 64, "mobilenetv3_small_050": 64, "mobilenetv4_conv_small": 64, "ghostnet_050": 64,
    "mixnet_s": 64, "hardcorenas_a": 64, "fbnetc_100": 64, "lcnet_050": 64, "tinynet_e": 64, "regnety_002": 64,
    "rexnet_100": 64, "repvgg_a0": 64, "repghostnet_050": 64, "convnext_atto": 64, "convnextv2_atto": 64,
    "convmixer_768_32": 64, "deit_tiny_patch16_224": 224, "vit_tiny_patch16_224": 224, "xcit_nano_12_p16_224": 224,
    "levit_128s": 224, "mobilevit_xxs": 64, "mobilevitv2_050": 64, "edgenext_xx_small": 64, "efficientformer_l1": 224,
    "poolformer_s12": 64, "mixer_s32_224": 224, "pit_ti_224": 224, "coat_lite_tiny": 64, "cait_xxs24_224": 224,
    "nf_regnet_b0": 64, "nfnet_f0": 64, "dla34": 64, "cspresnet50": 64, "hrnet_w18_small": 64, "res2net50_26w_4s": 64,
    "selecsls42b": 64, "vovnet39a": 64, "fastvit_t8": 64, "starnet_s1": 64,
}  # fmt: skip
SMP = dict.fromkeys(
    ("Unet", "UnetPlusPlus", "FPN", "PSPNet", "Linknet", "DeepLabV3", "DeepLabV3Plus", "PAN", "MAnet", "UPerNet"),
    64,
)
YOLO = dict.fromkeys(
    ("yolov8n.yaml", "yolov5n.yaml", "yolo11n.yaml", "yolov8n-seg.yaml", "yolov8n-cls.yaml", "yolov10n.yaml"),
    64,
)
SMALL = {"vocab_size": 100, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
         "intermediate_size": 128, "max_position_embeddings": 64}  # fmt: skip


def transformers_networks() -> dict[str, tuple[str, str, dict[str, Any], Example]]:
    """Return class, configuration class, settings and inputs of each network of transformers."""
    decoder = {"num_key_value_heads": 2, "pad_token_id": 0}
    small_conv = {"num_labels": 4}
    return {
        "bert": ("BertForSequenceClassification", "BertConfig", SMALL, tokens()),
        "distilbert": ("DistilBertForSequenceClassification", "DistilBertConfig",
                       {"vocab_size": 100, "dim": 64, "n_layers": 2, "n_heads": 4, "hidden_dim": 128}, tokens()),
        "roberta": ("RobertaForTokenClassification", "RobertaConfig", SMALL, tokens()),
        "electra": ("ElectraForSequenceClassification", "ElectraConfig", {**SMALL, "embedding_size": 32}, tokens()),
        "albert": ("AlbertForSequenceClassification", "AlbertConfig", {**SMALL, "embedding_size": 32}, tokens()),
        "mobilebert": ("MobileBertForSequenceClassification", "MobileBertConfig",
                       {**SMALL, "embedding_size": 32, "intra_bottleneck_size": 32}, tokens()),
        "deberta v2": ("DebertaV2ForSequenceClassification", "DebertaV2Config", SMALL, tokens()),
        "gpt-2": ("GPT2LMHeadModel", "GPT2Config",
                  {"vocab_size": 100, "n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 64}, tokens()),
        "gpt-neox": ("GPTNeoXForCausalLM", "GPTNeoXConfig", SMALL, tokens()),
        "opt": ("OPTForCausalLM", "OPTConfig",
                {**SMALL, "ffn_dim": 128, "word_embed_proj_dim": 64}, tokens()),
        "llama": ("LlamaForCausalLM", "LlamaConfig", {**SMALL, **decoder}, tokens()),
        "mistral": ("MistralForCausalLM", "MistralConfig", {**SMALL, **decoder}, tokens()),
        "qwen2": ("Qwen2ForCausalLM", "Qwen2Config", {**SMALL, **decoder}, tokens()),
        "gemma": ("GemmaForCausalLM", "GemmaConfig", {**SMALL, **decoder, "head_dim": 16}, tokens()),
        "phi": ("PhiForCausalLM", "PhiConfig", SMALL, tokens()),
        "t5": ("T5ForConditionalGeneration", "T5Config",
               {"vocab_size": 100, "d_model": 64, "d_ff": 128, "d_kv": 16, "num_layers": 2, "num_heads": 4},
               tokens(decoder=True)),
        "vit": ("ViTForImageClassification", "ViTConfig", {**SMALL, "image_size": 32, "patch_size": 8}, image(32)),
        "deit": ("DeiTForImageClassification", "DeiTConfig", {**SMALL, "image_size": 32, "patch_size": 8}, image(32)),
        "resnet": ("ResNetForImageClassification", "ResNetConfig",
                   {**small_conv, "embedding_size": 16, "hidden_sizes": [16, 32], "depths": [1, 1]}, image(32)),
        "convnext": ("ConvNextForImageClassification", "ConvNextConfig",
                     {"hidden_sizes": [16, 32], "depths": [1, 1], "num_stages": 2}, image(32)),
        "segformer": ("SegformerForSemanticSegmentation", "SegformerConfig",
                      {"depths": [1, 1], "hidden_sizes": [16, 32], "num_encoder_blocks": 2, "sr_ratios": [2, 1],
                       "patch_sizes": [7, 3], "strides": [4, 2], "num_attention_heads": [1, 2], "mlp_ratios": [2, 2],
                       "decoder_hidden_size": 32}, image(64)),
        "wav2vec2": ("Wav2Vec2ForSequenceClassification", "Wav2Vec2Config",
                     {**SMALL, "conv_dim": [16, 16], "conv_stride": [5, 2], "conv_kernel": [10, 3],
                      "num_feat_extract_layers": 2, "num_conv_pos_embeddings": 16,
                      "num_conv_pos_embedding_groups": 4, "apply_spec_augment": False},
                     lambda: torch.randn(SAMPLES, 800)),
    }  # fmt: skip


def networks() -> dict[str, tuple[Callable[[], nn.Module], Example]]:
    """Return what builds each network, and what makes its inputs, by ``library:name``."""
    from csqtool import hubs

    found: dict[str, tuple[Callable[[], nn.Module], Example]] = {}
    for library, names in (("torchvision", VISION), ("timm", TIMM), ("smp", SMP), ("ultralytics", YOLO)):
        for name, size in names.items():
            spec, more = f"{library}:{name}", dict(VISION_MORE.get(name, {})) if library == "torchvision" else {}
            if library == "smp":
                more = {"encoder_name": "resnet18"}
            found[spec] = (lambda spec=spec, more=more: hubs.build(spec, more)), image(size)
    for name, (kind, config, settings, example) in transformers_networks().items():
        found[f"transformers:{name}"] = (lambda k=kind, c=config, s=settings: _transformer(k, c, s)), example
    return found


def _transformer(kind: str, config: str, settings: Mapping[str, Any]) -> nn.Module:
    import transformers

    described = getattr(transformers, config)(**settings)
    described.use_cache = False
    module: nn.Module = getattr(transformers, kind)(described)
    return module


def declare_missing_operators() -> None:
    """Let a torchvision whose compiled part does not fit torch be imported: no network here calls its operators."""
    for _ in range(40):
        try:
            import torchvision  # noqa: F401
        except RuntimeError as error:
            missing = re.search(r"operator (torchvision::\w+) does not exist", str(error))
            if missing is None:
                raise
            for name in [n for n in sys.modules if n.startswith("torchvision")]:
                del sys.modules[name]
            torch.library.define(missing[1], "(Tensor x) -> Tensor")
        except ImportError:
            return
        else:
            return


def learn(module: nn.Module, inputs: Any) -> None:
    """Train a network for a few steps to tell its inputs apart, in place: to each it should answer random numbers.

    In a deep network with random weights the noise of rounding is a tenth of the outputs' spread, and two programs that
    round one value differently are as far apart. In networks that have learned something it is far less.
    """
    from csqtool.trees import call, tensors

    optimizer = torch.optim.Adam(module.parameters(), lr=1e-3)
    wanted: list[Tensor] = []
    module.train()
    for _ in range(20):
        outputs = [t for t in tensors(call(module, inputs)) if t.is_floating_point()]
        # Of a map one number a channel: it could not learn one for each place.
        wanted = wanted or [torch.randn((*t.shape[:2], 1, 1) if t.ndim == 4 else t.shape) for t in outputs]
        loss = torch.stack([(a - b).square().mean() for a, b in zip(outputs, wanted, strict=True)]).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


@torch.no_grad()
def sensitivity(net: nn.Module, images: Any) -> float | None:
    """Return by how much of their spread PyTorch's own outputs move with one value of each image, None without images.

    The value moves by 0.05, one or two steps of the input's quantizer. Where that moves outputs by a tenth of their
    spread, so does any rounding: nothing can be said about two programs from their outputs, only from their layers.
    """
    from csqtool.trees import tensors

    if not isinstance(images, Tensor) or images.ndim != 4:
        return None
    moved = images.clone()
    moved[:, 0, 10, 10] += 0.05
    before, after = (torch.cat([t.float().flatten(1) for t in tensors(net(x))], dim=1) for x in (images, moved))
    return float((after - before).abs().mean() / before.std())


def state_of_code() -> str:
    """Return the commit that a row is measured with, empty outside of a repository."""
    line = ["git", "-C", str(RESULTS.parent), "describe", "--always", "--dirty"]
    try:
        return subprocess.run(line, capture_output=True, text=True, check=False).stdout.strip()
    except OSError:
        return ""


def measure(name: str, act_bits: int | None) -> dict[str, Any]:
    """Take one network all the way; return the row."""
    import csqtool
    from csqtool.api.given import named_or_source
    from csqtool.evaluation import reestimate_batch_norm
    from csqtool.onnx_kernels import integer_share

    declare_missing_operators()
    build, example = networks()[name]
    torch.manual_seed(0)
    row: dict[str, Any] = {"network": name, "act_bits": act_bits, "code": state_of_code(), "stage": "build"}
    began = time.monotonic()
    try:
        module = build()
        inputs = example()
        learn(module, inputs)
        batch = [(inputs, torch.zeros(SAMPLES))]
        source, _ = named_or_source(None, batch, batch, AnyOutputs(), None)
        assert source is not None
        reestimate_batch_norm(module, source.for_model(module), torch.device("cpu"), batch_size=SAMPLES, seed=0)
        parameters = sum(p.numel() for p in module.parameters())
        row |= {"parameters": parameters, "stage": "search"}
        result = csqtool.search(
            module, train=batch, test=batch, task=AnyOutputs(), target_bits=3, planes=4, max_bits=4, act_bits=act_bits,
            epochs=1, finetune_epochs=1, learning_rate=1e-5, repair=False, compile="no", amp="no",
        )  # fmt: skip
        row["stage"] = "finalize"
        model = result.finalize()
        row |= {"coverage": sum(layer.q.size for layer in model.layers) / parameters, "stage": "export"}
        row["sensitivity"] = sensitivity(csqtool.to_torch(model, module), inputs)
        with tempfile.TemporaryDirectory() as folder:
            for suffix in ("onnx", "csq"):
                row["stage"] = f"export {suffix}"
                path = Path(folder) / f"m.{suffix}"
                done = csqtool.export(model, path, model=module)
                row[f"{suffix}_bytes"] = path.stat().st_size
                if suffix == "onnx":
                    row |= {"integer_share": integer_share(path.read_bytes()), "float32_bytes": done.float32_bytes}
                row["stage"] = f"verify {suffix}"
                report = csqtool.verify(path, model, model=module, data=batch, task=AnyOutputs())
                row[f"verify_{suffix}"] = report.passed
                failed = [f"{c.level} {c.name}: {c.detail}"[:200] for c in report.failures]
                if failed:
                    row[f"failed_{suffix}"] = failed[:3]
                    row["failed_levels"] = sorted({*row.get("failed_levels", ()), *(c.level for c in report.failures)})
        row["stage"] = "done"
    except csqtool.CsqtoolError as error:
        row["refused"] = str(error)[:300]
    except Exception as error:
        row["crashed"] = f"{type(error).__name__}: {error}"[:300]
    row |= {
        "seconds": round(time.monotonic() - began, 1),
        "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }
    return row


def run_all(chosen: list[str], path: Path, workers: int, limit: float, bits: list[int | None]) -> None:
    """Measure what is not in `path` yet, each network in a process of its own."""
    rows = [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []
    done = {(row["network"], row["act_bits"]) for row in rows}
    jobs = [(name, bits_) for bits_ in bits for name in chosen if (name, bits_) not in done]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}

    def one(job: tuple[str, int | None]) -> None:
        name, act_bits = job
        line = [sys.executable, __file__, "--one", name, "--act-bits", str(act_bits or 0)]
        try:
            made = subprocess.run(line, capture_output=True, text=True, timeout=limit, check=False, env=environment)
            last = made.stdout.strip().splitlines()[-1:] or [""]
            row = json.loads(last[0]) if last[0].startswith("{") else {
                "network": name, "act_bits": act_bits, "crashed": f"exit {made.returncode}: {made.stderr[-200:]}"
            }  # fmt: skip
        except subprocess.TimeoutExpired:
            row = {"network": name, "act_bits": act_bits, "crashed": f"took more than {limit:g} s"}
        with path.open("a") as file:
            file.write(json.dumps(row) + "\n")
        print(verdict(row), row["network"], row["act_bits"], row.get("seconds"), row.get("refused") or
              row.get("crashed") or row.get("failed_onnx") or "", flush=True)  # fmt: skip

    with ThreadPoolExecutor(workers) as pool:
        list(pool.map(one, jobs))


def verdict(row: Mapping[str, Any]) -> str:
    """Return a word for how a network ended."""
    if "crashed" in row:
        return "CRASH"
    if "refused" in row:
        return "refused" if row["stage"] in ("build", "search") else f"LATE ({row['stage']})"
    return "PASS" if row.get("verify_onnx") and row.get("verify_csq") else "FAIL"


def counted(found: list[str]) -> str:
    """Return how often each verdict was found."""
    return ", ".join(f"{found.count(word)} {word}" for word in dict.fromkeys(found)) or "not run"


def reasons(row: Mapping[str, Any]) -> str:
    """Return why a network did not pass."""
    failed = row.get("failed_onnx") or row.get("failed_csq") or []
    if row.get("failed_levels") == ["outputs"] and row.get("sensitivity"):
        failed = [*failed, "all layers hold, but PyTorch's own outputs move by "
                  f"{row['sensitivity']:.0%} of their spread where one value of each image moves by 0.05"]  # fmt: skip
    return str(row.get("refused") or row.get("crashed") or "; ".join(failed))


def table(path: Path) -> str:
    """Return the table as Markdown."""
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    latest = {(row["network"], row["act_bits"]): row for row in rows}
    names = list(dict.fromkeys(name for name, _ in latest))
    counts = {bits: [verdict(latest[n, bits]) for n in names if (n, bits) in latest] for bits in (None, 8)}
    heads = ["network", "parameters", "coverage", "float: verdict", "8 bits: verdict", "integer share", "ONNX", ".csq",
             "of float32", "seconds", "peak memory"]  # fmt: skip
    lines = [
        "# Networks that people deploy", "", __doc__.strip().splitlines()[0], "",
        "Random weights, BatchNorm statistics of the inputs, small random inputs, a search of two steps; torch "
        + torch.__version__
        + f", {platform.machine()}, {os.cpu_count()} CPUs, one thread a network, two at a time. Coverage is the share "
        "of parameters that are quantized; integer share that of compute nodes on onnxruntime's integer kernels; "
        "bytes, seconds and memory are those with 8-bit activations. What is refused is refused before training. "
        "Repeat: `python benchmarks/zoo.py`.", "",
        *(f"- {'float' if bits is None else f'{bits}-bit'} activations: " + counted(found)
          for bits, found in counts.items()),
        "", "| " + " | ".join(heads) + " |", "|" + " --- |" * len(heads),
    ]  # fmt: skip
    for name in names:
        plain, eight = latest.get((name, None), {}), latest.get((name, 8), {})
        best = eight if "onnx_bytes" in eight else plain
        cells = [
            name, f"{best['parameters'] / 1e6:.2f} M" if "parameters" in best else "",
            f"{best['coverage']:.0%}" if "coverage" in best else "",
            verdict(plain) if plain else "", verdict(eight) if eight else "",
            f"{eight['integer_share']:.0%}" if "integer_share" in eight else "",
            f"{best['onnx_bytes'] / 1e6:.2f} MB" if "onnx_bytes" in best else "",
            f"{best['csq_bytes'] / 1e6:.2f} MB" if "csq_bytes" in best else "",
            f"{best['onnx_bytes'] / best['float32_bytes']:.2f}" if best.get("float32_bytes") else "",
            str(best.get("seconds", "")), f"{best['peak_bytes'] / 1e9:.1f} GB" if "peak_bytes" in best else "",
        ]  # fmt: skip
        lines.append("| " + " | ".join(cells) + " |")
    wrong = [row for row in latest.values() if verdict(row) != "PASS"]
    if wrong:
        lines += ["", "What did not pass:", ""]
        lines += [
            f"- {row['network']}, {'float' if row['act_bits'] is None else '8-bit'} activations: {verdict(row)}: "
            + reasons(row)
            for row in wrong
        ]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help="networks as library:name, or libraries; all by default")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    parser.add_argument("--act-bits", type=int, help="8, or 0 for float; both by default")
    parser.add_argument("--results", type=Path, default=Path("zoo.jsonl"))
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--limit", type=float, default=600, help="seconds a network")
    parser.add_argument("--write", action="store_true", help="write the table of what is in the results")
    options = parser.parse_args()
    bits = [8, None] if options.act_bits is None else [options.act_bits or None]
    if options.one:
        print(json.dumps(measure(options.one, bits[0])))
        return
    if options.write:
        RESULTS.write_text(table(options.results))
        return
    everything = list(networks())
    wanted = options.names or everything
    chosen = dict.fromkeys(n for w in wanted for n in everything if w in (n, n.partition(":")[0]))
    run_all(list(chosen), options.results, options.workers, options.limit, bits)


if __name__ == "__main__":
    main()
