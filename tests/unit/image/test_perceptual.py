"""The perceptual losses: the same numbers as their makers', weights from where they lie, and what happens without."""

from __future__ import annotations

import hashlib
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor

from flowtok.errors import CheckpointError
from flowtok.image import pretrained_files
from flowtok.image.perceptual import (
    LPIPS,
    ClassScores,
    PerceptualConfig,
    PerceptualLoss,
    SmallFeatures,
    multi_scale_distance,
)
from flowtok.image.pretrained import VGG16
from flowtok.image.pretrained_files import LPIPS_FILE, NotAtHand, find_weights, read_weights


def spread(shape: tuple[int, ...] | torch.Size, seed: int) -> Tensor:
    return 2 * torch.rand(shape, generator=torch.Generator().manual_seed(seed)) - 1


def fill(state: dict[str, Tensor]) -> None:
    """Weights without a file: large enough that every layer tells."""
    for number, (name, tensor) in enumerate(state.items()):
        if not tensor.is_floating_point():
            continue
        value = spread(tensor.shape, number)
        if tensor.ndim > 1 and "layer_scale" not in name:
            value = value * (4.0 / tensor[0].numel()) ** 0.5
        elif name.endswith(("running_var", "layer_scale")):
            value = 0.5 + 0.25 * value
        elif name.endswith(("bias", "running_mean")):
            value = 0.1 * value
        else:
            value = 1 + 0.25 * value
        tensor.copy_(value)


def pictures() -> tuple[Tensor, Tensor]:
    image_B3YX = F.interpolate((spread((2, 3, 4, 4), 5) + 1) / 2, (32, 32))
    return image_B3YX, image_B3YX + 0.4 * F.interpolate(spread((2, 3, 8, 8), 9), (32, 32))


def digest(state: dict[str, Tensor]) -> str:
    lines = "\n".join(f"{name} {tuple(tensor.shape)}" for name, tensor in sorted(state.items()))
    return hashlib.sha256(lines.encode()).hexdigest()[:16]


def filled_lpips() -> LPIPS:
    judge = LPIPS()
    with torch.no_grad():
        fill(judge.vgg.state_dict())
        for number, head in enumerate(judge.heads):
            head.copy_(spread(head.shape, number).abs())
    return judge


