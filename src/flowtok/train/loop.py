"""THE training loop: every stage of the paper goes through it.

A stage says what is trained, what a batch is and what the losses are; the loop knows only that, and the runtime.
A run is a folder (docs/training.md): record.py claims it, checkpoint.py saves there, watch.py notes what is seen.
"""

import math
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from flowtok.errors import FlowTokError
from flowtok.train import checkpoint
from flowtok.train.adversary import Adversary
from flowtok.train.blocks import recompute_blocks
from flowtok.train.ema import averaged_copy
from flowtok.train.feed import Deal, Feed, Streams
from flowtok.train.optim import OptimizerConfig, Updater
from flowtok.train.page import write_page
from flowtok.train.record import claim
from flowtok.train.runtime import LossOf, Parallel, Precision, Runtime, filled, outline_of
from flowtok.train.stops import StopWish, not_finite
from flowtok.train.watch import Report, Watch


@dataclass(frozen=True, kw_only=True)
class LossTerms:
    """What one batch costs.

    Attributes:
        total: The scalar that is differentiated.
        terms: Its parts and whatever else is worth a line in metrics.jsonl; detached scalars.
    """

    total: Tensor
    terms: dict[str, Tensor] = field(default_factory=dict)


class Stage(Protocol):
    """What the loop asks of a stage.

    It may offer more: `adversary`, an Adversary that is trained against it; what feed.Streams asks, if its samples have
    no numbers (then num_samples is None); what feed.NamesSamples asks, for messages.
    """

    name: str
    modules: nn.Module

    @property
    def num_samples(self) -> int | None:
        """Samples in an epoch; None for a stream."""
        ...

    def batch(self, indices_B: Tensor, generator: torch.Generator) -> dict[str, Any]:
        """The samples of these numbers, with whatever is drawn at random for them; runs in a thread of its own."""
        ...

    def loss(self, batch: dict[str, Any]) -> LossTerms:
        """Losses of a batch that lies on the device; runs under the runtime's precision."""
        ...

    def preview(self, modules: nn.Module, path: Path) -> dict[str, float]:
        """Draws a picture of the present state, from averaged weights, and returns figures to note."""
        ...


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """How long and how a stage is trained.

    Attributes:
        num_steps: Updates in all.
        batch_size: Samples of one update over all ranks.
        micro_batch_size: Samples that are drawn and computed at a time. Gradients add up until the batch is full, and
            the result does not depend on the number of ranks. Left out, each rank computes its whole share at once.
        optimizer: The update rule.
        ema_decay: Decay of the averaged weights; the average is what a stage hands on.
        ema_warmup: Whether the average forgets the first weights faster at the start; see ema.py.
        precision: Type of the matrix products.
        compile: Runs the losses through torch.compile.
        activation_checkpointing: Computes the blocks twice instead of keeping what they compute: less memory.
        parallel: How many ranks share the work: `ddp`, with all weights on every rank, or `fsdp`, with a share on each.
        seed: Fixes weights, order and noise.
        checkpoint_every: Steps between two checkpoints.
        keep_checkpoints: How many of the last checkpoints are kept.
        preview_every: Steps between two previews.
        log_every: Steps between two lines of metrics.jsonl.
    """

    num_steps: int
    batch_size: int = 64
    micro_batch_size: int | None = None
    optimizer: OptimizerConfig = OptimizerConfig()
    ema_decay: float = 0.999
    ema_warmup: bool = True
    precision: Precision = "bfloat16"
    compile: bool = False
    activation_checkpointing: bool = False
    parallel: Parallel = "ddp"
    seed: int = 1234
    checkpoint_every: int = 500
    keep_checkpoints: int = 2
    preview_every: int = 1000
    log_every: int = 20

    def __post_init__(self) -> None:
        every = (self.checkpoint_every, self.keep_checkpoints, self.preview_every, self.log_every)
        if min(self.num_steps, self.batch_size, *every) < 1:
            raise ValueError(
                "num_steps, batch_size, keep_checkpoints and the *_every counts must be positive, not "
                f"{(self.num_steps, self.batch_size, *every)}"
            )
        part = self.batch_size if self.micro_batch_size is None else self.micro_batch_size
        if part < 1 or self.batch_size % part:
            raise ValueError(f"batch_size {self.batch_size} is not a multiple of micro_batch_size {part}")
        if not 0.0 <= self.ema_decay < 1.0:
            raise ValueError(f"ema_decay must lie in [0, 1), not {self.ema_decay}")


