"""What is settled of prompts before anything is computed: whether they can be read, and the noise of each picture.

Knows no network but the encoder's word count; pipeline.py draws what is planned here.
"""

import logging
import secrets
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from flowtok.errors import FlowTokError
from flowtok.text.encoder import TextEncoder

LONGEST_PROMPT = 10_000
LOG = logging.getLogger("flowtok")


@dataclass(frozen=True, kw_only=True)
class Draw:
    """One picture to be drawn: its prompt and the noise that picks its text tokens; seed is None for a generator."""

    prompt: str
    noise_LC: Tensor
    seed: int | None


def check_prompts(prompts: str | Sequence[str], encoder: TextEncoder) -> list[str]:
    """The prompts as a list, if the encoder can read them; those it does not read to the end are named in the log.

    Raises:
        FlowTokError: No prompt, a blank one, or one that is far too long.
    """
    listed = [prompts] if isinstance(prompts, str) else list(prompts)
    if not listed:
        raise FlowTokError("there is no prompt; give at least one")
    for prompt in listed:
        if len(prompt) > LONGEST_PROMPT:
            raise FlowTokError(f"a prompt has {len(prompt)} characters, more than the {LONGEST_PROMPT} allowed")
    most = encoder.config.num_tokens
    for prompt, count in zip(listed, encoder.count(listed), strict=True):
        if count <= 2:
            raise FlowTokError(f"the prompt {prompt!r} is blank; say what the picture shall show")
        if count > most:
            shown = prompt if len(prompt) <= 40 else prompt[:37] + "..."
            LOG.warning("only the first %d of %d word pieces of %r are read", most - 2, count - 2, shown)
    return listed


def plan_draws(
    prompts: Sequence[str],
    shape: tuple[int, int],
    *,
    num_images_per_prompt: int = 1,
    seed: int | None = None,
    generator: torch.Generator | Sequence[torch.Generator] | None = None,
    deterministic_text: bool = False,
) -> list[Draw]:
    """Every picture with its noise, so that it depends on its seed alone; all of the first prompt come first.

    Args:
        prompts: Checked ones.
        shape: (L, C) of the text tokens.
        num_images_per_prompt: Pictures of each prompt, drawn with the seeds that follow each other.
        seed: Of every prompt's first picture; random where it is None.
        generator: In place of a seed: one for all pictures, or one for each.
        deterministic_text: No noise at all.

    Raises:
        FlowTokError: A number that is out of range, or choices that exclude each other.
    """
    if num_images_per_prompt < 1:
        raise FlowTokError(f"the number of pictures of a prompt must be at least 1, not {num_images_per_prompt}")
    if seed is not None and not 0 <= seed < 2**63 - num_images_per_prompt:
        raise FlowTokError(f"a seed must be 0 or more and below 2^63, not {seed}")
    if (seed is not None) + (generator is not None) + deterministic_text > 1:
        raise FlowTokError("seed, generator and deterministic text exclude each other; give one of them")
    wanted = [prompt for prompt in prompts for _ in range(num_images_per_prompt)]
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
