"""The usual way, as a baseline for runs/ablations.sh: noise is the source, and the text is a condition at every step.

Same data, tokens, text layers, velocity blocks, optimiser, updates and retrieval task as the direct flow; text features
are concatenated to the image's tokens in place of being the source. A sequence is twice as long for it, so an update
takes up to twice the time. It lives here and not in flowtok, whose flow has no condition.

    python runs/text_as_condition.py --data FOLDER --from MODEL -o OUT [--updates N] [--seed N] [--limit N] [--told ...]

`--told tokens` tells the settled text tokens of MODEL in place of features, and `noisy-tokens` these with their noise,
which is all that the direct flow is given: what then is left of the difference is not the text's.

Started again, it goes on. OUT/scores/records.json holds the scores.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ablations
import torch
from PIL import Image
from torch import Tensor, nn

from flowtok.app.starting import chosen_recipe, encoder_of, prepared, weights_of
from flowtok.data.images import to_pil
from flowtok.errors import FlowTokError
from flowtok.evaluate.bench import Bench
from flowtok.evaluate.report import RECORDS_FILE, write_records
from flowtok.evaluate.results import occasion_of
from flowtok.evaluate.tasks import run_tasks
from flowtok.flow import path as straight
from flowtok.flow.grid import GRIDS
from flowtok.flow.guidance import guided
from flowtok.flow.solver import SOLVERS
from flowtok.flow.transformer import VelocityTransformer, VelocityTransformerConfig
from flowtok.nn.embeddings import position_table
from flowtok.pipeline import FlowTok, load
from flowtok.text.projector import ProjectorLayer, TextProjector, TextProjectorConfig, UnbiasedNorm, draw_linear_layers
from flowtok.train.inputs import Inputs
from flowtok.train.loop import LossTerms
from flowtok.train.runtime import Runtime
from flowtok.train.samples import ReadsSamples, Samples
from flowtok.train.stage_runs import StageRuns
from flowtok.train.weights import Weights

_TOGETHER = 64


class FeatureLayers(nn.Module):
    """The text as features, which layers like those of the direct flow's projector mix first."""

    def __init__(self, text: TextProjectorConfig) -> None:
        super().__init__()
        self.width, self.num_tokens = text.text_width, text.num_tokens
        self.layers = nn.ModuleList(ProjectorLayer(text) for _ in range(text.num_layers))

    def initialize(self, generator: torch.Generator | None) -> None:
        """Draws fresh weights as the projector does."""
        draw_linear_layers(self.layers, generator)
        for module in self.layers.modules():
            if isinstance(module, UnbiasedNorm):
                nn.init.ones_(module.gain)
                nn.init.zeros_(module.bias)

    def forward(self, features_BSE: Tensor) -> Tensor:
        for layer in self.layers:
            features_BSE = layer(features_BSE)
        return features_BSE


class SettledTokens(nn.Module):
    """The text as a trained projector's tokens under noise of our own, of variance 1 in all."""

    def __init__(self, projector: TextProjector, *, noise_std: float) -> None:
        super().__init__()
        self.projector, self.noise_std = projector.requires_grad_(False), noise_std
        self.width, self.num_tokens = projector.config.token_channels, projector.config.num_tokens

    def initialize(self, generator: torch.Generator | None) -> None:
        """They are settled."""

    def forward(self, features_BSE: Tensor) -> Tensor:
        mean_BSC = self.projector(features_BSE).mean_BLC
        unit_BSC = mean_BSC / (1.0 - (self.projector.config.noise_std or 0.0) ** 2) ** 0.5
        return (1.0 - self.noise_std**2) ** 0.5 * unit_BSC + self.noise_std * torch.randn_like(unit_BSC)


