"""The loop's promises: each sample once an epoch on any number of ranks, and a stop where going on would do harm."""

from __future__ import annotations

import json
import os
import signal
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from line_stage import BlockStage, LineStage, config
from safetensors.torch import load_file
from torch import Tensor, nn

from flowtok.errors import CheckpointError, FlowTokError
from flowtok.train.adversary import Adversary
from flowtok.train.ema import averaged_copy
from flowtok.train.feed import Deal, indices_at
from flowtok.train.loop import LossTerms, Stage, TrainingConfig, train
from flowtok.train.optim import OptimizerConfig, build_optimizers
from flowtok.train.page import read_curves
from flowtok.train.runtime import Runtime
from flowtok.train.stops import TrainingStopped

HERE = Runtime(device=torch.device("cpu"))


def weights(stage: Stage, training: TrainingConfig, folder: Path, **more: Any) -> dict[str, Tensor]:
    return train(stage, training, folder, HERE, **more).state_dict()


def assert_same(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert one.keys() == other.keys()
    for name in one:
        assert torch.equal(one[name], other[name]), name


@settings(max_examples=30, deadline=None)
@given(
    num_samples=st.integers(1, 40),
    batch_size=st.integers(1, 12),
    num_parts=st.integers(1, 4),
    epochs=st.integers(1, 3),
)
def test_every_sample_comes_once_in_an_epoch(num_samples: int, batch_size: int, num_parts: int, epochs: int) -> None:
    # A picture that is drawn twice or never on a cluster would bend the results in silence.
    steps = -(-epochs * num_samples // batch_size)
    seen = []
    for step in range(steps):
        dealt: dict[int, int] = {}
        for part in range(min(num_parts, batch_size)):
            own = indices_at(
                step, num_samples=num_samples, batch_size=batch_size, seed=3, part=part, num_parts=num_parts
            )
            dealt |= {part + num_parts * place: int(number) for place, number in enumerate(own)}
        seen += [dealt[place] for place in sorted(dealt)]
    for epoch in range(epochs):
        one = seen[epoch * num_samples : (epoch + 1) * num_samples]
        if len(one) == num_samples and num_parts <= batch_size:
            assert sorted(one) == list(range(num_samples))


def test_the_loop_learns_and_hands_on_the_average(tmp_path: Path) -> None:
    trained = train(LineStage(), config(num_steps=200), tmp_path, HERE)
    assert trained.get_parameter("weight").item() == pytest.approx(2.0, abs=0.05)
    assert not trained.training
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    logged = [line for line in lines if "total" in line]
    assert [line["step"] for line in logged] == list(range(20, 201, 20))
    for line in logged:
        assert line["total"] == pytest.approx(line["error"])
        assert line["samples_per_second"] > 0
        assert 0 <= line["data_wait"] <= 1


def test_a_report_says_how_long_it_takes_yet(tmp_path: Path) -> None:
    # The progress line has nothing else to go by.
    told: list[tuple[int, dict[str, float]]] = []
    train(LineStage(), config(), tmp_path, HERE, report=lambda step, figures: told.append((step, figures)))
    assert [step for step, _ in told] == [20, 40, 60]
    assert told[0][1]["seconds_left"] > 0
    assert told[-1][1]["seconds_left"] == 0


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_batch(tmp_path: Path) -> None:
    # Going on would write NaN weights over the last good checkpoint; without the batch nobody finds the cause.
    deal = Deal.over_ranks(10, 4, None, 1234, 1, None)
    spoilt = int(next(i for i in deal.indices(2, 0) if i not in deal.indices(0, 0) and i not in deal.indices(1, 0)))
    first, training = 2, config(checkpoint_every=1)
    with pytest.raises(
        FlowTokError, match=rf"stage line: the loss is inf at step {first}, with samples .*\b{spoilt}\b"
    ):
        train(LineStage(spoilt=spoilt), training, tmp_path, HERE)
    kept = torch.load(tmp_path / f"not-finite-step-{first:07d}-rank0.pt", weights_only=True)
    (part,) = kept["parts"]
    assert (kept["stage"], kept["step"]) == ("line", first)
    assert part["samples"].tolist() == deal.indices(first, 0).tolist()
    assert part["batch"]["weight_B1"].isinf().any()
    for path in tmp_path.glob("checkpoint-*.safetensors"):
        assert torch.isfinite(load_file(path)["modules/weight"]).all()
    assert max(path.name for path in tmp_path.glob("checkpoint-*.safetensors")) == "checkpoint-0000002.safetensors"


def test_a_gradient_that_is_not_finite_stops_the_run(tmp_path: Path) -> None:
    class Steep(LineStage):
        def loss(self, batch: dict[str, Any]) -> LossTerms:
            return LossTerms(total=super().loss(batch).total * 0.0 + self.modules.get_parameter("weight").sum().sqrt())

        def names(self, indices_B: Tensor) -> list[str]:
            return [f"picture-{index}.png" for index in indices_B.tolist()]

    with pytest.raises(FlowTokError, match=r"the gradient is (inf|nan) at step 0, with samples picture-\d\.png"):
        train(Steep(), config(), tmp_path, HERE)


@pytest.mark.parametrize("kind", [signal.SIGTERM, signal.SIGINT])
def test_a_stopped_run_has_saved_and_goes_on_to_the_same_weights(tmp_path: Path, kind: signal.Signals) -> None:
    # A cluster sends SIGTERM before it takes a machine away, a user presses Ctrl-C: neither may lose work.
    unbroken = weights(BlockStage(), config(num_steps=12), tmp_path / "unbroken")

    def stop(step: int, _figures: dict[str, float]) -> None:
        if step == 7:
            os.kill(os.getpid(), kind)

    before = signal.getsignal(kind)
    training = config(num_steps=12, log_every=1)
    said = {signal.SIGTERM: "SIGTERM", signal.SIGINT: "Ctrl-C"}[kind]
    with pytest.raises(TrainingStopped, match=rf"stage blocks: stopped by {said} at step 8 of 12 and saved") as stopped:
        train(BlockStage(), training, tmp_path / "run", HERE, report=stop)
    assert stopped.value.exit_code == 128 + kind
    assert signal.getsignal(kind) is before
    assert [path.name for path in (tmp_path / "run").glob("checkpoint-*")] == ["checkpoint-0000008.safetensors"]
    assert_same(weights(BlockStage(), training, tmp_path / "run"), unbroken)


def test_only_the_last_checkpoints_stay(tmp_path: Path) -> None:
    # They are large; a long run would fill the disk.
    train(LineStage(), config(checkpoint_every=10, keep_checkpoints=3), tmp_path, HERE)
    names = sorted(path.name for path in tmp_path.glob("checkpoint*"))
    assert names == [
        "checkpoint-0000040.safetensors",
        "checkpoint-0000050.safetensors",
        "checkpoint-0000060.safetensors",
    ]


def test_what_a_killed_run_left_half_written_goes(tmp_path: Path) -> None:
    train(LineStage(), config(checkpoint_every=10), tmp_path, HERE)
    (tmp_path / ".abcdef.part.safetensors").write_bytes(b"half a checkpoint")
    train(LineStage(), config(checkpoint_every=10), tmp_path, HERE)
    assert not list(tmp_path.glob(".*"))


def test_a_damaged_checkpoint_is_named_with_what_to_do(tmp_path: Path) -> None:
    # Going on silently from an older one would surprise whoever compares runs.
    unbroken = weights(LineStage(), config(checkpoint_every=10), tmp_path)
    newest = tmp_path / "checkpoint-0000060.safetensors"
    newest.write_bytes(newest.read_bytes()[:-200])
    with pytest.raises(CheckpointError, match=r"0000060.safetensors is damaged .* delete it to go on from step 50"):
        train(LineStage(), config(checkpoint_every=10), tmp_path, HERE)
    newest.unlink()
    assert_same(weights(LineStage(), config(checkpoint_every=10), tmp_path), unbroken)


def test_settings_that_came_later_do_not_stop_an_old_run(tmp_path: Path) -> None:
    # A long run goes on with a newer flowtok, whose record of the configuration knows more fields.
    training = config(num_steps=12, checkpoint_every=6)
    unbroken = weights(BlockStage(), training, tmp_path)
    (tmp_path / "checkpoint-0000012.safetensors").unlink()
    record = json.loads((tmp_path / "config.json").read_text())
    for later in ("micro_batch_size", "activation_checkpointing", "parallel", "keep_checkpoints"):
        del record["training"][later]
    (tmp_path / "config.json").write_text(json.dumps(record))
    assert_same(weights(BlockStage(), training, tmp_path), unbroken)


def test_a_folder_of_another_configuration_is_refused(tmp_path: Path) -> None:
    train(LineStage(), config(num_steps=2), tmp_path, HERE)
    with pytest.raises(FlowTokError, match=r"another configuration \(training.num_steps was 2 and is 3\)"):
        train(LineStage(), config(num_steps=3), tmp_path, HERE)


def test_what_does_not_change_the_weights_may_change(tmp_path: Path) -> None:
    # Whoever runs out of disk or memory must be able to go on with fewer checkpoints or less memory.
    train(LineStage(), config(num_steps=2), tmp_path, HERE)
    train(LineStage(), config(num_steps=2, keep_checkpoints=1, log_every=1, checkpoint_every=1), tmp_path, HERE)


@dataclass(frozen=True, kw_only=True)
class InnerConfig:
    width: int = 4
    depth: int = 2


@dataclass(frozen=True, kw_only=True)
class OuterConfig:
    size: int
    inner: InnerConfig = InnerConfig()
    names: tuple[str, ...] = ("a", "b")


def test_a_record_that_lacks_later_fields_is_the_same_if_they_have_their_defaults(tmp_path: Path) -> None:
    # A new version with one more setting must not orphan the runs of the old one.
    training, now = config(num_steps=2), OuterConfig(size=3)
    train(LineStage(), training, tmp_path, HERE, resolved={"outer": now, "data": "abc"})
    record = json.loads((tmp_path / "config.json").read_text())
    assert record["outer"] == {"size": 3, "inner": {"width": 4, "depth": 2}, "names": ["a", "b"]}
    del record["outer"]["names"], record["outer"]["inner"]["depth"]
    (tmp_path / "config.json").write_text(json.dumps(record))
    train(LineStage(), training, tmp_path, HERE, resolved={"outer": now, "data": "abc"})
    deeper = replace(now, inner=InnerConfig(depth=5))
    with pytest.raises(FlowTokError, match=r"outer.inner.depth was 2 and is 5"):
        train(LineStage(), training, tmp_path, HERE, resolved={"outer": deeper, "data": "abc"})


def test_a_batch_in_parts_is_the_same_training(tmp_path: Path) -> None:
    # Accumulation is chosen for memory's sake: for a loss that draws nothing the weights must stay what they were.
    class Still(BlockStage):
        def batch(self, indices_B: Tensor, generator: torch.Generator) -> dict[str, Any]:
            self.modules.get_submodule("blocks").eval()
            return {"x_BW": self.x_NW[indices_B]}

    at_once = weights(Still(), config(num_steps=8, batch_size=12), tmp_path / "one")
    in_parts = weights(Still(), config(num_steps=8, batch_size=12, micro_batch_size=3), tmp_path / "four")
    for name, value in at_once.items():
        # Sums of 12 float32 in another order; AdamW scales small gradients up.
        assert torch.allclose(in_parts[name], value, atol=1e-4, rtol=1e-4), name


@pytest.mark.parametrize(
    ("changes", "num_ranks", "message"),
    [({"batch_size": 4}, 3, "4 cannot be dealt evenly to 3"), ({"micro_batch_size": 2}, 4, "makes 2, which cannot")],
)
def test_a_batch_that_does_not_fit_the_ranks_is_refused(changes: dict[str, Any], num_ranks: int, message: str) -> None:
    training = config(**changes)
    with pytest.raises(FlowTokError, match=message):
        Deal.over_ranks(10, training.batch_size, training.micro_batch_size, 1, num_ranks, None)


def test_recomputing_blocks_changes_no_number(tmp_path: Path) -> None:
    # Dropout is drawn again while blocks are computed again: with other draws the gradients would be wrong.
    kept = weights(BlockStage(), config(num_steps=8), tmp_path / "kept")
    again = weights(BlockStage(), config(num_steps=8, activation_checkpointing=True), tmp_path / "again")
    assert_same(kept, again)


def test_recomputing_blocks_really_computes_them_twice(tmp_path: Path) -> None:
    stage, calls = BlockStage(), []
    first = stage.modules.get_submodule("blocks.0.0")
    first.register_forward_hook(lambda *_: calls.append(1))
    train(stage, config(num_steps=3, activation_checkpointing=True), tmp_path, HERE)
    assert len(calls) == 6


class Walking(LineStage):
    """Reads a stream: samples come in their order, from where it stands."""

    def __init__(self) -> None:
        super().__init__()
        self.place, self.read = 0, []

    def batch(self, indices_B: Tensor, generator: torch.Generator) -> dict[str, Any]:
        taken_B = torch.arange(self.place, self.place + len(indices_B))
        self.place += len(indices_B)
        self.read += taken_B.tolist()
        return super().batch(taken_B % 10, generator)

    def position(self) -> dict[str, Any]:
        return {"place": self.place}

    def go_to(self, position: dict[str, Any]) -> None:
        self.place = position["place"]


def test_a_stream_goes_on_where_the_last_checkpoint_was(tmp_path: Path) -> None:
    # The next batch is read ahead: its samples are not behind the checkpoint, though the stream has given them.
    class Killed(Exception):
        pass

    def die(step: int, _figures: dict[str, float]) -> None:
        if step == 7:
            raise Killed

    training = config(num_steps=9, checkpoint_every=3, log_every=1)
    unbroken = weights(Walking(), training, tmp_path / "unbroken")
    with pytest.raises(Killed):
        train(Walking(), training, tmp_path / "run", HERE, report=die)
    resumed = Walking()
    assert_same(weights(resumed, training, tmp_path / "run"), unbroken)
    assert resumed.read == list(range(24, 36))


class Contested(BlockStage):
    """With a rival from step 4 on: a single weight that learns the sum of the batch, and is paid for here."""

    def __init__(self) -> None:
        super().__init__()
        self.rival = nn.Linear(16, 1)
        nn.init.zeros_(self.rival.weight)
        optimizer = OptimizerConfig(learning_rate=0.01, warmup_steps=2)
        self.told: list[dict[str, float]] = []
        self.adversary = Adversary(
            modules=self.rival,
            optimizer=optimizer,
            start_step=4,
            loss=self.contested,
            after_update=self.told.append,
        )

    def contested(self, batch: dict[str, Any]) -> LossTerms:
        own = self.loss(batch)
        error = (self.rival(batch["x_BW"]) - batch["x_BW"].sum(1, keepdim=True)).square().mean()
        return LossTerms(total=own.total + error, terms=own.terms | {"rival": error.detach()})


def test_an_adversary_learns_from_its_first_step_on_and_is_resumed(tmp_path: Path) -> None:
    training = config(num_steps=12, checkpoint_every=4, log_every=1)
    stage = Contested()
    unbroken = weights(stage, training, tmp_path)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "adversary_gradient_norm" in line] == list(range(5, 13))
    assert [set(terms) for terms in stage.told] == [{"error", "rival"}] * 8
    (tmp_path / "checkpoint-0000012.safetensors").unlink()
    resumed = Contested()
    assert_same(weights(resumed, training, tmp_path), unbroken)
    assert_same(resumed.rival.state_dict(), stage.rival.state_dict())
    assert resumed.rival.weight.abs().min() > 0
    assert_same(unbroken, weights(BlockStage(), training, tmp_path / "alone"))


def test_tensorboard_gets_the_figures_where_it_is_installed(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="the extra `track` is not installed: pip install -e '.[track]'")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    train(LineStage(), config(preview_every=30), tmp_path, HERE)
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [event.step for event in events.Scalars("line/total")] == [20, 40, 60]
    assert [event.step for event in events.Images("line/preview")] == [30, 60]


def test_the_rate_warms_up_and_falls_to_its_share() -> None:
    falling = OptimizerConfig(learning_rate=1.0, warmup_steps=10, schedule="cosine", final_share=0.1)
    assert falling.rate_at(0, 110) == 0.0
    assert falling.rate_at(5, 110) == pytest.approx(0.5)
    assert falling.rate_at(60, 110) == pytest.approx(0.55)
    assert falling.rate_at(110, 110) == pytest.approx(0.1)
    assert OptimizerConfig(learning_rate=1.0, warmup_steps=10).rate_at(10**6, 110) == 1.0


def test_muon_takes_the_blocks_matrices_and_nothing_is_left_out() -> None:
    network = nn.ModuleDict({"blocks": nn.ModuleList([nn.Linear(4, 4)]), "embed": nn.Linear(4, 4)})
    optimizers = build_optimizers(network, OptimizerConfig(name="muon"))
    taken = [p for optimizer in optimizers for group in optimizer.param_groups for p in group["params"]]
    assert len(taken) == len({id(p) for p in taken}) == len(list(network.parameters()))
    (muon,) = [optimizer for optimizer in optimizers if isinstance(optimizer, torch.optim.Muon)]
    assert [id(p) for p in muon.param_groups[0]["params"]] == [id(network["blocks"].get_parameter("0.weight"))]


@pytest.mark.parametrize(("warmup", "expected"), [(False, 0.1), (True, 9 / 11)])
def test_the_average_forgets_noise_faster_with_a_warmup(warmup: bool, expected: float) -> None:
    network = nn.Linear(1, 1, bias=False)
    nn.init.zeros_(network.weight)
    averaged = averaged_copy(network, 0.9, warmup)
    nn.init.ones_(network.weight)
    averaged.update_parameters(network)
    assert averaged.module.get_parameter("weight").item() == pytest.approx(expected)


@pytest.mark.parametrize(
    "changes",
    [{"num_steps": 0}, {"batch_size": 0}, {"ema_decay": 1.0}, {"micro_batch_size": 3}, {"keep_checkpoints": 0}],
)
def test_impossible_training_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"must|multiple"):
        config(**changes)


class Unknown(LineStage):
    """A stage one of whose terms is the mean over no samples."""

    def loss(self, batch: dict[str, Any]) -> LossTerms:
        found = super().loss(batch)
        return replace(found, terms={"conditional": torch.tensor(float("nan")), **found.terms})


def test_a_term_without_a_number_leaves_lines_that_any_program_reads(tmp_path: Path) -> None:
    # NaN is no JSON: one such line makes a whole night's metrics unreadable for everything but Python.
    def refused(word: str) -> None:
        raise AssertionError(f"{word} is no JSON")

    train(Unknown(), config(num_steps=2, log_every=1), tmp_path, HERE)
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    records = [json.loads(line, parse_constant=refused) for line in lines]
    assert [record["conditional"] for record in records if "total" in record] == [None, None]
    assert "conditional" not in [curve.name for curve in read_curves(tmp_path / "metrics.jsonl")]
    assert (tmp_path / "report.html").is_file()
