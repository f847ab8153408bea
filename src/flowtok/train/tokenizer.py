"""The first stage: the image tokenizer learns to write and read pictures.

Knows the tokenizer, its losses and its adversary; the loop is loop.py's.
"""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from flowtok.data.sheets import contact_sheet
from flowtok.data.views import random_views
from flowtok.image.discriminator import DiscriminatorConfig, LeCam, PatchDiscriminator, deception_loss, hinge_loss
from flowtok.image.latents import LatentScale
from flowtok.image.losses import ReconstructionLossConfig, psnr_B, reconstruction_terms
from flowtok.image.perceptual import PerceptualConfig, PerceptualLoss
from flowtok.image.tokenizer import ImageTokenizer, ImageTokenizerConfig
from flowtok.train.adversary import Adversary
from flowtok.train.loop import LossTerms
from flowtok.train.optim import OptimizerConfig
from flowtok.train.runtime import Runtime
from flowtok.train.samples import ReadsSamples, Samples

LOG = logging.getLogger("flowtok")


@dataclass(frozen=True, kw_only=True)
class AdversaryConfig:
    """A discriminator that learns to tell rebuilt pictures from true ones; the defaults are the TA-TiTok recipe's.

    Attributes:
        weight: What the tokenizer pays for rebuilt pictures that are found out.
        start_step: The step from which the discriminator takes part; before it nothing of it is computed.
        lecam: Weight of the LeCam regularisation of the discriminator.
        lecam_decay: Decay of the mean scores that it compares with.
        network: Size of the discriminator.
        optimizer: How it is trained; its warm-up and its decline begin at start_step.
    """

    weight: float = 0.1
    start_step: int = 200_000
    lecam: float = 0.001
    lecam_decay: float = 0.999
    network: DiscriminatorConfig = DiscriminatorConfig()
    optimizer: OptimizerConfig = OptimizerConfig(
        learning_rate=1e-4,
        betas=(0.9, 0.999),
        weight_decay=1e-4,
        warmup_steps=10_000,
        schedule="cosine",
        final_share=0.1,
    )

    def __post_init__(self) -> None:
        if not self.weight > 0 or self.lecam < 0 or self.start_step < 0 or not 0 <= self.lecam_decay < 1:
            raise ValueError(
                f"weight must be above 0, lecam and start_step at least 0, lecam_decay in [0, 1), not {self.weight}, "
                f"{self.lecam}, {self.start_step} and {self.lecam_decay}"
            )


@dataclass(frozen=True, kw_only=True)
class TokenizerStageConfig:
    """How the image tokenizer is trained.

    Attributes:
        losses: Weights of the losses of single pixels and of the posterior.
        first_logvar: Log-variance of the posterior at the start; a small one lets the decoder see the encoder's
            signal before the divergence pulls the two together.
        learns: `all`, or the `decoder` alone: tokens stay what they were, and with them every flow that knows them.
        noise: Largest deviation of noise that the tokens of every second picture get, as a share of each number's own
            deviation over the batch; drawn evenly from 0. The decoder is told how much it is (`flow_noise`), and learns
            to make whole pictures of tokens that are a little off, as a flow's are. Source: noise-augmented decoding,
            Zheng et al. 2025 (RAE); that it is told is our own.
        flip: Probability of a horizontal flip.
        views: Share of the pictures that are seen as a random view (data/views.py), moved, scaled, turned or tinted:
            where pictures are few, the tokenizer then has more to learn from than these.
        first_weights: `normal`, N(0, 0.02) as in the paper's recipes, or `fan_in` for narrow networks.
        perceptual: Distances that look at more than single pixels; None for none of them.
        adversary: The discriminator; None trains without one.
        scale: How the flow will see the tokens: `whitened`, every number of them by itself, or `one_number`, all times
            the same number, as in the authors' release.
    """

    losses: ReconstructionLossConfig = ReconstructionLossConfig()
    first_logvar: float = -5.0
    learns: Literal["all", "decoder"] = "all"
    noise: float = 0.0
    flip: float = 0.0
    views: float = 0.0
    first_weights: Literal["normal", "fan_in"] = "normal"
    perceptual: PerceptualConfig | None = None
    adversary: AdversaryConfig | None = None
    scale: Literal["whitened", "one_number"] = "whitened"

    def __post_init__(self) -> None:
        if self.noise < 0:
            raise ValueError(f"noise must not be negative, not {self.noise}")
        if not 0.0 <= self.flip <= 1.0 or not 0.0 <= self.views <= 1.0:
            raise ValueError(f"flip and views must lie in [0, 1], not {self.flip} and {self.views}")


@dataclass(frozen=True, kw_only=True)
class Shown:
    """Pictures for previews, best such that are never trained on.

    Attributes:
        images_N3YX: Pixels, uint8.
        features_NSE: Text features of their captions, exactly where the decoder is guided by text.
    """

    images_N3YX: Tensor
    features_NSE: Tensor | None


