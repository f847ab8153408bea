"""Checkpoints of a run: written beside the old ones and renamed, the last few kept, found again after any stop.

A checkpoint holds weights, averages, optimizer states and where the data stands. What is drawn at random in a step
follows from the seed and the step's number (feed.py), so there is no generator to keep.
"""

import pickle
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.swa_utils import AveragedModel

from flowtok.errors import CheckpointError, FlowTokError
from flowtok.files import write_file_atomically
from flowtok.train.runtime import Runtime, is_sharded, spread_like, whole

Networks = Mapping[str, nn.Module]

_NAME = re.compile(r"checkpoint-(\d+)\.pt")
_DAMAGED = (RuntimeError, KeyError, ValueError, TypeError, AttributeError, EOFError, pickle.UnpicklingError)


@dataclass(frozen=True, kw_only=True)
class Saved:
    """A checkpoint that was read.

    Attributes:
        path: Its file.
        step: Updates that it has behind it.
        state: What it holds.
    """

    path: Path
    step: int
    state: dict[str, Any]

    def load_weights(self, networks: Networks, averaged: AveragedModel) -> None:
        """Takes over the weights and the averages; before they are spread over ranks.

        Raises:
            CheckpointError: If they do not fit.
        """
        try:
            for name, network in networks.items():
                network.load_state_dict(self.state[name])
            averaged.load_state_dict(self.state["averaged"])
        except _DAMAGED as error:
            raise self._damaged(error) from error

    def load_optimizers(self, networks: Networks, optimizers: list[Optimizer]) -> None:
        """Takes over the optimizers' states.

        Raises:
            CheckpointError: If they do not fit.
        """
        saved = self.state.get("optimizers")
        try:
            if isinstance(saved, list):  # as earlier versions wrote them: by numbers, not by names
                if any(is_sharded(weight) for weight in _names(networks)):
                    raise CheckpointError(f"{self.path} is of an older version; go on from it with parallel=ddp")
                for optimizer, one in zip(optimizers, saved, strict=True):
                    optimizer.load_state_dict(one)
                return
            _load_named(networks, optimizers, self.state["optimizers"])
        except CheckpointError:
            raise
        except _DAMAGED as error:
            raise self._damaged(error) from error

    def position(self, runtime: Runtime) -> dict[str, Any] | None:
        """Where this rank's stream stood; None if the data is not a stream.

        Raises:
            CheckpointError: If there were more or fewer ranks.
        """
        positions = self.state.get("positions")
        if positions is not None and len(positions) != runtime.num_ranks:
            raise CheckpointError(
                f"{self.path} was written by {len(positions)} ranks, each with its own place in the data, and cannot "
                f"be continued by {runtime.num_ranks}"
            )
        return positions[runtime.rank] if positions is not None else None

    def _damaged(self, error: BaseException) -> CheckpointError:
        return _damaged(self.path, error)


def read_newest(folder: Path) -> Saved | None:
    """The checkpoint with most updates behind it; None in a new run's folder.

    Raises:
        CheckpointError: If it is damaged. An older one is not taken in its place unasked.
    """
    numbered = _numbered(folder)
    saved = _read(numbered[-1][1]) if numbered else None
    earlier = folder / "checkpoint.pt"
    if earlier.exists():  # as earlier versions wrote it
        old = _read(earlier)
        saved = old if saved is None or old.step > saved.step else saved
    return saved


def save(
    folder: Path,
    step: int,
    networks: Networks,
    averaged: AveragedModel,
    optimizers: list[Optimizer],
    runtime: Runtime,
    *,
    position: dict[str, Any] | None = None,
    keep: int = 2,
) -> None:
    """Writes a checkpoint and removes all but the last `keep`; every rank must come here.

    Args:
        folder: The run's folder.
        step: Updates so far.
        networks: What is trained, by the names under which it is kept.
        averaged: The averages.
        optimizers: The optimizers of all networks.
        runtime: Where.
        position: Where this rank's stream stands, if the data is a stream.
        keep: How many checkpoints stay.

    Raises:
        CheckpointError: If it cannot be written; the earlier ones are as they were.
    """
    positions = runtime.gather(position)
    state = {
        "step": step,
        **{name: _on_cpu(network.state_dict(), runtime) for name, network in networks.items()},
        "averaged": _on_cpu(averaged.state_dict(), runtime),
        "optimizers": {name: _on_cpu(one, runtime) for name, one in _named(networks, optimizers).items()},
        "positions": None if position is None else positions,
    }
    if runtime.is_main:
        _write(folder, step, state)
        earlier = [path for _, path in _numbered(folder)[:-keep]]
        for path in (*earlier, *folder.glob("checkpoint.pt")):
            path.unlink()
    runtime.wait_for_all()


