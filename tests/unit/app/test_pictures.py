"""generate, caption, reconstruct and interpolate: what they write, and one clear line for what cannot be done."""

from __future__ import annotations

import json
import struct
import zlib
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from running import Run, refused

import flowtok
from flowtok.data.images import to_tensor
from flowtok.pipeline import FlowTok


def same(path: Path | str, picture: Image.Image) -> bool:
    return np.array_equal(np.asarray(Image.open(path)), np.asarray(picture))


def png(picture: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    file = BytesIO()
    picture.save(file, kind, **options)
    return file.getvalue()


# generate


def test_generate_writes_the_picture_and_its_story(run: Run, tiny: FlowTok) -> None:
    """The file tells how to draw it again: prompt, seed, model, version and settings."""
    result = run("generate", "a red cat", "--seed", "3", "-o", "cat.png")
    assert (result.code, result.out, result.err) == (0, "cat.png\n", "")
    assert same("cat.png", tiny.generate("a red cat", seed=3)[0])
    with Image.open("cat.png") as picture:
        assert picture.info == {
            "prompt": "a red cat", "seed": "3", "model": "tiny", "flowtok": flowtok.__version__,
            "steps": "4", "guidance": "2.0", "solver": "euler", "time_grid": "uniform",
        }  # fmt: skip


def test_generate_without_a_name_takes_the_prompts_words_and_overwrites_nothing(run: Run) -> None:
    for expected in ("a-red-cat.png", "a-red-cat-2.png", "a-red-cat-3.png"):
        assert run("generate", "A red cat!").out == f"{expected}\n"
    assert sorted(path.name for path in Path().iterdir()) == ["a-red-cat-2.png", "a-red-cat-3.png", "a-red-cat.png"]


def test_generate_many_into_a_folder(run: Run, tiny: FlowTok) -> None:
    """Several prompts, several pictures each: numbered by prompt, made in one go, going on after what is there."""
    result = run("generate", "a red cat", "king", "-n", "2", "--seed", "5", "-o", "out/", "--json")
    records = json.loads(result.out)
    assert [record["file"] for record in records] == [
        "out/a-red-cat-1.png", "out/a-red-cat-2.png", "out/king-1.png", "out/king-2.png",
    ]  # fmt: skip
    assert [record["seed"] for record in records] == [5, 6, 5, 6]
    assert same("out/king-2.png", tiny.generate("king", seed=6)[0])
    assert run("generate", "king", "-n", "2", "-o", "out").out == "out/king-3.png\nout/king-4.png\n"
    assert run("generate", "dog", "dog", "-o", "two.png").out == "two-1.png\ntwo-2.png\n"


def test_pictures_are_drawn_together_where_that_is_asked_for(
    run: Run, tiny: FlowTok, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file says so, as a batch of another size rounds differently."""
    monkeypatch.setattr(tiny, "batch_size", 3)
    run("generate", "king", "-n", "4", "--seed", "1", "--batch-size", "3", "-o", "king.png")
    for number, picture in enumerate(tiny.generate("king", seed=1, num_images_per_prompt=4), 1):
        assert same(f"king-{number}.png", picture)
    with Image.open("king-4.png") as picture:
        assert picture.info["batch_size"] == "3"
    said = run("caption", "king-1.png", "king-2.png", "--batch-size", "3").out
    assert said == "".join(f"king-{i}.png\t{tiny.caption([Image.open(f'king-{i}.png')])[0]}\n" for i in (1, 2))


def test_a_named_file_is_replaced(run: Run, tiny: FlowTok) -> None:
    run("generate", "king", "--seed", "1", "-o", "x.png")
    run("generate", "dog", "--seed", "1", "-o", "x.png")
    assert same("x.png", tiny.generate("dog", seed=1)[0])
    assert [path.name for path in Path().iterdir()] == ["x.png"]


def test_options_reach_the_model(run: Run, tiny: FlowTok) -> None:
    """An option that changes nothing would lie to its user."""
    given = {"--steps": "3", "--guidance": "1.5", "--solver": "heun", "--time-grid": "release", "--seed": "2"}
    run("generate", "king", *[word for pair in given.items() for word in pair], "-o", "x.png")
    assert same("x.png", tiny.generate("king", 3, 1.5, 2, solver="heun", grid="release")[0])
    run("generate", "king", "--deterministic-text", "-o", "mean.png")
    assert same("mean.png", tiny.generate("king", deterministic_text=True)[0])


def test_prompts_from_a_file_and_from_standard_input(run: Run) -> None:
    Path("prompts.txt").write_text("\ufeffking\n\n  a red cat \r\n", encoding="utf-8")
    result = run("generate", "dog", "--from-file", "prompts.txt", "-o", "a", "--json")
    assert [record["prompt"] for record in json.loads(result.out)] == ["dog", "king", "a red cat"]
    result = run("generate", "--from-file", "-", "-o", "b", "--json", stdin=b"queen\nthe heart\n")
    assert [record["prompt"] for record in json.loads(result.out)] == ["queen", "the heart"]


def test_a_sheet_holds_all_pictures(run: Run) -> None:
    """Two prompts, three pictures each: three columns, two rows, with the white gaps of a contact sheet."""
    result = run("generate", "king", "dog", "-n", "3", "--seed", "1", "--grid", "-o", "sheet.png")
    assert result.out == "sheet.png\n"
    with Image.open("sheet.png") as sheet:
        assert sheet.size == (3 * 18 + 2, 2 * 18 + 2)
        assert sheet.info["prompt"] == "king; king; king; dog; dog; dog" and sheet.info["seed"] == "1; 2; 3; 1; 2; 3"
    assert run("generate", "king", "--grid").out == "king.png\n"


def test_larger_pictures_are_resampled_and_said_so(run: Run) -> None:
    result = run("generate", "king", "--size", "48", "-o", "x.png")
    assert result.code == 0 and "resampled to 48 x 48" in result.err
    with Image.open("x.png") as picture:
        assert picture.size == (48, 48)


def test_the_preview_is_for_terminals(run: Run) -> None:
    """Escape codes in a pipe would break scripts; asked for, two pixels stand in each character."""
    assert "▀" not in run("generate", "king", "-o", "x.png").out
    shown = run("generate", "king", "-o", "x.png", "--preview").out
    assert shown.count("▀") == 16 * 8 and shown.endswith("x.png\n")
    refused(run("generate", "king", "--preview", "--json"), "--preview and --json")


def test_any_unicode_prompt_names_a_file(run: Run) -> None:
    result = run("generate", "une tête élégante 猫/../x \udcff", "--json")
    (record,) = json.loads(result.out)
    assert record["file"] == "une-tête-élégante-猫-x.png" and Path(record["file"]).is_file()
    with Image.open(record["file"]) as picture:
        assert picture.info["prompt"].startswith("une tête élégante 猫/../x ")
    assert run("generate", "♥").out == "picture.png\n"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], ["no prompt"]),
        ([""], ["blank"]),
        (["  \t"], ["blank"]),
        (["cat", ""], ["blank"]),
        (["cat " * 3000], ["12000 characters"]),
        (["cat", "-n", "0"], ["-n", "at least 1"]),
        (["cat", "-n", "1000000000000"], ["-n", "at most 10,000"]),
        (["cat", "-n", "two"], ["-n"]),
        (["cat", "--steps", "-1"], ["steps", "-1"]),
        (["cat", "--steps", "0"], ["steps", "0"]),
        (["cat", "--guidance", "-0.5"], ["guidance", "-0.5"]),
        (["cat", "--guidance", "nan"], ["guidance", "nan"]),
        (["cat", "--solver", "oiler"], ["oiler", "did you mean euler"]),
        (["cat", "--time-grid", "log"], ["log", "uniform"]),
        (["cat", "--seed", "-1"], ["seed", "-1"]),
        (["cat", "--seed", "x"], ["--seed"]),
        (["cat", "--seed", "1", "--deterministic-text"], ["exclude each other"]),
        (["cat", "--deterministic-text", "-n", "2"], ["would be equal"]),
        (["cat", "--size", "8"], ["16 x 16"]),
        (["cat", "--size", "17"], ["16 x 16"]),
        (["cat", "--size", "0"], ["16 x 16"]),
        (["cat", "--size", "1000000000"], ["16 x 16"]),
        (["cat", "-o", "missing/cat.png"], ["no folder missing"]),
        (["cat", "-o", "missing/folder/"], ["no folder missing"]),
        (["cat", "-o", "cat.jpg"], ["cat.jpg", ".png"]),
        (["cat", "-o", "taken/cat.png"], ["no folder taken"]),
        (["cat", "-o", "taken"], ["taken", "not a folder"]),
        (["cat", "-o", "/proc/cat.png"], ["/proc/cat.png"]),
        (["cat", "-o", "x" * 300], ["300 characters"]),
        (["cat", "--model", "x" * 300], ["300 characters"]),
        (["cat", "--device", "meta"], ["device 'meta'", "--device cpu"]),
        (["cat", "--device", "abacus"], ["abacus"]),
        (["cat", "--dtype", "int3"], ["--dtype"]),
        (["cat", "--batch-size", "0"], ["--batch-size"]),
        (["cat", "--nonsense"], ["--nonsense"]),
        (["--from-file", "missing.txt"], ["missing.txt"]),
        (["--from-file", "empty.txt"], ["holds no prompt"]),
        (["--from-file", "binary.txt"], ["not UTF-8"]),
        (["--from-file", "-"], ["standard input holds no prompt"]),
        (["cat", "--model", "nothing-like-it"], ["unknown model 'nothing-like-it'"]),
        (["cat", "--model", "."], ["no flowtok model"]),
        (["cat", "--model", "empty.txt"], ["is a file"]),
    ],
)
def test_generate_refuses_in_one_line(run: Run, arguments: list[str], words: list[str]) -> None:
    """And leaves nothing behind: no file, no folder, no temporary file."""
    Path("empty.txt").write_text("\n\n")
    Path("binary.txt").write_bytes(b"\xff\xfe\x00k")
    Path("taken").write_text("")
    before = sorted(Path().iterdir())
    refused(run("generate", *arguments), *words)
    assert sorted(Path().iterdir()) == before


def test_a_damaged_model_folder_is_refused(run: Run, tiny_copy: Path) -> None:
    path = tiny_copy / "velocity.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    refused(run("generate", "king", "--model", str(tiny_copy)), "velocity.safetensors", "damaged")
    (tiny_copy / "config.json").write_text("{")
    refused(run("generate", "king", "--model", str(tiny_copy)), "config.json")
    assert not list(Path().iterdir())


def test_ctrl_c_leaves_only_whole_files(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stopped in the middle of the second file: the first stands, of the second there is no trace."""
    save, count = Image.Image.save, 0

    def interrupted(self: Image.Image, file: Any, *arguments: Any, **options: Any) -> None:
        nonlocal count
        count += 1
        if count == 2:
            file.write(b"\x89PNG")
            raise KeyboardInterrupt
        save(self, file, *arguments, **options)

    monkeypatch.setattr(Image.Image, "save", interrupted)
    result = run("generate", "king", "dog", "-o", "out")
    assert result.code == 130 and result.err == "flowtok: stopped\n"
    assert [path.name for path in Path("out").iterdir()] == ["king.png"]


# caption


def test_caption_prints_words(run: Run, tiny: FlowTok) -> None:
    picture = tiny.generate("king", seed=1)[0]
    picture.save("king.png")
    (words,) = tiny.caption(picture)
    assert run("caption", "king.png").out == f"{words}\n"
    assert run("caption", "-", stdin=Path("king.png").read_bytes()).out == f"{words}\n"
    assert json.loads(run("caption", "king.png", "--json").out) == [{"file": "king.png", "caption": words}]


def test_caption_reads_whole_folders(run: Run) -> None:
    """In the order of their names, sub-folders too, other files left alone."""
    Path("album/more").mkdir(parents=True)
    for name in ("b.png", "a.JPG", "more/c.webp"):
        Image.new("RGB", (20, 20), (200, 10, 10)).save(Path("album") / name)
    Path("album/notes.txt").write_text("no picture")
    lines = run("caption", "album").out.splitlines()
    assert [line.split("\t")[0] for line in lines] == ["album/a.JPG", "album/b.png", "album/more/c.webp"]
    assert all(line.split("\t")[1] for line in lines)


def test_every_kind_of_picture_can_be_captioned(run: Run) -> None:
    red = Image.new("RGB", (40, 30), (255, 0, 0))
    files = {
        "rgb.png": png(red), "grey.png": png(red.convert("L")), "palette.png": png(red.quantize(4)),
        "clear.png": png(Image.new("RGBA", (40, 30), (255, 0, 0, 128))), "cmyk.jpg": png(red.convert("CMYK"), "JPEG"),
        "deep.png": png(Image.fromarray(np.full((30, 40), 40000, np.uint16))), "thin.png": png(red.resize((900, 1))),
        "moving.gif": png(red, "GIF", save_all=True, append_images=[red.rotate(90)]),
        "one.png": png(red.resize((1, 1))),
    }  # fmt: skip
    for name, content in files.items():
        Path(name).write_bytes(content)
    result = run("caption", *files)
    assert result.code == 0 and len(result.out.splitlines()) == len(files)


def bomb() -> bytes:
    """A PNG of a few bytes that says that it has 60,000 x 60,000 pixels."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(b"\0" * 1000)) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("missing.png", ["missing.png does not exist"]),
        ("cut.png", ["cut.png is damaged or cut short"]),
        ("fake.png", ["fake.png is not a picture"]),
        ("empty.png", ["empty.png is not a picture"]),
        ("bomb.png", ["bomb.png", "pixels"]),
        ("nothing", ["folder nothing holds no pictures"]),
        ("-", ["is not a picture"]),
        ("x" * 300, ["300 characters"]),
    ],
)
@pytest.mark.parametrize("command", ["caption", "reconstruct"])
def test_what_is_no_picture_is_refused(run: Run, command: str, name: str, words: list[str]) -> None:
    """Also after a good picture: no half of a result."""
    noise = Image.effect_noise((64, 64), 80.0)
    Path("good.png").write_bytes(png(noise))
    Path("cut.png").write_bytes(png(noise)[:900])
    Path("fake.png").write_text("<html>")
    Path("empty.png").write_bytes(b"")
    Path("bomb.png").write_bytes(bomb())
    Path("nothing").mkdir()
    before = sorted(Path().iterdir())
    refused(run(command, "good.png", name), *words)
    assert sorted(Path().iterdir()) == before


def test_caption_refuses_wrong_settings(run: Run) -> None:
    Image.new("RGB", (9, 9)).save("x.png")
    refused(run("caption", "x.png", "--steps", "0"), "steps")
    refused(run("caption", "x.png", "--guidance", "-1"), "guidance")
    refused(run("caption"), "PICTURE")
    refused(run("caption", "-", "-"), "once")


# reconstruct, interpolate


def test_reconstruct_writes_beside_and_measures(run: Run, tiny: FlowTok) -> None:
    picture = tiny.generate("king", seed=1)[0]
    picture.save("king.png")
    (record,) = json.loads(run("reconstruct", "king.png", "--json").out)
    assert record["file"] == "king-again.png"
    (rebuilt,) = tiny.reconstruct(picture)
    assert same("king-again.png", rebuilt)
    error = (to_tensor(picture) - to_tensor(rebuilt)).square().mean().item()
    assert record["psnr"] == pytest.approx(-10 * np.log10(error), abs=0.01)
    assert run("reconstruct", "king.png", "-o", "out.png").out == f"out.png\tpsnr {record['psnr']} dB\n"
    refused(run("reconstruct", "king.png", "--text", "a king"), "captions have no effect")


def test_interpolate_draws_a_strip(run: Run, tiny: FlowTok) -> None:
    result = run("interpolate", "king", "queen", "-n", "5", "--seed", "2")
    assert result.out == "king-to-queen.png\n"
    strip = np.asarray(Image.open("king-to-queen.png"))
    assert strip.shape == (20, 5 * 18 + 2, 3)
    assert np.array_equal(strip[2:18, 2:18], np.asarray(tiny.generate("king", seed=2)[0]))
    assert np.array_equal(strip[2:18, -18:-2], np.asarray(tiny.generate("queen", seed=2)[0]))


def test_arithmetic_draws_its_terms_and_their_result(run: Run, tiny: FlowTok) -> None:
    sum_of_words = "king - man + woman"
    assert run("interpolate", sum_of_words, "--seed", "2", "-o", "x.png").code == 0
    strip = np.asarray(Image.open("x.png"))
    assert strip.shape == (20, 4 * 18 + 2, 3)
    result = tiny.interpolate(sum_of_words, sum_of_words, 1, seed=2)[0]
    assert np.array_equal(strip[2:18, 20:36], np.asarray(tiny.generate("man", seed=2)[0]))
    assert np.array_equal(strip[2:18, -18:-2], np.asarray(result))


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["king"], "single prompt"),
        (["king - man", "queen"], "takes away"),
        (["king +", "queen"], "without a prompt"),
        (["king", ""], "blank"),
        (["king", "queen", "-n", "1"], "at least 2"),
        (["king", "queen", "-n", "1000000000000"], "at most 10,000"),
        (["king - man + woman", "-n", "3"], "no effect"),
        ([], "'A'"),
    ],
)
def test_interpolate_refuses_in_one_line(run: Run, arguments: list[str], word: str) -> None:
    refused(run("interpolate", *arguments), word)
    assert not list(Path().iterdir())
