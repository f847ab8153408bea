"""Decoder output becomes the release's bytes: a half rounded the other way would show in every pixel comparison."""

from __future__ import annotations

import numpy as np
import torch
from filling import Golden

from flowtok.data.images import to_pil


def test_bytes_of_saved_pictures() -> None:
    golden = Golden("pixels")
    image = golden.input("decoder_output").view(1, 3, 25, 7)
    (picture,) = to_pil(image)
    got = np.asarray(picture).transpose(2, 0, 1).reshape(-1)
    assert np.array_equal(got, golden.stored["bytes_png"].numpy())


def test_scores_of_saved_pictures_see_what_the_release_scores() -> None:
    """Its FID while training rounds the other way, but only where a colour lies halfway between two bytes."""
    golden = Golden("pixels")
    levels = 255 * golden.input("decoder_output").double().clamp(0, 1)
    halfway = ((levels - levels.floor()) - 0.5).abs() < 1e-4
    png, scored = golden.stored["bytes_png"], golden.stored["bytes_fid_in_training"]
    got = torch.from_numpy(np.asarray(to_pil(golden.input("decoder_output").view(1, 3, 25, 7))[0]).copy())
    differs = got.permute(2, 0, 1).reshape(-1) != scored
    assert differs.sum() == golden.spec["note"]["values_where_the_two_differ"]
    assert not (differs & ~halfway).any() and (png - scored).abs().max() == 1
