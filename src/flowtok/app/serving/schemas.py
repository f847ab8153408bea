"""What clients send and get, in OpenAI's words where there are any.

Knows no route and no model: what depends on the model at hand (its name, its sizes) is checked in service.py.
"""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

MOST_PICTURES = 10
LARGEST_SEED = 2**53 - 1 - MOST_PICTURES  # JSON's numbers are exact up to here in every language

Steps = Annotated[int | None, Field(ge=1, le=1000, description="Steps of the solver; the model's own if left out.")]
Guidance = Annotated[
    float | None,
    Field(ge=0, le=100, allow_inf_nan=False, description="Guidance scale; 1 is none. The model's own if left out."),
]
ModelName = Annotated[str | None, Field(description="The model that is served, or left out.")]


class _Strict(BaseModel):
    """A body without unknown fields, whose numbers are numbers."""

    model_config = ConfigDict(extra="forbid", strict=True)


class GenerationRequest(_Strict):
    """What to draw. Fields that change nothing here are taken only with their neutral values."""

    prompt: str = Field(min_length=1, description="What the pictures shall show.")
    model: ModelName = None
    n: int | None = Field(default=None, ge=1, le=MOST_PICTURES, description="Pictures; 1 if left out.")
    size: str | None = Field(
        default=None,
        pattern=r"^(auto|[1-9][0-9]{0,3}x[1-9][0-9]{0,3})$",
        description="auto (the model's own), or a square that is a multiple of it (resampled), such as 512x512.",
    )
    output_format: Literal["png", "jpeg", "webp"] | None = Field(default=None, description="png if left out.")
    output_compression: int | None = Field(
        default=None, ge=0, le=100, description="Quality of a jpeg or webp; 100 if left out."
    )
    response_format: Literal["b64_json"] | None = Field(default=None, description="Pictures come in the answer.")
    seed: int | None = Field(
        default=None,
        ge=0,
        le=LARGEST_SEED,
        description="Of the first picture; the others have the next ones. Random if left out.",
    )
    steps: Steps = None
    guidance: Guidance = None
    stream: bool | None = Field(default=None, description="Server-sent events instead of one answer; n must be 1.")
    partial_images: int | None = Field(
        default=None, ge=0, le=3, description="With stream: how often the flow is shown on its way."
    )
    quality: Literal["auto", "standard"] | None = None
    background: Literal["auto", "opaque"] | None = None
    moderation: Literal["auto", "low"] | None = None
    user: str | None = Field(default=None, description="Taken and not used.")
    safety_identifier: str | None = Field(default=None, description="Taken and not used.")


class CaptionRequest(_Strict):
    """Pictures to be read, as base64 or data URLs."""

    image: str | list[str] = Field(description="One picture or several, each base64 or a data URL.")
    model: ModelName = None
    steps: Steps = None
    guidance: Guidance = None


class InputDetails(BaseModel):
    """What the input consists of."""

    text_tokens: int
    image_tokens: int = 0


class Usage(BaseModel):
    """Tokens: word pieces of the prompt, and the tokens that the flow ends in."""

    input_tokens: int
    input_tokens_details: InputDetails
    output_tokens: int
    total_tokens: int


class Picture(BaseModel):
    """A picture as base64, and the seed that draws it again."""

    b64_json: str
    seed: int


class ImagesAnswer(BaseModel):
    """Pictures."""

    created: int = Field(description="Unix time.")
    data: list[Picture]
    background: Literal["opaque"] = "opaque"
    output_format: str
    size: str
    usage: Usage


class PartialEvent(BaseModel):
    """The flow on its way."""

    type: Literal["image_generation.partial_image"] = "image_generation.partial_image"
    b64_json: str
    partial_image_index: int
    created_at: int
    background: Literal["opaque"] = "opaque"
    output_format: str
    quality: Literal["auto"] = "auto"
    size: str


class CompletedEvent(BaseModel):
    """The picture."""

    type: Literal["image_generation.completed"] = "image_generation.completed"
    b64_json: str
    created_at: int
    background: Literal["opaque"] = "opaque"
    output_format: str
    quality: Literal["auto"] = "auto"
    size: str
    seed: int
    usage: Usage


class Caption(BaseModel):
    """The words for a picture."""

    caption: str


class CaptionsAnswer(BaseModel):
    """The words for each picture, in their order."""

    created: int = Field(description="Unix time.")
    model: str
    data: list[Caption]


class ModelEntry(BaseModel):
    """A model that is served."""

    id: str
    object: Literal["model"] = "model"
    created: int = Field(description="Unix time at which the server opened it.")
    owned_by: Literal["flowtok"] = "flowtok"


class ModelList(BaseModel):
    """The models that are served."""

    object: Literal["list"] = "list"
    data: list[ModelEntry]


class Health(BaseModel):
    """How the server is."""

    status: Literal["ok", "starting", "stopping"]


class ErrorDetails(BaseModel):
    """What is wrong."""

    message: str
    type: str
    param: str | None
    code: str


class ErrorAnswer(BaseModel):
    """An error."""

    error: ErrorDetails
