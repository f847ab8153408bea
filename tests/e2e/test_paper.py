"""The paper's recipes run through on shards, each tiny: tokenizer, both flow stages, captions; killed and gone on."""

from __future__ import annotations

import io
import json
import os
import re
import signal
from pathlib import Path

import pytest
import torch
import webdataset
from fixtures_tiny_model import CHANNELS, LENGTH, SIZE, WIDTH, WORDS, write_text_encoder
from making_datasets import picture
from PIL import Image
from safetensors.torch import load_file

from flowtok.app.cli import main
from flowtok.config import apply_overrides
from flowtok.errors import FlowTokError
from flowtok.pipeline import FlowTok
from flowtok.recipes import RECIPES
from flowtok.train.course import run_course
from flowtok.train.runtime import Runtime
from flowtok.train.stops import TrainingStopped

SIDE = ["width=16", "depth=1", "num_heads=2"]
TINY = [
    *(f"text_encoder.{one}" for one in ("family=bert", f"width={WIDTH}", f"num_tokens={LENGTH}", "activation=gelu")),
    f"text_encoder.vocabulary_size={len(WORDS) + 4}",
    *(f"image_tokenizer.{one}" for one in (f"image_size={SIZE}", "patch_size=4", f"num_tokens={LENGTH}")),
    *(f"image_tokenizer.{one}" for one in (f"token_channels={CHANNELS}", f"text_width={WIDTH}")),
    f"image_tokenizer.num_text_tokens={LENGTH}",
    *(f"image_tokenizer.{half}.{one}" for half in ("encoder", "decoder") for one in SIDE),
    *(f"text_projector.{one}" for one in (f"text_width={WIDTH}", "num_layers=1", "num_heads=2", "hidden=16")),
    *(f"{part}.num_tokens={LENGTH}" for part in ("text_projector", "velocity")),
    *(f"{part}.token_channels={CHANNELS}" for part in ("text_projector", "velocity")),
    *(f"velocity.{one}" for one in SIDE),
    "stream.shuffle_buffer=8",
]
DECODER = [
    *(f"text_decoder.{one}" for one in SIDE),
    f"text_decoder.num_tokens={LENGTH}",
    f"text_decoder.token_channels={CHANNELS}",
    f"text_decoder.vocabulary_size={len(WORDS) + 4}",
]
TOKENIZER = ["tokenizer_stage.perceptual=null", "tokenizer_stage.adversary.start_step=2"]
TOKENIZER += [f"tokenizer_stage.adversary.network.{one}" for one in ("channels=8", "num_stages=1")]
HEAD = ["joint_stage.head_hidden=8"]
COUNT = 24


def short(training: str, num_steps: int = 4) -> list[str]:
    counts = [f"num_steps={num_steps}", "batch_size=8", "micro_batch_size=4", "precision=float32", "log_every=1"]
    return [f"{training}.{one}" for one in (*counts, "checkpoint_every=2", "preview_every=4")]


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Two shards as img2dataset writes them: some pictures are small, marked or not fine, one is broken."""
    folder = tmp_path_factory.mktemp("shards")
    for shard in range(2):
        with webdataset.TarWriter(str(folder / f"{shard:05d}.tar")) as writer:
            for number in range(shard * COUNT, shard * COUNT + COUNT):
                width = 100 if number % 12 == 5 else 300
                record = {
                    "width": width,
                    "height": width,
                    "aesthetic": 5.5 if number % 2 else 6.5,
                    "pwatermark": 0.9 if number % 12 == 7 else 0.1,
                }
                words = f"{WORDS[number % 12]} {WORDS[(number // 12) % 12]}"
                content = b"broken" if number == 2 else picture(number, (20, 20), "JPEG")
                sample = {"__key__": f"{number:09d}", "jpg": content, "txt": words, "json": json.dumps(record)}
                if number % 3 == 0:
                    sample["recap_txt"] = f"The image depicts a {words}"
                writer.write(sample)
    return str(folder / "{00000..00001}.tar")


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A text encoder that is no CLIP, but given as one would be: as the folder that holds it."""
    folder = tmp_path_factory.mktemp("clip")
    write_text_encoder(folder / "text_encoder")
    return folder


def command(*arguments: object, code: int = 0) -> None:
    with pytest.raises(SystemExit) as end:
        main([str(argument) for argument in arguments])
    assert end.value.code == code, arguments


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory, shards: str, clip: Path) -> Path:
    out = tmp_path_factory.mktemp("tokenizer")
    settings = [*TINY, *TOKENIZER, *short("tokenizer_training"), "stream.num_workers=0"]
    command(
        "train", "paper-tokenizer", "--data", shards, "-o", out, "--text-encoder", clip, "--device", "cpu", *settings
    )
    return out


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory, shards: str, tokenizer: Path) -> Path:
    out = tmp_path_factory.mktemp("first")
    settings = [*TINY, *HEAD, *short("flow_training"), "stream.num_workers=2"]
    command("train", "paper-256-stage1", "--data", shards, "-o", out, "--from", tokenizer, "--device", "cpu", *settings)
    return out


