"""A flow that learns to jump: what it is shown must be its teacher's way, and drawing with it the same jumps."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import Tensor

from flowtok.data.latents import CaptionTable, Moments
from flowtok.flow.follow import Schedule, followed
from flowtok.flow.transformer import VelocityTransformer, VelocityTransformerConfig
from flowtok.image.latents import LatentScale
from flowtok.image.tokenizer import ImageTokenizer, ImageTokenizerConfig, VisionTransformerConfig
from flowtok.train.distil import DistilStage, DistilStageConfig, jumped
from flowtok.train.flow import MomentPairs, Sketch

LENGTH, CHANNELS, PICTURES = 4, 2, 6
VELOCITY = VelocityTransformerConfig(depth=1, width=16, num_heads=2, num_tokens=LENGTH, token_channels=CHANNELS)
VISION = VisionTransformerConfig(width=8, depth=1, num_heads=1)


def moments(count: int, seed: int) -> Moments:
    mean_NLC = torch.randn(count, LENGTH, CHANNELS, generator=torch.Generator().manual_seed(seed))
    return Moments(mean_NLC=mean_NLC, logvar_NLC=torch.full_like(mean_NLC, -4.0))


def stage(config: DistilStageConfig | None = None) -> DistilStage:
    draws = torch.Generator().manual_seed(0)
    teacher = VelocityTransformer(VELOCITY)
    teacher.initialize(draws)
    with torch.no_grad():
        for weight in teacher.parameters():
            weight.add_(torch.randn(weight.shape, generator=draws), alpha=0.2)
    tokenizer = ImageTokenizer(
        ImageTokenizerConfig(
            image_size=8, patch_size=4, num_tokens=LENGTH, token_channels=CHANNELS, encoder=VISION, decoder=VISION,
            text_width=None,
        )
    )  # fmt: skip
    tokenizer.initialize(draws)
    sketch = Sketch(
        captions_B=torch.arange(2), features_BSE=torch.zeros(2, LENGTH, 4), tokenizer=tokenizer,
        scale=LatentScale(LENGTH, CHANNELS),
    )  # fmt: skip
    pairs = MomentPairs(
        files=tuple(f"{number}.png" for number in range(PICTURES)),
        image=moments(PICTURES, 1),
        text=moments(PICTURES, 2),
        table=CaptionTable.of([[f"picture {i}"] for i in range(PICTURES)]),
        scale=LatentScale(LENGTH, CHANNELS),
    )
    return DistilStage(teacher, config or DistilStageConfig(), pairs=pairs, sketch=sketch)


class Perfect(torch.nn.Module):
    """Answers every jump as its teacher goes, whatever the number of jumps."""

    def __init__(self, ours: DistilStage) -> None:
        super().__init__()
        self.ours, self.asked = ours, []

    def forward(self, z_JLC: Tensor, t_J: Tensor, null_J: Tensor) -> Tensor:
        """Finds each jump on the way of the batch by the middle that it is told."""
        assert not null_J.any(), "guidance is folded in: the student has no second branch"
        self.asked.append(t_J)
        stops = self.ours.way(z_JLC[:2])
        answers = []
        for z_LC, t in zip(z_JLC, t_J.tolist(), strict=True):
            if t == 1.0:
                answers.append(self.ours.teacher(z_LC[None], torch.ones(1), torch.zeros(1, dtype=torch.bool))[0])
                continue
            number = next(number for number in (1, 2, 4) if (t * 2 * number) % 2 == 1)
            first = int(t * number) * 8 // number
            row = next(row for row in range(2) if torch.equal(stops[first][row], z_LC))
            answers.append((stops[first + 8 // number][row] - z_LC) * number)
        return torch.stack(answers)


def test_the_teachers_jumps_cost_nothing() -> None:
    """A wrong stop, length or told time would teach a student to end elsewhere than its teacher."""
    ours = stage()
    batch = ours.batch(torch.tensor([3, 1]), torch.Generator().manual_seed(0))
    perfect = Perfect(ours)
    ours.student = perfect  # type: ignore[assignment]
    found = ours.loss(batch)
    assert found.total < 1e-10 and set(found.terms) == {"jumps_1", "jumps_2", "jumps_4", "kept"}
    assert perfect.asked[0][::2].tolist() == [0.5, 0.25, 0.75, 0.125, 0.375, 0.625, 0.875, 1.0]
    end_BLC = followed(ours.teacher, Schedule(num_steps=8, solver="ab2"), 2.0)(batch["z_text_BLC"])
    assert torch.equal(ours.way(batch["z_text_BLC"])[-1], end_BLC), "the teacher is guided"


def test_it_learns_and_the_teacher_stays() -> None:
    """From a flow that needs guidance and many steps to one that comes nearer the same end with few and without."""
    ours = stage(DistilStageConfig(jumps=(1, 2), num_steps=4))
    before = copy.deepcopy(ours.teacher.state_dict())
    z_BLC = ours.pairs.text.mean_NLC
    with torch.no_grad():
        end_BLC = ours.way(z_BLC)[-1]
        first = [(jumped(ours.student, z_BLC, number) - end_BLC).square().mean() for number in (1, 2)]
    updates = torch.optim.Adam([weight for weight in ours.student.parameters() if weight.requires_grad], lr=3e-3)
    draws = torch.Generator().manual_seed(1)
    for _ in range(60):
        updates.zero_grad()
        ours.loss(ours.batch(torch.arange(PICTURES), draws)).total.backward()
        updates.step()
    with torch.no_grad():
        last = [(jumped(ours.student, z_BLC, number) - end_BLC).square().mean() for number in (1, 2)]
    assert all(after < 0.5 * at_first for after, at_first in zip(last, first, strict=True)), (first, last)
    assert all(torch.equal(weight, before[key]) for key, weight in ours.teacher.state_dict().items())


def test_the_preview_shows_how_far_it_is(tmp_path: Path) -> None:
    ours = stage()
    figures = ours.preview(ours.student, tmp_path / "sheet.png")
    assert set(figures) == {"preview_error_1", "preview_error_2", "preview_error_4", "preview_std"}
    assert (tmp_path / "sheet.png").is_file()


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"jumps": (1, 3)}, "multiple of every number of jumps"),
        ({"jumps": (4, 2)}, "rising order"),
        ({"jumps": ()}, "rising order"),
        ({"solver": "dopri5"}, "dopri5"),
        ({"keep": -1.0}, "not be negative"),
    ],
)
def test_wrong_numbers_are_refused(wrong: dict[str, object], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        DistilStageConfig(**wrong)  # type: ignore[arg-type]
