"""Pictures and texts as vectors of a CLIP that somebody else trained: CLIP score, and retrieval by CLIP.

The border to transformers; knows no model of ours. Pictures are prepared here as OpenAI's release does, with Pillow.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from flowtok.errors import CheckpointError

_MEAN, _STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


class ClipScorer:
    """A CLIP with both towers.

    Attributes:
        name: Where it came from: the folder's name, or its Hub id.
        sha256: Of its weights, sorted by name.
    """

    def __init__(self, network: Any, tokenizer: Any, name: str, device: torch.device | str = "cpu") -> None:
        self.network, self.tokenizer, self.name, self.device = network.to(device).eval(), tokenizer, name, device
        self.side: int = network.config.vision_config.image_size
        self.length: int = network.config.text_config.max_position_embeddings
        digest = hashlib.sha256()
        for key, tensor in sorted(network.state_dict().items()):
            digest.update(key.encode() + tensor.detach().cpu().contiguous().numpy().tobytes())
        self.sha256 = digest.hexdigest()

    @classmethod
    def opened(cls, place: str, device: torch.device | str = "cpu") -> ClipScorer:
        """Opens a folder in the layout of transformers, or a repository OWNER/NAME on the Hub.

        Raises:
            CheckpointError: It is not there, or no CLIP.
        """
        from transformers import AutoTokenizer, CLIPModel

        try:
            network = CLIPModel.from_pretrained(place, dtype=torch.float32)
            tokenizer = AutoTokenizer.from_pretrained(place)
        except (OSError, ValueError, RuntimeError, KeyError, TypeError) as error:
            reason = (" ".join(str(error).split()) or type(error).__name__)[:200]
            raise CheckpointError(
                f"{place} gives no CLIP: {reason}; name a folder of transformers or a Hub id such as "
                "openai/clip-vit-large-patch14 with --clip"
            ) from error
        return cls(network, tokenizer, Path(place).name if Path(place).is_dir() else place, device)

    def protocol(self) -> dict[str, Any]:
        """What a score says of it."""
        return {"name": self.name, "sha256": self.sha256, "side": self.side, "tokens": self.length}

    @torch.inference_mode()
    def of_pictures(self, pictures: Sequence[Image.Image]) -> Tensor:
        """Vectors (B, D) of length 1: shorter side resized (bicubic), centre cropped, normalised as OpenAI does."""
        pixels_B3YX = torch.stack([self._pixels(picture) for picture in pictures]).to(self.device)
        return _unit(self.network.get_image_features(pixel_values=pixels_B3YX))

    @torch.inference_mode()
    def of_texts(self, texts: Sequence[str]) -> Tensor:
        """Vectors (B, D) of length 1; what is longer than CLIP reads is cut."""
        given = self.tokenizer(
            list(texts), padding=True, truncation=True, max_length=self.length, return_tensors="pt"
        ).to(self.device)
        return _unit(
            self.network.get_text_features(input_ids=given["input_ids"], attention_mask=given["attention_mask"])
        )

    def _pixels(self, picture: Image.Image) -> Tensor:
        short = min(picture.size)
        # As torchvision's Resize: the longer side is rounded down, the crop is rounded to the nearest pixel.
        size = tuple(self.side if side == short else int(self.side * side / short) for side in picture.size)
        resized = picture.convert("RGB").resize((size[0], size[1]), Image.Resampling.BICUBIC)
        left, top = (round((side - self.side) / 2.0) for side in resized.size)
        pixels_YX3 = np.asarray(resized.crop((left, top, left + self.side, top + self.side)), dtype=np.float32) / 255
        return torch.from_numpy((pixels_YX3 - np.array(_MEAN, np.float32)) / np.array(_STD, np.float32)).permute(
            2, 0, 1
        )


def _unit(given: Any) -> Tensor:
    """Vectors of length 1, float32 on the CPU; transformers gives them bare or inside an output record."""
    vectors_BD = given if isinstance(given, Tensor) else given.pooler_output
    return torch.nn.functional.normalize(vectors_BD.float(), dim=-1).cpu()


def clip_score(picture_ND: Tensor, text_ND: Tensor) -> float:
    """Mean over pairs of 100 max(cosine, 0).

    Source: Hessel et al. 2021, with the factor 100 that text-to-image papers use.
    """
    return float(100.0 * (picture_ND * text_ND).sum(-1).clamp_min(0.0).mean())
