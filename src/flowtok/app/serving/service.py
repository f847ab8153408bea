"""What the routes share: a model behind its queue, the limits, and requests checked against both.

Knows no HTTP but its errors. The routes are in application.py, the queue in batching.py.
"""

import asyncio
import secrets
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from PIL import Image

from flowtok.app.serving.batching import Batches, Busy, Closing, Job, Run, Scheduler, TooLate
from flowtok.app.serving.drawing import Drawing, DrawKey, ReadKey, Tell, compute, warm_up
from flowtok.app.serving.errors import ApiError, internal, of_the_queue
from flowtok.app.serving.metrics import Metrics
from flowtok.app.serving.schemas import MOST_PICTURES, CaptionRequest, GenerationRequest, InputDetails, Usage
from flowtok.app.serving.uploads import encode, open_upload
from flowtok.errors import FlowTokError
from flowtok.pipeline import FlowTok
from flowtok.text.prompts import LONGEST_PROMPT

LONGEST_SECONDS = 86_400


@dataclass(frozen=True, kw_only=True)
class ServingConfig:
    """The limits of a server.

    Attributes:
        batch_size: Pictures or captions computed together. Batches are filled up to this size, so that a seed gives the
            same picture alone and in company: for servers that are seldom busy 1 is the fastest.
        queue: Pictures and captions that may wait; more are refused with 429.
        gather_seconds: How long an idle model waits for company.
        deadline_seconds: What is not ready by then is given up, with 503.
        upload_seconds: Time to send a request's body.
        max_requests: Requests being read or answered at once; more are refused with 429.
        max_body_bytes: Of a request.
        max_pixels: Of an uploaded picture when it is decoded.
        max_pictures: In one request.
        max_prompt_characters: Of a prompt.
        max_steps: Of the solver.
        max_side: In pixels of a resampled picture.
    """

    batch_size: int = 4
    queue: int = 32
    gather_seconds: float = 0.005
    deadline_seconds: float = 60.0
    upload_seconds: float = 30.0
    max_requests: int = 128
    max_body_bytes: int = 10_000_000
    max_pixels: int = 20_000_000
    max_pictures: int = MOST_PICTURES
    max_prompt_characters: int = 1_000
    max_steps: int = 100
    max_side: int = 1_024

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if isinstance(value, float) and not 0 <= value <= LONGEST_SECONDS:
                raise FlowTokError(f"{name} must be 0 to {LONGEST_SECONDS} seconds, not {value}")
            if isinstance(value, int) and value < 1:
                raise FlowTokError(f"{name} must be at least 1, not {value}")
        if self.max_pictures > MOST_PICTURES:
            raise FlowTokError(f"max_pictures can be at most {MOST_PICTURES}, not {self.max_pictures}")
        if self.queue < self.max_pictures:
            raise FlowTokError(
                f"a queue of {self.queue} has no room for a request of max_pictures {self.max_pictures}; "
                "make the one larger or the other smaller"
            )
        if self.max_prompt_characters > LONGEST_PROMPT:
            raise FlowTokError(
                f"max_prompt_characters can be at most {LONGEST_PROMPT}, not {self.max_prompt_characters}"
            )


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
        self.status = "starting"
        # Files are packed and unpacked beside the model, few at a time: each may need max_pixels of memory.
        self._files = ThreadPoolExecutor(2, thread_name_prefix="flowtok-files")

    def start(self) -> None:
        """Draws once, so that the first client does not wait for what happens only once."""
        warm_up(self.model)
        self.status = "ok"

    def stop(self) -> None:
        """Finishes what was accepted."""
        self.status = "stopping"
        self.batches.close()
        self._files.shutdown()

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
        try:
            self.batches.submit(jobs)
        except (Busy, Closing) as error:
            self.metrics.refused.labels(type(error).__name__.lower()).inc()
            raise of_the_queue(error, self.config.deadline_seconds) from error

    async def wait(self, jobs: Sequence[Job]) -> list[Any]:
        """Waits for jobs; whoever stops waiting drops them.

        Raises:
            ApiError: 503 after the deadline, 500 if the model failed.
        """
        try:
            return await self.batches.wait(jobs, self.config.deadline_seconds)
        except TooLate as error:
            self.metrics.refused.labels("toolate").inc()
            raise of_the_queue(error, self.config.deadline_seconds) from error
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
            await loop.run_in_executor(self._files, lambda: open_upload(content, size=size, max_pixels=most))  # noqa: B023
            for content in contents
        ]

    async def encoded(self, picture: Image.Image, order: Order) -> str:
        """A picture as the order wants it, as base64."""
        return await asyncio.get_running_loop().run_in_executor(
            self._files, lambda: encode(picture, side=order.side, kind=order.kind, compression=order.compression)
        )


def _invalid(param: str, message: str) -> ApiError:
    return ApiError(400, f"{param}: {message}", code="invalid_value", param=param)
