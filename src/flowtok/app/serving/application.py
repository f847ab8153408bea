"""The routes: OpenAI's image generation, captions, models, health and figures.

Each reads a request, has it checked and queued by service.py, and waits for the model as long as somebody waits for the
answer. What every request passes first: gate.py.
"""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Coroutine
from typing import Any, TypeVar

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, Response, StreamingResponse
from prometheus_client import CONTENT_TYPE_LATEST
from pydantic import ValidationError
from starlette.datastructures import FormData, UploadFile
from starlette.exceptions import HTTPException as StarletteError

import flowtok
from flowtok.app.serving import errors
from flowtok.app.serving.batching import Job
from flowtok.app.serving.docs_page import docs_page
from flowtok.app.serving.drawing import ReadKey
from flowtok.app.serving.errors import ApiError
from flowtok.app.serving.gate import Gate
from flowtok.app.serving.schemas import (
    Caption,
    CaptionRequest,
    CaptionsAnswer,
    CompletedEvent,
    ErrorAnswer,
    GenerationRequest,
    Health,
    ImagesAnswer,
    ModelEntry,
    ModelList,
    PartialEvent,
    Picture,
)
from flowtok.app.serving.service import Order, Service
from flowtok.app.serving.uploads import from_base64

Result = TypeVar("Result")

REFUSALS: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorAnswer, "description": description}
    for status, description in {
        400: "A field that cannot be used",
        401: "A missing or wrong API key",
        404: "No such model",
        408: "The body came too slowly",
        413: "Too many bytes or pixels",
        415: "Neither JSON nor a form",
        422: "No whole picture",
        429: "Too much at once; Retry-After says when to come again",
        503: "Not ready in time, or shutting down",
    }.items()
}


def make_application(service: Service, api_key: str | None = None, *, sends_id: bool = True) -> FastAPI:
    """The application around a service, which starts and stops with it.

    Args:
        service: A model behind its queue.
        api_key: Demanded of routes below /v1; none if left out.
        sends_id: Whether answers get their request's id here; not where something before this does it.
    """

    @contextlib.asynccontextmanager
    async def life(app: FastAPI) -> AsyncIterator[None]:
        del app
        await asyncio.to_thread(service.start)
        yield
        await asyncio.to_thread(service.stop)

    app = FastAPI(
        title="flowtok", version=flowtok.__version__, lifespan=life, docs_url=None, redoc_url=None,
        description="Pictures of words and words for pictures, for clients that speak OpenAI's image API.",
    )  # fmt: skip
    app.add_middleware(Gate, service=service, api_key=api_key, sends_id=sends_id)
    _add_errors(app)
    _add_pictures(app, service)
    _add_captions(app, service)
    _add_models(app, service)
    _add_health(app, service)
    return app


def _add_errors(app: FastAPI) -> None:
    """Every error leaves in OpenAI's shape."""

    @app.exception_handler(StarletteError)
    async def refused(request: Request, error: StarletteError) -> Response:
        del request
        return errors.of_http(error).response()

    @app.exception_handler(RequestValidationError)
    async def misshapen(request: Request, error: RequestValidationError) -> Response:
        del request
        return errors.of_fields(error.errors(), list(GenerationRequest.model_fields)).response()


def _refusals(*statuses: int) -> dict[int | str, dict[str, Any]]:
    return {status: REFUSALS[status] for status in statuses}


def _add_pictures(app: FastAPI, service: Service) -> None:
    events = {"schema": {"type": "string", "description": "Events image_generation.partial_image and .completed."}}

    @app.post(
        "/v1/images/generations",
        response_model=ImagesAnswer,
        responses={
            200: {"content": {"text/event-stream": events}},
            **_refusals(400, 401, 404, 408, 413, 422, 429, 503),
        },
        tags=["pictures"],
    )
    async def generate(asked: GenerationRequest, request: Request) -> Any:
        """Draws pictures of a prompt."""
        deadline = service.deadline()
        if asked.stream:
            partials: asyncio.Queue[tuple[int, Any] | None] = asyncio.Queue()
            loop = asyncio.get_running_loop()
            order = service.order(
                asked, tell=lambda number, picture: loop.call_soon_threadsafe(partials.put_nowait, (number, picture))
            )
            service.submit(order.jobs)
            return StreamingResponse(_events(service, order, partials, deadline), media_type="text/event-stream")
        order = service.order(asked)
        service.submit(order.jobs)
        files = await while_wanted(request, service.by(deadline, _drawn(service, order)))
        return ImagesAnswer(
            created=int(time.time()),
            data=[Picture(b64_json=file, seed=job.payload.seed) for file, job in zip(files, order.jobs, strict=True)],
            output_format=order.kind,
            size=order.size,
            usage=order.usage,
        )


async def _drawn(service: Service, order: Order) -> list[str]:
    """The pictures of an order that was submitted."""
    return await asyncio.gather(*(service.encoded(picture, order) for picture in await service.wait(order.jobs)))


async def _events(
    service: Service, order: Order, partials: "asyncio.Queue[tuple[int, Any] | None]", deadline: float
) -> AsyncIterator[str]:
    """Server-sent events: partial pictures as they come, then the picture, or an error."""
    common: dict[str, Any] = {"output_format": order.kind, "size": order.size}
    work = asyncio.ensure_future(service.wait(order.jobs))
    work.add_done_callback(lambda _: partials.put_nowait(None))
    try:
        while (shown := await service.by(deadline, partials.get())) is not None:
            number, picture = shown
            file = await service.by(deadline, service.encoded(picture, order))
            yield _event(PartialEvent(b64_json=file, partial_image_index=number, created_at=int(time.time()), **common))
        (drawn,) = work.result()
        file = await service.by(deadline, service.encoded(drawn, order))
        yield _event(
            CompletedEvent(
                b64_json=file, created_at=int(time.time()), seed=order.jobs[0].payload.seed, usage=order.usage,
                **common,
            )
        )  # fmt: skip
    except ApiError as error:
        yield f"event: error\ndata: {error.text}\n\n"
    finally:
        work.cancel()


