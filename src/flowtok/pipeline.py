"""START HERE: class FlowTok, a picture from words and words from a picture, each in five visible steps.

Everything that is computed stands in text/, flow/ and image/; here it is put together. What a model is made of and how
it is opened and saved: components.py. The command line in app/ calls this.
"""

import logging
import re
import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from PIL import Image
from torch import Tensor, nn

import flowtok
from flowtok.components import Model, SamplingConfig
from flowtok.data import images as pictures_io
from flowtok.errors import FlowTokError
from flowtok.flow.grid import GRIDS
from flowtok.flow.guidance import guided, tabled
from flowtok.flow.solver import SOLVERS

Picture = Image.Image | Path | str | bytes
Progress = Callable[[int, int], None]
"""Called with the number of results that are ready and the number that will be."""
Item = TypeVar("Item")
Result = TypeVar("Result")

LONGEST_PROMPT = 10_000
LOG = logging.getLogger("flowtok")


@dataclass(frozen=True, kw_only=True)
class Draw:
    """One picture to be drawn: its prompt and the noise that picks its text tokens; seed is None for a generator."""

    prompt: str
    noise_LC: Tensor
    seed: int | None


@dataclass(frozen=True, kw_only=True)
class TextPoint:
    """A point on the text side, with the features that guide the decoder of a text-guided tokenizer."""

    z_LC: Tensor
    features_SE: Tensor


