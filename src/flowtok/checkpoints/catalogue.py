"""Finds model folders: the shipped ones by name, others by path, the rest on the Hub.

Reads no weights and needs no torch, so that listing models is instant. What is in a folder: folder.py.
"""

from __future__ import annotations

import re
from pathlib import Path

from flowtok.config import did_you_mean
from flowtok.errors import CheckpointError, FlowTokError

CONFIG_FILE = "config.json"
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def shipped_folder() -> Path:
    """The folder of the shipped models: inside an installed package, or models/ beside src/ in a working copy."""
    package = Path(__file__).resolve().parents[1]
    inside = package / "models"
    return inside if inside.is_dir() else package.parents[1] / "models"


def is_folder(path: str | Path) -> bool:
    """Whether a path the user gave is a folder that exists.

    Raises:
        FlowTokError: The name is longer than the system allows, or the way there may not be looked at.
    """
    try:
        return Path(path).is_dir()
    except OSError as error:
        name = str(path)
        shown = name if len(name) <= 80 else f"{name[:60]}... ({len(name)} characters)"
        raise FlowTokError(f"cannot use the name {shown}: {error.strerror or error}") from error


def list_models() -> list[str]:
    """Names of the models that ship with flowtok, sorted."""
    return sorted(path.parent.name for path in shipped_folder().glob(f"*/{CONFIG_FILE}"))


def resolve(name_or_path: str | Path, revision: str | None = None, token: str | None = None) -> Path:
    """Finds the folder of a model: a shipped name, else a folder, else a Hub id, which is downloaded.

    Args:
        name_or_path: such as "emoji", "outputs/my-model" or "someone/flowtok-xl".
        revision: a branch, tag or commit on the Hub; an error for anything that is not on the Hub.
        token: an access token for the Hub.

    Returns:
        A folder that holds a config.json.

    Raises:
        CheckpointError: no such model; the message lists what is known.
    """
    name = str(name_or_path)
    if name in list_models():
        return _without_revision(shipped_folder() / name, revision)
    path = Path(name).expanduser()
    if is_folder(path):
        if not (path / CONFIG_FILE).is_file():
            raise CheckpointError(f"folder {path} holds no flowtok model: it has no {CONFIG_FILE}")
        return _without_revision(path, revision)
    if path.exists():
        raise CheckpointError(
            f"{path} is a file, not a model folder; `flowtok import` makes a folder of released weights"
        )
    # "outputs/modle" is a misspelt folder where outputs/ stands here, and no reason to ask the Hub.
    if _HUB_ID.fullmatch(name) and not path.parent.is_dir():
        return _download(name, revision, token)
    hint = did_you_mean(name, list_models())
    raise CheckpointError(f"unknown model {name!r}: no shipped model, no folder and no Hub id OWNER/NAME; {hint}")


def _without_revision(folder: Path, revision: str | None) -> Path:
    if revision is not None:
        raise CheckpointError(f"revision {revision!r} is only for models on the Hub; {folder} is on this machine")
    return folder


def _download(repo_id: str, revision: str | None, token: str | None) -> Path:
    """Fetches a model from the Hub, or takes it from the Hub's cache on this machine."""
    from huggingface_hub import snapshot_download

    patterns = ["*.json", "*.safetensors", "*.txt", "*.md"]
    try:
        folder = Path(snapshot_download(repo_id, revision=revision, token=token, allow_patterns=patterns))
    except (OSError, ValueError, RuntimeError) as error:  # the Hub's own errors are of these families
        reason = " ".join(str(error).split()) or type(error).__name__
        hint = did_you_mean(repo_id, list_models())
        raise CheckpointError(
            f"there is no folder {repo_id}, and the Hub did not give it: {reason[:200]}; {hint}"
        ) from error
    if not (folder / CONFIG_FILE).is_file():
        raise CheckpointError(f"{repo_id} on the Hub is no flowtok model: it has no {CONFIG_FILE}")
    return folder
