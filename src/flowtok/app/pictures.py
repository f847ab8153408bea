"""The commands that use a model: generate, caption, reconstruct, interpolate.

Each reads its arguments, opens the model (options.py), calls one method of pipeline.FlowTok and hands the result to
output.py.
"""

import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from typer import Argument, Option

from flowtok.app import output
from flowtok.app.options import (
    BatchOption,
    CompileOption,
    DeviceOption,
    DtypeOption,
    GridOption,
    GuidanceOption,
    IntervalOption,
    JsonOption,
    MeanOption,
    ModelOption,
    OutputOption,
    PreviewOption,
    SeedOption,
    SizeOption,
    SolverOption,
    StepsOption,
    open_model,
)
from flowtok.checkpoints.catalogue import is_folder
from flowtok.errors import FlowTokError

if TYPE_CHECKING:
    from flowtok.pipeline import FlowTok

MOST_PICTURES = 10_000
PICTURE_ENDINGS = {".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff"}


def generate(
    prompts: Annotated[list[str] | None, Argument(help="What the pictures shall show.", metavar="PROMPT...")] = None,
    number: Annotated[int, Option("--number", "-n", help="Pictures of each prompt.")] = 1,
    seed: SeedOption = None,
    steps: StepsOption = None,
    guidance: GuidanceOption = None,
    guidance_interval: IntervalOption = None,
    solver: SolverOption = None,
    time_grid: GridOption = None,
    size: SizeOption = None,
    out: OutputOption = None,
    grid: Annotated[bool, Option("--grid", help="All pictures on one sheet.")] = False,
    from_file: Annotated[str | None, Option(help="A text file with a prompt on each line; - is stdin.")] = None,
    model: ModelOption = "emoji",
    json: JsonOption = False,
    preview: PreviewOption = None,
    deterministic_text: MeanOption = False,
    device: DeviceOption = "auto",
    dtype: DtypeOption = "auto",
    compiled: CompileOption = False,
    batch_size: BatchOption = 1,
) -> None:
    """Draws pictures of prompts."""
    wanted = [*(prompts or []), *(_lines(from_file) if from_file is not None else [])]
    if not wanted:
        raise FlowTokError('there is no prompt; say what to draw, as in flowtok generate "a red heart"')
    if not 1 <= number <= MOST_PICTURES:
        raise FlowTokError(f"-n must be at least 1 and at most {MOST_PICTURES:,}, not {number}")
    show = output.wants_preview(preview, json)
    many = len(wanted) > 1
    stems = [output.slug(prompt) for prompt in wanted for _ in range(number)]
    paths = output.plan(out, ["sheet" if many else stems[0]] if grid else stems)
    flow = open_model(model, device, dtype, compiled=compiled)
    flow.batch_size = batch_size
    side = _side(flow, size)
    with output.progress("drawing") as report:
        drawn = flow.generate(
            wanted, steps, guidance, seed, num_images_per_prompt=number, guidance_interval=guidance_interval,
            solver=solver, grid=time_grid, deterministic_text=deterministic_text, progress=report,
        )  # fmt: skip
    settings = {
        "steps": steps or flow.sampling.num_inference_steps,
        "guidance": flow.sampling.guidance_scale if guidance is None else guidance,
        **({} if guidance_interval is None else {"guidance_interval": list(guidance_interval)}),
        "solver": solver or flow.sampling.solver,
        "time_grid": time_grid or flow.sampling.grid,
        **({} if flow.precision == "float32" else {"dtype": flow.precision}),
        **({} if batch_size == 1 else {"batch_size": batch_size}),
    }
    stories = [{**picture.info, **settings} for picture in drawn]
    pictures = [output.enlarged(picture, side) for picture in drawn]
    sheet = None
    if len(pictures) > 1 and (grid or show):
        sheet = output.sheet(pictures, number if many and number > 1 else math.ceil(math.sqrt(len(pictures))))
    if show:
        output.show(sheet or pictures[0])
    if grid:
        pictures, stories = [sheet or pictures[0]], [_joint_story(stories)]
    _save(paths, pictures, stories, json)