class FlowTok(Model):
    """A model that draws and reads: language encoder, text projector, velocity, image tokenizer and text decoder.

    Attributes:
        batch_size: Pictures or captions computed together. Kernels round differently for batches of other sizes, so
            all batches are filled up to this size: a seed then gives the same picture alone or among others. The
            default of 1 is the fastest on a CPU for one picture and not much slower for many.
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
        solver: str | None = None,
        grid: str | None = None,
        deterministic_text: bool = False,
        progress: Progress | None = None,
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
            solver: Name in flow/solver.py.
            grid: Name in flow/grid.py.
            deterministic_text: Takes the mean of the text tokens instead of a draw; there is no seed then.
            progress: Called after each picture.

        Returns:
            PIL pictures; `picture.info` holds prompt, seed, model and flowtok's version.

        Raises:
            FlowTokError: A blank or far too long prompt, or a number that is out of range.
        """
        chosen = self._sampling(
            num_inference_steps=num_inference_steps, guidance_scale=guidance_scale, solver=solver, grid=grid
        )
        draws = self._draws(prompts, num_images_per_prompt, seed, generator, deterministic_text)
        follow = self._follow(chosen.num_inference_steps, chosen.guidance_scale, chosen.solver, chosen.grid)

        def draw(batch: list[Draw]) -> list[Image.Image]:
            text = self.text_encoder.encode([one.prompt for one in batch])  # 1. words to features
            tokens = self.text_projector(text.features_BSE)  # 2. features to a Gaussian over tokens
            z_text_BLC = tokens.sample(self._stack([one.noise_LC for one in batch]))  # 3. a draw: where the flow starts
            z_image_BLC = follow(z_text_BLC)  # 4. the flow, from t = 0 to t = 1
            image_B3YX = self._decode(z_image_BLC, text.features_BSE)  # 5. tokens to pixels
            return pictures_io.to_pil(image_B3YX)

        drawn = self._in_batches(draw, draws, progress)
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
        chosen = self._sampling(caption_steps=num_inference_steps, caption_guidance_scale=guidance_scale,
                                caption_solver=solver)  # fmt: skip
        follow = self._follow(
            chosen.caption_steps, chosen.caption_guidance_scale, chosen.caption_solver, "uniform", backwards=True
        )
        text_decoder, text_encoder = self.text_decoder, self.text_encoder

        def read(batch: list[Picture]) -> list[str]:
            image_B3YX = self._stack([self.pixels(image) for image in batch])  # 1. any picture to pixels
            z_image_BLC = self._encode(image_B3YX)  # 2. pixels to tokens
            z_text_BLC = follow(z_image_BLC)  # 3. the flow, from t = 1 to t = 0
            ids_BS = text_decoder(z_text_BLC.to(_dtype(text_decoder))).argmax(-1)  # 4. tokens to ids, all at once
            return text_encoder.words(ids_BS)  # 5. ids to words, up to the end mark

        return self._in_batches(read, _listed(images), progress)

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
            return pictures_io.to_pil(self._decode(z_BLC, text_BSE))

        return self._in_batches(rebuild, list(zip(sources, captions or [""] * len(sources), strict=True)), progress)

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
            solver: Name in flow/solver.py.
            grid: Name in flow/grid.py.
            deterministic_text: As for `generate`.
            progress: Called after each picture.

        Raises:
            FlowTokError: As `generate`, or arithmetic without a meaning.
        """
        if steps < 1:
            raise FlowTokError(f"an interpolation needs at least 1 picture, not {steps}")
        chosen = self._sampling(
            num_inference_steps=num_inference_steps, guidance_scale=guidance_scale, solver=solver, grid=grid
        )
        terms_a, terms_b = parse_arithmetic(a), parse_arithmetic(b)
        noise, *_ = self._draws([prompt for _, prompt in terms_a + terms_b], 1, seed, None, deterministic_text)
        start, end = self._text_point(terms_a, noise.noise_LC), self._text_point(terms_b, noise.noise_LC)
        follow = self._follow(chosen.num_inference_steps, chosen.guidance_scale, chosen.solver, chosen.grid)

        def draw(batch: list[TextPoint]) -> list[Image.Image]:
            z_image_BLC = follow(self._stack([point.z_LC for point in batch]))
            return pictures_io.to_pil(self._decode(z_image_BLC, self._stack([point.features_SE for point in batch])))

        points = [
            TextPoint(
                z_LC=torch.lerp(start.z_LC, end.z_LC, i / max(1, steps - 1)),
                features_SE=torch.lerp(start.features_SE, end.features_SE, i / max(1, steps - 1)),
            )
            for i in range(steps)
        ]
        label = a if steps == 1 else f"{a} -> {b}"
        return [self._signed(one, label, noise.seed) for one in self._in_batches(draw, points, progress)]

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

    def _decode(self, z_BLC: Tensor, features_BSE: Tensor | None) -> Tensor:
        """The flow's tokens to pixels, guided by text where the tokenizer is."""
        tokenizer = self.image_tokenizer
        exact_BLC = self.latent_scale.from_flow(z_BLC).to(_dtype(tokenizer))
        if tokenizer.config.text_width is None or features_BSE is None:
            return tokenizer.decode(exact_BLC)
        return tokenizer.decode(exact_BLC, features_BSE.to(exact_BLC.dtype))

    def _follow(
        self, num_steps: int, guidance_scale: float, solver: str, grid: str, backwards: bool = False
    ) -> Callable[[Tensor], Tensor]:
        """The flow as a function of tokens; what time tells the network is computed once, here."""
        stops = GRIDS[grid](num_steps)
        stops = stops.reversed() if backwards else stops
        network = self.velocity
        ask = tabled(network, stops.told, device=self.device)

        def exact(z_BLC: Tensor, t: float, null_B: Tensor) -> Tensor:
            # Tokens and guidance stay in float32 whatever the network computes in.
            return ask(z_BLC.to(_dtype(network)), t, null_B).float()

        velocity = stops.retold(guided(exact, guidance_scale))
        return lambda z_BLC: SOLVERS[solver](velocity, z_BLC.float(), stops.times)

    def _draws(
        self,
        prompts: str | Sequence[str],
        num_images_per_prompt: int,
        seed: int | None,
        generator: torch.Generator | Sequence[torch.Generator] | None,
        deterministic_text: bool,
    ) -> list[Draw]:
        """Every picture with its noise, drawn before anything is computed, so that it depends on its seed alone."""
        prompts = self._checked([prompts] if isinstance(prompts, str) else list(prompts))
        if num_images_per_prompt < 1:
            raise FlowTokError(f"the number of pictures of a prompt must be at least 1, not {num_images_per_prompt}")
        if seed is not None and not 0 <= seed < 2**63 - num_images_per_prompt:
            raise FlowTokError(f"a seed must be 0 or more and below 2^63, not {seed}")
        if (seed is not None) + (generator is not None) + deterministic_text > 1:
            raise FlowTokError("seed, generator and deterministic text exclude each other; give one of them")
        wanted = [prompt for prompt in prompts for _ in range(num_images_per_prompt)]
        config = self.text_projector.config
        shape = (config.num_tokens, config.token_channels)
        if deterministic_text:
            if num_images_per_prompt > 1:
                raise FlowTokError("deterministic text gives one picture of a prompt; more of them would be equal")
            return [Draw(prompt=prompt, noise_LC=torch.zeros(shape), seed=None) for prompt in wanted]
        if generator is None:
            firsts = [secrets.randbelow(2**32) if seed is None else seed for _ in prompts]
            seeds = [first + i for first in firsts for i in range(num_images_per_prompt)]
            return [
                Draw(prompt=prompt, noise_LC=torch.randn(shape, generator=torch.Generator().manual_seed(one)), seed=one)
                for prompt, one in zip(wanted, seeds, strict=True)
            ]
        generators = [generator] * len(wanted) if isinstance(generator, torch.Generator) else list(generator)
        if len(generators) != len(wanted):
            raise FlowTokError(f"got {len(generators)} generators for {len(wanted)} pictures; give one or one for each")
        return [
            Draw(prompt=prompt, noise_LC=torch.randn(shape, generator=one, device=one.device).cpu(), seed=None)
            for prompt, one in zip(wanted, generators, strict=True)
        ]

    def _checked(self, prompts: list[str]) -> list[str]:
        """The prompts, if the model can read all of them; those it cannot read to the end are named in the log."""
        if not prompts:
            raise FlowTokError("there is no prompt; give at least one")
        for prompt in prompts:
            if len(prompt) > LONGEST_PROMPT:
                raise FlowTokError(f"a prompt has {len(prompt)} characters, more than the {LONGEST_PROMPT} allowed")
        most = self.text_encoder.config.num_tokens
        for prompt, count in zip(prompts, self.text_encoder.count(prompts), strict=True):
            if count <= 2:
                raise FlowTokError(f"the prompt {prompt!r} is blank; say what the picture shall show")
            if count > most:
                shown = prompt if len(prompt) <= 40 else prompt[:37] + "..."
                LOG.warning("only the first %d of %d word pieces of %r are read", most - 2, count - 2, shown)
        return prompts

    def _text_point(self, terms: list[tuple[int, str]], noise_LC: Tensor) -> TextPoint:
        """The weighted mean of the text tokens of some prompts, each computed alone, all with the same noise."""
        total = sum(sign for sign, _ in terms)
        z_LC, features_SE = torch.zeros(()), torch.zeros(())
        for sign, prompt in terms:
            features_BSE = self.text_encoder.encode([prompt]).features_BSE
            tokens = self.text_projector(features_BSE)
            z_LC = z_LC + sign / total * tokens.sample(self._stack([noise_LC]))[0]
            features_SE = features_SE + sign / total * features_BSE[0]
        return TextPoint(z_LC=z_LC, features_SE=features_SE)

    def _in_batches(
        self, function: Callable[[list[Item]], list[Result]], items: list[Item], progress: Progress | None
    ) -> list[Result]:
        """Applies a function to batches of exactly batch_size items; the last is filled up, the surplus dropped."""
        results: list[Result] = []
        for start in range(0, len(items), self.batch_size):
            batch = items[start : start + self.batch_size]
            full = batch + batch[-1:] * (self.batch_size - len(batch))
            results += function(full)[: len(batch)]
            if progress is not None:
                progress(len(results), len(items))
        return results

    def _stack(self, tensors: list[Tensor]) -> Tensor:
        return torch.stack(tensors).to(self.device)

    def _sampling(self, **given: Any) -> SamplingConfig:
        """The model's own sampling with what the caller gave in its place."""
        return replace(self.sampling, **{key: value for key, value in given.items() if value is not None})

    def _signed(self, picture: Image.Image, prompt: str, seed: int | None) -> Image.Image:
        picture.info = {"prompt": prompt, "seed": seed, "model": self.name, "flowtok": flowtok.__version__}
        return picture


