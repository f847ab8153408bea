"""The encoding of encoding.py on a cluster, by Ray Data: every shard is a row that some machine maps to "made".

Needs the extra flowtok[ray]. Knows nothing of pictures; all machines must see the same folders.
"""

import importlib
import importlib.util
import logging
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from flowtok.data.latent_folders import ShardRecord
from flowtok.data.refusals import Tally
from flowtok.errors import DataError, FlowTokError
from flowtok.train.encoding import EncodingJob, Report
from flowtok.train.runtime import Runtime

# Ray's own messages, which the user can do nothing about; its reports home, which nobody asked for.
_QUIET = {"RAY_BACKEND_LOG_LEVEL": "fatal", "RAY_USAGE_STATS_ENABLED": "0"}


def encode_over_ray(
    job: EncodingJob, numbers: Sequence[int], *, num_parts: int, num_actors: int | None, report: Report | None = None
) -> None:
    """Makes shards on a Ray cluster: the one that RAY_ADDRESS names, or one of this machine alone.

    Args:
        job: What is encoded; its folder is claimed already.
        numbers: The shards that are to be made.
        num_parts: Parts of the source.
        num_actors: Processes that encode; one for each GPU, or for every two processors, if None.
        report: Called with the number of samples seen so far.

    Raises:
        DataError: Ray is not installed, too much was refused, or a machine could not make a shard.
        FlowTokError: The cluster itself failed.
    """
    require_ray()
    if not numbers:
        return
    for name, quiet in _QUIET.items():
        os.environ.setdefault(name, quiet)
    ray: Any = importlib.import_module("ray")
    data: Any = importlib.import_module("ray.data")
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    if not ray.is_initialized():
        own = {} if "RAY_ADDRESS" in os.environ else {"include_dashboard": False}
        ray.init(logging_level="ERROR", log_to_driver=False, **own)
    resources = ray.cluster_resources()
    gpus, cpus = int(resources.get("GPU", 0)), int(resources.get("CPU", 1))
    actors = min(num_actors or gpus or max(1, cpus // 2), len(numbers))
    data.DataContext.get_current().enable_progress_bars = False
    rows = data.from_items([{"shard": number} for number in numbers], override_num_blocks=len(numbers))
    made = rows.map(
        _Maker,
        fn_constructor_args=(job, Path.cwd(), gpus > 0),
        compute=data.ActorPoolStrategy(size=actors),
        num_gpus=1 if gpus else None,
    )
    seen = Tally()
    try:
        for row in made.iter_rows():
            if row["error"]:
                raise DataError(row["error"])
            record = ShardRecord.read(job.folder, int(row["shard"]))
            if record is None:
                raise DataError(
                    f"shard {row['shard']} was made on {row['machine']} and is not in {job.folder} here: all machines "
                    "must see the same folder"
                )
            seen.add(record.tally)
            seen.check(job.config.max_refused, num_parts=num_parts, at_end=False)
            if report is not None:
                report(seen.seen)
    except ray.exceptions.RayError as error:
        said = (str(error).strip() or type(error).__name__).splitlines()[-1]
        raise FlowTokError(
            f"the Ray cluster failed: {said}; started again, the command makes what is missing"
        ) from error


def require_ray() -> None:
    """Raises DataError where Ray Data is not installed."""
    if importlib.util.find_spec("ray") is None or importlib.util.find_spec("pyarrow") is None:
        raise DataError("--engine ray needs Ray, which is not installed; run: pip install 'flowtok[ray]'")


class _Maker:
    """What an actor is: the opened job, which makes one shard after another.

    It refuses no shard for its share of broken samples: that is judged over all shards, by who started the actors.
    """

    def __init__(self, job: EncodingJob, place: Path, on_gpu: bool) -> None:
        if place.is_dir():  # paths may be relative to where the command was given
            os.chdir(place)
        self.error: str | None = None
        try:
            job = replace(job, config=replace(job.config, max_refused=1.0))
            self.encoding = job.open(Runtime.start(device="cuda" if on_gpu else "cpu"))
        except FlowTokError as error:
            self.error = str(error)

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        """Makes one shard. An error comes back in words: Ray would wrap an exception in its own traceback."""
        number = int(row["shard"])
        if self.error is None:
            try:
                self.encoding.make([number])
            except FlowTokError as error:
                return {"shard": number, "machine": os.uname().nodename, "error": str(error)}
        return {"shard": number, "machine": os.uname().nodename, "error": self.error or ""}
