"""What a model is made of and how each stage of it is trained, as one value.

Reads recipes that are kept with runs and models, too. The named ones stand in recipes.py above this room; course.py
trains one.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from flowtok.config import from_dict
from flowtok.data.collect import CollectConfig
from flowtok.flow.transformer import VelocityTransformerConfig
from flowtok.image.tokenizer import ImageTokenizerConfig
from flowtok.text.decoder import TextDecoderConfig
from flowtok.text.encoder import TextEncoderConfig
from flowtok.text.projector import TextProjectorConfig
from flowtok.train.captioner import CaptionerStageConfig
from flowtok.train.distil import DistilStageConfig
from flowtok.train.flow import FlowStageConfig
from flowtok.train.joint import JointStageConfig
from flowtok.train.loop import TrainingConfig
from flowtok.train.streaming import StreamingConfig
from flowtok.train.text import TextStageConfig
from flowtok.train.tokenizer import TokenizerStageConfig

STAGES = ("tokenizer", "text", "flow", "captioner")
COMPONENTS = ("image_tokenizer", "latent_scale", "text_projector", "alignment_head", "velocity", "text_decoder")


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A model and how it is trained, stage by stage.

    A stage without a `..._training` is not trained: what it would leave is taken from the model that training starts
    from.

    Attributes:
        name: Name of the model.
        image_tokenizer: Shape of the image tokenizer.
        text_encoder: What the frozen language encoder must be.
        text_projector: Shape of the text projector.
        text_decoder: Shape of the text decoder; None for a model that reads no captions.
        velocity: Shape of the velocity network.
        random_views: Captions are read from pictures moved, scaled, turned and tinted a little, each time anew.
        captions_per_picture: Captions that training knows of each picture, its canonical one among them.
        data: Which samples are taken, and which of their captions.
        stream: Reads pictures as they come, for any number of them; None takes all into memory, where the two counts
            above hold.
        fresh: Components that get fresh weights even where training starts from a model.
        tokenizer_stage: Losses of the first stage.
        tokenizer_training: Length and rate of the first stage; None keeps the image tokenizer of the model that
            training starts from.
        text_stage: Losses of the text side.
        text_training: Length and rate of the text side; None keeps that of the model that training starts from.
        flow_stage: Draws of the flow stage.
        joint_stage: The paper's own flow stage, which trains the projector too; then there is no text stage, and the
            text decoder is trained by the last stage alone. None for text and flow one after the other.
        distil_stage: Makes a few-step model: the flow stage teaches the flow of the model that training starts from to
            jump. None trains a flow on pictures.
        flow_training: Length and rate of the flow stage; None trains no flow.
        captioner_stage: Draws of the last stage.
        captioner_training: Length and rate of the last stage; None keeps the decoder as the flow stage has trained it,
            if it has.
    """

    name: str
    image_tokenizer: ImageTokenizerConfig
    text_encoder: TextEncoderConfig
    text_projector: TextProjectorConfig
    text_decoder: TextDecoderConfig | None
    velocity: VelocityTransformerConfig
    captions_per_picture: int
    random_views: bool = False
    data: CollectConfig = CollectConfig()
    stream: StreamingConfig | None = None
    fresh: tuple[str, ...] = ()
    tokenizer_stage: TokenizerStageConfig
    tokenizer_training: TrainingConfig | None
    text_stage: TextStageConfig
    text_training: TrainingConfig | None
    flow_stage: FlowStageConfig
    joint_stage: JointStageConfig | None = None
    distil_stage: DistilStageConfig | None = None
    flow_training: TrainingConfig | None
    captioner_stage: CaptionerStageConfig
    captioner_training: TrainingConfig | None

    def __post_init__(self) -> None:
        if self.captions_per_picture < 1:
            raise ValueError(f"captions_per_picture must be at least 1, not {self.captions_per_picture}")
        if unknown := sorted(set(self.fresh) - set(COMPONENTS)):
            raise ValueError(f"fresh names {unknown[0]!r}; the components are {', '.join(COMPONENTS)}")
        if self.distil_stage is not None:
            self._check_distilling()
        else:
            self._check_reading()
        self._check_stream()
        self._check_effect()
        if self.text_projector.noise_std is not None and self.text_stage.kl > 0:
            raise ValueError("text_stage.kl has no effect on text tokens of fixed noise_std; set it to 0")
        if self.tokenizer_training is not None and self.tokenizer_stage.noise and not self.image_tokenizer.flow_noise:
            raise ValueError(
                "tokenizer_stage.noise is for a decoder that is told of it: set image_tokenizer.flow_noise"
            )
        adversary, training = self.tokenizer_stage.adversary, self.tokenizer_training
        if adversary is not None and training is not None and adversary.start_step >= training.num_steps:
            raise ValueError(
                f"tokenizer_stage.adversary.start_step {adversary.start_step} is never reached in "
                f"{training.num_steps} steps; start it earlier or set the adversary to null"
            )
        shapes = {
            "image_tokenizer": (self.image_tokenizer.num_tokens, self.image_tokenizer.token_channels),
            "text_projector": (self.text_projector.num_tokens, self.text_projector.token_channels),
            "velocity": (self.velocity.num_tokens, self.velocity.token_channels),
        }
        if self.text_decoder is not None:
            shapes["text_decoder"] = (self.text_decoder.num_tokens, self.text_decoder.token_channels)
        if len(set(shapes.values())) > 1:
            raise ValueError(f"text and image must become tokens of one shape (L, C), not {shapes}")
        if self.text_encoder.num_tokens != self.text_projector.num_tokens:
            raise ValueError(
                f"the text encoder gives {self.text_encoder.num_tokens} features, "
                f"the projector takes {self.text_projector.num_tokens}"
            )

    @property
    def trained_stages(self) -> tuple[str, ...]:
        """The stages that this recipe trains, in their order."""
        untrained = {name for name in STAGES if getattr(self, f"{name}_training") is None}
        if self.joint_stage is not None:
            untrained.add("text")
        return tuple(name for name in STAGES if name not in untrained)

    def _check_distilling(self) -> None:
        """Whether nothing but the flow is trained, and in memory."""
        assert self.distil_stage is not None, "asked only then"
        others = ("tokenizer_training", "text_training", "joint_stage", "captioner_training", "stream")
        if given := [name for name in others if getattr(self, name) is not None]:
            raise ValueError(f"with a distil_stage nothing but the flow is trained, in memory: set {given[0]} to null")
        if self.text_decoder is None or self.flow_training is None:
            raise ValueError("a distil_stage needs flow_training, and a text_decoder, which it leaves as it is")
        if self.captioner_stage.num_steps != 1 and self.distil_stage.keep:
            raise ValueError(
                "distil_stage.keep keeps the velocity at the image end alone, where captions are read in one step: set "
                f"captioner_stage.num_steps to 1, not {self.captioner_stage.num_steps}"
            )

    def _check_reading(self) -> None:
        """Whether a text decoder is trained exactly where the recipe has one."""
        if self.text_decoder is None:
            if self.text_training or self.captioner_training or self.flow_stage.reading:
                raise ValueError(
                    "text_decoder is null, and so text_training and captioner_training must be null and "
                    "flow_stage.reading 0"
                )
            if self.joint_stage is None and self.flow_training is not None:
                raise ValueError("without a text_decoder the flow is trained by the joint_stage")
        elif self.captioner_training is None and (self.joint_stage is not None or not self.flow_stage.reading):
            raise ValueError(
                "nothing trains the text decoder to read flowed tokens: give captioner_training, or "
                "flow_stage.reading above 0"
            )

    def _check_stream(self) -> None:
        """Whether all that is trained can be trained from a stream, if it is one."""
        if self.stream is None:
            return
        if self.text_training is not None or (self.flow_training is not None and self.joint_stage is None):
            raise ValueError(
                "from a stream, text and flow are trained together: give joint_stage and set text_training to null, or "
                "set stream to null for pictures that fit into memory"
            )
        if self.stream.moments and (self.tokenizer_training is not None or self.captioner_training is not None):
            raise ValueError(
                "image tokenizer and captioner look at pictures; give pictures and set stream.moments to false"
            )

    def _check_effect(self) -> None:
        """Whether settings that one kind of training does not look at stand as they came."""
        idle: dict[str, tuple[str, object]] = {}
        if self.joint_stage is not None:
            usual, why = FlowStageConfig(), "beside a joint_stage, which has its own"
            for name in ("time", "ends_share", "null_probability", "canonical_share"):
                if getattr(self.flow_stage, name) != getattr(usual, name):
                    idle[f"flow_stage.{name}"] = why, getattr(usual, name)
        if self.stream is not None:
            whole = "on a stream, where data.captions says which captions are read"
            if self.captions_per_picture != 1:
                idle["captions_per_picture"] = whole, 1
            if self.joint_stage is not None and self.joint_stage.canonical_share != JointStageConfig.canonical_share:
                idle["joint_stage.canonical_share"] = whole, JointStageConfig.canonical_share
            if self.random_views:
                idle["random_views"] = "on a stream", "false"
        for name, (why, usual_value) in idle.items():
            raise ValueError(f"{name} has no effect {why}; set it to {usual_value}")


def read_recipe(data: Mapping[str, Any], *, where: str) -> Recipe:
    """A recipe as a run or a model keeps it, also one that an earlier version has stored.

    Fields that came later have their defaults. More than one of `views_per_picture`, fixed ones, have become
    `random_views`.

    Args:
        data: Plain data.
        where: What holds it, for messages.

    Raises:
        FlowTokError: It is no recipe.
    """
    views = data.get("views_per_picture")
    if isinstance(views, int) and "random_views" not in data:
        kept = {key: value for key, value in data.items() if key != "views_per_picture"}
        data = kept | {"random_views": views > 1}
    return from_dict(Recipe, data, where=where)
