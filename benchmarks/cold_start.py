"""Time and peak memory from a fresh process: flowtok --help, generate and caption; and either way when it is warm.

    python benchmarks/cold_start.py [--repeat 3] [--dtype float32]

Each command is a process of its own, as from a shell; the shortest of some counts. Takes half a minute.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

COMMAND = [sys.executable, "-m", "flowtok.app.cli"]
WARM = """
import time, flowtok
model = flowtok.load("emoji", dtype="{dtype}")
(picture,) = model.generate("red heart, in twemoji style", seed=1)
for call in (
    lambda: model.generate("red heart, in twemoji style", seed=1),
    lambda: model.caption(picture),
    lambda: model.reconstruct(picture),
):
    took = []
    for _ in range(10):
        begun = time.perf_counter()
        call()
        took.append(time.perf_counter() - begun)
    print(min(took))
"""


def measure(command: list[str]) -> tuple[float, float, str]:
    """Seconds, peak resident gigabytes and standard output of one process."""
    begun = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    assert process.stdout is not None
    said = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - begun
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} failed with {process.returncode}")
    return seconds, usage.ru_maxrss / 1e6, said  # kilobytes on Linux


def main() -> None:
    """Measures and prints a table."""
    parser = argparse.ArgumentParser(description=str(__doc__), formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--dtype", default="float32")
    given = parser.parse_args()
    print("| what | seconds | wanted | peak memory | wanted |\n|---|---|---|---|---|", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        out = str(Path(folder) / "heart.png")
        as_type = ["--dtype", given.dtype]
        drawing = ["generate", "red heart, in twemoji style", "--seed", "1", "-o", out, *as_type]
        wanted = {
            "flowtok --help": ([*COMMAND, "--help"], 0.5, None),
            f"flowtok generate, {given.dtype}, to a saved picture": ([*COMMAND, *drawing], 5.0, 1.2),
            f"flowtok caption of that picture, {given.dtype}": ([*COMMAND, "caption", out, *as_type], None, None),
        }
        for name, (command, seconds, memory) in wanted.items():
            runs = []
            for _ in range(given.repeat):
                if command[-len(drawing) :] == drawing:
                    Path(out).unlink(missing_ok=True)
                runs.append(measure(command))
            took, peak = min(run[0] for run in runs), max(run[1] for run in runs)
            print(
                f"| {name} | {took:.2f} | {seconds or '-'} | {peak:.2f} GB | {f'{memory} GB' if memory else '-'} |",
                flush=True,
            )
    _, peak, said = measure([sys.executable, "-c", WARM.format(dtype=given.dtype)])
    for what, wanted_seconds, took in zip(
        ("picture", "caption", "reconstruction"), ("0.2", "-", "-"), said.split(), strict=True
    ):
        print(f"| one more {what} when warm | {float(took):.3f} | {wanted_seconds} | {peak:.2f} GB | - |", flush=True)


if __name__ == "__main__":
    main()
