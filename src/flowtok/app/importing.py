"""The commands for the authors' released checkpoints: import and export-official.

What is done with the files is in released/; here are the options.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

from typer import Argument, Option

from flowtok.app import output
from flowtok.errors import FlowTokError

if TYPE_CHECKING:
    from flowtok.text.encoder import Activation

DTYPES = ("float32", "bfloat16", "float16")


def import_model(
    out: Annotated[Path, Option("--output", "-o", help="The model folder that is written.")],
    velocity: Annotated[
        str | None,
        Argument(help="FlowTok-*.pth (or .bin, .safetensors): a path, or OWNER/NAME/FILE on the Hub. May be left out "
                 "to add parts to a folder that was imported before.", metavar="VELOCITY"),
    ] = None,
    tokenizer: Annotated[
        str | None, Option(help="FlowTiTok_*.bin, the image tokenizer: a path, or OWNER/NAME/FILE on the Hub.")
    ] = None,
    text_encoder: Annotated[
        str | None, Option(help="CLIP ViT-L/14: a folder in transformers' layout, or a Hub id.")
    ] = None,
    activation: Annotated[
        str | None, Option(help="The text tower's activation, quick_gelu or gelu; its own if left out.")
    ] = None,
    heads: Annotated[
        int | None, Option(help="Attention heads, for a width that is none of the released ones.")
    ] = None,
    dtype: Annotated[
        str | None, Option(help="Store the weights in float32, bfloat16 or float16; as they are if left out.")
    ] = None,
) -> None:  # fmt: skip
    """Makes a model folder of the authors' released checkpoints."""
    if velocity is None and tokenizer is None and text_encoder is None:
        raise FlowTokError("there is nothing to import; name a checkpoint, --tokenizer or --text-encoder")
    if activation not in (None, "quick_gelu", "gelu"):
        raise FlowTokError(f"--activation {activation}: it is quick_gelu or gelu")
    if dtype is not None and dtype not in DTYPES:
        raise FlowTokError(f"--dtype {dtype}: weights are stored in {', '.join(DTYPES)}")
    if heads is not None and heads < 1:
        raise FlowTokError(f"--heads must be at least 1, not {heads}")
    with output.progress("importing"):
        import torch

        from flowtok.checkpoints.folder import read_config
        from flowtok.components import HOW_TO_ADD
        from flowtok.released.importing import import_released

        folder = import_released(
            out, velocity=velocity, tokenizer=tokenizer, text_encoder=text_encoder,
            activation=cast("Activation | None", activation), heads=heads,
            dtype=None if dtype is None else getattr(torch, dtype),
        )  # fmt: skip
    output.say(str(folder))
    record = read_config(folder)
    for part, add in HOW_TO_ADD.items():
        if getattr(record, part) is None:
            output.note(f"{folder} has no {part} yet; {add}")


def export_official(
    model: Annotated[str, Argument(help="A model folder, as `flowtok import` writes it.", metavar="MODEL")],
    out: Annotated[Path, Option("--output", "-o", help="Folder for the files.")],
    safetensors: Annotated[bool, Option("--safetensors", help="Write .safetensors files, not pickles.")] = False,
) -> None:
    """Writes an imported model back in the layout of the authors' release, bit for bit."""
    with output.progress("exporting"):
        from flowtok.released.exporting import export_released

        paths = export_released(model, out, safetensors=safetensors)
    for path in paths:
        output.say(str(path))