@pytest.fixture
def narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    """VGG16 with few channels, so that its files are small."""
    monkeypatch.setattr(VGG16, "WIDTHS", ((2, 2), (3, 3), (4, 4, 4), (4, 4, 4), (4, 4, 4)))


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """No package, no Hub, no network; an empty cache of torch.hub, which comes back."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    monkeypatch.setattr(pretrained_files, "_installed", lambda _file: iter(()))
    (tmp_path / "hub" / "checkpoints").mkdir(parents=True)
    return tmp_path / "hub" / "checkpoints"


def save_lpips(judge: LPIPS, folder: Path) -> None:
    """In two files, as lpips and torchvision publish them."""
    heads = {f"lin{number}.model.1.weight": head.data for number, head in enumerate(judge.heads)}
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(heads, folder / "vgg.pth")
    classifier = {"classifier.0.weight": torch.zeros(2, 2)}
    save_file(judge.vgg.state_dict() | classifier, folder / "vgg16-397923af.safetensors")


# The numbers were computed with torchvision 0.29.2 and lpips 0.1.4 and the weights of `fill`.
@torch.no_grad()
def test_lpips_is_that_of_its_makers() -> None:
    judge = filled_lpips()
    assert digest(judge.vgg.state_dict()) == "4c3222feef6e051f", "torchvision's names and shapes"
    assert judge(*pictures()).item() == pytest.approx(0.3780615, rel=1e-4)


@torch.no_grad()
def test_class_scores_are_torchvisions() -> None:
    judge = ClassScores().eval()
    assert digest(judge.network.state_dict()) == "6c5c4d12ec41e5f7", "torchvision's names and shapes"
    fill(judge.network.state_dict())
    assert judge(*pictures()).item() == pytest.approx(0.0302294, rel=1e-3)


@torch.no_grad()
def test_small_features_are_torchvisions() -> None:
    judge = SmallFeatures().eval()
    names = list(judge.network.state_dict())
    assert names[0] == "features.0.0.weight" and names[-1] == "features.13.conv.3.num_batches_tracked"
    fill(judge.network.state_dict())
    assert judge(*pictures()).item() == pytest.approx(0.4645104, rel=1e-4)


def test_equal_pictures_cost_nothing_and_give_no_nan() -> None:
    # A plain black area has features of length 0; a NaN from there would end a run of days.
    for judge in (filled_lpips(), SmallFeatures().eval()):
        black_B3YX = torch.zeros(1, 3, 16, 16, requires_grad=True)
        distance = judge(torch.zeros(1, 3, 16, 16), black_B3YX)
        distance.backward()
        assert distance.item() == 0.0
        assert black_B3YX.grad is not None and torch.isfinite(black_B3YX.grad).all()


def test_the_gradient_reaches_the_rebuilt_pictures_only() -> None:
    loss = PerceptualLoss({"lpips": filled_lpips()}, {"lpips": 2.0})
    image_B3YX, rebuilt_B3YX = (pixels.requires_grad_() for pixels in pictures())
    total, parts = loss(image_B3YX, rebuilt_B3YX)
    total.backward()
    assert total.item() == pytest.approx(2.0 * parts["lpips"].item())
    assert image_B3YX.grad is None and rebuilt_B3YX.grad is not None and rebuilt_B3YX.grad.abs().max() > 0
    assert not any(weight.requires_grad for weight in loss.parameters())
    assert not loss.train().training, "batch norms would drift"


def test_float32_under_bfloat16() -> None:
    # The difference of two pictures that are nearly alike drowns in bfloat16.
    loss = PerceptualLoss({"lpips": filled_lpips()}, {"lpips": 1.0})
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        total, _ = loss(*pictures())
    assert total.dtype == torch.float32
    assert total.item() == pytest.approx(0.3780615, rel=1e-4)


@pytest.mark.parametrize("layout", ["two files", "one file"])
def test_lpips_opens_from_the_files_of_its_makers(narrow: None, tmp_path: Path, layout: str) -> None:
    judge = filled_lpips()
    save_lpips(judge, tmp_path)
    if layout == "one file":  # as lpips.LPIPS(net="vgg").state_dict() names its weights
        heads = torch.load(tmp_path / "vgg.pth")
        backbone = {f"net.slice1.{name.partition('.')[2]}": value for name, value in judge.vgg.state_dict().items()}
        again = {f"lins.{name[3:]}": value for name, value in heads.items()}
        scaling = {"scaling_layer.shift": torch.zeros(1, 3, 1, 1)}
        shutil.rmtree(tmp_path)
        tmp_path.mkdir()
        torch.save(heads | backbone | again | scaling, tmp_path / "lpips_vgg.pth")
    loss = PerceptualLoss.opened(PerceptualConfig(logits=0.0, weights=str(tmp_path)))
    assert loss.notice is None and loss.smallest_side == 16
    (source,) = loss.sources.values()
    assert len(source.split()) == (2 if layout == "two files" else 1)
    assert torch.equal(loss(*pictures())[0], judge(*pictures()))


def test_a_named_place_must_hold_the_files(narrow: None, tmp_path: Path) -> None:
    # Falling back in silence to another loss is not what a user wants who has said where the weights are.
    save_lpips(filled_lpips(), tmp_path)
    with pytest.raises(CheckpointError, match=r"one file named convnext_small.*found none.*https"):
        PerceptualLoss.opened(PerceptualConfig(weights=str(tmp_path)))
    shutil.copy(tmp_path / "vgg.pth", tmp_path / "lpips.pth")
    with pytest.raises(CheckpointError, match=r"found lpips.pth, vgg.pth"):
        PerceptualLoss.opened(PerceptualConfig(logits=0.0, weights=str(tmp_path)))
    with pytest.raises(CheckpointError, match="neither a folder"):
        PerceptualLoss.opened(PerceptualConfig(weights=str(tmp_path / "gone")))


def test_a_repository_on_the_hub_is_a_place(narrow: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def snapshot(name: str, *, allow_patterns: list[str]) -> str:
        asked.append((name, allow_patterns))
        if name == "some/nothing":
            raise OSError("404")
        return str(tmp_path)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot)
    save_lpips(filled_lpips(), tmp_path)
    loss = PerceptualLoss.opened(PerceptualConfig(logits=0.0, weights="some/weights"))
    assert list(loss.scales) == ["lpips"] and {name for name, _ in asked} == {"some/weights"}
    assert all(pattern != "*" for _, patterns in asked for pattern in patterns), "not the whole repository"
    with pytest.raises(CheckpointError, match=r"no folder some/nothing, and the Hub.*404"):
        PerceptualLoss.opened(PerceptualConfig(logits=0.0, weights="some/nothing"))


def test_the_cache_of_torch_hub_is_used(narrow: None, offline: Path) -> None:
    save_lpips(filled_lpips(), offline)
    (offline / "vgg.pth").rename(offline / LPIPS_FILE.name)
    torch.save(read_weights(offline / "vgg16-397923af.safetensors"), offline / "vgg16-397923af.pth")
    loss = PerceptualLoss.opened(PerceptualConfig())
    assert loss.scales == {"lpips": 1.0}
    assert loss.notice is not None and "logits" in loss.notice and "lpips alone" in loss.notice


def test_installed_packages_are_looked_into(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert ("torchmetrics", "functional/image/lpips_models/vgg.pth") in LPIPS_FILE.packages
    carried = tmp_path / "carries_weights" / "deep" / "vgg.pth"
    carried.parent.mkdir(parents=True)
    (tmp_path / "carries_weights" / "__init__.py").write_text("raise RuntimeError('must not be imported')")
    carried.touch()
    monkeypatch.syspath_prepend(tmp_path)
    packages = (("nowhere_to_be_found", "vgg.pth"), ("carries_weights", "deep/vgg.pth"))
    assert find_weights(replace(LPIPS_FILE, packages=packages)) == carried


def test_without_any_weights_one_line_says_so(offline: Path) -> None:
    loss = PerceptualLoss.opened(PerceptualConfig())
    assert loss.scales == {"multi_scale": 1.0} and loss.sources == {"multi_scale": "no weights"}
    assert loss.notice is not None and "\n" not in loss.notice
    for word in ("lpips, logits", "multi-scale", "perceptual.weights=", "HF_HUB_OFFLINE"):
        assert word in loss.notice
    image_B3YX, rebuilt_B3YX = pictures()
    assert torch.equal(loss(image_B3YX, rebuilt_B3YX)[0], multi_scale_distance(image_B3YX, rebuilt_B3YX))
    with pytest.raises(CheckpointError, match="HF_HUB_OFFLINE"):
        PerceptualLoss.opened(PerceptualConfig(multi_scale=0.0))


def test_a_failed_download_is_a_file_that_is_not_at_hand(offline: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError("no route to host")

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr(torch.hub, "download_url_to_file", refuse)
    with pytest.raises(NotAtHand, match=r"https://.*no route to host"):
        find_weights(LPIPS_FILE)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 half a file", b"<html>not found</html>"])
def test_a_damaged_file_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "vgg.pth").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"vgg\.pth is damaged"):
        read_weights(tmp_path / "vgg.pth")


def test_a_file_of_another_network_is_refused(narrow: None, tmp_path: Path) -> None:
    save_lpips(filled_lpips(), tmp_path)
    torch.save({"lin0.model.1.weight": torch.zeros(1, 2, 1, 1)}, tmp_path / "vgg.pth")
    with pytest.raises(CheckpointError, match=r"LPIPS.*missing.*heads"):
        PerceptualLoss.opened(PerceptualConfig(logits=0.0, weights=str(tmp_path)))
    torch.save({"epoch": 3}, tmp_path / "vgg.pth")
    with pytest.raises(CheckpointError, match="other than named tensors"):
        read_weights(tmp_path / "vgg.pth")


def test_the_multi_scale_distance_weighs_large_shapes() -> None:
    image_B3YX = torch.zeros(1, 3, 32, 32)
    ramp_B3YX = torch.linspace(-1, 1, 32).expand(1, 3, 32, 32)
    signs_B3YX = torch.where(torch.arange(32) % 2 == 0, 1.0, -1.0).expand(1, 3, 32, 32)
    noise_B3YX = signs_B3YX * ramp_B3YX.abs().mean()
    # Pixel by pixel both are equally wrong, but what is wrong over half the picture is seen from afar.
    assert ramp_B3YX.abs().mean().item() == pytest.approx(noise_B3YX.abs().mean().item())
    assert multi_scale_distance(image_B3YX, ramp_B3YX) > 0.8 * multi_scale_distance(image_B3YX, noise_B3YX)
    flat = multi_scale_distance(image_B3YX, torch.full_like(image_B3YX, 0.25))
    assert flat.item() == pytest.approx(0.25), "an error that is the same everywhere stands in the last band alone"
    assert multi_scale_distance(image_B3YX[..., :7, :5], image_B3YX[..., :7, :5] + 1.0).item() == pytest.approx(1.0)


@pytest.mark.parametrize(
    "changes",
    [{"lpips": -1.0}, {"lpips": 0.0, "logits": 0.0, "multi_scale": 0.0}, {"lpips": 0, "logits": 0, "weights": "w"}],
)
def test_weights_without_effect_are_refused(changes: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=r"above 0|no effect"):
        PerceptualConfig(**changes)


def test_every_judge_of_the_config_has_its_weight() -> None:
    asked = PerceptualConfig(lpips=1.0, logits=0.1, features=0.02).of_networks()
    assert asked == {"lpips": (LPIPS, 1.0), "logits": (ClassScores, 0.1), "features": (SmallFeatures, 0.02)}
