"""What a model is made of: its components, and how they are opened, saved and uploaded.

Computes nothing; pipeline.py does. How a model folder is read and written: checkpoints/store.py. How a model is sampled
by default: sampling.py.
"""

import filecmp
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn

from flowtok.checkpoints import store
from flowtok.checkpoints.component import Component, upload
from flowtok.checkpoints.folder import TEXT_ENCODER_FOLDER
from flowtok.errors import CheckpointError
from flowtok.flow.transformer import VelocityTransformer, VelocityTransformerConfig
from flowtok.image.latents import LatentScale
from flowtok.image.tokenizer import ImageTokenizer, ImageTokenizerConfig
from flowtok.nn.precision import text_dtype
from flowtok.sampling import SamplingConfig
from flowtok.text.decoder import TextDecoder, TextDecoderConfig
from flowtok.text.encoder import TextEncoder, TextEncoderConfig
from flowtok.text.projector import TextProjector, TextProjectorConfig

NETWORKS: dict[str, tuple[type, type[Component]]] = {
    "text_projector": (TextProjectorConfig, TextProjector),
    "velocity": (VelocityTransformerConfig, VelocityTransformer),
    "image_tokenizer": (ImageTokenizerConfig, ImageTokenizer),
    "text_decoder": (TextDecoderConfig, TextDecoder),
}

# Weights of an imported model that only training needs; they are kept as they are, so that nothing of it gets lost.
TRAINING_ONLY = ("alignment_head",)

# For models that were imported: the commands that add what the authors' release keeps in files of their own.
HOW_TO_ADD = {
    "image_tokenizer": "add it with: flowtok import --tokenizer FlowTiTok_512.bin -o FOLDER",
    "text_encoder": "add it with: flowtok import --text-encoder openai/clip-vit-large-patch14-336 -o FOLDER",
}


