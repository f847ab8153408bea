"""Both ways through a tiny model: the right steps in order, the same picture for the same seed, clear errors."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fixtures_released import TINY_HEADS, velocity_file, write_tiny
from fixtures_tiny_model import CHANNELS, LENGTH, SIZE, tiny_model, without
from PIL import Image

import flowtok
from flowtok.components import write_model_config
from flowtok.data.images import to_pil, to_tensor
from flowtok.errors import CheckpointError, FlowTokError
from flowtok.pipeline import FlowTok, parse_arithmetic
from flowtok.released.exporting import export_released
from flowtok.released.importing import import_released
from flowtok.sampling import SamplingConfig

PROMPTS = ["a blue dog", "king", "a red cat", "the queen", "woman", "man in style", "heart"]


def same(a: Image.Image, b: Image.Image) -> bool:
    return np.array_equal(np.asarray(a), np.asarray(b))


def noise(seed: int) -> torch.Tensor:
    return torch.randn((1, LENGTH, CHANNELS), generator=torch.Generator().manual_seed(seed))


# words to a picture


@torch.no_grad()
def test_generate_takes_the_five_steps(tiny: FlowTok) -> None:
    """Written out once more by hand: a step left out, a wrong direction or a wrong scale changes every picture."""
    features_BSE = tiny.text_encoder.encode(["a red cat"]).features_BSE
    z_BLC = tiny.text_projector(features_BSE).sample(noise(5))
    for step in range(4):
        t_B = torch.tensor([step / 4])
        conditional = tiny.velocity(z_BLC, t_B, torch.tensor([False]))
        null = tiny.velocity(z_BLC, t_B, torch.tensor([True]))
        z_BLC = z_BLC + 0.25 * (null + 3.0 * (conditional - null))
    expected = tiny.image_tokenizer.decode(z_BLC / 0.8)
    (picture,) = tiny.generate(["a red cat"], num_inference_steps=4, guidance_scale=3.0, seed=5)
    # Guidance runs both branches in one batch here: the last bits, and so a byte's rounding, may differ.
    assert np.abs(np.asarray(picture).astype(int) - np.asarray(to_pil(expected)[0]).astype(int)).max() <= 1
    assert picture.size == (SIZE, SIZE)


def test_a_seed_gives_the_same_picture_alone_in_a_batch_and_after_a_restart(tiny: FlowTok, tiny_folder: Path) -> None:
    """A user who liked one of seven pictures wants it again, to the last byte."""
    (alone,) = tiny.generate(["a red cat"], seed=11)
    batch = tiny.generate(PROMPTS, seed=11)
    assert same(alone, batch[2])
    assert same(alone, FlowTok.from_pretrained(tiny_folder).generate("a red cat", seed=11)[0])
    assert not same(alone, batch[1]) and not same(alone, tiny.generate("a red cat", seed=12)[0])


def test_larger_batches_are_filled_up_so_that_their_shape_never_changes(tiny_folder: Path) -> None:
    """Kernels round by shape: on a GPU, where batches are larger, one picture must still equal the one among three."""
    model = FlowTok.from_pretrained(tiny_folder)
    model.batch_size = 4
    calls: list[int] = []
    model.velocity.tokens_in.register_forward_pre_hook(lambda _, args: calls.append(len(args[0])))
    reports: list[tuple[int, int]] = []
    three = model.generate(PROMPTS[:3], seed=1, solver="midpoint", progress=lambda *counts: reports.append(counts))
    assert len(three) == 3 and set(calls) == {8} and reports == [(3, 3)]
    assert same(model.generate(PROMPTS[2], seed=1, solver="midpoint")[0], three[2])


def test_pictures_of_one_prompt_take_the_seeds_that_follow(tiny: FlowTok) -> None:
    """The seed in a picture's record must draw it again on its own."""
    four = tiny.generate(["king", "a red cat"], seed=3, num_images_per_prompt=2)
    assert [one.info["seed"] for one in four] == [3, 4, 3, 4]
    assert [one.info["prompt"] for one in four] == ["king", "king", "a red cat", "a red cat"]
    assert same(four[3], tiny.generate("a red cat", seed=4)[0])
    assert four[0].info["model"] == "tiny" and four[0].info["flowtok"] == flowtok.__version__


