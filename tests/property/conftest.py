"""The tiny model, for the tests below this folder."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from fixtures_tiny_model import tiny, tiny_copy, tiny_folder

__all__ = ["tiny", "tiny_copy", "tiny_folder"]