class Model:
    """The components of a model and their folder; class FlowTok in pipeline.py is a model that can be used.

    Components that the model does not have are None in the constructor and an error where they are needed. Weights that
    only training needs (`training_only`, by the names of their files) are kept for saving.
    """

    def __init__(
        self,
        *,
        name: str,
        text_encoder: TextEncoder | None = None,
        text_projector: TextProjector | None = None,
        velocity: VelocityTransformer | None = None,
        image_tokenizer: ImageTokenizer | None = None,
        latent_scale: LatentScale | None = None,
        text_decoder: TextDecoder | None = None,
        sampling: SamplingConfig | None = None,
        provenance: dict[str, Any] | None = None,
        text_encoder_folder: Path | None = None,
        training_only: Mapping[str, Mapping[str, Tensor]] | None = None,
        batch_size: int = 1,
    ) -> None:
        parts = {
            "text_encoder": text_encoder, "text_projector": text_projector, "velocity": velocity,
            "image_tokenizer": image_tokenizer, "latent_scale": latent_scale, "text_decoder": text_decoder,
        }  # fmt: skip
        self.name, self.sampling, self.provenance = name, sampling or SamplingConfig(), provenance or {}
        self.text_encoder_folder, self.batch_size = text_encoder_folder, batch_size
        self.training_only = dict(training_only or {})
        self.parts: dict[str, nn.Module] = {key: part.eval() for key, part in parts.items() if part is not None}
        check_fit(name, {key: part.config for key, part in self.parts.items() if hasattr(part, "config")})
        if text_decoder is not None and text_encoder is not None and text_decoder.config.tied_width is not None:
            network: Any = text_encoder.network
            text_decoder.tie(network.get_input_embeddings().weight)

    @property
    def text_encoder(self) -> TextEncoder:
        """Words to features."""
        return self._part("text_encoder")

    @property
    def text_projector(self) -> TextProjector:
        """Features to tokens."""
        return self._part("text_projector")

    @property
    def velocity(self) -> VelocityTransformer:
        """The velocity network."""
        return self._part("velocity")

    @property
    def image_tokenizer(self) -> ImageTokenizer:
        """Pixels to tokens and back."""
        return self._part("image_tokenizer")

    @property
    def latent_scale(self) -> LatentScale:
        """Between the image tokenizer's tokens and the flow's."""
        return self._part("latent_scale")

    @property
    def text_decoder(self) -> TextDecoder:
        """Tokens to words."""
        return self._part("text_decoder")

    def _part(self, name: str) -> Any:
        if name not in self.parts:
            have = ", ".join(self.parts) or "nothing"
            add = HOW_TO_ADD.get(name, "none was released") if "released" in self.provenance else "train it"
            raise CheckpointError(f"model {self.name!r} has no {name}, which this needs (it has {have}); {add}")
        return self.parts[name]

    @property
    def device(self) -> torch.device:
        """Where the networks are."""
        return next((p.device for part in self.parts.values() for p in part.parameters()), torch.device("cpu"))

    def to(self, device: torch.device | str) -> Self:
        """Moves all components."""
        for part in self.parts.values():
            part.to(device)
        return self

    # Folders and the Hub

    @classmethod
    def from_pretrained(
        cls,
        name_or_path: str | Path = "emoji",
        *,
        revision: str | None = None,
        token: str | None = None,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
        verify: bool = True,
    ) -> Self:
        """Opens a model: a shipped name, a folder, or an id on the Hub.

        Args:
            name_or_path: Such as "emoji", "outputs/my-model" or "someone/flowtok-xl".
            revision: Branch, tag or commit, for the Hub.
            token: Access token, for the Hub.
            dtype: Type that the networks compute in; bfloat16 on a CPU leaves language encoder and text projector in
                float32 (nn/precision.py).
            device: Where they shall be.
            verify: Compares the files with the checksums in config.json.

        Raises:
            CheckpointError: No such model, or a component that is damaged or does not fit.
        """
        folder = store.resolve(name_or_path, revision=revision, token=token)
        if verify:
            store.verify_checksums(folder)
        record = store.read_config(folder)
        parts: dict[str, Any] = {}
        for_text = text_dtype(dtype, device)
        for name, (config_class, network_class) in NETWORKS.items():
            if getattr(record, name) is not None:
                config, own = record.part(name, config_class), for_text if name == "text_projector" else dtype
                parts[name] = store.load_component(folder, name, lambda: network_class(config), own)  # noqa: B023
        if record.text_encoder is not None:
            parts["text_encoder_folder"] = store.text_encoder_folder(folder)
            config = record.part("text_encoder", TextEncoderConfig)
            parts["text_encoder"] = TextEncoder.from_folder(parts["text_encoder_folder"], config, dtype=for_text)
        if "image_tokenizer" in parts:
            shape = parts["image_tokenizer"].config.num_tokens, parts["image_tokenizer"].config.token_channels
            parts["latent_scale"] = store.load_component(folder, "latent_scale", lambda: LatentScale(*shape))
        parts["training_only"] = {
            name: store.load_state(store.component_file(folder, name))
            for name in TRAINING_ONLY
            if f"{name}.safetensors" in record.files
        }
        sampling = None if record.sampling is None else record.part("sampling", SamplingConfig)
        return cls(name=record.name, sampling=sampling, provenance=record.provenance, **parts).to(device)

    def save_pretrained(self, folder: str | Path, *, dtype: torch.dtype | None = None, card: str | None = None) -> Path:
        """Writes a model folder that `from_pretrained` opens; config.json comes last.

        Args:
            folder: Made if it is missing; files of the same names are replaced.
            dtype: Float type of the stored weights, tables left out; as they are where not given. The language encoder
                is copied.
            card: Text of the model card, README.md.

        Raises:
            CheckpointError: Weights that are not finite, or a language encoder whose folder is not known.
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        for name, part in self.parts.items():
            if name == "text_encoder":
                if self.text_encoder_folder is None:
                    raise CheckpointError("the folder of the language encoder is not known; give text_encoder_folder")
                copy_text_encoder(self.text_encoder_folder, folder)
            else:
                weights = part.stored_weights(dtype) if isinstance(part, Component) else part.state_dict()
                store.save_component(folder, name, weights)
        for name, weights in self.training_only.items():
            store.save_component(folder, name, weights, dtype)
        for name in set(TRAINING_ONLY) - set(self.training_only):  # of a model that was there before
            (folder / f"{name}.safetensors").unlink(missing_ok=True)
        if card is not None:
            store.write_card(folder, card)
        configs = {name: part.config for name, part in self.parts.items() if name != "latent_scale"}
        store.write_config(
            folder, name=self.name, parts={**configs, "sampling": self.sampling}, provenance=self.provenance
        )
        return folder

    def push_to_hub(
        self, repo_id: str, *, token: str | None = None, private: bool | None = None, revision: str | None = None,
        dtype: torch.dtype | None = None, card: str | None = None, commit_message: str = "Upload FlowTok model",
    ) -> str:  # fmt: skip
        """Uploads the model folder to a repository on the Hub, made if it is missing; returns the commit's address."""
        return upload(
            lambda folder: self.save_pretrained(folder, dtype=dtype, card=card),
            repo_id, token=token, private=private, revision=revision, commit_message=commit_message,
        )  # fmt: skip


