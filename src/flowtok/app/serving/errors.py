"""Errors as OpenAI's clients understand them; they hold no path, no stack trace and nothing of a prompt.

Knows no route. Who raises them: application.py, gate.py (before a route is reached) and uploads.py.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from fastapi import HTTPException
from fastapi.responses import Response
from starlette.exceptions import HTTPException as StarletteError

from flowtok.app.serving.batching import Busy, Closing
from flowtok.config import did_you_mean


class ApiError(HTTPException):
    """An answer that is an error.

    Attributes:
        param: The field at fault.
        code: A short name for programs.
        kind: OpenAI's class of errors.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str,
        param: str | None = None,
        kind: str = "invalid_request_error",
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(status, message, headers=dict(headers or {}))
        self.param, self.code, self.kind = param, code, kind

    @property
    def text(self) -> str:
        """The error as JSON. It is ASCII: what a client sent as a name may be no proper text."""
        said = {"message": self.detail, "type": self.kind, "param": self.param, "code": self.code}
        return json.dumps({"error": said})

    def response(self) -> Response:
        """The whole answer."""
        return Response(self.text, self.status_code, headers=self.headers, media_type="application/json")


def busy(seconds: int) -> ApiError:
    """Too many requests at once."""
    return ApiError(
        429,
        f"too much is asked at once; try again in {seconds} s",
        code="rate_limit_exceeded",
        kind="rate_limit_error",
        headers={"Retry-After": str(seconds)},
    )


def of_the_queue(error: Busy | Closing) -> ApiError:
    """What the queue refused."""
    return (
        busy(error.retry_after) if isinstance(error, Busy) else _later("shutting_down", "the server is shutting down")
    )


def too_late(deadline_seconds: float) -> ApiError:
    """What was not done in time."""
    return _later("deadline_exceeded", f"not ready within {deadline_seconds:g} s")


def _later(code: str, message: str) -> ApiError:
    return ApiError(503, f"{message}; try again", code=code, kind="server_error", headers={"Retry-After": "5"})


def internal() -> ApiError:
    """Something that should not have happened; the log has it, by the request's id."""
    return ApiError(
        500, "the server failed at this request; its log says why", code="internal_error", kind="server_error"
    )


def of_http(error: Exception) -> ApiError:
    """What the web framework refuses by itself: unknown routes and methods, bodies that it cannot read."""
    if isinstance(error, ApiError):
        return error
    status = getattr(error, "status_code", 400)
    messages = {404: "there is no such route; /docs lists them", 405: "this route does not take this method"}
    codes = {404: "not_found", 405: "method_not_allowed", 413: "request_too_large"}
    return ApiError(
        status,
        messages.get(status, "the body cannot be read; send JSON, or a form where the route takes one"),
        code=codes.get(status, "invalid_body"),
        headers=getattr(error, "headers", None),
    )


def of_form(error: StarletteError, most: int) -> ApiError:
    """A form that its parser refuses; it says why in a sentence of its own, which holds nothing of the form.

    Args:
        error: The refusal.
        most: Pictures that a request may have.
    """
    if error.detail.startswith("Too many files"):
        return ApiError(400, f"image: 1 to {most} pictures, not more", code="invalid_value", param="image")
    causes = {
        "Too many fields": "it has too many fields",
        "Part exceeded": "a field is too long; what is a file needs a filename",
        "Missing boundary": "its Content-Type names no boundary",
    }
    cause = next((said for start, said in causes.items() if error.detail.startswith(start)), "it is damaged")
    return ApiError(400, f"the form cannot be read: {cause}", code="invalid_body")


def of_fields(errors: Sequence[Mapping[str, Any]], known: Sequence[str]) -> ApiError:
    """The first field that pydantic refuses, in a line; what was sent is not repeated.

    Args:
        errors: As pydantic lists them.
        known: Fields that the request may have.
    """
    error = errors[0]
    place = [part for part in error["loc"] if part != "body"]
    if error["type"] == "json_invalid":
        return ApiError(400, "the body is not JSON", code="invalid_json")
    name = str(place[0])[:40] if place else None
    if error["type"] == "extra_forbidden" and name is not None:
        hint = did_you_mean(name, known)
        return ApiError(400, f"unknown field {name!r}; {hint}", code="unknown_parameter", param=name)
    message = str(error["msg"]).removeprefix("Value error, ")
    said = f"{name}: {message}" if name is not None else f"the body cannot be used: {message}"
    return ApiError(400, said, code="invalid_value", param=name)
