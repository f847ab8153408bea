"""The command `flowtok eval`: measures a model on a built set; records, a table for the model card, sheets of pictures.

What is measured and how stands in `flowtok.evaluate`; here are options, progress and files.
"""

import shlex
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated

from typer import Argument, Option

from flowtok.app import output
from flowtok.app.options import DeviceOption, DtypeOption, GuidanceOption, JsonOption, StepsOption, open_model
from flowtok.errors import FlowTokError
from flowtok.files import write_file_atomically

TABLE_FILE = "table.md"


def evaluate(
    model: Annotated[str, Argument(help="A shipped model, a model folder or a Hub id.")],
    data: Annotated[str, Option(help="The set that `flowtok data emoji` built, or any captioned pictures.")],
    task: Annotated[
        str | None,
        Option(help="Of reconstruction,retrieval,captions, with commas; all if left out, none with --sheets alone."),
    ] = None,
    split: Annotated[
        str | None,
        Option(help="Of train,validation,unseen_concept,unseen_style, with commas; the task's own if left out."),
    ] = None,
    out: Annotated[Path | None, Option("--output", "-o", help="Folder for records.json and table.md.")] = None,
    sheets: Annotated[Path | None, Option(help="Folder for sheets of pictures and captions.")] = None,
    limit: Annotated[int | None, Option(help="Samples of each split; the task's own number if left out.")] = None,
    steps: StepsOption = None,
    guidance: GuidanceOption = None,
    seed: Annotated[int, Option(help="Prompt number k, from 0, is drawn with seed + k.")] = 0,
    batch_size: Annotated[int | None, Option(help="Pictures computed together; best at 1 on a CPU.")] = None,
    json: JsonOption = False,
    device: DeviceOption = "auto",
    dtype: DtypeOption = "float32",
) -> None:
    """Measures a model: how true its pictures are, how findable what it draws, how right its captions."""
    from flowtok.checkpoints.catalogue import resolve
    from flowtok.data.sources import open_source
    from flowtok.evaluate.bench import Bench
    from flowtok.evaluate.report import RECORDS_FILE, markdown, tables, write_records
    from flowtok.evaluate.sheets import write_sheets
    from flowtok.evaluate.tasks import TASKS, check_tasks, run_tasks

    tasks = ([] if sheets is not None else list(TASKS)) if task is None else _names(task)
    splits = None if split is None else _names(split)
    check_tasks(tasks or list(TASKS) if task is None else tasks, splits, limit)
    if not tasks and (splits is not None or limit is not None or out is not None):
        raise FlowTokError("--split, --limit and -o have no effect on sheets alone; name a --task or leave them out")
    if batch_size is not None and batch_size < 1:
        raise FlowTokError(f"--batch-size must be at least 1, not {batch_size}")
    model_folder = resolve(model)
    open_source(data)
    for folder in (out, sheets):
        if folder is not None:
            output.make_folder(folder)
    flow = open_model(model_folder, device, dtype)
    flow.batch_size = batch_size or flow.batch_size
    given = {"num_inference_steps": steps, "guidance_scale": guidance}
    sampling = {name: value for name, value in given.items() if value is not None}
    with output.progress_of_parts() as report:
        bench = Bench(model=flow, folder=data, model_folder=model_folder, sampling=sampling, seed=seed, progress=report)
        records = run_tasks(bench, tasks, splits, limit) if tasks else []
        paths = write_sheets(bench, sheets) if sheets is not None else []
    options = {"task": ",".join(tasks), "split": split, "limit": limit, "steps": steps, "guidance": guidance}
    command = _command(model, options | {"seed": seed or None})
    records = [replace(record, command=command) for record in records]
    if out is not None:
        paths += [
            write_records(records, out / RECORDS_FILE),
            write_file_atomically(out / TABLE_FILE, markdown(records)),
        ]
    if json:
        output.say_json({"records": [asdict(record) for record in records], "files": [str(path) for path in paths]})
        return
    from rich.console import Console

    for table in tables(records):
        Console().print(table)
    for path in paths:
        output.say(str(path))


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


def _command(model: str, options: Mapping[str, object]) -> str:
    """The command line that measures the same again, without the way to a folder of this machine."""
    named = Path(model).name if Path(model).is_absolute() else model
    given = [word for name, value in options.items() if value is not None for word in (f"--{name}", str(value))]
    return shlex.join(["flowtok", "eval", named, "--data", "FOLDER", *given])
