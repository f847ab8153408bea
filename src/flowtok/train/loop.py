"""THE training loop: every stage of the paper goes through it.

A stage says what is trained, what a batch is and what the losses are; the loop knows only that, and the runtime.
A run is a folder: config.json, metrics.jsonl, checkpoint.pt and pictures. Started again, it goes on where it was.
"""

import json
import math
import pickle
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from flowtok.config import parse_json, to_dict
from flowtok.errors import CheckpointError, FlowTokError
from flowtok.files import write_file_atomically
from flowtok.train.ema import averaged_copy
from flowtok.train.optim import OptimizerConfig, build_optimizers, set_rate
from flowtok.train.runtime import Precision, Runtime


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
    """What the loop asks of a stage."""

    name: str
    modules: nn.Module
    num_samples: int

    def batch(self, indices_B: Tensor, generator: torch.Generator) -> dict[str, Any]:
        """The samples of these numbers, with whatever is drawn at random for them."""
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
        optimizer: The update rule.
        ema_decay: Decay of the averaged weights; the average is what a stage hands on.
        ema_warmup: Whether the average forgets the first weights faster at the start; see ema.py.
        precision: Type of the matrix products.
        compile: Runs the losses through torch.compile.
        seed: Fixes weights, order and noise.
        checkpoint_every: Steps between two checkpoints.
        preview_every: Steps between two previews.
        log_every: Steps between two lines of metrics.jsonl.
    """

    num_steps: int
    batch_size: int = 64
    optimizer: OptimizerConfig = OptimizerConfig()
    ema_decay: float = 0.999
    ema_warmup: bool = True
    precision: Precision = "bfloat16"
    compile: bool = False
    seed: int = 1234
    checkpoint_every: int = 500
    preview_every: int = 1000
    log_every: int = 20

    def __post_init__(self) -> None:
        counts = (self.num_steps, self.batch_size, self.checkpoint_every, self.preview_every, self.log_every)
        if min(counts) < 1:
            raise ValueError(f"num_steps, batch_size and the *_every counts must be positive, not {counts}")
        if not 0.0 <= self.ema_decay < 1.0:
            raise ValueError(f"ema_decay must lie in [0, 1), not {self.ema_decay}")


def indices_at(step: int, *, num_samples: int, batch_size: int, seed: int, rank: int, num_ranks: int) -> Tensor:
    """Sample numbers of one step: shuffled epochs laid end to end, cut into batches, dealt to the ranks.

    Every sample comes once in an epoch. The order is a function of the seed alone, so a run that goes on after a stop
    needs no memory of its position.
    """
    first = step * batch_size
    numbers = []
    for position in range(first + rank, first + batch_size, num_ranks):
        numbers.append((position // num_samples, position % num_samples))
    orders = {}
    for epoch in {epoch for epoch, _ in numbers}:
        generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
        orders[epoch] = torch.randperm(num_samples, generator=generator)
    return torch.stack([orders[epoch][place] for epoch, place in numbers])


def train(
    stage: Stage,
    config: TrainingConfig,
    folder: Path,
    runtime: Runtime,
    *,
    epoch_M: Tensor | None = None,
    resolved: dict[str, Any] | None = None,
    report: Callable[[int, dict[str, float]], None] | None = None,
) -> nn.Module:
    """Trains a stage to its last step and returns the averaged modules.

    Args:
        stage: What is trained.
        config: How.
        folder: The run's folder; an unfinished run of the same configuration that lies there goes on.
        runtime: Where.
        epoch_M: Sample numbers that make up an epoch, some of them several times; each once if left out.
        resolved: The whole configuration of the stage, for the record and for the comparison with an earlier run.
        report: Called with step and metrics at every logged step.

    Raises:
        FlowTokError: If the folder holds a run of another configuration or a damaged checkpoint, the batch cannot be
            dealt to the ranks, or a loss or gradient is not finite.
    """
    if config.batch_size % runtime.num_ranks:
        raise FlowTokError(f"a batch of {config.batch_size} cannot be dealt evenly to {runtime.num_ranks} ranks")
    _claim(folder, {"stage": stage.name, "training": to_dict(config), **(resolved or {})}, runtime)
    stage.modules.to(runtime.device)
    averaged = averaged_copy(stage.modules, config.ema_decay, config.ema_warmup)
    optimizers = build_optimizers(stage.modules, config.optimizer)
    step = _resume(folder, stage.modules, averaged, optimizers)
    runtime.spread_from_main(stage.modules)
    runtime.spread_from_main(averaged)
    loss_of = torch.compile(stage.loss) if config.compile else stage.loss
    parameters = [p for p in stage.modules.parameters() if p.requires_grad]
    stage.modules.train()
    started, seen = time.perf_counter(), 0
    while step < config.num_steps:
        indices_B = indices_at(
            step,
            num_samples=stage.num_samples if epoch_M is None else len(epoch_M),
            batch_size=config.batch_size,
            seed=config.seed,
            rank=runtime.rank,
            num_ranks=runtime.num_ranks,
        )
        if epoch_M is not None:
            indices_B = epoch_M[indices_B]
        generator = runtime.generator(config.seed, step)
        batch = runtime.to_device(stage.batch(indices_B, generator))
        torch.manual_seed(generator.initial_seed())  # for dropout, the one draw that takes no generator
        with runtime.autocast(config.precision):
            losses = loss_of(batch)
        total = runtime.average(losses.total)
        _check_finite("loss", total, stage.name, step)
        losses.total.backward()
        runtime.average_gradients(parameters)
        clip = config.optimizer.clip_norm
        gradient_norm = float(nn.utils.clip_grad_norm_(parameters, math.inf if clip is None else clip))
        _check_finite("gradient", gradient_norm, stage.name, step)
        set_rate(optimizers, config.optimizer.rate_at(step, config.num_steps))
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        averaged.update_parameters(stage.modules)
        step, seen = step + 1, seen + config.batch_size

        if runtime.is_main and (step % config.log_every == 0 or step == config.num_steps):
            metrics = {"total": total, "gradient_norm": gradient_norm}
            metrics |= {name: float(value) for name, value in losses.terms.items()}
            metrics["samples_per_second"] = seen / (time.perf_counter() - started)
            _note(folder, stage.name, step, metrics)
            if report is not None:
                report(step, metrics)
        if runtime.is_main and (step % config.preview_every == 0 or step == config.num_steps):
            averaged.module.eval()
            with torch.no_grad(), runtime.autocast(config.precision):
                figures = stage.preview(averaged.module, folder / f"preview-{step:07d}.png")
            _note(folder, stage.name, step, figures)
            started, seen = time.perf_counter(), 0
        if step % config.checkpoint_every == 0 or step == config.num_steps:
            if runtime.is_main:
                _save(folder, step, stage.modules, averaged, optimizers)
            runtime.wait_for_all()
    return averaged.module.eval()


def _check_finite(what: str, value: float, stage: str, step: int) -> None:
    if not math.isfinite(value):
        raise FlowTokError(f"stage {stage}: the {what} is {value} at step {step}; stopped at the last checkpoint")


def _claim(folder: Path, record: dict[str, Any], runtime: Runtime) -> None:
    """Writes the configuration into a new run's folder, or compares it with the run that is there."""
    path = folder / "config.json"
    if runtime.is_main and not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        write_file_atomically(path, json.dumps(record, indent=2) + "\n")
    runtime.wait_for_all()
    earlier, now = _flat(parse_json(path.read_text(), str(path))), _flat(json.loads(json.dumps(record)))
    differing = [key for key in sorted(earlier.keys() | now.keys()) if earlier.get(key) != now.get(key)]
    if differing:
        shown = ", ".join(f"{key} was {earlier.get(key)} and is {now.get(key)}" for key in differing[:3])
        more = f" and {len(differing) - 3} more" if len(differing) > 3 else ""
        raise FlowTokError(
            f"{folder} holds a run of another configuration ({shown}{more}); take another folder or delete this one"
        )


