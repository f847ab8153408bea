"""Error of each solver against network evaluations on the shipped model, with a plot, and scores if there are data.

    python benchmarks/solvers.py [--prompts 64] [--reference 1000] [--dtype bfloat16] [--plot FILE.svg]
    python benchmarks/solvers.py --only-scores --data FOLDER --splits train unseen_concept --limit 512 [--few MODEL]
    python benchmarks/solvers.py --dtypes bfloat16 float16 int8 --data FOLDER --limit 512

Guidance is the model's own: a guided step evaluates the network twice, with and without the null flag; where guidance
is in the weights and the scale is 1, once. The error of a prompt is the root mean square of the difference in tokens
from a reference of 1,000 steps of ab2 in float32; tokens have variance 1. Shown are its mean over the prompts with the
standard error, that of the difference to 20 Euler steps prompt by prompt, and the share of prompts that are no worse.
Pictures are compared with those of the reference in dB. With --data, retrieval of unseen concepts through flowtok's own
measures. With --dtypes it shows instead what other types than float32 cost: error and scores of the model's own
setting. Layers are packed where they can be, as the commands do.
"""

import argparse
import math
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from line_plot import write_plot
from measuring import setting
from torch import Tensor

from flowtok.data.captioned import SPLITS
from flowtok.data.images import to_tensor
from flowtok.evaluate.bench import Bench
from flowtok.evaluate.tasks import run_tasks
from flowtok.flow.follow import Schedule, table_for
from flowtok.flow.grid import GRIDS
from flowtok.flow.guidance import FlaggedVelocity, guided
from flowtok.flow.solver import CHOOSES_ITS_STEPS, SOLVERS
from flowtok.pipeline import FlowTok, load

NAMES = ("red heart", "grinning face", "flag of Japan", "dog face", "airplane", "green apple", "house", "crying cat",
         "sun", "banana", "woman singer", "umbrella", "pizza", "guitar", "ghost", "bicycle")  # fmt: skip
STYLES = ("twemoji", "noto", "fluent", "emojione", "fluent flat", "streamline")
SPLIT, TOGETHER = "unseen_concept", 16
PLAIN = ("euler", "uniform", 20)
# Solver, grid and numbers of steps.
CASES = (
    ("euler", "uniform", (4, 5, 8, 10, 20, 40)),
    ("euler", "early", (4, 8, 20)),
    ("midpoint", "uniform", (2, 3, 4, 5, 10)),
    ("midpoint", "early", (2, 3, 4, 5, 10)),
    ("heun", "uniform", (2, 3, 4, 5, 10)),
    ("heun", "early", (2, 3, 4, 5, 10)),
    ("ab2", "uniform", (4, 5, 6, 7, 8, 10, 20)),
    ("ab2", "early", (4, 5, 6, 7, 8, 10, 20)),
    (CHOOSES_ITS_STEPS, "uniform", (10,)),
)
# Solver, grid, steps and guidance scale; None is the model's own.
SCORED: tuple[tuple[str, str, int, float | None], ...] = (
    (*PLAIN, None),
    *(("euler", "uniform", steps, 1.0) for steps in (1, 2, 4, 8)),
    *(("euler", "uniform", steps, None) for steps in (1, 2, 4)),
    *(("ab2", "early", steps, None) for steps in (2, 4, 8, 10)),
    ("midpoint", "early", 4, None),
    ("heun", "early", 5, None),
)
FEW = tuple(("euler", "middle", steps, 1.0) for steps in (1, 2, 4))


class Counted:
    """A velocity that counts its evaluations of the network for each sample."""

    def __init__(self, velocity: FlaggedVelocity, samples: int) -> None:
        self.velocity, self.samples, self.rows = velocity, samples, 0

    def __call__(self, z_BLC: Tensor, t: float, null_B: Tensor) -> Tensor:
        self.rows += len(z_BLC)
        return self.velocity(z_BLC, t, null_B)

    @property
    def evaluations(self) -> float:
        """For one sample."""
        return self.rows / self.samples


def evaluations_of(solver: str, grid: str, steps: int, scale: float) -> int:
    """Evaluations of the network for one sample by a solver of fixed steps."""
    assert solver != CHOOSES_ITS_STEPS
    asked: list[float] = []
    stops = GRIDS[grid](steps)
    SOLVERS[solver](lambda z_BLC, t: asked.append(t) or z_BLC, torch.zeros(1), stops.times)
    return len(asked) * (1 if scale == 1.0 else 2)


