"""What tasks need besides a model and its data: networks, a reference. Looked for before anything is drawn.

What is opened stays on the bench for all tasks, splits, steps and guidance scales. Who measures with it:
captioned_tasks.py and public_tasks.py.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from flowtok.errors import DataError, FlowTokError
from flowtok.evaluate import fid
from flowtok.evaluate.bench import Bench
from flowtok.evaluate.clip import ClipScorer
from flowtok.evaluate.inception import FeatureNetwork, Resize
from flowtok.evaluate.layouts import TestPicture
from flowtok.image.perceptual import LPIPS
from flowtok.image.pretrained_files import LPIPS_FILE, VGG16_FILE, NotAtHand

_PICTURES = (".jpg", ".jpeg", ".png", ".webp")


def inception(bench: Bench) -> FeatureNetwork:
    """The network behind FID, from the place that was named or the usual ones; CheckpointError where it is in none."""
    return bench.keep(("Inception",), lambda: FeatureNetwork.opened(_place(bench), bench.model.device))


def clip(bench: Bench) -> ClipScorer | None:
    """The CLIP that was named, None where none was; CheckpointError where it is no CLIP."""
    place = bench.clip
    return None if place is None else bench.keep(("CLIP",), lambda: ClipScorer.opened(place, bench.model.device))


def lpips(bench: Bench) -> tuple[LPIPS, list[Path]]:
    """The network behind LPIPS, and its files.

    Raises:
        FlowTokError: The model's pictures are too small for it.
        CheckpointError: It is not there.
    """

    def opened() -> tuple[LPIPS, list[Path]]:
        if bench.image_size < LPIPS.smallest_side:
            raise FlowTokError(f"LPIPS needs pictures of {LPIPS.smallest_side} px, the model's have {bench.image_size}")
        try:
            network, files = LPIPS.opened(_place(bench))
        except NotAtHand as error:
            raise FlowTokError(
                f"LPIPS needs its heads and VGG16: {error}; fetch {LPIPS_FILE.url} as lpips.pth and {VGG16_FILE.url}, "
                "put them beside the Inception weights into a folder and name that with --weights"
            ) from error
        return network.to(bench.model.device).eval(), files

    return bench.keep(("LPIPS",), opened)


def _place(bench: Bench) -> str | None:
    return None if bench.weights == "download" else bench.weights


def named_reference(bench: Bench, resize: Resize, cut: str) -> fid.Statistics | dict[str, Path] | None:
    """The statistics or pictures that stand in the place of a task's own reference; None where none were named.

    Args:
        bench: Where they were named.
        resize: How the task's features are made.
        cut: How the task's reference pictures are cut.

    Raises:
        DataError: They are not there, too few, or statistics of other features or another cut.
    """
    place = bench.reference
    if place is None:
        return None
    if place.suffix == ".npz":
        statistics = fid.load_statistics(place)
        told = statistics.about
        if "features" in told and (told["features"] != inception(bench).protocol(resize) or told.get("cut") != cut):
            raise DataError(
                f"{place} was made with other features or another cut of the pictures; leave --reference out"
            )
        return statistics
    paths = {
        path.relative_to(place).as_posix(): path
        for path in sorted(place.rglob("*"))
        if path.suffix.lower() in _PICTURES
    }
    if len(paths) < 2:
        raise DataError(f"{place} holds no pictures to compare with; give a folder of them or an .npz of statistics")
    return paths


def check_distance(bench: Bench, limit: int | None, resize: Resize, cut: str, own: Iterable[TestPicture]) -> None:
    """Looks for the network behind FID, the reference, and enough pictures on either side.

    Raises:
        FlowTokError: One of them is missing or does not fit.
    """
    inception(bench)
    if limit == 1:
        raise FlowTokError("FID needs at least 2 pictures on either side, and --limit is 1; take more")
    if named_reference(bench, resize, cut) is None:
        check_pictures(own)


def check_pictures(pictures: Iterable[TestPicture]) -> None:
    """Looks whether all pictures of a list are there.

    Raises:
        DataError: Some are not.
    """
    listed = list(pictures)
    missing = [one.path for one in listed if not one.path.is_file()]
    if missing:
        raise DataError(
            f"{len(missing):,} of {len(listed):,} pictures are missing, the first one is {missing[0]}; unpack the "
            "archive again"
        )
