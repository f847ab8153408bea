"""A single component in a folder or on the Hub: config.json and model.safetensors, the Hub's usual two files.

Knows no particular network; each of them is a Component. Whole models are in components.py, their files in store.py.
"""

import dataclasses
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

import flowtok
from flowtok.checkpoints import store
from flowtok.checkpoints.catalogue import CONFIG_FILE
from flowtok.checkpoints.folder import FORMAT_VERSION
from flowtok.config import from_dict, parse_json, to_dict
from flowtok.errors import CheckpointError, FlowTokError

WEIGHTS = "model"


class Component(nn.Module):
    """A network of a model that can also be saved, opened and uploaded alone.

    Attributes:
        component_name: Its name in a model folder.
        config_class: The class of its config, the only argument of its constructor.
    """

    component_name: ClassVar[str]
    config_class: ClassVar[type]
    config: Any

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.config = config

    @classmethod
    def from_pretrained(
        cls,
        name_or_path: str | Path,
        *,
        revision: str | None = None,
        token: str | None = None,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> Self:
        """Opens the component from its own folder, or takes it out of a whole model.

        Args:
            name_or_path: A folder that `save_pretrained` wrote, a model folder, a shipped model's name or a Hub id.
            revision: Branch, tag or commit, for the Hub.
            token: Access token, for the Hub.
            dtype: Type that the network computes in.
            device: Where it shall be.

        Raises:
            CheckpointError: Nothing there, another component, or weights that are damaged or do not fit.
        """
        folder = store.resolve(name_or_path, revision=revision, token=token)
        data = _read(folder / CONFIG_FILE)
        if "component" in data:
            weights, config = WEIGHTS, cls._own_config(data, folder)
        else:
            weights = cls.component_name
            config = store.read_config(folder).part(weights, cls.config_class)
            store.verify_checksums(folder, [f"{weights}.safetensors"])
        return store.load_component(folder, weights, lambda: cls(config), dtype).to(device)

    @classmethod
    def _own_config(cls, data: dict[str, Any], folder: Path) -> Any:
        where = folder / CONFIG_FILE
        if data["component"] != cls.component_name:
            raise CheckpointError(f"{where} is of a {data['component']}, not of a {cls.component_name}")
        if not isinstance(data.get("format_version"), int) or data["format_version"] > FORMAT_VERSION:
            raise CheckpointError(
                f"{where} has format {data.get('format_version')}, this flowtok reads up to {FORMAT_VERSION}"
            )
        if not isinstance(data.get("config"), dict):
            raise CheckpointError(f"{where} has no config of the {cls.component_name}")
        try:
            return from_dict(cls.config_class, data["config"], where=str(where))
        except FlowTokError as error:
            raise CheckpointError(str(error)) from error

    def save_pretrained(self, folder: str | Path, *, dtype: torch.dtype | None = None) -> Path:
        """Writes config.json and model.safetensors.

        Args:
            folder: Made if it is missing; files of the same names are replaced.
            dtype: Float type of the stored weights, tables left out; as they are where not given.

        Raises:
            CheckpointError: Weights that are not finite.
            FlowTokError: The folder holds a whole model, or cannot be written.
        """
        folder = Path(folder)
        if (folder / CONFIG_FILE).is_file() and "component" not in _read(folder / CONFIG_FILE):
            raise FlowTokError(f"{folder} holds a whole model; save the {self.component_name} in a folder of its own")
        store.save_component(folder, WEIGHTS, self.stored_weights(dtype))
        content = {
            "format_version": FORMAT_VERSION,
            "flowtok_version": flowtok.__version__,
            "component": self.component_name,
            "config": to_dict(self.config) if dataclasses.is_dataclass(self.config) else self.config,
        }
        text = json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False)
        store.write_file_atomically(folder / CONFIG_FILE, text + "\n")
        return folder

    def stored_weights(self, dtype: torch.dtype | None = None) -> dict[str, Tensor]:
        """The weights in a float type; tables, which nothing trains, stay exact: rounded positions harm every picture.

        Args:
            dtype: As they are where not given.
        """
        state = self.state_dict()
        if dtype is None:
            return state
        fresh = store.build(lambda: type(self)(self.config))  # one that nobody has frozen
        trained = {name for name, parameter in fresh.named_parameters() if parameter.requires_grad}
        return {name: weight.to(dtype) if name in trained else weight for name, weight in state.items()}

    def push_to_hub(
        self, repo_id: str, *, token: str | None = None, private: bool | None = None, revision: str | None = None,
        dtype: torch.dtype | None = None, commit_message: str | None = None,
    ) -> str:  # fmt: skip
        """Uploads what `save_pretrained` writes to a repository on the Hub, made if it is missing.

        Returns:
            The commit's address.
        """
        return upload(
            lambda folder: self.save_pretrained(folder, dtype=dtype), repo_id, token=token, private=private,
            revision=revision, commit_message=commit_message or f"Upload {self.component_name}",
        )  # fmt: skip


def upload(
    write: Callable[[Path], object], repo_id: str, *, token: str | None, private: bool | None, revision: str | None,
    commit_message: str,
) -> str:  # fmt: skip
    """Uploads a folder that `write` fills to a repository on the Hub, made if it is missing; returns the commit."""
    from huggingface_hub import HfApi

    api = HfApi(token=token)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "model"
        write(folder)
        api.create_repo(repo_id, private=private, exist_ok=True)
        if revision is not None:
            api.create_branch(repo_id, branch=revision, exist_ok=True)
        commit = api.upload_folder(
            repo_id=repo_id, folder_path=folder, revision=revision, commit_message=commit_message
        )
    return str(commit.commit_url)


def _read(path: Path) -> dict[str, Any]:
    try:
        data = parse_json(path.read_text(encoding="utf-8"), str(path))
    except (OSError, UnicodeDecodeError) as error:
        raise CheckpointError(f"cannot read {path}: {error}") from error
    if not isinstance(data, dict):
        raise CheckpointError(f"{path} is not flowtok's: it holds no names")
    return data
