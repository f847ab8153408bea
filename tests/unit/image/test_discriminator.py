"""The adversary: what it looks at, what each side pays, and what holds it back."""

from __future__ import annotations

import pytest
import torch

from flowtok.image.discriminator import (
    BlurPool,
    DiscriminatorConfig,
    LeCam,
    PatchDiscriminator,
    deception_loss,
    hinge_loss,
)


def discriminator(channels: int = 8, num_stages: int = 2) -> PatchDiscriminator:
    network = PatchDiscriminator(DiscriminatorConfig(channels=channels, num_stages=num_stages))
    network.initialize(torch.Generator().manual_seed(0))
    return network


def test_it_has_the_recipes_size() -> None:
    with torch.device("meta"):
        network = PatchDiscriminator(DiscriminatorConfig())
    assert network(torch.empty(2, 3, 256, 256, device="meta")).shape == (2, 32, 32)
    widths = [layer.out_channels for layer in network.layers if isinstance(layer, torch.nn.Conv2d)]
    assert widths == [128, 128, 256, 512, 512, 1]


def test_each_score_judges_its_surroundings_and_no_other_picture() -> None:
    network = discriminator()
    image_B3YX = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    scores_BPP = network(image_B3YX)
    assert scores_BPP.shape == (2, 16, 16)
    torch.testing.assert_close(network(image_B3YX[:1]), scores_BPP[:1], atol=1e-5, rtol=1e-5)
    assert 0.05 < scores_BPP.std().item() < 20, "fresh scores are neither dead nor wild"


def test_blur_pooling_halves_and_hardly_feels_a_shift() -> None:
    stripes_B1YX = (torch.arange(32) // 2 % 2).float().expand(1, 1, 32, 32)
    pool = BlurPool()
    pooled, shifted = pool(stripes_B1YX), pool(stripes_B1YX.roll(1, dims=-1))
    assert pooled.shape == (1, 1, 16, 16)
    plain = (stripes_B1YX[..., ::2, ::2] - stripes_B1YX.roll(1, dims=-1)[..., ::2, ::2]).abs().mean()
    assert (pooled - shifted)[..., 2:-2].abs().mean() < 0.6 * plain
    assert torch.allclose(pool(torch.ones(1, 3, 8, 8)), torch.ones(1, 3, 4, 4)), "a plain area stays as it is"


def test_hinge_loss_by_hand() -> None:
    true_BPP, rebuilt_BPP = torch.tensor([[[2.0, 0.0]]]), torch.tensor([[[-3.0, 0.5]]])
    assert hinge_loss(true_BPP, rebuilt_BPP).item() == pytest.approx(0.5 * (0.5 + 0.75))
    assert hinge_loss(torch.full((1, 2, 2), 5.0), torch.full((1, 2, 2), -5.0)).item() == 0.0, "sure is sure enough"
    assert deception_loss(rebuilt_BPP).item() == pytest.approx(1.25)


def test_lecam_by_hand() -> None:
    lecam = LeCam(decay=0.9)
    assert lecam(torch.tensor(2.0), torch.tensor(-1.0)).item() == pytest.approx(4.0 + 1.0), "averages start at 0"
    lecam.follow(2.0, -1.0)
    assert lecam.true_mean.item() == pytest.approx(0.2) and lecam.rebuilt_mean.item() == pytest.approx(-0.1)
    assert lecam(torch.tensor(-0.5), torch.tensor(0.5)).item() == 0.0, "only a lead costs"
    assert set(lecam.state_dict()) == {"true_mean", "rebuilt_mean"}, "a run that goes on needs them"


def test_it_learns_to_tell_and_lecam_holds_it_back() -> None:
    leads = []
    for weight in (0.0, 1.0):
        network, lecam = discriminator(num_stages=1), LeCam(decay=0.9)
        optimizer = torch.optim.AdamW(network.parameters(), lr=3e-3)
        for step in range(40):
            true_B3YX = torch.rand(8, 3, 16, 16, generator=torch.Generator().manual_seed(step))
            dull_B3YX = torch.nn.functional.avg_pool2d(true_B3YX, 5, stride=1, padding=2)
            true_BPP, dull_BPP = network(true_B3YX), network(dull_B3YX)
            loss = hinge_loss(true_BPP, dull_BPP) + weight * lecam(true_BPP.mean(), dull_BPP.mean())
            lecam.follow(true_BPP.mean().item(), dull_BPP.mean().item())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        leads.append((true_BPP.mean() - dull_BPP.mean()).item())
    assert leads[0] > 1.0
    assert leads[1] < 0.7 * leads[0]


@pytest.mark.parametrize("changes", [{"channels": 0}, {"num_stages": 0}])
def test_impossible_sizes_are_refused(changes: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="positive"):
        DiscriminatorConfig(**changes)
