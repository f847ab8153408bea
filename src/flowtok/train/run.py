"""A stage's weights in training: how far they are, one update of them, and what is saved of them.

Knows losses and optimisers, ranks through the runtime, and no schedule of events; when what happens is loop.py's.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from flowtok.errors import FlowTokError
from flowtok.train import checkpoint
from flowtok.train.adversary import Adversary
from flowtok.train.blocks import recompute_blocks
from flowtok.train.ema import averaged_copy
from flowtok.train.feed import Feed, Streams
from flowtok.train.optim import Updater
from flowtok.train.pace import Pace, SecondsLeft
from flowtok.train.runtime import LossOf, Runtime, filled, outline_of
from flowtok.train.stops import StopWish, not_finite
from flowtok.train.watch import Watch

if TYPE_CHECKING:
    from flowtok.train.loop import LossTerms, Stage, TrainingConfig


class Run:
    """The weights of a stage in training, and the step that they have reached."""

    def __init__(
        self,
        stage: Stage,
        config: TrainingConfig,
        folder: Path,
        runtime: Runtime,
        seconds_left: SecondsLeft | None = None,
    ) -> None:
        """Starts afresh, or goes on from the folder's newest checkpoint; the arguments are those of `loop.train`."""
        self.stage, self.config, self.folder, self.runtime = stage, config, folder, runtime
        self.adversary: Adversary | None = getattr(stage, "adversary", None)
        self.networks = {"modules": stage.modules}
        if self.adversary is not None:
            self.networks["adversary"] = self.adversary.modules
        for network in self.networks.values():
            runtime.spread_from_main(network.to(runtime.device).train())
        self.averaged: AveragedModel = averaged_copy(stage.modules, config.ema_decay, config.ema_warmup)
        self.step, self.position, self.expected_steps, self.ended = 0, None, float(config.num_steps), False
        saved = checkpoint.read_newest(folder)
        if len(seen := set(runtime.gather(saved and saved.step))) > 1:
            raise FlowTokError(f"the ranks see different checkpoints in {folder} ({seen}); it must be a shared folder")
        if saved is not None:
            saved.load_weights(self.networks, self.averaged)
            self.step = saved.step
            self.ended = saved.ended_early or saved.step >= config.num_steps
            # A finished run has no use for its place in the data, which any number of ranks may look back at.
            self.position = None if self.ended else saved.position(runtime)
        self.pace = None if seconds_left is None else Pace(self.step, config.num_steps, seconds_left)
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
        expected = {} if self.pace is None else self.pace.figure(self.step + 1)
        common = self.runtime.average(figures | {"wish": wish.flag} | expected)
        self.expected_steps = common.get("steps", float(config.num_steps))
        for name, value in common.items():
            if not math.isfinite(value):
                raise not_finite(
                    name, value, totals, stage=self.stage.name, step=self.step, feed=feed, folder=self.folder
                )
        for updater in updaters.values():
            updater.update(self.step, self.expected_steps)
        if self.adversary is not None and "adversary_gradient" in updaters:
            self.adversary.after_update(self.runtime.average(terms))
        self.averaged.update_parameters(self.stage.modules)
        self.step += 1
        self.ended = self.step >= min(int(self.expected_steps), config.num_steps)
        norms = {f"{name}_norm": figures[name] for name in updaters}
        return {"total": figures["loss"], **norms, **terms}, common["wish"] > 0

    @property
    def ended_early(self) -> bool:
        """Whether the clock has ended the stage before its last step."""
        return self.ended and self.step < self.config.num_steps

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
            ended_early=self.ended_early,
        )
