"""Augmentation of image batches, with all randomness from one generator."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class ShiftAndFlip:
    """Shifts each image of [B, C, H, W] by up to `pixels` and, if asked to, flips half of them left to right.

    With four pixels on 32×32 images this is the usual augmentation of CIFAR: pad by four, crop, flip.

    Attributes:
        pixels: shifts are −pixels … pixels, both ways.
        flip: flip half of the images.
        fill: what is shifted in; one number, or one a channel.
    """

    pixels: int
    flip: bool
    fill: tuple[float, ...]

    def __call__(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """Return the changed images, same shape."""
        batch, channels, height, width = images.shape
        border = self.pixels
        fill = torch.tensor(self.fill, dtype=images.dtype).reshape(1, -1, 1, 1)
        padded = fill.expand(batch, channels, height + 2 * border, width + 2 * border).clone()
        padded[:, :, border : border + height, border : border + width] = images
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
