"""Augmentation of image batches, with all randomness from one generator."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad


@dataclass(frozen=True)
class ShiftAndFlip:
    """Shifts each image of [B, C, H, W] by up to `pixels` and, if asked to, flips half of them left to right."""

    pixels: int
    flip: bool

    def __call__(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """Return the changed images, same shape; what is shifted in is the image's smallest value."""
        batch, _, height, width = images.shape
        padded = pad(images, (self.pixels,) * 4, value=float(images.min()))
        top, left = torch.randint(0, 2 * self.pixels + 1, (2, batch), generator=generator)
        rows = top[:, None] + torch.arange(height)  # (B, H)
        columns = left[:, None] + torch.arange(width)  # (B, W)
        if self.flip:
            flipped = torch.rand(batch, generator=generator) < 0.5
            columns = torch.where(flipped[:, None], columns.flip(1), columns)
        picked = padded.permute(0, 2, 3, 1)[  # (B, H, W, C)
            torch.arange(batch)[:, None, None], rows[:, :, None], columns[:, None, :]
        ]
        return picked.permute(0, 3, 1, 2).contiguous()  # (B, H, W, C) → (B, C, H, W)
