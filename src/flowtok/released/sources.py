"""Where released files come from: paths on this machine, or the Hub.

Reads no weights; see importing.py for what is done with the files.
"""

import re
from pathlib import Path

from flowtok.checkpoints.catalogue import is_folder
from flowtok.errors import CheckpointError

WEIGHT_ENDINGS = (".pth", ".pt", ".bin", ".ckpt", ".safetensors")
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_HUB_FILE = re.compile(rf"({_HUB_ID.pattern})/(.+)")


def weight_file(source: str) -> Path:
    """Finds a weight file: a path, else OWNER/NAME/FILE on the Hub, or OWNER/NAME where that holds a single one.

    Raises:
        CheckpointError: There is no such file, or several to choose from; the message names them.
    """
    path = Path(source).expanduser()
    if is_folder(path):
        raise CheckpointError(f"{source} is a folder; name the weight file itself ({', '.join(WEIGHT_ENDINGS)})")
    if path.is_file():
        return path
    if path.parent.is_dir() or source.startswith(("/", "~", ".")):
        raise CheckpointError(f"there is no weight file {source}; one on the Hub is named OWNER/NAME/FILE")
    if match := _HUB_FILE.fullmatch(source):
        return _from_hub(match[1], [match[2]])
    if _HUB_ID.fullmatch(source):
        return _from_hub(source, [_only_weight_file(source)])
    raise CheckpointError(f"there is no weight file {source}, and it is no Hub file OWNER/NAME/FILE")


def text_encoder_files(source: str) -> Path:
    """Finds the folder of a text encoder: a path, else a Hub id, of which only the needed files are fetched.

    Raises:
        CheckpointError: There is no such folder or repository.
    """
    path = Path(source).expanduser()
    if is_folder(path):
        return path
    if path.exists():
        raise CheckpointError(f"{source} is a file; name the text encoder's folder (config.json, weights, tokenizer)")
    if path.parent.is_dir() or not _HUB_ID.fullmatch(source):
        raise CheckpointError(f"there is no text encoder folder {source}, and it is no Hub id OWNER/NAME")
    if _from_hub(source, ["tokenizer.json", "vocab.json"]).name == "vocab.json":
        _from_hub(source, ["merges.txt"])
    _from_hub(source, ["model.safetensors", "pytorch_model.bin"])
    return _from_hub(source, ["config.json"]).parent


def described(source: str, path: Path) -> dict[str, object]:
    """What a model's config.json keeps of a source file: its name and size, never a path of this machine."""
    on_hub = not Path(source).expanduser().exists()
    size = sum(one.stat().st_size for one in path.iterdir() if one.is_file()) if path.is_dir() else path.stat().st_size
    return {"source": source if on_hub else path.resolve().name, "bytes": size}


def _from_hub(repo_id: str, names: list[str]) -> Path:
    """Fetches the first of some files that a repository has, or takes it from the Hub's cache."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError

    reason = ""
    for name in names:
        try:
            return Path(hf_hub_download(repo_id, name))
        except EntryNotFoundError as error:  # not in the repository, or offline and not in the cache
            reason = _line(error)
        except Exception as error:  # the Hub's library and the one below it raise many kinds
            raise CheckpointError(_not_given(f"{repo_id}/{name}", _line(error))) from error
    raise CheckpointError(_not_given(f"{repo_id}/{names[0]}", reason))


def _not_given(name: str, reason: str) -> str:
    return f"there is no file {name} here, and the Hub did not give it: {reason}"


def _only_weight_file(repo_id: str) -> str:
    """The name of the weight file in a repository that has just one."""
    from huggingface_hub import HfApi

    try:
        names = HfApi().list_repo_files(repo_id)
    except Exception as error:  # the Hub's library and the one below it raise many kinds
        raise CheckpointError(
            f"there is no file {repo_id}, and the Hub did not list that repository: {_line(error)}; "
            f"a file on the Hub is named OWNER/NAME/FILE"
        ) from error
    found = [name for name in names if name.endswith(WEIGHT_ENDINGS)]
    if len(found) != 1:
        choices = ", ".join(f"{repo_id}/{name}" for name in found) or "none at all"
        raise CheckpointError(f"{repo_id} holds {len(found)} weight files; name one of them: {choices}")
    return found[0]


def _line(error: Exception) -> str:
    return (" ".join(str(error).split()) or type(error).__name__)[:200]
