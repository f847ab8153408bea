"""All stages in their order on one set of captioned pictures: from nothing, or from other models, to a model folder.

Knows which stage hands what to the next: weights.py keeps the networks, inputs.py and stream_inputs.py what they learn
from. How a stage learns stands in its own file.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

from flowtok.data.collect import Collected
from flowtok.errors import FlowTokError
from flowtok.flow.transformer import VelocityTransformer
from flowtok.image.latents import LatentScale
from flowtok.text.decoder import TextDecoder
from flowtok.text.projector import TextProjector
from flowtok.train.captioner import CaptionerStage
from flowtok.train.distil import DistilStage, DistilStageConfig
from flowtok.train.flow import FlowStage, TwoWay
from flowtok.train.inputs import Inputs
from flowtok.train.joint import JointModules, JointStage, JointStageConfig
from flowtok.train.loop import TrainingConfig
from flowtok.train.pace import SecondsLeft
from flowtok.train.recipe import STAGES, Recipe
from flowtok.train.runtime import Runtime
from flowtok.train.stage_runs import Report, StageRuns
from flowtok.train.stream_inputs import MomentInputs, StreamInputs
from flowtok.train.text import TextSide, TextStage
from flowtok.train.tokenizer import TokenizerStage, open_perceptual, scale_of
from flowtok.train.weights import Weights

FIRST_DECODER = "text_decoder_first"
FLOW_DECODER = "text_decoder_flow"


class Course:
    """One recipe on one data set in one folder; every stage finds what the earlier ones left there."""

    def __init__(self, recipe: Recipe, inputs: Inputs | StreamInputs, runs: StageRuns) -> None:
        self.recipe, self.inputs, self.weights, self.runs = recipe, inputs, inputs.weights, runs

    def tokenizer(self) -> None:
        """Stage 1: pictures to tokens and back."""
        recipe, weights = self.recipe, self.weights
        if recipe.tokenizer_training is None:
            return
        if recipe.tokenizer_stage.learns == "decoder" and not weights.goes_on("image_tokenizer"):
            raise FlowTokError("to train the decoder alone, name the model whose encoder it reads with --from")
        samples, shown = self.inputs.picture_samples()
        perceptual = open_perceptual(recipe.tokenizer_stage, self.inputs.runtime)
        stage = TokenizerStage(
            recipe.image_tokenizer,
            recipe.tokenizer_stage,
            samples,
            shown,
            seed=recipe.tokenizer_training.seed,
            perceptual=perceptual,
        )
        weights.begin("image_tokenizer", stage.tokenizer)
        trained = self.runs.train(
            stage,
            recipe.tokenizer_training,
            recipe.image_tokenizer,
            recipe.tokenizer_stage,
            weighted=False,
            start=weights.begin_digest("image_tokenizer"),
            perceptual=None if perceptual is None else perceptual.sources,
        )
        self.inputs.tell_left_out(samples)
        # The scale is measured once for a tokenizer: the flow must not find another one after a stop.
        if not weights.is_kept("image_tokenizer", trained):
            weights.forget("latent_scale")
        measured = weights.is_kept("latent_scale")  # asked before the ranks wait for each other: one of them writes it
        weights.keep("image_tokenizer", trained)
        if not measured:
            self._keep_scale()

    def _keep_scale(self) -> None:
        recipe, weights = self.recipe, self.weights
        scale = LatentScale(recipe.image_tokenizer.num_tokens, recipe.image_tokenizer.token_channels)
        if not weights.goes_on("latent_scale"):  # a flow that goes on keeps the scale that it knows
            moments = self.inputs.posteriors()
            scale = scale_of(recipe.tokenizer_stage.scale, moments.mean_NLC, moments.logvar_NLC)
        weights.begin("latent_scale", scale)
        weights.keep("latent_scale", scale)

    def text(self) -> None:
        """Stage 2: captions to tokens and back, aligned with the pictures' tokens."""
        recipe, inputs = self.recipe, self.inputs
        if recipe.joint_stage is not None or isinstance(inputs, StreamInputs) or recipe.text_decoder is None:
            return
        if recipe.text_training is None:
            self._keep_text_side()
            return
        stage = TextStage(
            recipe.text_projector,
            recipe.text_decoder,
            recipe.text_stage,
            captions=inputs.caption_features(),
            table=inputs.table,
            moments=inputs.image_moments("train"),
            scale=self.weights.latent_scale(),
            word_table_VE=inputs.text_encoder.word_table_VE.float(),
            padding_id=inputs.text_encoder.pad_id,
            end_id=inputs.text_encoder.end_id,
            files=inputs.files,
            seed=recipe.text_training.seed,
        )
        self.weights.begin("text_projector", stage.side.projector)
        self.weights.begin("text_decoder", stage.side.decoder)
        trained = self.runs.train(
            stage,
            recipe.text_training,
            recipe.text_projector,
            recipe.text_decoder,
            recipe.text_stage,
            inputs=("image_tokenizer",),
            start=self.weights.begin_digest("text_projector", "text_decoder"),
        )
        assert isinstance(trained, TextSide)
        self.weights.keep("text_projector", trained.projector)
        # The later stages start from this one; only what they make of it goes into the model.
        self.weights.keep(FIRST_DECODER, trained.decoder, folder=self.weights.cache)

    def _keep_text_side(self) -> None:
        assert self.recipe.text_decoder is not None
        projector, decoder = TextProjector(self.recipe.text_projector), TextDecoder(self.recipe.text_decoder)
        self.weights.begin("text_projector", projector)
        self.weights.begin("text_decoder", decoder)
        self.weights.keep("text_projector", projector)
        self.weights.keep(FIRST_DECODER, decoder, folder=self.weights.cache)

    def flow(self) -> None:
        """Stage 3: the velocity between the two, for both directions."""
        recipe, inputs = self.recipe, self.inputs
        if recipe.flow_training is None:
            return
        if recipe.joint_stage is not None:
            self._joint(recipe.flow_training, recipe.joint_stage)
            return
        assert isinstance(inputs, Inputs), "a recipe that reads a stream trains the flow in the joint stage"
        if recipe.distil_stage is not None:
            self._distil(inputs, recipe.flow_training, recipe.distil_stage)
            return
        stage = FlowStage(
            recipe.velocity,
            recipe.flow_stage,
            pairs=inputs.moment_pairs(),
            sketch=inputs.sketch(),
            reading=inputs.reading(self._decoder(FIRST_DECODER)) if recipe.flow_stage.reading else None,
            seed=recipe.flow_training.seed,
        )
        self.weights.begin("velocity", stage.two_way.network)
        trained = self.runs.train(
            stage,
            recipe.flow_training,
            recipe.velocity,
            recipe.text_decoder,
            recipe.flow_stage,
            inputs=("image_tokenizer", "text_projector"),
            random_views=recipe.random_views,
            start=self.weights.begin_digest("velocity"),
        )
        assert isinstance(trained, TwoWay)
        self.weights.keep("velocity", trained.network)
        if trained.decoder is not None:
            self.weights.keep(FLOW_DECODER, trained.decoder, folder=self.weights.cache)
            if recipe.captioner_training is None:
                self.weights.keep("text_decoder", trained.decoder)

    def _joint(self, training: TrainingConfig, config: JointStageConfig) -> None:
        recipe, weights = self.recipe, self.weights
        samples = self.inputs.pair_samples()
        stage = JointStage(
            recipe.velocity,
            recipe.text_projector,
            config,
            samples=samples,
            sketch=self.inputs.sketch(),
            seed=training.seed,
        )
        parts = {"velocity": stage.joint.network, "text_projector": stage.joint.projector}
        if config.projector == "trained":
            parts["alignment_head"] = stage.joint.head
        for name, network in parts.items():
            weights.begin(name, network)
        configs = (recipe.velocity, recipe.text_projector, config)
        start = weights.begin_digest(*parts)
        trained = self.runs.train(stage, training, *configs, inputs=("image_tokenizer", "latent_scale"), start=start)
        self.inputs.tell_left_out(samples)
        assert isinstance(trained, JointModules)
        weights.keep("velocity", trained.network)
        if config.projector == "trained":
            weights.keep("text_projector", trained.projector)
            weights.keep("alignment_head", trained.head)  # a later training goes on with it

    def _distil(self, inputs: Inputs, training: TrainingConfig, config: DistilStageConfig) -> None:
        teacher = VelocityTransformer(self.recipe.velocity)
        self.weights.begin("velocity", teacher)
        stage = DistilStage(
            teacher,
            config,
            pairs=inputs.moment_pairs(),
            sketch=inputs.sketch(),
            device=inputs.runtime.device,
        )
        trained = self.runs.train(
            stage,
            training,
            self.recipe.velocity,
            config,
            inputs=("image_tokenizer", "text_projector"),
            start=self.weights.begin_digest("velocity"),
        )
        self.weights.keep("velocity", trained)
        # Captions are read as before: the flow is kept as it is where they are read.
        self.weights.keep("text_decoder", self.weights.decoder(FIRST_DECODER))

    def captioner(self) -> None:
        """Stage 4: words from the tokens that the flow brings back, the flow left as it is."""
        recipe = self.recipe
        if recipe.captioner_training is None:
            return
        first_decoder = FLOW_DECODER if recipe.flow_stage.reading else FIRST_DECODER
        if recipe.joint_stage is not None:
            first_decoder = None
        samples, held_out = self.inputs.reading_samples()
        stage = CaptionerStage(
            self._decoder(first_decoder),
            recipe.captioner_stage,
            samples=samples,
            held_out=held_out,
            padding_id=self.inputs.text_encoder.pad_id,
            end_id=self.inputs.text_encoder.end_id,
        )
        inputs = ("image_tokenizer", "text_projector", "velocity")
        start = None if first_decoder else self.weights.begin_digest("text_decoder")
        trained = self.runs.train(stage, recipe.captioner_training, recipe.captioner_stage, inputs=inputs, start=start)
        self.inputs.tell_left_out(samples)
        self.weights.keep("text_decoder", trained)

    def _decoder(self, name: str | None) -> TextDecoder:
        decoder = self.weights.decoder(name)
        if decoder.config.tied_width is not None:
            decoder.tie(self.inputs.text_encoder.word_table_VE.float())
        return decoder


