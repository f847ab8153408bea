"""The weights of a course: what stages begin with, what they leave, and what is taken over from another model.

Knows a folder of weights and models to start from, no data. The stages stand in course.py.
"""

import hashlib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from flowtok.checkpoints.catalogue import CONFIG_FILE
from flowtok.checkpoints.store import load_component, load_into, load_state, read_config, save_component
from flowtok.errors import FlowTokError
from flowtok.flow.transformer import VelocityTransformer
from flowtok.image.latents import LatentScale
from flowtok.image.tokenizer import ImageTokenizer
from flowtok.text.decoder import TextDecoder
from flowtok.text.encoder import TextEncoder
from flowtok.text.projector import TextProjector
from flowtok.train.recipe import Recipe
from flowtok.train.runtime import Runtime

Module = TypeVar("Module", bound=nn.Module)

_LAYER = re.compile(r"(.*?\b(?:blocks|transformer)\.)(\d+)\.")  # one of a row of like layers
_ENDS_BRANCH = re.compile(r"\b(?:attn\.proj|mlp\.w3)\.")


class Weights:
    """The components of one course, each in a file of its own in `model/`, and where they begin."""

    def __init__(self, recipe: Recipe, folder: Path, runtime: Runtime, start: Sequence[Path] = ()) -> None:
        """Looks at nothing yet.

        Args:
            recipe: What is trained.
            folder: The course's folder.
            runtime: Where.
            start: Model folders whose weights training starts from; the first that has a component gives it. None at
                all: every component is fresh.
        """
        self.recipe, self.runtime, self.start = recipe, runtime, tuple(start)
        self.folder, self.model, self.cache = folder, folder / "model", folder / "cache"

    # Where a stage begins

    def begin(self, name: str, module: nn.Module) -> None:
        """Fills a network that is about to be trained with the weights that it starts from, if it does not start fresh.

        Raises:
            FlowTokError: No model to start from has them, or they are of another shape.
        """
        folder = self._origin(name)
        if folder is not None:
            state = load_state(_file(folder, name))
            whole = module.state_dict()
            # A tokenizer for larger pictures has longer tables of rotary positions, which follow from its size.
            own = {key: table for key, table in whole.items() if key.endswith(("freqs_cos", "freqs_sin"))}
            # A flow without maps of its positions, a decoder that is not told of noise: these are zero there.
            added = {key: torch.zeros_like(one) for key, one in whole.items() if key.endswith(("maps_LIO", "off_D"))}
            load_into(module, {**added, **further_layers(whole, state), **state, **own}, what=f"{name} of {folder}")

    def begin_digest(self, *names: str) -> str | None:
        """A short hash of the weights that these components start from; None for fresh ones."""
        origins = {name: self._origin(name) for name in names}
        found = [self.fingerprint(name, folder=folder) for name, folder in origins.items() if folder is not None]
        return "-".join(found) or None

    def check_features(self, name: str) -> None:
        """Looks whether a component that starts from another model's knows the text features of this recipe.

        Raises:
            FlowTokError: It was trained on those of another encoder, or with something else behind the words.
        """
        folder = self._origin(name)
        if folder is not None and (folder / CONFIG_FILE).is_file() and read_config(folder).text_encoder is not None:
            self._check_config(folder, "text_encoder")

    def goes_on(self, name: str) -> bool:
        """Whether a component starts from that of another model."""
        return self._origin(name) is not None

    def _origin(self, name: str) -> Path | None:
        if not self.start or name in self.recipe.fresh:
            return None
        folder = self._found(name)
        if folder is None:
            raise FlowTokError(
                f"recipe {self.recipe.name} goes on from a {name}, which {self._starts()} has not; start from another "
                f"model, or begin with fresh weights: fresh=[{','.join((*self.recipe.fresh, name))}]"
            )
        return folder

    def _found(self, name: str) -> Path | None:
        return next((folder for folder in self.start if _file(folder, name).is_file()), None)

    def _starts(self) -> str:
        return " or ".join(str(folder) for folder in self.start)

    # What is kept and what is taken over

    def keep(self, name: str, module: nn.Module, folder: Path | None = None) -> None:
        if self.runtime.is_main:
            save_component(folder or self.model, name, module.state_dict())
        self.runtime.wait_for_all()

    def is_kept(self, name: str, module: nn.Module | None = None) -> bool:
        """Whether a component lies in the model folder; with a module, whether it is this one to the last number."""
        if not _file(self.model, name).is_file():
            return False
        return module is None or self.fingerprint(name) == fingerprint_of_weights(module.state_dict())

    def forget(self, name: str) -> None:
        """Takes a component out of the model folder that does not fit what is there any more."""
        if self.runtime.is_main:
            _file(self.model, name).unlink(missing_ok=True)
        self.runtime.wait_for_all()

    def take_over(self) -> None:
        """Takes the components that no stage trains from the models to start from, in float32.

        Raises:
            FlowTokError: One that the recipe's stages need is nowhere, or was made for another shape of model; or one
                is nowhere that a stage goes on from.
        """
        recipe = self.recipe
        wanted = [] if recipe.tokenizer_training else ["image_tokenizer", "latent_scale"]
        frozen = recipe.joint_stage is not None and recipe.joint_stage.projector == "frozen"
        if recipe.captioner_training and not recipe.flow_training:
            wanted += ["text_projector", "velocity"]
        elif recipe.flow_training and frozen:
            wanted += ["text_projector"]
        if recipe.trained_stages == ("tokenizer",) and recipe.tokenizer_stage.learns == "decoder":
            # The tokens stay what they were, and all that knows them goes with the new decoder.
            known = ("text_projector", "alignment_head", "velocity", "text_decoder")
            wanted += [name for name in known if self._found(name)]
        for name in wanted:
            folder = self._found(name)
            if folder is None:
                where = f"{self._starts()} has none" if self.start else "name one with --from"
                raise FlowTokError(f"recipe {recipe.name} trains no {name} and takes that of another model: {where}")
            self._check_config(folder, name)
            if self.runtime.is_main:
                save_component(self.model, name, load_state(_file(folder, name)), torch.float32)
        self.runtime.wait_for_all()
        # What is missing is found now, not after the first stage.
        begun = ["image_tokenizer"] if recipe.tokenizer_training else []
        if recipe.flow_training:
            learned = ["text_projector", "alignment_head"] if recipe.joint_stage is not None and not frozen else []
            begun += ["velocity", *learned]
        trains_text = recipe.text_training is not None or recipe.joint_stage is not None or recipe.stream is not None
        if keeps_text := recipe.text_decoder is not None and not trains_text:
            begun += ["text_projector", "text_decoder"]
        for name in begun:
            self._origin(name)
        if keeps_text:
            self.check_features("text_projector")

    def _check_config(self, folder: Path, name: str) -> None:
        """What cannot be seen in the shapes of weights, such as the size of the pictures, must fit too."""
        ours: Any = getattr(self.recipe, name, None)
        if ours is None or not (folder / CONFIG_FILE).is_file():
            return
        theirs = read_config(folder).part(name, type(ours))
        differing = [
            f"{field.name} is {getattr(theirs, field.name)}, the recipe has {getattr(ours, field.name)}"
            for field in fields(ours)
            if getattr(theirs, field.name) != getattr(ours, field.name)
        ]
        if differing:
            raise FlowTokError(
                f"the {name} of {folder} does not fit recipe {self.recipe.name}: {'; '.join(differing)}; start from "
                "one that does"
            )

    def fingerprint(self, name: str, folder: Path | None = None) -> str:
        """A short hash of a component's weights, which an earlier stage has left.

        It is taken of the numbers: the bytes of a safetensors file may differ from one saving to the next.
        """
        path = _file(folder or self.model, name)
        if not path.is_file():
            raise FlowTokError(f"this stage needs {path}, which an earlier stage leaves there; run the stages in order")
        return fingerprint_of_weights(load_state(path))

    # Networks that earlier stages have left

    def tokenizer(self) -> ImageTokenizer:
        return self._load("image_tokenizer", lambda: ImageTokenizer(self.recipe.image_tokenizer))

    def latent_scale(self) -> LatentScale:
        shape = self.recipe.image_tokenizer.num_tokens, self.recipe.image_tokenizer.token_channels
        return self._load("latent_scale", lambda: LatentScale(*shape))

    def projector(self) -> TextProjector:
        return self._load("text_projector", lambda: TextProjector(self.recipe.text_projector))

    def velocity(self) -> VelocityTransformer:
        return self._load("velocity", lambda: VelocityTransformer(self.recipe.velocity))

    def decoder(self, name: str | None) -> TextDecoder:
        """A text decoder that an earlier stage has left in the cache; without a name, the one that training begins at.

        A tied one has yet to be given its words.
        """
        config = self.recipe.text_decoder
        assert config is not None, "only a recipe with a text decoder has stages that ask for it"
        if name is not None:
            self.fingerprint(name, folder=self.cache)
            return load_component(self.cache, name, lambda: TextDecoder(config)).train()
        training = self.recipe.flow_training or self.recipe.captioner_training
        assert training is not None, "a decoder is asked for by the stage that trains it"
        decoder = TextDecoder(config)
        decoder.initialize(torch.Generator().manual_seed(training.seed))
        self.begin("text_decoder", decoder)
        return decoder

    def _load(self, name: str, factory: Callable[[], Module]) -> Module:
        if not _file(self.model, name).is_file():
            self.fingerprint(name)  # says what is missing
        return load_component(self.model, name, factory)


