"""All stages in their order on one set of captioned pictures: from nothing to a model folder.

Knows which stage hands what to the next (inputs.py keeps it); how a stage learns stands in its own file.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from flowtok.errors import FlowTokError
from flowtok.image.latents import LatentScale
from flowtok.text.decoder import TextDecoder
from flowtok.text.projector import TextProjector
from flowtok.train.captioner import CaptionerStage
from flowtok.train.flow import FlowStage, Reading, TwoWay
from flowtok.train.inputs import Inputs
from flowtok.train.joint import JointModules, JointStage, JointStageConfig
from flowtok.train.loop import Run, Stage, TrainingConfig, train
from flowtok.train.recipe import Recipe
from flowtok.train.runtime import Runtime
from flowtok.train.text import TextSide, TextStage
from flowtok.train.tokenizer import TokenizerStage, open_perceptual

FIRST_DECODER = "text_decoder_first"
FLOW_DECODER = "text_decoder_flow"
STAGES = ("tokenizer", "text", "flow", "captioner")

Report = Callable[[str, int, int, dict[str, float]], None]


class Course:
    """One recipe on one data set in one folder; every stage finds what the earlier ones left there."""

    def __init__(self, recipe: Recipe, inputs: Inputs, report: Report | None, as_it_is: bool = False) -> None:
        self.recipe, self.inputs, self.report, self.as_it_is = recipe, inputs, report, as_it_is

    def tokenizer(self) -> None:
        """Stage 1: pictures to tokens and back."""
        recipe = self.recipe
        pictures = self.inputs.pictures
        shown, count = pictures["unseen_concept"], 256
        if not len(shown):
            shown, count = pictures["train"], 64
        perceptual = open_perceptual(recipe.tokenizer_stage, self.inputs.runtime)
        stage = TokenizerStage(
            recipe.image_tokenizer,
            recipe.tokenizer_stage,
            pictures["train"].images_N3YX,
            shown.images_N3YX[:count],
            seed=recipe.tokenizer_training.seed,
            text=self.inputs.guiding_text([row.text for row in shown.rows[:count]]),
            perceptual=perceptual,
        )
        self.inputs.begin("image_tokenizer", stage.tokenizer)
        trained = self._train(
            stage,
            recipe.tokenizer_training,
            recipe.image_tokenizer,
            recipe.tokenizer_stage,
            weighted=False,
            start=self.inputs.begin_digest("image_tokenizer"),
            perceptual=None if perceptual is None else perceptual.sources,
        )
        self.inputs.keep("image_tokenizer", trained)
        # A flow that goes on keeps the scale that it knows.
        scale = LatentScale(recipe.image_tokenizer.num_tokens, recipe.image_tokenizer.token_channels)
        if self.inputs.start is None:
            moments = self.inputs.image_moments("train")
            scale = LatentScale.fitted(moments.mean_NLC, moments.logvar_NLC)
        self.inputs.begin("latent_scale", scale)
        self.inputs.keep("latent_scale", scale)

    def text(self) -> None:
        """Stage 2: captions to tokens and back, aligned with the pictures' tokens."""
        recipe = self.recipe
        if recipe.joint_stage is not None:
            return
        if recipe.text_training is None:
            self._keep_text_side()
            return
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
            end_id=self.inputs.text_encoder.end_id,
            seed=recipe.text_training.seed,
        )
        self.inputs.begin("text_projector", stage.side.projector)
        self.inputs.begin("text_decoder", stage.side.decoder)
        trained = self._train(
            stage,
            recipe.text_training,
            recipe.text_projector,
            recipe.text_decoder,
            recipe.text_stage,
            inputs=("image_tokenizer",),
            start=self.inputs.begin_digest("text_projector", "text_decoder"),
        )
        assert isinstance(trained, TextSide)
        self.inputs.keep("text_projector", trained.projector)
        # The later stages start from this one; only what they make of it goes into the model.
        self.inputs.keep(FIRST_DECODER, trained.decoder, folder=self.inputs.folder / "cache")

    def _keep_text_side(self) -> None:
        projector, decoder = TextProjector(self.recipe.text_projector), TextDecoder(self.recipe.text_decoder)
        self.inputs.begin("text_projector", projector)
        self.inputs.begin("text_decoder", decoder)
        self.inputs.keep("text_projector", projector)
        self.inputs.keep(FIRST_DECODER, decoder, folder=self.inputs.folder / "cache")

    def flow(self) -> None:
        """Stage 3: the velocity between the two, for both directions."""
        recipe = self.recipe
        if recipe.joint_stage is not None:
            self._joint(recipe.joint_stage)
            return
        stage = FlowStage(
            recipe.velocity,
            recipe.flow_stage,
            image=self.inputs.image_moments("train"),
            text=self.inputs.text_moments(),
            table=self.inputs.table,
            scale=self.inputs.latent_scale(),
            sketch=self.inputs.sketch(),
            reading=self._reading() if recipe.flow_stage.reading else None,
            seed=recipe.flow_training.seed,
        )
        self.inputs.begin("velocity", stage.two_way.network)
        inputs = ("image_tokenizer", "text_projector")
        trained = self._train(
            stage,
            recipe.flow_training,
            recipe.velocity,
            recipe.text_decoder,
            recipe.flow_stage,
            inputs=inputs,
            views_per_picture=recipe.views_per_picture,
            start=self.inputs.begin_digest("velocity"),
        )
        assert isinstance(trained, TwoWay)
        self.inputs.keep("velocity", trained.network)
        if trained.decoder is not None:
            self.inputs.keep(FLOW_DECODER, trained.decoder, folder=self.inputs.folder / "cache")
            if recipe.captioner_training is None:
                self.inputs.keep("text_decoder", trained.decoder)

    def _joint(self, config: JointStageConfig) -> None:
        recipe = self.recipe
        stage = JointStage(
            recipe.velocity,
            recipe.text_projector,
            config,
            captions=self.inputs.caption_features(),
            image=self.inputs.image_moments("train"),
            table=self.inputs.table,
            scale=self.inputs.latent_scale(),
            sketch=self.inputs.sketch(),
            seed=recipe.flow_training.seed,
        )
        self.inputs.begin("velocity", stage.joint.network)
        self.inputs.begin("text_projector", stage.joint.projector)
        configs = (recipe.velocity, recipe.text_projector, config)
        start = self.inputs.begin_digest("velocity", "text_projector")
        trained = self._train(stage, recipe.flow_training, *configs, inputs=("image_tokenizer",), start=start)
        assert isinstance(trained, JointModules)
        self.inputs.keep("velocity", trained.network)
        self.inputs.keep("text_projector", trained.projector)

    def _reading(self) -> Reading:
        split, count, ids_MS = self.inputs.held_out_captions()
        features = self.inputs.caption_features()
        z_image_MLC = self.inputs.latent_scale().to_flow(self.inputs.image_moments(split).mean_NLC[:count])
        return Reading(
            decoder=self.inputs.decoder(FIRST_DECODER),
            ids_NS=features.ids_MS[self.inputs.table.choices_NK[:, 0]],
            known_U=features.ids_MS.unique(),
            views=self.inputs.image_views("train"),
            held_out=(z_image_MLC[:128], ids_MS[:128]),
            padding_id=self.inputs.text_encoder.pad_id,
            end_id=self.inputs.text_encoder.end_id,
        )

    def captioner(self) -> None:
        """Stage 4: words from the tokens that the flow brings back, the flow left as it is."""
        recipe = self.recipe
        if recipe.captioner_training is None:
            return
        first_decoder = FLOW_DECODER if recipe.flow_stage.reading else FIRST_DECODER
        if recipe.joint_stage is not None:
            first_decoder = None
        canonical_N = self.inputs.table.choices_NK[:, 0]
        split, count, ids_MS = self.inputs.held_out_captions()
        stage = CaptionerStage(
            self.inputs.decoder(first_decoder),
            recipe.captioner_stage,
            flowed_RNLC=self.inputs.flowed("train", recipe.captioner_stage.draws),
            text=self.inputs.text_moments(),
            ids_NS=self.inputs.caption_features().ids_MS[canonical_N],
            caption_N=canonical_N,
            held_out=(self.inputs.flowed(split, 1)[0][:count], ids_MS),
            padding_id=self.inputs.text_encoder.pad_id,
            end_id=self.inputs.text_encoder.end_id,
        )
        inputs = ("image_tokenizer", "text_projector", "velocity")
        trained = self._train(stage, recipe.captioner_training, recipe.captioner_stage, inputs=inputs)
        self.inputs.keep("text_decoder", trained)

    def _train(
        self,
        stage: Stage,
        training: TrainingConfig,
        *configs: Any,
        inputs: Sequence[str] = (),
        weighted: bool = True,
        **values: Any,
    ) -> nn.Module:
        """Runs a stage and keeps what it was made of in its record, so that another run is not taken for this one.

        Args:
            stage: What is trained.
            training: How long.
            configs: What the stage was built from.
            inputs: Components of earlier stages that it learns from.
            weighted: Draws pictures by their weight; otherwise each once an epoch.
            values: Anything else that it depends on.
        """
        if self.as_it_is:
            return self._reached(stage, training)

        def report(step: int, metrics: dict[str, float]) -> None:
            if self.report is not None:
                self.report(stage.name, step, training.num_steps, metrics)

        resolved: dict[str, Any] = {type(config).__name__: config for config in configs}
        resolved |= {name: value for name, value in values.items() if value is not None}
        resolved["inputs"] = {name: self.inputs.fingerprint(name) for name in inputs}
        resolved["inputs"]["data"] = self.inputs.data_digest.hexdigest()[:16]
        return train(
            stage,
            training,
            self.inputs.folder / stage.name,
            self.inputs.runtime,
            epoch_M=self.inputs.epoch_M if weighted else None,
            resolved=resolved,
            report=report,
        )

    def _reached(self, stage: Stage, training: TrainingConfig) -> nn.Module:
        """The averaged weights of the stage's last checkpoint, or those that it would have started from."""
        folder = self.inputs.folder / stage.name
        if folder.is_dir():
            return Run(stage, training, folder, self.inputs.runtime).averages().eval()
        if self.inputs.start is None:
            raise FlowTokError(f"stage {stage.name} has not begun; start again to go on")
        return stage.modules.eval()


