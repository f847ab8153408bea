"""The shipped models must be found however flowtok was installed: the quick start needs one."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from flowtok.checkpoints import catalogue, store
from flowtok.errors import FlowTokError

LIST = "import flowtok; print(flowtok.__file__, flowtok.list_models())"


def test_models_are_found_inside_an_installed_package_and_beside_src(repository: Path, tmp_path: Path) -> None:
    """A wheel carries them as flowtok/models; a working copy has them beside src/."""
    source = repository / "src" / "flowtok"
    for package, models in [("site/flowtok", "site/flowtok/models"), ("copy/src/flowtok", "copy/models")]:
        shutil.copytree(source, tmp_path / package, ignore=shutil.ignore_patterns("models", "__pycache__"))
        for name in ("zebra", "ant"):
            (tmp_path / models / name).mkdir(parents=True)
            store.write_config(tmp_path / models / name, name=name, parts={})
        (tmp_path / models / "not-a-model").mkdir()
        path = (tmp_path / package).parent
        environment = {**os.environ, "PYTHONPATH": str(path)}
        result = subprocess.run(
            [sys.executable, "-c", LIST], env=environment, cwd=tmp_path, capture_output=True, text=True, check=False
        )
        assert result.stdout.strip() == f"{tmp_path / package / '__init__.py'} ['ant', 'zebra']", result.stderr


def test_a_name_that_no_system_takes_is_refused() -> None:
    with pytest.raises(FlowTokError, match="300 characters"):
        catalogue.resolve("x" * 300)


def test_shipped_folder_of_this_checkout(repository: Path) -> None:
    assert store.shipped_folder() == repository / "models"
