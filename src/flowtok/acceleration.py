"""What makes a model faster or smaller: kept tables of time, packed layers, int8, torch.compile, a fixed schedule.

Changes how the networks compute, never what is asked of them; pipeline.py does the asking. What each of them gains and
costs: docs/speed.md.
"""

from collections.abc import Callable, Iterable
from typing import Any, Self

import torch
from torch import Tensor, nn

from flowtok.components import Model
from flowtok.errors import FlowTokError
from flowtok.flow.follow import Follow, Schedule, followed
from flowtok.flow.solver import CHOOSES_ITS_STEPS
from flowtok.flow.tables import Tables
from flowtok.flow.transformer import VelocityTransformer
from flowtok.image.tokenizer import ImageTokenizer
from flowtok.nn.int8 import round_linears
from flowtok.nn.packed import can_pack, pack_linears

INT8_DEVICES = ("cpu", "cuda")
MOST_SHAPES = 64
"""Shapes of a compiled block that torch keeps; past them it would quietly compute as if nothing were compiled."""


class Accelerated(Model):
    """A model whose flow keeps what time tells the network, and whose networks can be made faster or smaller."""

    def __init__(self, **parts: Any) -> None:
        super().__init__(**parts)
        self._tables = Tables()
        self._in_int8 = False
        self._packed = False
        self._compiled = False

    def _flow(self, schedule: Schedule, guidance_scale: float, interval: tuple[float, float] = (0.0, 1.0)) -> Follow:
        """The flow along a schedule; its table is kept for later calls, with other prompts and scales too."""
        table = self._tables.of(self.velocity, schedule)
        return followed(self.velocity, schedule, guidance_scale, interval, table=table)

    @property
    def precision(self) -> str:
        """What the networks compute in: float32, bfloat16, float16, or int8 in the large layers."""
        return "int8" if self._in_int8 else str(self._dtype()).removeprefix("torch.")

    def _dtype(self) -> torch.dtype:
        """Type of the weights; of the large layers, where the model has them."""
        parts = (self.parts.get("velocity"), self.parts.get("image_tokenizer"), *self.parts.values())
        return next(weight.dtype for part in parts if part is not None for weight in part.parameters())

    @property
    def can_pack(self) -> bool:
        """True where `pack` works: on a CPU whose torch has the product, in float32 or bfloat16, eager."""
        return self._why_not_packed() is None

    def _why_not_packed(self) -> str | None:
        if self.device.type != "cpu":
            return f"layers are packed for a CPU, and the model is on {self.device}"
        if self._in_int8:
            return f"model {self.name!r} computes in int8, which has a product of its own"
        if self._compiled:
            return f"model {self.name!r} is compiled; torch.compile does not take packed layers"
        if not can_pack(self._dtype()):
            return f"torch {torch.__version__} has no packed product in {self.precision} for this processor"
        return None

    def pack(self) -> Self:
        """Lays the weights of the large layers out as oneDNN's products read them; not to be taken back.

        For CPUs, in float32 and bfloat16: the layers that `round_to_int8` takes, and those of all that reads and writes
        words. What time tells the network stays as it is, since that is computed once a schedule. Results differ from
        those before in the last digits. The model can be saved, but not moved. A second call changes nothing.

        Raises:
            FlowTokError: The model is not on a CPU, in int8, compiled, or this torch has no such product.
        """
        if self._packed:
            return self
        if (reason := self._why_not_packed()) is not None:
            raise FlowTokError(reason)
        if "velocity" in self.parts:
            pack_velocity(self.velocity)
        if "image_tokenizer" in self.parts:
            pack_tokenizer(self.image_tokenizer)
        for name in ("text_encoder", "text_projector", "text_decoder"):
            if name in self.parts:
                pack_linears(self.parts[name])
        self._packed = True
        return self

    def to(self, device: torch.device | str) -> Self:
        """Moves all components; an error where the layers are packed for the CPU."""
        if self._packed and torch.device(device).type != "cpu":
            raise FlowTokError(f"model {self.name!r} is packed for the CPU; open it again with device={str(device)!r}")
        return super().to(device)

    def round_to_int8(self) -> Self:
        """Computes the large layers of the flow and of the image tokenizer in int8; not to be taken back.

        The language encoder, the text projector, the words' decoder and what time tells the network stay as they are.
        A model that was compiled before compiles again when it is next used.

        Raises:
            FlowTokError: The model is on a device that does not multiply int8, or is rounded or packed already.
        """
        if self.device.type not in INT8_DEVICES:
            raise FlowTokError(f"int8 is for {' and '.join(INT8_DEVICES)}, and the model is on {self.device}")
        if self._in_int8:
            raise FlowTokError(f"model {self.name!r} computes in int8 already")
        if self._packed:
            raise FlowTokError(f"model {self.name!r} is packed; open it again to round it to int8")
        if "velocity" in self.parts:
            round_velocity(self.velocity)
        if "image_tokenizer" in self.parts:
            round_tokenizer(self.image_tokenizer)
        self._in_int8 = True
        return self

    def compile(self) -> Self:
        """Compiles the blocks of velocity network and image tokenizer with torch.compile when they are first used.

        That takes seconds, again for each other batch size (docs/speed.md). On a GPU the velocity network, which is
        asked many times for a picture, is compiled as a whole and recorded as a CUDA graph. A second call changes
        nothing.

        Raises:
            FlowTokError: The model is packed.
        """
        if self._compiled:
            return self
        if self._packed:
            raise FlowTokError(f"model {self.name!r} is packed; open it again to compile it")
        if "velocity" in self.parts:
            compile_velocity(self.velocity, self.device)
        if "image_tokenizer" in self.parts:
            compile_tokenizer(self.image_tokenizer)
        self._compiled = True
        return self

    @torch.inference_mode()
    def fix_schedule(self, **sampling: Any) -> int:
        """Settles how the model is sampled and drops the weights that only other steps would need, a third of a flow.

        Afterwards the model draws and captions with these steps, solvers and grid alone, with any guidance and prompt;
        others, another device, and saving the model are errors.

        Args:
            sampling: Fields of SamplingConfig that differ from the model's own; they become the model's own.

        Returns:
            Bytes of weights that were dropped.

        Raises:
            FlowTokError: A field that is out of range, or a solver that chooses its own steps.
        """
        chosen = self.sampling.but(**sampling)
        if CHOOSES_ITS_STEPS in (chosen.solver, chosen.caption_solver):
            raise FlowTokError(f"{CHOOSES_ITS_STEPS} chooses its own steps, so there is no schedule to fix")
        self.sampling = chosen
        return self._tables.fix(self.velocity, [chosen.to_image, chosen.to_text])


