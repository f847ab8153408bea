"""Speed and memory of every training stage, beside a plain way of doing the same, all in one run.

    python benchmarks/training.py [--size small] [--batch 32] [--seconds 1.5] [--parts stages costs data]
    python benchmarks/training.py --device cuda --size XL --parts stages costs data large

The plain reference recomputes activations always, encodes every text (and, for the last stage, carries every picture)
anew in each step, and computes in float32. Bytes per sample are the difference in peak memory between one batch and
half of it. Each measurement is a process of its own that runs the training loop itself; pictures are noise. Two of them
are made in turn, so that a busy machine slows both: compare the ratios, not the numbers.

On two quiet processor cores the default takes about four minutes; it ends after `--minutes` with what it has by then.

Parts: `stages`, ours beside the reference; `costs`, of the joint stage with batch, tokens and width; `data`, the share
of the time in which the loop waits for data; `large`, on a GPU: H with a batch of 1,024, without recomputing.
"""

import argparse
import contextlib
import io
import json
import os
import select
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
import webdataset
from invented_stages import SAMPLES, STAGES, Bench, Case, Networks, networks
from PIL import Image

from flowtok.data.latent_folders import LatentsMade, ShardRecord, finish, shard_name
from flowtok.data.latent_shards import LatentSample, shard_writer
from flowtok.data.refusals import Tally
from flowtok.recipes import VELOCITY_NETWORKS
from flowtok.train.loop import TrainingConfig, train

_NEVER = 10**9


@dataclass(frozen=True, kw_only=True)
class Figures:
    """What was measured: peak memory in bytes of the process, or of the GPU where there is one."""

    samples_per_second: float
    peak: int
    data_wait: float


class _Enough(Exception):
    """Ends a training that has been measured."""


class _OutOfTime(Exception):
    """Ends the benchmark where its minutes are over."""


