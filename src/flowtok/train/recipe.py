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
        captions_per_picture: Captions that training knows of each picture, its canonical one among them.
        tokenizer_stage: Losses of the first stage.
        tokenizer_training: Length and rate of the first stage.
        text_stage: Losses of the text side.
        text_training: Length and rate of the text side.
        flow_stage: Draws of the flow stage.
        flow_training: Length and rate of the flow stage.
        captioner_stage: Draws of the last stage.
        captioner_training: Length and rate of the last stage.
    """

    name: str
    image_tokenizer: ImageTokenizerConfig
    text_encoder: TextEncoderConfig
    text_projector: TextProjectorConfig
    text_decoder: TextDecoderConfig
    velocity: VelocityTransformerConfig
    captions_per_picture: int
    tokenizer_stage: TokenizerStageConfig
    tokenizer_training: TrainingConfig
    text_stage: TextStageConfig
    text_training: TrainingConfig
    flow_stage: FlowStageConfig
    flow_training: TrainingConfig
    captioner_stage: CaptionerStageConfig
    captioner_training: TrainingConfig

    def __post_init__(self) -> None:
        if self.captions_per_picture < 1:
            raise ValueError(f"captions_per_picture must be at least 1, not {self.captions_per_picture}")
        if self.text_projector.noise_std is not None and self.text_stage.kl > 0:
            raise ValueError("text_stage.kl has no effect on text tokens of fixed noise_std; set it to 0")
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
