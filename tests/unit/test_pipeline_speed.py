"""What makes a model faster or smaller changes its pictures not at all, or as little as it says."""

from __future__ import annotations

import copy
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fixtures_tiny_model import tiny_model
from PIL import Image

import flowtok
from flowtok.acceleration import compile_blocks, pack_tokenizer, pack_velocity, round_tokenizer, round_velocity
from flowtok.app import options
from flowtok.errors import FlowTokError
from flowtok.flow import tables
from flowtok.flow.grid import GRIDS
from flowtok.flow.solver import SOLVERS, asked_times
from flowtok.flow.transformer import VelocityTransformer, VelocityTransformerConfig
from flowtok.image.tokenizer import BASE, LARGE, ImageTokenizer, VisionTransformerConfig
from flowtok.nn import precision
from flowtok.nn.int8 import Int8Linear
from flowtok.nn.packed import PackedLinear, can_pack, pack_linears
from flowtok.pipeline import FlowTok, load
from flowtok.recipes import TINY, TOKENIZER_256, VELOCITY_NETWORKS
from flowtok.text.bert import BASE as BASE_BERT
from flowtok.text.bert import BertEncoder

WIDE = VisionTransformerConfig(width=128, depth=1, num_heads=2)


@pytest.fixture
def own(tiny_folder: Path) -> FlowTok:
    """A model that a test may change."""
    return load(tiny_folder)


def same(a: Image.Image, b: Image.Image) -> bool:
    return np.array_equal(np.asarray(a), np.asarray(b))


def test_what_time_says_is_computed_once_for_all_calls(own: FlowTok, monkeypatch: pytest.MonkeyPatch) -> None:
    """It reads a third of the weights: once a schedule, not once a prompt, scale or step."""
    calls: list[int] = []
    exact = own.velocity.modulation
    monkeypatch.setattr(own.velocity, "modulation", lambda t_B, null_B: calls.append(len(t_B)) or exact(t_B, null_B))
    own.generate(["a red cat", "king"], seed=1)
    own.generate("heart", guidance_scale=1.5, seed=1)
    assert len(calls) == 1
    own.generate("heart", 3, seed=1, solver="midpoint")
    assert len(calls) == 2, "midpoint asks between the stops, and the table holds that too"
    own.generate("heart", seed=1)
    assert len(calls) == 2, "the first schedule's is still kept"


def test_tables_hold_no_more_than_they_may(own: FlowTok, monkeypatch: pytest.MonkeyPatch) -> None:
    """Somebody who tries every number of steps, or a thousand steps with XL (1.6 GB), must not fill the memory."""
    own.generate("heart", 4, seed=1)
    one = own._tables.nbytes
    monkeypatch.setattr(tables, "MOST_BYTES", 3 * one)
    for steps in (3, 4, 2, 4, 3, 2):
        own.generate("heart", steps, seed=1)
        assert 0 < own._tables.nbytes <= 3 * one
    before = own.generate("heart", 40, seed=1)[0]
    assert own._tables.nbytes <= 3 * one
    own.fix_schedule(num_inference_steps=40)
    assert same(own.generate("heart", seed=1)[0], before), "a fixed schedule needs its table, however large"
    assert same(own.generate("heart", seed=1)[0], before)


def test_changed_weights_are_noticed(own: FlowTok) -> None:
    """A table of old weights would draw the old pictures for ever."""
    before = own.generate("heart", seed=1)[0]
    with torch.no_grad():
        own.velocity.head.modulation.bias.add_(0.5)
    assert not same(own.generate("heart", seed=1)[0], before)


def test_a_fixed_schedule_draws_the_same_with_less(own: FlowTok, tmp_path: Path) -> None:
    before, said = own.generate("heart", 3, seed=1)[0], own.caption(Image.new("RGB", (16, 16), "red"))
    stronger = own.generate("heart", 3, 4.0, seed=1)[0]
    held = sum(weight.nbytes for weight in own.velocity.parameters())
    dropped = own.fix_schedule(num_inference_steps=3)
    assert dropped == held - sum(weight.nbytes for weight in own.velocity.parameters()) > held / 4
    assert same(own.generate("heart", seed=1)[0], before)
    assert same(own.generate("heart", guidance_scale=4.0, seed=1)[0], stronger)
    assert own.caption(Image.new("RGB", (16, 16), "red")) == said
    for call in (
        lambda: own.generate("heart", 4, seed=1),
        lambda: own.generate("heart", solver="midpoint", seed=1),
        lambda: own.save_pretrained(tmp_path / "less"),
    ):
        with pytest.raises(FlowTokError, match="schedule is fixed"):
            call()
    assert same(own.generate("heart", seed=1)[0], before), "a refused call leaves the model as it was"
    with pytest.raises(FlowTokError, match="chooses its own steps"):
        tiny_model(tmp_path).fix_schedule(solver="dopri5")