def test_without_a_seed_every_picture_differs_and_can_be_drawn_again(tiny: FlowTok) -> None:
    first, second = tiny.generate(["a red cat", "a red cat"])
    assert not same(first, second)
    assert same(second, tiny.generate("a red cat", seed=second.info["seed"])[0])


def test_generators_in_place_of_a_seed(tiny: FlowTok) -> None:
    """The ecosystem's way: one generator for all pictures, or one for each."""
    seeded = tiny.generate("a red cat", seed=7)[0]
    each = [torch.Generator().manual_seed(7) for _ in range(2)]
    pictures = tiny.generate(["a red cat", "a red cat"], generator=each)
    assert same(pictures[0], seeded) and same(pictures[1], seeded)
    one, two = tiny.generate(["a red cat", "a red cat"], generator=torch.Generator().manual_seed(7))
    assert same(one, seeded) and not same(two, seeded)
    with pytest.raises(FlowTokError, match="1 generators for 2 pictures"):
        tiny.generate(["king", "queen"], generator=each[:1])


def test_deterministic_text_is_the_mean(tiny: FlowTok) -> None:
    first, second = (tiny.generate("a red cat", deterministic_text=True)[0] for _ in range(2))
    assert same(first, second) and first.info["seed"] is None
    assert not same(first, tiny.generate("a red cat", seed=0)[0])
    with pytest.raises(FlowTokError, match="exclude each other"):
        tiny.generate("a red cat", deterministic_text=True, seed=1)
    with pytest.raises(FlowTokError, match="would be equal"):
        tiny.generate("a red cat", deterministic_text=True, num_images_per_prompt=2)


@pytest.mark.parametrize("solver", ["euler", "midpoint", "heun", "ab2", "dopri5"])
def test_all_solvers_come_near_each_other(tiny: FlowTok, solver: str) -> None:
    """With many steps they solve the same equation; one that is wired wrongly ends elsewhere."""
    fine = tiny.generate("a red cat", 64, seed=1, solver=solver)[0]
    reference = tiny.generate("a red cat", 64, seed=1, solver="heun")[0]
    assert np.abs(np.asarray(fine).astype(int) - np.asarray(reference).astype(int)).max() <= 4


def test_the_models_own_sampling_is_the_default(tiny: FlowTok, tiny_folder: Path) -> None:
    """An imported model must be sampled on the release's grid without the user having to know."""
    released = FlowTok.from_pretrained(tiny_folder)
    released.sampling = SamplingConfig(num_inference_steps=3, guidance_scale=1.5, solver="heun", grid="release")
    explicit = tiny.generate("a red cat", 3, 1.5, seed=1, solver="heun", grid="release")[0]
    assert same(released.generate("a red cat", seed=1)[0], explicit)
    assert not same(explicit, tiny.generate("a red cat", 3, 1.5, seed=1, solver="heun", grid="uniform")[0])


def test_bfloat16_keeps_the_picture(tiny: FlowTok, tiny_folder: Path) -> None:
    small = FlowTok.from_pretrained(tiny_folder, dtype=torch.bfloat16)
    assert small.velocity.tokens_in.weight.dtype == torch.bfloat16
    exact, rounded = (np.asarray(model.generate("king", seed=1)[0]).astype(int) for model in (tiny, small))
    assert np.abs(exact - rounded).mean() < 8  # 3 decimal digits through a few layers; garbage is 40 and more
    assert small.caption(tiny.generate("king", seed=1)[0])


