"""Every named model and every named run, as Python values; a variant is `dataclasses.replace` of another.

Start here to see what a size or a training run is made of. The classes that read these values stand in text/, flow/,
image/ and train/.
"""

from dataclasses import replace

from flowtok.data.collect import CollectConfig
from flowtok.data.filters import PAPER_FILTERS, PAPER_FINE_FILTERS, FilterConfig
from flowtok.flow.transformer import VelocityTransformerConfig
from flowtok.image.losses import ReconstructionLossConfig
from flowtok.image.perceptual import PerceptualConfig
from flowtok.image.tokenizer import ImageTokenizerConfig, VisionTransformerConfig
from flowtok.text.decoder import TextDecoderConfig
from flowtok.text.encoder import CLIP_L14, TextEncoderConfig
from flowtok.text.projector import AlignmentHeadConfig, TextProjectorConfig
from flowtok.train.captioner import CaptionerStageConfig
from flowtok.train.distil import DistilStageConfig
from flowtok.train.flow import FlowStageConfig
from flowtok.train.joint import JointStageConfig
from flowtok.train.loop import TrainingConfig
from flowtok.train.optim import OptimizerConfig
from flowtok.train.recipe import Recipe
from flowtok.train.streaming import StreamingConfig
from flowtok.train.text import TextStageConfig
from flowtok.train.tokenizer import AdversaryConfig, TokenizerStageConfig

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
    precision="auto",
    compile=False,
    checkpoint_every=250,
    preview_every=250,
)

_SMALL_FLOW_TRAINING = replace(
    _SMALL_TRAINING,
    num_steps=3400,
    batch_size=128,
    optimizer=replace(_SMALL_MUON, learning_rate=1.2e-3),
    ema_decay=0.999,
    preview_every=500,
)

_SMALL_DECODER = TextDecoderConfig(
    vocabulary_size=30522,
    num_tokens=32,
    token_channels=16,
    width=256,
    depth=4,
    num_heads=4,
    tied_width=384,
    causal=True,
)

EMOJI = Recipe(
    name="emoji",
    image_tokenizer=ImageTokenizerConfig(
        image_size=64,
        patch_size=8,
        num_tokens=32,
        token_channels=16,
        encoder=VisionTransformerConfig(width=128, depth=5, num_heads=2),
        decoder=VisionTransformerConfig(width=256, depth=6, num_heads=4),
        text_width=None,
        flow_noise=0.3,
    ),
    text_encoder=TextEncoderConfig(family="bert", width=384, num_tokens=32, vocabulary_size=30522, padding="sentence"),
    text_projector=TextProjectorConfig(
        text_width=384,
        num_tokens=32,
        token_channels=16,
        num_layers=3,
        num_heads=6,
        hidden=768,
        dropout=0.0,
        noise_std=0.2,
    ),
    text_decoder=_SMALL_DECODER,
    velocity=VelocityTransformerConfig(
        depth=12, width=256, num_heads=4, num_tokens=32, token_channels=16, position_maps=True
    ),
    captions_per_picture=12,
    tokenizer_stage=TokenizerStageConfig(
        losses=ReconstructionLossConfig(squared=1.0, absolute=0.1, kl=1.5e-7),
        first_weights="fan_in",
        views=0.4,
        flip=0.2,
    ),
    # At equal time Muon with 32 pictures was ahead of Muon with 64 and of AdamW with 16 (docs/lab-notes.md).
    tokenizer_training=replace(
        _SMALL_TRAINING,
        num_steps=12_500,
        batch_size=32,
        ema_decay=0.999,
        checkpoint_every=250,
        preview_every=500,
    ),
    # In whatever words a thing is asked for, its tokens name it (docs/lab-notes.md).
    text_stage=TextStageConfig(
        reads="canonical", agreement=2.0, kl=0.0, noise_std=0.7, canonical_share=0.3, random_words=2048
    ),
    text_training=replace(
        _SMALL_TRAINING, num_steps=1200, batch_size=128, optimizer=replace(_SMALL_MUON, learning_rate=1e-3)
    ),
    random_views=True,
    # Little noise, times near the text and a map for each position: the text is read early (docs/lab-notes.md). With
    # guidance in the weights a step is one evaluation.
    flow_stage=FlowStageConfig(
        time="early", text_noise=0.5, guidance_scale=2.0, reading=0.5, reading_share=0.4, random_words=2048
    ),
    flow_training=_SMALL_FLOW_TRAINING,
    # The flow stage reads captions itself, in one step from the image end.
    captioner_stage=CaptionerStageConfig(draws=1, num_steps=1),
    captioner_training=None,
)

