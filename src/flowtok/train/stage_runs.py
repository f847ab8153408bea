"""One stage of a course as a run: its folder, its record and its report.

Knows what a run depends on, not what is trained: the stages are made in course.py, the loop is loop.py's.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import nn

from flowtok.errors import FlowTokError
from flowtok.train.checkpoint import last_step
from flowtok.train.inputs import Inputs
from flowtok.train.loop import Stage, TrainingConfig, train
from flowtok.train.pace import SecondsLeft
from flowtok.train.run import Run
from flowtok.train.samples import ReadsSamples
from flowtok.train.stops import TrainingStopped
from flowtok.train.stream_inputs import StreamInputs

Report = Callable[[str, int, int, dict[str, float]], None]


class StageRuns:
    """Runs the stages of one course."""

    def __init__(
        self,
        inputs: Inputs | StreamInputs,
        report: Report | None,
        as_it_is: bool,
        seconds_left: Mapping[str, SecondsLeft] | None = None,
    ) -> None:
        """Takes what all stages share.

        Args:
            inputs: What they learn from.
            report: Called with stage, step, number of steps and metrics.
            as_it_is: Trains nothing and takes the weights that each stage's last checkpoint has.
            seconds_left: For stages that end by the clock, what tells the seconds that they still have.
        """
        self.inputs, self.report, self.as_it_is, self.seconds_left = inputs, report, as_it_is, seconds_left or {}

    def train(
        self,
        stage: Stage,
        training: TrainingConfig,
        *configs: Any,
        inputs: Sequence[str] = (),
        weighted: bool = True,
        **values: Any,
    ) -> nn.Module:
        """Runs a stage and keeps what it was made of in its record, so that another run is not taken for this one.

        Args:
            stage: What is trained.
            training: How long.
            configs: What the stage was built from.
            inputs: Components of earlier stages that it learns from.
            weighted: Draws pictures by their weight; otherwise each once an epoch.
            values: Anything else that it depends on.
        """
        if self.as_it_is:
            return self._reached(stage, training)

        def report(step: int, metrics: dict[str, float]) -> None:
            if self.report is not None:
                self.report(stage.name, step, training.num_steps, metrics)

        resolved: dict[str, Any] = {type(config).__name__: config for config in configs}
        resolved |= {name: value for name, value in values.items() if value is not None}
        resolved |= self.inputs.resolved()
        resolved["inputs"] = {name: self.inputs.weights.fingerprint(name) for name in inputs}
        resolved["inputs"]["data"] = self.inputs.data_digest.hexdigest()[:16]
        try:
            return train(
                stage,
                training,
                self.inputs.weights.folder / stage.name,
                self.inputs.runtime,
                epoch_M=self.inputs.epoch_M if weighted else None,
                resolved=resolved,
                report=report,
                seconds_left=self.seconds_left.get(stage.name),
            )
        except TrainingStopped:  # all ranks leave at the same step
            if isinstance(stage, ReadsSamples):
                self.inputs.tell_left_out(stage.samples)
            raise
        finally:
            if isinstance(stage, ReadsSamples):
                stage.samples.close()

    def _reached(self, stage: Stage, training: TrainingConfig) -> nn.Module:
        """The averaged weights of the stage's last checkpoint, or those that it would have started from."""
        folder = self.inputs.weights.folder / stage.name
        if last_step(folder) is not None:
            return Run(stage, training, folder, self.inputs.runtime).averages().eval()
        if not self.inputs.weights.start:
            raise FlowTokError(f"stage {stage.name} has not begun; start again to go on")
        return stage.modules.eval()
