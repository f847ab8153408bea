"""In which of a set's styles is a picture drawn? A small network that learns it from the set's own training pictures.

Knows pictures and names of styles, and neither a generator nor a prompt. Who asks it: words_tasks.py.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from flowtok.errors import DataError
from flowtok.files import write_file_atomically

Progress = Callable[[int, int], None]

# Raised with any change of the network or its training that the config does not tell.
_VERSION = 1


@dataclass(frozen=True, kw_only=True)
class StyleClassifierConfig:
    """The network and how it learns.

    Attributes:
        side: Pictures of other sizes are brought to this one, in pixels.
        width: Channels after the first convolution; later ones have two and four times as many.
        num_steps: Updates.
        batch_size: Pictures in an update.
        learning_rate: The highest one, of a single cycle.
        most_shift: Pixels by which a batch of training pictures is moved at most, either way.
        most_noise: Standard deviation of the noise on training pictures at most, where white is 1.
        seed: Of the first weights and of the order of pictures.
    """

    side: int = 64
    width: int = 16
    num_steps: int = 6000
    batch_size: int = 32
    learning_rate: float = 0.006
    most_shift: int = 3
    most_noise: float = 0.01
    seed: int = 0

    def __post_init__(self) -> None:
        if min(self.side // 8, self.width, self.num_steps, self.batch_size) < 1 or self.learning_rate <= 0:
            raise ValueError(
                f"side must be at least 8, and width, num_steps, batch_size and learning_rate positive: {self}"
            )
        if min(self.most_shift, self.most_noise) < 0:
            raise ValueError(f"shift and noise cannot be negative: {self.most_shift}, {self.most_noise}")


class StyleClassifier(nn.Module):
    """Four convolutions see how a picture is drawn, two of single pixels its palette; a score for each style.

    Both are summed up over the picture, since a style is the same wherever one looks.
    """

    def __init__(self, styles: Sequence[str], config: StyleClassifierConfig) -> None:
        super().__init__()
        self.styles, self.config = tuple(styles), config
        widths = (3, config.width, 2 * config.width, 4 * config.width, 4 * config.width)
        layers: list[nn.Module] = []
        for number, (ours, theirs) in enumerate(pairwise(widths)):
            stride = 2 if number < 3 else 1
            layers += [nn.Conv2d(ours, theirs, 3, stride, 1, bias=False), nn.BatchNorm2d(theirs), nn.ReLU()]
        self.drawing = nn.Sequential(*layers)
        tones = 2 * config.width
        self.palette = nn.Sequential(
            nn.Conv2d(3, tones, 1, bias=False), nn.BatchNorm2d(tones), nn.ReLU(),
            nn.Conv2d(tones, tones, 1, bias=False), nn.BatchNorm2d(tones), nn.ReLU(),
        )  # fmt: skip
        self.scores = nn.Linear(2 * widths[-1] + tones, len(self.styles))
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # a fifth faster on a CPU

    def forward(self, image_B3YX: Tensor) -> Tensor:
        """Scores (B, styles) of pictures in [0, 1] of the config's size."""
        image_B3YX = (image_B3YX * 2 - 1).contiguous(memory_format=torch.channels_last)
        drawing_BDYX = self.drawing(image_B3YX)
        tones_BDYX = self.palette(image_B3YX[:, :, ::4, ::4])
        # The mean says how much of a texture or colour there is, the largest value that there is any.
        summed = [drawing_BDYX.mean((2, 3)), drawing_BDYX.amax((2, 3)), tones_BDYX.mean((2, 3))]
        return self.scores(torch.cat(summed, 1))

    @torch.no_grad()
    def styles_of(self, image_N3YX: Tensor) -> list[str]:
        """The style of each picture (uint8, any size)."""
        self.eval()
        with _one_thread():
            best = [self(_sized(part, self.config.side)).argmax(1) for part in image_N3YX.split(256)]
        return [self.styles[number] for part in best for number in part.tolist()]

    @property
    def sha256(self) -> str:
        """SHA-256 of styles and weights."""
        return hashlib.sha256(_content(self)).hexdigest()