# What may change when a run goes on, since the weights come out the same, up to the order in which floats are added.
_WATCHING = ("checkpoint_every", "keep_checkpoints", "preview_every", "log_every")
FREE = frozenset(f"training.{name}" for name in ("activation_checkpointing", "parallel", *_WATCHING)) | {
    "CollectConfig.max_refused"
}


def train(
    stage: Stage,
    config: TrainingConfig,
    folder: Path,
    runtime: Runtime,
    *,
    epoch_M: Tensor | None = None,
    resolved: dict[str, Any] | None = None,
    report: Report | None = None,
) -> nn.Module:
    """Trains a stage to its last step and returns the averaged modules.

    Args:
        stage: What is trained.
        config: How.
        folder: The run's folder; an unfinished run of the same configuration that lies there goes on.
        runtime: Where.
        epoch_M: Sample numbers that make up an epoch, some of them several times; each once if left out.
        resolved: The whole configuration of the stage, for the record and for the comparison with an earlier run:
            configs and plain values by name. A field of a config that an earlier record lacks counts as its default.
        report: Called with step and figures at every logged step.

    Raises:
        TrainingStopped: If Ctrl-C or SIGTERM came; the run is saved.
        FlowTokError: If the folder holds a run of another configuration or a damaged checkpoint, the batch cannot be
            dealt to the ranks, a loss or gradient is not finite, or the disk is full.
    """
    deal = Deal.over_ranks(
        stage.num_samples, config.batch_size, config.micro_batch_size, config.seed, runtime.num_ranks, epoch_M
    )
    claim(folder, {"stage": stage.name, "training": config, **(resolved or {})}, runtime, free=FREE)
    run = Run(stage, config, folder, runtime)
    seen, steps = 0, {"step": run.step, "num_steps": config.num_steps}
    watch = Watch(folder, stage.name, **steps, report=report, silent=not runtime.is_main)
    with StopWish() as wish, Feed(stage, deal, runtime, **steps) as feed, closing(watch):
        while run.step < config.num_steps:
            figures, asked = run.update(feed, wish)
            step, last = run.step, run.step == config.num_steps
            seen += config.batch_size
            if step % config.log_every == 0 or last:
                watch.log(step, runtime.average(figures), seen, feed.waited)
                seen = 0
            if step % config.preview_every == 0 or last:
                run.preview(watch)
            if step % config.checkpoint_every == 0 or last or asked:
                run.save()
            if asked:
                raise wish.error(stage.name, step, config.num_steps, folder)
    if runtime.is_main:
        write_page(folder / "report.html", [folder], title=f"stage {stage.name}")
    return run.averages().eval()


