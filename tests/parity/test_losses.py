"""Losses and one whole training step meet the release: whoever fine-tunes its weights continues its training."""

from __future__ import annotations

import pytest
import torch
from filling import FLOAT32, Golden
from torch import Tensor

from flowtok.checkpoints.official import load_alignment_head, load_text_projector, load_velocity
from flowtok.checkpoints.official_keys import HEAD_KEYS, PROJECTOR_KEYS, VELOCITY_KEYS, names
from flowtok.flow.path import point, rotate_null_targets
from flowtok.nn.gaussian import Gaussian
from flowtok.text.projector import contrastive_loss, release_kl

KL_WEIGHT = 0.01


def test_path_and_times() -> None:
    golden = Golden("losses")
    t = golden.input("time_normals").sigmoid()
    golden.check("t", t)
    on_path = point(golden.input("x0"), golden.input("x_start"), t)
    golden.check("psi", on_path.z_BLC)
    golden.check("Dt_psi", on_path.velocity_BLC)


@pytest.mark.parametrize("case", ["three_null", "two_null", "one_null", "none_null"])
def test_losses(case: str) -> None:
    golden = Golden("losses")
    null = torch.tensor(golden.spec["cases"][case]["null_used"])
    x0, t = golden.input("x0"), golden.input("time_normals").sigmoid()
    target = rotate_null_targets(golden.input("x_start"), null)
    golden.check(f"{case}.x_start_after_shuffle", target)
    on_path = point(x0, target, t)
    golden.check(f"{case}.x_noisy", on_path.z_BLC)
    flow_B = (golden.input("velocity") - on_path.velocity_BLC).square().flatten(1).mean(1)
    golden.check(f"{case}.diff_loss", flow_B)
    aligned = contrastive_loss(x0, golden.input("projected"), torch.tensor(golden.spec["consts"]["t2t_temperature"]))
    golden.check(f"{case}.contrastive_loss", aligned)
    tokens = Gaussian(mean_BLC=golden.input("mu"), logvar_BLC=golden.input("logvar"))
    golden.check(f"{case}.kld_loss", KL_WEIGHT * release_kl(tokens))
    golden.check(f"{case}.loss", flow_B + aligned + KL_WEIGHT * release_kl(tokens))


def test_one_training_step() -> None:
    golden = Golden("train_step_tiny")
    weights = {name: weight.clone() for name, weight in golden.weights().items()}
    network = load_velocity(weights, heads=4)
    projector = load_text_projector(weights, heads=4).eval()  # the fixture has no dropout
    head = load_alignment_head(weights)
    assert head is not None
    text, x1, t = golden.input("text"), golden.input("x_start"), golden.input("time_normals").sigmoid()
    null = torch.tensor([draw < 0.1 for draw in golden.spec["uniform_draws"]])
    with torch.enable_grad():
        tokens = projector(text)
        z = tokens.sample(golden.input("eps"))
        aligned = contrastive_loss(z, head(text), head.log_temperature)
        kl = KL_WEIGHT * release_kl(tokens)
        on_path = point(z, rotate_null_targets(x1, null), t)
        flow_B = (network(on_path.z_BLC, t, null) - on_path.velocity_BLC).square().flatten(1).mean(1)
        loss_B = flow_B + aligned + kl
        loss_B.mean().backward()
    for name, value in (("diff_loss", flow_B), ("contrastive_loss", aligned), ("kld_loss", kl), ("loss", loss_B)):
        golden.check(name, value)
    ours = {
        **{theirs: network.get_parameter(name) for theirs, name in names(VELOCITY_KEYS, 2).items()},
        **{theirs: projector.get_parameter(name) for theirs, name in names(PROJECTOR_KEYS, 2).items()},
        **{theirs: head.get_parameter(name) for theirs, name in names(HEAD_KEYS).items()},
    }
    check_gradients(golden, ours)
    check_update(golden, ours)


def check_gradients(golden: Golden, ours: dict[str, torch.nn.Parameter]) -> None:
    norms = golden.spec["grad_l2"]
    assert set(norms) == set(ours)
    for name, norm in norms.items():
        gradient = ours[name].grad
        if norm is None:
            assert gradient is None
            continue
        assert gradient is not None
        # Sums over thousands of float32 terms; a bias of the keys has no effect, so its gradient is only rounding.
        noise = 1e-8 * max(filter(None, norms.values()))
        assert gradient.double().norm().item() == pytest.approx(norm, rel=FLOAT32, abs=noise), name
    for name in golden.spec["outputs"]:
        if name.startswith("grad:"):
            gradient = ours[name.removeprefix("grad:")].grad
            assert gradient is not None
            golden.check(name, gradient)


def check_update(golden: Golden, ours: dict[str, torch.nn.Parameter]) -> None:
    recipe = golden.spec["optimizer"]
    before: dict[str, Tensor] = {name: weight.detach().clone() for name, weight in ours.items()}
    trained = [weight for weight in ours.values() if weight.requires_grad]
    optimizer = torch.optim.AdamW(
        trained, lr=recipe["lr_used_here"], betas=tuple(recipe["betas"]), eps=recipe["eps"],
        weight_decay=recipe["weight_decay"],
    )  # fmt: skip
    optimizer.step()
    for name in golden.spec["outputs"]:
        kind, _, key = name.partition(":")
        if kind == "after_step":
            golden.check(name, ours[key], FLOAT32)
        elif kind == "ema":
            golden.check(name, recipe["ema"] * before[key] + (1 - recipe["ema"]) * ours[key].detach(), FLOAT32)