def test_the_tokenizer_alone_is_a_model(tokenizer: Path) -> None:
    """It is what the flow starts from, and rebuilds pictures by itself."""
    model = FlowTok.from_pretrained(tokenizer / "model")
    (rebuilt,) = model.reconstruct([Image.open(io.BytesIO(picture(3, (20, 20))))], captions=["red cat"])
    assert rebuilt.size == (SIZE, SIZE)
    assert model.latent_scale.scale_LC.unique().numel() == 1, "one number, as in the authors' release"


def test_the_first_stage_keeps_the_tokenizer_and_draws(first: Path, tokenizer: Path) -> None:
    ours, theirs = (load_file(one / "model" / "image_tokenizer.safetensors") for one in (first, tokenizer))
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)
    model = FlowTok.from_pretrained(first / "model")
    assert "text_decoder" not in model.parts and len(model.generate(["red cat"], num_inference_steps=2)) == 1
    record = json.loads((first / "flow" / "config.json").read_text())
    assert record["CollectConfig"]["filters"]["aesthetic_above"] == 5.0
    assert record["CollectConfig"]["captions"]["recaption_share"] == 0.95 and "start" not in record


def test_the_second_stage_goes_on_from_the_first(
    first: Path, shards: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Months of training must not be left behind: with a rate of next to nothing the weights stay the first stage's."""
    still = ["flow_training.optimizer.learning_rate=1e-12", "flow_training.optimizer.weight_decay=0"]
    settings = [*TINY, *HEAD, *short("flow_training"), *still, "stream.num_workers=2"]
    command(
        "train", "paper-256-stage2", "--data", shards, "-o", tmp_path, "--from", first, "--device", "cpu", *settings
    )
    for name in ("velocity", "text_projector", "alignment_head"):
        ours, theirs = (load_file(one / "model" / f"{name}.safetensors") for one in (tmp_path, first))
        for key in theirs:
            torch.testing.assert_close(ours[key], theirs[key], atol=1e-6, rtol=1e-5)
    (said,) = [record.getMessage() for record in caplog.records if "left out" in record.getMessage()]
    assert "aesthetic score not above 6" in said and "longer side below 256 px" in said


def test_captions_are_read_at_the_end(first: Path, shards: str, tmp_path: Path) -> None:
    settings = [*TINY, *DECODER, *HEAD, *short("flow_training"), *short("captioner_training"), "stream.num_workers=0"]
    settings += ["captioner_stage.text_share=0.5", "captioner_stage.num_steps=2"]
    command(
        "train", "paper-captions-b", "--data", shards, "-o", tmp_path, "--from", first, "--device", "cpu", *settings
    )
    ours, theirs = (load_file(one / "model" / "text_projector.safetensors") for one in (tmp_path, first))
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs), "the projector is frozen"
    model = FlowTok.from_pretrained(tmp_path / "model")
    (said,) = model.caption([Image.open(io.BytesIO(picture(3, (20, 20))))])
    assert isinstance(said, str)


def test_the_flow_learns_from_cached_moments(tokenizer: Path, shards: str, tmp_path: Path) -> None:
    """Encoding every picture anew in each epoch costs more than the flow's own step."""
    moments, out = tmp_path / "moments", tmp_path / "run"
    command("data", "latents", shards, "-o", moments, "--model", tokenizer, "--device", "cpu")
    settings = [*TINY, *HEAD, *short("flow_training", 2), "stream.num_workers=0", "stream.moments=true"]
    command(
        "train", "paper-256-stage1", "--data", moments, "-o", out, "--from", tokenizer, "--device", "cpu", *settings
    )
    assert "velocity" in FlowTok.from_pretrained(out / "model").parts


