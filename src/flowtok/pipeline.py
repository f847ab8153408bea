"""START HERE: class FlowTok, a picture from words and words from a picture, each in five visible steps.

Everything that is computed stands in text/, flow/ and image/; here it is put together. What a model is made of and how
it is opened and saved: components.py. What makes it faster or smaller: acceleration.py. What is settled of prompts
beforehand: text/prompts.py and text/arithmetic.py.
"""

import itertools
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

import flowtok
from flowtok.acceleration import Accelerated
from flowtok.data import images as pictures_io
from flowtok.data.batches import Progress, in_batches
from flowtok.errors import FlowTokError
from flowtok.flow.follow import Follow, spread
from flowtok.nn.precision import PRECISIONS, best_dtype
from flowtok.sampling import SamplingConfig
from flowtok.text.arithmetic import TextPoint, parse_arithmetic, text_point
from flowtok.text.prompts import Draw, check_prompts, plan_draws

__all__ = ["FlowTok", "Picture", "Progress", "SamplingConfig", "Watch", "load", "parse_arithmetic"]

Picture = Image.Image | Path | str | bytes
Watch = Callable[[float, Callable[[], list[Image.Image]]], None]
"""Called at each stop of a batch's flow with the time there and a function that decodes its pictures as they are."""


class FlowTok(Accelerated):
    """A model that draws and reads: language encoder, text projector, velocity, image tokenizer and text decoder.

    Attributes:
        batch_size: Pictures or captions computed together. Kernels round differently for batches of other sizes, so
            all batches are filled up to this size: a seed then gives the same picture alone or among others. The
            default of 1 is the fastest on a CPU for one picture; with 8 a small model draws up to twice as many
            (docs/speed.md).
    """

    # The two ways

    @torch.inference_mode()
    def generate(
        self,
        prompts: str | Sequence[str],
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        seed: int | None = None,
        *,
        num_images_per_prompt: int = 1,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
        guidance_interval: tuple[float, float] | None = None,
        solver: str | None = None,
        grid: str | None = None,
        deterministic_text: bool = False,
        progress: Progress | None = None,
        watch: Watch | None = None,
    ) -> list[Image.Image]:
        """Draws pictures of prompts. What is not given is the model's own (`model.sampling`).

        Args:
            prompts: One prompt or several.
            num_inference_steps: Steps of the solver.
            guidance_scale: 1 is no guidance.
            seed: The first picture of every prompt is drawn with this seed, the second with the next, and so on: the
                same seed gives the same picture alone, in any batch and after a restart. Random where it is None.
            num_images_per_prompt: Pictures of each prompt; all of the first prompt come first.
            generator: In place of a seed: one for all pictures, or one for each.
            guidance_interval: Times between which the guidance acts; outside it a step costs half as much.
            solver: Name in flow/solver.py.
            grid: Name in flow/grid.py.
            deterministic_text: Takes the mean of the text tokens instead of a draw; there is no seed then.
            progress: Called after each picture.
            watch: Called at each stop of the flow but the last; see `flow_frames`. What it raises ends the drawing.

        Returns:
            PIL pictures; `picture.info` holds prompt, seed, model and flowtok's version.

        Raises:
            FlowTokError: A blank or far too long prompt, or a number that is out of range.
        """
        follow = self._towards_image(num_inference_steps, guidance_scale, guidance_interval, solver, grid)
        draws = self._draws(
            prompts, num_images_per_prompt=num_images_per_prompt, seed=seed, generator=generator,
            deterministic_text=deterministic_text,
        )  # fmt: skip

        def draw(batch: list[Draw]) -> list[Image.Image]:
            text = self.text_encoder.encode([one.prompt for one in batch])  # 1. words to features
            tokens = self.text_projector(text.features_BSE)  # 2. features to a Gaussian over tokens
            z_text_BLC = tokens.sample(self._stack([one.noise_LC for one in batch]))  # 3. a draw: where the flow starts
            shown = partial(self._shown, watch, text.features_BSE) if watch is not None else None
            z_image_BLC = follow(z_text_BLC, shown)  # 4. the flow, from t = 0 to t = 1
            image_B3YX = self._decode(z_image_BLC, text.features_BSE)  # 5. tokens to pixels
            return pictures_io.to_pil(image_B3YX)

        drawn = in_batches(draw, draws, self.batch_size, progress)
        return [self._signed(picture, one.prompt, one.seed) for picture, one in zip(drawn, draws, strict=True)]

    @torch.inference_mode()
    def caption(
        self,
        images: Picture | Sequence[Picture],
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        *,
        solver: str | None = None,
        progress: Progress | None = None,
    ) -> list[str]:
        """Says what pictures show. What is not given is the model's own (`model.sampling`, caption_...).

        Args:
            images: PIL pictures, paths or files' bytes, of any size and kind; the middle square is seen.
            num_inference_steps: Steps of the solver.
            guidance_scale: 1 is no guidance.
            solver: Name in flow/solver.py.
            progress: Called after each caption.

        Raises:
            FlowTokError: A picture that cannot be read, a number out of range, or a model without a text decoder.
        """
        follow = self._towards_text(num_inference_steps, guidance_scale, solver)
        text_decoder, text_encoder = self.text_decoder, self.text_encoder

        def read(batch: list[Picture]) -> list[str]:
            image_B3YX = self._stack([self.pixels(image) for image in batch])  # 1. any picture to pixels
            z_image_BLC = self._encode(image_B3YX)  # 2. pixels to tokens
            z_text_BLC = follow(z_image_BLC)  # 3. the flow, from t = 1 to t = 0
            ids_BS = text_decoder.read(z_text_BLC.to(_dtype(text_decoder)), text_encoder.end_id)  # 4. tokens to ids
            return text_encoder.words(ids_BS)  # 5. ids to words, up to the end mark

        return in_batches(read, _listed(images), self.batch_size, progress)

    @torch.inference_mode()
    def reconstruct(
        self, images: Picture | Sequence[Picture], *, captions: Sequence[str] | None = None,
        progress: Progress | None = None,
    ) -> list[Image.Image]:  # fmt: skip
        """Takes pictures through their tokens and back.

        Args:
            images: As for `caption`.
            captions: What the pictures show, for a model whose decoder is guided by text; the model's own captions
                where it can caption and none are given.
            progress: Called after each picture.

        Raises:
            FlowTokError: A picture that cannot be read, or captions that do not fit.
        """
        sources = _listed(images)
        guided_by_text = self.image_tokenizer.config.text_width is not None
        if captions is not None and not guided_by_text:
            raise FlowTokError(f"captions have no effect: the decoder of {self.name!r} is not guided by text")
        if captions is not None and len(captions) != len(sources):
            raise FlowTokError(f"got {len(captions)} captions for {len(sources)} pictures; give one for each")
        if guided_by_text and captions is None:
            captions = self.caption(sources)

        def rebuild(batch: list[tuple[Picture, str]]) -> list[Image.Image]:
            z_BLC = self._encode(self._stack([self.pixels(image) for image, _ in batch]))
            text_BSE = self.text_encoder.encode([words for _, words in batch]).features_BSE if guided_by_text else None
            return pictures_io.to_pil(self._decode(z_BLC, text_BSE, is_drawn=False))

        pairs = list(zip(sources, captions or [""] * len(sources), strict=True))
        return in_batches(rebuild, pairs, self.batch_size, progress)

    @torch.inference_mode()
    def interpolate(
        self,
        a: str,
        b: str,
        steps: int = 8,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        seed: int | None = None,
        *,
        guidance_interval: tuple[float, float] | None = None,
        solver: str | None = None,
        grid: str | None = None,
        deterministic_text: bool = False,
        progress: Progress | None = None,
    ) -> list[Image.Image]:
        """Draws the way from one prompt to another: text tokens between the two, all with the same noise.

        Args:
            a: A prompt, or arithmetic over prompts such as "king - man + woman" (signs stand between spaces). Text
                tokens are added and subtracted with these signs, then divided by the sum of the signs.
            b: Where it ends.
            steps: Pictures, both ends included; 1 draws `a` alone.
            num_inference_steps: Steps of the solver.
            guidance_scale: 1 is no guidance.
            seed: As for `generate`: the ends are the pictures of the two prompts with this seed.
            guidance_interval: As for `generate`.
            solver: Name in flow/solver.py.
            grid: Name in flow/grid.py.
            deterministic_text: As for `generate`.
            progress: Called after each picture.

        Raises:
            FlowTokError: As `generate`, or arithmetic without a meaning.
        """
        if steps < 1:
            raise FlowTokError(f"an interpolation needs at least 1 picture, not {steps}")
        follow = self._towards_image(num_inference_steps, guidance_scale, guidance_interval, solver, grid)
        ends = parse_arithmetic(a), parse_arithmetic(b)
        prompts = [prompt for terms in ends for _, prompt in terms]
        noise, *_ = self._draws(prompts, seed=seed, deterministic_text=deterministic_text)
        noise_LC = noise.noise_LC.to(self.device)
        start, end = (text_point(terms, self.text_encoder, self.text_projector, noise_LC) for terms in ends)

        def draw(batch: list[TextPoint]) -> list[Image.Image]:
            z_image_BLC = follow(self._stack([point.z_LC for point in batch]))
            return pictures_io.to_pil(self._decode(z_image_BLC, self._stack([point.features_SE for point in batch])))

        points = [start.towards(end, i / max(1, steps - 1)) for i in range(steps)]
        label = a if steps == 1 else f"{a} -> {b}"
        return [self._signed(one, label, noise.seed) for one in in_batches(draw, points, self.batch_size, progress)]

    def flow_frames(self, prompt: str, num_frames: int = 8, **how: Any) -> list[Image.Image]:
        """Draws a picture and shows its flow, the tokens at some stops as pixels; `picture.info["t"]` says where.

        Args:
            prompt: What is drawn.
            num_frames: 2 (the text's tokens at t = 0, and the picture that `generate` gives) to the steps + 1.
            how: num_inference_steps, guidance_scale, guidance_interval, seed, solver (not dopri5, which stops nowhere)
                and grid: see there.

        Raises:
            FlowTokError: As `generate`, or more frames than stops.
        """
        shown = spread(how.get("num_inference_steps") or self.sampling.num_inference_steps, num_frames)
        number, frames = itertools.count(), dict[float, Image.Image]()

        def watch(t: float, look: Callable[[], list[Image.Image]]) -> None:
            if next(number) in shown:
                frames[t] = look()[0]

        (frames[1.0],) = self.generate(prompt, watch=watch, **how)
        for t, frame in frames.items():
            frame.info = {**frames[1.0].info, "t": t}
        return list(frames.values())

    # The steps

    def pixels(self, image: Picture) -> Tensor:
        """Any picture as the tokenizer sees it: image_3YX in [0, 1], the middle square resized.

        Raises:
            FlowTokError: The picture cannot be read.
        """
        size = self.image_tokenizer.config.image_size
        if isinstance(image, Image.Image):
            return pictures_io.to_tensor(pictures_io.resize_and_crop(pictures_io.to_rgb(image, (255, 255, 255)), size))
        return pictures_io.to_tensor(pictures_io.open_picture(image, size=size))

    def _encode(self, image_B3YX: Tensor) -> Tensor:
        """Pixels to the flow's tokens; the mean, since a picture is to have one caption."""
        tokens = self.image_tokenizer.encode(image_B3YX.to(_dtype(self.image_tokenizer)))
        return self.latent_scale.to_flow(tokens.mean_BLC)

    def _decode(self, z_BLC: Tensor, features_BSE: Tensor | None, is_drawn: bool = True) -> Tensor:
        """Tokens as the flow knows them to pixels, guided by text where the tokenizer is."""
        tokenizer = self.image_tokenizer
        decode = tokenizer.decode_drawn if is_drawn else tokenizer.decode
        exact_BLC = self.latent_scale.from_flow(z_BLC).to(_dtype(tokenizer))
        if tokenizer.config.text_width is None or features_BSE is None:
            return decode(exact_BLC)
        return decode(exact_BLC, features_BSE.to(exact_BLC.dtype))

    def _shown(self, watch: Watch, features_BSE: Tensor, z_BLC: Tensor, t: float) -> None:
        """Lets somebody watch a batch at a stop of its flow; pixels are made only if they look."""
        watch(t, lambda: pictures_io.to_pil(self._decode(z_BLC, features_BSE)))

    def _towards_image(
        self,
        num_inference_steps: int | None,
        guidance_scale: float | None,
        guidance_interval: tuple[float, float] | None,
        solver: str | None,
        grid: str | None,
    ) -> Follow:
        """The flow from text to image, t = 0 to 1, as chosen or else as the model's own sampling says."""
        chosen = self.sampling.but(
            num_inference_steps=num_inference_steps, guidance_scale=guidance_scale,
            guidance_interval=guidance_interval, solver=solver, grid=grid,
        )  # fmt: skip
        return self._flow(chosen.to_image, chosen.guidance_scale, chosen.guidance_interval)

    def _towards_text(self, steps: int | None, scale: float | None, solver: str | None) -> Follow:
        """The flow from image to text, t = 1 to 0, likewise."""
        chosen = self.sampling.but(caption_steps=steps, caption_guidance_scale=scale, caption_solver=solver)
        return self._flow(chosen.to_text, chosen.caption_guidance_scale)

    def _draws(self, prompts: str | Sequence[str], **how: Any) -> list[Draw]:
        """Every picture with its noise, drawn before anything is computed."""
        shape = self.text_projector.config.num_tokens, self.text_projector.config.token_channels
        return plan_draws(check_prompts(prompts, self.text_encoder), shape, **how)

    def _stack(self, tensors: list[Tensor]) -> Tensor:
        return torch.stack(tensors).to(self.device)

    def _signed(self, picture: Image.Image, prompt: str, seed: int | None) -> Image.Image:
        picture.info = {"prompt": prompt, "seed": seed, "model": self.name, "flowtok": flowtok.__version__}
        return picture


