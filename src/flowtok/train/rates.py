"""How fast this machine trains each stage, from a few steps on made-up input.

Knows no data and no plan; what follows from the rates is in fit.py.
"""

import copy
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn

from flowtok.flow.transformer import VelocityTransformer
from flowtok.image.tokenizer import ImageTokenizer
from flowtok.train.recipe import Recipe
from flowtok.train.views import RandomViews


def measured_rates(recipe: Recipe, device: torch.device, seconds: float = 2.0) -> dict[str, float]:
    """Samples a second that each stage trains here, roughly, from a few steps on made-up input.

    Args:
        recipe: Its networks and batch sizes.
        device: Where.
        seconds: How long each stage is tried.
    """
    tokenizer, network = ImageTokenizer(recipe.image_tokenizer), VelocityTransformer(recipe.velocity)
    generator = torch.Generator().manual_seed(0)
    tokenizer.initialize(generator)
    network.initialize(generator)
    maker, network = copy.deepcopy(tokenizer), network.to(device)
    tokenizer = tokenizer.to(device)
    size, velocity = recipe.image_tokenizer.image_size, recipe.velocity
    assert recipe.tokenizer_training is not None and recipe.flow_training is not None, "fit trains both"
    pixels, flow = recipe.tokenizer_training.batch_size, recipe.flow_training.batch_size
    image_B3YX = torch.rand(pixels, 3, size, size, device=device)
    read = round(flow * recipe.flow_stage.reading_share)
    views = RandomViews(torch.zeros(max(1, read), 3, size, size, dtype=torch.uint8), maker)
    z_BLC = torch.randn(flow, velocity.num_tokens, velocity.token_channels, device=device)
    t_B, null_B = torch.rand(flow, device=device), torch.zeros(flow, dtype=torch.bool, device=device)
    guide_BSE, width = None, recipe.image_tokenizer.text_width
    if width is not None:
        guide_BSE = torch.randn(pixels, recipe.image_tokenizer.num_text_tokens, width, device=device)

    def tokenizer_loss() -> Tensor:
        return tokenizer.decode(tokenizer.encode(image_B3YX).mean_BLC, guide_BSE).square().mean()

    def flow_loss() -> Tensor:
        return network(z_BLC, t_B, null_B).square().mean()

    # A step also updates weights and, in the flow stage, writes captions; both are allowed for by a factor.
    rates = {
        "tokenizer": 0.75 * pixels / _seconds_of(_step(tokenizer, tokenizer_loss), seconds),
        "flow": 0.7 * flow / _seconds_of(_step(network, flow_loss), seconds),
    }
    rates["text"] = 0.7 * rates["flow"]
    if recipe.random_views and read:
        # Captions are read from new views of pictures, which a thread makes on the CPU while the network trains.
        making = _seconds_of(lambda: views.sample(torch.arange(read), generator), seconds)
        rates["flow"] = flow_rate(flow, training=flow / rates["flow"], making=making, shared=device.type == "cpu")
    return rates


def flow_rate(batch: int, *, training: float, making: float, shared: bool) -> float:
    """Samples a second of the flow stage.

    Args:
        batch: Samples of a step.
        training: Seconds that a step trains.
        making: Seconds that its new views of pictures take.
        shared: Whether both want the same cores and so add up; else the slower one decides.
    """
    return batch / (training + making if shared else max(training, making))


def _step(module: nn.Module, loss: Callable[[], Tensor]) -> Callable[[], None]:
    """What a step of training computes."""

    def step() -> None:
        value = loss()
        value.backward()
        value.item()  # waits for an accelerator
        module.zero_grad(set_to_none=True)

    return step


def _seconds_of(work: Callable[[], object], seconds: float) -> float:
    """How long it takes, tried for so many seconds and at least twice after a first time."""
    work()
    started, times = time.perf_counter(), 0
    while times < 2 or time.perf_counter() - started < seconds:
        work()
        times += 1
    return (time.perf_counter() - started) / times
