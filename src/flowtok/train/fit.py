"""Plans a training for pictures of one's own: which networks and how many steps fit into the minutes allowed.

Knows no files but the model to start from. How fast this machine trains is measured in rates.py; the command is in
app/fitting.py.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from flowtok.errors import FlowTokError
from flowtok.image.losses import psnr_B
from flowtok.image.tokenizer import ImageTokenizer, VisionTransformerConfig
from flowtok.train.loop import TrainingConfig
from flowtok.train.pace import FEWEST_STEPS, SecondsLeft
from flowtok.train.recipe import Recipe

FEWEST_PICTURES = 16
# Of the time that is left when training begins, what it gets; caches, previews and writing take the rest.
SHARE_OF_TRAINING = 0.85
# More epochs than these only learn the pictures by heart.
MOST_EPOCHS = {"tokenizer": 400, "text": 100, "flow": 1500}
SHARES_FRESH = {"tokenizer": 0.45, "text": 0.1, "flow": 0.45}
SHARES_STARTED = {"tokenizer": 0.3, "flow": 0.7}
# A tokenizer to start from that gives the pictures back as truly (in decibels) is kept: the shipped one has about
# 28 dB on pictures that it has not seen, and tokens that stay what they were are what its flow knows.
GOOD_PSNR = 26.0
# Noise on the tokens of a decoder that was told of it before: it must not forget (`TokenizerStageConfig.noise`).
NOISE_STARTED = 0.5
# Weight of reading captions in the flow stage, where the base recipe leaves that to a stage of its own.
READING = 0.1
# Share of a batch that is read where training starts from a model: it can read, and drawing is what takes longer.
READING_SHARE_STARTED = 0.2


@dataclass(frozen=True, kw_only=True)
class Size:
    """Networks of one size, and what they want in order to be worth their time.

    Attributes:
        name: What it is called.
        networks: Encoder and decoder of the image tokenizer, and the velocity network, as (width, depth, heads); None
            for those of the base recipe.
        pictures: Fewest pictures.
        samples: Fewest samples that each stage must see.
    """

    name: str
    networks: tuple[tuple[int, int, int], tuple[int, int, int], tuple[int, int, int]] | None
    pictures: int
    samples: dict[str, int]

    def applied(self, base: Recipe) -> Recipe:
        """The base recipe with networks of this size."""
        if self.networks is None:
            return base
        encoder, decoder, velocity = (
            dict(zip(("width", "depth", "num_heads"), one, strict=True)) for one in self.networks
        )
        tokenizer = replace(
            base.image_tokenizer, encoder=VisionTransformerConfig(**encoder), decoder=VisionTransformerConfig(**decoder)
        )
        return replace(base, image_tokenizer=tokenizer, velocity=replace(base.velocity, **velocity))


# The middle size is the shipped model's. A third of its first round, of 224,000 and 326,000 samples, already draws.
SIZES = (
    Size(name="small", networks=((96, 2, 2), (192, 3, 3), (192, 6, 3)), pictures=0, samples={}),
    Size(name="medium", networks=None, pictures=300, samples={"tokenizer": 60_000, "flow": 100_000}),
    Size(
        name="large",
        networks=((256, 4, 4), (384, 6, 6), (384, 12, 6)),
        pictures=10_000,
        samples={"tokenizer": 300_000, "flow": 500_000},
    ),
)


@dataclass(frozen=True, kw_only=True)
class FitPlan:
    """What will be trained, and why so.

    Attributes:
        recipe: Networks and lengths of all stages.
        start: The model folder that training starts from, or None.
        rates: Samples a second of each stage, as they were measured.
        reasons: Lines for the user.
    """

    recipe: Recipe
    start: Path | None
    rates: dict[str, float]
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


def check_enough(num_pictures: int) -> None:
    """Raises FlowTokError where there are too few pictures."""
    if num_pictures < FEWEST_PICTURES:
        raise FlowTokError(
            f"{num_pictures} pictures are too few to train on; gather at least {FEWEST_PICTURES}, better some hundreds"
        )


def choose_networks(
    base: Recipe, *, num_pictures: int, seconds: float, rates_of: Callable[[Recipe], dict[str, float]]
) -> tuple[Recipe, dict[str, float], str]:
    """The largest networks for which there are pictures enough, and which see samples enough in the time.

    Args:
        base: Its networks are the middle size.
        num_pictures: Training pictures.
        seconds: For training all stages from nothing.
        rates_of: Measures samples a second of each stage; asked for one size after another, from the smallest.

    Returns:
        The recipe, its rates, and the reason in words.
    """
    chosen, rates = SIZES[0], rates_of(SIZES[0].applied(base))
    why = ""
    for size in SIZES[1:]:
        if num_pictures < size.pictures:
            why = f"{size.name} ones want {size.pictures:,} pictures"
            break
        recipe = size.applied(base)
        tried = rates_of(recipe)
        seen = {stage: int(seconds * SHARES_FRESH[stage] * tried[stage]) for stage in size.samples}
        short = next((stage for stage, wanted in size.samples.items() if seen[stage] < wanted), None)
        if short is not None:
            why = (
                f"{size.name} ones want to see {size.samples[short]:,} samples in the {short} stage, and there is time "
                f"for {seen[short]:,}"
            )
            break
        chosen, rates = size, tried
    recipe = chosen.applied(base)
    tokenizer, velocity = recipe.image_tokenizer, recipe.velocity
    reason = (
        f"networks: {chosen.name} (tokenizer {tokenizer.encoder.width} and {tokenizer.decoder.width} wide, flow "
        f"{velocity.width} wide and {velocity.depth} deep){'; ' if why else ''}{why}"
    )
    return recipe, rates, reason


def rebuilt_psnr(start: Path, images_N3YX: Tensor, device: torch.device) -> float | None:
    """How truly a model's tokenizer gives pictures back, in decibels; None where text guides it.

    Args:
        start: The model.
        images_N3YX: Pictures of its size, uint8; up to 256 of them are tried.
        device: Where.
    """
    tokenizer = ImageTokenizer.from_pretrained(str(start)).eval().to(device)
    if tokenizer.config.text_width is not None:
        return None
    found = []
    with torch.no_grad():
        for part in images_N3YX[:: -(-len(images_N3YX) // 256)].split(64):
            image_B3YX = part.to(device).float() / 255.0
            found.append(psnr_B(image_B3YX, tokenizer.decode(tokenizer.encode(image_B3YX).mean_BLC).clamp(0.0, 1.0)))
    return torch.cat(found).mean().item()


def plan_fit(
    base: Recipe,
    *,
    name: str,
    num_pictures: int,
    seconds: float,
    rates: dict[str, float],
    start: Path | None = None,
    psnr: float | None = None,
    reason: str = "",
) -> FitPlan:
    """Chooses the number of steps of every stage.

    Args:
        base: Networks, losses and rates (`recipe_for`, `choose_networks`).
        name: Name of the model.
        num_pictures: Training pictures.
        seconds: For training all stages (`SHARE_OF_TRAINING` of the time that is left).
        rates: Samples a second of each stage (`rates.measured_rates`).
        start: A model folder to start from; its text side is kept as it is.
        psnr: How truly its tokenizer gives the pictures back (`rebuilt_psnr`); a good one is kept, another learns at
            half the rate.
        reason: Why these networks.
    """
    shares = SHARES_FRESH if start is None else SHARES_STARTED
    trainings, reasons = {}, [reason] if reason else []
    if start is not None and psnr is not None and psnr >= GOOD_PSNR:
        shares = {"flow": 1.0}
        reasons.append(f"tokenizer: kept as it is, as it gives your pictures back at {psnr:.1f} dB")
    for stage, share in shares.items():
        training, said = _lengthened(base, stage, num_pictures, seconds * share, rates[stage])
        if start is not None and stage == "tokenizer":
            gentle = replace(training.optimizer, learning_rate=training.optimizer.learning_rate / 2)
            training = replace(training, optimizer=gentle)
        trainings[stage] = training
        reasons.append(said)
    told = start is not None and base.image_tokenizer.flow_noise > 0
    recipe = replace(
        base,
        name=name,
        tokenizer_stage=replace(base.tokenizer_stage, noise=NOISE_STARTED) if told else base.tokenizer_stage,
        tokenizer_training=trainings.get("tokenizer"),
        text_training=trainings.get("text"),
        flow_training=trainings["flow"],
        flow_stage=replace(base.flow_stage, reading=base.flow_stage.reading or READING),
        captioner_stage=replace(base.captioner_stage, num_steps=1),
        captioner_training=None,
    )
    return FitPlan(recipe=recipe, start=start, rates=rates, reasons=tuple(reasons))


def plan_flow(plan: FitPlan, *, num_pictures: int, seconds: float) -> FitPlan:
    """The same plan, with as many steps of the flow as fit into the time that the earlier stages have left."""
    training, reason = _lengthened(plan.recipe, "flow", num_pictures, seconds, plan.rates["flow"])
    return replace(plan, recipe=replace(plan.recipe, flow_training=training), reasons=(reason,))


def seconds_of_stages(recipe: Recipe, stages: Sequence[str], seconds: SecondsLeft) -> dict[str, SecondsLeft]:
    """When each of some stages is over, trained to its last step or not: what tells the seconds that it still has.

    From now on they have `SHARE_OF_TRAINING` of the time; a stage must leave the later ones their shares of it.

    Args:
        recipe: What is trained.
        stages: Stages that follow each other; those that the recipe does not train take no time.
        seconds: Tells the seconds that are left of the minutes allowed.
    """
    shares = SHARES_STARTED if recipe.text_training is None else SHARES_FRESH
    trained = [stage for stage in stages if stage in recipe.trained_stages]
    total, limits, later = max(0.0, seconds()), dict[str, SecondsLeft](), 0.0
    of_all = sum(shares[stage] for stage in trained)
    for stage in reversed(trained):
        reserve = total * (1.0 - SHARE_OF_TRAINING * (1.0 - later / of_all))
        limits[stage] = lambda reserve=reserve: seconds() - reserve
        later += shares[stage]
    return limits


def _lengthened(base: Recipe, stage: str, num_pictures: int, seconds: float, rate: float) -> tuple[TrainingConfig, str]:
    """A stage's training that takes so long, with a checkpoint about every minute and eight previews; and a word on it.

    Where pictures are few it is shorter.
    """
    training: TrainingConfig = getattr(base, f"{stage}_training")
    wanted = seconds * rate
    samples = min(wanted, MOST_EPOCHS[stage] * num_pictures)
    steps = max(FEWEST_STEPS, int(samples / training.batch_size))
    capped = ", as more would only learn them by heart" if samples < wanted else ""
    reason = (
        f"{stage}: {steps:,} steps of {training.batch_size} (about {rate:.0f} samples/s here, each picture "
        f"{steps * training.batch_size / num_pictures:.0f} times{capped})"
    )
    return replace(
        training,
        num_steps=steps,
        optimizer=replace(training.optimizer, warmup_steps=min(training.optimizer.warmup_steps, steps // 10)),
        checkpoint_every=max(10, round(60.0 * rate / training.batch_size)),
        preview_every=max(10, steps // 8),
        log_every=max(1, min(training.log_every, steps // 20)),
    ), reason
