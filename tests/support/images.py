"""A small folder of images; Pillow is an extra."""

from __future__ import annotations

from pathlib import Path

import numpy as np


def write_images(folder: Path) -> None:
    """Write a small image folder: cats and dogs, three of each for training and two for validation."""
    from PIL import Image

    generator = np.random.default_rng(0)
    for part, count in (("train", 3), ("val", 2)):
        for label, name in enumerate(("cat", "dog")):
            (folder / part / name).mkdir(parents=True)
            for i in range(count):
                pixels = generator.integers(0, 256, (24 + i, 40, 3), np.uint8)
                pixels[..., label] = 255
                Image.fromarray(pixels).save(folder / part / name / f"{i}.png")
