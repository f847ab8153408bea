"""Time and peak memory of whole imported models at full size, with weights drawn by a rule instead of trained ones.

    python benchmarks/full_size.py FOLDER [--size XL] [--pixels 256 512] [--steps 20]

Writes files in the layout of the authors' release (about 6 GB for XL), runs `flowtok import` and `flowtok generate`
on them, each in a process of its own, and prints a table. The pictures are noise; time and memory are as with real
weights.
"""

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests"))
COMMAND = [sys.executable, "-m", "flowtok.app.cli"]


def write_files(folder: Path, size: str, pixels: list[int]) -> None:
    """The released files, where they are not there yet."""
    import torch
    from fixtures_released import tokenizer_file, velocity_file, write_clip_folder

    from flowtok.recipes import TOKENIZER_256, TOKENIZER_512, VELOCITY_NETWORKS
    from flowtok.text.projector import AlignmentHeadConfig, TextProjectorConfig

    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "clip").is_dir():
        write_clip_folder(folder / "clip", width=768, layers=12, heads=12)
    path = folder / f"FlowTok-{size}.pth"
    if not path.is_file():
        torch.save(velocity_file(VELOCITY_NETWORKS[size], TextProjectorConfig(), AlignmentHeadConfig()), path)
    for side, config in ((256, TOKENIZER_256), (512, TOKENIZER_512)):
        path = folder / f"FlowTiTok_{side}.bin"
        if side in pixels and not path.is_file():
            torch.save(tokenizer_file(config), path)


def measure(label: str, arguments: list[str]) -> None:
    """Runs one command and prints a row: wall time, processor time, peak resident memory."""
    start = time.perf_counter()
    process = subprocess.Popen([*COMMAND, *arguments])
    _, status, usage = os.wait4(process.pid, 0)
    wall = time.perf_counter() - start
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{' '.join(arguments)} failed with {process.returncode}")
    peak = usage.ru_maxrss / 1e6  # kilobytes on Linux
    print(f"| {label} | {wall:.0f} s | {usage.ru_utime + usage.ru_stime:.0f} s | {peak:.2f} GB |", flush=True)


def main() -> None:
    """Writes, imports, draws."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--size", default="XL", choices=["S", "B", "L", "XL", "H"])
    parser.add_argument("--pixels", type=int, nargs="+", default=[256, 512], choices=[256, 512])
    parser.add_argument("--steps", type=int, default=20)
    given = parser.parse_args()
    folder: Path = given.folder
    # In a process of its own: Linux counts the memory of a parent for its children until they start.
    if os.fork() == 0:
        write_files(folder, given.size, given.pixels)
        os._exit(0)
    if os.wait()[1]:
        raise SystemExit("writing the files failed")
    print("| command | wall | processor | peak memory |\n|---|---|---|---|", flush=True)
    for pixels in given.pixels:
        files = [
            str(folder / f"FlowTok-{given.size}.pth"), "--tokenizer", str(folder / f"FlowTiTok_{pixels}.bin"),
            "--text-encoder", str(folder / "clip"),
        ]  # fmt: skip
        for stored in ("bfloat16", "float32"):
            model = str(folder / f"flowtok-{given.size.lower()}-{pixels}-{stored}")
            dtype = [] if stored == "float32" else ["--dtype", stored]
            measure(f"import, {pixels} px, stored in {stored}", ["import", *files, *dtype, "-o", model])
            for computed in ("float32", "bfloat16") if stored == "float32" else ("bfloat16",):
                out = str(folder / f"cat-{pixels}-{stored}-{computed}.png")
                measure(
                    f"generate, {pixels} px, {computed} (stored in {stored})",
                    ["generate", "a photo of a cat", "--seed", "1", "--steps", str(given.steps), "--model", model,
                     "--dtype", computed, "-o", out],
                )  # fmt: skip


if __name__ == "__main__":
    main()