def caption(
    pictures: Annotated[list[str], Argument(help="Picture files, folders, or - for stdin.", metavar="PICTURE...")],
    steps: StepsOption = None,
    guidance: GuidanceOption = None,
    solver: SolverOption = None,
    model: ModelOption = "emoji",
    json: JsonOption = False,
    device: DeviceOption = "auto",
    dtype: DtypeOption = "auto",
    batch_size: BatchOption = 1,
) -> None:
    """Says what pictures show."""
    sources = _sources(pictures)
    flow = open_model(model, device, dtype)
    flow.batch_size = batch_size
    with output.progress("reading") as report:
        words = flow.caption([source for _, source in sources], steps, guidance, solver=solver, progress=report)
    if json:
        output.say_json([{"file": name, "caption": said} for (name, _), said in zip(sources, words, strict=True)])
    elif len(words) == 1:
        output.say(words[0])
    else:
        for (name, _), said in zip(sources, words, strict=True):
            output.say(f"{name}\t{said}")


def reconstruct(
    pictures: Annotated[list[str], Argument(help="Picture files, folders, or - for stdin.", metavar="PICTURE...")],
    text: Annotated[
        list[str] | None, Option("--text", help="What a picture shows, for a text-guided model; once for each picture.")
    ] = None,
    out: OutputOption = None,
    model: ModelOption = "emoji",
    json: JsonOption = False,
    preview: PreviewOption = None,
    device: DeviceOption = "auto",
    dtype: DtypeOption = "auto",
) -> None:
    """Takes pictures through their tokens and back, and says how near they come (PSNR in dB)."""
    show = output.wants_preview(preview, json)
    sources = _sources(pictures)
    paths = output.plan(out, [f"{Path(name).stem if name != '-' else 'stdin'}-again" for name, _ in sources])
    flow = open_model(model, device, dtype)
    from flowtok.data.images import to_tensor
    from flowtok.image.losses import psnr_B

    with output.progress("rebuilding") as report:
        rebuilt = flow.reconstruct([source for _, source in sources], captions=text, progress=report)
    stories: list[dict[str, Any]] = []
    for (name, source), picture in zip(sources, rebuilt, strict=True):
        psnr = psnr_B(flow.pixels(source)[None], to_tensor(picture)[None]).item()
        stories.append({"source": name, "psnr": round(psnr, 2), "model": flow.name})
    if show:
        output.show(output.sheet(rebuilt, math.ceil(math.sqrt(len(rebuilt)))) if len(rebuilt) > 1 else rebuilt[0])
    _save(paths, rebuilt, stories, json, figure="psnr", unit="dB")


def interpolate(
    a: Annotated[str, Argument(help='A prompt, or arithmetic such as "king - man + woman".', metavar="A")],
    b: Annotated[str | None, Argument(help="Where the way ends; else A must be arithmetic.", metavar="[B]")] = None,
    number: Annotated[int | None, Option("--number", "-n", help="Pictures in the strip; 8 if left out.")] = None,
    seed: SeedOption = None,
    steps: StepsOption = None,
    guidance: GuidanceOption = None,
    guidance_interval: IntervalOption = None,
    solver: SolverOption = None,
    time_grid: GridOption = None,
    size: SizeOption = None,
    out: OutputOption = None,
    model: ModelOption = "emoji",
    json: JsonOption = False,
    preview: PreviewOption = None,
    deterministic_text: MeanOption = False,
    device: DeviceOption = "auto",
    dtype: DtypeOption = "auto",
) -> None:
    """Draws a strip from one prompt to another; arithmetic alone gives its terms and their result."""
    show = output.wants_preview(preview, json)
    paths = output.plan(out, [output.slug(a if b is None else f"{a} to {b}")])
    flow = open_model(model, device, dtype)
    from flowtok.pipeline import parse_arithmetic

    side = _side(flow, size)
    terms = parse_arithmetic(a)
    if b is None and len(terms) == 1:
        raise FlowTokError(f"{a!r} is a single prompt; give a second one, or arithmetic such as 'king - man + woman'")
    if b is None and number is not None:
        raise FlowTokError("-n has no effect without a second prompt: arithmetic draws its terms and their result")
    if number is not None and not 2 <= number <= MOST_PICTURES:
        raise FlowTokError(
            f"-n must be at least 2, one picture for each end, and at most {MOST_PICTURES:,}, not {number}"
        )
    if seed is None and not deterministic_text:
        import secrets

        seed = secrets.randbelow(2**32)
    ways = [(a, b, number or 8)] if b is not None else [(term, term, 1) for term in [*(t for _, t in terms), a]]
    strip = []
    with output.progress("drawing") as report:
        for start, end, count in ways:
            strip += flow.interpolate(
                start, end, count, steps, guidance, seed, guidance_interval=guidance_interval, solver=solver,
                grid=time_grid, deterministic_text=deterministic_text, progress=report,
            )  # fmt: skip
    story = {**strip[-1].info, "prompt": a if b is None else f"{a} -> {b}"}
    sheet = output.sheet([output.enlarged(picture, side) for picture in strip], len(strip))
    if show:
        output.show(sheet)
    _save(paths, [sheet], [story], json)


