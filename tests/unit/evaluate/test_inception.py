"""The Inception network gives the features that torch-fidelity's gives, and says where its weights come from."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from flowtok.errors import CheckpointError
from flowtok.evaluate import inception
from flowtok.evaluate.inception import FeatureNetwork, Inception, clean, tf1

# FeatureExtractorInceptionV3 of torch-fidelity 0.4.0 with the weights and pictures below, in float32 on one thread.
MEANS = [1.4426356554031372, 1.4058630466461182, 1.671488642692566]
DEVIATIONS = [1.939374327659607, 1.8887567520141602, 2.2493510246276855]
FIRST = [0.0, 2.7048451900482178, 1.8723870515823364, 1.2936112880706787, 2.8720412254333496]


def filled() -> Inception:
    """The network with numbers of numpy's old generator, whose stream is the same in every release."""
    with torch.device("meta"):
        network = Inception()
    network, draws = network.to_empty(device="cpu"), np.random.RandomState(0)
    with torch.no_grad():
        for name, tensor in sorted(network.state_dict().items()):
            if name.endswith("num_batches_tracked"):
                tensor.zero_()
                continue
            draw = torch.from_numpy(draws.standard_normal(tuple(tensor.shape)).astype(np.float32))
            if tensor.ndim == 4:
                tensor.copy_(draw * (2 / tensor[0].numel()) ** 0.5)
            elif name.endswith(("running_var", "bn.weight")):
                tensor.copy_(1 + 0.1 * draw.abs())
            else:
                tensor.copy_(0.1 * draw)
    return network


def pictures() -> list[Image.Image]:
    draws = np.random.RandomState(1)
    return [
        Image.fromarray(draws.randint(0, 256, (40, 56, 3)).astype(np.uint8)).resize(size, Image.Resampling.BICUBIC)
        for size in ((56, 40), (64, 64), (400, 320))
    ]


def test_features_are_torch_fidelitys() -> None:
    """A wrong pool or padding anywhere gives an FID that compares with nobody's. Rounding of 90 layers: 1e-4."""
    features_ND = FeatureNetwork(filled(), "0" * 64)(pictures(), "tf1")
    torch.testing.assert_close(features_ND.mean(1), torch.tensor(MEANS), rtol=1e-4, atol=0)
    torch.testing.assert_close(features_ND.std(1), torch.tensor(DEVIATIONS), rtol=1e-4, atol=0)
    torch.testing.assert_close(features_ND[0, :5], torch.tensor(FIRST), rtol=1e-3, atol=1e-4)


def test_tf1_resize_by_hand() -> None:
    """Position i of four is taken at i * 2 / 4 of a row of two: 0, 0.5, 1 and, past the last pixel, the last one."""
    row = torch.tensor([10.0, 20.0]).view(1, 1, 1, 2).expand(1, 3, 2, 2)
    assert tf1(row, side=4)[0, 0, 0].tolist() == [10.0, 15.0, 20.0, 20.0]


def test_clean_resize_is_antialiased_and_keeps_a_flat_picture() -> None:
    """Stripes of one pixel become grey; taking every fourth pixel, as the other way does, sees the black ones alone."""
    stripes = Image.fromarray(np.tile(np.array([0, 255], dtype=np.uint8), (1196, 598))).convert("RGB")
    inner = clean(stripes)[..., 4:-4]
    assert abs(float(inner.mean()) - 127.5) < 1.0 and float(inner.std()) < 1.0
    assert float(tf1(inception._pixels(stripes)).abs().max()) == 0.0
    assert clean(Image.new("RGB", (20, 30), (7, 8, 9))).mean((0, 2, 3)).tolist() == pytest.approx([7, 8, 9], abs=1e-4)


def test_weights_come_from_a_folder_and_their_hash_goes_into_the_protocol(tmp_path: Path) -> None:
    network = filled()
    whole = {**network.state_dict(), "fc.weight": torch.zeros(1008, 2048), "fc.bias": torch.zeros(1008)}
    torch.save(whole, tmp_path / inception.INCEPTION_FILE.name)
    opened = FeatureNetwork.opened(str(tmp_path))
    (picture,) = pictures()[:1]
    assert torch.equal(opened([picture], "tf1"), FeatureNetwork(network, "")([picture], "tf1"))
    assert len(opened.protocol("tf1")["sha256"]) == 64
    assert opened.protocol("tf1") != opened.protocol("clean")


def test_missing_weights_say_what_to_fetch_and_where_to_put_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    with pytest.raises(CheckpointError, match=r"github.com/toshas/torch-fidelity.*--weights"):
        FeatureNetwork.opened(None)
    with pytest.raises(CheckpointError, match="must hold one file named weights-inception"):
        FeatureNetwork.opened(str(tmp_path))