def test_text_guides_the_decoder_of_a_text_guided_model(tmp_path: Path) -> None:
    """The paper's tokenizer reads the prompt too; without it the pictures lose their details."""
    model = tiny_model(tmp_path, text_guided=True, tied=False)
    seen: list[torch.Tensor] = []
    model.image_tokenizer.decoder.register_forward_pre_hook(lambda _, args: seen.append(args[1]))
    picture = model.generate("a red cat", seed=1)[0]
    assert torch.equal(seen[0], model.text_encoder.encode(["a red cat"]).features_BSE)
    assert not same(model.reconstruct(picture, captions=["king"])[0], model.reconstruct(picture, captions=["dog"])[0])
    assert model.reconstruct(picture)[0].size == (SIZE, SIZE)
    assert model.interpolate("king", "dog", 2, seed=1)[0].size == (SIZE, SIZE)


# a picture to words


@torch.no_grad()
def test_caption_takes_the_five_steps_backwards(tiny: FlowTok) -> None:
    """Written out by hand: the flow must start at the image, t = 1, and end at the text, t = 0."""
    picture = tiny.generate("a red cat", seed=2)[0]
    z_BLC = tiny.image_tokenizer.encode(to_tensor(picture)[None]).mean_BLC * 0.8
    for t in (1.0, 2 / 3, 1 / 3):
        z_BLC = z_BLC - 1 / 3 * tiny.velocity(z_BLC, torch.tensor([t]), torch.tensor([False]))
    ids_BS = tiny.text_decoder(z_BLC).argmax(-1)
    assert tiny.caption(picture) == tiny.text_encoder.words(ids_BS)
    assert tiny.caption([picture], num_inference_steps=3, guidance_scale=1.0, solver="euler") == tiny.caption(picture)


def test_captions_do_not_depend_on_the_company(tiny: FlowTok) -> None:
    pictures = [Image.effect_noise((SIZE, SIZE), 40.0 * i).convert("RGB") for i in range(1, 5)]
    assert tiny.caption(pictures) == [tiny.caption(picture)[0] for picture in pictures]


def kinds(tmp_path: Path) -> dict[str, Any]:
    """The same red square as every kind of picture that people have."""
    red = Image.new("RGB", (40, 30), (255, 0, 0))
    red.save(tmp_path / "red.png")
    animated = BytesIO()
    red.save(animated, "GIF", save_all=True, append_images=[Image.new("RGB", (40, 30), (0, 0, 255))])
    clear = Image.new("RGBA", (40, 30), (255, 0, 0, 255))
    return {
        "rgb": red, "path": tmp_path / "red.png", "string": str(tmp_path / "red.png"),
        "bytes": (tmp_path / "red.png").read_bytes(), "palette": red.quantize(4), "cmyk": red.convert("CMYK"),
        "rgba": clear, "animated": animated.getvalue(),
    }  # fmt: skip


def test_any_kind_of_picture_is_read_alike(tiny: FlowTok, tmp_path: Path) -> None:
    """CMYK from a printer, a palette from the web, an animation: what looks alike must give the same words."""
    red = kinds(tmp_path)
    for kind, picture in red.items():
        assert (tiny.pixels(picture) - tiny.pixels(red["rgb"])).abs().max() < 0.02, kind
    sixteen = Image.fromarray(np.full((30, 40), 0x8000, np.uint16))
    assert (tiny.pixels(sixteen) - 0.5).abs().max() < 0.01
    see_through = Image.new("RGBA", (40, 30), (0, 0, 0, 0))
    assert (tiny.pixels(see_through) == 1.0).all(), "transparent is white, not black"
    assert len(tiny.caption(list(red.values()))) == len(red)


def test_reconstruct_goes_through_the_tokens(tiny: FlowTok) -> None:
    picture = tiny.generate("a red cat", seed=2)[0]
    with torch.no_grad():
        mean_BLC = tiny.image_tokenizer.encode(to_tensor(picture)[None]).mean_BLC
        expected = to_pil(tiny.image_tokenizer.decode(mean_BLC))[0]
    # The latent scale goes there and back, which costs a last bit.
    rebuilt = tiny.reconstruct([picture])[0]
    assert np.abs(np.asarray(rebuilt).astype(int) - np.asarray(expected).astype(int)).max() <= 1
    with pytest.raises(FlowTokError, match="captions have no effect"):
        tiny.reconstruct([picture], captions=["a cat"])


