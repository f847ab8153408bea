"""The only file of the training room that knows devices, ranks, precision and torch.distributed.

Everything else speaks of a `Runtime`. Started plainly it is one process; started by torchrun it is one rank of many.
"""

import atexit
import copy
import math
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from flowtok.nn.precision import best_dtype
from flowtok.train.blocks import layers_of

Precision = Literal["auto", "bfloat16", "float32"]
Parallel = Literal["ddp", "fsdp"]


class LossOf(nn.Module):
    """A function of a batch as a module with the weights that it uses: what PyTorch's parallel engines run."""

    def __init__(
        self, networks: Iterable[nn.Module], loss: Callable[[dict[str, Any]], tuple[Tensor, dict[str, Tensor]]]
    ) -> None:
        super().__init__()
        self.networks, self.loss = nn.ModuleList(networks), loss

    def forward(self, batch: dict[str, Any]) -> tuple[Tensor, dict[str, Tensor]]:
        return self.loss(batch)


def ranks_started() -> int:
    """How many processes torchrun has started; 1 without it."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def _leave() -> None:
    """Leaves the process group in order: a process that ends with its threads running is aborted now and then."""
    if dist.is_initialized():
        dist.destroy_process_group()


@dataclass(frozen=True, kw_only=True)
class Runtime:
    """Where this process stands: its device and its rank among `num_ranks`."""

    device: torch.device
    rank: int = 0
    num_ranks: int = 1

    @classmethod
    def start(cls, *, device: str | None = None) -> "Runtime":
        """Joins the process group that torchrun prepared, if any, and picks the best device at hand."""
        num_ranks, rank = ranks_started(), int(os.environ.get("RANK", "0"))
        if device is None:
            device = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
        chosen = torch.device(device)
        if chosen.type == "cuda":
            chosen = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
            torch.cuda.set_device(chosen)
        if num_ranks > 1 and not dist.is_initialized():
            dist.init_process_group("nccl" if chosen.type == "cuda" else "gloo")
            atexit.register(_leave)
        return cls(device=chosen, rank=rank, num_ranks=num_ranks)

    def place(self) -> dict[str, int]:
        """This rank among all, as streams of data want to know it."""
        return {"rank": self.rank, "num_ranks": self.num_ranks}

    @property
    def is_main(self) -> bool:
        """True on the one rank that writes files and shows progress."""
        return self.rank == 0

    def autocast(self, precision: Precision) -> AbstractContextManager[Any]:
        """Runs matrix products in the given precision; weights, norms and losses stay in float32.

        `auto` is what the device does best, see nn/precision.py.
        """
        in_bfloat16 = precision == "bfloat16" or (precision == "auto" and best_dtype(self.device) is torch.bfloat16)
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=in_bfloat16)

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """Runs networks that are not trained: in float32, on a GPU with products in TF32, and without gradients."""
        before = torch.get_float32_matmul_precision()
        if self.device.type == "cuda":
            torch.set_float32_matmul_precision("high")
        try:
            with torch.no_grad(), torch.autocast(self.device.type, enabled=False):
                yield
        finally:
            torch.set_float32_matmul_precision(before)

    def pinned(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Puts the tensors of a batch where a GPU can fetch them while it computes; elsewhere nothing is done."""
        if self.device.type != "cuda":
            return batch
        return {name: value.pin_memory() if isinstance(value, Tensor) else value for name, value in batch.items()}

    def to_device(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Moves the tensors of a batch to the device; anything else passes."""
        return {
            name: value.to(self.device, non_blocking=True) if isinstance(value, Tensor) else value
            for name, value in batch.items()
        }

    # Many ranks, one training.

    def parallel(self, losses: LossOf, kind: Parallel) -> nn.Module:
        """The losses as all ranks compute them together: gradients are averaged over the ranks as they come.

        Args:
            losses: The losses of one rank, with the weights.
            kind: `ddp`, where every rank holds all weights, or `fsdp`, where each holds a share, of the first network
                layer by layer (see `shard`). On one rank there is nothing to share.
        """
        if self.num_ranks == 1:
            return losses
        if kind == "fsdp":
            self.shard(losses, losses.networks[0])
            return losses
        # A stage may leave weights without a gradient, always or in some steps.
        return DistributedDataParallel(
            losses,
            device_ids=[self.device] if self.device.type == "cuda" else None,
            broadcast_buffers=False,
            gradient_as_bucket_view=True,
            find_unused_parameters=True,
        )

    def shard(self, modules: nn.Module, layered: nn.Module | None = None) -> None:
        """Spreads weights over the ranks with FSDP2; single numbers stay whole.

        Args:
            modules: Whose weights.
            layered: The part of it that is spread layer by layer, the rest in one piece; all of it if None.
        """
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard

        mesh = init_device_mesh(self.device.type, (self.num_ranks,))
        single = {weight for weight in modules.parameters() if weight.ndim == 0}
        for layer in (*layers_of(layered or modules), modules):
            fully_shard(layer, mesh=mesh, ignored_params=single)

    def keeping_back(self, losses: nn.Module, keep: bool) -> AbstractContextManager[Any]:
        """Adds gradients up on this rank without an exchange, while further parts of the batch follow."""
        return losses.no_sync() if keep and isinstance(losses, DistributedDataParallel) else nullcontext()

    def finish_gradients(self, parameters: Iterable[nn.Parameter], limit: float | None) -> Tensor:
        """Averages what the engine leaves to us, scales all gradients down to a norm of `limit`, returns the norm."""
        with_gradient = [parameter for parameter in parameters if parameter.grad is not None]
        kinds = {is_shared: [p for p in with_gradient if is_sharded(p) == is_shared] for is_shared in (False, True)}
        limit = math.inf if limit is None else limit
        if not kinds[True]:
            return nn.utils.clip_grad_norm_(with_gradient, limit)
        norms = []
        for parameter in kinds[False]:
            assert parameter.grad is not None
            dist.all_reduce(parameter.grad)
            parameter.grad /= self.num_ranks
        for members in kinds.values():
            gradients = [parameter.grad for parameter in members if parameter.grad is not None]
            if gradients:
                norms.append(whole(nn.utils.get_total_norm(gradients)))
        norm = torch.stack(norms).norm()
        share = (limit / (norm + 1e-6)).clamp(max=1.0).item()
        for parameter in with_gradient:
            assert parameter.grad is not None
            parameter.grad.mul_(share)
        return norm

    def average(self, values: dict[str, Tensor]) -> dict[str, float]:
        """The means of some scalars over all ranks; one is not finite everywhere if it is so on one rank."""
        if not values:
            return {}
        means = torch.stack([value.detach().float().to(self.device) for value in values.values()])
        if self.num_ranks > 1:
            dist.all_reduce(means)
        return {name: mean / self.num_ranks for name, mean in zip(values, means.tolist(), strict=True)}

    def gather(self, value: Any) -> list[Any]:
        """Some plain data of every rank, on every rank."""
        if self.num_ranks == 1:
            return [value]
        gathered: list[Any] = [None] * self.num_ranks
        dist.all_gather_object(gathered, value)
        return gathered

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


ON_CPU = Runtime(device=torch.device("cpu"))
"""Where frozen networks run that make training data."""


def of_all_ranks(tensor_BX: Tensor) -> Tensor:
    """The samples of all ranks in their order; gradients flow back to the rank that a sample came from."""
    if not dist.is_initialized():
        return tensor_BX
    from torch.distributed.nn.functional import all_gather

    return torch.cat(all_gather(tensor_BX.contiguous()))


def generator_of(*seeds: int) -> torch.Generator:
    """A generator that depends on the given numbers alone: the same call, the same draws, on any rank."""
    mixed = 0
    for seed in seeds:
        mixed = (mixed * 1_000_003 + seed + 1) % (2**62)
    return torch.Generator().manual_seed(mixed)


def is_sharded(tensor: Tensor) -> bool:
    """Whether this rank holds only a share of the tensor."""
    return hasattr(tensor, "full_tensor")


def whole(tensor: Tensor) -> Tensor:
    """The tensor with the shares of all ranks, who must all ask for it."""
    return tensor.full_tensor() if is_sharded(tensor) else tensor  # type: ignore[attr-defined]


def spread_like(tensor: Tensor, weight: Tensor) -> Tensor:
    """This rank's share of a whole tensor, cut as the weight of the same shape is."""
    if not is_sharded(weight) or tensor.shape != weight.shape:
        return tensor
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(tensor.to(weight.device), weight.device_mesh, weight.placements)  # type: ignore[attr-defined]


def outline_of(modules: nn.Module) -> nn.Module:
    """A copy of a network that has its buffers but no weights; `filled` gives it some."""
    empty = {
        id(weight): nn.Parameter(weight.detach().to("meta"), requires_grad=False) for weight in modules.parameters()
    }
    return copy.deepcopy(modules, empty)


def filled(outline: nn.Module, sharded: nn.Module) -> nn.Module:
    """A whole network with the weights of a sharded one; all ranks must ask for it."""
    network = copy.deepcopy(outline)
    network.load_state_dict({name: whole(value) for name, value in sharded.state_dict().items()}, assign=True)
    return network