def test_outside_its_interval_guidance_costs_nothing(own: FlowTok, monkeypatch: pytest.MonkeyPatch) -> None:
    """The null branch is half of the work; it may run only where it acts."""
    asked: list[int] = []
    exact = own.velocity.forward_modulated
    monkeypatch.setattr(own.velocity, "forward_modulated", lambda z_BLC, m: asked.append(len(z_BLC)) or exact(z_BLC, m))
    early = own.generate("heart", 4, 3.0, seed=1, guidance_interval=(0.0, 0.3))[0]
    assert asked == [2, 2, 1, 1], "steps at 0 and 0.25 are guided, those at 0.5 and 0.75 are not"
    assert not same(early, own.generate("heart", 4, 3.0, seed=1)[0])
    assert same(early, own.generate("heart", 4, 3.0, seed=1, guidance_interval=(-1.0, 0.4))[0])
    own.sampling = own.sampling.but(guidance_interval=(0.0, 0.3))
    assert same(early, own.generate("heart", 4, 3.0, seed=1)[0]), "a model may have an interval of its own"
    with pytest.raises(FlowTokError, match="must run upwards.*from 0.7 to 0.2"):
        own.generate("heart", guidance_interval=(0.7, 0.2))


def test_int8_draws_nearly_the_same_and_says_what_it_is(tiny_folder: Path, own: FlowTok) -> None:
    rounded = load(tiny_folder, dtype="int8")
    assert (rounded.precision, own.precision, load(tiny_folder, dtype="bfloat16").precision) == (
        "int8", "float32", "bfloat16",
    )  # fmt: skip
    # Layers this narrow stay as they are, so pictures of the fixture may not change at all; which do not, see below.
    assert same(rounded.generate("heart", seed=1)[0], own.generate("heart", seed=1)[0])
    with pytest.raises(FlowTokError, match="already"):
        rounded.round_to_int8()
    with pytest.raises(FlowTokError, match="int3.*float32, bfloat16, float16, int8, auto"):
        flowtok.load(tiny_folder, dtype="int3")
    assert options.PRECISIONS == precision.PRECISIONS


def test_int8_reaches_every_layer_of_the_blocks_and_nothing_else() -> None:
    """A rule that leaves a kind of layer out halves the gain, and no picture shows it."""
    layers = ("attn.qkv", "attn.proj", "mlp.w12", "mlp.w3")
    config = replace(TOKENIZER_256, encoder=replace(BASE, depth=1), decoder=replace(LARGE, depth=1))
    with torch.device("meta"):
        tokenizer = ImageTokenizer(config)
        velocity = VelocityTransformer(replace(VELOCITY_NETWORKS["XL"], depth=2))
    assert (round_tokenizer(tokenizer), round_velocity(velocity)) == (8, 8)
    assert in_int8(tokenizer) == {f"{side}.transformer.0.{name}" for side in ("encoder", "decoder") for name in layers}
    layers = ("attention.qkv", "attention.proj", "feed_forward.fc1", "feed_forward.fc2")
    assert in_int8(velocity) == {f"blocks.{i}.{name}" for i in range(2) for name in layers}


def in_int8(network: torch.nn.Module, kind: type = Int8Linear) -> set[str]:
    return {name for name, layer in network.named_modules() if isinstance(layer, kind)}


packs = pytest.mark.skipif(not can_pack(torch.float32), reason="this torch or processor has no packed product")


@packs
def test_packing_reaches_the_layers_that_int8_does(
    small_networks: tuple[VelocityTransformer, VelocityTransformer],
) -> None:
    """A kind of layer that is left out halves the gain. Sums in another order: 1e-6 of the velocity."""
    network, plain = small_networks
    rounded, tokenizer = copy.deepcopy(plain), ImageTokenizer(replace(TINY.image_tokenizer, encoder=WIDE, decoder=WIDE))
    assert (pack_velocity(network), pack_tokenizer(tokenizer)) == (12, 8)
    round_velocity(rounded)
    assert in_int8(network, PackedLinear) == in_int8(rounded)
    error = (asked(network) - asked(plain)).norm() / asked(plain).norm()
    assert 0 < error < 2e-6