class ConditionedVelocity(VelocityTransformer):
    """The velocity network with the text beside the image's tokens, and a learned vector for no text."""

    def __init__(self, config: VelocityTransformerConfig, text: FeatureLayers | SettledTokens) -> None:
        super().__init__(config)
        self.text = text
        self.text_in = nn.Linear(text.width, config.width)
        self.null_1E = nn.Parameter(torch.zeros(1, text.width))
        positions_SD = position_table(text.num_tokens, config.width)
        self.text_positions_1SD = nn.Parameter(positions_SD[None], requires_grad=False)

    @torch.no_grad()
    def initialize(self, generator: torch.Generator | None = None) -> None:
        """Draws fresh weights: each part as where it is at home."""
        # A settled projector keeps its weights.
        kept = {name: weight.clone() for name, weight in self.text.state_dict().items()}
        super().initialize(generator)
        self.text.load_state_dict(kept)
        self.text.initialize(generator)

    def conditioned(self, z_BLC: Tensor, t_B: Tensor, null_B: Tensor, text_BSE: Tensor) -> Tensor:
        """The velocity, (B, L, C), where `text_BSE` is what `text` gives."""
        told_BSE = torch.where(null_B[:, None, None], self.null_1E.expand_as(text_BSE), text_BSE)
        image_BLD = self.tokens_in(z_BLC) + self.positions_1LD
        x_BSD = torch.cat([image_BLD, self.text_in(told_BSE) + self.text_positions_1SD], dim=1)
        # The flag itself is not told: whether there is a text is seen in the text.
        modulation = self.modulation(t_B, torch.zeros_like(null_B))
        for block, modulation_B6D in zip(self.blocks, modulation.blocks, strict=True):
            x_BSD = block(x_BSD, modulation_B6D)
        return self.head(x_BSD[:, : z_BLC.shape[1]], modulation.head_B2D)


class ConditionStage(ReadsSamples):
    """Flow matching from noise to the image's tokens."""

    name = "flow"

    def __init__(
        self,
        velocity: VelocityTransformerConfig,
        text: FeatureLayers | SettledTokens,
        *,
        samples: Samples,
        null_probability: float,
        time: str,
        seed: int,
    ) -> None:
        """Builds a fresh network.

        Args:
            velocity: Shape of the velocity network.
            text: What the text goes through first.
            samples: Pairs of text features and image tokens.
            null_probability: Share of samples that are told no text.
            time: Name of the time sampler.
            seed: Fixes the first weights.
        """
        self.samples, self.null_probability, self.time = samples, null_probability, time
        self.network = ConditionedVelocity(velocity, text)
        self.network.initialize(torch.Generator().manual_seed(seed))
        self.modules: nn.Module = self.network

    def batch(self, indices_B: Tensor, generator: torch.Generator) -> dict[str, Any]:
        config = self.network.config
        return self.samples.take(indices_B, generator) | {
            "noise_BLC": torch.randn(len(indices_B), config.num_tokens, config.token_channels, generator=generator),
            "t_B": straight.TIME_SAMPLERS[self.time](len(indices_B), generator),
            "null_B": straight.draw_nulls(len(indices_B), self.null_probability, generator),
        }

    def loss(self, batch: dict[str, Any]) -> LossTerms:
        batch = self.samples.complete(batch)
        here = straight.point(batch["noise_BLC"], batch["z_image_BLC"], batch["t_B"])
        text_BSE = self.network.text(batch["features_BSE"])
        velocity_BLC = self.network.conditioned(here.z_BLC, here.t_B, batch["null_B"], text_BSE).float()
        error_B = (velocity_BLC - here.velocity_BLC).square().flatten(1).mean(1)
        null_B = batch["null_B"]
        terms = {
            "conditional": error_B[~null_B].mean().detach(),
            "null": error_B[null_B].sum().detach() / null_B.sum().clamp_min(1),
        }
        return LossTerms(total=error_B.mean(), terms=terms)

    def preview(self, modules: nn.Module, path: Path) -> dict[str, float]:
        """Nothing to see while it learns."""
        return {}