@torch.inference_mode()
def ends_of(model: FlowTok, z_BLC: Tensor, case: tuple[str, str, int]) -> tuple[Tensor, float]:
    """Follows the flow by solver, grid and steps with the model's own guidance, and counts evaluations."""
    solver, grid, steps = case
    stops, asked = GRIDS[grid](steps), []
    dtype = next(model.velocity.parameters()).dtype
    table = table_for(model.velocity, Schedule(num_steps=steps, solver=solver, grid=grid))

    def exact(z_BLC: Tensor, t: float, null_B: Tensor) -> Tensor:
        return table(z_BLC.to(dtype), t, null_B).float()

    ends = []
    for part_BLC in z_BLC.float().split(TOGETHER):  # an adaptive solver takes the steps that the whole part needs
        velocity = Counted(exact, len(part_BLC))
        own = stops.retold(guided(velocity, model.sampling.guidance_scale))
        ends.append(SOLVERS[solver](own, part_BLC, stops.times))
        asked.append(velocity.evaluations)
    return torch.cat(ends), sum(asked) / len(asked)


@torch.inference_mode()
def starts_of(model: FlowTok, words: Sequence[str]) -> Tensor:
    """Where the flow starts, with noise that prompts alone fix."""
    shape = model.velocity.config.num_tokens, model.velocity.config.token_channels
    noise_BLC = torch.randn(len(words), *shape, generator=torch.Generator().manual_seed(0))
    return model.text_projector(model.text_encoder.encode(list(words)).features_BSE).sample(noise_BLC)


def errors_of(z_BLC: Tensor, exact_BLC: Tensor) -> Tensor:
    """The error of each prompt."""
    return (z_BLC - exact_BLC).square().flatten(1).mean(1).sqrt()


def with_error(values_B: Tensor, digits: int = 4) -> str:
    """Mean and its standard error."""
    return f"{values_B.mean():.{digits}f} ± {values_B.std() / len(values_B) ** 0.5:.{digits}f}"


def print_errors(model: FlowTok, exact_model: FlowTok, prompts: int, reference: int, plot: Path) -> None:
    """The table and the plot.

    Args:
        model: What is measured, in its type.
        exact_model: The same in float32, for the reference.
        prompts: How many.
        reference: Steps of the reference.
        plot: Where the plot is written.
    """
    words = prompts_of(prompts)
    begun = time.perf_counter()
    exact_BLC, evaluations = ends_of(exact_model, starts_of(exact_model, words), ("ab2", "uniform", reference))
    exact_B3YX = decoded(exact_model, exact_BLC)
    print(
        f"Reference: {reference} steps of ab2, {evaluations:.0f} evaluations, {time.perf_counter() - begun:.0f} s; "
        f"{prompts} prompts, guidance {model.sampling.guidance_scale:g}, in {model.precision}\n\n"
        "| solver | grid | steps | evaluations | error | less that of 20 Euler steps | prompts no worse | pictures |\n"
        "|---|---|---|---|---|---|---|---|",
        flush=True,
    )
    z_BLC = starts_of(model, words)
    plain_BLC, plain_evaluations = ends_of(model, z_BLC, PLAIN)
    plain_B = errors_of(plain_BLC, exact_BLC)
    curves: dict[str, list[tuple[float, float]]] = {}
    reached: list[tuple[float, str]] = []
    for solver, grid, numbers in CASES:
        for steps in numbers:
            z_end_BLC, evaluations = ends_of(model, z_BLC, (solver, grid, steps))
            error_B = errors_of(z_end_BLC, exact_BLC)
            no_worse = (error_B <= plain_B).float().mean().item()
            squared_B = (decoded(model, z_end_BLC) - exact_B3YX).square().flatten(1).mean(1)
            decibels = -10 * torch.log10(squared_B).mean().item()
            curves.setdefault(f"{solver}, {grid}", []).append((evaluations, error_B.mean().item()))
            if error_B.mean() <= plain_B.mean() and no_worse >= 0.5:
                reached.append((evaluations, f"{solver}, {grid}"))
            print(
                f"| {solver} | {grid} | {steps} | {evaluations:.0f} | {with_error(error_B)} | "
                f"{with_error(error_B - plain_B)} | {no_worse:.0%} | {decibels:.1f} dB |",
                flush=True,
            )
    evaluations, name = min(reached)
    print(
        f"\nThe error of 20 Euler steps ({plain_evaluations:.0f} evaluations), {with_error(plain_B)}, is reached "
        f"first, on average and by at least half of the prompts, by {name} with {evaluations:.0f} evaluations: "
        f"{plain_evaluations / evaluations:.1f} times fewer.",
        flush=True,
    )
    write_plot(plot, curves, "network evaluations", "error of the tokens", ("20 Euler steps", plain_B.mean().item()))
    print(f"Plot: {plot}", flush=True)