@packs
def test_a_packed_model_draws_the_same_and_can_be_saved(tiny_folder: Path, own: FlowTok, tmp_path: Path) -> None:
    before = own.generate("heart", seed=1)[0]
    assert own.can_pack and own.pack() is own and own.pack().precision == "float32"
    assert same(own.generate("heart", seed=1)[0], before)
    own.save_pretrained(tmp_path / "saved")
    assert same(load(tmp_path / "saved").generate("heart", seed=1)[0], before)
    own.to("cpu")
    for call, why in (
        (lambda: own.to("meta"), "packed for the CPU"),
        (own.round_to_int8, "is packed"),
        (own.compile, "is packed"),
        (load(tiny_folder, dtype="int8").pack, "int8, which has a product of its own"),
        (load(tiny_folder, dtype="float16").pack, "no packed product in float16"),
        (load(tiny_folder).to("meta").pack, "the model is on meta"),
    ):
        with pytest.raises(FlowTokError, match=why):
            call()


def test_bfloat16_on_a_cpu_starts_where_float32_does(tiny_folder: Path, own: FlowTok) -> None:
    """Rounded, the text side puts the start of the flow further off than all rounded steps together."""
    half = load(tiny_folder, dtype="bfloat16")
    assert half.precision == "bfloat16" and half.text_decoder.word_table_VE is not None
    assert half.text_decoder.word_table_VE.dtype is torch.bfloat16, "converted for each word it would take longest"
    start, expected = (
        model.text_projector(model.text_encoder.encode(["king"]).features_BSE).mean_BLC for model in (half, own)
    )
    assert start.equal(expected)
    assert half.caption(half.generate("king", seed=1)) and half.interpolate("king", "a cat", 2, seed=1)
    assert precision.text_dtype(torch.bfloat16, "cuda") is torch.bfloat16
    assert precision.text_dtype(torch.float16, "cpu") is torch.float16


@packs
@pytest.mark.parametrize("family", ["bert", "clip"])
def test_packed_language_encoders_say_the_same(family: str) -> None:
    """Both are foreign code, which might look into the layers that were replaced."""
    sizes = {
        "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2, "vocab_size": 99,
    }  # fmt: skip
    if family == "bert":
        network: Any = BertEncoder({**BASE_BERT, **sizes})
        for weight in network.requires_grad_(False).parameters():
            weight.copy_(torch.randn(weight.shape, generator=torch.Generator().manual_seed(0)) * 0.1)
    else:
        from transformers import CLIPTextConfig, CLIPTextModel

        network = CLIPTextModel(CLIPTextConfig(**sizes)).requires_grad_(False)
    ids_BS = torch.randint(1, 99, (2, 12), generator=torch.Generator().manual_seed(1))
    before = network.eval()(input_ids=ids_BS, attention_mask=torch.ones_like(ids_BS)).last_hidden_state
    assert pack_linears(network) == 12
    after = network(input_ids=ids_BS, attention_mask=torch.ones_like(ids_BS)).last_hidden_state
    assert (after - before).norm() < 2e-6 * before.norm()