def copy_text_encoder(source: Path, folder: Path) -> None:
    """Copies a language encoder's folder into a model folder as it is, its licence note included.

    Files that are there already, byte by byte, are left alone.
    """
    target = folder / TEXT_ENCODER_FOLDER
    target.mkdir(exist_ok=True)
    for path in sorted(path for path in source.iterdir() if path.is_file()):
        if (target / path.name).is_file() and filecmp.cmp(path, target / path.name, shallow=False):
            continue
        with path.open("rb") as file:
            store.write_file_atomically(target / path.name, lambda out, file=file: shutil.copyfileobj(file, out))


def write_model_config(
    folder: Path,
    *,
    name: str,
    configs: Mapping[str, Any],
    sampling: SamplingConfig,
    text_encoder: Path,
    provenance: Mapping[str, Any],
) -> bool:
    """Completes a folder of trained weights, so that `from_pretrained` opens it; False while weights are missing.

    Args:
        folder: Holds the weight files of the components.
        name: The model's name.
        configs: The config of each component.
        sampling: How the model is sampled.
        text_encoder: Folder of its language encoder.
        provenance: Where the weights come from.
    """
    files = [f"{part}.safetensors" for part in (*configs, "latent_scale") if part != "text_encoder"]
    if not all((folder / file).is_file() for file in files):
        return False
    copy_text_encoder(text_encoder, folder)
    store.write_config(folder, name=name, parts={**configs, "sampling": sampling}, provenance=provenance)
    return True


def check_fit(name: str, configs: Mapping[str, Any]) -> None:
    """Raises CheckpointError where two components of a model do not fit each other, by their configs."""
    facts = {
        "num_tokens": ("text_encoder", "text_projector", "velocity", "image_tokenizer", "text_decoder"),
        "token_channels": ("text_projector", "velocity", "image_tokenizer", "text_decoder"),
        "vocabulary_size": ("text_encoder", "text_decoder"),
    }
    for fact, owners in facts.items():
        found = {owner: getattr(configs[owner], fact) for owner in owners if owner in configs}
        if len(set(found.values())) > 1:
            raise CheckpointError(f"the components of model {name!r} do not fit each other: {fact} is {found}")
    widths = {"text_encoder": "width", "text_projector": "text_width", "image_tokenizer": "text_width",
              "text_decoder": "tied_width"}  # fmt: skip
    widths = {owner: getattr(configs[owner], key) for owner, key in widths.items() if owner in configs}
    widths = {owner: width for owner, width in widths.items() if width is not None}
    if len(set(widths.values())) > 1:
        raise CheckpointError(f"the components of model {name!r} do not fit each other: text width is {widths}")
