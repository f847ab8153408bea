"""The only file of the training room that knows devices, ranks, precision and torch.distributed.

Everything else speaks of a `Runtime`. Started plainly it is one process; started by torchrun it is one rank of many.
"""

import os
from collections.abc import Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn

Precision = Literal["bfloat16", "float32"]


@dataclass(frozen=True, kw_only=True)
class Runtime:
    """Where this process stands: its device and its rank among `num_ranks`."""

    device: torch.device
    rank: int = 0
    num_ranks: int = 1

    @classmethod
    def start(cls, *, device: str | None = None) -> "Runtime":
        """Joins the process group that torchrun prepared, if any, and picks the best device at hand."""
        num_ranks, rank = int(os.environ.get("WORLD_SIZE", "1")), int(os.environ.get("RANK", "0"))
        if device is None:
            device = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
        chosen = torch.device(device)
        if chosen.type == "cuda":
            chosen = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
            torch.cuda.set_device(chosen)
        if num_ranks > 1 and not dist.is_initialized():
            dist.init_process_group("nccl" if chosen.type == "cuda" else "gloo")
        return cls(device=chosen, rank=rank, num_ranks=num_ranks)

    @property
    def is_main(self) -> bool:
        """True on the one rank that writes files and shows progress."""
        return self.rank == 0

    def autocast(self, precision: Precision) -> AbstractContextManager[Any]:
        """Runs matrix products in the given precision; weights, norms and losses stay in float32."""
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=precision == "bfloat16")

    def generator(self, *seeds: int) -> torch.Generator:
        """A generator that depends on the given numbers and on the rank alone: the same call, the same draws."""
        mixed = 0
        for seed in (*seeds, self.rank):
            mixed = (mixed * 1_000_003 + seed + 1) % (2**62)
        return torch.Generator().manual_seed(mixed)

    def to_device(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Moves the tensors of a batch to the device; anything else passes."""
        return {
            name: value.to(self.device, non_blocking=True) if isinstance(value, Tensor) else value
            for name, value in batch.items()
        }

    def average_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Replaces the gradients by their mean over all ranks, in one flat exchange."""
        if self.num_ranks == 1:
            return
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        flat = torch.cat([gradient.flatten() for gradient in gradients])
        dist.all_reduce(flat)
        flat /= self.num_ranks
        for gradient, part in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
            gradient.copy_(part.view_as(gradient))

    def average(self, value: Tensor) -> float:
        """The mean of a scalar over all ranks; not finite everywhere if it is so on one."""
        total = value.detach().float().clone()
        if self.num_ranks > 1:
            dist.all_reduce(total)
        return total.item() / self.num_ranks

    @torch.no_grad()
    def spread_from_main(self, modules: nn.Module) -> None:
        """Gives every rank the weights of the main one."""
        if self.num_ranks > 1:
            for tensor in modules.state_dict().values():
                dist.broadcast(tensor, src=0)

    def wait_for_all(self) -> None:
        """Returns when every rank has come here."""
        if self.num_ranks > 1:
            dist.barrier()
