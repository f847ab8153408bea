"""Every named model and every named run, as Python values; a variant is `dataclasses.replace` of another.

Start here to see what a size or a training run is made of. The classes that read these values stand in text/, flow/,
image/ and train/.
"""

from dataclasses import replace

from flowtok.flow.transformer import VelocityTransformerConfig
from flowtok.image.losses import ReconstructionLossConfig
from flowtok.image.tokenizer import ImageTokenizerConfig, VisionTransformerConfig
from flowtok.text.decoder import TextDecoderConfig
from flowtok.text.encoder import CLIP_L14, TextEncoderConfig
from flowtok.text.projector import AlignmentHeadConfig, TextProjectorConfig
from flowtok.train.captioner import CaptionerStageConfig
from flowtok.train.flow import FlowStageConfig
from flowtok.train.loop import TrainingConfig
from flowtok.train.optim import OptimizerConfig
from flowtok.train.recipe import Recipe
from flowtok.train.text import TextStageConfig
from flowtok.train.tokenizer import TokenizerStageConfig

# The paper's velocity networks (table 1); S is not in the paper.
S = VelocityTransformerConfig(depth=12, width=384, num_heads=6)
B = VelocityTransformerConfig(depth=12, width=768, num_heads=12)
L = VelocityTransformerConfig(depth=24, width=1024, num_heads=16)
XL = VelocityTransformerConfig(depth=28, width=1152, num_heads=16)
H = VelocityTransformerConfig(depth=36, width=1280, num_heads=20)
VELOCITY_NETWORKS = {"S": S, "B": B, "L": L, "XL": XL, "H": H}

TOKENIZER_256 = ImageTokenizerConfig()
TOKENIZER_512 = replace(TOKENIZER_256, image_size=512)

_SMALL_MUON = OptimizerConfig(
    name="muon",
    learning_rate=1.5e-3,
    betas=(0.9, 0.99),
    weight_decay=0.01,
    warmup_steps=100,
    schedule="cosine",
    final_share=0.02,
)
_SMALL_TRAINING = TrainingConfig(
    num_steps=1000,
    batch_size=128,
    optimizer=_SMALL_MUON,
    ema_decay=0.998,
    precision="float32",
    compile=False,
    checkpoint_every=250,
    preview_every=250,
)

EMOJI = Recipe(
    name="emoji",
    image_tokenizer=ImageTokenizerConfig(
        image_size=64,
        patch_size=8,
        num_tokens=32,
        token_channels=16,
        encoder=VisionTransformerConfig(width=128, depth=3, num_heads=2),
        decoder=VisionTransformerConfig(width=256, depth=4, num_heads=4),
        text_width=None,
    ),
    text_encoder=TextEncoderConfig(family="bert", width=384, num_tokens=32, vocabulary_size=30522),
    text_projector=TextProjectorConfig(
        text_width=384,
        num_tokens=32,
        token_channels=16,
        num_layers=3,
        num_heads=6,
        hidden=768,
        dropout=0.0,
        noise_std=0.6,
    ),
    text_decoder=TextDecoderConfig(
        vocabulary_size=30522,
        num_tokens=32,
        token_channels=16,
        width=256,
        depth=4,
        num_heads=4,
        tied_width=384,
        causal=True,
    ),
    velocity=VelocityTransformerConfig(depth=8, width=256, num_heads=4, num_tokens=32, token_channels=16),
    captions_per_picture=4,
    tokenizer_stage=TokenizerStageConfig(
        losses=ReconstructionLossConfig(squared=1.0, absolute=0.1, kl=2.5e-7), first_weights="fan_in"
    ),
    # At equal time Muon with 32 pictures was ahead of Muon with 64 and of AdamW with 16 (docs/lab-notes.md).
    tokenizer_training=replace(
        _SMALL_TRAINING,
        num_steps=7000,
        batch_size=32,
        ema_decay=0.999,
        checkpoint_every=250,
        preview_every=500,
    ),
    text_stage=TextStageConfig(kl=0.0, random_words=2048),
    text_training=replace(
        _SMALL_TRAINING, num_steps=600, batch_size=128, optimizer=replace(_SMALL_MUON, learning_rate=1e-3)
    ),
    views_per_picture=4,
    flow_stage=FlowStageConfig(reading=0.1, reading_share=0.35, random_words=2048),
    flow_training=replace(
        _SMALL_TRAINING,
        num_steps=7000,
        batch_size=64,
        optimizer=replace(_SMALL_MUON, learning_rate=1.2e-3),
        ema_decay=0.999,
        preview_every=500,
    ),
    # The flow stage reads captions itself, in one step from the image end.
    captioner_stage=CaptionerStageConfig(draws=1, num_steps=1),
    captioner_training=None,
)

_TINY_TRAINING = replace(
    _SMALL_TRAINING,
    num_steps=12,
    batch_size=8,
    optimizer=replace(_SMALL_MUON, warmup_steps=2),
    ema_decay=0.9,
    checkpoint_every=4,
    preview_every=6,
    log_every=4,
)

# For trying out and for tests: every part of EMOJI, each as small as it gets, trained in seconds to nothing useful.
TINY = replace(
    EMOJI,
    name="tiny",
    image_tokenizer=replace(
        EMOJI.image_tokenizer,
        encoder=VisionTransformerConfig(width=32, depth=1, num_heads=2),
        decoder=VisionTransformerConfig(width=32, depth=1, num_heads=2),
    ),
    text_projector=replace(EMOJI.text_projector, num_layers=1, hidden=32),
    text_decoder=replace(EMOJI.text_decoder, width=32, depth=1, num_heads=2),
    velocity=replace(EMOJI.velocity, depth=1, width=32, num_heads=2),
    tokenizer_training=_TINY_TRAINING,
    text_training=_TINY_TRAINING,
    flow_training=_TINY_TRAINING,
    captioner_training=_TINY_TRAINING,
)

RECIPES = {"emoji": EMOJI, "tiny": TINY}

# Whole models as in the paper, such as "XL-256": what stands in their model folders, and the head that training adds.
PAPER_MODELS = {
    f"{size}-{tokenizer.image_size}": {
        "text_encoder": CLIP_L14,
        "text_projector": TextProjectorConfig(),
        "alignment_head": AlignmentHeadConfig(),
        "velocity": velocity,
        "image_tokenizer": tokenizer,
    }
    for size, velocity in VELOCITY_NETWORKS.items()
    for tokenizer in (TOKENIZER_256, TOKENIZER_512)
}
