"""The tasks on public sets end to end on small sets: right pictures score best, records say what they were measured on.

Inception is stood in for by a few colours here; that it is the right network is tested in test_inception.py.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from public_sets import write_coco, write_dpg, write_geneval, write_karpathy, write_mjhq

from flowtok.data.images import open_picture
from flowtok.errors import DataError, FlowTokError
from flowtok.evaluate import captioned_tasks, coco_captions, needs, prompt_tasks
from flowtok.evaluate.bench import Bench
from flowtok.evaluate.layouts import read_coco
from flowtok.evaluate.tasks import check_tasks, run_tasks
from flowtok.image.pretrained_files import NotAtHand
from flowtok.pipeline import FlowTok

# The tiny encoder reads eight word pieces; some prompts are longer.
pytestmark = pytest.mark.filterwarnings("ignore:only the first")


class Colours:
    """Stands for Inception: the colours of four quarters of a picture."""

    def protocol(self, resize: str) -> dict[str, str]:
        return {"network": "colours", "resize": resize}

    def __call__(self, pictures: Sequence[Image.Image], resize: str) -> torch.Tensor:
        small = [np.asarray(one.resize((2, 2), Image.Resampling.BOX), dtype=np.float32).ravel() for one in pictures]
        return torch.from_numpy(np.stack(small)) / 255


@pytest.fixture(autouse=True)
def colours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(needs.FeatureNetwork, "opened", lambda place, device: Colours())


@pytest.fixture(scope="module")
def model(home: Path) -> FlowTok:
    return FlowTok.from_pretrained(home / "tiny")


def bench_on(model: FlowTok, home: Path, data: Path, work: Path, **changes: Any) -> Bench:
    return Bench(model=model, folder=data, model_folder=home / "tiny", work=work, **changes)


def test_drawing_cocos_own_pictures_is_perfect_and_a_second_run_agrees(
    model: FlowTok, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The whole chain: caption, picture, crop and reference must belong together."""
    data, notes = write_coco(tmp_path / "coco"), []
    by_caption = {one.captions[0]: open_picture(one.path, size=16) for one in read_coco(data).pictures}
    with monkeypatch.context() as painted:
        painted.setattr(model, "generate", lambda prompts, *_, **__: [by_caption[one] for one in prompts])
        bench = bench_on(model, home, data, tmp_path / "work", note=notes.append)
        (first,) = run_tasks(bench, ["coco30k"])
    assert first.scores["fid"] == pytest.approx(0.0, abs=1e-6)
    assert first.protocol["reference"]["count"] == 6 and first.protocol["prompts"]["count"] == 6
    assert first.protocol["features"]["resize"] == "tf1" and first.protocol["sampling"]["num_inference_steps"] == 4
    # Nothing is drawn now: the model's own pictures would be noise.
    (second,) = run_tasks(bench_on(model, home, data, tmp_path / "work"), ["coco30k"])
    assert second == first
    (statistics,) = (tmp_path / "work").glob("reference-*.npz")
    assert any(str(statistics) in note for note in notes) and any("images/s" in note for note in notes)
    (third,) = run_tasks(bench_on(model, home, data, tmp_path / "work", reference=statistics), ["coco30k"])
    assert third.protocol_sha256 == first.protocol_sha256
    assert third.scores == {"fid": pytest.approx(first.scores["fid"], abs=1e-9)}


