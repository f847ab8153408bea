"""Ours beside peers from diffusers with random weights, each in its published 256 px setting, in one run.

    pip install -e '.[bench]'
    python benchmarks/peers.py [--batches 1 8] [--dtype float32] [--peers sd15 pixart]

Stable Diffusion 1.5: CLIP text tower, UNet with 25 steps, image decoder. PixArt-alpha: transformer with 20 steps and
the same image decoder; its text encoder (T5-XXL, 4.8 billion parameters) is left out, in its favour. Ours: XL, all
parts, 20 guided Euler steps, and the fast setting of sampling.py. All are guided, both branches in one batch.

Steps cost the same, so --steps of them are measured after one that is not: of a peer the shortest counts, of ours the
median. Takes about 10 minutes on two CPU cores with AVX-512; up to 6 GB of memory.
"""

import argparse
import gc
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from measuring import clocked, counted, setting
from plain_sampling import in_type, make_parts
from sampling import FAST_GRID, FAST_SOLVER, FAST_STEPS, STEPS, Way, measure
from torch import nn

from flowtok.nn.packed import can_pack
from flowtok.nn.precision import best_dtype


@dataclass(frozen=True, kw_only=True)
class Timed:
    """A way of drawing.

    Attributes:
        name: What it is.
        steps: Of its sampler.
        before: Seconds of the language encoder for a batch.
        step: Seconds of a guided step.
        after: Seconds of the image decoder.
        operations: Of one picture.
    """

    name: str
    steps: int
    before: float
    step: float
    after: float
    operations: float

    def seconds(self, batch: int) -> float:
        """Of a picture."""
        return (self.before + self.steps * self.step + self.after) / batch


def built(make: Callable[[], Any], dtype: torch.dtype) -> Any:
    """A network with random weights, without the time that its own first weights take."""
    with torch.device("meta"):
        network = make()
    network.to_empty(device="cpu")
    with torch.no_grad():
        for weight in (*network.parameters(), *network.buffers()):
            if weight.is_floating_point():
                weight.normal_(std=0.02)
            else:
                weight.copy_(torch.arange(weight.numel()).view(weight.shape))  # position ids
    return network.to(dtype).eval().requires_grad_(False)


def make_peers(dtype: torch.dtype) -> dict[str, Callable[[], tuple[str, int, nn.Module, Callable[[int], Any]]]]:
    """For each peer: its name, steps, network and a function that makes one guided step of a batch."""
    from diffusers import PixArtTransformer2DModel, UNet2DConditionModel

    def sd15() -> tuple[str, int, nn.Module, Callable[[int], Any]]:
        network = built(
            lambda: UNet2DConditionModel(
                sample_size=64, cross_attention_dim=768, attention_head_dim=8, block_out_channels=(320, 640, 1280, 1280)
            ),
            dtype,
        )

        def step(batch: int) -> Any:
            words = torch.randn(2 * batch, 77, 768, dtype=dtype)
            return network(torch.randn(2 * batch, 4, 32, 32, dtype=dtype), 500, words)

        return "Stable Diffusion 1.5", 25, network, step

    def pixart() -> tuple[str, int, nn.Module, Callable[[int], Any]]:
        network = built(
            lambda: PixArtTransformer2DModel(
                sample_size=32, num_layers=28, num_attention_heads=16, attention_head_dim=72, in_channels=4,
                out_channels=8, patch_size=2, cross_attention_dim=1152, caption_channels=4096,
                use_additional_conditions=False,
            ),
            dtype,
        )  # fmt: skip

        def step(batch: int) -> Any:
            return network(
                torch.randn(2 * batch, 4, 32, 32, dtype=dtype),
                encoder_hidden_states=torch.randn(2 * batch, 120, 4096, dtype=dtype),
                timestep=torch.full((2 * batch,), 500),
                added_cond_kwargs={"resolution": None, "aspect_ratio": None},
            )

        return "PixArt-alpha, without its text encoder", 20, network, step

    return {"sd15": sd15, "pixart": pixart}


def image_decoder(dtype: torch.dtype) -> Any:
    """The image decoder of both peers."""
    from diffusers import AutoencoderKL

    return built(
        lambda: AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
            block_out_channels=(128, 256, 512, 512), layers_per_block=2, latent_channels=4, sample_size=256,
        ),
        dtype,
    )  # fmt: skip


