"""Writes an image as L tokens of C channels and reads it back, guided by text features if the model has them.

Knows nothing of how text is encoded or of the flow. Losses stand in losses.py, training in train/tokenizer.py.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from flowtok.checkpoints.component import Component
from flowtok.nn.attention import SelfAttention
from flowtok.nn.gaussian import LOGVAR_RANGE, Gaussian
from flowtok.nn.rope import RotaryTable


@dataclass(frozen=True, kw_only=True)
class VisionTransformerConfig:
    """Size of the encoder's or the decoder's transformer.

    Attributes:
        width: Channels of a token inside the network.
        depth: Number of blocks.
        num_heads: Attention heads; a head's width must be a multiple of 4 (two rotary axes).
    """

    width: int
    depth: int
    num_heads: int

    def __post_init__(self) -> None:
        if min(self.width, self.depth, self.num_heads) < 1:
            raise ValueError(f"width, depth and num_heads must be positive, not {self}")
        if self.width % (4 * self.num_heads):
            raise ValueError(f"width {self.width} is not a multiple of 4 x num_heads = {4 * self.num_heads}")


SMALL = VisionTransformerConfig(width=512, depth=8, num_heads=8)
BASE = VisionTransformerConfig(width=768, depth=12, num_heads=12)
LARGE = VisionTransformerConfig(width=1024, depth=24, num_heads=16)


@dataclass(frozen=True, kw_only=True)
class ImageTokenizerConfig:
    """Everything that fixes the image tokenizer's shape; the defaults are the paper's at 256 px.

    Attributes:
        image_size: Rows and columns of the picture, in pixels.
        patch_size: Rows and columns of a patch, in pixels.
        num_tokens: L, number of tokens that a picture becomes.
        token_channels: C, numbers in a token.
        encoder: Size of the encoder.
        decoder: Size of the decoder.
        text_width: E, width of the text features that guide the decoder; None for a decoder without text.
        num_text_tokens: S, number of text features; not used without text.
        flow_noise: How far off the decoder takes tokens to be that a flow has drawn, as a share of each number's
            deviation; it is told so by a vector and sees past it. 0 for a decoder that is told nothing.
    """

    image_size: int = 256
    patch_size: int = 16
    num_tokens: int = 77
    token_channels: int = 16
    encoder: VisionTransformerConfig = BASE
    decoder: VisionTransformerConfig = LARGE
    text_width: int | None = 768
    num_text_tokens: int = 77
    flow_noise: float = 0.0

    def __post_init__(self) -> None:
        if self.flow_noise < 0:
            raise ValueError(f"flow_noise must not be negative, not {self.flow_noise}")
        if self.patch_size < 1 or self.image_size < 1 or self.image_size % self.patch_size:
            raise ValueError(f"image_size {self.image_size} is not a multiple of patch_size {self.patch_size}")
        if min(self.num_tokens, self.token_channels, self.num_text_tokens) < 1:
            raise ValueError(f"num_tokens, token_channels and num_text_tokens must be positive, not {self}")

    @property
    def grid(self) -> int:
        """Patches in a row of the picture."""
        return self.image_size // self.patch_size


class SwiGLU(nn.Module):
    """Gated feed-forward layer, w3(silu(a) * b) with [a, b] = w12(x) and a hidden width of 2/3 * 4 * width."""

    def __init__(self, width: int) -> None:
        super().__init__()
        hidden = int(2 / 3 * 4 * width)
        self.w12 = nn.Linear(width, 2 * hidden)
        self.w3 = nn.Linear(hidden, width)

    def forward(self, x_BSD: Tensor) -> Tensor:
        gate, value = self.w12(x_BSD).chunk(2, dim=-1)
        return self.w3(nn.functional.silu(gate) * value)


class VisionBlock(nn.Module):
    """Pre-norm transformer block: attention with rotary patches, then SwiGLU."""

    def __init__(self, config: VisionTransformerConfig) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(config.width)
        self.attn = SelfAttention(config.width, config.num_heads)
        self.ln_2 = nn.LayerNorm(config.width)
        self.mlp = SwiGLU(config.width)

    def forward(self, x_BSD: Tensor, rotary: RotaryTable) -> Tensor:
        x_BSD = x_BSD + self.attn(self.ln_1(x_BSD), rotary)
        return x_BSD + self.mlp(self.ln_2(x_BSD))


class VisionTransformer(nn.Module):
    """Norm, then blocks over [patches, other tokens]; only the patches carry rotary positions."""

    def __init__(self, config: VisionTransformerConfig, grid: int) -> None:
        super().__init__()
        self.positional_embedding = RotaryTable(grid, config.width // config.num_heads)
        self.ln_pre = nn.LayerNorm(config.width)
        self.transformer = nn.ModuleList(VisionBlock(config) for _ in range(config.depth))
        self.ln_post = nn.LayerNorm(config.width)

    def mix(self, x_BSD: Tensor) -> Tensor:
        """Runs all blocks; the last norm is left to the caller, which keeps only some tokens."""
        x_BSD = self.ln_pre(x_BSD)
        for block in self.transformer:
            x_BSD = block(x_BSD, self.positional_embedding)
        return x_BSD


class ImageEncoder(VisionTransformer):
    """Patches and latent tokens in, moments of the latent tokens out."""

    def __init__(self, config: ImageTokenizerConfig) -> None:
        super().__init__(config.encoder, config.grid)
        width = config.encoder.width
        self.patch_embed = nn.Conv2d(3, width, config.patch_size, stride=config.patch_size)
        self.latent_token_positional_embedding = nn.Parameter(torch.empty(config.num_tokens, width))
        self.to_moments = nn.Linear(width, 2 * config.token_channels)

    def forward(self, image_B3YX: Tensor, latent_tokens_LD: Tensor) -> Tensor:
        patches_BPD = self.patch_embed(image_B3YX).flatten(2).transpose(1, 2)
        latent_LD = latent_tokens_LD + self.latent_token_positional_embedding
        latent_BLD = latent_LD.expand(len(patches_BPD), -1, -1).to(patches_BPD.dtype)
        x_BSD = self.mix(torch.cat([patches_BPD, latent_BLD], dim=1))
        latent_BLD = self.ln_post(x_BSD[:, patches_BPD.shape[1] :])
        return self.to_moments(latent_BLD)


class ImageDecoder(VisionTransformer):
    """Mask tokens, latent tokens and text features in, pixels out."""

    def __init__(self, config: ImageTokenizerConfig) -> None:
        super().__init__(config.decoder, config.grid)
        width, patch = config.decoder.width, config.patch_size
        self.grid, self.patch_size = config.grid, patch
        self.mask_token = nn.Parameter(torch.empty(1, 1, width))
        self.latent_token_positional_embedding = nn.Parameter(torch.empty(config.num_tokens, width))
        self.decoder_embed = nn.Linear(config.token_channels, width)
        self.off_D = nn.Parameter(torch.zeros(width)) if config.flow_noise else None
        if config.text_width is not None:
            self.text_guidance_positional_embedding = nn.Parameter(torch.empty(config.num_text_tokens, width))
            self.text_guidance_proj = nn.Linear(config.text_width, width)
        self.to_pixels = nn.Linear(width, patch * patch * 3)
        self.conv_out = nn.Conv2d(3, 3, 3, padding=1)

    def forward(self, z_BLC: Tensor, text_BSE: Tensor | None, off_B: Tensor | None = None) -> Tensor:
        latent_BLD = self.decoder_embed(z_BLC) + self.latent_token_positional_embedding
        if off_B is not None and self.off_D is not None:
            latent_BLD = latent_BLD + off_B[:, None, None] * self.off_D
        mask_BPD = self.mask_token.expand(len(z_BLC), self.grid * self.grid, -1).to(latent_BLD.dtype)
        tokens = [mask_BPD, latent_BLD]
        if text_BSE is not None:
            tokens.append(self.text_guidance_proj(text_BSE) + self.text_guidance_positional_embedding)
        x_BSD = self.mix(torch.cat(tokens, dim=1))
        patches_BPD = self.ln_post(x_BSD[:, : mask_BPD.shape[1]])
        return self.conv_out(self.unpatch(self.to_pixels(patches_BPD)))

    def unpatch(self, pixels_BPF: Tensor) -> Tensor:
        """Lays patches out as an image; inside a patch the order is row, column, colour (colour fastest)."""
        grid, patch = self.grid, self.patch_size
        image = pixels_BPF.view(-1, grid, grid, patch, patch, 3).permute(0, 5, 1, 3, 2, 4)
        return image.reshape(-1, 3, grid * patch, grid * patch)


class ImageTokenizer(Component):
    """Image <-> tokens: a vision transformer on each side of L tokens with a Gaussian posterior.

    Source: section 4.1 of the paper (TA-TiTok with rotary positions on the patches and SwiGLU feed-forward layers).
    """

    component_name = "image_tokenizer"
    config_class = ImageTokenizerConfig

    def __init__(self, config: ImageTokenizerConfig) -> None:
        super().__init__(config)
        self.latent_tokens = nn.Parameter(torch.empty(config.num_tokens, config.encoder.width))
        self.encoder = ImageEncoder(config)
        self.decoder = ImageDecoder(config)

    def initialize(self, generator: torch.Generator | None = None, *, fan_in: bool = False) -> None:
        """Draws fresh weights: matrices N(0, 0.02), biases 0, norms 1 and 0, tokens and positions N(0, 1/width).

        Args:
            generator: Draws the weights.
            fan_in: Draws matrices with a standard deviation of 1/sqrt(fan-in), half of that at the end of a residual
                branch. In a narrow network 0.02 leaves attention uniform, so that all patches look alike at first and
                training stays for long on pictures of one colour (docs/lab-notes.md).
        """
        for name, module in self.named_modules():
            if isinstance(module, nn.Linear | nn.Conv2d):
                std = 0.02
                if fan_in and not name.endswith("conv_out"):
                    std = module.weight[0].numel() ** -0.5 * (0.5 if name.endswith(("attn.proj", "mlp.w3")) else 1.0)
                nn.init.normal_(module.weight, std=std, generator=generator)
                assert module.bias is not None
                nn.init.zeros_(module.bias)
            elif isinstance(module, nn.LayerNorm):
                nn.init.ones_(module.weight)
                nn.init.zeros_(module.bias)
        for name, parameter in self.named_parameters():
            if name.endswith(("latent_tokens", "positional_embedding", "mask_token")):
                nn.init.normal_(parameter, std=parameter.shape[-1] ** -0.5, generator=generator)
        if self.decoder.off_D is not None:
            nn.init.zeros_(self.decoder.off_D)

    def encode(self, image_B3YX: Tensor) -> Gaussian:
        """Writes images as token posteriors.

        Args:
            image_B3YX: Pixels in [0, 1], image_size rows and columns.

        Returns:
            Posterior over tokens (B, L, C); log-variances are clamped to [-30, 20].

        Raises:
            ValueError: If the pictures are of another size.
        """
        size = self.config.image_size
        if image_B3YX.shape[1:] != (3, size, size):
            raise ValueError(
                f"the tokenizer takes images of shape (B, 3, {size}, {size}), not {tuple(image_B3YX.shape)}"
            )
        moments = self.encoder(image_B3YX, self.latent_tokens)
        moments = moments.to(torch.promote_types(moments.dtype, torch.float32))
        mean_BLC, logvar_BLC = moments.chunk(2, dim=-1)
        return Gaussian(mean_BLC=mean_BLC, logvar_BLC=logvar_BLC.clamp(*LOGVAR_RANGE))

    def decode(self, z_BLC: Tensor, text_BSE: Tensor | None = None, off_B: Tensor | None = None) -> Tensor:
        """Reads tokens as images.

        Args:
            z_BLC: Tokens.
            text_BSE: Text features that guide the decoder; given exactly if the model has text_width.
            off_B: How far off the tokens of each picture are, see `flow_noise`; None for those of true pictures.

        Returns:
            Pixels (B, 3, Y, X), about [0, 1], not clamped.

        Raises:
            ValueError: If text features are missing, or given to a decoder without text, or it is not told how far off
                tokens are.
        """
        if (text_BSE is None) != (self.config.text_width is None):
            raise ValueError("this decoder is guided by text" if text_BSE is None else "this decoder takes no text")
        if off_B is not None and not self.config.flow_noise:
            raise ValueError("this decoder is not told how far off tokens are")
        return self.decoder(z_BLC, text_BSE, off_B)

    def decode_drawn(self, z_BLC: Tensor, text_BSE: Tensor | None = None) -> Tensor:
        """Reads tokens that a flow has drawn, which are always a little off; else as `decode`."""
        level = self.config.flow_noise
        return self.decode(z_BLC, text_BSE, z_BLC.new_full((len(z_BLC),), level) if level else None)
