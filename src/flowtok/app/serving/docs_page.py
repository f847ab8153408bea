"""The routes for people: one HTML page made of the OpenAPI description, without scripts and without any other host.

Knows nothing but that description; programs read it at /openapi.json.
"""

from collections.abc import Mapping
from html import escape
from typing import Any

_HEAD = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>flowtok API</title><style>
body { font: 16px/1.5 system-ui, sans-serif; max-width: 50rem; margin: 2rem auto; padding: 0 1rem }
table { border-collapse: collapse; width: 100% } td, th { border-top: 1px solid #ccc; padding: .25rem .5rem;
text-align: left; vertical-align: top } pre { background: #f4f4f4; padding: 1rem; overflow-x: auto }
h2 { margin-top: 2.5rem; overflow-wrap: anywhere }
</style></head><body>"""


def docs_page(description: Mapping[str, Any], model: str, address: str) -> str:
    """The page.

    Args:
        description: What is served at /openapi.json.
        model: The model that is served, for the examples.
        address: Where it is served, for the examples, without a slash at its end.
    """
    parts = [
        _HEAD,
        "<h1>flowtok</h1>",
        f"<p>{escape(description['info']['description'])}</p>",
        _examples(model, address),
    ]
    for path, methods in description["paths"].items():
        for method, route in methods.items():
            parts += [f"<h2>{method.upper()} {escape(path)}</h2>", f"<p>{escape(route.get('description', ''))}</p>"]
            for kind, content in route.get("requestBody", {}).get("content", {}).items():
                parts.append(f"<h3>{escape(kind)}</h3>{_fields(content['schema'], description)}")
            answers = [
                f"<tr><td>{status}</td><td>{escape(answer.get('description', ''))}</td></tr>"
                for status, answer in route["responses"].items()
            ]
            parts.append(f"<table><tr><th>status</th><th>answer</th></tr>{''.join(answers)}</table>")
    parts.append('<p>For programs: <a href="openapi.json">openapi.json</a></p></body></html>')
    return "\n".join(parts)


def _examples(model: str, address: str) -> str:
    example = f"""from openai import OpenAI

client = OpenAI(base_url="{address}/v1", api_key="none")
answer = client.images.generate(model={model!r}, prompt="a red heart", extra_body={{"seed": 7}})
picture = answer.data[0].b64_json  # a PNG file in base64"""
    curl = f"curl {address}/v1/images/captions -F image=@picture.png"
    return f"<pre>{escape(example)}</pre><pre>{escape(curl)}</pre>"


def _fields(schema: Mapping[str, Any], description: Mapping[str, Any]) -> str:
    if "$ref" in schema:
        schema = description["components"]["schemas"][schema["$ref"].rpartition("/")[2]]
    rows = []
    for name, field in schema.get("properties", {}).items():
        needed = " (required)" if name in schema.get("required", []) else ""
        row = (f"<code>{escape(name)}</code>{needed}", escape(_kind(field)), escape(field.get("description", "")))
        rows.append("<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>")
    return f"<table><tr><th>field</th><th>values</th><th>what it is</th></tr>{''.join(rows)}</table>"


def _kind(field: Mapping[str, Any]) -> str:
    """The values of a field in words; null, which means left out, is not mentioned."""
    if "anyOf" in field:
        return " or ".join(_kind(one) for one in field["anyOf"] if one.get("type") != "null")
    if "enum" in field:
        return ", ".join(map(str, field["enum"]))
    if "const" in field:
        return str(field["const"])
    if field.get("type") == "array":
        return f"list of {_kind(field['items'])}"
    bounds = [f"{word} {field[key]:,.0f}" for key, word in (("minimum", "from"), ("maximum", "to")) if key in field]
    return " ".join([field.get("format", field.get("type", "")), *bounds])
