"""The tokenizer's stage: what a batch costs, plain, perceptual, guided by text and against a discriminator."""

from __future__ import annotations

import json
import logging
import math
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from flowtok.config import from_dict, to_dict
from flowtok.data.latents import CaptionFeatures, CaptionTable
from flowtok.image.discriminator import DiscriminatorConfig
from flowtok.image.losses import ReconstructionLossConfig
from flowtok.image.perceptual import PerceptualConfig, PerceptualLoss
from flowtok.image.tokenizer import ImageTokenizer, ImageTokenizerConfig, VisionTransformerConfig
from flowtok.train.loop import TrainingConfig, train
from flowtok.train.optim import OptimizerConfig
from flowtok.train.record import claim
from flowtok.train.runtime import Runtime
from flowtok.train.samples import PictureSet
from flowtok.train.tokenizer import (
    AdversaryConfig,
    Shown,
    TokenizerStage,
    TokenizerStageConfig,
    open_perceptual,
    scale_of,
)

SIDE = VisionTransformerConfig(width=16, depth=1, num_heads=2)
PLAIN = ImageTokenizerConfig(
    image_size=16, patch_size=4, num_tokens=3, token_channels=2, encoder=SIDE, decoder=SIDE, text_width=None
)
GUIDED = replace(PLAIN, text_width=6, num_text_tokens=5)
ADVERSARY = AdversaryConfig(
    weight=0.5,
    start_step=4,
    lecam=0.1,
    lecam_decay=0.9,
    network=DiscriminatorConfig(channels=8, num_stages=1),
    optimizer=OptimizerConfig(learning_rate=1e-2, warmup_steps=0, weight_decay=0.0),
)
NO_NETWORKS = PerceptualConfig(lpips=0.0, logits=0.0, multi_scale=0.5)
CONTEST = TokenizerStageConfig(adversary=ADVERSARY, perceptual=NO_NETWORKS)
PICTURES = 6


def images(count: int = PICTURES) -> Tensor:
    return torch.randint(0, 256, (count, 3, 16, 16), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)


def pictures(*, guided: bool) -> tuple[PictureSet, Shown]:
    """Pictures to learn and to show; if guided each has two captions, and the features of caption m are all m."""
    files = [f"{number}.png" for number in range(PICTURES)]
    if not guided:
        return PictureSet(files, images()), Shown(images_N3YX=images(3), features_NSE=None)
    table = CaptionTable.of([[f"picture {i}", f"{i}th picture"] for i in range(PICTURES)])
    features_MSE = torch.arange(2.0 * PICTURES)[:, None, None].expand(-1, 5, 6).half()
    captions = CaptionFeatures(features_MSE=features_MSE, ids_MS=torch.zeros(2 * PICTURES, 5, dtype=torch.long))
    shown = Shown(images_N3YX=images(3), features_NSE=torch.ones(3, 5, 6).half())
    return PictureSet(files, images(), captions, table), shown


def stage(config: TokenizerStageConfig | None = None, model: ImageTokenizerConfig = PLAIN) -> TokenizerStage:
    config = config or TokenizerStageConfig()
    return TokenizerStage(
        model,
        config,
        *pictures(guided=model.text_width is not None),
        perceptual=None if config.perceptual is None else PerceptualLoss.opened(config.perceptual),
    )


def training(**changes: Any) -> TrainingConfig:
    optimizer = OptimizerConfig(learning_rate=1e-2, warmup_steps=0, weight_decay=0.0)
    values = {"num_steps": 8, "batch_size": 4, "optimizer": optimizer, "ema_decay": 0.5, "precision": "float32"}
    return TrainingConfig(**(values | {"checkpoint_every": 2, "preview_every": 8, "log_every": 1} | changes))


def batch_of(ours: TokenizerStage, *numbers: int) -> dict[str, Any]:
    return ours.batch(torch.tensor(numbers), torch.Generator().manual_seed(0))


