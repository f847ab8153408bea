"""Text features to tokens: the projector, the head that aligns tokens with their text, and the losses of both.

Knows neither the language encoder (encoder.py) nor the flow that starts from its tokens.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from flowtok.checkpoints.component import Component
from flowtok.nn.attention import attend
from flowtok.nn.gaussian import Gaussian


@dataclass(frozen=True, kw_only=True)
class TextProjectorConfig:
    """Size of the text projector; the defaults are the paper's.

    Attributes:
        text_width: E, width of the text features.
        num_tokens: L, tokens that come out, one for each text feature (S = L). The layers know no positions, so no
            weight depends on it; it is what the neighbours must fit.
        token_channels: C, numbers in a token.
        num_layers: Transformer layers.
        num_heads: Attention heads.
        hidden: Width of the feed-forward layers.
        dropout: Dropout on attention weights, inside feed-forward layers and on both residual branches.
        noise_std: Fixes the standard deviation of the tokens instead of learning it, and brings the mean of every token
            to length sqrt((1 - noise_std^2) C), so that tokens have variance 1 over all and cannot collapse. None
            learns both, as the paper does.
    """

    text_width: int = 768
    num_tokens: int = 77
    token_channels: int = 16
    num_layers: int = 6
    num_heads: int = 8
    hidden: int = 1024
    dropout: float = 0.1
    noise_std: float | None = None

    def __post_init__(self) -> None:
        sizes = (self.text_width, self.num_tokens, self.token_channels, self.num_layers, self.num_heads, self.hidden)
        if min(sizes) < 1:
            raise ValueError(f"every size must be at least 1, not {self}")
        if self.text_width % self.num_heads:
            raise ValueError(f"text_width {self.text_width} is not a multiple of num_heads {self.num_heads}")
        if not 0.0 <= self.dropout < 1.0:
            raise ValueError(f"dropout must be in [0, 1), not {self.dropout}")
        if self.noise_std is not None and not 0.0 < self.noise_std < 1.0:
            raise ValueError(f"noise_std must be above 0 and below 1, or null to learn it, not {self.noise_std}")


class UnbiasedNorm(nn.Module):
    """Norm over the last axis with the unbiased deviation: gain * (x - mean) / (std + 1e-5) + bias.

    The small number stands outside the root and std divides by n - 1, unlike a layer norm. At least float32 inside.

    Source: the authors' release.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(width))
        self.bias = nn.Parameter(torch.zeros(width))

    def forward(self, x_BSE: Tensor) -> Tensor:
        exact = x_BSE.to(torch.promote_types(x_BSE.dtype, torch.float32))
        std, mean = torch.std_mean(exact, dim=-1, keepdim=True, correction=1)
        return (self.gain * (exact - mean) / (std + 1e-5) + self.bias).to(x_BSE.dtype)


class ProjectorLayer(nn.Module):
    """Post-norm transformer layer without positions and without a mask."""

    def __init__(self, config: TextProjectorConfig) -> None:
        super().__init__()
        width = config.text_width
        self.num_heads = config.num_heads
        self.dropout = config.dropout
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width)
        self.value = nn.Linear(width, width)
        self.out = nn.Linear(width, width)
        self.norm_1 = UnbiasedNorm(width)
        self.fc1 = nn.Linear(width, config.hidden)
        self.fc2 = nn.Linear(config.hidden, width)
        self.norm_2 = UnbiasedNorm(width)

    def forward(self, x_BSE: Tensor) -> Tensor:
        x_BSE = self.norm_1(x_BSE + self.dropped(self.attend(x_BSE)))
        return self.norm_2(x_BSE + self.dropped(self.feed_forward(x_BSE)))

    def attend(self, x_BSE: Tensor) -> Tensor:
        """Mixes the features."""
        query, key, value = (
            layer(x_BSE).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
            for layer in (self.query, self.key, self.value)
        )
        mixed_BHSK = attend(query, key, value, self.dropout if self.training else 0.0)
        return self.out(mixed_BHSK.transpose(1, 2).flatten(2))

    def feed_forward(self, x_BSE: Tensor) -> Tensor:
        """Two linear layers around a ReLU."""
        return self.fc2(self.dropped(nn.functional.relu(self.fc1(x_BSE))))

    def dropped(self, x: Tensor) -> Tensor:
        """Dropout while training."""
        return nn.functional.dropout(x, self.dropout, self.training)


