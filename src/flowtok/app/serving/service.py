"""What the routes share: a model behind its queue, the limits, and requests checked against both.

Knows no HTTP but its errors. The routes are in application.py, the queue in batching.py, the limits in limits.py.
"""

import asyncio
import contextlib
import secrets
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, TypeVar

from PIL import Image

from flowtok.app.serving.batching import Batches, Busy, Closing, Job, Run, Scheduler
from flowtok.app.serving.drawing import Drawing, DrawKey, ReadKey, Tell, compute, warm_up
from flowtok.app.serving.errors import ApiError, internal, of_the_queue, too_late
from flowtok.app.serving.limits import ServingConfig
from flowtok.app.serving.metrics import Metrics
from flowtok.app.serving.schemas import CaptionRequest, GenerationRequest, InputDetails, Usage
from flowtok.app.serving.uploads import encode, open_upload
from flowtok.app.threads import aside
from flowtok.pipeline import FlowTok

Result = TypeVar("Result")

# Threads that open uploads, and threads that pack answers: few, since each may need max_pixels of memory, and apart,
# so that answers do not wait behind uploads.
FILE_THREADS = 2


@dataclass(frozen=True, kw_only=True)
class Order:
    """A request for pictures that the model can draw.

    Attributes:
        jobs: One for each picture; their payloads are `Drawing`s.
        side: Of the pictures, in pixels.
        kind: Their file format.
        compression: Quality of a JPEG or WebP.
        usage: Tokens.
    """

    jobs: list[Job]
    side: int
    kind: str
    compression: int
    usage: Usage

    @property
    def size(self) -> str:
        """As OpenAI writes it."""
        return f"{self.side}x{self.side}"


