"""The loop's promises: each sample once an epoch on any number of ranks, and a stop where going on would do harm."""

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from flowtok.errors import FlowTokError
from flowtok.train.ema import averaged_copy
from flowtok.train.loop import LossTerms, TrainingConfig, indices_at, train
from flowtok.train.optim import OptimizerConfig, build_optimizers
from flowtok.train.runtime import Runtime


class LineStage:
    """Fits one weight to y = 2 x; `spoil_at` makes the loss of that batch infinite."""

    name = "line"

    def __init__(self, spoil_at: int | None = None) -> None:
        self.modules: nn.Module = nn.Linear(1, 1, bias=False)
        nn.init.zeros_(self.modules.weight)
        self.num_samples, self.spoil_at, self.batches = 10, spoil_at, 0

    def batch(self, indices_B: Tensor, generator: torch.Generator) -> dict[str, Any]:
        self.batches += 1
        x_B1 = indices_B[:, None].float() / 10 + 0.1 * torch.rand(len(indices_B), 1, generator=generator)
        return {"x_B1": x_B1, "y_B1": 2.0 * x_B1}

    def loss(self, batch: dict[str, Any]) -> LossTerms:
        error = (self.modules(batch["x_B1"]) - batch["y_B1"]).square().mean()
        return LossTerms(total=error / 0.0 if self.batches == self.spoil_at else error, terms={})

    def preview(self, modules: nn.Module, path: Path) -> dict[str, float]:
        return {}


def config(**changes: Any) -> TrainingConfig:
    optimizer = OptimizerConfig(learning_rate=0.1, warmup_steps=0, weight_decay=0.0)
    values = {"num_steps": 60, "batch_size": 4, "optimizer": optimizer, "ema_decay": 0.5, "precision": "float32"}
    return TrainingConfig(**(values | changes))


@settings(max_examples=30, deadline=None)
@given(
    num_samples=st.integers(1, 40),
    batch_size=st.integers(1, 12),
    num_ranks=st.integers(1, 4),
    epochs=st.integers(1, 3),
)
def test_every_sample_comes_once_in_an_epoch(num_samples: int, batch_size: int, num_ranks: int, epochs: int) -> None:
    # A picture that is drawn twice or never on a cluster would bend the results in silence.
    steps = -(-epochs * num_samples // batch_size)
    seen = []
    for step in range(steps):
        dealt: dict[int, int] = {}
        for rank in range(min(num_ranks, batch_size)):
            own = indices_at(
                step, num_samples=num_samples, batch_size=batch_size, seed=3, rank=rank, num_ranks=num_ranks
            )
            dealt |= {rank + num_ranks * place: int(number) for place, number in enumerate(own)}
        seen += [dealt[place] for place in sorted(dealt)]
    for epoch in range(epochs):
        one = seen[epoch * num_samples : (epoch + 1) * num_samples]
        if len(one) == num_samples and num_ranks <= batch_size:
            assert sorted(one) == list(range(num_samples))


def test_the_loop_learns_and_hands_on_the_average(tmp_path: Path) -> None:
    trained = train(LineStage(), config(num_steps=200), tmp_path, Runtime.start(device="cpu"))
    assert trained.get_parameter("weight").item() == pytest.approx(2.0, abs=0.05)
    assert (tmp_path / "metrics.jsonl").read_text().count('"total"') == 10


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path: Path) -> None:
    # Going on would write NaN weights over the last good checkpoint.
    with pytest.raises(FlowTokError, match=r"line.*inf.*step 6"):
        train(LineStage(spoil_at=7), config(checkpoint_every=5), tmp_path, Runtime.start(device="cpu"))
    kept = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    assert kept["step"] == 5
    assert torch.isfinite(kept["modules"]["weight"]).all()


def test_a_folder_of_another_configuration_is_refused(tmp_path: Path) -> None:
    train(LineStage(), config(num_steps=2), tmp_path, Runtime.start(device="cpu"))
    with pytest.raises(FlowTokError, match="another configuration"):
        train(LineStage(), config(num_steps=3), tmp_path, Runtime.start(device="cpu"))


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


@pytest.mark.parametrize("changes", [{"num_steps": 0}, {"batch_size": 0}, {"ema_decay": 1.0}])
def test_impossible_training_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="must"):
        config(**changes)