class TextProjector(Component):
    """Turns text features into a Gaussian over tokens of the image's shape, one token for each feature.

    The log-variance is not clamped.

    Source: section 4.2 of the paper; layers as in the authors' release.
    """

    component_name = "text_projector"
    config_class = TextProjectorConfig

    def __init__(self, config: TextProjectorConfig) -> None:
        super().__init__(config)
        self.layers = nn.ModuleList(ProjectorLayer(config) for _ in range(config.num_layers))
        num_moments = 2 if config.noise_std is None else 1
        self.to_moments = nn.Linear(config.text_width, num_moments * config.token_channels)

    def initialize(self, generator: torch.Generator | None = None) -> None:
        """Draws fresh weights: linear layers uniform within 1 / sqrt(inputs), norms 1 and 0."""
        draw_linear_layers(self, generator)
        for module in self.modules():
            if isinstance(module, UnbiasedNorm):
                nn.init.ones_(module.gain)
                nn.init.zeros_(module.bias)

    def forward(self, features_BSE: Tensor) -> Gaussian:
        """Projects text features.

        Args:
            features_BSE: Features of the language encoder, S = L.

        Returns:
            Gaussian over tokens (B, L, C), at least in float32.

        Raises:
            ValueError: If the features are not of width E.
        """
        if features_BSE.ndim != 3 or features_BSE.shape[-1] != self.config.text_width:
            expected = f"(B, {self.config.num_tokens}, {self.config.text_width})"
            raise ValueError(f"the text projector takes features {expected}, not {tuple(features_BSE.shape)}")
        x_BSE = features_BSE
        for layer in self.layers:
            x_BSE = layer(x_BSE)
        moments = self.to_moments(x_BSE)
        moments = moments.to(torch.promote_types(moments.dtype, torch.float32))
        noise_std = self.config.noise_std
        if noise_std is None:
            mean_BLC, logvar_BLC = moments.chunk(2, dim=-1)
            return Gaussian(mean_BLC=mean_BLC, logvar_BLC=logvar_BLC)
        unit_BLC = nn.functional.layer_norm(moments, moments.shape[-1:])
        return Gaussian(
            mean_BLC=math.sqrt(1.0 - noise_std**2) * unit_BLC,
            logvar_BLC=torch.full_like(unit_BLC, 2.0 * math.log(noise_std)),
        )


@dataclass(frozen=True, kw_only=True)
class AlignmentHeadConfig:
    """Size of the alignment head; the defaults are the paper's.

    Attributes:
        text_width: E, width of the text features.
        token_channels: C, numbers in a token.
        hidden: Width of both hidden layers.
    """

    text_width: int = 768
    token_channels: int = 16
    hidden: int = 512

    def __post_init__(self) -> None:
        if min(self.text_width, self.token_channels, self.hidden) < 1:
            raise ValueError(f"every size must be at least 1, not {self}")


