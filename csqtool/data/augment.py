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
        top, left = torch.randint(0, 2 * border + 1, (2, batch), generator=generator)
        windows = padded.unfold(2, height, 1).unfold(3, width, 1)  # (B, C, shifts, shifts, H, W), nothing is copied
        picked = windows[torch.arange(batch), :, top, left]
        if self.flip:
            flipped = torch.rand(batch, generator=generator) < 0.5
            picked[flipped] = picked[flipped].flip(3)
        return picked