def test_what_was_drawn_before_a_stop_is_kept_to_the_last_picture(
    model: FlowTok, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a model that draws for minutes at a picture, an hour's work would be lost with each interruption."""
    data, drawn, generate = write_coco(tmp_path / "coco"), list[str](), model.generate

    def stops_at_the_fourth(prompts: list[str], *given: Any, **named: Any) -> list[Image.Image]:
        if len(drawn) == 3:
            raise KeyboardInterrupt
        drawn.extend(prompts)
        return generate(prompts, *given, **named)

    with monkeypatch.context() as stopping:
        stopping.setattr(model, "generate", stops_at_the_fourth)
        with pytest.raises(KeyboardInterrupt):
            run_tasks(bench_on(model, home, data, tmp_path / "stopped"), ["coco30k"])
    assert len(list((tmp_path / "stopped").rglob("0*.png"))) == 3
    notes: list[str] = []
    resumed = run_tasks(bench_on(model, home, data, tmp_path / "stopped", note=notes.append), ["coco30k"])
    assert notes[0].startswith("generation, COCO: 3 kept; 3 drawn in")
    assert resumed == run_tasks(bench_on(model, home, data, tmp_path / "whole"), ["coco30k"])


def test_noise_scores_worse_and_other_steps_have_another_hash(model: FlowTok, home: Path, tmp_path: Path) -> None:
    data = write_coco(tmp_path / "coco")
    records = []
    for steps in (1, 2):
        bench = bench_on(model, home, data, tmp_path / "work", sampling={"num_inference_steps": steps})
        records += run_tasks(bench, ["coco30k"])
    assert all(record.scores["fid"] > 0.01 for record in records)
    assert records[0].protocol_sha256 != records[1].protocol_sha256
    assert len(list((tmp_path / "work").glob("coco30k-*"))) == 2, "pictures of other steps lie elsewhere"


def test_statistics_of_other_features_are_refused(model: FlowTok, home: Path, tmp_path: Path) -> None:
    """FID of two networks, or of two ways to resize, compares nothing."""
    data = write_coco(tmp_path / "coco")
    run_tasks(bench_on(model, home, data, tmp_path / "work"), ["coco30k"], limit=2)
    (statistics,) = (tmp_path / "work").glob("reference-*.npz")
    mjhq = write_mjhq(tmp_path / "mjhq")
    with pytest.raises(DataError, match="other features or another cut"):
        run_tasks(bench_on(model, home, mjhq, tmp_path / "work", reference=statistics), ["mjhq30k"], limit=2)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="holds no pictures to compare with"):
        run_tasks(bench_on(model, home, data, tmp_path / "work", reference=tmp_path / "empty"), ["coco30k"], limit=2)


def test_mjhq_is_measured_as_a_whole_and_by_category(model: FlowTok, home: Path, tmp_path: Path) -> None:
    bench = bench_on(model, home, write_mjhq(tmp_path / "mjhq"), tmp_path / "work")
    records = run_tasks(bench, ["mjhq30k"])
    assert [(one.split, one.num_samples) for one in records] == [("all", 6), ("animals", 3), ("food", 3)]
    assert [one.protocol["reference"]["count"] for one in records] == [6, 3, 3]
    assert records[0].protocol["features"]["resize"] == "clean" and "kid" in records[0].scores
    assert len({one.protocol_sha256 for one in records}) == 3
    assert [one.title.split(":")[0] for one in bench.exhibits] == ["animals", "food"]
    notes: list[str] = []
    other = bench_on(
        model, home, bench.folder, tmp_path / "work", reference=tmp_path / "mjhq" / "mjhq30k_imgs", note=notes.append
    )
    (whole,) = run_tasks(other, ["mjhq30k"])
    assert whole.scores == records[0].scores and whole.protocol_sha256 != records[0].protocol_sha256
    assert any("FID is of all pictures alone" in note for note in notes), "ten scores must not vanish unsaid"


