"""The ablations compare what they say: one change at a time, one budget, one measure, a baseline of the same size."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path
from types import ModuleType

import pytest
import torch

from flowtok.config import apply_overrides
from flowtok.data.captioned import Row, read_rows
from flowtok.errors import DataError, FlowTokError
from flowtok.evaluate.report import Occasion, Record, write_records
from flowtok.recipes import EMOJI
from flowtok.text.projector import TextProjectorConfig
from flowtok.train.joint import JointStageConfig
from flowtok.train.recipe import Recipe

SCORES = {"r_at_1": 10.0, "r_at_5": 20.0, "pixel_r_at_1": 5.0, "pixel_r_at_5": 15.0, "mean_rank": 40.0}


@pytest.fixture
def ablations(repository: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(repository / "runs"))
    import ablations  # pyright: ignore[reportMissingImports]

    return ablations


def recipe_of(ablations: ModuleType, variant: str) -> Recipe:
    return apply_overrides(EMOJI, ablations.changes(variant, 7, 3))


def test_each_variant_differs_from_the_papers_choice_in_what_it_names(ablations: ModuleType) -> None:
    """A second difference that nobody sees would be credited to the first."""
    first = recipe_of(ablations, "mlp-contrastive-1")
    release = replace(JointStageConfig(), head_hidden=128)
    assert first.joint_stage == release, "the authors' release, but for the width of the head that serves training only"
    expected = {
        "pool-contrastive-1": {"alignment_target": "average_pool"},
        "mlp-cosine-1": {"alignment_loss": "cosine", "cosine_margin": 0.5},
        "mlp-contrastive-2": {"alignment_weight": 2.0},
        "no-alignment": {"alignment_weight": 0.0},
    }
    for name, change in expected.items():
        assert recipe_of(ablations, name) == replace(first, joint_stage=replace(release, **change)), name
    settled = recipe_of(ablations, "settled")
    assert settled.joint_stage is not None and settled.joint_stage.projector == "frozen"
    assert settled.text_projector == replace(EMOJI.text_projector, noise_std=0.6), "or no trained projector would fit"
    early = replace(settled, joint_stage=replace(settled.joint_stage, time="early"))
    quiet = replace(early, text_projector=replace(early.text_projector, noise_std=0.2))
    assert recipe_of(ablations, "settled-early") == early
    assert recipe_of(ablations, "settled-early-quiet") == quiet
    maps = replace(quiet, velocity=replace(quiet.velocity, position_maps=True))
    assert recipe_of(ablations, "settled-early-quiet-maps") == maps
    budgets = {
        (recipe.flow_training, replace(recipe.velocity, position_maps=False), recipe.trained_stages)
        for recipe in (recipe_of(ablations, name) for name in ablations.VARIANTS)
    }
    assert len(budgets) == 1 and next(iter(budgets))[0].num_steps == 7


def test_the_baseline_has_the_size_of_the_direct_flow_and_sees_its_text(ablations: ModuleType) -> None:
    """A larger baseline, or one whose guidance knows the text, would win or lose for another reason."""
    from flowtok.flow.transformer import VelocityTransformer, VelocityTransformerConfig
    from flowtok.text.projector import TextProjector

    text_as_condition = __import__("text_as_condition")
    recipe = recipe_of(ablations, "mlp-contrastive-1")
    with torch.device("meta"):
        direct = [VelocityTransformer(recipe.velocity), TextProjector(recipe.text_projector)]
        layers = text_as_condition.FeatureLayers(recipe.text_projector)
        baseline = text_as_condition.ConditionedVelocity(recipe.velocity, layers)
    ours = sum(one.numel() for network in direct for one in network.parameters())
    theirs = sum(one.numel() for one in baseline.parameters())
    assert abs(theirs / ours - 1) < 0.03, (theirs, ours)
    small = VelocityTransformerConfig(depth=1, width=16, num_heads=2, num_tokens=4, token_channels=3)
    text = TextProjectorConfig(text_width=8, num_tokens=4, token_channels=3, num_layers=1, num_heads=2, hidden=8)
    network = text_as_condition.ConditionedVelocity(small, text_as_condition.FeatureLayers(text))
    network.initialize(torch.Generator().manual_seed(0))
    with torch.no_grad():
        for parameter in network.parameters():
            parameter += 0.1 * torch.randn(parameter.shape)
    z_BLC, t_B, null_B = torch.randn(2, 4, 3), torch.rand(2), torch.tensor([True, False])
    one, other = (network.conditioned(z_BLC, t_B, null_B, torch.randn(2, 4, 8)) for _ in range(2))
    projector = TextProjector(replace(text, noise_std=0.2, dropout=0.0))
    projector.initialize(torch.Generator().manual_seed(0))
    kept = {name: weight.clone() for name, weight in projector.state_dict().items()}
    for noise_std in (0.0, 0.6):
        settled = text_as_condition.SettledTokens(projector, noise_std=noise_std)
        text_as_condition.ConditionedVelocity(small, settled).initialize(torch.Generator().manual_seed(1))
        features_BSE = torch.randn(64, 4, 8)
        assert all(weight.equal(kept[name]) for name, weight in projector.state_dict().items())
        assert settled(features_BSE).square().mean().item() == pytest.approx(1.0, abs=0.1)
        assert settled(features_BSE).equal(settled(features_BSE)) == (noise_std == 0.0)
    assert one.shape == z_BLC.shape and torch.equal(one[0], other[0]) and not torch.allclose(one[1], other[1])


def measured(folder: Path, name: str, seed: int, **changed: float) -> None:
    """Leaves what a variant's measurement leaves."""
    scores = SCORES | {"chance_r_at_1": 0.8, "chance_r_at_5": 3.9, "chance_mean_rank": 64.5} | changed
    record = Record(task="retrieval", split="train", scores=scores, num_samples=256, protocol={"ways": 128})
    place = folder / name / f"seed-{seed}" / "scores"
    place.mkdir(parents=True)
    write_records([record], place / "records.json", Occasion(date="2026-11-23 09:00 UTC", hardware="an abacus"))