def last_step(folder: Path) -> int | None:
    """The number of updates behind the newest checkpoint."""
    numbered = _numbered(folder)
    return numbered[-1][0] if numbered else None


class _Reporting:
    """A file that keeps the first error of its disk, which torch.save replaces by a riddle."""

    def __init__(self, file: BinaryIO) -> None:
        self.file, self.error = file, None

    def write(self, data: Any) -> int:
        try:
            return self.file.write(data)
        except OSError as error:
            self.error: OSError | None = self.error or error
            raise

    def flush(self) -> None:
        self.file.flush()


def _write(folder: Path, step: int, state: dict[str, Any]) -> None:
    def into(file: BinaryIO) -> None:
        reporting = _Reporting(file)
        try:
            torch.save(state, reporting)  # type: ignore[arg-type]
        except (RuntimeError, OSError) as error:
            raise reporting.error or error from None

    before = last_step(folder)
    kept = "nothing was saved before" if before is None else f"the checkpoint of step {before} is kept"
    try:
        write_file_atomically(folder / f"checkpoint-{step:07d}.pt", into)
    except FlowTokError as error:
        raise CheckpointError(f"{error}; {kept}; make room, then the same command goes on from there") from error


def _numbered(folder: Path) -> list[tuple[int, Path]]:
    """The checkpoints of a folder with their steps, the newest last."""
    found = [(match, path) for path in folder.glob("checkpoint-*.pt") if (match := _NAME.fullmatch(path.name))]
    return sorted((int(match.group(1)), path) for match, path in found)


def _read(path: Path) -> Saved:
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        return Saved(path=path, step=int(state["step"]), state=state)
    except _DAMAGED as error:
        raise _damaged(path, error) from error


def _damaged(path: Path, error: BaseException) -> CheckpointError:
    others = [step for step, other in _numbered(path.parent) if other != path]
    back = f"go on from step {others[-1]}" if others else "start this stage again"
    detail = " ".join(str(error).split())[:200]
    return CheckpointError(f"{path} is damaged ({detail}); delete it to {back}")


def _on_cpu(state: dict[str, Any], runtime: Runtime) -> dict[str, Any]:
    """Tensors put together from all ranks and brought to the CPU; only the main rank keeps them."""
    collected = {}
    for name, value in state.items():
        value = whole(value).detach().cpu() if isinstance(value, Tensor) else value
        if runtime.is_main:
            collected[name] = value
    return collected


def _names(networks: Networks) -> dict[nn.Parameter, str]:
    return {weight: f"{name}.{key}" for name, network in networks.items() for key, weight in network.named_parameters()}


def _named(networks: Networks, optimizers: list[Optimizer]) -> dict[str, dict[str, Any]]:
    """The optimizers' states by the names of the weights: they hold however the weights are grouped."""
    names = _names(networks)
    return {
        names[weight]: optimizer.state[weight]
        for optimizer in optimizers
        for group in optimizer.param_groups
        for weight in group["params"]
        if weight in optimizer.state
    }


def _load_named(networks: Networks, optimizers: list[Optimizer], saved: dict[str, dict[str, Any]]) -> None:
    names = _names(networks)
    for optimizer in optimizers:
        weights = [weight for group in optimizer.param_groups for weight in group["params"]]
        numbered = {
            number: {
                # The count of steps is no share of a weight, though a weight of one number looks like it.
                key: value if key == "step" else spread_like(value, weight)
                for key, value in saved[names[weight]].items()
            }
            for number, weight in enumerate(weights)
            if names[weight] in saved
        }
        optimizer.load_state_dict({"state": numbered, "param_groups": optimizer.state_dict()["param_groups"]})