def test_karpathy_hands_every_sentence_to_cocos_scores(
    model: FlowTok, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = write_karpathy(tmp_path / "karpathy")
    with pytest.raises(FlowTokError, match="karpathy: no Java"):
        run_tasks(bench_on(model, home, data, tmp_path / "work"), ["karpathy"])
    seen: list = []
    monkeypatch.setattr(coco_captions, "hindrance", lambda: None)
    monkeypatch.setattr(coco_captions, "has_spice", lambda: False)
    monkeypatch.setattr(coco_captions, "LIBRARY", "torch")  # pycocoevalcap need not be installed here
    monkeypatch.setattr(coco_captions, "coco_scores", lambda *given: seen.append(given) or {"bleu_4": 12.0})
    notes: list[str] = []
    bench = bench_on(model, home, data, tmp_path / "work", note=notes.append)
    (record,) = run_tasks(bench, ["karpathy"])
    ((written, references),) = seen
    assert len(written) == len(references) == record.num_samples == 4
    assert all(len(own) == 5 and len({one.split(",")[1] for one in own}) == 1 for own in references)
    assert record.scores == {"bleu_4": 12.0} and "SPICE is left out" in notes[0]
    (exhibit,) = bench.exhibits
    assert {cell.is_right for cell in exhibit.cells} == {None}, "a good sentence need not be one of the five"
    assert [cell.words[1] for cell in exhibit.cells] == [f"({own[0]})" for own in references]


def test_geneval_lies_as_its_scorer_reads_it_and_its_results_come_back(
    model: FlowTok, home: Path, tmp_path: Path
) -> None:
    data, notes = write_geneval(tmp_path / "geneval"), []
    bench = bench_on(model, home, data, tmp_path / "work", note=notes.append)
    assert run_tasks(bench, ["geneval"]) == [] and "evaluate_images.py" in notes[-1]
    (folder,) = (tmp_path / "work").glob("geneval-*")
    results = []
    for number, line in enumerate(data.read_text().splitlines()):
        inside = folder / f"{number:05d}"
        metadata = json.loads((inside / "metadata.jsonl").read_text())
        assert metadata == json.loads(line)
        samples = sorted((inside / "samples").iterdir())
        assert [one.name for one in samples] == [f"{k:05d}.png" for k in range(4)]
        for k, one in enumerate(samples):
            results.append({"filename": str(one), **metadata, "correct": k < 1 + 2 * number})
    path = tmp_path / "results.jsonl"
    path.write_text("".join(json.dumps(one) + "\n" for one in results))
    (record,) = run_tasks(bench_on(model, home, data, tmp_path / "work", results=path), ["geneval"])
    # One of four and three of four are right; the overall score is the mean over the tags.
    assert record.scores == {"geneval": 0.5, "geneval colors": 0.25, "geneval two_object": 0.75}
    # The same prompts drawn with other steps are pictures that nobody scored.
    other = bench_on(model, home, data, tmp_path / "work", results=path, sampling={"num_inference_steps": 1})
    with pytest.raises(DataError, match=rf"scores the pictures in {folder.name}; those of this model"):
        run_tasks(other, ["geneval"])
    path.write_text("".join(json.dumps(one) + "\n" for one in results[:-1]))
    with pytest.raises(DataError, match="results for 7 pictures of 2 prompts"):
        run_tasks(bench_on(model, home, data, tmp_path / "work", results=path), ["geneval"])


DPG_RESULTS = """images/0.png, 1.0, 0.5, 1.0, 0.5, 0.75
images/partiprompts1.png, 0.25, 0.25, 0.25, 0.25, 0.25
Model: grids
L1 category scores:
\tentity: 80.0
\tattribute: 40.5
L2 category scores:
\tentity - whole: 80.0
Image path: grids
DPG-Bench score: 50.0
"""


def test_dpg_has_four_pictures_in_one_and_its_results_come_back(model: FlowTok, home: Path, tmp_path: Path) -> None:
    data = write_dpg(tmp_path / "dpg")
    assert run_tasks(bench_on(model, home, data, tmp_path / "work"), ["dpg"]) == []
    (folder,) = (tmp_path / "work").glob("dpg-*")
    assert sorted(one.name for one in (folder / "grids").iterdir()) == ["0.png", "partiprompts1.png"]
    with Image.open(folder / "grids" / "0.png") as grid, Image.open(folder / "singles" / "0-3.png") as last:
        assert grid.size == (32, 32) and grid.crop((16, 16, 32, 32)).tobytes() == last.tobytes()
    path = tmp_path / "results.txt"
    path.write_text(DPG_RESULTS)
    (record,) = run_tasks(bench_on(model, home, data, tmp_path / "work", results=path), ["dpg"])
    assert record.scores == {"dpg": 50.0, "dpg attribute": 40.5, "dpg entity": 80.0}


@pytest.mark.parametrize(
    ("was", "now", "message"),
    [
        ("DPG-Bench score: 50.0\n", "", "does not end with the score"),
        ("DPG-Bench score: 50.0", "DPG-Bench score: 60.0", r"its pictures \(50.0000\)"),
        ("images/0.png, 1.0, 0.5, 1.0, 0.5, 0.75\n", "", "results for 1 pictures"),
        ("1.0, 0.5, 1.0, 0.5, 0.75", "0.75, 0.75", "has 1 scores, not 4"),
    ],
)
def test_results_of_something_else_are_refused(tmp_path: Path, was: str, now: str, message: str) -> None:
    path = tmp_path / "results.txt"
    path.write_text(DPG_RESULTS.replace(was, now))
    with pytest.raises(DataError, match=message):
        prompt_tasks.read_dpg_results(path, ["0", "partiprompts1"])


@pytest.mark.parametrize(
    ("tasks", "splits", "message"),
    [
        (["geneval", "retrieval"], None, "read different data; measure geneval by itself"),
        (["coco30k"], ["train"], "coco30k has no splits"),
        (["mjhq"], None, "did you mean mjhq30k"),
    ],
)
def test_tasks_that_do_not_go_together_are_refused(tasks: list[str], splits: list[str] | None, message: str) -> None:
    with pytest.raises(FlowTokError, match=message):
        check_tasks(tasks, splits)
    check_tasks(["coco30k", "karpathy"])


def test_pictures_need_a_folder_to_be_kept_in(model: FlowTok, home: Path, tmp_path: Path) -> None:
    data = write_coco(tmp_path / "coco")
    with pytest.raises(FlowTokError, match="name a folder with -o"):
        run_tasks(Bench(model=model, folder=data, model_folder=home / "tiny"), ["coco30k"])


class Distance(torch.nn.Module):
    """Stands for LPIPS: the mean difference."""

    smallest_side = 16

    @classmethod
    def opened(cls, place: str | None) -> tuple[Distance, list[Path]]:
        assert place is None, "`download` means the usual places"
        return cls(), [Path(__file__)]

    def forward(self, image_B3YX: torch.Tensor, rebuilt_B3YX: torch.Tensor) -> torch.Tensor:
        return (image_B3YX - rebuilt_B3YX).abs().mean()


def test_rfid_holds_reconstructions_against_their_own_originals(
    model: FlowTok, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a record of its own: PSNR measured without the networks must keep its hash."""
    monkeypatch.setattr(needs, "LPIPS", Distance)
    monkeypatch.setattr(model, "reconstruct", lambda pictures, **_: [one.copy() for one in pictures])
    bench = Bench(model=model, folder=home / "set", model_folder=home / "tiny", weights="download")
    pixels, networks = captioned_tasks.reconstruction_records(bench, "train", 6)
    assert networks.task == "rfid" and networks.scores == {"rfid": pytest.approx(0.0, abs=1e-6), "lpips": 0.0}
    assert networks.protocol["lpips"]["sha256"] == [hashlib.sha256(Path(__file__).read_bytes()).hexdigest()]
    without = Bench(model=model, folder=home / "set", model_folder=home / "tiny")
    assert captioned_tasks.measure_reconstruction(without, "train", 6).protocol_sha256 == pixels.protocol_sha256
    monkeypatch.setattr(model, "reconstruct", lambda pictures, **_: [Image.new("RGB", (16, 16))] * len(pictures))
    worse = captioned_tasks.reconstruction_records(bench, "train", 6)[1].scores
    assert worse["rfid"] > 0.01 and worse["lpips"] > 0.1
    titles = [one.title.split(" ")[0] for one in bench.exhibits[:3]]
    assert titles == ["best", "median", "worst"]


def test_missing_networks_for_lpips_are_named_before_any_work(
    model: FlowTok, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def nowhere(place: str | None) -> None:
        raise NotAtHand("vgg16.pth could not be fetched: offline")

    monkeypatch.setattr(needs.LPIPS, "opened", nowhere)
    monkeypatch.setattr(model, "reconstruct", lambda pictures, **_: pytest.fail("nothing may be computed"))
    bench = Bench(model=model, folder=home / "set", model_folder=home / "tiny", weights="download")
    with pytest.raises(FlowTokError, match=r"download.pytorch.org/models/vgg16.*--weights"):
        captioned_tasks.reconstruction_records(bench, "train", 2)


class Eyes:
    """Stands for a CLIP: the colours of a picture, and for a text those of the picture that it belongs to."""

    def __init__(self, by_text: dict[str, Image.Image]) -> None:
        self.by_text = by_text

    def protocol(self) -> dict[str, str]:
        return {"name": "eyes"}

    def of_pictures(self, pictures: Sequence[Image.Image]) -> torch.Tensor:
        return torch.nn.functional.normalize(Colours()(pictures, "") - 0.5, dim=-1)

    def of_texts(self, texts: Sequence[str]) -> torch.Tensor:
        return self.of_pictures([self.by_text[text] for text in texts])


def test_retrieval_by_a_clip_and_by_pixels_finds_the_originals(
    model: FlowTok, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = Bench(model=model, folder=home / "set", model_folder=home / "tiny", clip="eyes")
    rows = bench.open("train").rows
    by_text = {row.text: bench.pictures("train", [i])[0] for i, row in enumerate(rows)}
    monkeypatch.setattr(needs.ClipScorer, "opened", lambda place, device: Eyes(by_text))
    monkeypatch.setattr(model, "generate", lambda prompts, *_, **__: [by_text[prompt] for prompt in prompts])
    own, by_clip = captioned_tasks.retrieval_records(bench, "train", 5)
    assert own.scores["pixel_r_at_1"] == own.scores["r_at_10"] == 100.0 and own.scores["pixel_mean_rank"] == 1.0
    assert own.scores["chance_r_at_10"] == pytest.approx(1000 / 24)
    assert by_clip.task == "retrieval_clip" and by_clip.scores["r_at_1"] == 100.0
    assert by_clip.scores["clip_score"] == pytest.approx(100.0, abs=1e-4)
    assert {one.section for one in bench.exhibits} == {"retrieval, train"}