def test_the_table_has_mean_and_spread_over_seeds(ablations: ModuleType, tmp_path: Path) -> None:
    for seed, score in enumerate((10.0, 13.0, 16.0)):
        measured(tmp_path, "mlp-contrastive-1", seed, r_at_1=score)
    measured(tmp_path, "text-as-condition", 1)
    lines = ablations.table(tmp_path).splitlines()
    assert "| MLP target, contrastive, weight 1 (the paper's choice) | 3 | 13.0 ± 3.0 | 20.0 ± 0.0 |" in "\n".join(
        lines
    )
    (baseline,) = [line for line in lines if line.startswith("| baseline")]
    assert "| 1 | 10.0 | 20.0 |" in baseline, "one seed has no spread"
    assert "| by chance | | 0.8 | 3.9 | 0.8 | 3.9 | 64.5 |" in lines
    other = tmp_path / "settled" / "seed-1" / "scores"
    other.mkdir(parents=True)
    record = Record(task="retrieval", split="train", scores=SCORES, num_samples=256, protocol={"ways": 64})
    write_records([record], other / "records.json")
    with pytest.raises(FlowTokError, match="not all was measured"):
        ablations.table(tmp_path)
    with pytest.raises(FlowTokError, match="there is no measurement"):
        ablations.table(tmp_path / "none")


def test_what_is_published_has_its_records_date_and_budget(ablations: ModuleType, tmp_path: Path) -> None:
    """And its records do not become sections of their own: twenty-one tables would bury the one that they are for."""
    from flowtok.evaluate.results import results_page

    made, results = tmp_path / "made", tmp_path / "results"
    measured(made, "settled", 1)
    measured(made, "settled", 2)
    (made / "budget").write_text("--updates 9 --pictures 256 --limit 256\n")
    ablations.publish(made, results)
    assert sorted(path.name for path in (results / "ablations" / "records").iterdir()) == [
        "settled-seed-1.json",
        "settled-seed-2.json",
    ]
    page = results_page(results)
    for words in (
        "## Ablations",
        "`runs/ablations.sh --updates 9 --pictures 256 --limit 256`",
        "2026-11-23 09:00 UTC",
        "an abacus",
        "| 2 | 10.0 ± 0.0 |",
    ):
        assert words in page
    assert page.count("| variant |") == 1 and "**retrieval**" not in page


def emoji_set(folder: Path, count: int) -> Path:
    """An emoji set without pictures: of two styles, with skin tones, and one unseen concept of each style."""
    rows = [
        Row(
            file_name=f"images/{style}/{number}{variant}.png", text=f"thing {number}", texts=(f"thing {number}",),
            name=f"thing {number}", concept=f"thing {number}", style=style, set=style, group="things",
            split="train" if number else "unseen_concept", variant=variant, weight=1.0, license="CC0-1.0",
        )
        for style in ("noto", "twemoji") for number in range(count + 1) for variant in ("", "skin-tone")
    ]  # fmt: skip
    (folder / "images").mkdir(parents=True)
    (folder / "metadata.jsonl").write_text("".join(json.dumps(asdict(row)) + "\n" for row in rows))
    return folder