def load(
    name: str | Path = "emoji",
    *,
    revision: str | None = None,
    token: str | None = None,
    dtype: torch.dtype | str = torch.float32,
    device: torch.device | str = "cpu",
) -> FlowTok:
    """Opens a model by shipped name, folder or Hub id; see `FlowTok.from_pretrained`.

    Args:
        name: Such as "emoji", "outputs/my-model" or "someone/flowtok-xl".
        revision: Branch, tag or commit, for the Hub.
        token: Access token, for the Hub.
        dtype: What the networks compute in: a type of torch, its name, "auto" for what the device does best
            (nn/precision.py), or "int8" for the large layers in int8 (`FlowTok.round_to_int8`).
        device: Where they shall be.

    Raises:
        CheckpointError: No such model, or a component that is damaged or does not fit.
        FlowTokError: An unknown type, or int8 on a device that does not multiply it.
    """
    if isinstance(dtype, str) and dtype not in PRECISIONS:
        raise FlowTokError(f"unknown type {dtype!r}; the networks compute in {', '.join(PRECISIONS)}")
    in_int8 = dtype == "int8"
    computed_in = _torch_dtype("float32" if in_int8 else dtype, device)
    opened = FlowTok.from_pretrained(name, revision=revision, token=token, dtype=computed_in, device=device)
    return opened.round_to_int8() if in_int8 else opened


def _torch_dtype(dtype: torch.dtype | str, device: torch.device | str) -> torch.dtype:
    if isinstance(dtype, torch.dtype):
        return dtype
    return best_dtype(device) if dtype == "auto" else getattr(torch, dtype)


def _listed(images: Picture | Sequence[Picture]) -> list[Picture]:
    """The pictures as a list; a single one may come without."""
    listed = [images] if isinstance(images, Image.Image | Path | str | bytes) else list(images)
    if not listed:
        raise FlowTokError("there is no picture; give at least one")
    return listed


def _dtype(network: nn.Module) -> torch.dtype:
    return next(network.parameters()).dtype
