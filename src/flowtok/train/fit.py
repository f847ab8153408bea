"""Plans a training for pictures of one's own: which sizes and how many steps fit into the minutes allowed.

Measures how fast this machine trains; knows no files but the model to start from. The command is in app/fitting.py.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import nn

from flowtok.errors import FlowTokError
from flowtok.flow.transformer import VelocityTransformer
from flowtok.image.tokenizer import ImageTokenizer
from flowtok.train.loop import TrainingConfig
from flowtok.train.recipe import Recipe

FEWEST_PICTURES = 16
# Of the minutes, what is left for reading pictures, caches, previews, measuring and writing.
SHARE_OF_TRAINING = 0.8
# More epochs than these only learn the pictures by heart.
MOST_EPOCHS = {"tokenizer": 400, "text": 100, "flow": 1500}
SHARES_FRESH = {"tokenizer": 0.45, "text": 0.1, "flow": 0.45}
# Weight of reading captions in the flow stage, where the base recipe leaves that to a stage of its own.
READING = 0.1
SHARES_STARTED = {"tokenizer": 0.3, "flow": 0.7}


@dataclass(frozen=True, kw_only=True)
class FitPlan:
    """What will be trained, and why so.

    Attributes:
        recipe: Networks and lengths of all stages.
        start: The model folder that training starts from, or None.
        reasons: Lines for the user.
    """

    recipe: Recipe
    start: Path | None
    reasons: tuple[str, ...]


def recipe_for(base: Recipe, size: int) -> Recipe:
    """The base recipe for pictures of another size: as many patches, each of more pixels.

    Raises:
        FlowTokError: If the side is not a multiple of the number of patches.
    """
    tokenizer = base.image_tokenizer
    if size < 2 * tokenizer.grid or size % tokenizer.grid:
        raise FlowTokError(
            f"size {size} does not fit: it must be a multiple of {tokenizer.grid}, at least {2 * tokenizer.grid}"
        )
    return replace(base, image_tokenizer=replace(tokenizer, image_size=size, patch_size=size // tokenizer.grid))


def measured_rates(recipe: Recipe, device: torch.device, seconds: float = 3.0) -> dict[str, float]:
    """Samples a second that each stage trains here, roughly, from a few steps on made-up input.

    Args:
        recipe: Its networks and batch sizes.
        device: Where.
        seconds: How long each stage is tried.
    """
    tokenizer, network = ImageTokenizer(recipe.image_tokenizer), VelocityTransformer(recipe.velocity)
    generator = torch.Generator().manual_seed(0)
    tokenizer.initialize(generator)
    network.initialize(generator)
    size, velocity = recipe.image_tokenizer.image_size, recipe.velocity
    if recipe.tokenizer_training is None or recipe.flow_training is None:
        raise FlowTokError(f"recipe {recipe.name} does not train both image tokenizer and flow, as fit does")
    pixels, flow = recipe.tokenizer_training.batch_size, recipe.flow_training.batch_size
    image_B3YX = torch.rand(pixels, 3, size, size, device=device)
    z_BLC = torch.randn(flow, velocity.num_tokens, velocity.token_channels, device=device)
    t_B, null_B = torch.rand(flow, device=device), torch.zeros(flow, dtype=torch.bool, device=device)

    def tokenizer_loss() -> torch.Tensor:
        return tokenizer.decode(tokenizer.encode(image_B3YX).mean_BLC).square().mean()

    def flow_loss() -> torch.Tensor:
        return network(z_BLC, t_B, null_B).square().mean()

    # A step also updates weights and, in the flow stage, reads captions; both are allowed for by a factor.
    rates = {
        "tokenizer": 0.7 * _rate(tokenizer.to(device), tokenizer_loss, pixels, seconds),
        "flow": 0.6 * _rate(network.to(device), flow_loss, flow, seconds),
    }
    return rates | {"text": 0.7 * rates["flow"]}


def _rate(module: nn.Module, loss: Callable[[], torch.Tensor], batch: int, seconds: float) -> float:
    for _ in range(2):
        loss().backward()
    started, steps = time.perf_counter(), 0
    while steps < 2 or time.perf_counter() - started < seconds:
        value = loss()
        value.backward()
        value.item()  # waits for an accelerator
        steps += 1
    module.zero_grad(set_to_none=True)
    return steps * batch / (time.perf_counter() - started)


def plan_fit(
    base: Recipe,
    *,
    name: str,
    num_pictures: int,
    minutes: float,
    rates: dict[str, float],
    start: Path | None = None,
) -> FitPlan:
    """Chooses the number of steps of every stage.

    Args:
        base: Networks, losses and rates (`recipe_for`).
        name: Name of the model.
        num_pictures: Training pictures.
        minutes: Time allowed for all.
        rates: Samples a second of each stage (`measured_rates`).
        start: A model folder to start from; its text side is kept as it is, and rates of learning are halved.

    Raises:
        FlowTokError: If there are too few pictures or too little time.
    """
    if num_pictures < FEWEST_PICTURES:
        raise FlowTokError(
            f"{num_pictures} pictures are too few to train on; gather at least {FEWEST_PICTURES}, better some hundreds"
        )
    if not minutes > 0:
        raise FlowTokError(f"--minutes must be above 0, not {minutes:g}")
    shares = SHARES_FRESH if start is None else SHARES_STARTED
    trainings, reasons = {}, []
    for stage, share in shares.items():
        training = getattr(base, f"{stage}_training")
        seconds = 60.0 * minutes * SHARE_OF_TRAINING * share
        wanted = seconds * rates[stage]
        samples = min(wanted, MOST_EPOCHS[stage] * num_pictures)
        steps = max(10, int(samples / training.batch_size))
        trainings[stage] = _of_length(training, steps, rates[stage], halve=start is not None)
        capped = ", as more would only learn them by heart" if samples < wanted else ""
        reasons.append(
            f"{stage}: {steps:,} steps of {training.batch_size} (about {rates[stage]:.0f} samples/s here, "
            f"each picture {steps * training.batch_size / num_pictures:.0f} times{capped})"
        )
    recipe = replace(
        base,
        name=name,
        tokenizer_training=trainings["tokenizer"],
        text_training=trainings.get("text"),
        flow_training=trainings["flow"],
        flow_stage=replace(base.flow_stage, reading=base.flow_stage.reading or READING),
        captioner_stage=replace(base.captioner_stage, num_steps=1),
        captioner_training=None,
    )
    return FitPlan(recipe=recipe, start=start, reasons=tuple(reasons))


def _of_length(training: TrainingConfig, steps: int, rate: float, *, halve: bool) -> TrainingConfig:
    """The same training with another number of steps; a checkpoint about every minute, eight previews in all."""
    optimizer = replace(
        training.optimizer,
        warmup_steps=min(training.optimizer.warmup_steps, steps // 10),
        learning_rate=training.optimizer.learning_rate * (0.5 if halve else 1.0),
    )
    return replace(
        training,
        num_steps=steps,
        optimizer=optimizer,
        checkpoint_every=max(10, round(60.0 * rate / training.batch_size)),
        preview_every=max(10, steps // 8),
        log_every=max(1, min(training.log_every, steps // 20)),
    )
