"""Where the weights of the networks in pretrained.py are found: a folder, the Hub, installed packages, or their makers.

Knows files, not networks; every file is read as plain weights, nothing in it is run.
"""

import importlib.util
import pickle
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from flowtok.checkpoints.store import load_state
from flowtok.errors import CheckpointError

ENDINGS = (".pth", ".pt", ".bin", ".safetensors")


@dataclass(frozen=True, kw_only=True)
class Published:
    """A weight file as its makers publish it.

    Attributes:
        name: Its name in the cache of torch.hub, where torchvision and others keep it too.
        beginnings: How it is named in a folder of weights, without the ending.
        url: Where it is published.
        sha256: First digits of its hash.
        packages: Packages that carry it, with the path inside.
    """

    name: str
    beginnings: tuple[str, ...]
    url: str
    sha256: str
    packages: tuple[tuple[str, str], ...] = ()


VGG16_FILE = Published(
    name="vgg16-397923af.pth",
    beginnings=("vgg16",),
    url="https://download.pytorch.org/models/vgg16-397923af.pth",
    sha256="397923af",
)
LPIPS_FILE = Published(
    name="lpips-vgg-a78928a0.pth",
    beginnings=("lpips", "vgg_lpips", "vgg."),
    url="https://raw.githubusercontent.com/richzhang/PerceptualSimilarity/master/lpips/weights/v0.1/vgg.pth",
    sha256="a78928a0",
    packages=(("lpips", "weights/v0.1/vgg.pth"), ("torchmetrics", "functional/image/lpips_models/vgg.pth")),
)
CONVNEXT_FILE = Published(
    name="convnext_small-0c510722.pth",
    beginnings=("convnext_small",),
    url="https://download.pytorch.org/models/convnext_small-0c510722.pth",
    sha256="0c510722",
)
MOBILENET_FILE = Published(
    name="mobilenet_v2-7ebf99e0.pth",
    beginnings=("mobilenet_v2",),
    url="https://download.pytorch.org/models/mobilenet_v2-7ebf99e0.pth",
    sha256="7ebf99e0",
)


class NotAtHand(CheckpointError):
    """A file that nobody promised to be there and that could not be fetched either."""


def find_weights(file: Published, place: str | None = None) -> Path:
    """Finds a weight file.

    Args:
        file: What is looked for.
        place: A folder, or a repository OWNER/NAME on the Hub, that must hold it. None looks in installed packages
            and the cache of torch.hub, and fetches it into that cache from where it is published.

    Raises:
        NotAtHand: No place was named, and the file is not on this machine and could not be fetched.
        CheckpointError: The place that was named does not hold it, or holds several that could be meant.
    """
    if place is not None:
        return _in_folder(file, _folder_of(file, place), place)
    if (installed := next(_installed(file), None)) is not None:
        return installed
    cached = Path(torch.hub.get_dir()) / "checkpoints" / file.name
    if not cached.is_file():
        _fetch(file, cached)
    return cached


def read_weights(path: Path) -> dict[str, Tensor]:
    """The named tensors of a .safetensors file or of a torch pickle, of which nothing is run.

    Raises:
        CheckpointError: The file is damaged or holds anything but named tensors.
    """
    if path.suffix == ".safetensors":
        return load_state(path)
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except (RuntimeError, ValueError, EOFError, OSError, KeyError, pickle.UnpicklingError) as error:
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        raise CheckpointError(f"{path} is damaged, or not a plain weight file: {reason}") from error
    if not isinstance(loaded, dict) or not all(isinstance(tensor, Tensor) for tensor in loaded.values()):
        raise CheckpointError(f"{path} holds something other than named tensors")
    return loaded


def _folder_of(file: Published, place: str) -> Path:
    folder = Path(place).expanduser()
    if folder.is_dir():
        return folder
    # "weights/vgg" is a misspelt folder where weights/ stands here, and no reason to ask the Hub.
    if folder.exists() or folder.parent.is_dir() or place.startswith(("/", "~")) or place.count("/") != 1:
        raise CheckpointError(f"{place} is neither a folder of weights nor a repository OWNER/NAME on the Hub")
    from huggingface_hub import snapshot_download

    patterns = [f"{beginning}*{ending}" for beginning in file.beginnings for ending in ENDINGS]
    try:
        return Path(snapshot_download(place, allow_patterns=patterns))
    except (OSError, ValueError, RuntimeError) as error:  # the Hub's own errors are of these families
        raise CheckpointError(f"there is no folder {place}, and the Hub did not give it: {_line(error)}") from error


def _in_folder(file: Published, folder: Path, place: str) -> Path:
    found = [
        path for path in sorted(folder.iterdir()) if path.suffix in ENDINGS and path.name.startswith(file.beginnings)
    ]
    if len(found) != 1:
        names = ", ".join(path.name for path in found) or "none"
        raise CheckpointError(
            f"{place} must hold one file named {file.beginnings[0]}... ({', '.join(ENDINGS)}), found {names}; "
            f"its makers publish it at {file.url}"
        )
    return found[0]


def _installed(file: Published) -> Iterator[Path]:
    for package, inside in file.packages:
        found = importlib.util.find_spec(package)
        for folder in (found.submodule_search_locations or ()) if found is not None else ():
            if (Path(folder) / inside).is_file():
                yield Path(folder) / inside


def _fetch(file: Published, path: Path) -> None:
    from huggingface_hub.constants import HF_HUB_OFFLINE

    if HF_HUB_OFFLINE:
        raise NotAtHand(f"{path.name} is not on this machine, and HF_HUB_OFFLINE forbids to fetch it")
    path.parent.mkdir(parents=True, exist_ok=True)
    try:  # written beside, compared with its hash, then renamed
        torch.hub.download_url_to_file(file.url, str(path), hash_prefix=file.sha256)
    except (OSError, RuntimeError) as error:
        raise NotAtHand(f"{file.url} could not be fetched: {_line(error)}") from error


def _line(error: Exception) -> str:
    return (" ".join(str(error).split()) or type(error).__name__)[:200]