def test_moments_in_the_releases_layout_say_why_no_filter_can_act_on_them(
    tokenizer: Path, shards: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """They hold neither sizes nor scores, which the paper's filters ask for: what to do must be said."""
    moments, out = tmp_path / "moments", tmp_path / "run"
    filters = ["filters.min_longer_side=256", "filters.max_aspect=2"]
    command(
        *("data", "latents", shards, "-o", moments, "--model", tokenizer, "--device", "cpu"),
        *("--layout", "release", *filters),
    )
    settings = [*TINY, *HEAD, *short("flow_training", 2), "stream.num_workers=0", "stream.moments=true"]
    start = ["--data", moments, "-o", out, "--from", tokenizer, "--device", "cpu"]
    command("train", "paper-256-stage1", *start, *settings, code=2)
    said = capsys.readouterr().err
    assert "no size" in said and "neither sizes nor scores" in said
    without = [word for word in said.split() if word.startswith("data.filters.") and word.endswith("=null")]
    assert len(without) == 4
    command("train", "paper-256-stage1", *start, *settings, *without)
    assert "velocity" in FlowTok.from_pretrained(out / "model").parts


def test_the_way_to_512_px(first: Path, tokenizer: Path, shards: str, clip: Path, tmp_path: Path) -> None:
    """As runs/paper.sh goes it: a tokenizer for twice the size from the smaller one, then the flow from the second."""
    large = f"image_tokenizer.image_size={2 * SIZE}"
    fine, out = tmp_path / "tokenizer", tmp_path / "flow"
    settings = [*TINY, large, *TOKENIZER, *short("tokenizer_training", 3), "stream.num_workers=0"]
    start = ["--from", tokenizer, "--text-encoder", clip, "--device", "cpu"]
    command("train", "paper-tokenizer", "--data", shards, "-o", fine, *start, *settings)
    settings = [*TINY, large, *HEAD, *short("flow_training", 2), "stream.num_workers=0"]
    start = ["--from", fine, "--from", first, "--device", "cpu"]
    command("train", "paper-512-b", "--data", shards, "-o", out, *start, *settings)
    model = FlowTok.from_pretrained(out / "model")
    (drawn,) = model.generate(["red cat"], num_inference_steps=2)
    assert drawn.size == (2 * SIZE, 2 * SIZE)
    ours, theirs = (load_file(one / "model" / "image_tokenizer.safetensors") for one in (out, fine))
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)
    assert json.loads((out / "flow" / "config.json").read_text())["start"], "the flow went on from the smaller size"


class Killed(Exception):
    """Stands for a process that dies."""


def test_a_killed_stage_goes_on_to_the_same_weights(first: Path, tokenizer: Path, shards: str, tmp_path: Path) -> None:
    """Two workers and the place in the shards included; the run of the command is the unbroken one."""
    settings = [*TINY, *HEAD, *short("flow_training"), "stream.num_workers=2"]
    recipe = apply_overrides(RECIPES["paper-256-stage1"], settings)

    def die(_stage: str, step: int, _total: int, _metrics: dict[str, float]) -> None:
        if step == 3:
            raise Killed

    def train(report=None) -> Path:
        encoder, runtime = tokenizer / "model" / "text_encoder", Runtime.start(device="cpu")
        start = tokenizer / "model"
        return run_course(recipe, shards, tmp_path, text_encoder=encoder, runtime=runtime, start=start, report=report)

    with pytest.raises(Killed):
        train(die)
    model = train()
    for name in ("velocity", "text_projector", "alignment_head"):
        ours, theirs = load_file(model / f"{name}.safetensors"), load_file(first / "model" / f"{name}.safetensors")
        assert all(torch.equal(ours[key], theirs[key]) for key in theirs), name


def test_what_was_left_out_is_said_when_it_is_stopped_too(
    tokenizer: Path, shards: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A run of weeks is stopped more often than it ends: what it does not use must be seen before that."""
    settings = [*TINY, *HEAD, *short("flow_training"), "stream.num_workers=0"]
    recipe = apply_overrides(RECIPES["paper-256-stage1"], settings)

    def press(_stage: str, step: int, _total: int, _metrics: dict[str, float]) -> None:
        if step == 2:
            os.kill(os.getpid(), signal.SIGINT)

    def train(report=None) -> None:
        start, runtime = tokenizer / "model", Runtime.start(device="cpu")
        encoder = start / "text_encoder"
        run_course(recipe, shards, tmp_path, text_encoder=encoder, runtime=runtime, start=start, report=report)

    with pytest.raises(TrainingStopped, match="stopped by Ctrl-C at step 3"):
        train(press)
    assert "left out" in caplog.text and "longer side below 256 px" in caplog.text
    # At its end a run speaks of all that it has read, not of what came since it was started last.
    train()
    training = recipe.flow_training
    used = [int(number) for number in re.findall(r"used (\d+) of \d+ samples; left out", caplog.text)]
    assert training is not None and used[-1] >= training.num_steps * training.batch_size > used[0]


def test_what_is_missing_is_said_before_anything_is_read(
    tokenizer: Path, clip: Path, shards: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def refused(words: str, recipe: str, *more: object) -> None:
        command("train", recipe, "--data", shards, "-o", tmp_path / "run", "--device", "cpu", *TINY, *more, code=2)
        assert words in capsys.readouterr().err

    refused("goes on from a velocity", "paper-256-stage2", "--from", tokenizer)
    refused("trains no image_tokenizer", "paper-256-stage1", "--text-encoder", clip)
    refused("has no stage captioner", "paper-256-stage1", "--from", tokenizer, "--stage", "captioner")
    refused("reads captions with CLIP", "paper-256-stage1", "text_encoder.family=clip")
    refused("image_size is 16, the recipe has 32", "paper-512", "--from", tokenizer, "image_tokenizer.image_size=32")


def test_a_stream_wants_stages_that_can_read_it() -> None:
    with pytest.raises(FlowTokError, match="joint_stage"):
        apply_overrides(RECIPES["paper-256-stage1"], ["joint_stage=null"])
    with pytest.raises(FlowTokError, match="joint_stage"):
        apply_overrides(RECIPES["tiny"], ["stream.num_workers=2"])