def gradients(modules: torch.nn.Module) -> dict[str, Tensor]:
    return {name: weight.grad.clone() for name, weight in modules.named_parameters() if weight.grad is not None}


def test_a_plain_stage_costs_what_it_always_did() -> None:
    # A run that is under way must go on to the same weights: the same draws, the same sum in the same order.
    losses = ReconstructionLossConfig(squared=1.0, absolute=0.1, gradient=0.3, kl=2.5e-7)
    ours = stage(TokenizerStageConfig(losses=losses, flip=0.5))
    batch = batch_of(ours, 3, 0, 5)
    generator = torch.Generator().manual_seed(0)
    pixels_B3YX = images()[[3, 0, 5]].float() / 255.0
    flip_B = torch.rand(3, generator=generator) < 0.5
    pixels_B3YX[flip_B] = pixels_B3YX[flip_B].flip(-1)
    noise_BLC = torch.randn(3, 3, 2, generator=generator)
    assert list(batch) == ["image_B3YX", "noise_BLC"]
    assert torch.equal(batch["image_B3YX"], pixels_B3YX) and torch.equal(batch["noise_BLC"], noise_BLC)

    posterior = ours.tokenizer.encode(pixels_B3YX)
    error = ours.tokenizer.decode(posterior.sample(noise_BLC)) - pixels_B3YX
    edges = error.diff(dim=-1).abs().mean() + error.diff(dim=-2).abs().mean()
    total = 1.0 * error.square().mean() + 0.1 * error.abs().mean() + 0.3 * edges + 2.5e-7 * posterior.kl_B().mean()
    found = ours.loss(batch)
    assert torch.equal(found.total, total)
    assert list(found.terms) == ["squared", "absolute", "gradient", "kl"]
    assert ours.adversary is None


def test_the_decoder_alone_learns_from_tokens_that_are_a_little_off() -> None:
    """Other tokens would be strange to the flow that goes with the decoder."""
    ours = stage(TokenizerStageConfig(learns="decoder", noise=0.5), replace(PLAIN, flow_noise=0.3))
    torch.nn.init.normal_(ours.tokenizer.decoder.off_D)
    batch = batch_of(ours, *range(PICTURES))
    posterior = ours.tokenizer.encode(batch["image_B3YX"])
    z_BLC = posterior.sample(batch["noise_BLC"])
    off_BLC = z_BLC + batch["astray_BLC"] * z_BLC.std(0, correction=0)
    expected = (ours.tokenizer.decode(off_BLC, off_B=batch["off_B"]) - batch["image_B3YX"]).square().mean()
    found = ours.loss(batch)
    torch.testing.assert_close(found.terms["squared"], expected.detach())
    found.total.backward()
    assert {name.split(".")[0] for name in gradients(ours.modules)} == {"decoder"}
    true_B = batch["off_B"] == 0.0
    assert true_B.any() and not true_B.all() and batch["off_B"].max() <= 0.5
    assert torch.equal(batch["astray_BLC"].abs().sum((1, 2)) == 0.0, true_B)


def test_a_share_of_the_pictures_is_seen_as_a_view_of_it() -> None:
    """The others stay as they are: what is measured in the end are pictures, not views."""
    before = batch_of(stage(), *range(PICTURES))["image_B3YX"]
    after = batch_of(stage(TokenizerStageConfig(views=0.5)), *range(PICTURES))["image_B3YX"]
    differs_B = (before != after).flatten(1).any(1)
    assert differs_B.tolist() == [True] * 3 + [False] * 3
    assert after.shape == before.shape and 0.0 <= after.min() and after.max() <= 1.0


@pytest.mark.parametrize("shares", [{"flip": 1.5}, {"views": -0.1}])
def test_shares_lie_between_0_and_1(shares: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="must lie in"):
        TokenizerStageConfig(**shares)


def test_noise_is_not_negative() -> None:
    with pytest.raises(ValueError, match="noise must not be negative"):
        TokenizerStageConfig(noise=-0.1)