# A further round, from a model that EMOJI has left: the same flow goes on. With flow_stage.reading_share=0.2 most of a
# batch is drawn, with 0.7 most of it is read.
EMOJI_MORE = replace(EMOJI, name="emoji-more", tokenizer_training=None, text_training=None)

# The image decoder of a finished model goes on: its flow's tokens are a little off, and it learns to see past that.
EMOJI_DECODER = replace(
    EMOJI,
    name="emoji-decoder",
    tokenizer_stage=replace(EMOJI.tokenizer_stage, learns="decoder", noise=0.5),
    tokenizer_training=replace(
        _SMALL_TRAINING,
        num_steps=900,
        batch_size=48,
        optimizer=replace(_SMALL_MUON, learning_rate=8e-4, warmup_steps=50),
        ema_decay=0.998,
        preview_every=200,
    ),
    text_training=None,
    flow_training=None,
)

# A few-step model of a finished one: its flow learns to draw in 4, 2 or 1 evaluations what takes 40.
EMOJI_FEW = replace(
    EMOJI,
    name="emoji-few",
    tokenizer_training=None,
    text_training=None,
    random_views=False,
    flow_stage=FlowStageConfig(),
    distil_stage=DistilStageConfig(guidance_scale=1.0),  # it is in the teacher's weights
    flow_training=replace(
        _SMALL_FLOW_TRAINING,
        num_steps=600,
        batch_size=24,
        optimizer=replace(_SMALL_FLOW_TRAINING.optimizer, learning_rate=6e-4, warmup_steps=30),
        ema_decay=0.995,
        checkpoint_every=100,
        preview_every=200,
    ),
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
    text_decoder=replace(_SMALL_DECODER, width=32, depth=1, num_heads=2),
    velocity=replace(EMOJI.velocity, depth=1, width=32, num_heads=2),
    tokenizer_training=_TINY_TRAINING,
    text_training=_TINY_TRAINING,
    flow_training=_TINY_TRAINING,
    captioner_training=_TINY_TRAINING,
)

# The paper's recipes. One trains one part; a later one starts from the model that an earlier one has left. What the
# paper leaves open is as in the authors' release; docs/training.md says what that is.

_PAPER_FLOW = TrainingConfig(
    num_steps=250_000,
    batch_size=4096,
    # The release's share of one GPU: the negatives of the contrastive loss are those of a part.
    micro_batch_size=128,
    optimizer=OptimizerConfig(
        learning_rate=4e-4, betas=(0.9, 0.95), weight_decay=0.03, decay_all=True, warmup_steps=10_000, clip_norm=None
    ),
    ema_decay=0.9999,
    ema_warmup=False,
    checkpoint_every=2000,
    preview_every=5000,
    log_every=100,
)
_PAPER_FINE_FLOW = replace(
    _PAPER_FLOW, num_steps=150_000, optimizer=replace(_PAPER_FLOW.optimizer, learning_rate=2e-4, warmup_steps=0)
)