def run_course(
    recipe: Recipe,
    data: str | Path | Collected,
    folder: Path,
    *,
    text_encoder: Path,
    runtime: Runtime,
    stages: Sequence[str] = STAGES,
    start: Path | Sequence[Path] | None = None,
    as_it_is: bool = False,
    report: Report | None = None,
    seconds_left: Mapping[str, SecondsLeft] | None = None,
) -> Path:
    """Trains the named stages in their order; a stage that was finished before is not trained again.

    Args:
        recipe: What is trained and how.
        data: Captioned pictures: the emoji set's folder, any source that data/sources.py opens, or, for a recipe
            without a stream, pictures that were collected before.
        folder: Where runs, caches and the model go.
        text_encoder: Folder of the frozen language encoder, in transformers' layout.
        runtime: Where.
        stages: Some of STAGES.
        start: Model folders of the same shapes whose weights the stages start from, the first that has a component;
            None for fresh weights.
        as_it_is: Trains nothing and takes the weights that each stage's last checkpoint has.
        report: Called with stage, step, number of steps and metrics.
        seconds_left: For stages that end by the clock, what tells the seconds that they still have.

    Returns:
        The folder with the weights.

    Raises:
        FlowTokError: If a stage is unknown, or the data or an earlier stage's weights are missing.
    """
    if unknown := sorted(set(stages) - set(STAGES)):
        raise FlowTokError(f"unknown stage {unknown[0]!r}; the stages are {', '.join(STAGES)}")
    folders = [start] if isinstance(start, Path) else list(start or ())
    if recipe.text_decoder is not None and recipe.text_training is None and recipe.joint_stage is None and not folders:
        raise FlowTokError(
            f"recipe {recipe.name} has no text_training, which only training from a model can do without"
        )
    weights = Weights(recipe, Path(folder), runtime, folders)
    weights.take_over()
    if recipe.stream is None:
        inputs = Inputs(recipe, data, Path(text_encoder), weights)
    else:
        assert not isinstance(data, Collected), "a stream is read as it comes"
        kind = MomentInputs if recipe.stream.moments else StreamInputs
        inputs = kind(recipe, data, Path(text_encoder), weights)
    course = Course(recipe, inputs, StageRuns(inputs, report, as_it_is, seconds_left))
    for name in STAGES:
        if name in stages:
            getattr(course, name)()
    return weights.model
