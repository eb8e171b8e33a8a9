"""Defaults of the recipes, and of the AdamW optimizer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

RECIPES: Mapping[str, Mapping[str, Any]] = {
    "default": {},
    # CSQ, section IV-A for ResNet-20; values that the paper does not give are those of the authors' code. VGG19-BN
    # takes 300 epochs; ImageNet 200, 100 more of finetuning, a warm-up of 5 and a weight decay of 1e-4.
    "paper": {
        "epochs": 600,
        "finetune_epochs": 0,
        "finetune_with": "csq",
        "batch_size": 128,
        "learning_rate": 0.1,
        "gate_learning_rate": 0.1,
        "mask_learning_rate": 0.1,
        "mask_momentum": 0.9,
        "weight_decay": 5e-4,
        "gate_weight_decay": 5e-4,
        "decay_all": True,
        "amp": "no",
        "channels_last": False,
        "init": "paper",
        "budget_weighting": "elements",
        "element_pressure": False,
        "keep_norms": False,
        "max_bits": 8,
        "contiguous": False,
        "repair": False,
    },
}
# The size of Adam's steps does not depend on the gradient's, so it needs other learning rates.
ADAMW_RATES = {"learning_rate": 1e-3, "gate_learning_rate": 0.1, "mask_learning_rate": 0.01}


def recipe_defaults(given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the defaults of the given recipe and optimizer, whether the method uses them or not."""
    rates = ADAMW_RATES if given.get("optimizer") == "adamw" else {}
    return {**RECIPES[given.get("recipe", "default")], **rates}