def test_the_first_weights_do_not_depend_on_the_adversary() -> None:
    plain, contested = stage().tokenizer, stage(TokenizerStageConfig(adversary=ADVERSARY)).tokenizer
    assert all(torch.equal(a, b) for a, b in zip(plain.parameters(), contested.parameters(), strict=True))


def test_a_run_from_before_these_fields_goes_on(tmp_path: Path) -> None:
    config = TokenizerStageConfig(first_weights="fan_in")
    earlier = to_dict(config)
    assert earlier.pop("perceptual") is None and earlier.pop("adversary") is None
    assert earlier.pop("scale") == "whitened"
    (tmp_path / "config.json").write_text(json.dumps({"TokenizerStageConfig": earlier}))
    runtime = Runtime.start(device="cpu")
    claim(tmp_path, {"TokenizerStageConfig": config}, runtime)
    with pytest.raises(ValueError, match="another configuration"):
        claim(tmp_path, {"TokenizerStageConfig": replace(config, adversary=ADVERSARY)}, runtime)


def test_the_whole_config_goes_to_plain_data_and_back() -> None:
    config = TokenizerStageConfig(perceptual=PerceptualConfig(weights="folder"), adversary=ADVERSARY)
    assert from_dict(TokenizerStageConfig, json.loads(json.dumps(to_dict(config)))) == config


def test_perceptual_terms_are_added_with_their_weights() -> None:
    ours = stage(TokenizerStageConfig(perceptual=NO_NETWORKS))
    batch = batch_of(ours, 1, 2)
    found, plain = ours.loss(batch), stage().loss(batch)
    assert found.total.item() == pytest.approx((plain.total + 0.5 * found.terms["multi_scale"]).item())
    assert found.terms["multi_scale"] > 0


def test_the_log_says_in_one_line_that_networks_are_missing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr("flowtok.image.pretrained_files._installed", lambda _file: iter(()))
    runtime = Runtime.start(device="cpu")
    with caplog.at_level(logging.WARNING, logger="flowtok"):
        opened = open_perceptual(TokenizerStageConfig(perceptual=PerceptualConfig()), runtime)
    assert opened is not None and list(opened.scales) == ["multi_scale"]
    (line,) = [record.getMessage() for record in caplog.records]
    assert "multi-scale" in line and "\n" not in line
    assert open_perceptual(TokenizerStageConfig(), runtime) is None


def test_text_guides_with_the_captions_of_the_picture(tmp_path: Path) -> None:
    ours = stage(model=GUIDED)
    drawn = set()
    for seed in range(8):
        batch = ours.batch(torch.tensor([4, 1]), torch.Generator().manual_seed(seed))
        assert batch["text_BSE"].shape == (2, 5, 6) and batch["text_BSE"].dtype == torch.float32
        drawn |= {(row, int(text_SE[0, 0])) for row, text_SE in enumerate(batch["text_BSE"])}
    assert drawn == {(0, 8), (0, 9), (1, 2), (1, 3)}, "each of a picture's captions, and no other picture's"
    ours.loss(batch).total.backward()
    gradient = ours.tokenizer.decoder.text_guidance_proj.weight.grad
    assert gradient is not None and gradient.abs().max() > 0
    assert math.isfinite(ours.preview(ours.modules, tmp_path / "preview.png")["preview_psnr"])


def test_the_scale_of_the_release_is_one_number_for_all() -> None:
    """Then the flow sees numbers of deviation one over all, and of the spread among tokens that the tokenizer gave."""
    mean_NLC = torch.randn(400, 3, 2, generator=torch.Generator().manual_seed(2)) * torch.tensor([1.0, 3.0]) + 0.5
    logvar_NLC = torch.full_like(mean_NLC, -2.0)
    scale = scale_of("one_number", mean_NLC, logvar_NLC)
    assert scale.scale_LC.unique().numel() == 1 and not scale.mean_LC.any()
    drawn_NLC = mean_NLC + torch.exp(0.5 * logvar_NLC) * torch.randn(mean_NLC.shape)
    assert scale.to_flow(drawn_NLC).std().item() == pytest.approx(1.0, abs=0.05)
    whitened = scale_of("whitened", mean_NLC, logvar_NLC)
    torch.testing.assert_close(whitened.to_flow(drawn_NLC).std(0), torch.ones(3, 2), atol=0.15, rtol=0)


