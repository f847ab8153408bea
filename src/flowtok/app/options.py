"""What several commands share: their options, and opening a model on a device.

The commands themselves are in pictures.py, workshop.py and evaluation.py.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from typer import Option

from flowtok.app import output
from flowtok.errors import FlowTokError

if TYPE_CHECKING:
    from flowtok.pipeline import FlowTok

ModelOption = Annotated[str, Option("--model", "-m", help="A shipped model, a model folder or a Hub id.")]
SeedOption = Annotated[int | None, Option(help="The same seed gives the same picture; random if left out.")]
StepsOption = Annotated[int | None, Option(help="Steps of the solver; the model's own number if left out.")]
GuidanceOption = Annotated[float | None, Option(help="Guidance scale; 1 is none. The model's own if left out.")]
IntervalOption = Annotated[
    tuple[float, float] | None,
    Option(metavar="FROM TO", help="Times, 0 (text) to 1 (picture), between which guidance acts; all if left out."),
]
SolverOption = Annotated[str | None, Option(help="euler, midpoint, heun, ab2 or dopri5.")]
GridOption = Annotated[
    str | None, Option("--time-grid", help="uniform, early, middle (few-step models), release (the authors').")
]
MeanOption = Annotated[bool, Option("--deterministic-text", help="The mean of the text tokens instead of a draw.")]
SizeOption = Annotated[int | None, Option(help="Side in pixels: the model's own, or a multiple of it (resampled).")]
OutputOption = Annotated[str | None, Option("--output", "-o", help="A .png file or a folder.")]
JsonOption = Annotated[bool, Option("--json", help="Print the result as JSON.")]
PreviewOption = Annotated[bool | None, Option("--preview/--no-preview", help="Show the pictures in the terminal.")]
DeviceOption = Annotated[str, Option(help="cpu, cuda, mps, or auto.")]
DtypeOption = Annotated[
    str,
    Option(help="float32, bfloat16, float16, int8 (large layers), or auto: what the machine does best."),
]
CompileOption = Annotated[
    bool,
    Option(
        "--compile", help="Compile first: some 20 seconds until the first picture, for many pictures; best with int8."
    ),
]
BatchOption = Annotated[
    int, Option(min=1, help="Computed together: 8 or more is faster for many, and rounds a little differently.")
]

DTYPES = ("float32", "bfloat16", "float16")
PRECISIONS = (*DTYPES, "int8", "auto")


def open_model(name: str | Path, device: str, dtype: str, *, compiled: bool = False, packed: bool = True) -> "FlowTok":
    """Loads a model, with a word on stderr while it lasts.

    Args:
        name: A shipped model, a model folder or a Hub id.
        device: As in --device.
        dtype: As in --dtype.
        compiled: Compiles its blocks.
        packed: Packs its layers where they can be and it is not compiled; not for measures, which compare machines.

    Raises:
        FlowTokError: Unknown model, device or type.
    """
    if dtype not in PRECISIONS:
        raise FlowTokError(f"--dtype {dtype}: the networks compute in {', '.join(PRECISIONS)}")
    with output.progress(f"loading {name}"):
        import torch

        from flowtok.pipeline import load

        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        check_device(device)
        opened = load(name, device=device, dtype=dtype)
        if compiled:
            return opened.compile()
        return opened.pack() if packed and opened.can_pack else opened


def check_device(device: str) -> None:
    """Raises FlowTokError where torch cannot compute on the device here."""
    import torch

    try:
        torch.zeros(1, device=device).cpu()  # "meta" holds no numbers: it fails on the way back
    except (RuntimeError, AssertionError, ImportError, AttributeError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise FlowTokError(f"device {device!r} cannot be used here ({reason}); try --device cpu") from error
