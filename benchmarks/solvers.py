"""Error of each solver against network evaluations on the shipped model, with a plot, and scores if there are data.

    python benchmarks/solvers.py [--prompts 8] [--reference 1000] [--plot FILE.svg] [--data FOLDER --limit 128]
    python benchmarks/solvers.py --only-scores --data FOLDER --splits train unseen_concept [--few MODEL]
    python benchmarks/solvers.py --dtypes bfloat16 int8 --data FOLDER

A guided step evaluates the network twice, with and without the null flag. The error is the root mean square of the
difference in tokens from a reference of 1,000 steps of ab2, mean over all prompts; tokens have variance 1. Pictures are
compared with those of the reference in dB. Takes about 2 minutes on two CPU cores for 8 prompts and 1,000 steps; with
--data, retrieval of unseen concepts through flowtok's own measures, half a minute more for each line of 128 pictures.
With --dtypes it shows instead what other types than float32 cost: error and scores of the model's own setting.
"""

import argparse
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from line_plot import write_plot
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
SCALE, SPLIT = 2.0, "unseen_concept"
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
# Solver, grid, steps and guidance scale; a step of ab2 and euler takes one evaluation without guidance and two with it.
SCORED = (
    ("euler", "uniform", 20, SCALE),
    *(("euler", "uniform", steps, 1.0) for steps in (1, 2, 4, 8)),
    *(("euler", "uniform", steps, SCALE) for steps in (1, 2, 4)),
    *(("ab2", "early", steps, SCALE) for steps in (2, 4, 7)),
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


def runs_of(model: FlowTok, z_BLC: Tensor) -> Callable[[str, str, int], tuple[Tensor, float]]:
    """A function that follows the flow by solver, grid and steps, and counts evaluations."""

    def run(solver: str, grid: str, steps: int) -> tuple[Tensor, float]:
        velocity = Counted(table_for(model.velocity, Schedule(num_steps=steps, solver=solver, grid=grid)), len(z_BLC))
        stops = GRIDS[grid](steps)
        end_BLC = SOLVERS[solver](stops.retold(guided(velocity, SCALE)), z_BLC, stops.times)
        return end_BLC, velocity.evaluations

    return run


@torch.inference_mode()
def print_errors(model: FlowTok, prompts: int, reference: int, plot: Path) -> None:
    """The table and the plot."""
    words = prompts_of(prompts)
    features_BSE = model.text_encoder.encode(words).features_BSE
    shape = model.velocity.config.num_tokens, model.velocity.config.token_channels
    noise_BLC = torch.randn(prompts, *shape, generator=torch.Generator().manual_seed(0))
    z_BLC = model.text_projector(features_BSE).sample(noise_BLC)
    run = runs_of(model, z_BLC)
    begun = time.perf_counter()
    exact_BLC, evaluations = run("ab2", "uniform", reference)
    exact_B3YX = decoded(model, exact_BLC)
    print(f"Reference: {reference} steps of ab2, {evaluations:.0f} evaluations, {time.perf_counter() - begun:.0f} s\n")
    print("| solver | grid | steps | evaluations | error | pictures |\n|---|---|---|---|---|---|", flush=True)
    curves: dict[str, list[tuple[float, float]]] = {}
    goal = float("nan")
    for solver, grid, numbers in CASES:
        for steps in numbers:
            z_end_BLC, evaluations = run(solver, grid, steps)
            error = (z_end_BLC - exact_BLC).square().mean().sqrt().item()
            squared = (decoded(model, z_end_BLC) - exact_B3YX).square().mean()
            curves.setdefault(f"{solver}, {grid}", []).append((evaluations, error))
            if (solver, grid, steps) == ("euler", "uniform", 20):
                goal = error
            print(
                f"| {solver} | {grid} | {steps} | {evaluations:.0f} | {error:.4f} | "
                f"{-10 * torch.log10(squared).item():.1f} dB |",
                flush=True,
            )
    found = [(evaluations, name) for name, points in curves.items() for evaluations, error in points if error <= goal]
    evaluations, name = min(found)
    print(f"\nThe error of 20 guided Euler steps (40 evaluations), {goal:.4f}, is reached first by {name} with "
          f"{evaluations:.0f} evaluations: {40 / evaluations:.1f} times fewer.", flush=True)  # fmt: skip
    write_plot(plot, curves, "network evaluations", "error of the tokens", ("20 guided Euler steps", goal))
    print(f"Plot: {plot}", flush=True)


def decoded(model: FlowTok, z_BLC: Tensor) -> Tensor:
    """Pixels in [0, 1]."""
    return model.image_tokenizer.decode_drawn(model.latent_scale.from_flow(z_BLC)).clamp(0, 1)


def retrieval_scores(bench: Bench, split: str, limit: int, case: tuple[str, str, int, float]) -> dict[str, float]:
    """R@1, R@5 and mean rank among 128 pictures of a split, as `flowtok eval --task retrieval` measures them."""
    solver, grid, steps, scale = case
    sampling = {"solver": solver, "grid": grid, "num_inference_steps": steps, "guidance_scale": scale}
    (record, *_) = run_tasks(bench.with_sampling(sampling), ["retrieval"], [split], limit)
    return record.scores


def score_cells(scores: dict[str, float]) -> str:
    """For a table."""
    return f"{scores['r_at_1']:.1f} | {scores['r_at_5']:.1f} | {scores['mean_rank']:.1f}"


def prompts_of(number: int) -> list[str]:
    """Captions as the shipped model knows them."""
    return [f"{NAMES[k % len(NAMES)]}, in {STYLES[k % len(STYLES)]} style" for k in range(number)]


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
        model.batch_size = 16
        bench = Bench(model=model, folder=data)
        for case in cases:
            solver, grid, steps, scale = case
            scores = {split: retrieval_scores(bench, split, limit, case) for split in splits}
            evaluations = steps if scale == 1.0 else 2 * steps
            drawn = drawn_of(model, words, case)
            exact = exact if len(exact) else drawn
            near = f"{decibels_B(drawn, exact).mean():.1f} dB" if drawn is not exact else "-"
            cells = " | ".join(score_cells(scores[split]) for split in splits)
            setting = f"{model.name} | {solver} | {grid} | {steps} | {scale:g} | {evaluations}"
            print(f"| {setting} | {near} | {cells} |", flush=True)
            # A logarithmic axis has no 0.
            found = evaluations, max(0.1, scores[splits[0]]["r_at_1"])
            if level is None:
                level = f"{solver}, {steps} guided steps", found[1]
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
        model = load(name, dtype=dtype)
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


def main() -> None:
    """Measures, prints and plots."""
    parser = argparse.ArgumentParser(description=str(__doc__), formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="emoji")
    parser.add_argument("--prompts", type=int, default=8)
    parser.add_argument("--reference", type=int, default=1000, help="steps of the reference")
    parser.add_argument("--plot", type=Path, default=Path(__file__).parent / "results" / "solvers.svg")
    parser.add_argument(
        "--data", type=Path, default=None, help="the set that flowtok data emoji built; no scores without"
    )
    parser.add_argument("--limit", type=int, default=128, help="pictures for each score")
    parser.add_argument("--splits", nargs="+", default=[SPLIT], choices=SPLITS, help="for the scores")
    parser.add_argument("--few", default=None, help="a few-step model, scored beside with 1, 2 and 4 evaluations")
    parser.add_argument("--only-scores", action="store_true", help="leaves the errors out")
    parser.add_argument("--dtypes", nargs="+", default=[], choices=["bfloat16", "float16", "int8"])
    given = parser.parse_args()
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, model {given.model}\n", flush=True)
    if given.data is None and (given.only_scores or given.few):
        parser.error("scores need --data")
    if given.dtypes:
        print_types(given.model, given.dtypes, given.prompts, given.data, given.limit)
        return
    models = [load(name) for name in (given.model, given.few) if name is not None]
    if not given.only_scores:
        print_errors(models[0], given.prompts, given.reference, given.plot)
    if given.data is not None:
        plot = given.plot.with_name(f"{given.plot.stem}-scores.svg")
        print_scores(models, given.data, given.splits, given.limit, plot)


if __name__ == "__main__":
    main()