@torch.inference_mode()
def decoded(model: FlowTok, z_BLC: Tensor) -> Tensor:
    """Pixels in [0, 1]."""
    tokenizer = model.image_tokenizer
    own_BLC = model.latent_scale.from_flow(z_BLC).to(tokenizer.latent_tokens.dtype)
    return torch.cat([tokenizer.decode_drawn(part).float().clamp(0, 1) for part in own_BLC.split(TOGETHER)])


def retrieval_scores(bench: Bench, split: str, limit: int, case: tuple[str, str, int, float]) -> dict[str, float]:
    """R@1, R@5 and mean rank among 128 pictures of a split, as `flowtok eval --task retrieval` measures them."""
    solver, grid, steps, scale = case
    sampling = {"solver": solver, "grid": grid, "num_inference_steps": steps, "guidance_scale": scale}
    (record, *_) = run_tasks(bench.with_sampling(sampling), ["retrieval"], [split], limit)
    return {**record.scores, "captions": record.num_samples}


def score_cells(scores: dict[str, float]) -> str:
    """For a table; R@1 with its standard error, which settings drawn with the same captions and seeds share in part."""
    share = scores["r_at_1"] / 100
    error = 100 * (share * (1 - share) / scores["captions"]) ** 0.5
    return f"{scores['r_at_1']:.1f} ± {error:.1f} | {scores['r_at_5']:.1f} | {scores['mean_rank']:.1f}"


def prompts_of(number: int) -> list[str]:
    """Captions as the shipped model knows them."""
    both = math.lcm(len(NAMES), len(STYLES))
    return [f"{NAMES[k % len(NAMES)]}, in {STYLES[(k + k // both) % len(STYLES)]} style" for k in range(number)]


def drawn_of(model: FlowTok, words: Sequence[str], case: tuple[str, str, int, float]) -> Tensor:
    """Pictures with fixed seeds, (B, 3, Y, X)."""
    solver, grid, steps, scale = case
    pictures = model.generate(words, steps, scale, seed=0, solver=solver, grid=grid)
    return torch.stack([to_tensor(picture) for picture in pictures])


def decibels_B(image_B3YX: Tensor, exact_B3YX: Tensor) -> Tensor:
    """PSNR of 8-bit pictures; their own rounding keeps equal ones finite."""
    return -10 * torch.log10((image_B3YX - exact_B3YX).square().flatten(1).mean(1) + (1 / 255) ** 2 / 12)


def print_scores(models: Sequence[FlowTok], data: Path, splits: Sequence[str], limit: int, plot: Path) -> None:
    """Retrieval of each setting: those of a flow for the first model, those of a few-step model for the second.

    Retrieval alone says little of few evaluations, since the mean of all pictures that a caption may mean is found by
    it as well; so each line also says how near its pictures are to those of the first line, with the same seeds.
    """
    print(f"\n## Retrieval among 128 pictures, {limit} captions of each split\n", flush=True)
    columns = " | ".join(f"{split}: R@1, % | R@5, % | mean rank" for split in splits)
    print(f"| model | solver | grid | steps | guidance | evaluations | near the first | {columns} |", flush=True)
    print(f"|---|---|---|---|---|---|---|{'---|---|---|' * len(splits)}", flush=True)
    words, exact = prompts_of(32), torch.empty(0)
    curves: dict[str, list[tuple[float, float]]] = {}
    level: tuple[str, float] | None = None
    for model, cases in zip(models, (SCORED, FEW), strict=False):
        model.batch_size = TOGETHER
        bench = Bench(model=model, folder=data)
        own = model.sampling.guidance_scale
        # Of a model with guidance in its weights some are the same.
        chosen = [(solver, grid, steps, own if scale is None else scale) for solver, grid, steps, scale in cases]
        for case in dict.fromkeys(chosen):
            solver, grid, steps, scale = case
            scores = {split: retrieval_scores(bench, split, limit, case) for split in splits}
            evaluations = evaluations_of(solver, grid, steps, scale)
            drawn = drawn_of(model, words, case)
            exact = exact if len(exact) else drawn
            near = f"{decibels_B(drawn, exact).mean():.1f} dB" if drawn is not exact else "-"
            cells = " | ".join(score_cells(scores[split]) for split in splits)
            how = f"{model.name} | {solver} | {grid} | {steps} | {scale:g} | {evaluations}"
            print(f"| {how} | {near} | {cells} |", flush=True)
            # A logarithmic axis has no 0.
            found = evaluations, max(0.1, scores[splits[0]]["r_at_1"])
            if level is None:
                level = f"{solver}, {steps} steps", found[1]
            name = f"{solver}{', guided' if scale != 1.0 else ''}" if grid != "middle" else "few-step model"
            curves.setdefault(name, []).append(found)
    write_plot(plot, curves, "network evaluations", f"R@1, %, {splits[0]}", level)
    print(f"\nPlot: {plot}", flush=True)