def further_layers(whole: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Layers that a deeper network has behind those of the one that it starts from: drawn, but adding nothing yet.

    Args:
        whole: The deeper network's weights, as they were drawn.
        state: The weights that it starts from.
    """
    last: dict[str, int] = {}
    for layer in filter(None, map(_LAYER.match, state)):
        last[layer[1]] = max(last.get(layer[1], 0), int(layer[2]))
    further = {
        key: one
        for key, one in whole.items()
        if (layer := _LAYER.match(key)) and int(layer[2]) > last.get(layer[1], int(layer[2]))
    }
    # Modulated blocks start with closed gates; others end in one of these.
    return {key: torch.zeros_like(one) if _ENDS_BRANCH.search(key) else one for key, one in further.items()}


def fingerprint_of_weights(state: Mapping[str, Tensor]) -> str:
    """A short checksum of weights by their names and numbers."""
    digest = hashlib.sha256()
    for key, tensor in sorted(state.items()):
        digest.update(key.encode())
        exact = tensor.float() if tensor.dtype == torch.bfloat16 else tensor  # numpy has no such type
        digest.update(exact.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


def fingerprint_of_words(text_encoder: TextEncoder) -> str:
    """A short checksum of what decides text features: weights, words, the length in ids and how it is filled."""
    words = hashlib.sha256(text_encoder.tokenizer.to_str().encode()).hexdigest()[:8]
    config = text_encoder.config
    behind = "" if config.padding == "states" else f"-{config.padding}"
    return f"{fingerprint_of_weights(text_encoder.network.state_dict())}-{words}-{config.num_tokens}{behind}"


def _file(folder: Path, name: str) -> Path:
    return folder / f"{name}.safetensors"
