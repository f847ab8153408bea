"""One training on two processes: the weights of one process, whichever way the work is shared."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from joint_pairs import joint_batch, joint_gradients, joint_modules, joint_stage
from line_stage import BlockStage, config

from flowtok.train.joint import JointStageConfig
from flowtok.train.loop import train
from flowtok.train.optim import OptimizerConfig
from flowtok.train.runtime import Runtime

TESTS = Path(__file__).parents[1]
HERE = Runtime(device=torch.device("cpu"))
# Sums of float32 in another order, twelve steps of an optimizer long; the weights are of the order of 0.1.
TOLERANCE = 2e-5
CASES = [("ddp", "adamw"), ("fsdp", "adamw"), ("ddp", "muon"), ("fsdp", "muon")]

DRIVER = """
import os, signal, sys
from pathlib import Path
sys.path.insert(0, {tests!r})
import torch
from joint_pairs import joint_batch, joint_gradients, joint_modules, joint_stage
from line_stage import BlockStage, LineStage, config
from flowtok.errors import FlowTokError
from flowtok.train.joint import JointStageConfig
from flowtok.train.loop import train
from flowtok.train.optim import OptimizerConfig
from flowtok.train.runtime import Runtime
from flowtok.train.stops import TrainingStopped

torch.set_num_threads(1)
folder, runtime = Path({folder!r}), Runtime.start(device="cpu")

def run(name, stage, **changes):
    trained = train(stage, config(**changes), folder / name, runtime)
    if runtime.is_main:
        torch.save(trained.state_dict(), folder / name / "trained.pt")

for parallel, name in {cases!r}:
    rule = OptimizerConfig(name=name, learning_rate=0.01, warmup_steps=2)
    shared = {{"optimizer": rule, "num_steps": 12, "batch_size": 8, "parallel": parallel, "checkpoint_every": 5}}
    run(f"{{parallel}}-{{name}}-parts", BlockStage(), micro_batch_size=2, **shared)

class Still(BlockStage):
    def batch(self, indices_B, generator):
        self.modules.get_submodule("blocks").eval()
        return {{"x_BW": self.x_NW[indices_B]}}

rule = OptimizerConfig(learning_rate=0.01, warmup_steps=2)
run("still", Still(), optimizer=rule, num_steps=12, batch_size=8)
run("begun-by-one", BlockStage(), optimizer=rule, num_steps=12, batch_size=8, micro_batch_size=2, parallel="fsdp",
    activation_checkpointing=True, precision="bfloat16")

def stop(step, figures):
    if step == 3:
        os.kill(os.getpid(), signal.SIGTERM)

try:
    train(BlockStage(), config(num_steps=99, batch_size=8, log_every=1), folder / "stopped", runtime,
          report=stop if runtime.is_main else None)
except TrainingStopped as stopped:
    (folder / f"stopped-{{runtime.rank}}.txt").write_text(str(stopped))
try:
    train(LineStage(spoilt=7), config(num_steps=99), folder / "spoilt", runtime)
except FlowTokError as error:
    (folder / f"spoilt-{{runtime.rank}}.txt").write_text(str(error))
for gather in (False, True):
    # Each rank computes its half; the engine averages the gradients over the ranks.
    own = {{name: value.chunk(2)[runtime.rank] for name, value in joint_batch().items()}}
    gradients = joint_gradients(joint_modules(), JointStageConfig(gather_negatives=gather), own)
    for gradient in gradients.values():
        torch.distributed.all_reduce(gradient)
        gradient /= 2
    if runtime.is_main:
        torch.save(gradients, folder / f"gathered-{{gather}}.pt")
training = config(num_steps=4, batch_size=8, micro_batch_size=4, optimizer=rule)
trained = train(joint_stage(), training, folder / "joint", runtime)
if runtime.is_main:
    torch.save(trained.state_dict(), folder / "joint" / "trained.pt")
torch.distributed.destroy_process_group()
"""


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in which two processes have trained all that is looked at here."""
    folder = tmp_path_factory.mktemp("two")
    rule = OptimizerConfig(learning_rate=0.01, warmup_steps=2)
    half = config(optimizer=rule, num_steps=12, batch_size=8, micro_batch_size=2, precision="bfloat16")
    begun = folder / "begun-by-one"
    torch.save(train(BlockStage(), half, begun, HERE).state_dict(), folder / "by-one.pt")
    half_way = begun / "checkpoint-0000012.safetensors"
    half_way.unlink()

    class Killed(Exception):
        pass

    def die(step: int, _figures: dict[str, float]) -> None:
        if step == 8:
            raise Killed

    eager = config(
        optimizer=rule, num_steps=12, batch_size=8, micro_batch_size=2, precision="bfloat16", checkpoint_every=5,
        log_every=1,
    )  # fmt: skip
    with pytest.raises(Killed):
        train(BlockStage(), eager, begun, HERE, report=die)
    driver = folder / "driver.py"
    driver.write_text(DRIVER.format(tests=str(TESTS), folder=str(folder), cases=CASES))
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(driver)]
    done = subprocess.run(torchrun, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-6000:]
    return folder