@torch.inference_mode()
def print_types(name: str, dtypes: Sequence[str], prompts: int, data: Path | None, limit: int) -> None:
    """Pictures of other types beside those of float32, and their retrieval."""
    print("| dtype | pictures | worst picture | R@1, % | R@5, % | mean rank |\n|---|---|---|---|---|---|", flush=True)
    words = prompts_of(prompts)
    exact: Tensor | None = None
    for dtype in ("float32", *dtypes):
        model = opened(name, dtype)
        model.batch_size = TOGETHER
        chosen = model.sampling
        own = chosen.solver, chosen.grid, chosen.num_inference_steps, chosen.guidance_scale
        drawn = drawn_of(model, words, own)
        exact = drawn if exact is None else exact
        decibels = decibels_B(drawn, exact)
        cells = (
            "- | - | -"
            if data is None
            else score_cells(retrieval_scores(Bench(model=model, folder=data), SPLIT, limit, own))
        )
        print(f"| {dtype} | {decibels.mean():.1f} dB | {decibels.min():.1f} dB | {cells} |", flush=True)


def opened(name: str, dtype: str = "float32") -> FlowTok:
    """A model as the commands open it."""
    model = load(name, dtype=dtype)
    return model.pack() if model.can_pack else model


def main() -> None:
    """Measures, prints and plots."""
    parser = argparse.ArgumentParser(description=str(__doc__), formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="emoji")
    parser.add_argument("--prompts", type=int, default=64)
    parser.add_argument("--reference", type=int, default=1000, help="steps of the reference")
    parser.add_argument("--plot", type=Path, default=Path(__file__).parent / "results" / "solvers.svg")
    parser.add_argument(
        "--data", type=Path, default=None, help="the set that flowtok data emoji built; no scores without"
    )
    parser.add_argument("--limit", type=int, default=128, help="pictures for each score")
    parser.add_argument("--splits", nargs="+", default=[SPLIT], choices=SPLITS, help="for the scores")
    parser.add_argument("--few", default=None, help="a few-step model, scored beside with 1, 2 and 4 evaluations")
    parser.add_argument("--only-scores", action="store_true", help="leaves the errors out")
    parser.add_argument(
        "--dtype", default="float32", choices=["float32", "bfloat16", "float16", "int8"], help="for the errors"
    )
    parser.add_argument("--dtypes", nargs="+", default=[], choices=["bfloat16", "float16", "int8"])
    given = parser.parse_args()
    if given.data is None and (given.only_scores or given.few):
        parser.error("scores need --data")
    print(f"{setting()}; model {given.model}\n", flush=True)
    if given.dtypes:
        print_types(given.model, given.dtypes, given.prompts, given.data, given.limit)
        return
    models = [opened(name) for name in (given.model, given.few) if name is not None]
    if not given.only_scores:
        measured = models[0] if given.dtype == "float32" else opened(given.model, given.dtype)
        print_errors(measured, models[0], given.prompts, given.reference, given.plot)
    if given.data is not None:
        plot = given.plot.with_name(f"{given.plot.stem}-scores.svg")
        print_scores(models, given.data, given.splits, given.limit, plot)


if __name__ == "__main__":
    main()
