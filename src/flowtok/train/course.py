"""All stages in their order on one set of captioned pictures: from nothing to a model folder.

Knows which stage hands what to the next (inputs.py keeps it); how a stage learns stands in its own file.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from flowtok.checkpoints.store import load_component
from flowtok.config import to_dict
from flowtok.errors import FlowTokError
from flowtok.image.latents import LatentScale
from flowtok.text.decoder import TextDecoder
from flowtok.train.captioner import CaptionerStage
from flowtok.train.flow import FlowStage
from flowtok.train.inputs import Inputs
from flowtok.train.loop import Stage, TrainingConfig, train
from flowtok.train.recipe import Recipe
from flowtok.train.runtime import Runtime
from flowtok.train.text import TextSide, TextStage
from flowtok.train.tokenizer import TokenizerStage

FIRST_DECODER = "text_decoder_first"
STAGES = ("tokenizer", "text", "flow", "captioner")

Report = Callable[[str, int, int, dict[str, float]], None]


class Course:
    """One recipe on one data set in one folder; every stage finds what the earlier ones left there."""

    def __init__(self, recipe: Recipe, inputs: Inputs, report: Report | None) -> None:
        self.recipe, self.inputs, self.report = recipe, inputs, report

    def tokenizer(self) -> None:
        """Stage 1: pictures to tokens and back."""
        recipe = self.recipe
        unseen_N3YX = self.inputs.pictures["unseen_concept"].images_N3YX[:256]
        stage = TokenizerStage(
            recipe.image_tokenizer,
            recipe.tokenizer_stage,
            self.inputs.pictures["train"].images_N3YX,
            unseen_N3YX if len(unseen_N3YX) else self.inputs.pictures["train"].images_N3YX[:64],
            seed=recipe.tokenizer_training.seed,
        )
        trained = self._train(stage, recipe.tokenizer_training, recipe.image_tokenizer, recipe.tokenizer_stage)
        self.inputs.keep("image_tokenizer", trained)
        moments = self.inputs.image_moments("train")
        self.inputs.keep("latent_scale", LatentScale.fitted(moments.mean_NLC, moments.logvar_NLC))

    def text(self) -> None:
        """Stage 2: captions to tokens and back, aligned with the pictures' tokens."""
        recipe = self.recipe
        stage = TextStage(
            recipe.text_projector,
            recipe.text_decoder,
            recipe.text_stage,
            captions=self.inputs.caption_features(),
            table=self.inputs.table,
            moments=self.inputs.image_moments("train"),
            scale=self.inputs.latent_scale(),
            word_table_VE=self.inputs.text_encoder.word_table_VE.float(),
            padding_id=self.inputs.text_encoder.pad_id,
            seed=recipe.text_training.seed,
        )
        trained = self._train(
            stage,
            recipe.text_training,
            recipe.text_projector,
            recipe.text_decoder,
            recipe.text_stage,
            inputs=("image_tokenizer",),
        )
        assert isinstance(trained, TextSide)
        self.inputs.keep("text_projector", trained.projector)
        # The captioner starts from this one; only what it makes of it goes into the model.
        self.inputs.keep(FIRST_DECODER, trained.decoder, folder=self.inputs.folder / "cache")

    def flow(self) -> None:
        """Stage 3: the velocity between the two, for both directions."""
        recipe = self.recipe
        canonical_N = self.inputs.table.choices_NK[:, 0]
        shown = torch.linspace(0, len(canonical_N) - 1, min(48, len(canonical_N))).long()
        stage = FlowStage(
            recipe.velocity,
            recipe.flow_stage,
            image=self.inputs.image_moments("train"),
            text=self.inputs.text_moments(),
            table=self.inputs.table,
            scale=self.inputs.latent_scale(),
            tokenizer=self.inputs.tokenizer(),
            preview_captions=canonical_N[shown],
            seed=recipe.flow_training.seed,
        )
        inputs = ("image_tokenizer", "text_projector")
        trained = self._train(stage, recipe.flow_training, recipe.velocity, recipe.flow_stage, inputs=inputs)
        self.inputs.keep("velocity", trained)

    def captioner(self) -> None:
        """Stage 4: words from the tokens that the flow brings back."""
        recipe = self.recipe
        cache = self.inputs.folder / "cache"
        self.inputs.fingerprint(FIRST_DECODER, folder=cache)
        decoder = load_component(cache, FIRST_DECODER, lambda: TextDecoder(recipe.text_decoder)).train()
        decoder.tie(self.inputs.text_encoder.word_table_VE.float())
        features = self.inputs.caption_features()
        held_out = self.inputs.pictures["validation"]
        texts = [row.text for row in held_out.rows[:512]]
        canonical_N = self.inputs.table.choices_NK[:, 0]
        split = "validation" if texts else "train"
        stage = CaptionerStage(
            decoder,
            recipe.captioner_stage,
            flowed_RNLC=self.inputs.flowed("train", recipe.captioner_stage.draws),
            text=self.inputs.text_moments(),
            ids_NS=features.ids_MS[canonical_N],
            caption_N=canonical_N,
            held_out=(
                self.inputs.flowed(split, 1)[0][:512],
                self.inputs.text_encoder.encode(texts).ids_BS if texts else features.ids_MS[canonical_N[:512]],
            ),
            padding_id=self.inputs.text_encoder.pad_id,
        )
        inputs = ("image_tokenizer", "text_projector", "velocity")
        trained = self._train(stage, recipe.captioner_training, recipe.captioner_stage, inputs=inputs)
        self.inputs.keep("text_decoder", trained)

    def _train(self, stage: Stage, training: TrainingConfig, *configs: Any, inputs: Sequence[str] = ()) -> nn.Module:
        """Runs a stage; `inputs` are the components it learns from, so that a run on others is not taken for done."""

        def report(step: int, metrics: dict[str, float]) -> None:
            if self.report is not None:
                self.report(stage.name, step, training.num_steps, metrics)

        resolved: dict[str, Any] = {type(config).__name__: to_dict(config) for config in configs}
        resolved["inputs"] = {name: self.inputs.fingerprint(name) for name in inputs}
        resolved["inputs"]["data"] = self.inputs.data_digest.hexdigest()[:16]
        return train(
            stage, training, self.inputs.folder / stage.name, self.inputs.runtime, resolved=resolved, report=report
        )


def run_course(
    recipe: Recipe,
    data: Path,
    folder: Path,
    *,
    text_encoder: Path,
    runtime: Runtime,
    stages: Sequence[str] = STAGES,
    report: Report | None = None,
) -> Path:
    """Trains the named stages in their order; a stage that was finished before is not trained again.

    Args:
        recipe: What is trained and how.
        data: Folder of captioned pictures, as `flowtok data emoji` writes it.
        folder: Where runs, caches and the model go.
        text_encoder: Folder of the frozen language encoder, in transformers' layout.
        runtime: Where.
        stages: Some of STAGES.
        report: Called with stage, step, number of steps and metrics.

    Returns:
        The folder with the weights.

    Raises:
        FlowTokError: If a stage is unknown, or the data or an earlier stage's weights are missing.
    """
    if unknown := sorted(set(stages) - set(STAGES)):
        raise FlowTokError(f"unknown stage {unknown[0]!r}; the stages are {', '.join(STAGES)}")
    inputs = Inputs(recipe, Path(data), Path(folder), Path(text_encoder), runtime)
    course = Course(recipe, inputs, report)
    for name in STAGES:
        if name in stages:
            getattr(course, name)()
    return inputs.model
