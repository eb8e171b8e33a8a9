"""Random numbers as functions of where they are drawn, so that a resumed run draws the same ones."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor


def hash_seed(*parts: object) -> int:
    """Return a 63-bit seed that is a function of `parts` alone."""
    return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:8], "little") >> 1


def seed_all(seed: int) -> None:
    """Seed every random state that a model or data set may draw from, so that no step depends on earlier draws."""
    torch.manual_seed(seed)
    np.random.seed(seed % 2**32)
    random.seed(seed)


@contextmanager
def drawing_from(seed: int) -> Iterator[None]:
    """Draw from `seed` within the block, and restore the CPU's random states after it."""
    kept = torch.get_rng_state(), np.random.get_state(), random.getstate()
    seed_all(seed)
    try:
        yield
    finally:
        torch.set_rng_state(kept[0])
        np.random.set_state(kept[1])
        random.setstate(kept[2])


def random_states() -> tuple[object, ...]:
    """Return the random states of torch (CPU), numpy and Python, to be compared with others."""
    kind, keys, *rest = np.random.get_state()
    return torch.get_rng_state().numpy().tobytes(), kind, np.asarray(keys).tobytes(), *rest, random.getstate()


def epoch_order(samples: int, seed: int, stage: str, epoch: int) -> Tensor:
    """Return the order of the training samples in an epoch."""
    return torch.randperm(samples, generator=torch.Generator().manual_seed(hash_seed(seed, stage, epoch)))
