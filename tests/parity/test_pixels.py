"""Decoder output becomes the release's bytes: a half rounded the other way would show in every pixel comparison."""

from __future__ import annotations

import numpy as np
from filling import Golden

from flowtok.data.images import to_pil


def test_bytes_of_saved_pictures() -> None:
    golden = Golden("pixels")
    image = golden.input("decoder_output").view(1, 3, 25, 7)
    (picture,) = to_pil(image)
    got = np.asarray(picture).transpose(2, 0, 1).reshape(-1)
    assert np.array_equal(got, golden.stored["bytes_png"].numpy())