class Service:
    """A model that many may use at once."""

    def __init__(self, model: FlowTok, config: ServingConfig, batches: Callable[..., Batches] = Scheduler) -> None:
        """Takes over the model: from now on only its scheduler's thread computes with it.

        Args:
            model: What is served.
            config: The limits.
            batches: Makes what stands before the model, of what `Scheduler` is made of.
        """
        self.model, self.config = model, config
        model.batch_size = config.batch_size
        self.name, self.created = model.name, int(time.time())
        self.metrics = Metrics()
        run: Run = lambda key, jobs: compute(model, key, jobs)  # noqa: E731
        self.batches = batches(
            run,
            batch_size=config.batch_size,
            capacity=config.queue,
            gather_seconds=config.gather_seconds,
            observe=lambda key, size, seconds: self.metrics.batch(key.kind, size, seconds),
        )
        self.metrics.watch_queue(lambda: self.batches.waiting)
        self.status: Literal["starting", "ok", "stopping"] = "starting"
        self._opening = 0  # pictures that have a place in the queue but are not open yet
        self._openers = ThreadPoolExecutor(FILE_THREADS, thread_name_prefix="flowtok-open")
        self._packers = ThreadPoolExecutor(FILE_THREADS, thread_name_prefix="flowtok-pack")

    def start(self) -> None:
        """Draws once, so that the first client does not wait for what happens only once."""
        aside(warm_up, self.model)
        self.status = "ok"

    def drain(self) -> None:
        """Says from now on that it stops; what was accepted, and what still comes in, is computed until `stop`."""
        self.status = "stopping"

    def stop(self) -> None:
        """Finishes what was accepted and takes nothing new."""
        self.drain()
        self.batches.close()
        self._openers.shutdown()
        self._packers.shutdown()

    # Checks

    def check_model(self, name: str | None) -> None:
        """Raises ApiError for a model that is not served here."""
        if name is not None and name != self.name:
            raise ApiError(
                404, f"no such model here; this server has {self.name!r}", code="model_not_found", param="model"
            )

    def order(self, asked: GenerationRequest, tell: Tell | None = None) -> Order:
        """Checks a request for pictures.

        Args:
            asked: The request.
            tell: Who is shown the flow of the picture on its way.

        Raises:
            ApiError: What the model cannot draw, or beyond the limits.
        """
        self.check_model(asked.model)
        limits, sampling = self.config, self.model.sampling
        if len(asked.prompt) > limits.max_prompt_characters:
            raise _invalid("prompt", f"has {len(asked.prompt)} characters; at most {limits.max_prompt_characters}")
        (pieces,) = self.model.text_encoder.count([asked.prompt])
        if pieces <= 2:  # start and end
            raise _invalid("prompt", "is blank; say what the picture shall show")
        number = asked.n or 1
        if number > limits.max_pictures:
            raise _invalid("n", f"at most {limits.max_pictures} here, not {number}")
        if asked.stream and number > 1:
            raise _invalid("n", f"a stream has one picture, not {number}")
        if asked.partial_images and not asked.stream:
            raise _invalid("partial_images", "has an effect only with stream")
        kind = asked.output_format or "png"
        if kind == "png" and asked.output_compression not in (None, 100):
            raise _invalid("output_compression", "has no effect on png; choose jpeg or webp")
        steps = self._steps(asked.steps or sampling.num_inference_steps, asked.steps is not None)
        guidance = sampling.guidance_scale if asked.guidance is None else asked.guidance
        seed = secrets.randbelow(2**32) if asked.seed is None else asked.seed
        drawings = [
            Drawing(prompt=asked.prompt, seed=seed + i, partials=asked.partial_images or 0, tell=tell)
            for i in range(number)
        ]
        read = min(pieces, self.model.text_encoder.config.num_tokens) - 2
        made = number * self.model.velocity.config.num_tokens
        return Order(
            jobs=[Job(key=DrawKey(steps, guidance), payload=drawing) for drawing in drawings],
            side=self._side(asked.size),
            kind=kind,
            compression=100 if asked.output_compression is None else asked.output_compression,
            usage=Usage(
                input_tokens=read,
                input_tokens_details=InputDetails(text_tokens=read),
                output_tokens=made,
                total_tokens=read + made,
            ),
        )

    def _steps(self, steps: int, given: bool) -> int:
        if given and steps > self.config.max_steps:
            raise _invalid("steps", f"at most {self.config.max_steps} here, not {steps}")
        return steps

    def _side(self, size: str | None) -> int:
        own = self.model.image_tokenizer.config.image_size
        if size in (None, "auto"):
            return own
        width, height = (int(side) for side in size.split("x"))
        most = max(own, self.config.max_side // own * own)
        if width != height or width % own or width > most:
            raise _invalid(
                "size", f"pictures are {own}x{own}, or a multiple of it up to {most}x{most} (resampled); not {size}"
            )
        return width

    def check_captions(self, asked: CaptionRequest, number: int) -> ReadKey:
        """Checks a request for captions.

        Raises:
            ApiError: The model cannot read, or beyond the limits.
        """
        self.check_model(asked.model)
        if "text_decoder" not in self.model.parts:
            raise ApiError(404, f"model {self.name!r} cannot read pictures", code="model_not_found", param="model")
        if not 1 <= number <= self.config.max_pictures:
            raise _invalid("image", f"1 to {self.config.max_pictures} pictures, not {number}")
        sampling = self.model.sampling
        guidance = sampling.caption_guidance_scale if asked.guidance is None else asked.guidance
        return ReadKey(self._steps(asked.steps or sampling.caption_steps, asked.steps is not None), guidance)

    # Work

    def submit(self, jobs: Sequence[Job]) -> None:
        """Queues jobs, all or none.

        Raises:
            ApiError: 429 where there is no room, 503 when the server stops.
        """
        with self._refusing():
            self.batches.check_room(self._opening + len(jobs))
            self.batches.submit(jobs)

    @contextlib.contextmanager
    def places(self, number: int) -> Iterator[None]:
        """Keeps places in the queue while pictures are opened, so that none is opened for nothing.

        Raises:
            ApiError: As `submit`.
        """
        with self._refusing():
            self.batches.check_room(self._opening + number)
        self._opening += number
        try:
            yield
        finally:
            self._opening -= number

    @contextlib.contextmanager
    def _refusing(self) -> Iterator[None]:
        try:
            yield
        except (Busy, Closing) as error:
            self.metrics.refused.labels(type(error).__name__.lower()).inc()
            raise of_the_queue(error) from error

    def deadline(self) -> float:
        """When a request that is here now must be answered, by the event loop's clock."""
        return asyncio.get_running_loop().time() + self.config.deadline_seconds

    async def by(self, deadline: float, work: Awaitable[Result]) -> Result:
        """The result of some work, which is cancelled at the deadline.

        Raises:
            ApiError: 503 then.
        """
        try:
            async with asyncio.timeout_at(deadline):
                return await work
        except TimeoutError as error:
            self.metrics.refused.labels("toolate").inc()
            raise too_late(self.config.deadline_seconds) from error

    async def wait(self, jobs: Sequence[Job]) -> list[Any]:
        """Waits for jobs; whoever stops waiting drops them.

        Raises:
            ApiError: 500 if the model failed.
        """
        try:
            return await self.batches.wait(jobs)
        except Exception as error:  # of the model; the log has it
            raise internal() from error

    async def open(self, contents: Sequence[bytes]) -> list[Image.Image]:
        """Opens uploaded pictures.

        Raises:
            ApiError: See `open_upload`.
        """
        size, most = self.model.image_tokenizer.config.image_size, self.config.max_pixels
        loop = asyncio.get_running_loop()
        return [
            await loop.run_in_executor(self._openers, partial(open_upload, content, size=size, max_pixels=most))
            for content in contents
        ]

    async def encoded(self, picture: Image.Image, order: Order) -> str:
        """A picture as the order wants it, as base64."""
        return await asyncio.get_running_loop().run_in_executor(
            self._packers, partial(encode, picture, side=order.side, kind=order.kind, compression=order.compression)
        )


def _invalid(param: str, message: str) -> ApiError:
    return ApiError(400, f"{param}: {message}", code="invalid_value", param=param)
