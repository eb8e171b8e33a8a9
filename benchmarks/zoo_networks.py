"""The networks of `benchmarks.zoo`, by name, and the inputs that each is given."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

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