class DiscriminatorSide(nn.Module):
    """What is trained against the tokenizer, with the averages that hold it back."""

    def __init__(self, config: AdversaryConfig) -> None:
        super().__init__()
        self.network = PatchDiscriminator(config.network)
        self.lecam = LeCam(config.lecam_decay)

    def lecam_follows(self, terms: dict[str, float]) -> None:
        """Moves the averages after an update, by the scores of its whole batch."""
        self.lecam.follow(terms["true_score"], terms["rebuilt_score"])

    def frozen(self, image_B3YX: Tensor) -> Tensor:
        """Scores whose gradient flows to the pictures and not to the weights."""
        weights = {name: weight.detach() for name, weight in self.network.named_parameters()}
        return torch.func.functional_call(self.network, weights, (image_B3YX,))


class TokenizerStage(ReadsSamples):
    """Reconstruction with a Gaussian posterior; where asked for also perceptual, guided by text and adversarial.

    Source: section 5.1 of the paper; losses of the TA-TiTok recipe (L2, LPIPS and class scores, divergence, hinge loss
    with LeCam from a step on). What the paper's own tokenizer changed of it is not published.
    """

    name = "tokenizer"

    def __init__(
        self,
        model: ImageTokenizerConfig,
        config: TokenizerStageConfig,
        samples: Samples,
        shown: Shown,
        seed: int = 1234,
        *,
        perceptual: PerceptualLoss | None = None,
    ) -> None:
        """Builds a fresh tokenizer, and a fresh discriminator if there is one.

        Args:
            model: Shape of the network.
            config: How it is trained.
            samples: Training pictures, with text features exactly if the model has text_width.
            shown: Pictures for previews.
            seed: Fixes the first weights.
            perceptual: What `open_perceptual` gives; needed exactly if the config asks for it.

        Raises:
            ValueError: If text or perceptual loss are missing, or would have no effect, or pictures are too small.
        """
        if (shown.features_NSE is None) != (model.text_width is None):
            guided = model.text_width is not None
            raise ValueError("this decoder is guided by text" if guided else "this decoder takes no text")
        if (perceptual is None) != (config.perceptual is None):
            raise ValueError("perceptual must be given if and only if the config has it; see open_perceptual")
        if perceptual is not None and model.image_size < perceptual.smallest_side:
            raise ValueError(f"LPIPS needs {perceptual.smallest_side} px, the pictures have {model.image_size}")
        self.config, self.samples, self.shown, self.perceptual = config, samples, shown, perceptual
        tokenizer = ImageTokenizer(model)
        tokenizer.initialize(torch.Generator().manual_seed(seed), fan_in=config.first_weights == "fan_in")
        with torch.no_grad():
            tokenizer.encoder.to_moments.bias[model.token_channels :] = config.first_logvar
        assert model.flow_noise or not config.noise, "a recipe has noise only for a decoder that is told of it"
        if config.learns == "decoder":
            tokenizer.encoder.requires_grad_(False)
            tokenizer.latent_tokens.requires_grad_(False)
        self.modules: nn.Module = tokenizer
        self.tokenizer = tokenizer
        self.adversary: Adversary | None = None
        if config.adversary is not None:
            self.side = DiscriminatorSide(config.adversary)
            self.side.network.initialize(torch.Generator().manual_seed(seed + 1))
            self.adversary = Adversary(
                modules=self.side,
                optimizer=config.adversary.optimizer,
                start_step=config.adversary.start_step,
                loss=self.contested_loss,
                after_update=self.side.lecam_follows,
            )

    def batch(self, indices_B: Tensor, generator: torch.Generator) -> dict[str, Any]:
        batch = self.samples.take(indices_B, generator)
        if self.config.flip:
            flip_B = torch.rand(len(indices_B), generator=generator) < self.config.flip
            image_B3YX = batch["image_B3YX"]
            batch["image_B3YX"] = torch.where(flip_B[:, None, None, None], image_B3YX.flip(-1), image_B3YX)
        if count := round(self.config.views * len(indices_B)):
            viewed_B3YX = random_views(batch["image_B3YX"][:count], generator, hide=0.0)
            batch["image_B3YX"] = torch.cat([viewed_B3YX, batch["image_B3YX"][count:]])
        model = self.tokenizer.config
        shape = len(indices_B), model.num_tokens, model.token_channels
        batch["noise_BLC"] = torch.randn(shape, generator=generator)
        if self.config.noise:
            noisy_B = torch.rand(len(indices_B), generator=generator) < 0.5
            batch["off_B"] = noisy_B * self.config.noise * torch.rand(len(indices_B), generator=generator)
            batch["astray_BLC"] = batch["off_B"][:, None, None] * torch.randn(shape, generator=generator)
        return batch

    def loss(self, batch: dict[str, Any]) -> LossTerms:
        _, total, terms = self._reconstruction(self.samples.complete(batch))
        return LossTerms(total=total, terms=_detached(terms))

    def contested_loss(self, batch: dict[str, Any]) -> LossTerms:
        """Losses with the discriminator: the tokenizer pays for being found out, the discriminator for not finding out.

        The rebuilt pictures that the tokenizer is judged by reach no weight of the discriminator, and those that the
        discriminator is judged by reach no weight of the tokenizer.
        """
        config = self.config.adversary
        assert config is not None
        batch = self.samples.complete(batch)
        rebuilt_B3YX, total, terms = self._reconstruction(batch)
        terms["deception"] = deception_loss(self.side.frozen(rebuilt_B3YX))
        shown_B3YX = torch.cat([batch["image_B3YX"], rebuilt_B3YX.detach().float()])
        true_BPP, rebuilt_BPP = self.side.network(shown_B3YX).float().chunk(2)
        terms["hinge"] = hinge_loss(true_BPP, rebuilt_BPP)
        terms["true_score"], terms["rebuilt_score"] = true_BPP.mean(), rebuilt_BPP.mean()
        terms["lecam"] = self.side.lecam(terms["true_score"], terms["rebuilt_score"])
        total = total + config.weight * terms["deception"] + terms["hinge"] + config.lecam * terms["lecam"]
        return LossTerms(total=total, terms=_detached(terms))

    def _reconstruction(self, batch: dict[str, Any]) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Rebuilt pictures, what they cost, and the parts of that."""
        posterior = self.tokenizer.encode(batch["image_B3YX"])
        z_BLC = posterior.sample(batch["noise_BLC"])
        if self.config.noise:
            z_BLC = z_BLC + batch["astray_BLC"] * z_BLC.detach().std(0, correction=0)
        rebuilt_B3YX = self.tokenizer.decode(z_BLC, batch.get("text_BSE"), batch.get("off_B"))
        terms = reconstruction_terms(batch["image_B3YX"], rebuilt_B3YX, posterior)
        weights = self.config.losses
        total = (
            weights.squared * terms["squared"]
            + weights.absolute * terms["absolute"]
            + weights.gradient * terms["gradient"]
            + weights.kl * terms["kl"]
        )
        if self.perceptual is not None:
            distance, parts = self.perceptual(batch["image_B3YX"], rebuilt_B3YX)
            total, terms = total + distance, terms | parts
        return rebuilt_B3YX, total, terms

    def preview(self, modules: nn.Module, path: Path) -> dict[str, float]:
        assert isinstance(modules, ImageTokenizer)
        device = modules.latent_tokens.device
        image_B3YX = self.shown.images_N3YX.to(device).float() / 255.0
        parts = image_B3YX.split(64)
        texts = [None] * len(parts)
        if self.shown.features_NSE is not None:
            texts = list(self.shown.features_NSE.to(device).float().split(64))
        pairs = zip(parts, texts, strict=True)
        rebuilt = [modules.decode(modules.encode(part).mean_BLC, text_BSE).float() for part, text_BSE in pairs]
        rebuilt_B3YX = torch.cat(rebuilt)
        shown = torch.stack([image_B3YX[:32], rebuilt_B3YX[:32]], dim=1).flatten(0, 1)
        contact_sheet(shown.cpu(), columns=16).save(path)
        return {"preview_psnr": psnr_B(image_B3YX, rebuilt_B3YX).mean().item()}


def _detached(terms: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.detach() for name, value in terms.items()}


def scale_of(kind: Literal["whitened", "one_number"], mean_NLC: Tensor, logvar_NLC: Tensor) -> LatentScale:
    """The scale between the tokens of N posteriors and the flow; see TokenizerStageConfig."""
    if kind == "whitened":
        return LatentScale.fitted(mean_NLC, logvar_NLC)
    deviation = (mean_NLC.var() + logvar_NLC.exp().mean()).sqrt().item()
    return LatentScale.uniform(mean_NLC.shape[1], mean_NLC.shape[2], 1.0 / max(deviation, 1e-4))


def open_perceptual(config: TokenizerStageConfig, runtime: Runtime) -> PerceptualLoss | None:
    """The perceptual loss that a stage asks for, on the runtime's device; None if it asks for none.

    The main rank opens it first, since files may be fetched, and tells the log what is not there.

    Raises:
        CheckpointError: As `PerceptualLoss.opened`.
    """
    if config.perceptual is None:
        return None
    opened = PerceptualLoss.opened(config.perceptual) if runtime.is_main else None
    runtime.wait_for_all()
    if opened is None:
        opened = PerceptualLoss.opened(config.perceptual)
    elif opened.notice is not None:
        LOG.warning(opened.notice)
    return opened.to(runtime.device)