def test_the_small_set_is_of_one_style_and_the_same_each_time(ablations: ModuleType, tmp_path: Path) -> None:
    """A style, or a skin tone, would give a picture away; and another choice would be another measurement."""
    data = emoji_set(tmp_path / "data", 9)
    for name in ("one", "two"):
        ablations.make_set(data, tmp_path / name, 4)
    texts = [(tmp_path / name / "metadata.jsonl").read_text() for name in ("one", "two")]
    rows = read_rows(tmp_path / "one")
    assert texts[0] == texts[1] and [row.split for row in rows] == ["train"] * 4 + ["unseen_concept"]
    assert {(row.style, row.variant) for row in rows} == {("twemoji", "")}
    assert (tmp_path / "one" / "images").resolve() == (data / "images").resolve()
    with pytest.raises(DataError, match="has 9 training pictures of twemoji, not 10; ask for fewer"):
        ablations.make_set(data, tmp_path / "three", 10)


STUB = """#!{python}
import shutil, sys
from pathlib import Path
words = sys.argv[1:]
if words[0].startswith("runs/ablations"):
    import runpy
    sys.argv = words
    sys.path.insert(0, "runs")
    runpy.run_path(words[0], run_name="__main__")
    sys.exit()
with open({log!r}, "a") as log:
    print(*words, file=log)
out = Path(words[words.index("-o") + 1])
scores = out if words[0] == "eval" else out / "scores"
if words[0] != "train":
    scores.mkdir(parents=True)
    shutil.copy({record!r}, scores / "records.json")
"""


def test_the_script_goes_through_all_and_on_where_it_was(
    ablations: ModuleType, repository: Path, tmp_path: Path
) -> None:
    """A night that was cut short must lose one variant, and two budgets must not meet in one table."""
    emoji_set(tmp_path / "data", 5)
    (tmp_path / "model").mkdir()
    measured(tmp_path / "made", "any", 1)
    log = tmp_path / "log"
    stub = tmp_path / "stub"
    record = next((tmp_path / "made").rglob("records.json"))
    stub.write_text(STUB.format(python=sys.executable, log=str(log), record=str(record)))
    stub.chmod(0o755)

    def run(*options: str) -> subprocess.CompletedProcess[str]:
        command = [str(repository / "runs" / "ablations.sh"), "--data", "data", "--pictures", "4", *options, "out"]
        settings = os.environ | {"FLOWTOK": str(stub), "PYTHON": str(stub), "MODEL": str(tmp_path / "model")}
        return subprocess.run(command, cwd=tmp_path, env=settings, capture_output=True, text=True, check=False)

    done = run("--updates", "9", "--seeds", "4")
    assert done.returncode == 0, done.stderr
    commands = log.read_text().splitlines()
    count = len(ablations.VARIANTS)
    told = [line.split("--told ")[1] for line in commands if line.startswith("runs/text_as_condition.py")]
    assert told == ["features", "tokens", "noisy-tokens"] and len(commands) == 2 * (count - 3) + 3
    trainings = [line for line in commands if line.startswith("train emoji ")]
    assert all("flow_training.num_steps=9 flow_training.seed=4" in line for line in trainings)
    assert sum("--updates 9 --seed 4" in line for line in commands) == 3
    assert (tmp_path / "out" / "ablations.md").read_text().count("| 1 | 10.0 |") == count
    (tmp_path / "out" / "settled" / "seed-4" / "scores" / "records.json").unlink()
    (tmp_path / "out" / "settled" / "seed-4" / "scores").rmdir()
    assert run("--updates", "9", "--seeds", "4").returncode == 0
    again = log.read_text().splitlines()[len(commands) :]
    assert [line.split()[0] for line in again] == ["train", "eval"] and "settled" in again[0]
    refused = run("--updates", "10", "--seeds", "4")
    assert (
        refused.returncode == 2
        and "begun with --updates 9 --pictures 4 --limit 256, not --updates 10" in refused.stderr
    )
    assert run("--update", "10").returncode == 2 and run("--help").stdout.startswith("The paper's ablations")