def load(
    name: str | Path = "emoji",
    *,
    revision: str | None = None,
    token: str | None = None,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> FlowTok:
    """Opens a model by shipped name, folder or Hub id; see `FlowTok.from_pretrained`."""
    return FlowTok.from_pretrained(name, revision=revision, token=token, dtype=dtype, device=device)


def parse_arithmetic(text: str) -> list[tuple[int, str]]:
    """Splits "king - man + woman" into signs and prompts; a sign stands between spaces, so "t-shirt" is one word.

    Raises:
        FlowTokError: A sign without a prompt on both sides, or more minus than plus, which has no middle.
    """
    first, *rest = re.split(r"(?:^|\s+)([+-])(?=\s|$)", text)
    signed = zip(rest[::2], rest[1::2], strict=True)
    terms = [(1, first.strip()), *((1 if sign == "+" else -1, term.strip()) for sign, term in signed)]
    if rest and not all(term for _, term in terms):
        raise FlowTokError(f"{text!r} has a + or - without a prompt on both sides")
    if sum(sign for sign, _ in terms) < 1:
        raise FlowTokError(f"{text!r} takes away as much as it gives; add a prompt, as in 'king - man + woman'")
    return terms


def _listed(images: Picture | Sequence[Picture]) -> list[Picture]:
    """The pictures as a list; a single one may come without."""
    listed = [images] if isinstance(images, Image.Image | Path | str | bytes) else list(images)
    if not listed:
        raise FlowTokError("there is no picture; give at least one")
    return listed


def _dtype(network: nn.Module) -> torch.dtype:
    return next(network.parameters()).dtype
