"""A model from nothing: all stages on the small licensed set, by the command and stopped and resumed, then used."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from flowtok.app.cli import main
from flowtok.checkpoints.catalogue import shipped_folder
from flowtok.checkpoints.store import save_component
from flowtok.config import load, save
from flowtok.data.latents import Moments
from flowtok.errors import FlowTokError
from flowtok.recipes import EMOJI_FEW, TINY
from flowtok.train.course import STAGES, Recipe, run_course
from flowtok.train.inputs import Inputs
from flowtok.train.joint import JointStageConfig
from flowtok.train.runtime import Runtime

DATA = Path(__file__).parents[1] / "data" / "emoji_small"
SHAPES = ("image_tokenizer", "text_projector", "text_decoder", "velocity")
COMPONENTS = ("image_tokenizer", "latent_scale", "text_projector", "text_decoder", "velocity")


class Killed(Exception):
    """Stands for a process that dies."""


def train(folder: Path, *, die_at: tuple[str, int] | None = None, recipe=TINY) -> Path:
    def report(stage: str, step: int, _total: int, _metrics: dict[str, float]) -> None:
        if (stage, step) == die_at:
            raise Killed

    encoder = shipped_folder() / "emoji" / "text_encoder"
    return run_course(recipe, DATA, folder, text_encoder=encoder, runtime=Runtime.start(device="cpu"), report=report)


def command(*arguments: object) -> None:
    with pytest.raises(SystemExit) as end:
        main([str(argument) for argument in arguments])
    assert end.value.code == 0, arguments


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("unbroken")
    command("train", "tiny", "--data", DATA, "-o", folder, "--device", "cpu")
    return folder / "model"


def test_the_commands_train_a_model_that_draws_and_reads(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # A user who trains on pictures of their own must end with a folder that generate and caption take.
    picture, model = tmp_path / "heart.png", ["--model", trained, "--device", "cpu"]
    command("generate", "red heart", "--seed", "1", "--steps", "2", "-o", picture, *model)
    with Image.open(picture) as drawn:
        assert drawn.size == (64, 64)
    capsys.readouterr()
    command("caption", picture, "--json", *model)
    (said,) = json.loads(capsys.readouterr().out)
    assert said["file"] == str(picture) and isinstance(said["caption"], str)
    assert load(Recipe, trained.parent / "recipe.yaml") == TINY
    for stage in STAGES:
        assert (trained.parent / stage / "metrics.jsonl").stat().st_size > 0


def test_a_refused_command_leaves_the_run_as_it_is(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # recipe.yaml tells what the weights beside it were trained by: a second try must not rewrite it.
    folder = tmp_path / "run"
    shutil.copytree(trained.parent, folder)
    before = (folder / "recipe.yaml").read_text()
    with pytest.raises(SystemExit) as end:
        main(["train", "tiny", "flow_training.batch_size=4", "--data", str(DATA), "-o", str(folder), "--device", "cpu"])
    assert end.value.code == 2
    assert "another configuration" in capsys.readouterr().err
    assert (folder / "recipe.yaml").read_text() == before


def test_a_run_inside_its_data_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    # Its previews would be learned as pictures when the command is given again.
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as end:
        main(["train", "tiny", "--data", ".", "-o", "run"])
    assert end.value.code == 2
    assert "cannot write run: it lies in the data folder" in capsys.readouterr().err and not Path("run").exists()


def test_a_partial_training_says_what_remains(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    # Else whoever trains stage by stage does not know why there is no model yet.
    command("train", "tiny", "--data", DATA, "-o", tmp_path, "--stage", "tokenizer", "--device", "cpu")
    said = capsys.readouterr()
    assert "trained so far: tokenizer; still to train: text, flow, captioner" in said.err
    assert said.out == ""


def test_a_decoder_goes_on_alone_and_all_else_stays(trained: Path, tmp_path: Path) -> None:
    """Its tokens mean what they meant, so that what comes out is a whole model again."""
    changes = ["tokenizer_stage.learns=decoder", "tokenizer_stage.noise=0.5"]
    rest = [f"{stage}_training=null" for stage in ("text", "flow", "captioner")]
    out, start = tmp_path / "run", tmp_path / "start"
    shutil.copytree(trained, start)
    record = json.loads((start / "config.json").read_text())
    record["sampling"]["guidance_scale"] = 3.0
    (start / "config.json").write_text(json.dumps(record))
    command("train", "tiny", *changes, *rest, "--from", start, "--data", DATA, "-o", out, "--device", "cpu")
    assert json.loads((out / "model" / "config.json").read_text())["sampling"] == record["sampling"]
    for name in COMPONENTS:
        ours, theirs = load_file(out / "model" / f"{name}.safetensors"), load_file(trained / f"{name}.safetensors")
        moved = {key.split(".")[0] for key in theirs if not torch.equal(ours[key], theirs[key])}
        assert moved == ({"decoder"} if name == "image_tokenizer" else set()), name
    model = ["--model", out / "model", "--device", "cpu"]
    command("generate", "red heart", "--seed", "1", "--steps", "2", "-o", tmp_path / "heart.png", *model)
    command("caption", tmp_path / "heart.png", *model)


def test_a_decoder_alone_wants_an_encoder(tmp_path: Path) -> None:
    stage = replace(TINY.tokenizer_stage, learns="decoder")
    with pytest.raises(FlowTokError, match="name the model whose encoder it reads with --from"):
        train(tmp_path, recipe=replace(TINY, tokenizer_stage=stage))


def test_a_run_that_is_killed_in_every_stage_goes_on_to_the_same_weights(trained: Path, tmp_path: Path) -> None:
    # Losing power in the night must not cost more than the steps since the last checkpoint, nor change the result.
    # The text side dies before its first checkpoint, the captioner after its last step and before it is saved.
    for die_at in (("tokenizer", 8), ("text", 4), ("flow", 8), ("captioner", 12)):
        with pytest.raises(Killed):
            train(tmp_path, die_at=die_at)
    resumed = train(tmp_path)
    for name in COMPONENTS:
        ours, theirs = load_file(resumed / f"{name}.safetensors"), load_file(trained / f"{name}.safetensors")
        assert all(torch.equal(ours[key], theirs[key]) for key in theirs), name


@pytest.mark.parametrize(
    "recipe",
    [
        replace(TINY, captioner_training=None),
        replace(
            TINY,
            joint_stage=JointStageConfig(alignment_target="average_pool", alignment_loss="cosine"),
            flow_stage=replace(TINY.flow_stage, time="uniform"),
            text_projector=replace(TINY.text_projector, noise_std=None),
        ),
    ],
    ids=["the flow stage reads captions", "the paper's joint training"],
)
def test_other_ways_to_train_give_a_whole_model(tmp_path: Path, recipe: Recipe) -> None:
    # Each leaves out a stage; whatever that stage would have handed on must come from another one.
    model = train(tmp_path, recipe=recipe)
    for name in COMPONENTS:
        assert (model / f"{name}.safetensors").is_file(), name


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


def test_the_scale_of_a_finished_tokenizer_is_measured_once(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A flow that goes on after a stop must find the very scale it began with; measuring reads thousands of pictures.
    folder, measured, measure = Path(shutil.copytree(trained.parent, tmp_path / "run")), [], Inputs.posteriors

    def posteriors(inputs: Inputs) -> Moments:
        measured.append(inputs)
        return measure(inputs)

    monkeypatch.setattr(Inputs, "posteriors", posteriors)

    def again() -> None:
        encoder, runtime = shipped_folder() / "emoji" / "text_encoder", Runtime.start(device="cpu")
        run_course(TINY, DATA, folder, text_encoder=encoder, runtime=runtime, stages=("tokenizer",))

    again()
    assert not measured
    path = folder / "model" / "image_tokenizer.safetensors"
    save_component(folder / "model", "image_tokenizer", {key: 2.0 * one for key, one in load_file(path).items()})
    again()
    assert len(measured) == 1, "the scale was that of other weights"


def test_a_folder_of_another_run_is_refused(trained: Path) -> None:
    changed = replace(TINY, tokenizer_training=replace(TINY.tokenizer_training, batch_size=4))
    with pytest.raises(FlowTokError, match="another configuration"):
        train(trained.parent, recipe=changed)


def test_a_finished_model_becomes_one_that_jumps(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It must be drawn as it was trained, without guidance and with few steps, unless the user says otherwise."""
    recipe = tmp_path / "few.yaml"
    save(replace(EMOJI_FEW, **{part: getattr(TINY, part) for part in SHAPES}, flow_training=TINY.flow_training), recipe)
    command("train", recipe, "--from", trained, "--data", DATA, "-o", tmp_path / "few", "--device", "cpu")
    model, picture = tmp_path / "few" / "model", tmp_path / "heart.png"
    command("generate", "red heart", "--seed", "1", "-o", picture, "--model", model, "--device", "cpu")
    with Image.open(picture) as drawn:
        settings = {name: drawn.info[name] for name in ("steps", "guidance", "solver", "time_grid")}
    assert settings == {"steps": "4", "guidance": "1.0", "solver": "euler", "time_grid": "middle"}
    ours, theirs = (load_file(folder / "velocity.safetensors") for folder in (model, trained))
    assert not torch.equal(ours["head.linear.weight"], theirs["head.linear.weight"])
    for name in set(COMPONENTS) - {"velocity"}:
        ours, theirs = (load_file(folder / f"{name}.safetensors") for folder in (model, trained))
        assert all(torch.equal(ours[key], theirs[key]) for key in theirs), f"{name} is as it was"
    assert "as its teacher without guidance" in json.loads((model / "config.json").read_text())["provenance"]["summary"]
