"""Samples out of a stream, as stages take them: the right ones on every rank, the same after a stop, with names."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from fixtures_tiny_model import WORDS, write_text_encoder
from making_datasets import colour, folder_with_texts, shard
from torch import Tensor, nn

from flowtok.data.admission import split_of_sample
from flowtok.data.collect import CollectConfig
from flowtok.data.filters import FilterConfig
from flowtok.errors import DataError, FlowTokError
from flowtok.text.encoder import TextEncoder
from flowtok.train.frozen import Pixels
from flowtok.train.loop import LossTerms, TrainingConfig, train
from flowtok.train.optim import OptimizerConfig
from flowtok.train.runtime import Runtime
from flowtok.train.samples import ReadsSamples
from flowtok.train.streaming import StreamedData, StreamingConfig, StreamSamples

COUNT = 40
CAPTIONS = [f"{WORDS[i % 12]} {('cat', 'king', 'heart', 'woman')[i // 12]}" for i in range(COUNT)]
ALL = StreamingConfig(num_workers=2, hold_out=False)


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> TextEncoder:
    folder = tmp_path_factory.mktemp("encoder")
    return TextEncoder.from_folder(folder, write_text_encoder(folder))


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    folder = folder_with_texts(tmp_path / "pictures", COUNT)
    for number, caption in enumerate(CAPTIONS):
        (folder / f"{number:04d}.txt").write_text(caption)
    return folder


def samples(
    place: Path, encoder: TextEncoder, config: StreamingConfig = ALL, *, rank: int = 0, num_ranks: int = 1
) -> StreamSamples:
    data = StreamedData(place, 8, CollectConfig(), config)
    runtime = Runtime(device=torch.device("cpu"), rank=rank, num_ranks=num_ranks)
    return StreamSamples(data, Pixels(encoder), encoder, runtime)


def taken(stream: StreamSamples, batches: int, size: int = 4) -> list[tuple[tuple[str, ...], dict[str, Any]]]:
    indices_B, generator = torch.arange(size), torch.Generator().manual_seed(0)
    found = [(stream.take(indices_B, generator), tuple(stream.names(indices_B))) for _ in range(batches)]
    return [(names, batch) for batch, names in found]


def test_a_batch_is_completed_with_what_belongs_to_its_pictures(pictures: Path, encoder: TextEncoder) -> None:
    """Were words and pictures not of the same sample, training would run and learn nothing."""
    stream = samples(pictures, encoder)
    ((names, batch),) = taken(stream, 1)
    completed = stream.complete(batch)
    stream.close()
    for name, image_3YX, text_SE in zip(names, completed["image_B3YX"], completed["text_BSE"], strict=True):
        assert (image_3YX[:, 0, 0] * 255).round().int().tolist() == list(colour(int(name[:4])))
        expected_SE = encoder.encode([CAPTIONS[int(name[:4])]]).features_BSE[0]
        torch.testing.assert_close(text_SE, expected_SE)
    assert stream.num_samples is None and stream.tally.used >= len(names)


@pytest.mark.filterwarnings("ignore:This DataLoader will create")  # more workers than this machine has cores
def test_two_ranks_take_every_sample_once(pictures: Path, encoder: TextEncoder) -> None:
    """Samples that come twice in an epoch on a cluster weigh twice; lost ones were fetched for nothing."""
    seen: list[str] = []
    for rank in range(2):
        stream = samples(pictures, encoder, rank=rank, num_ranks=2)
        seen += [name for names, _ in taken(stream, 4, size=5) for name in names]
        stream.close()
    assert len(seen) == len(set(seen)) == COUNT


@pytest.mark.parametrize("stop", [0, 3, 11])
def test_a_stage_goes_on_where_its_checkpoint_says(pictures: Path, encoder: TextEncoder, stop: int) -> None:
    """Also in the middle of an epoch and behind its end; the place is written with the checkpoint as JSON."""
    unbroken = samples(pictures, encoder)
    expected = taken(unbroken, 14)
    broken = samples(pictures, encoder)
    taken(broken, stop)
    place = broken.position()
    resumed = samples(pictures, encoder)
    if place is not None:
        resumed.go_to(json.loads(json.dumps(place)))
    found = taken(resumed, 14 - stop)
    for (names, batch), (expected_names, expected_batch) in zip(found, expected[stop:], strict=True):
        assert names == expected_names and torch.equal(batch["image_B3YX"], expected_batch["image_B3YX"])
        assert torch.equal(batch["ids_BS"], expected_batch["ids_BS"])
    for stream in (unbroken, broken, resumed):
        stream.close()


def test_what_is_held_out_is_shown_and_never_trained_on(pictures: Path, encoder: TextEncoder) -> None:
    """`flowtok eval` on the same pictures must not measure what was learned by heart."""
    stream = samples(pictures, encoder, StreamingConfig(num_workers=0))
    seen = {name for names, _ in taken(stream, 20) for name in names}
    rule = {f"{i:04d}.png": split_of_sample(f"{i:04d}.png", CAPTIONS[i]) for i in range(COUNT)}
    assert seen == {name for name, split in rule.items() if split == "train"} and len(seen) < COUNT
    shown = stream.data.shown(48)
    assert {rule[key] for key in shown.keys} == {"unseen_concept"}


def test_filters_that_leave_nothing_are_found_before_the_first_step(tmp_path: Path) -> None:
    place = shard(tmp_path / "a.tar", range(5))
    data = StreamedData(place, 8, CollectConfig(filters=FilterConfig(min_longer_side=256)), ALL)
    with pytest.raises(DataError, match="no sample of a is left to train on"):
        data.shown(4)


class Poisoned(ReadsSamples):
    """A network whose loss is infinite on one picture."""

    name = "poisoned"

    def __init__(self, stream: StreamSamples, key: str) -> None:
        self.samples, self.key = stream, key
        self.modules: nn.Module = nn.Linear(1, 1)

    def batch(self, indices_B: Tensor, generator: torch.Generator) -> dict[str, Any]:
        batch = self.samples.take(indices_B, generator)
        return batch | {"spoilt_B": torch.tensor([name == self.key for name in self.names(indices_B)])}

    def loss(self, batch: dict[str, Any]) -> LossTerms:
        batch = self.samples.complete(batch)
        brightness_B1 = batch["image_B3YX"].mean((1, 2, 3))[:, None]
        error_B1 = self.modules(brightness_B1).square()
        return LossTerms(total=torch.where(batch["spoilt_B"][:, None], torch.inf, error_B1).mean())

    def preview(self, modules: nn.Module, path: Path) -> dict[str, float]:
        return {}


def test_a_broken_batch_of_a_stream_is_named_and_saved_as_it_was(
    pictures: Path, encoder: TextEncoder, tmp_path: Path
) -> None:
    """The stream has moved on when the loss is found to be infinite: what is saved must not be the next samples."""
    stream = samples(pictures, encoder)
    (path,) = [pictures / "0017.png"]
    config = TrainingConfig(num_steps=40, batch_size=4, optimizer=OptimizerConfig(warmup_steps=0), precision="float32")
    with pytest.raises(FlowTokError, match=r"with samples .*0017\.png"):
        train(Poisoned(stream, path.name), config, tmp_path / "run", Runtime.start(device="cpu"))
    stream.close()
    (saved,) = (tmp_path / "run").glob("not-finite-*.pt")
    (part,) = torch.load(saved, weights_only=True)["parts"]
    place = part["names"].index("0017.png")
    assert part["batch"]["spoilt_B"].tolist() == [number == place for number in range(4)]
    assert part["batch"]["image_B3YX"][place, :, 0, 0].tolist() == list(colour(17))