@torch.inference_mode()
def measure_peer(
    peer: tuple[str, int, nn.Module, Callable[[int], Any]], decoder: Any, text: Any, batch: int, measured: int,
    dtype: torch.dtype,
) -> Timed:  # fmt: skip
    """Times one peer at one batch."""
    name, steps, _, step = peer
    operations = steps * counted(lambda: step(1)) + counted(
        lambda: decoder.decode(torch.randn(1, 4, 32, 32, dtype=dtype))
    )
    ids = torch.randint(1, 1000, (2 * batch, 77))
    before = 0.0
    if name.startswith("Stable"):
        text(input_ids=ids)
        before, _ = clocked(lambda: text(input_ids=ids))
    step(batch)
    shortest = min(clocked(lambda: step(batch))[0] for _ in range(measured))
    latents = torch.randn(batch, 4, 32, 32, dtype=dtype)
    after, _ = clocked(lambda: decoder.decode(latents))
    return Timed(name=name, steps=steps, before=before, step=shortest, after=after, operations=operations)


def packs(kind: str) -> bool:
    """Whether the commands pack the layers in this type."""
    return kind != "int8" and can_pack(getattr(torch, kind))


def ours(batches: list[int], measured: int, dtype: torch.dtype) -> dict[int, list[Timed]]:
    """Our XL in the same type, packed where the commands pack it, and in int8, with 20 steps and with few."""
    parts = make_parts("XL")
    kinds = (str(dtype).removeprefix("torch."), "int8")
    ways = [Way(name=kind, parts=in_type(parts, kind, packed=packs(kind))) for kind in kinds]
    found: dict[int, list[Timed]] = {batch: [] for batch in batches}
    for batch in batches:
        measure(ways, batch, measured)
        for kind, one in zip(kinds, ways, strict=True):
            for steps, how in ((STEPS, f"euler {STEPS}"), (FAST_STEPS, f"{FAST_SOLVER} {FAST_GRID} {FAST_STEPS}")):
                found[batch].append(
                    Timed(name=f"ours, XL, {kind}, {how}", steps=steps, before=one.text, step=one.step,
                          after=one.decode, operations=0.0)
                )  # fmt: skip
    return found


def main() -> None:
    """Measures and prints a table."""
    parser = argparse.ArgumentParser(description=str(__doc__), formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--steps", type=int, default=5, help="steps that are measured; default 5")
    parser.add_argument("--dtype", default="auto", choices=["auto", "float32", "bfloat16"])
    parser.add_argument("--peers", nargs="+", default=["sd15", "pixart"], choices=["sd15", "pixart"])
    given = parser.parse_args()
    dtype = best_dtype("cpu") if given.dtype == "auto" else getattr(torch, given.dtype)
    begun = time.perf_counter()
    print(f"{setting()}; peers in {dtype}\n", flush=True)
    mine = ours(given.batches, given.steps, dtype)
    gc.collect()
    from transformers import CLIPTextConfig, CLIPTextModel

    makers = make_peers(dtype)
    text = built(
        lambda: CLIPTextModel(
            CLIPTextConfig(hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12)
        ),
        dtype,
    )
    decoder = image_decoder(dtype)
    print("| batch | what | steps | TFLOP a picture | s a step | s a picture | times ours (each) |")
    print("|---|---|---|---|---|---|---|", flush=True)
    for batch in given.batches:
        for one in mine[batch]:
            print(f"| {batch} | {one.name} | {one.steps} | | {one.step:.3f} | {one.seconds(batch):.3f} | |", flush=True)
    for chosen in given.peers:
        peer = makers[chosen]()
        for batch in given.batches:
            one = measure_peer(peer, decoder, text, batch, given.steps, dtype)
            ratios = " / ".join(f"{one.seconds(batch) / own.seconds(batch):.2f}" for own in mine[batch])
            print(
                f"| {batch} | {one.name} | {one.steps} | {one.operations / 1e12:.2f} | {one.step:.3f} | "
                f"{one.seconds(batch):.3f} | {ratios} |",
                flush=True,
            )
        del peer
        gc.collect()
    print(f"\nThe last column divides by the lines of ours of the same batch, in their order. "
          f"{time.perf_counter() - begun:.0f} s in all.", flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
