"""Made-up keywords, so that the sample runs offline: words are sequences of vowels, heard as formants in noise.

For real speech write a factory like `keywords` that returns features of your recordings in the same shape.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from csqtool.data import ArrayDataset, DataSource
from csqtool.task import task_by_name

FRAMES, BANDS = 49, 10
# First and second formant of five vowels, in bands.
VOWELS = ((1.5, 7.5), (3.0, 6.5), (4.5, 5.5), (3.0, 4.0), (1.5, 3.5))
WORDS = ((0, 2), (2, 0), (1, 3), (3, 1), (4, 0), (0, 4), (2, 4), (4, 2), (1,), (2,), (3, 2, 1), (1, 2, 3))
NOISE = 0.9


def word(vowels: tuple[int, ...], random: np.random.Generator) -> NDArray[np.float32]:
    """Return log energies [FRAMES, BANDS] of a word, spoken at its own time, speed, pitch and loudness."""
    length = random.uniform(0.45, 0.8) * FRAMES
    start = random.uniform(0, FRAMES - length)
    position = (np.arange(FRAMES) - start) / length  # 0 … 1 within the word
    inside = (position >= 0) & (position < 1)
    # One vowel glides into the next.
    places = np.clip(position, 0, 1) * len(vowels) - 0.5
    band = np.arange(BANDS)
    energy = np.zeros((FRAMES, BANDS))
    for formant in (0, 1):
        centres = [VOWELS[v][formant] for v in vowels]
        track = np.interp(places, np.arange(len(vowels)), centres) + random.normal(0, 0.3)
        energy += np.exp(-0.5 * ((band - track[:, None]) / 0.8) ** 2)  # (FRAMES, BANDS)
    energy *= random.uniform(0.8, 1.6) * inside[:, None]
    return np.asarray(2 * energy + NOISE * random.normal(size=energy.shape), np.float32)


def _part(samples: int, seed: int) -> ArrayDataset:
    random = np.random.default_rng(seed)
    labels = np.arange(samples) % len(WORDS)
    features = np.stack([word(WORDS[label], random) for label in labels])
    return ArrayDataset(features[:, None], labels, mean=0.36, std=1.13, stored="log energies, frames × bands")


def keywords() -> DataSource:
    """Return 1,800 training and 600 test words of twelve kinds, [1, 49, 10] each; always the same."""
    return DataSource("keywords", _part(1800, seed=1), _part(600, seed=2), task_by_name("classification"))
