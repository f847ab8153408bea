"""The command `flowtok`: its commands, put together, and what an error looks like.

The commands themselves: pictures.py (generate, caption, reconstruct, interpolate), workshop.py (models, info, train,
data), fitting.py (fit), evaluation.py (eval), packing.py (pack), importing.py (import, export-official), bench.py
(bench), server.py (serve) and ui/ (demo). All of them import what is heavy when they run.
"""

import os
import sys
from typing import Annotated

import typer

import flowtok
from flowtok.app import bench, datasets, evaluation, fitting, importing, packing, pictures, server, ui, workshop
from flowtok.errors import FlowTokError

app = typer.Typer(
    name="flowtok",
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
data = typer.Typer(help="Builds and looks at the pictures that models are trained on.")

app.command("generate")(pictures.generate)
app.command("caption")(pictures.caption)
app.command("reconstruct")(pictures.reconstruct)
app.command("interpolate")(pictures.interpolate)
app.command("models")(workshop.models)
app.command("info")(workshop.info)
app.command("train")(workshop.train)
app.command("fit")(fitting.fit)
app.command("eval")(evaluation.evaluate)
app.command("pack")(packing.pack)
app.command("bench")(bench.bench)
app.command("serve")(server.serve)
app.command("demo")(ui.demo)
app.command("import")(importing.import_model)
app.command("export-official")(importing.export_official)
app.add_typer(data, name="data", no_args_is_help=True)
data.command("emoji")(workshop.data_emoji)
data.command("stats")(datasets.data_stats)
data.command("latents")(datasets.data_latents)

# The class of all complaints about arguments; older typers take it from click, newer ones carry it themselves.
_ArgumentError: type[Exception] = next(kind for kind in typer.BadParameter.__mro__ if kind.__name__ == "ClickException")  # type: ignore[assignment]


@app.callback(invoke_without_command=True)
def start(
    context: typer.Context, version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False
) -> None:
    """A picture from words, words from a picture: one flow between two sets of tokens."""
    if version:
        typer.echo(f"flowtok {flowtok.__version__}")
        raise typer.Exit
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


def main(arguments: list[str] | None = None) -> None:
    """Runs the command line; what the user can mend is one line on stderr and exit code 2."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    try:
        code = app(arguments, prog_name="flowtok", standalone_mode=False)
        if code == 130:  # how newer typers hand on that Ctrl-C was pressed
            code = _complain("stopped", code=130)
        sys.stdout.flush()
    except FlowTokError as error:
        code = _complain(str(error), code=getattr(error, "exit_code", 2))
    except _ArgumentError as error:
        code = _complain(_about_arguments(error))
    except (KeyboardInterrupt, typer.Abort):
        code = _complain("stopped", code=130)
    except BrokenPipeError:
        # Whoever read our output has gone; Python would complain once more while it closes the pipe.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 1
    sys.exit(code if isinstance(code, int) else 0)


def _about_arguments(error: BaseException) -> str:
    """What is wrong with the arguments, with the command whose help tells more."""
    message = error.format_message() if hasattr(error, "format_message") else str(error)  # type: ignore[attr-defined]
    context = getattr(error, "ctx", None)
    path = context.command_path if context is not None else "flowtok"
    return f"{message.strip() or 'something is missing'} (see {path} --help)"


def _complain(message: str, code: int = 2) -> int:
    typer.echo(f"flowtok: {' '.join(message.split())}", err=True)
    return code


if __name__ == "__main__":
    main()
