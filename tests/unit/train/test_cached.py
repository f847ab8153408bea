"""Training from cached moments: the joint stage takes them as it takes pictures, and goes on after a stop."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from making_datasets import folder_with_texts

from flowtok.data.batch_streams import BatchConfig
from flowtok.data.latent_folders import open_latents
from flowtok.data.latent_streams import collect_latents
from flowtok.errors import DataError
from flowtok.flow.transformer import VelocityTransformer
from flowtok.image.latents import LatentScale
from flowtok.pipeline import FlowTok
from flowtok.train.cached import CachedPairs
from flowtok.train.encoding import EncodingConfig, EncodingJob
from flowtok.train.flow import Sketch
from flowtok.train.joint import JointModules, JointStage, JointStageConfig
from flowtok.train.loop import TrainingConfig, train
from flowtok.train.optim import OptimizerConfig
from flowtok.train.runtime import Runtime
from flowtok.train.weights import fingerprint_of_words

HERE = Runtime(device=torch.device("cpu"))
SETTINGS = BatchConfig(batch_size=1)


@pytest.fixture
def written(tiny_folder: Path, tmp_path: Path) -> Callable[[bool], Path]:
    def written(words: bool) -> Path:
        place, folder = folder_with_texts(tmp_path / "pictures", 24), tmp_path / f"latents-{words}"
        folder.mkdir()
        model = str(tiny_folder)
        job = EncodingJob(place=str(place), folder=folder, tokenizer=model, text_encoder=model if words else None,
                          config=EncodingConfig(batch_size=8, dtype="float32"))  # fmt: skip
        encoding = job.open(HERE)
        encoding.make(encoding.unfinished())
        encoding.finish()
        return folder

    return written


def stage(folder: Path, model: FlowTok) -> JointStage:
    velocity, projector = model.velocity.config, model.text_projector.config
    samples = CachedPairs(open_latents(folder), SETTINGS, model.text_encoder, model.latent_scale, HERE)
    sketch = Sketch(
        features_BSE=model.text_encoder.encode(["a cat"]).features_BSE,
        tokenizer=model.image_tokenizer,
        scale=model.latent_scale,
    )
    config = JointStageConfig(head_hidden=8)
    return JointStage(velocity, projector, config, samples=samples, sketch=sketch)


def test_features_from_the_cache_and_made_anew_are_the_same(written: Callable[[bool], Path], tiny: FlowTok) -> None:
    """Whether text features are cached is a matter of speed and disk, not of what is learned."""
    indices_B, found = torch.arange(6), []
    for words in (False, True):
        samples = CachedPairs(open_latents(written(words)), SETTINGS, tiny.text_encoder, tiny.latent_scale, HERE)
        batch = samples.complete(samples.take(indices_B, torch.Generator().manual_seed(1)))
        found.append(batch)
        names = samples.names(indices_B)
        texts = [f"thing {int(name[:4])}" for name in names]
        expected_BSE = tiny.text_encoder.encode(texts).features_BSE
        torch.testing.assert_close(batch["features_BSE"], expected_BSE, rtol=1e-5, atol=1e-5)
        moments = collect_latents(samples.source).moments
        mean_BLC = moments.mean_NLC[[int(name[:4]) for name in names]]
        spread = (batch["z_image_BLC"] - tiny.latent_scale.to_flow(mean_BLC)).abs().mean()
        assert 0 < spread < 5, "tokens are drawn around the picture's own means, as the flow sees them"
        samples.close()
    assert torch.equal(found[0]["z_image_BLC"], found[1]["z_image_BLC"])


def test_features_of_another_text_encoder_are_refused(written: Callable[[bool], Path], tiny: FlowTok) -> None:
    """They have the right shape and say something else: a flow would learn captions that nobody can give it."""
    own = fingerprint_of_words(tiny.text_encoder)
    cached = written(True)
    open_latents(cached, text_encoder=own)
    with pytest.raises(DataError, match="another text encoder"):
        open_latents(cached, text_encoder="0" * len(own))
    open_latents(written(False), text_encoder="0" * len(own))  # without cached features there are none to be wrong


def test_the_joint_stage_trains_on_them_and_goes_on_to_the_bit(
    written: Callable[[bool], Path], tiny: FlowTok, tmp_path: Path
) -> None:
    folder = written(False)
    config = TrainingConfig(
        num_steps=6, batch_size=5, precision="float32", checkpoint_every=3, preview_every=100, log_every=1,
        optimizer=OptimizerConfig(warmup_steps=1),
    )  # fmt: skip
    unbroken = train(stage(folder, tiny), config, tmp_path / "unbroken", HERE)

    class Killed(Exception):
        """As a power cut."""

    def cut(step: int, figures: dict[str, float]) -> None:
        if step == 5:
            raise Killed

    with pytest.raises(Killed):
        train(stage(folder, tiny), config, tmp_path / "cut", HERE, report=cut)
    again = train(stage(folder, tiny), config, tmp_path / "cut", HERE)
    assert isinstance(again, JointModules) and isinstance(again.network, VelocityTransformer)
    for one, other in zip(unbroken.state_dict().values(), again.state_dict().values(), strict=True):
        assert torch.equal(one, other)


def test_the_scale_of_the_tokens_follows_from_the_first_samples(written: Callable[[bool], Path]) -> None:
    found = collect_latents(open_latents(written(False)), limit=20).moments
    assert len(found.mean_NLC) == 20
    scale = LatentScale.fitted(found.mean_NLC, found.logvar_NLC)
    z_NLC = scale.to_flow(found.sample(torch.arange(20), torch.Generator().manual_seed(0)))
    assert abs(z_NLC.std().item() - 1.0) < 0.1, "640 draws tell a deviation to about 3 %"