def _side(flow: "FlowTok", size: int | None) -> int:
    """The side that pictures are saved with."""
    own = flow.image_tokenizer.config.image_size
    if size is None:
        return own
    if size < own or size % own or size > 64 * own:
        raise FlowTokError(
            f"--size {size}: model {flow.name!r} draws {own} x {own} pixels; "
            f"larger pictures are resampled, to a multiple of that ({own * 2}, {own * 4}, ..., {own * 64})"
        )
    if size > own:
        output.note(f"drawn at {own} x {own} pixels and resampled to {size} x {size}")
    return size


def _lines(name: str) -> list[str]:
    """The prompts in a text file, one on each line; blank lines do not count.

    Raises:
        FlowTokError: The file cannot be read or holds no prompt.
    """
    try:
        text = (_standard_input() if name == "-" else Path(name).read_bytes()).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise FlowTokError(
            f"{name} is not UTF-8 text; --from-file takes a text file with a prompt on each line"
        ) from error
    except OSError as error:
        raise FlowTokError(f"cannot read prompts from {name}: {error.strerror or error}") from error
    found = [line.strip() for line in text.split("\n") if line.strip()]
    if not found:
        raise FlowTokError(f"{'standard input' if name == '-' else name} holds no prompt; write one on each line")
    return found


def _standard_input() -> bytes:
    """All of standard input.

    Raises:
        FlowTokError: It is closed.
    """
    if sys.stdin is None:
        raise FlowTokError("- stands for standard input, which is closed")
    return sys.stdin.buffer.read()


def _sources(names: Sequence[str]) -> list[tuple[str, Path | bytes]]:
    """The pictures that arguments stand for: files, all pictures below folders, standard input.

    Raises:
        FlowTokError: A folder without pictures, or standard input twice.
    """
    found: list[tuple[str, Path | bytes]] = []
    if list(names).count("-") > 1:
        raise FlowTokError("- (standard input) can be given once")
    for name in names:
        path = Path(name)
        if name == "-":
            found.append((name, _standard_input()))
        elif is_folder(path):
            inside = sorted(one for one in path.rglob("*") if one.suffix.lower() in PICTURE_ENDINGS and one.is_file())
            if not inside:
                raise FlowTokError(f"folder {name} holds no pictures ({', '.join(sorted(PICTURE_ENDINGS))})")
            found += [(str(one), one) for one in inside]
        else:
            found.append((name, path))
    return found


def _joint_story(stories: list[dict[str, Any]]) -> dict[str, Any]:
    """What a sheet was made from: prompts and seeds in its order, the rest once."""
    joint = dict(stories[0])
    for key in ("prompt", "seed"):
        values = [story[key] for story in stories]
        joint[key] = values[0] if len(set(values)) == 1 else "; ".join(map(str, values))
    return joint


def _save(
    paths: list[Path], pictures: Sequence[Any], stories: list[dict[str, Any]], json: bool, figure: str = "seed",
    unit: str = "",
) -> None:  # fmt: skip
    """Writes the pictures, then says where they are."""
    for path, picture, story in zip(paths, pictures, stories, strict=True):
        output.save_png(path, picture, story)
        if not json:
            value = story.get(figure)
            shown = "" if value is None or not (unit or sys.stdout.isatty()) else f"\t{figure} {value} {unit}".rstrip()
            output.say(f"{path}{shown}")
    if json:
        output.say_json([{"file": str(path), **story} for path, story in zip(paths, stories, strict=True)])