# between prompts


def test_interpolation_starts_and_ends_at_the_prompts_pictures(tiny: FlowTok) -> None:
    strip = tiny.interpolate("a red cat", "king", 5, seed=4)
    assert len(strip) == 5
    assert same(strip[0], tiny.generate("a red cat", seed=4)[0])
    assert same(strip[-1], tiny.generate("king", seed=4)[0])
    assert strip[1].info["prompt"] == "a red cat -> king"


def test_arithmetic_cancels(tiny: FlowTok) -> None:
    """What is added and taken away again must leave nothing behind but rounding."""
    there = tiny.interpolate("king - man + man", "king - man + man", 1, seed=4)[0]
    king = tiny.generate("king", seed=4)[0]
    assert np.abs(np.asarray(there).astype(int) - np.asarray(king).astype(int)).max() <= 1
    middle = tiny.interpolate("king + dog", "dog", 1, seed=4)[0]
    between = tiny.interpolate("king", "dog", 3, seed=4)[1]
    assert np.abs(np.asarray(middle).astype(int) - np.asarray(between).astype(int)).max() <= 1


def test_arithmetic_is_read_with_spaces_around_the_signs() -> None:
    assert parse_arithmetic("king - man + woman") == [(1, "king"), (-1, "man"), (1, "woman")]
    assert parse_arithmetic("a t-shirt, size 3+4") == [(1, "a t-shirt, size 3+4")]
    for broken in ("king -", "- king", "king + - man", "+"):
        with pytest.raises(FlowTokError, match="without a prompt|takes away"):
            parse_arithmetic(broken)
    with pytest.raises(FlowTokError, match="takes away as much"):
        parse_arithmetic("king - man")


# what a user can get wrong


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m: m.generate([]), "no prompt"),
        (lambda m: m.generate(""), "is blank"),
        (lambda m: m.generate(["king", " \n\t"]), "is blank"),
        (lambda m: m.generate("\u200b"), "is blank"),
        (lambda m: m.generate("cat " * 5000), "20000 characters"),
        (lambda m: m.generate("cat", 0), "1 to 1000, not 0"),
        (lambda m: m.generate("cat", -3), "1 to 1000, not -3"),
        (lambda m: m.generate("cat", 10**9), "1 to 1000"),
        (lambda m: m.generate("cat", guidance_scale=-0.1), "0 or more .* not -0.1"),
        (lambda m: m.generate("cat", guidance_scale=float("nan")), "not nan"),
        (lambda m: m.generate("cat", guidance_scale=float("inf")), "not inf"),
        (lambda m: m.generate("cat", solver="oiler"), "unknown solver 'oiler'; did you mean euler"),
        (lambda m: m.generate("cat", grid="unifrom"), "unknown grid 'unifrom'; did you mean uniform"),
        (lambda m: m.generate("cat", seed=-1), "0 or more .* not -1"),
        (lambda m: m.generate("cat", seed=2**64), "below 2"),
        (lambda m: m.generate("cat", num_images_per_prompt=0), "at least 1, not 0"),
        (lambda m: m.generate("cat", seed=1, generator=torch.Generator()), "exclude each other"),
        (lambda m: m.interpolate("cat", "dog", 0), "at least 1 picture, not 0"),
        (lambda m: m.interpolate("cat", " "), "is blank"),
        (lambda m: m.caption([]), "no picture"),
        (lambda m: m.caption("nowhere.png"), "nowhere.png does not exist"),
        (lambda m: m.caption(b"not a picture"), "not a picture"),
        (lambda m: m.caption(Image.new("RGB", (4, 4)), 0), "1 to 1000, not 0"),
        (lambda m: m.reconstruct([]), "no picture"),
    ],
)
def test_bad_input_is_one_clear_line(tiny: FlowTok, call: Callable[[FlowTok], Any], message: str) -> None:
    with pytest.raises(FlowTokError, match=message) as error:
        call(tiny)
    assert "\n" not in str(error.value)


