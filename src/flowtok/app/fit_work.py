"""The folder that `flowtok fit` works in: trains by a plan, stops at any time, packs and measures.

Knows no options and makes no plan; that is fitting.py's. train/course.py trains, evaluation.py measures, packing.py
packs.
"""

import contextlib
import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from flowtok.app import output
from flowtok.app.packing import check_free, pack
from flowtok.app.starting import complete_model, encoder_of, language_encoder, teller
from flowtok.checkpoints.catalogue import CONFIG_FILE
from flowtok.errors import FlowTokError
from flowtok.files import write_file_atomically

if TYPE_CHECKING:
    from flowtok.data.collect import Collected
    from flowtok.train.fit import FitPlan
    from flowtok.train.recipe import Recipe
    from flowtok.train.runtime import Runtime

RECIPE_FILE = "recipe.yaml"
PAGE = "report.html"


@dataclass(frozen=True, kw_only=True)
class Work:
    """The folder that training works in, beside the model that comes out.

    Attributes:
        folder: Holds the stages, their weights and the plan.
        out: The model.
        place: The pictures.
        device: Where, as it was asked for.
    """

    folder: Path
    out: Path
    place: str
    device: str

    @property
    def recipe_path(self) -> Path:
        return self.folder / RECIPE_FILE

    def begun(self, size: int) -> "Recipe | None":
        """The recipe of an earlier start, if there was one.

        Raises:
            FlowTokError: It was for pictures of another size.
        """
        from flowtok.config import load_data
        from flowtok.train.recipe import read_recipe

        if not self.recipe_path.is_file():
            return None
        recipe = read_recipe(load_data(self.recipe_path), where=str(self.recipe_path))
        if (has := recipe.image_tokenizer.image_size) != size:
            raise FlowTokError(
                f"{self.folder} was begun with --size {has}, not {size}: give --size {has} to go on, or delete the "
                "folder to begin anew"
            )
        return recipe

    def save(self, plan: "FitPlan") -> None:
        """Writes the plan, by which a later start goes on."""
        from flowtok.config import save

        save(plan.recipe, self.recipe_path)

    def train(
        self, plan: "FitPlan", pictures: "Collected", runtime: "Runtime", seconds: Callable[[], float]
    ) -> tuple[Path, bool]:
        """Trains all stages, the flow for as long as there is time; where the machine is slow, each ends by the clock.

        Returns:
            The model folder, in float32, and whether it was stopped: then it is the model as far as it was.

        Raises:
            TrainingStopped: Ctrl-C or SIGTERM came before there was anything to make a model of.
        """
        from flowtok.train.course import STAGES, run_course
        from flowtok.train.fit import SHARE_OF_TRAINING, plan_flow, seconds_of_stages
        from flowtok.train.stops import LeftAtOnce, StopWish, TrainingStopped

        again = False
        own = encoder_of([plan.start], plan.recipe) if plan.start else None
        encoder = own or language_encoder(self.folder)
        with output.progress_of_parts() as report:

            def course(stages: tuple[str, ...] = STAGES, *, as_it_is: bool = False) -> Path:
                remaining = STAGES[STAGES.index(stages[0]) :]
                return run_course(
                    plan.recipe, pictures, self.folder, text_encoder=encoder, runtime=runtime, stages=stages,
                    start=plan.start, as_it_is=as_it_is, report=teller(report),
                    seconds_left=seconds_of_stages(plan.recipe, remaining, seconds),
                )  # fmt: skip

            try:
                if plan.rates:
                    course(STAGES[:2])
                    count, left = len(pictures.split("train")), SHARE_OF_TRAINING * seconds()
                    said, plan = plan.reasons, plan_flow(plan, num_pictures=count, seconds=left)
                    if plan.reasons[0] not in said:
                        output.note(f"  {plan.reasons[0]} in the time that is left")
                    self.save(plan)
                model = course(STAGES[2:] if plan.rates else STAGES)
            except LeftAtOnce:
                raise
            except (TrainingStopped, KeyboardInterrupt) as stopped:
                self._check_begun(plan)
                output.note(f"{str(stopped) or 'stopped'}; taking the model as far as it is")
                again = True
                with StopWish(again=again):
                    model = course(as_it_is=True)
            with StopWish(again=again):
                complete_model(plan.recipe, model, encoder)
        return model, again

    def _check_begun(self, plan: "FitPlan") -> None:
        """Raises TrainingStopped where no model can be made of what there is."""
        from flowtok.train.checkpoint import last_step
        from flowtok.train.stops import TrainingStopped

        stages = plan.recipe.trained_stages
        missing = [stage for stage in stages if last_step(self.folder / stage) is None]
        if missing and (plan.start is None or missing == list(stages)):
            raise TrainingStopped(
                f"stopped before stage {missing[0]} had saved anything, so there is no model yet; the same command "
                "goes on from there",
                130,
            )

    def finish(self, model: Path, pictures: "Collected", *, again: bool) -> None:
        """Packs the model, measures it on what was held out, and packs it again with its scores.

        Args:
            model: The model.
            pictures: What was held out is among them.
            again: Training was stopped by Ctrl-C; the next one leaves at once.
        """
        with contextlib.redirect_stdout(io.StringIO()):  # its name is printed when all is done
            stopped = self._pack(model, [], again=again)
        scores = None if stopped else self._scores(model, pictures, again=again)
        self._pack(model, scores or [], again=again or scores is None)
        output.note(f"how it learned: {self.out / PAGE}")

    def _scores(self, model: Path, pictures: "Collected", *, again: bool) -> list[Path] | None:
        """The folder with the scores of the held-out pictures, if there are any; None if Ctrl-C came."""
        from flowtok.app.evaluation import evaluate
        from flowtok.train.stops import LeftAtOnce

        held_out = {row.split for row in pictures.pictures.rows}
        splits = [name for name in ("validation", "unseen_concept") if name in held_out]
        if not splits:
            return []
        scores = self.folder / "scores"
        output.note(f"{self.out} is there; measuring it (Ctrl-C leaves it without scores)")
        try:
            evaluate(
                str(model), data=self.place, task="reconstruction,captions", split=",".join(splits), limit=128,
                out=scores, device=self.device,
            )  # fmt: skip
        except LeftAtOnce:
            raise
        except KeyboardInterrupt:
            output.note("stopped while it was measured: its card holds no scores")
            if again:
                raise
            return None
        return [scores]

    def _pack(self, model: Path, scores: list[Path], *, again: bool) -> bool:
        """Writes the model folder, whole although Ctrl-C comes, with the page of how it learned; whether it came."""
        from flowtok.train.course import STAGES
        from flowtok.train.page import write_page
        from flowtok.train.stops import StopWish

        with StopWish(again=again) as wish, self._page_aside():
            pack(str(model), out=self.out, scores=scores)
            runs = [self.folder / stage for stage in STAGES]
            write_page(self.out / PAGE, runs, title=f"{self.out.name}, from {self.place}")
        return wish.signal is not None

    def check_free(self) -> None:
        """Raises FlowTokError where the model cannot be written."""
        with self._page_aside():
            check_free(self.out)

    @contextlib.contextmanager
    def _page_aside(self) -> Iterator[None]:
        """Leaves nothing but the model in a fitted model's folder, as who packs one expects; then the page is back."""
        page, held = self.out / PAGE, None
        if page.is_file() and (self.out / CONFIG_FILE).is_file():
            held = page.read_bytes()
            page.unlink()
        try:
            yield
        finally:
            if held is not None and not page.exists():
                write_file_atomically(page, held)