def test_samples_are_called_by_their_files() -> None:
    assert list(stage().names(torch.tensor([4, 1]))) == ["4.png", "1.png"]


def test_what_is_missing_or_idle_is_refused() -> None:
    def build(
        model: ImageTokenizerConfig, config: TokenizerStageConfig | None = None, guided: bool = False, **given: Any
    ) -> None:
        TokenizerStage(model, config or TokenizerStageConfig(), *pictures(guided=guided), **given)

    perceptual = PerceptualLoss.opened(NO_NETWORKS)
    with pytest.raises(ValueError, match="guided by text"):
        build(GUIDED)
    with pytest.raises(ValueError, match="takes no text"):
        build(PLAIN, guided=True)
    with pytest.raises(ValueError, match="open_perceptual"):
        build(PLAIN, TokenizerStageConfig(perceptual=NO_NETWORKS))
    with pytest.raises(ValueError, match="open_perceptual"):
        build(PLAIN, perceptual=perceptual)
    with pytest.raises(ValueError, match="above 0"):
        AdversaryConfig(weight=0.0)
    with pytest.raises(ValueError, match="lecam_decay"):
        AdversaryConfig(lecam_decay=1.0)


def test_each_player_pays_for_itself() -> None:
    # Were the discriminator's gradient mixed with the tokenizer's, it would learn to be deceived.
    ours, plain = stage(TokenizerStageConfig(adversary=ADVERSARY)), stage()
    batch = batch_of(ours, 0, 1, 2, 3)
    found = ours.contested_loss(batch)
    found.total.backward()
    terms = found.terms
    assert {"deception", "hinge", "lecam", "true_score", "rebuilt_score"} <= set(terms)
    own = terms["squared"] + 0.2 * terms["absolute"] + 1e-6 * terms["kl"]
    expected = own + 0.5 * terms["deception"] + terms["hinge"] + 0.1 * terms["lecam"]
    assert found.total.item() == pytest.approx(expected.item(), rel=1e-5)

    # By hand: each player alone, with the other one held still.
    network = ours.side.network
    mixed, network_mixed = gradients(ours.tokenizer), gradients(network)
    ours.modules.zero_grad()
    network.zero_grad()
    network.requires_grad_(False)
    rebuilt_B3YX = ours.tokenizer.decode(ours.tokenizer.encode(batch["image_B3YX"]).sample(batch["noise_BLC"]))
    (ours.loss(batch).total - 0.5 * network(rebuilt_B3YX).mean()).backward()
    for name, gradient in gradients(ours.tokenizer).items():
        torch.testing.assert_close(mixed[name], gradient, rtol=1e-4, atol=1e-7, msg=name)
    network.requires_grad_(True)
    true_BPP, rebuilt_BPP = network(batch["image_B3YX"]), network(rebuilt_B3YX.detach())
    lead = torch.relu(true_BPP.mean()).square() + torch.relu(-rebuilt_BPP.mean()).square()
    hinge = 0.5 * (torch.relu(1 - true_BPP).mean() + torch.relu(1 + rebuilt_BPP).mean())
    (hinge + 0.1 * lead).backward()
    for name, gradient in gradients(network).items():
        torch.testing.assert_close(network_mixed[name], gradient, rtol=1e-4, atol=1e-6, msg=name)
    # The adversary does pull at the tokenizer.
    plain.loss(batch).total.backward()
    assert any(not torch.allclose(mixed[name], alone) for name, alone in gradients(plain.tokenizer).items())


def run(folder: Path, config: TokenizerStageConfig, **changes: Any) -> tuple[TokenizerStage, torch.nn.Module]:
    ours = stage(config)
    return ours, train(ours, training(**changes), folder, Runtime.start(device="cpu"))


