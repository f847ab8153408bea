"""A CLIP sees pictures as its makers prepare them, and its score is the cosine that papers print."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image

from flowtok.errors import CheckpointError
from flowtok.evaluate.clip import ClipScorer, clip_score


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CLIP of both towers with few and narrow layers, in the layout of transformers."""
    from fixtures_released import CUT_TOKENIZER
    from transformers import CLIPConfig, CLIPModel

    layers = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = CLIPConfig(
        text_config={**layers, "vocab_size": 49408, "max_position_embeddings": 77, "eos_token_id": 49407},
        vision_config={**layers, "image_size": 24, "patch_size": 8},
        projection_dim=12,
    )
    torch.manual_seed(0)
    place = tmp_path_factory.mktemp("clip")
    CLIPModel(config).save_pretrained(place)
    (place / "tokenizer.json").write_bytes(CUT_TOKENIZER.read_bytes())
    return place


def noise(width: int, height: int) -> Image.Image:
    levels = torch.randint(
        0, 256, (height, width, 3), generator=torch.Generator().manual_seed(width), dtype=torch.uint8
    )
    return Image.fromarray(levels.numpy())


def test_pictures_are_prepared_as_transformers_does_it(folder: Path) -> None:
    """Its processor needs torchvision or copies of several megabytes; a filter or mean off moves every score."""
    module = pytest.importorskip("transformers.models.clip.image_processing_pil_clip")
    ours = ClipScorer.opened(str(folder))
    processor = module.CLIPImageProcessorPil(size={"shortest_edge": 24}, crop_size={"height": 24, "width": 24})
    for picture in (noise(16, 16), noise(40, 64), noise(101, 50)):
        expected_13YX = torch.as_tensor(processor(picture, return_tensors="pt")["pixel_values"])
        torch.testing.assert_close(ours._pixels(picture)[None], expected_13YX, atol=1e-5, rtol=0)


def test_score_is_the_networks_own_cosine(folder: Path) -> None:
    from transformers import CLIPModel

    ours, theirs = ClipScorer.opened(str(folder)), CLIPModel.from_pretrained(folder)
    pictures, texts = [noise(30, 30), noise(24, 24)], ["a photo of a cat", "a cat " * 90]
    picture_ND, text_ND = ours.of_pictures(pictures), ours.of_texts(texts)
    given = ours.tokenizer(texts, padding=True, truncation=True, max_length=77, return_tensors="pt")
    with torch.no_grad():
        pixels = torch.stack([ours._pixels(one) for one in pictures])
        logits_NM = theirs(pixel_values=pixels, **given).logits_per_image
    cosines_NM = logits_NM / theirs.logit_scale.exp()
    torch.testing.assert_close(picture_ND @ text_ND.T, cosines_NM.detach(), atol=1e-5, rtol=0)
    assert clip_score(picture_ND, text_ND) == pytest.approx(
        100 * cosines_NM.diagonal().clamp_min(0).mean().item(), abs=1e-3
    )
    assert ours.protocol() == {"name": folder.name, "sha256": ours.sha256, "side": 24, "tokens": 77}


def test_score_of_known_vectors() -> None:
    """Cosines 0.6 and -1, of which the second counts as 0: 100 * 0.6 / 2."""
    picture_ND, text_ND = torch.tensor([[1.0, 0.0], [1.0, 0.0]]), torch.tensor([[0.6, 0.8], [-1.0, 0.0]])
    assert clip_score(picture_ND, text_ND) == pytest.approx(30.0)


def test_what_is_no_clip_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"gives no CLIP: .*--clip"):
        ClipScorer.opened(str(tmp_path))