def run_course(
    recipe: Recipe,
    data: str | Path,
    folder: Path,
    *,
    text_encoder: Path,
    runtime: Runtime,
    stages: Sequence[str] = STAGES,
    start: Path | None = None,
    as_it_is: bool = False,
    report: Report | None = None,
) -> Path:
    """Trains the named stages in their order; a stage that was finished before is not trained again.

    Args:
        recipe: What is trained and how.
        data: Captioned pictures: the emoji set's folder, or any source that data/sources.py opens.
        folder: Where runs, caches and the model go.
        text_encoder: Folder of the frozen language encoder, in transformers' layout.
        runtime: Where.
        stages: Some of STAGES.
        start: A model folder of the same shapes whose weights the stages start from; None for fresh weights.
        as_it_is: Trains nothing and takes the weights that each stage's last checkpoint has.
        report: Called with stage, step, number of steps and metrics.

    Returns:
        The folder with the weights.

    Raises:
        FlowTokError: If a stage is unknown, or the data or an earlier stage's weights are missing.
    """
    if unknown := sorted(set(stages) - set(STAGES)):
        raise FlowTokError(f"unknown stage {unknown[0]!r}; the stages are {', '.join(STAGES)}")
    if recipe.text_training is None and start is None:
        raise FlowTokError(
            f"recipe {recipe.name} has no text_training, which only training from a model can do without"
        )
    inputs = Inputs(recipe, data, Path(folder), Path(text_encoder), runtime, start=start)
    course = Course(recipe, inputs, report, as_it_is)
    for name in STAGES:
        if name in stages:
            getattr(course, name)()
    return inputs.model
