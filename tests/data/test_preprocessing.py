from __future__ import annotations

import numpy as np

from csqtool.data import load_data
from csqtool.finalized_file import read_finalized
from tests.support.commands import Built


def test_what_a_finalized_file_records_turns_inputs_back_into_stored_pixels(eight_bits: Built) -> None:
    data = read_finalized(eight_bits.model).info.data
    assert data is not None
    recorded = data.preprocessing
    assert recorded is not None
    inputs = np.stack([load_data("digits").test[i][0].numpy() for i in range(50)])
    pixels = inputs * recorded.std + recorded.mean
    assert recorded.steps == "grey pixels 0 … 16"
    np.testing.assert_allclose(pixels, pixels.round(), atol=1e-4)
    assert (pixels.round().min(), pixels.round().max()) == (0, 16)
