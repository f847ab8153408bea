"""Checkpoints of a run: written beside the old ones and renamed, the last few kept, found again after any stop.

A checkpoint is one safetensors file with weights, averages and optimizer states, all whole, and in its metadata where
the data stands: it holds for any number of ranks. What is drawn at random in a step follows from the seed and the
step's number (feed.py), so there is no generator to keep.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.swa_utils import AveragedModel

from flowtok.errors import CheckpointError, FlowTokError
from flowtok.files import replacing
from flowtok.train.runtime import Runtime, spread_like, whole

Networks = Mapping[str, nn.Module]

_NAME = re.compile(r"checkpoint-(\d+)\.safetensors")
_AVERAGED, _OPTIMIZERS = "averaged", "optimizers"
_DAMAGED = (SafetensorError, RuntimeError, KeyError, ValueError, TypeError, OSError)


@dataclass(frozen=True, kw_only=True)
class Saved:
    """A checkpoint that was opened: its numbers stay in the file until they are asked for.

    The file holds weights as `network/weight`, averages as `averaged/...`, optimizer states as
    `optimizers/network.weight/value`. It is mapped, so that the ranks of a machine share what they read of it.

    Attributes:
        path: Its file.
        step: Updates that it has behind it.
        positions: Where the stream of each rank stood, if the data is a stream.
        ended_early: The run was over then, by the clock, though it had planned more steps.
    """

    path: Path
    step: int
    positions: list[dict[str, Any]] | None
    ended_early: bool

    def load_weights(self, networks: Networks, averaged: AveragedModel) -> None:
        """Takes over the weights and the averages; before they are spread over ranks.

        Raises:
            CheckpointError: If they do not fit.
        """
        try:
            for name, network in networks.items():
                network.load_state_dict(self._under(name))
            averaged.load_state_dict(self._under(_AVERAGED))
        except _DAMAGED as error:
            raise self._damaged(error) from error

    def load_optimizers(self, networks: Networks, optimizers: list[Optimizer]) -> None:
        """Takes over the optimizers' states.

        Raises:
            CheckpointError: If they do not fit.
        """
        states: dict[str, dict[str, Tensor]] = {}
        try:
            for key, value in self._under(_OPTIMIZERS).items():
                weight, _, name = key.rpartition("/")
                states.setdefault(weight, {})[name] = value
            _load_named(networks, optimizers, states)
        except _DAMAGED as error:
            raise self._damaged(error) from error

    def position(self, runtime: Runtime) -> dict[str, Any] | None:
        """Where this rank's stream stood; None if the data is not a stream.

        Raises:
            CheckpointError: If there were more or fewer ranks.
        """
        if self.positions is None:
            return None
        if len(self.positions) != runtime.num_ranks:
            raise CheckpointError(
                f"{self.path} was written by {len(self.positions)} ranks, each with its own place in the data, and "
                f"cannot be continued by {runtime.num_ranks}"
            )
        return self.positions[runtime.rank]

    def _under(self, name: str) -> dict[str, Tensor]:
        with safe_open(self.path, framework="pt") as file:
            keys = [key for key in file.keys() if key.startswith(f"{name}/")]  # noqa: SIM118
            return {key.removeprefix(f"{name}/"): file.get_tensor(key) for key in keys}

    def _damaged(self, error: BaseException) -> CheckpointError:
        return _damaged(self.path, error)


def read_newest(folder: Path) -> Saved | None:
    """The checkpoint with most updates behind it; None in a new run's folder.

    Raises:
        CheckpointError: If it is damaged. An older one is not taken in its place unasked.
    """
    numbered = _numbered(folder)
    return _read(numbered[-1][1]) if numbered else None


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
    ended_early: bool = False,
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
        ended_early: The run is over with it, though it had planned more steps.

    Raises:
        CheckpointError: If it cannot be written; the earlier ones are as they were.
    """
    positions = runtime.gather(position)
    tensors = {
        f"{name}/{key}": value
        for name, network in {**networks, _AVERAGED: averaged}.items()
        for key, value in network.state_dict().items()
    } | {
        f"{_OPTIMIZERS}/{weight}/{key}": value
        for weight, state in _named(networks, optimizers).items()
        for key, value in state.items()
    }
    tensors = _on_cpu(tensors, runtime)
    if runtime.is_main:
        about = {"step": step, "positions": None if position is None else positions, "ended_early": ended_early}
        _write(folder, step, tensors, {name: json.dumps(value) for name, value in about.items()})
        for _, path in _numbered(folder)[:-keep]:
            path.unlink()
    runtime.wait_for_all()


def last_step(folder: Path) -> int | None:
    """The number of updates behind the newest checkpoint."""
    numbered = _numbered(folder)
    return numbered[-1][0] if numbered else None


def _write(folder: Path, step: int, tensors: dict[str, Tensor], about: dict[str, str]) -> None:
    before = last_step(folder)
    kept = "nothing was saved before" if before is None else f"the checkpoint of step {before} is kept"
    try:
        with replacing(folder / f"checkpoint-{step:07d}.safetensors") as temporary:
            try:
                save_file(tensors, temporary, metadata=about)
            except SafetensorError as error:  # wraps what the disk said
                raise OSError(str(error).rpartition("I/O error: ")[2]) from error
    except FlowTokError as error:
        raise CheckpointError(f"{error}; {kept}; make room, then the same command goes on from there") from error


def _numbered(folder: Path) -> list[tuple[int, Path]]:
    """The checkpoints of a folder with their steps, the newest last."""
    found = [(match, path) for path in folder.glob("checkpoint-*.safetensors") if (match := _NAME.fullmatch(path.name))]
    return sorted((int(match.group(1)), path) for match, path in found)


def _read(path: Path) -> Saved:
    try:
        with safe_open(path, framework="pt") as file:
            about = file.metadata()
        return Saved(
            path=path,
            step=int(about["step"]),
            positions=json.loads(about["positions"]),
            ended_early=json.loads(about.get("ended_early", "false")),  # earlier versions ran to the end
        )
    except _DAMAGED as error:
        raise _damaged(path, error) from error


def _damaged(path: Path, error: BaseException) -> CheckpointError:
    others = [step for step, other in _numbered(path.parent) if other != path]
    back = f"go on from step {others[-1]}" if others else "start this stage again"
    detail = " ".join(str(error).split())[:200]
    return CheckpointError(f"{path} is damaged ({detail}); delete it to {back}")


def _on_cpu(tensors: dict[str, Tensor], runtime: Runtime) -> dict[str, Tensor]:
    """Tensors put together from all ranks and brought to the CPU; only the main rank keeps them."""
    collected, seen = {}, set()
    for name, value in tensors.items():
        value = whole(value).detach().cpu().contiguous()
        if runtime.is_main:
            # safetensors writes a weight that two networks share under both names only if each has its own memory.
            place = value.untyped_storage().data_ptr()
            collected[name] = value.clone() if place in seen else value
            seen.add(place)
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
                # The count of steps is no share of a weight, though a weight of one number looks like it. Copied: the
                # optimizer would otherwise hold on to the file, also after it is gone.
                key: (value if key == "step" else spread_like(value, weight)).clone()
                for key, value in saved[names[weight]].items()
            }
            for number, weight in enumerate(weights)
            if names[weight] in saved
        }
        optimizer.load_state_dict({"state": numbered, "param_groups": optimizer.state_dict()["param_groups"]})
