"""What a model is made of and how each stage of it is trained, as one value.

The named recipes stand in recipes.py above this room; course.py trains one.
"""

from dataclasses import dataclass

from flowtok.flow.transformer import VelocityTransformerConfig
from flowtok.image.tokenizer import ImageTokenizerConfig
from flowtok.text.decoder import TextDecoderConfig
from flowtok.text.encoder import TextEncoderConfig
from flowtok.text.projector import TextProjectorConfig
from flowtok.train.captioner import CaptionerStageConfig
from flowtok.train.flow import FlowStageConfig
from flowtok.train.joint import JointStageConfig
from flowtok.train.loop import TrainingConfig
from flowtok.train.text import TextStageConfig
from flowtok.train.tokenizer import TokenizerStageConfig


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A model and how it is trained, stage by stage.

    Attributes:
        name: Name of the model.
        image_tokenizer: Shape of the image tokenizer.
        text_encoder: What the frozen language encoder must be.
        text_projector: Shape of the text projector.
        text_decoder: Shape of the text decoder.
        velocity: Shape of the velocity network.
        views_per_picture: Slightly moved and scaled copies of each training picture that captions are read from.
        captions_per_picture: Captions that training knows of each picture, its canonical one among them.
        tokenizer_stage: Losses of the first stage.
        tokenizer_training: Length and rate of the first stage.
        text_stage: Losses of the text side.
        text_training: Length and rate of the text side; None keeps that of the model that training starts from.
        flow_stage: Draws of the flow stage.
        joint_stage: The paper's own flow stage, which trains the projector too; then there is no text stage, and the
            text decoder is trained by the last stage alone. None for text and flow one after the other.
        flow_training: Length and rate of the flow stage.
        captioner_stage: Draws of the last stage.
        captioner_training: Length and rate of the last stage; None keeps the decoder as the flow stage has trained it.
    """

    name: str
    image_tokenizer: ImageTokenizerConfig
    text_encoder: TextEncoderConfig
    text_projector: TextProjectorConfig
    text_decoder: TextDecoderConfig
    velocity: VelocityTransformerConfig
    captions_per_picture: int
    views_per_picture: int = 1
    tokenizer_stage: TokenizerStageConfig
    tokenizer_training: TrainingConfig
    text_stage: TextStageConfig
    text_training: TrainingConfig | None
    flow_stage: FlowStageConfig
    joint_stage: JointStageConfig | None = None
    flow_training: TrainingConfig
    captioner_stage: CaptionerStageConfig
    captioner_training: TrainingConfig | None

    def __post_init__(self) -> None:
        if min(self.captions_per_picture, self.views_per_picture) < 1:
            raise ValueError("captions_per_picture and views_per_picture must be at least 1")
        if self.captioner_training is None and (self.joint_stage is not None or not self.flow_stage.reading):
            raise ValueError(
                "nothing trains the text decoder to read flowed tokens: give captioner_training, or "
                "flow_stage.reading above 0"
            )
        if self.text_projector.noise_std is not None and self.text_stage.kl > 0:
            raise ValueError("text_stage.kl has no effect on text tokens of fixed noise_std; set it to 0")
        adversary, steps = self.tokenizer_stage.adversary, self.tokenizer_training.num_steps
        if adversary is not None and adversary.start_step >= steps:
            raise ValueError(
                f"tokenizer_stage.adversary.start_step {adversary.start_step} is never reached in {steps} steps; "
                "start it earlier or set the adversary to null"
            )
        shapes = {
            "image_tokenizer": (self.image_tokenizer.num_tokens, self.image_tokenizer.token_channels),
            "text_projector": (self.text_projector.num_tokens, self.text_projector.token_channels),
            "text_decoder": (self.text_decoder.num_tokens, self.text_decoder.token_channels),
            "velocity": (self.velocity.num_tokens, self.velocity.token_channels),
        }
        if len(set(shapes.values())) > 1:
            raise ValueError(f"text and image must become tokens of one shape (L, C), not {shapes}")
        if self.text_encoder.num_tokens != self.text_projector.num_tokens:
            raise ValueError(
                f"the text encoder gives {self.text_encoder.num_tokens} features, "
                f"the projector takes {self.text_projector.num_tokens}"
            )
