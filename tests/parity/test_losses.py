"""Losses and one whole training step meet the release: whoever fine-tunes its weights continues its training."""

from __future__ import annotations

import pytest
import torch
from filling import FLOAT32, Golden

from flowtok.checkpoints.official import load_alignment_head, load_text_projector, load_velocity
from flowtok.checkpoints.official_keys import HEAD_KEYS, PROJECTOR_KEYS, VELOCITY_KEYS, names
from flowtok.flow.path import point, rotate_null_targets
from flowtok.nn.gaussian import Gaussian
from flowtok.text.projector import contrastive_loss, release_kl
from flowtok.train.ema import averaged_copy
from flowtok.train.joint import JointModules, JointStageConfig, joint_losses
from flowtok.train.optim import OptimizerConfig, build_optimizers

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
    # The stage's own losses, on the release's networks.
    modules = JointModules(network.config, projector.config, head.config)
    modules.network, modules.projector, modules.head = network, projector, head
    batch = {"features_BSE": text, "noise_BLC": golden.input("eps"), "z_image_BLC": x1, "t_B": t, "null_B": null}
    with torch.enable_grad():
        losses = joint_losses(modules, JointStageConfig(), batch)
        kl = KL_WEIGHT * len(null) * losses["kl"]
        loss_B = losses["flow_B"] + losses["alignment"] + kl
        loss_B.mean().backward()
    named = {"diff_loss": losses["flow_B"], "contrastive_loss": losses["alignment"], "kld_loss": kl, "loss": loss_B}
    for name, value in named.items():
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
    """The optimiser and the average that our own training uses, set as in the release."""
    recipe = golden.spec["optimizer"]
    weights = torch.nn.ParameterList(ours.values())
    average = averaged_copy(weights, recipe["ema"])
    config = OptimizerConfig(
        learning_rate=recipe["lr_used_here"], betas=tuple(recipe["betas"]), weight_decay=recipe["weight_decay"],
        decay_all=True, warmup_steps=recipe["warmup_steps"],
    )  # fmt: skip
    assert config.rate_at(0, 10**6) == recipe["lr_of_first_step"]
    assert config.rate_at(recipe["warmup_steps"], 10**6) == recipe["lr_base"]
    (optimizer,) = build_optimizers(weights, config)
    assert {group["eps"] for group in optimizer.param_groups} == {recipe["eps"]}
    optimizer.step()
    average.update_parameters(weights)
    averaged = dict(zip(ours, average.module.parameters(), strict=True))
    for name in golden.spec["outputs"]:
        kind, _, key = name.partition(":")
        if kind == "after_step":
            golden.check(name, ours[key], FLOAT32)
        elif kind == "ema":
            golden.check(name, averaged[key], FLOAT32)