def test_a_prompt_that_is_cut_is_said_so(tiny: FlowTok, caplog: pytest.LogCaptureFixture) -> None:
    """Otherwise the end of a long prompt is ignored in silence."""
    picture = tiny.generate("king queen man woman cat dog red blue heart", seed=1)[0]
    assert "only the first 6 of 9 word pieces" in caplog.text
    assert same(picture, tiny.generate("king queen man woman cat dog", seed=1)[0])


# folders


def test_what_is_saved_is_what_was_there(tiny: FlowTok, tmp_path: Path) -> None:
    """Weights, sampling, provenance and the language encoder with its licence note come back unchanged."""
    tiny.sampling, before = replace(tiny.sampling, grid="release"), tiny.sampling
    try:
        folder = tiny.save_pretrained(tmp_path / "again", card="# again\n")
    finally:
        tiny.sampling = before
    again = flowtok.load(folder)
    assert again.sampling == replace(before, grid="release") and again.provenance == tiny.provenance
    assert same(again.generate("king", seed=1, grid="uniform")[0], tiny.generate("king", seed=1)[0])
    assert again.caption(again.generate("king", seed=1)) == tiny.caption(again.generate("king", seed=1))
    assert (folder / "text_encoder" / "README.md").read_text() == "Made for tests; no licence needed.\n"
    assert (folder / "README.md").read_text() == "# again\n"
    again.save_pretrained(folder)
    assert same(flowtok.load(folder).generate("king", seed=1)[0], again.generate("king", seed=1)[0])


def test_what_only_training_needs_is_kept_in_an_imported_model(tmp_path: Path) -> None:
    """Saved again or uploaded, it must still give back the authors' file, alignment head included."""
    velocity, _, _ = write_tiny(tmp_path)
    imported = import_released(tmp_path / "imported", velocity=str(velocity), heads=TINY_HEADS)
    again = FlowTok.from_pretrained(imported).save_pretrained(tmp_path / "again")
    (exported,) = export_released(again, tmp_path / "back")
    back = torch.load(exported, weights_only=True)
    assert {name for name in back if name.startswith("context_projector")}
    assert back.keys() == velocity_file().keys()
    assert all(back[name].equal(weight) for name, weight in velocity_file().items())


def test_compact_weights_draw_nearly_the_same(tiny: FlowTok, tiny_folder: Path, tmp_path: Path) -> None:
    folder = tiny.save_pretrained(tmp_path / "half", dtype=torch.float16)
    size = (folder / "velocity.safetensors").stat().st_size
    assert size < 0.6 * (tiny_folder / "velocity.safetensors").stat().st_size
    half, full = (np.asarray(model.generate("king", seed=1)[0]).astype(int) for model in (flowtok.load(folder), tiny))
    assert np.abs(half - full).max() <= 8  # float16 keeps 3 decimal digits


def test_trained_weights_become_a_model_folder(tiny: FlowTok, tiny_copy: Path) -> None:
    """`flowtok train` ends with this: before the last stage nothing is claimed, after it the folder opens."""
    (tiny_copy / "config.json").unlink()
    encoder = tiny.text_encoder_folder
    assert encoder is not None
    configs = {name: part.config for name, part in tiny.parts.items() if name != "latent_scale"}
    arguments: dict[str, Any] = {
        "name": "mine", "configs": configs, "sampling": SamplingConfig(), "text_encoder": encoder, "provenance": {},
    }  # fmt: skip
    velocity = (tiny_copy / "velocity.safetensors").rename(tiny_copy / "later")
    assert not write_model_config(tiny_copy, **arguments) and not (tiny_copy / "config.json").exists()
    velocity.rename(tiny_copy / "velocity.safetensors")
    shutil.rmtree(tiny_copy / "text_encoder")
    assert write_model_config(tiny_copy, **arguments)
    assert same(flowtok.load(tiny_copy).generate("king", 4, seed=1)[0], tiny.generate("king", seed=1)[0])


