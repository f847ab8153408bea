"""Where the components of a course begin."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch

from flowtok import recipes
from flowtok.checkpoints.store import save_component
from flowtok.image.tokenizer import ImageTokenizer
from flowtok.train.runtime import Runtime
from flowtok.train.weights import Weights


def test_a_tokenizer_for_larger_pictures_begins_with_the_weights_of_a_smaller_one(tmp_path: Path) -> None:
    """The paper's way to 512 px; only the tables of positions belong to the size."""
    config = replace(recipes.TINY.image_tokenizer, image_size=16)
    small, large = ImageTokenizer(config), ImageTokenizer(replace(config, image_size=32))
    for seed, tokenizer in enumerate((small, large)):
        tokenizer.initialize(torch.Generator().manual_seed(seed))
    save_component(tmp_path / "small", "image_tokenizer", small.state_dict())
    tables = {name: table.clone() for name, table in large.state_dict().items() if "freqs" in name}
    weights = Weights(recipes.TINY, tmp_path, Runtime(device=torch.device("cpu")), start=[tmp_path / "small"])
    weights.begin("image_tokenizer", large)
    found = large.state_dict()
    assert tables and all(torch.equal(found[name], table) for name, table in tables.items())
    assert all(torch.equal(found[name], value) for name, value in small.state_dict().items() if "freqs" not in name)