def _flat(tree: Any, name: str = "") -> dict[str, Any]:
    """Nested mappings as one, with dotted names."""
    if not isinstance(tree, dict):
        return {name: tree}
    return {
        key: leaf
        for part, branch in tree.items()
        for key, leaf in _flat(branch, f"{name}.{part}" if name else str(part)).items()
    }


def _note(folder: Path, stage: str, step: int, metrics: dict[str, float]) -> None:
    with (folder / "metrics.jsonl").open("a") as lines:
        lines.write(json.dumps({"stage": stage, "step": step, "time": time.time(), **metrics}) + "\n")


def _save(folder: Path, step: int, modules: nn.Module, averaged: nn.Module, optimizers: list[Any]) -> None:
    """Writes the checkpoint beside the old one and renames it, so that a crash leaves one of the two."""
    state = {
        "step": step,
        "modules": modules.state_dict(),
        "averaged": averaged.state_dict(),
        "optimizers": [optimizer.state_dict() for optimizer in optimizers],
    }
    write_file_atomically(folder / "checkpoint.pt", lambda file: torch.save(state, file))


def _resume(folder: Path, modules: nn.Module, averaged: nn.Module, optimizers: list[Any]) -> int:
    """Takes over the last checkpoint, if there is one, and returns its step; later lines of the metrics go."""
    path, metrics = folder / "checkpoint.pt", folder / "metrics.jsonl"
    step = 0
    if path.exists():
        try:
            state = torch.load(path, map_location="cpu", weights_only=True)
            modules.load_state_dict(state["modules"])
            averaged.load_state_dict(state["averaged"])
            for optimizer, saved in zip(optimizers, state["optimizers"], strict=True):
                optimizer.load_state_dict(saved)
            step = int(state["step"])
        except (RuntimeError, KeyError, ValueError, EOFError, pickle.UnpicklingError) as error:
            raise CheckpointError(f"{path} is damaged; delete it to start this stage again") from error
    if metrics.exists():
        kept = [line for line in metrics.read_text().splitlines(keepends=True) if _step_of(line) <= step]
        write_file_atomically(metrics, "".join(kept))
    return step


def _step_of(line: str) -> float:
    """The step of a line of metrics; a line that a crash cut short counts as one of the future."""
    try:
        return json.loads(line)["step"]
    except (ValueError, KeyError):
        return math.inf