@packs
def test_commands_pack_unless_they_compile_or_measure(tiny_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A model is either packed or compiled; scores of two machines are compared, so they are drawn the plain way."""
    done: list[str] = []
    monkeypatch.setattr(FlowTok, "pack", lambda self: done.append("packed") or self)
    monkeypatch.setattr(FlowTok, "compile", lambda self: done.append("compiled") or self)
    options.open_model(tiny_folder, "cpu", "float32")
    options.open_model(tiny_folder, "cpu", "float32", compiled=True)
    options.open_model(tiny_folder, "cpu", "float32", packed=False)
    options.open_model(tiny_folder, "cpu", "int8")
    assert done == ["packed", "compiled"]


def test_compiling_reaches_the_networks_once_and_changes_no_picture(
    own: FlowTok, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The compiler itself is left out here: it takes a while."""
    compiled: list[object] = []
    monkeypatch.setattr(torch, "compile", lambda call, **how: compiled.append(call) or call)
    before, said = own.generate("heart", seed=1)[0], own.caption(Image.new("RGB", (16, 16), "red"))
    own.compile().compile()
    assert len(compiled) == 4, "two blocks of the velocity network, one of the image decoder and of the encoder"
    assert same(own.generate("heart", seed=1)[0], before)
    assert own.caption(Image.new("RGB", (16, 16), "red")) == said


@pytest.mark.slow
def test_compiled_networks_draw_the_same(own: FlowTok) -> None:
    before = own.generate("heart", seed=1)[0]
    after = own.compile().generate("heart", seed=1)[0]
    assert np.abs(np.asarray(before).astype(int) - np.asarray(after).astype(int)).max() <= 1


@pytest.fixture
def small_networks() -> tuple[VelocityTransformer, VelocityTransformer]:
    """The same network twice, wide enough for int8."""
    draws = torch.Generator().manual_seed(0)
    network = VelocityTransformer(VelocityTransformerConfig(depth=3, width=64, num_heads=2, num_tokens=6))
    network.initialize(draws)
    for weight in network.requires_grad_(False).parameters():
        weight.add_(0.05 * torch.randn(weight.shape, generator=draws))
    return network, copy.deepcopy(network)


def asked(network: VelocityTransformer, batch: int = 2) -> torch.Tensor:
    z_BLC = torch.randn(batch, 6, 16, generator=torch.Generator().manual_seed(batch))
    with torch.inference_mode():
        return network(z_BLC, torch.full((batch,), 0.3), torch.arange(batch) % 2 == 1)


@pytest.mark.slow
def test_compiled_blocks_compute_the_same_in_float32_and_int8(
    small_networks: tuple[VelocityTransformer, VelocityTransformer],
) -> None:
    """A number that lies between two of int8 may be rounded either way; else only the order of sums differs."""
    compiled, plain = small_networks
    compile_blocks(compiled.blocks)
    torch.testing.assert_close(asked(compiled), asked(plain), rtol=1e-4, atol=1e-4)
    assert round_velocity(compiled) == round_velocity(plain) == 12
    torch.testing.assert_close(asked(compiled), asked(plain), rtol=2e-2, atol=2e-2)


@pytest.mark.slow
def test_blocks_share_what_is_compiled(
    small_networks: tuple[VelocityTransformer, VelocityTransformer], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Compiled one by one, 28 blocks take minutes; past a number of shapes torch would stop compiling unsaid."""
    from torch._dynamo.utils import counters

    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))  # what is asked of it, not its code
    network, _ = small_networks
    compile_blocks(network.blocks)
    counters.clear()
    for made, batch in enumerate(range(1, 12), start=1):
        asked(network, batch)
        assert counters["stats"]["unique_graphs"] == made, "one graph a shape, whatever the number of blocks"
    round_velocity(network)
    asked(network)
    assert counters["stats"]["unique_graphs"] == made + 1, "what was compiled before it was rounded is compiled again"


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8"])
def test_on_a_gpu_cuda_graphs_draw_the_same(tiny_folder: Path, dtype: str) -> None:
    """A graph writes its results where the last ones lay; ab2 still needs those."""
    own = load(tiny_folder, device="cuda", dtype=dtype)
    how: dict[str, Any] = {"seed": 1, "solver": "ab2", "guidance_scale": 1.0}
    before = [own.generate(prompt, **how)[0] for prompt in ("heart", "king")]
    own.compile()
    for prompt, picture in zip(("heart", "king"), before, strict=True):
        after = own.generate(prompt, **how)[0]
        assert np.abs(np.asarray(picture).astype(int) - np.asarray(after).astype(int)).max() <= 2


def test_a_table_knows_every_time_that_a_solver_asks_for() -> None:
    """One that is missing is computed anew for every prompt, and is an error where the schedule is fixed."""
    for name, solve in SOLVERS.items():
        if name == "dopri5":
            assert asked_times(name, (0.0, 1.0)) == ()
            continue
        for grid in GRIDS.values():
            for stops in (grid(5), grid(5).reversed()):
                asked: list[float] = []
                solve(lambda z, t, asked=asked: asked.append(t) or torch.cos(z), torch.ones(2, 3, 4), stops.times)
                assert tuple(asked) == asked_times(name, stops.times)


def test_the_early_grid_takes_small_steps_first() -> None:
    times = GRIDS["early"](6).times
    steps = np.diff(times)
    assert times[0] == 0.0 and times[-1] == 1.0 and (np.diff(steps) > 0).all()