def assert_close(path: Path, expected: dict[str, torch.Tensor], tolerance: float = TOLERANCE) -> None:
    found = torch.load(path, weights_only=True)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.allclose(found[name], value, atol=tolerance, rtol=0), (name, (found[name] - value).abs().max())


@pytest.mark.slow
@pytest.mark.parametrize(("parallel", "name"), CASES)
def test_two_processes_give_the_weights_of_one(two: Path, tmp_path: Path, parallel: str, name: str) -> None:
    # Draws and dropout belong to the parts of a batch, not to ranks: a run may move to a larger machine and back.
    rule = OptimizerConfig(name=name, learning_rate=0.01, warmup_steps=2)
    training = config(optimizer=rule, num_steps=12, batch_size=8, micro_batch_size=2)
    # Muon rounds matrices to bfloat16 if they are spread over ranks or bfloat16 is fast; the last bit makes more there.
    tolerance = 2e-3 if name == "muon" else TOLERANCE
    alone = train(BlockStage(), training, tmp_path, HERE).state_dict()
    assert_close(two / f"{parallel}-{name}-parts" / "trained.pt", alone, tolerance)
    start = BlockStage().modules.state_dict()
    assert (alone["blocks.0.0.weight"] - start["blocks.0.0.weight"]).abs().max() > 100 * TOLERANCE


@pytest.mark.slow
def test_without_draws_a_whole_batch_on_two_processes_is_that_of_one(two: Path, tmp_path: Path) -> None:
    class Still(BlockStage):
        def batch(self, indices_B, generator):
            self.modules.get_submodule("blocks").eval()
            return {"x_BW": self.x_NW[indices_B]}

    rule = OptimizerConfig(learning_rate=0.01, warmup_steps=2)
    alone = train(Still(), config(optimizer=rule, num_steps=12, batch_size=8), tmp_path, HERE).state_dict()
    assert_close(two / "still" / "trained.pt", alone)


@pytest.mark.slow
def test_a_run_of_one_process_goes_on_sharded_over_two(two: Path) -> None:
    # Weights, averages and optimizer states are kept whole, so the number of ranks may change.
    by_one = torch.load(two / "by-one.pt", weights_only=True)
    # bfloat16 has 8 bits: a different last bit of a sum shows in the third digit of a gradient.
    assert_close(two / "begun-by-one" / "trained.pt", by_one, tolerance=1e-3)


@pytest.mark.slow
def test_all_ranks_leave_at_the_same_step(two: Path) -> None:
    # A rank that went on alone would wait for the others for ever.
    first, second = ((two / f"stopped-{rank}.txt").read_text() for rank in range(2))
    assert "stopped by SIGTERM at step 4 of 99" in first
    assert "stopped by another rank at step 4 of 99" in second
    assert [path.name for path in (two / "stopped").glob("checkpoint-*")] == ["checkpoint-0000004.safetensors"]


@pytest.mark.slow
def test_all_ranks_hear_of_the_broken_batch_of_one(two: Path) -> None:
    first, second = ((two / f"spoilt-{rank}.txt").read_text() for rank in range(2))
    assert first == second
    assert "the loss is inf" in first and "7" in first
    assert len(list((two / "spoilt").glob("not-finite-*.pt"))) == 1


@pytest.mark.slow
def test_gathered_negatives_are_those_of_the_whole_batch(two: Path) -> None:
    """Eight GPUs must learn the alignment that one with their batch would: the same negatives, the same gradients."""
    expected = joint_gradients(joint_modules(), JointStageConfig(), joint_batch())
    assert_close(two / "gathered-True.pt", expected)
    found = torch.load(two / "gathered-False.pt", weights_only=True)
    apart = max((found[name] - value).abs().max().item() for name, value in expected.items())
    assert apart > 100 * TOLERANCE, "without gathering each rank knows only its own negatives"


@pytest.mark.slow
def test_the_papers_joint_stage_gives_the_weights_of_one_process(two: Path, tmp_path: Path) -> None:
    rule = OptimizerConfig(learning_rate=0.01, warmup_steps=2)
    training = config(num_steps=4, batch_size=8, micro_batch_size=4, optimizer=rule)
    alone = train(joint_stage(), training, tmp_path, HERE).state_dict()
    assert_close(two / "joint" / "trained.pt", alone)
    fresh = joint_stage().modules.state_dict()
    for part in ("network", "projector", "head"):
        moved = [(alone[name] - value).abs().max() for name, value in fresh.items() if name.startswith(part)]
        assert max(moved) > 100 * TOLERANCE, part
