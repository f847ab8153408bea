"""`compile=true`: the losses run through torch.compile and learn what they learn without it."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from joint_pairs import joint_stage
from line_stage import config

from flowtok.train.loop import train
from flowtok.train.optim import OptimizerConfig
from flowtok.train.runtime import Runtime


@pytest.mark.slow
def test_a_compiled_training_learns_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # A loss that cannot be compiled would end a run on a cluster after its first minute; another one would ruin it.
    compiled, compile_it = [], torch.compile

    def noted(*arguments: Any, **values: Any) -> Any:
        compiled.append(arguments)
        return compile_it(*arguments, **values)

    monkeypatch.setattr(torch, "compile", noted)
    here, rule = Runtime(device=torch.device("cpu")), OptimizerConfig(learning_rate=0.01, warmup_steps=2)
    plain = config(num_steps=4, batch_size=8, micro_batch_size=4, optimizer=rule)
    eager = train(joint_stage(), plain, tmp_path / "eager", here).state_dict()
    assert not compiled
    found = train(joint_stage(), replace(plain, compile=True), tmp_path / "compiled", here).state_dict()
    assert compiled
    # Fused kernels add float32 numbers in another order. A bias of keys, which the softmax takes out again, has no
    # gradient but rounding, and AdamW makes that as large as any other.
    for name in (name for name in eager if not name.endswith("key.bias")):
        torch.testing.assert_close(found[name], eager[name], rtol=0.0, atol=1e-4)
