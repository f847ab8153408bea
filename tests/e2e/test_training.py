"""A model from nothing: all stages on the small licensed set, stopped and resumed, then used."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from flowtok.checkpoints.catalogue import shipped_folder
from flowtok.components import SamplingConfig, write_model_config
from flowtok.errors import FlowTokError
from flowtok.pipeline import FlowTok
from flowtok.recipes import TINY
from flowtok.train.course import STAGES, run_course
from flowtok.train.runtime import Runtime

DATA = Path(__file__).parents[1] / "data" / "emoji_small"
COMPONENTS = ("image_tokenizer", "latent_scale", "text_projector", "text_decoder", "velocity")


class Killed(Exception):
    """Stands for a process that dies."""


def train(folder: Path, *, die_at: tuple[str, int] | None = None, recipe=TINY) -> Path:
    def report(stage: str, step: int, _total: int, _metrics: dict[str, float]) -> None:
        if (stage, step) == die_at:
            raise Killed

    encoder = shipped_folder() / "emoji" / "text_encoder"
    return run_course(recipe, DATA, folder, text_encoder=encoder, runtime=Runtime.start(device="cpu"), report=report)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(tmp_path_factory.mktemp("unbroken"))


def test_all_stages_give_a_model_that_draws_and_reads(trained: Path) -> None:
    # A user who trains on pictures of their own must end with a folder that generate and caption take.
    write_model_config(
        trained,
        name="tiny",
        configs={
            part: getattr(TINY, part)
            for part in ("image_tokenizer", "text_encoder", "text_projector", "velocity", "text_decoder")
        },
        sampling=SamplingConfig(num_inference_steps=2, caption_steps=2),
        text_encoder=shipped_folder() / "emoji" / "text_encoder",
        provenance={},
    )
    model = FlowTok.from_pretrained(trained)
    picture = model.generate("red heart", seed=1)[0]
    assert picture.size == (64, 64)
    assert len(model.caption(picture)) == 1
    for stage in STAGES:
        assert (trained.parent / stage / "metrics.jsonl").stat().st_size > 0


@pytest.mark.parametrize("stage", ["tokenizer", "flow"])
def test_a_killed_run_goes_on_to_the_same_weights(trained: Path, tmp_path: Path, stage: str) -> None:
    # Losing power in the night must not cost more than the steps since the last checkpoint, nor change the result.
    with pytest.raises(Killed):
        train(tmp_path, die_at=(stage, 8))
    resumed = train(tmp_path)
    for name in COMPONENTS:
        ours, theirs = load_file(resumed / f"{name}.safetensors"), load_file(trained / f"{name}.safetensors")
        assert all(torch.equal(ours[key], theirs[key]) for key in theirs), name


def test_training_moves_the_weights(trained: Path, tmp_path: Path) -> None:
    shorter = replace(TINY, tokenizer_training=replace(TINY.tokenizer_training, num_steps=1))
    other = run_course(
        shorter,
        DATA,
        tmp_path,
        text_encoder=shipped_folder() / "emoji" / "text_encoder",
        runtime=Runtime.start(device="cpu"),
        stages=("tokenizer",),
    )
    ours, theirs = (load_file(folder / "image_tokenizer.safetensors") for folder in (other, trained))
    assert not torch.equal(ours["decoder.to_pixels.weight"], theirs["decoder.to_pixels.weight"])


def test_a_folder_of_another_run_is_refused(trained: Path) -> None:
    changed = replace(TINY, tokenizer_training=replace(TINY.tokenizer_training, batch_size=4))
    with pytest.raises(FlowTokError, match="another configuration"):
        train(trained.parent, recipe=changed)