class AlignmentHead(nn.Module):
    """Training only: projects text features to targets of the tokens' shape and owns the contrastive temperature.

    Source: section 4.2 of the paper (text alignment loss, MLP target).
    """

    def __init__(self, config: AlignmentHeadConfig) -> None:
        super().__init__()
        self.config = config
        self.fc1 = nn.Linear(config.text_width, config.hidden)
        self.fc2 = nn.Linear(config.hidden, config.hidden)
        self.fc3 = nn.Linear(config.hidden, config.token_channels)
        self.log_temperature = nn.Parameter(torch.tensor(math.log(1.0 / 0.07)))

    def initialize(self, generator: torch.Generator | None = None) -> None:
        """Draws fresh weights: linear layers uniform within 1 / sqrt(inputs), temperature ln(1 / 0.07)."""
        draw_linear_layers(self, generator)
        nn.init.constant_(self.log_temperature, math.log(1.0 / 0.07))

    def forward(self, features_BSE: Tensor) -> Tensor:
        """Targets (B, S, C) of text features (B, S, E)."""
        hidden = nn.functional.silu(self.fc1(features_BSE))
        return self.fc3(nn.functional.silu(self.fc2(hidden)))


def draw_linear_layers(network: nn.Module, generator: torch.Generator | None) -> None:
    """Draws every linear layer's weight and bias uniformly within 1 / sqrt(inputs), the framework's own default."""
    for module in network.modules():
        if isinstance(module, nn.Linear):
            bound = module.in_features**-0.5
            nn.init.uniform_(module.weight, -bound, bound, generator=generator)
            nn.init.uniform_(module.bias, -bound, bound, generator=generator)


def paper_kl(tokens: Gaussian) -> Tensor:
    """Divergence from the standard normal, 0.5 sum(mean^2 + var - 1 - logvar) over everything, in nats; a scalar.

    The batch is summed too, as in the release's loss: divide by B for a loss that does not grow with the batch.

    Source: section 4.2 of the paper.
    """
    return tokens.kl_B().sum()


def release_kl(tokens: Gaussian) -> Tensor:
    """The authors' released stand-in for the divergence: 0.5 sum((0.3 mean)^6 + var - 1 - logvar); a scalar.

    The sixth power is flat for means within 3 and steep outside, so the source may spread. The sum runs over the whole
    batch. The official code differs from the paper here.
    """
    excess = (0.3 * tokens.mean_BLC) ** 6 + tokens.logvar_BLC.exp() - 1.0 - tokens.logvar_BLC
    return 0.5 * excess.sum()


def contrastive_loss(z_BLC: Tensor, target_BLC: Tensor, log_temperature: Tensor) -> Tensor:
    """Symmetric cross-entropy of matching each sample's tokens with its own target among the batch; a scalar.

    Args:
        z_BLC: Text tokens (a draw, not the mean).
        target_BLC: Targets of the same shape.
        log_temperature: Logarithm of the factor on the cosines; not clamped.

    Source: section 4.2 of the paper; as in the authors' release.
    """
    exact = torch.promote_types(z_BLC.dtype, torch.float32)
    tokens = nn.functional.normalize(z_BLC.flatten(1).to(exact), dim=-1)
    targets = nn.functional.normalize(target_BLC.flatten(1).to(exact), dim=-1)
    logits_BB = log_temperature.exp() * tokens @ targets.T
    labels = torch.arange(len(logits_BB), device=logits_BB.device)
    return 0.5 * (nn.functional.cross_entropy(logits_BB, labels) + nn.functional.cross_entropy(logits_BB.T, labels))


def cosine_loss(z_BLC: Tensor, target_BLC: Tensor, margin: float = 0.0) -> Tensor:
    """One minus the cosine of each token with its target, beyond a margin, averaged; a scalar.

    Args:
        z_BLC: Text tokens.
        target_BLC: Targets of the same shape.
        margin: Distance (1 - cosine) that costs nothing.

    Source: the paper's ablation of the alignment loss (cosine similarity with a margin).
    """
    distance_BL = 1.0 - nn.functional.cosine_similarity(z_BLC, target_BLC, dim=-1)
    return nn.functional.relu(distance_BL - margin).mean()


def average_pool_target(features_BSE: Tensor, token_channels: int) -> Tensor:
    """Targets (B, S, C) without a learned head: neighbouring channels of the text features are averaged.

    Source: the paper's ablation of the alignment target (average pooling).
    """
    return nn.functional.adaptive_avg_pool1d(features_BSE, token_channels)