PAPER_256_STAGE1 = Recipe(
    name="paper-256-stage1-xl",
    image_tokenizer=TOKENIZER_256,
    text_encoder=CLIP_L14,
    text_projector=TextProjectorConfig(),
    text_decoder=None,
    velocity=XL,
    captions_per_picture=1,
    data=CollectConfig(filters=PAPER_FILTERS),
    # All pictures are trained on: the paper's measures are taken on other sets.
    stream=StreamingConfig(hold_out=False),
    fresh=("velocity", "text_projector", "alignment_head"),
    tokenizer_stage=TokenizerStageConfig(),
    tokenizer_training=None,
    text_stage=TextStageConfig(),
    text_training=None,
    flow_stage=FlowStageConfig(),
    joint_stage=JointStageConfig(),
    flow_training=_PAPER_FLOW,
    captioner_stage=CaptionerStageConfig(),
    captioner_training=None,
)
PAPER_256_STAGE2 = replace(
    PAPER_256_STAGE1,
    name="paper-256-stage2-xl",
    data=CollectConfig(filters=PAPER_FINE_FILTERS),
    fresh=(),
    flow_training=_PAPER_FINE_FLOW,
)
PAPER_512 = replace(PAPER_256_STAGE2, name="paper-512-xl", image_tokenizer=TOKENIZER_512)

# Both ways on COCO's pictures, which are not filtered: the velocity goes on beside a frozen projector, without the two
# losses of the text's tokens; then a decoder learns to read these.
PAPER_CAPTIONS = replace(
    PAPER_256_STAGE2,
    name="paper-captions-xl",
    data=CollectConfig(),
    text_decoder=TextDecoderConfig(vocabulary_size=CLIP_L14.vocabulary_size),
    fresh=("text_decoder",),
    joint_stage=JointStageConfig(projector="frozen", alignment_weight=0.0, kl_weight=0.0),
    # Lengths are not in the paper: here about 90 epochs.
    flow_training=replace(_PAPER_FINE_FLOW, num_steps=10_000, batch_size=1024),
    captioner_stage=CaptionerStageConfig(text_share=1.0, num_steps=20),
    captioner_training=replace(_PAPER_FINE_FLOW, num_steps=10_000, batch_size=1024),
)

# The tokenizer is the same for every size of the flow.
PAPER_TOKENIZER = replace(
    PAPER_256_STAGE1,
    name="paper-tokenizer",
    data=CollectConfig(filters=FilterConfig(min_longer_side=256, max_aspect=2.0)),
    stream=StreamingConfig(hold_out=False, random_crop=True),
    fresh=("latent_scale",),
    tokenizer_stage=TokenizerStageConfig(
        losses=ReconstructionLossConfig(squared=1.0, absolute=0.0, kl=1e-6),
        first_logvar=0.0,
        flip=0.5,
        perceptual=PerceptualConfig(),
        adversary=AdversaryConfig(),
        scale="one_number",
    ),
    tokenizer_training=TrainingConfig(
        num_steps=650_000,
        batch_size=1024,
        micro_batch_size=32,
        optimizer=OptimizerConfig(
            learning_rate=1e-4,
            betas=(0.9, 0.999),
            weight_decay=1e-4,
            warmup_steps=10_000,
            schedule="cosine",
            final_share=0.1,
            clip_norm=1.0,
        ),
        ema_decay=0.999,
        ema_warmup=False,
        checkpoint_every=2000,
        preview_every=5000,
        log_every=100,
    ),
    joint_stage=None,
    flow_training=None,
)


def _sizes(recipe: Recipe) -> dict[str, Recipe]:
    """A recipe of the paper's for its three sizes of the flow; without a size it is XL."""
    stem = recipe.name.removesuffix("-xl")
    sizes = {name: VELOCITY_NETWORKS[name.upper()] for name in ("b", "xl", "h")}
    named = {f"{stem}-{size}": replace(recipe, name=f"{stem}-{size}", velocity=sizes[size]) for size in sizes}
    return {stem: recipe} | named


RECIPES = (
    {
        "emoji": EMOJI,
        "emoji-more": EMOJI_MORE,
        "emoji-decoder": EMOJI_DECODER,
        "emoji-few": EMOJI_FEW,
        "tiny": TINY,
        "paper-tokenizer": PAPER_TOKENIZER,
    }
    | _sizes(PAPER_256_STAGE1)
    | _sizes(PAPER_256_STAGE2)
    | _sizes(PAPER_512)
    | _sizes(PAPER_CAPTIONS)
)

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