def measure(case: Case, folder: Path | None) -> Figures:
    """Trains a stage for a while, in this process."""
    bench = Bench(case)
    if case.data is not None:
        assert folder is not None
        stage = bench.make_streamed(folder)
    else:
        stage = getattr(bench, f"make_{case.stage}")()
        if case.plain:
            stage = bench.plainly(case.stage, stage)
    config = TrainingConfig(
        num_steps=_NEVER, batch_size=case.batch, micro_batch_size=case.micro_batch, precision=case.precision,
        compile=case.compiled, activation_checkpointing=case.plain, checkpoint_every=_NEVER, preview_every=_NEVER,
        log_every=1,
    )  # fmt: skip
    unmeasured = 2 if case.data is None else 3
    begun, rates, waits = 0.0, [], []

    def report(step: int, figures: dict[str, float]) -> None:
        nonlocal begun
        if step <= unmeasured:
            forget_peak(case.device)
            begun = time.perf_counter()
            return
        rates.append(figures["samples_per_second"])
        waits.append(figures["data_wait"])
        if time.perf_counter() - begun > case.seconds and len(rates) >= 3:
            raise _Enough

    with tempfile.TemporaryDirectory() as run, contextlib.suppress(_Enough):
        train(stage, config, Path(run), bench.runtime, report=report)
    seconds = [1.0 / rate for rate in rates]
    wait = sum(share * part for share, part in zip(waits, seconds, strict=True)) / sum(seconds)
    return Figures(samples_per_second=sorted(rates)[len(rates) // 2], peak=peak_of(case.device), data_wait=wait)


def forget_peak(device: str) -> None:
    """Lets the peak of memory be that of what comes: opening a text encoder takes more than a step with it."""
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    else:
        Path("/proc/self/clear_refs").write_text("5")


def peak_of(device: str) -> int:
    """The most memory since then, in bytes."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated()
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(lines["VmHWM"].split()[0]) * 1024


def measured(case: Case, folder: Path | None = None) -> Figures | None:
    """Runs a case in a process of its own; None if the GPU's memory is too small for it.

    Raises:
        _OutOfTime: It was not done when it had to be.
    """
    if time.monotonic() > case.until:
        raise _OutOfTime
    reading, writing = os.pipe()
    child = os.fork()  # nothing has been computed here, so no thread is lost; importing again would take seconds
    if child == 0:
        os.close(reading)
        status = 1
        try:
            found = json.dumps(asdict(measure(case, folder)))
            status = 0
        except torch.OutOfMemoryError:
            found, status = "null", 0
        except BaseException:  # noqa: BLE001 - whatever it is, the parent is told by the status
            found = ""
            traceback.print_exc()
        os.write(writing, found.encode())
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)  # without the exit handlers of what was inherited
    os.close(writing)
    ready, _, _ = select.select([reading], [], [], min(max(0.0, case.until - time.monotonic()), 1e6))
    if not ready:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        raise _OutOfTime
    with os.fdopen(reading, "rb") as pipe:
        found = pipe.read()
    _, status = os.waitpid(child, 0)
    if status:
        raise SystemExit(f"measuring {case} failed")
    content = json.loads(found)
    return None if content is None else Figures(**content)


def per_sample(small: Figures, large: Figures, more: int) -> float:
    """Megabytes of peak memory that each further sample takes."""
    return (large.peak - small.peak) / more / 1e6


def print_stages(base: Case) -> None:
    """Ours beside the reference."""
    print(
        f"\n## Stages: {base.size} networks, batch {base.batch}, {base.device}\n\n"
        "| stage | ours, samples/s | plain | times faster | ours, MB/sample | plain | of plain |\n"
        "|---|---|---|---|---|---|---|",
        flush=True,
    )
    for stage in STAGES:
        halves: dict[bool, list[Figures | None]] = {False: [], True: []}
        for batch in (base.batch // 2, base.batch):
            for plain in (False, True):
                changes: dict[str, Any] = {"precision": "float32", "compiled": False} if plain else {}
                halves[plain].append(measured(replace(base, stage=stage, plain=plain, batch=batch, **changes)))
        if None in (*halves[False], *halves[True]):
            print(f"| {stage} | does not fit into memory; take a smaller --batch | | | | | |", flush=True)
            continue
        ours, plains = ([one for one in halves[plain] if one is not None] for plain in (False, True))
        rate, plain_rate = ours[1].samples_per_second, plains[1].samples_per_second
        more = base.batch - base.batch // 2
        size, plain_size = (per_sample(small, large, more) for small, large in (ours, plains))
        share = f"{size / plain_size:.2f}" if min(size, plain_size) > 0.01 else "-"
        print(
            f"| {stage} | {rate:.1f} | {plain_rate:.1f} | {rate / plain_rate:.2f} | {size:.2f} | {plain_size:.2f} | "
            f"{share} |",
            flush=True,
        )


def print_costs(base: Case) -> None:
    """How the joint stage's time and memory grow."""
    joint = replace(base, stage="joint")
    shape = joint.networks().velocity
    print(
        f"\n## Costs of the joint stage, {base.size} networks, {base.device}\n\n"
        "| batch | tokens | width | ms a sample | of the first | MB of peak |\n|---|---|---|---|---|---|",
        flush=True,
    )
    first: float | None = None
    batches = [{"batch": count} for count in (max(1, base.batch // 4), base.batch, base.batch * 2)]
    # A longer text than the encoder's positions cannot be encoded, but its features are not made here.
    tokens = [{"tokens": count} for count in (shape.num_tokens // 2, shape.num_tokens * 2, shape.num_tokens * 4)]
    widths = [{"width": width} for width in (shape.width // 2, shape.width * 2)]
    for changes in [*batches, *tokens, *widths]:
        case = replace(joint, **changes)
        found = measured(case)
        velocity = case.networks().velocity
        name = f"| {case.batch} | {velocity.num_tokens} | {velocity.width} |"
        if found is None:
            print(f"{name} does not fit | | |", flush=True)
            continue
        cost = 1000.0 / found.samples_per_second
        first = first or cost
        print(f"{name} {cost:.2f} | {cost / first:.2f} | {found.peak / 1e6:.0f} |", flush=True)


def print_data(base: Case, folder: Path) -> None:
    """Whether the loop waits for data."""
    print(
        f"\n## Waiting for data (below 5 % is wanted), {base.size} networks, batch {base.batch}, {base.device}\n\n"
        "| stage | data | samples/s | waiting |\n|---|---|---|---|",
        flush=True,
    )
    cases = {"in memory": ("tokenizer", None), "PNG files in shards": ("tokenizer", "pictures"),
             "in memory, features too": ("joint", None), "moments in shards": ("joint", "moments")}  # fmt: skip
    for words, (stage, data) in cases.items():
        found = measured(replace(base, stage=stage, data=data, seconds=max(base.seconds, 4.0)), folder)
        if found is None:
            print(f"| {stage} | {words} | does not fit | |", flush=True)
            continue
        print(f"| {stage} | {words} | {found.samples_per_second:.1f} | {found.data_wait:.1%} |", flush=True)


def write_data(folder: Path, size: str) -> None:
    """Shards of pictures and of moments, in a process of its own."""
    if os.fork() == 0:
        _write_data(folder, networks(size))
        os._exit(0)
    if os.wait()[1]:
        raise SystemExit("writing the data failed")


def _write_data(folder: Path, shapes: Networks) -> None:
    generator = torch.Generator().manual_seed(0)
    side, shape = shapes.tokenizer.image_size, (shapes.velocity.num_tokens, shapes.velocity.token_channels)
    (folder / "pictures").mkdir()
    (folder / "moments").mkdir()
    made = LatentsMade(
        source="noise", parts="", num_shards=4, parts_per_shard=1, tokenizer="", text_encoder=None, image_size=side,
        crop="", shape=shape, layout="flowtok", dtype="float16", precision="float32", settings={},
    )  # fmt: skip
    made.claim(folder / "moments")
    for number in range(4):
        with webdataset.TarWriter(str(folder / "pictures" / f"{number}.tar")) as writer:
            for sample in range(128):
                buffer = io.BytesIO()
                # Twice the side, as pictures are larger than what is trained on; smooth, so that files are as usual.
                pixels = torch.randint(0, 256, (side // 4, side // 4, 3), dtype=torch.uint8, generator=generator)
                Image.fromarray(pixels.numpy()).resize((2 * side, 2 * side)).save(buffer, "PNG")
                writer.write({"__key__": f"{sample:05d}", "png": buffer.getvalue(), "txt": f"noise {number} {sample}"})
        with shard_writer(folder / "moments" / shard_name(number), "flowtok") as add:
            for sample in range(512):
                moments_2LC = torch.randn(2, *shape, generator=generator).half()
                captions = (f"noise {number} {sample}",)
                add(LatentSample(key=f"{number}/{sample}", captions=captions, moments_2LC=moments_2LC))
        ShardRecord.write(folder / "moments", number, Tally(seen=512, used=512))
    finish(folder / "moments", made, num_parts=4, max_refused=0.0)


def print_large(base: Case, batch: int) -> None:
    """Whether H trains with the paper's batch on one GPU, and in how many parts if not in one."""
    print(
        f"\n## H, batch {batch:,} on one {base.device}, nothing recomputed, {base.precision}\n\n"
        "| samples at a time | images/s | peak memory |\n|---|---|---|",
        flush=True,
    )
    part = batch
    while part:
        found = measured(replace(base, stage="joint", size="H", batch=batch, micro_batch=part, seconds=10.0))
        if found is not None:
            print(f"| {part:,} | {found.samples_per_second:.0f} | {found.peak / 1e9:.1f} GB |", flush=True)
            return
        print(f"| {part:,} | does not fit | |", flush=True)
        part //= 2


def main() -> None:
    """Measures and prints tables."""
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--size", default="small", choices=["tiny", "small", *VELOCITY_NETWORKS])
    parser.add_argument("--batch", type=int, default=None, help="samples of an update; 32, on a GPU 256")
    parser.add_argument("--seconds", type=float, default=1.5, help="how long each case is measured, at least")
    parser.add_argument("--parts", nargs="+", default=["stages", "costs", "data"],
                        choices=["stages", "costs", "data", "large"])  # fmt: skip
    parser.add_argument("--minutes", type=float, default=8.0, help="ends after so long")
    parser.add_argument("--no-compile", action="store_true", help="on a GPU: ours without torch.compile")
    given = parser.parse_args()
    on_gpu = given.device == "cuda"
    if "large" in given.parts and not on_gpu:
        parser.error("the part `large` is for --device cuda")
    base = Case(
        stage="joint", size=given.size, batch=given.batch or (256 if on_gpu else 32), device=given.device,
        seconds=given.seconds, precision="bfloat16" if on_gpu else "float32",
        compiled=on_gpu and not given.no_compile,
    )  # fmt: skip
    if base.batch < 4 or base.batch * 2 > SAMPLES * 64:
        parser.error(f"--batch must lie in 4 to {SAMPLES * 32}")
    if not on_gpu and not Path("/proc/self/clear_refs").exists():
        parser.error("the memory of a process is read from /proc, which this system does not have")
    print(f"torch {torch.__version__}, {os.cpu_count()} processors", flush=True)
    base = replace(base, until=time.monotonic() + 60.0 * given.minutes)
    try:
        print_parts(base, given.parts)
    except _OutOfTime:
        print(f"\nStopped after {given.minutes:g} minutes: the rest was not measured.", flush=True)


def print_parts(base: Case, parts: Sequence[str]) -> None:
    """The parts that were asked for."""
    if "stages" in parts:
        print_stages(base)
    if "costs" in parts:
        print_costs(base)
    if "data" in parts:
        with tempfile.TemporaryDirectory() as folder:
            write_data(Path(folder), base.size)
            print_data(base, Path(folder))
    if "large" in parts:
        print_large(base, 1024)


if __name__ == "__main__":
    main()