def learn_styles(
    image_N3YX: Tensor,
    styles: Sequence[str],
    config: StyleClassifierConfig,
    progress: Progress = lambda done, total: None,
) -> StyleClassifier:
    """Trains a classifier on pictures (uint8) of known styles, each style drawn by the root of its number.

    Training pictures are moved, blurred and made noisy a little: what is asked of it later comes from networks, which
    blur. The same pictures, styles and config give the same weights on the same machine, whatever its threads.

    Raises:
        DataError: There are no two styles.
    """
    names = sorted(set(styles))
    if len(names) < 2:
        raise DataError(f"a style classifier learns from pictures of at least 2 styles, and all of these are {names}")
    generator = torch.Generator().manual_seed(config.seed)
    network = StyleClassifier(names, config)
    _first_weights(network, generator)
    label_N = torch.tensor([names.index(style) for style in styles])
    weight_N = torch.bincount(label_N).double()[label_N].rsqrt()
    image_N3YX = torch.cat([(_sized(part, config.side) * 255).to(torch.uint8) for part in image_N3YX.split(256)])
    optimizer = torch.optim.AdamW(network.parameters(), lr=config.learning_rate, weight_decay=0.01)
    cycle = torch.optim.lr_scheduler.OneCycleLR(optimizer, config.learning_rate, total_steps=config.num_steps + 1)
    network.train()
    with _one_thread(), torch.enable_grad():
        for step in range(config.num_steps):
            drawn_B = torch.multinomial(weight_N, config.batch_size, replacement=True, generator=generator)
            image_B3YX = _worn(image_N3YX[drawn_B].float() / 255, config, generator)
            loss = F.cross_entropy(network(image_B3YX), label_N[drawn_B], label_smoothing=0.05)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            cycle.step()
            if step % 25 == 24 or step + 1 == config.num_steps:
                progress(step + 1, config.num_steps)
    return network.eval()


def opened_or_learned(
    folder: Path,
    set_sha256: str,
    pictures: Callable[[], tuple[Tensor, Sequence[str]]],
    config: StyleClassifierConfig,
    progress: Progress = lambda done, total: None,
) -> StyleClassifier:
    """The classifier of a set, from the file that an earlier call left in `folder`, or trained and left there.

    Args:
        folder: Where it is kept; the file's name has a checksum of the set and of how it was trained.
        set_sha256: What tells the set from others.
        pictures: Opens the training pictures and their styles; called only where there is no file.
        config: How it is trained.
        progress: Called with updates made, and all.

    Raises:
        DataError: The file is damaged, or there are no two styles.
        FlowTokError: The folder cannot be written to.
    """
    told = json.dumps({"set": set_sha256, "version": _VERSION, **asdict(config)}, sort_keys=True)
    path = folder / f"style-classifier-{hashlib.sha256(told.encode()).hexdigest()[:12]}.safetensors"
    if path.exists():
        return _read(path, config)
    image_N3YX, styles = pictures()
    network = learn_styles(image_N3YX, styles, config, progress)
    write_file_atomically(path, _content(network))
    return network


def _content(network: StyleClassifier) -> bytes:
    weights = {name: value.contiguous() for name, value in network.state_dict().items()}
    return save(weights, metadata={"styles": json.dumps(network.styles)})


def _read(path: Path, config: StyleClassifierConfig) -> StyleClassifier:
    try:
        with safe_open(path, "pt") as file:
            network = StyleClassifier(json.loads(file.metadata()["styles"]), config)
            network.load_state_dict({name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118
    except (SafetensorError, OSError, RuntimeError, ValueError, TypeError, KeyError) as error:
        raise DataError(f"{path} is damaged ({error}); delete it to have it trained again") from error
    return network.eval()


def _sized(image_B3YX: Tensor, side: int) -> Tensor:
    """Pictures (uint8) as fractions, of this size."""
    return F.adaptive_avg_pool2d(image_B3YX.float() / 255, side)


def _worn(image_B3YX: Tensor, config: StyleClassifierConfig, generator: torch.Generator) -> Tensor:
    """Training pictures moved together, each blurred and made noisy by a measure of its own."""
    most, side = config.most_shift, config.side
    down, right = torch.randint(0, 2 * most + 1, (2,), generator=generator).tolist()
    moved = F.pad(image_B3YX, (most, most, most, most), value=1.0)[:, :, down : down + side, right : right + side]
    blurred = F.avg_pool2d(F.pad(moved, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
    share, noise = torch.rand(2, len(moved), 1, 1, 1, generator=generator)
    worn = torch.lerp(moved, blurred, share)
    return (worn + noise * config.most_noise * torch.randn(worn.shape, generator=generator)).clamp(0, 1)


def _first_weights(network: StyleClassifier, generator: torch.Generator) -> None:
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu", generator=generator)
        elif isinstance(layer, nn.Linear):
            nn.init.normal_(layer.weight, std=0.01, generator=generator)
            nn.init.zeros_(layer.bias)


@contextmanager
def _one_thread() -> Iterator[None]:
    """Sums are split between threads: with another number of them come other weights."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