class ConditionedModel(FlowTok):
    """A model that draws from noise, told the text; for `flowtok eval`'s own tasks."""

    def __init__(self, network: ConditionedVelocity, **parts: Any) -> None:
        super().__init__(**parts)
        self.network = network.eval()

    @torch.inference_mode()
    def generate(  # type: ignore[override]
        self,
        prompts: Sequence[str],
        num_inference_steps: int = 20,
        guidance_scale: float = 2.0,
        *,
        generator: Sequence[torch.Generator],
        guidance_interval: tuple[float, float] = (0.0, 1.0),
        solver: str = "euler",
        grid: str = "uniform",
    ) -> list[Image.Image]:
        """Draws a picture of each prompt from the noise of its generator; as FlowTok's own."""
        shape = self.network.config.num_tokens, self.network.config.token_channels
        noise_NLC = torch.stack([torch.randn(shape, generator=one) for one in generator])
        stops, drawn = GRIDS[grid](num_inference_steps), []
        for start in range(0, len(prompts), _TOGETHER):
            features = self.text_encoder.encode(list(prompts[start : start + _TOGETHER]))
            text_BSE = self.network.text(features.features_BSE)

            def velocity(z_BLC: Tensor, t: float, null_B: Tensor, text_BSE: Tensor = text_BSE) -> Tensor:
                t_B = torch.full((len(z_BLC),), t)
                return self.network.conditioned(z_BLC, t_B, null_B, text_BSE.repeat(len(z_BLC) // len(text_BSE), 1, 1))

            follow = stops.retold(guided(velocity, guidance_scale, guidance_interval))
            z_BLC = SOLVERS[solver](follow, noise_NLC[start : start + _TOGETHER], stops.times)
            drawn += to_pil(self.image_tokenizer.decode_drawn(self.latent_scale.from_flow(z_BLC)))
        return drawn


def train_and_measure(data: Path, source: str, out: Path, *, told: str, updates: int, seed: int, limit: int) -> Path:
    """Trains the baseline in OUT/flow, or goes on, and measures its retrieval; returns the records' file."""
    recipe = chosen_recipe("emoji", ablations.changes("text-as-condition", updates, seed))
    training, joint = recipe.flow_training, recipe.joint_stage
    assert training is not None and joint is not None
    folders = [weights_of(source)]
    out.mkdir(parents=True, exist_ok=True)
    runtime = Runtime.start(device="cpu")
    encoder = prepared(runtime, recipe, str(data), out, encoder_of(folders, recipe))
    weights = Weights(recipe, out, runtime, folders)
    weights.take_over()
    inputs = Inputs(recipe, data, encoder, weights)
    if told == "features":
        text: FeatureLayers | SettledTokens = FeatureLayers(recipe.text_projector)
    else:
        text = SettledTokens(load(source).text_projector, noise_std=0.6 if told == "noisy-tokens" else 0.0)
    stage = ConditionStage(
        recipe.velocity, text, samples=inputs.pair_samples(),
        null_probability=joint.null_probability, time=joint.time, seed=training.seed,
    )  # fmt: skip

    def report(name: str, step: int, total: int, metrics: dict[str, float]) -> None:
        if "total" in metrics:
            print(f"{name} {step}/{total}  loss {metrics['total']:.4g}", file=sys.stderr)

    trained = StageRuns(inputs, report, False).train(
        stage, training, recipe.velocity, recipe.text_projector,
        inputs=("image_tokenizer", "latent_scale"), baseline=ablations.BASELINE, told=told,
        nulls=joint.null_probability,
    )  # fmt: skip
    assert isinstance(trained, ConditionedVelocity)
    model = ConditionedModel(
        trained, name=ablations.BASELINE, text_encoder=inputs.text_encoder,
        image_tokenizer=weights.tokenizer(), latent_scale=weights.latent_scale(), provenance={"recipe": {}},
    )  # fmt: skip
    bench = Bench(model=model, folder=data)
    records = run_tasks(bench, ["retrieval"], ["train", "unseen_concept"], limit)
    (out / "scores").mkdir(exist_ok=True)
    return write_records(records, out / "scores" / RECORDS_FILE, occasion_of(model.device))


def main() -> None:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="the set of `flowtok data emoji`")
    parser.add_argument("--from", dest="source", default="emoji", help="model whose image tokenizer is taken")
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--told", choices=("features", "tokens", "noisy-tokens"), default="features")
    parser.add_argument("--updates", type=int, default=200)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--limit", type=int, default=256, help="prompts of each split")
    given = parser.parse_args()
    try:
        print(
            train_and_measure(
                given.data, given.source, given.output,
                told=given.told, updates=given.updates, seed=given.seed, limit=given.limit,
            )
        )  # fmt: skip
    except FlowTokError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
