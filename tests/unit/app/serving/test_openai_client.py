"""The openai package, as it is, against a real server."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator

import numpy as np
import openai
import pytest
from PIL import Image
from serving_server import Running, running

from flowtok.pipeline import FlowTok


@pytest.fixture(scope="module")
def server(tiny: FlowTok) -> Iterator[Running]:
    with running(tiny, batch_size=2, api_key="secret") as run:
        yield run
    tiny.batch_size = 1


@pytest.fixture
def client(server: Running) -> openai.OpenAI:
    return openai.OpenAI(base_url=server.base_url, api_key="secret", max_retries=0)


def opened(text: str | None) -> Image.Image:
    assert text is not None
    return Image.open(io.BytesIO(base64.b64decode(text)))


def same(a: Image.Image, b: Image.Image) -> bool:
    return a.size == b.size and bool((np.asarray(a) == np.asarray(b)).all())


def test_pictures_are_those_of_generate(client: openai.OpenAI, tiny: FlowTok) -> None:
    """Seed, steps and guidance that did not arrive would give other pictures than the command line."""
    answer = client.images.generate(
        model="tiny", prompt="a red cat", n=3, extra_body={"seed": 7, "steps": 3, "guidance": 1.5}
    )
    assert answer.data is not None and answer.size == "16x16" and answer.output_format == "png"
    expected = tiny.generate("a red cat", 3, 1.5, seed=7, num_images_per_prompt=3)
    assert all(same(opened(got.b64_json), want) for got, want in zip(answer.data, expected, strict=True))
    assert answer.usage is not None and answer.usage.input_tokens == 3 and answer.usage.output_tokens == 24
    assert answer._request_id


def test_a_picture_without_a_seed_can_be_drawn_again(client: openai.OpenAI) -> None:
    first, second = (client.images.generate(prompt="king").data for _ in range(2))
    assert first and second and first[0].b64_json != second[0].b64_json
    seed = first[0].seed  # type: ignore[attr-defined]
    again = client.images.generate(prompt="king", extra_body={"seed": seed}).data
    assert again and again[0].b64_json == first[0].b64_json


@pytest.mark.parametrize("kind", ["jpeg", "webp"])
def test_formats_and_sizes(client: openai.OpenAI, kind: str) -> None:
    answer = client.images.generate(
        prompt="king", size="64x64" if kind == "webp" else "auto", output_format=kind, output_compression=80,
        response_format="b64_json",
    )  # type: ignore[call-overload]  # fmt: skip
    picture = opened(answer.data[0].b64_json)
    assert picture.format == kind.upper() and picture.size == ((64, 64) if kind == "webp" else (16, 16))


def test_a_stream_shows_the_flow_and_ends_in_the_picture(client: openai.OpenAI, tiny: FlowTok) -> None:
    """Partial pictures that are not the flow itself would be a show; they stand at even times, here 1/3 and 2/3."""
    stream = client.images.generate(
        prompt="a red cat", stream=True, partial_images=2, extra_body={"seed": 7, "steps": 3}
    )
    events = list(stream)
    assert [event.type for event in events] == ["image_generation.partial_image"] * 2 + ["image_generation.completed"]
    assert [event.partial_image_index for event in events[:2]] == [0, 1]  # type: ignore[union-attr]
    expected = tiny.flow_frames("a red cat", 4, num_inference_steps=3, seed=7)[1:]
    assert all(same(opened(event.b64_json), want) for event, want in zip(events, expected, strict=True))


def test_models_are_listed(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["tiny"]
    assert client.models.retrieve("tiny").object == "model"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("dall-e-9")


def test_errors_are_those_that_the_client_knows(client: openai.OpenAI, server: Running) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        client.images.generate(prompt="king", size="17x17")
    assert refused.value.param == "size" and refused.value.code == "invalid_value"
    assert "16x16" in refused.value.message and refused.value.request_id
    with pytest.raises(openai.NotFoundError) as unknown:
        client.images.generate(prompt="king", model="dall-e-9")
    assert unknown.value.code == "model_not_found"
    with pytest.raises(openai.AuthenticationError):
        openai.OpenAI(base_url=server.base_url, api_key="guessed", max_retries=0).models.list()