def _event(content: PartialEvent | CompletedEvent) -> str:
    return f"event: {content.type}\ndata: {content.model_dump_json()}\n\n"


def _add_captions(app: FastAPI, service: Service) -> None:
    schema = CaptionRequest.model_json_schema()
    fields = {**schema["properties"], "image": {"type": "array", "items": {"type": "string", "format": "binary"}}}
    form = {"type": "object", "properties": fields, "required": ["image"], "additionalProperties": False}

    @app.post(
        "/v1/images/captions",
        response_model=CaptionsAnswer,
        responses=_refusals(400, 401, 404, 408, 413, 415, 422, 429, 503),
        openapi_extra={
            "requestBody": {
                "required": True,
                "content": {"application/json": {"schema": schema}, "multipart/form-data": {"schema": form}},
            }
        },
        tags=["captions"],
    )
    async def caption(request: Request) -> CaptionsAnswer:
        """Says what pictures show."""
        asked, contents = await _read_captions(request, service.config.max_pictures)
        key = service.check_captions(asked, len(contents))
        words = await while_wanted(request, service.by(service.deadline(), _read(service, key, contents)))
        data = [Caption(caption=said) for said in words]
        return CaptionsAnswer(created=int(time.time()), model=service.name, data=data)


async def _read(service: Service, key: ReadKey, contents: list[bytes]) -> list[str]:
    """Words for uploaded pictures; where there is no room for them they are not opened."""
    with service.places(len(contents)):
        pictures = await service.open(contents)
    jobs = [Job(key=key, payload=picture) for picture in pictures]
    service.submit(jobs)
    return await service.wait(jobs)


async def _read_captions(request: Request, most: int) -> tuple[CaptionRequest, list[bytes]]:
    """The fields and the files of a request for captions, JSON or a form.

    Raises:
        ApiError: It cannot be read.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    try:
        if kind == "multipart/form-data":
            async with request.form(max_files=most + 1, max_fields=8) as form:
                return await _form(form)
        if kind == "application/json":
            asked = CaptionRequest.model_validate_json(await request.body())
            texts = [asked.image] if isinstance(asked.image, str) else asked.image
            return asked, [from_base64(text) for text in texts[: most + 1]]
    except ApiError:
        raise
    except StarletteError as error:  # of the form's parser
        raise errors.of_form(error, most) from error
    except ValidationError as error:
        details = error.errors(include_url=False, include_input=False, include_context=False)
        raise errors.of_fields(details, list(CaptionRequest.model_fields)) from error
    except UnicodeError as error:  # of codecs that a form may name and that decode nothing, such as "undefined"
        raise ApiError(400, "the form's charset cannot be used; leave it out", code="invalid_body") from error
    raise ApiError(
        415, "send application/json, or multipart/form-data with files named image", code="unsupported_media_type"
    )


async def _form(form: FormData) -> tuple[CaptionRequest, list[bytes]]:
    files = [value for name, value in form.multi_items() if name in ("image", "image[]")]
    contents = [await file.read() if isinstance(file, UploadFile) else file.encode() for file in files]
    fields = {name: value for name, value in form.multi_items() if name not in ("image", "image[]")}
    if not files:
        raise ApiError(400, "image: give at least one file of this name", code="invalid_value", param="image")
    # A form has only text: "4" is a number in it.
    return CaptionRequest.model_validate({**fields, "image": []}, strict=False), contents


def _add_models(app: FastAPI, service: Service) -> None:
    entry = ModelEntry(id=service.name, created=service.created)

    @app.get("/v1/models", responses=_refusals(401, 429), tags=["models"])
    async def models() -> ModelList:
        """Lists the model that is served."""
        return ModelList(data=[entry])

    @app.get("/v1/models/{name}", responses=_refusals(401, 404, 429), tags=["models"])
    async def model(name: str) -> ModelEntry:
        """The model that is served."""
        service.check_model(name)
        return entry


def _add_health(app: FastAPI, service: Service) -> None:
    @app.get("/healthz", tags=["operation"])
    async def healthy() -> Health:
        """Whether the process answers."""
        return Health(status="ok")

    @app.get("/readyz", responses={503: {"model": Health, "description": "Not now"}}, tags=["operation"])
    async def ready() -> Response:
        """Whether requests would be computed now."""
        status = "stopping" if service.status == "ok" and not service.batches.alive else service.status
        code = 200 if status == "ok" else 503
        return Response(Health(status=status).model_dump_json(), code, media_type="application/json")

    @app.get("/metrics", response_class=Response, tags=["operation"])
    async def metrics() -> Response:
        """Figures for Prometheus."""
        return Response(service.metrics.text(), media_type=CONTENT_TYPE_LATEST)

    @app.get("/docs", response_class=HTMLResponse, include_in_schema=False)
    async def docs(request: Request) -> str:
        """The routes, for people; it asks no other host for anything."""
        return docs_page(app.openapi(), service.name, str(request.base_url).rstrip("/"))


async def while_wanted(request: Request, work: Coroutine[Any, Any, Result]) -> Result:
    """Does some work for as long as the client is there.

    Raises:
        ApiError: The client has gone; the work was cancelled.
    """
    task, gone = asyncio.ensure_future(work), asyncio.ensure_future(_gone(request))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        raise ApiError(499, "the client has gone", code="client_gone")
    finally:
        task.cancel()
        gone.cancel()


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
