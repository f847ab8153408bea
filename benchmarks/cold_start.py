"""Time and peak memory from a fresh process: flowtok --help, generate and caption; and each way when it is warm.

    python benchmarks/cold_start.py [--repeat 5] [--dtype auto] [--compiled]

The commands are run as from a shell, by the `flowtok` that stands beside this Python, each in a process of its own; the
median of some counts, and the longest is shown beside it. The type is the commands' own unless --dtype says otherwise.
With --compiled also the first picture of `flowtok generate --compile`, with nothing kept by torch.compile from earlier
processes and with what the first of them kept. Takes a minute, with --compiled two.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

# Asked in a process of its own: the peak of a child counts the memory of its parent, so this process stays small.
SETTING = [sys.executable, "-c", "from measuring import setting; print(setting())"]
COMMAND = str(Path(sys.executable).with_name("flowtok"))
PROMPT = "red heart, in twemoji style"
WARM = """
import statistics, time
from flowtok.app.options import open_model
model = open_model("emoji", "cpu", "{dtype}")
(picture,) = model.generate("{prompt}", seed=1)
for call in (
    lambda: model.generate("{prompt}", seed=1),
    lambda: model.caption(picture),
    lambda: model.reconstruct(picture),
):
    took = []
    call()
    for _ in range(15):
        begun = time.perf_counter()
        call()
        took.append(time.perf_counter() - begun)
    print(statistics.median(took))
print(model.precision)
"""


def measure(command: list[str], environment: Mapping[str, str] | None = None) -> tuple[float, float, str]:
    """Seconds, peak resident gigabytes and standard output of one process."""
    begun = time.perf_counter()
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env={**os.environ, **(environment or {})}
    )
    assert process.stdout is not None
    said = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - begun
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} failed with {process.returncode}")
    return seconds, usage.ru_maxrss / 1e6, said  # kilobytes on Linux


def print_line(
    name: str, command: list[str], repeat: int, wanted: tuple[float | None, float | None] = (None, None),
    environment: Mapping[str, str] | None = None,
) -> None:  # fmt: skip
    """Runs a command some times and prints a line of the table."""
    runs = [measure(command, environment) for _ in range(repeat)]
    seconds = [run[0] for run in runs]
    most_seconds, most_memory = wanted
    print(
        f"| `{name}` | {statistics.median(seconds):.2f} | {max(seconds):.2f} | {most_seconds or '-'} | "
        f"{max(run[1] for run in runs):.2f} GB | {f'{most_memory} GB' if most_memory else '-'} |",
        flush=True,
    )


def main() -> None:
    """Measures and prints a table."""
    parser = argparse.ArgumentParser(description=str(__doc__), formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--compiled", action="store_true", help="also the first picture with --compile")
    given = parser.parse_args()
    if not Path(COMMAND).is_file():
        parser.error(f"there is no {COMMAND}; install flowtok where this Python stands")
    here = subprocess.run(SETTING, cwd=Path(__file__).parent, capture_output=True, text=True, check=True).stdout
    print(f"{here}\n| what | seconds | longest | wanted | peak memory | wanted |", flush=True)
    print("|---|---|---|---|---|---|", flush=True)
    as_type = [] if given.dtype == "auto" else ["--dtype", given.dtype]
    said_type = "".join(f" {word}" for word in as_type)
    with tempfile.TemporaryDirectory() as folder:
        out = str(Path(folder) / "heart.png")
        draw = [COMMAND, "generate", PROMPT, "--seed", "1", "-o", out, *as_type]
        print_line("flowtok --help", [COMMAND, "--help"], given.repeat, (0.5, None))
        print_line(f"flowtok generate{said_type}", draw, given.repeat, (5.0, 1.2))
        print_line(f"flowtok caption{said_type}", [COMMAND, "caption", out, *as_type], given.repeat)
        if given.compiled:
            kept = {"TORCHINDUCTOR_CACHE_DIR": str(Path(folder) / "kept")}
            line = f"flowtok generate --compile{said_type}"
            print_line(f"{line}, nothing kept", [*draw, "--compile"], 1, environment=kept)
            print_line(f"{line}, with what that kept", [*draw, "--compile"], given.repeat, environment=kept)
    _, peak, said = measure([sys.executable, "-c", WARM.format(dtype=given.dtype, prompt=PROMPT)])
    *took, precision = said.split()
    for what, wanted, seconds in zip(("picture", "caption", "reconstruction"), ("0.2", "-", "-"), took, strict=True):
        print(f"| one more {what} when warm, {precision} | {float(seconds):.3f} | - | {wanted} | {peak:.2f} GB | - |")


if __name__ == "__main__":
    main()