def test_a_missing_component_is_named_when_it_is_needed(tiny: FlowTok, tiny_copy: Path) -> None:
    """A model without a text decoder draws; that it cannot caption is said, and no random words are made up."""
    without(tiny_copy, "text_decoder")
    model = flowtok.load(tiny_copy)
    picture = model.generate("king", seed=1)[0]
    assert same(picture, tiny.generate("king", seed=1)[0])
    with pytest.raises(CheckpointError, match="'tiny' has no text_decoder"):
        model.caption(picture)


@pytest.mark.parametrize("part", ["velocity", "text_projector", "image_tokenizer", "latent_scale", "text_decoder"])
def test_a_lost_weight_file_is_named(tiny_copy: Path, part: str) -> None:
    (tiny_copy / f"{part}.safetensors").unlink()
    with pytest.raises(CheckpointError, match=f"no {part}.safetensors"):
        flowtok.load(tiny_copy)


@pytest.mark.parametrize(
    "file", ["velocity.safetensors", "text_encoder/model.safetensors", "text_encoder/tokenizer.json"]
)
def test_one_changed_byte_is_noticed(tiny_copy: Path, file: str) -> None:
    """A broken download must not draw strange pictures."""
    path = tiny_copy / file
    content = bytearray(path.read_bytes())
    content[-20] ^= 1
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=f"{path.name} is damaged"):
        flowtok.load(tiny_copy)


def test_components_of_different_models_are_refused(tiny_copy: Path) -> None:
    config = json.loads((tiny_copy / "config.json").read_text())
    config["velocity"]["num_tokens"] = 9
    (tiny_copy / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match="does not fit the network"):
        flowtok.load(tiny_copy)


def test_components_that_do_not_fit_each_other_are_refused(tiny: FlowTok, tmp_path: Path) -> None:
    other = tiny_model(tmp_path, tied=False)
    narrow = replace(tiny.text_projector.config, num_tokens=LENGTH + 1)
    with pytest.raises(CheckpointError, match=r"num_tokens is .*'text_projector': 9"):
        FlowTok(
            name="mixed", text_encoder=tiny.text_encoder, velocity=tiny.velocity,
            text_projector=type(tiny.text_projector)(narrow),
        )  # fmt: skip
    wide = type(other.text_decoder)(replace(other.text_decoder.config, vocabulary_size=99))
    with pytest.raises(CheckpointError, match="vocabulary_size is"):
        FlowTok(name="mixed", text_encoder=tiny.text_encoder, text_decoder=wide)


def test_push_to_hub_uploads_the_whole_folder(tiny: FlowTok, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a network: what would be uploaded is opened as a model."""
    import huggingface_hub

    seen: dict[str, Any] = {}

    class Commit:
        commit_url = "https://hub/commit"

    class Api:
        def __init__(self, token: str | None = None) -> None:
            seen["token"] = token

        def create_repo(self, repo_id: str, **options: Any) -> None:
            seen["repo"] = (repo_id, options)

        def upload_folder(
            self, *, repo_id: str, folder_path: Path, revision: str | None, commit_message: str
        ) -> Commit:
            seen["picture"] = flowtok.load(folder_path).generate("king", seed=1)[0]
            seen["files"] = {path.name for path in folder_path.iterdir()}
            return Commit()

    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    assert tiny.push_to_hub("me/tiny", token="secret", private=True, card="# tiny\n") == "https://hub/commit"
    assert seen["token"] == "secret" and seen["repo"] == ("me/tiny", {"private": True, "exist_ok": True})
    assert same(seen["picture"], tiny.generate("king", seed=1)[0]) and "README.md" in seen["files"]
