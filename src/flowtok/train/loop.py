"""THE training loop: every stage of the paper goes through it.

A stage says what is trained, what a batch is and what the losses are; the loop knows only that, and the runtime.
A run is a folder (docs/training.md): record.py claims it, run.py does an update, checkpoint.py saves, watch.py notes
what is seen.
"""

import logging
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from flowtok.train.feed import Deal, Feed
from flowtok.train.optim import OptimizerConfig
from flowtok.train.pace import SecondsLeft
from flowtok.train.page import write_page
from flowtok.train.record import claim
from flowtok.train.run import Run
from flowtok.train.runtime import Parallel, Precision, Runtime
from flowtok.train.stops import StopWish
from flowtok.train.watch import Report, Watch

LOG = logging.getLogger("flowtok")


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
        precision: Type of the matrix products; `auto` is what the device does best.
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
    seconds_left: SecondsLeft | None = None,
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
        seconds_left: Tells the seconds that the stage still has. When they are used it is over, with fewer steps than
            planned; the learning rate declines in time for that (pace.py). No limit if left out.

    Raises:
        TrainingStopped: If Ctrl-C or SIGTERM came; the run is saved.
        FlowTokError: If the folder holds a run of another configuration or a damaged checkpoint, the batch cannot be
            dealt to the ranks, a loss or gradient is not finite, or the disk is full.
    """
    deal = Deal.over_ranks(
        stage.num_samples, config.batch_size, config.micro_batch_size, config.seed, runtime.num_ranks, epoch_M
    )
    claim(folder, {"stage": stage.name, "training": config, **(resolved or {})}, runtime, free=FREE)
    run = Run(stage, config, folder, runtime, seconds_left)
    seen, steps = 0, {"step": run.step, "num_steps": run.step if run.ended else config.num_steps}
    watch = Watch(folder, stage.name, **steps, report=report, silent=not runtime.is_main)
    with StopWish() as wish, Feed(stage, deal, runtime, **steps) as feed, closing(watch):
        while not run.ended:
            figures, asked = run.update(feed, wish)
            step, last = run.step, run.ended
            seen += config.batch_size
            if step % config.log_every == 0 or last:
                watch.log(step, runtime.average(figures), seen, feed.waited, num_steps=run.expected_steps)
                seen = 0
            if step % config.preview_every == 0 or last:
                run.preview(watch)
            if step % config.checkpoint_every == 0 or last or asked:
                run.save()
            if asked:
                raise wish.error(stage.name, step, config.num_steps, folder)
        if run.ended_early and steps["step"] < run.step and runtime.is_main:
            LOG.warning("stage %s: ended at step %s of %s, as its time is used", stage.name, run.step, config.num_steps)
    if runtime.is_main:
        write_page(folder / "report.html", [folder], title=f"stage {stage.name}")
    return run.averages().eval()