def metrics(folder: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if "total" in line]


def test_the_adversary_takes_part_from_its_step_on(tmp_path: Path) -> None:
    config = TokenizerStageConfig(adversary=ADVERSARY)
    fresh = stage(config).side.state_dict()
    before, _ = run(tmp_path / "before", replace(config, adversary=replace(ADVERSARY, start_step=7)), num_steps=8)
    ours, averaged = run(tmp_path / "run", config)
    plain, _ = run(tmp_path / "plain", TokenizerStageConfig())
    assert isinstance(averaged, ImageTokenizer), "what is handed on is the tokenizer alone"
    lines = metrics(tmp_path / "run")
    assert ["hinge" in line for line in lines] == [False] * 4 + [True] * 4
    assert [line["squared"] for line in lines[:4]] == [line["squared"] for line in metrics(tmp_path / "plain")[:4]]
    assert not torch.equal(ours.tokenizer.latent_tokens, plain.tokenizer.latent_tokens)
    for name, value in ours.side.state_dict().items():
        assert not torch.equal(value, fresh[name]), f"{name} was not trained"
    # One update from a fresh discriminator: LeCam's averages are a tenth of that batch's scores.
    last = metrics(tmp_path / "before")[-1]
    assert before.side.lecam.true_mean.item() == pytest.approx(0.1 * last["true_score"], rel=1e-4)
    assert before.side.lecam.rebuilt_mean.item() == pytest.approx(0.1 * last["rebuilt_score"], rel=1e-4)


class Killed(Exception):
    """Stands for a process that dies."""


@pytest.mark.parametrize("die_at", [3, 7])
def test_a_stopped_contest_goes_on_to_the_same_weights(tmp_path: Path, die_at: int) -> None:
    # Discriminator, its optimiser and LeCam's averages must come back as well as the tokenizer's.
    unbroken, _ = run(tmp_path / "unbroken", CONTEST)

    def report(step: int, _metrics: dict[str, float]) -> None:
        if step == die_at:
            raise Killed

    with pytest.raises(Killed):
        train(stage(CONTEST), training(), tmp_path / "broken", Runtime.start(device="cpu"), report=report)
    resumed, _ = run(tmp_path / "broken", CONTEST)
    for theirs, ours in ((unbroken.modules, resumed.modules), (unbroken.side, resumed.side)):
        for name, value in theirs.state_dict().items():
            assert torch.equal(value, ours.state_dict()[name]), name


DRIVER = """
import sys
from pathlib import Path

import torch
from flowtok.train.loop import train
from flowtok.train.runtime import Runtime

sys.path.insert(0, {tests!r})
import test_tokenizer as here

ours, runtime = here.stage(here.CONTEST), Runtime.start(device="cpu")
averaged = train(ours, here.training(micro_batch_size=2), Path({folder!r}), runtime)
if runtime.is_main:
    torch.save([averaged.state_dict(), ours.side.state_dict()], {result!r})
"""


@pytest.mark.slow
def test_two_ranks_contest_as_one_does(tmp_path: Path) -> None:
    # LeCam's averages follow the whole batch; were they a rank's own, the ranks' discriminators would part.
    ours = stage(CONTEST)
    averaged = train(ours, training(micro_batch_size=2), tmp_path / "one", Runtime.start(device="cpu"))
    driver, result = tmp_path / "driver.py", tmp_path / "two.pt"
    folders = {"tests": str(Path(__file__).parent), "folder": str(tmp_path / "two"), "result": str(result)}
    driver.write_text(DRIVER.format(**folders))
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(driver)]
    done = subprocess.run(torchrun, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    expected = [averaged.state_dict(), ours.side.state_dict()]
    for one, two in zip(expected, torch.load(result), strict=True):
        for name, value in one.items():
            torch.testing.assert_close(value, two[name], rtol=1e-5, atol=1e-6, msg=name)