class Run:
    """The weights of a stage in training, and the step that they have reached."""

    def __init__(self, stage: Stage, config: TrainingConfig, folder: Path, runtime: Runtime) -> None:
        """Starts afresh, or goes on from the folder's newest checkpoint."""
        self.stage, self.config, self.folder, self.runtime = stage, config, folder, runtime
        self.adversary: Adversary | None = getattr(stage, "adversary", None)
        self.networks = {"modules": stage.modules}
        if self.adversary is not None:
            self.networks["adversary"] = self.adversary.modules
        for network in self.networks.values():
            runtime.spread_from_main(network.to(runtime.device).train())
        self.averaged: AveragedModel = averaged_copy(stage.modules, config.ema_decay, config.ema_warmup)
        self.step, self.position = 0, None
        saved = checkpoint.read_newest(folder)
        if len(seen := set(runtime.gather(saved and saved.step))) > 1:
            raise FlowTokError(f"the ranks see different checkpoints in {folder} ({seen}); it must be a shared folder")
        if saved is not None:
            saved.load_weights(self.networks, self.averaged)
            self.step = saved.step
            # A finished run has no use for its place in the data, which any number of ranks may look back at.
            self.position = saved.position(runtime) if saved.step < config.num_steps else None
        self._distribute()
        self.updaters = {"gradient": Updater(stage.modules, config.optimizer)}
        if self.adversary is not None:
            rival = self.adversary
            self.updaters["adversary_gradient"] = Updater(rival.modules, rival.optimizer, rival.start_step)
        self.optimizers = [one for updater in self.updaters.values() for one in updater.optimizers]
        if saved is not None:
            saved.load_optimizers(self.networks, self.optimizers)
        if isinstance(stage, Streams) and self.position is not None:
            stage.go_to(self.position)

    def _distribute(self) -> None:
        """Gives weights and losses the shape in which they are trained: recomputed, compiled, on many ranks."""
        config, self.outline = self.config, None
        losses: list[Callable[[dict[str, Any]], LossTerms]] = [self.stage.loss]
        if config.parallel == "fsdp" and self.runtime.num_ranks > 1:
            self.outline = outline_of(self.stage.modules)
            self.runtime.shard(self.averaged)
        if config.activation_checkpointing:
            recompute_blocks(self.stage.modules)
        if self.adversary is not None:
            losses.append(self.adversary.loss)
        if config.compile:
            losses = [torch.compile(loss) for loss in losses]

        def loss_of(batch: dict[str, Any]) -> tuple[Tensor, dict[str, Tensor]]:
            begun = self.adversary is not None and self.step >= self.adversary.start_step
            found = losses[1 if begun else 0](batch)
            return found.total, found.terms

        self.losses = self.runtime.parallel(LossOf(self.networks.values(), loss_of), config.parallel)

    def update(self, feed: Feed, wish: StopWish) -> tuple[dict[str, Tensor], bool]:
        """One step.

        Returns:
            Loss, norms of the gradients and the stage's terms, on this rank; and whether a rank was asked to stop.

        Raises:
            FlowTokError: If loss or gradient is not finite; the weights are as they were.
        """
        parts, config = len(feed.own_parts), self.config
        totals: dict[int, Tensor] = {}
        terms: dict[str, Tensor] = {}
        for place in range(parts):
            part = feed.next()
            batch = self.runtime.to_device(part.batch)
            torch.manual_seed(part.seed)  # for dropout, the one draw that takes no generator
            with self.runtime.keeping_back(self.losses, keep=place + 1 < parts):
                with self.runtime.autocast(config.precision):
                    total, found = self.losses(batch)
                (total / parts).backward()
            totals[part.number], self.position = total.detach(), part.position
            terms = {name: terms.get(name, 0) + value / parts for name, value in found.items()}
        updaters = {name: one for name, one in self.updaters.items() if self.step >= one.first_step}
        figures = {"loss": torch.stack(list(totals.values())).mean()}
        for name, updater in updaters.items():
            figures[name] = self.runtime.finish_gradients(updater.parameters, updater.clip_norm)
        common = self.runtime.average(figures | {"wish": wish.flag})
        for name, value in common.items():
            if not math.isfinite(value):
                raise not_finite(
                    name, value, totals, stage=self.stage.name, step=self.step, feed=feed, folder=self.folder
                )
        for updater in updaters.values():
            updater.update(self.step, config.num_steps)
        if self.adversary is not None and "adversary_gradient" in updaters:
            self.adversary.after_update(self.runtime.average(terms))
        self.averaged.update_parameters(self.stage.modules)
        self.step += 1
        norms = {f"{name}_norm": figures[name] for name in updaters}
        return {"total": figures["loss"], **norms, **terms}, common["wish"] > 0

    def averages(self) -> nn.Module:
        """The averaged weights as one whole network; all ranks must ask for it."""
        return self.averaged.module if self.outline is None else filled(self.outline, self.averaged.module)

    def preview(self, watch: Watch) -> None:
        """Lets the stage draw from the averages."""
        averages = self.averages().eval()
        with torch.no_grad(), self.runtime.autocast(self.config.precision):
            watch.preview(self.step, lambda path: self.stage.preview(averages, path))

    def save(self) -> None:
        """Writes a checkpoint."""
        checkpoint.save(
            self.folder,
            self.step,
            self.networks,
            self.averaged,
            self.optimizers,
            self.runtime,
            position=self.position,
            keep=self.config.keep_checkpoints,
        )
