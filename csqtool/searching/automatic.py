"""Decides ``auto`` for mixed precision and memory layout, once a search; the run directory records the decision."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from csqtool.nn.modes import evaluating
from csqtool.searching.config import SearchConfig
from csqtool.trees import call, samples, tensors

# Floating-point operations of a step's forward pass from which on both pay off. ResNet-20 at batch 128 (1e10) takes
# 0.56 times as long with both; with a hundredth of that, the conversions cost as much time as they save.
PAYS_FROM_FLOPS = 1e9


def resolve(config: SearchConfig, model: nn.Module, sample: Any, device: torch.device) -> SearchConfig:
    """Return the settings with every ``auto`` of `amp` and `channels_last` decided.

    Args:
        config: the settings.
        model: the model, on the CPU.
        sample: inputs of a few samples.
        device: the device that it will be trained on.
    """
    if config.amp != "auto" and config.channels_last is not None:
        return config
    large = flops(model, sample) / samples(sample) * config.batch_size >= PAYS_FROM_FLOPS
    amp = config.amp if config.amp != "auto" else "bf16" if large and computes_bf16(device) else "no"
    channels_last = config.channels_last
    if channels_last is None:
        channels_last = large and any(x.ndim == 4 for x in tensors(sample)) and device.type in ("cpu", "cuda")
    return dataclasses.replace(config, amp=amp, channels_last=channels_last)


@torch.no_grad()
def flops(model: nn.Module, sample: Any) -> int:
    """Return the floating-point operations of a forward pass in evaluation mode."""
    with evaluating(model), FlopCounterMode(display=False) as counter:
        call(model, sample)
    return int(counter.get_total_flops())


def computes_bf16(device: torch.device) -> bool:
    """Return whether a device has instructions for bfloat16; where it is emulated, it is slower than float32."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if device.type != "cpu":
        return False
    known: dict[str, object] = getattr(torch.cpu, "get_capabilities", dict)()
    return bool(known.get("avx512_bf16") or known.get("amx_bf16") or known.get("bf16"))