def round_velocity(velocity: VelocityTransformer) -> int:
    """Rounds the layers of a velocity network's blocks to int8, in place; returns how many."""
    rounded = (
        round_linears(part) for block in velocity.typed_blocks() for part in (block.attention, block.feed_forward)
    )
    return sum(rounded)


def round_tokenizer(tokenizer: ImageTokenizer) -> int:
    """Rounds the layers of the blocks on both sides of an image tokenizer to int8, in place; returns how many."""
    return sum(round_linears(side.transformer) for side in (tokenizer.encoder, tokenizer.decoder))


def pack_velocity(velocity: VelocityTransformer) -> int:
    """Packs the layers of a velocity network's blocks for oneDNN, in place; returns how many."""
    return sum(
        pack_linears(part) for block in velocity.typed_blocks() for part in (block.attention, block.feed_forward)
    )


def pack_tokenizer(tokenizer: ImageTokenizer) -> int:
    """Packs the layers of the blocks on both sides of an image tokenizer for oneDNN, in place; returns how many."""
    return sum(pack_linears(side.transformer) for side in (tokenizer.encoder, tokenizer.decoder))


def compile_velocity(velocity: VelocityTransformer, device: torch.device | str) -> None:
    """Compiles a velocity network for a device: on a GPU as a whole, recorded as a CUDA graph, else block by block."""
    if torch.device(device).type == "cuda":
        whole: Any = velocity
        compiled = torch.compile(velocity.forward_modulated, dynamic=False, mode="reduce-overhead")
        whole.forward_modulated = _keeping_results(compiled)
    else:
        compile_blocks(velocity.blocks)


def compile_tokenizer(tokenizer: ImageTokenizer) -> None:
    """Compiles the blocks on both sides of an image tokenizer."""
    for side in (tokenizer.encoder, tokenizer.decoder):
        compile_blocks(side.transformer)


def compile_blocks(blocks: Iterable[nn.Module]) -> None:
    """Compiles blocks that differ in their weights alone: the first is compiled, the others run the same code.

    Weights are inputs of what torch compiles, so it finds that code again for each block. It keeps code for a number
    of shapes, which batches of several sizes would exceed, as both sides of a tokenizer share one class.
    """
    import torch._dynamo as dynamo  # slow to import

    dynamo.config.recompile_limit = max(dynamo.config.recompile_limit, MOST_SHAPES)
    for block in blocks:
        block.compile(dynamic=False)


def _keeping_results(graphed: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """A function that runs as a CUDA graph, whose results outlive the next call, which writes where they lay."""

    def call(*given: Any) -> Tensor:
        torch.compiler.cudagraph_mark_step_begin()
        return graphed(*given).clone()

    return call
