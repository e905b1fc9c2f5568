"""What the endpoints take and give, as OpenAPI 3.1 and as a page."""

from __future__ import annotations

import html
import json
from collections.abc import Sequence
from typing import Any

ERRORS = {
    "400": "the request is not as described", "413": "it is too large",
    "415": "a file is of another kind", "422": "an input cannot be read or embedded",
    "429": "too many inputs wait: try again after Retry-After",
}  # fmt: skip


def specification(title: str, modalities: Sequence[str], limits: dict[str, int]) -> dict[str, Any]:
    """The document.

    Args:
        title: of the service.
        modalities: that the model takes.
        limits: ``inputs`` of a request, ``classes`` times prompts, ``k`` results.
    """
    file = {
        "type": "object", "required": ["name", "base64"], "additionalProperties": False,
        "properties": {
            "name": {"type": "string", "description": "its extension chooses the decoder"},
            "base64": {"type": "string", "contentEncoding": "base64"},
        },
    }  # fmt: skip
    together = {
        "type": "object", "additionalProperties": {"oneOf": [{"type": "string"}, file]},
        "description": "of several modalities together (image&text): one input of each",
    }  # fmt: skip
    inputs = {
        "modality": {"type": "string", "enum": list(modalities)},
        "inputs": {
            "type": "array", "minItems": 1, "maxItems": limits["inputs"],
            "items": {"oneOf": [{"type": "string"}, file, together]},
        },
        "dim": {"type": "integer", "minimum": 1, "description": "first numbers alone"},
    }  # fmt: skip
    texts = {"type": "array", "minItems": 1, "items": {"type": "string"}}
    number = {"type": "integer", "minimum": 1, "maximum": limits["k"], "default": 8}
    without = {key: value for key, value in inputs.items() if key != "dim"}
    paths = {
        "/api/embed": _post("Embeddings of inputs, a row for each", inputs),
        "/api/search": _post("The nearest rows of the table, by modality, for each input",
                             {**without, "k": number}),
        "/api/zero_shot": _post("Probabilities of classes, a row for each input",
                                {**without, "classes": texts, "prompts": texts}, ["classes"]),
        "/health": _get("Whether the service answers", "application/json"),
        "/metrics": _get("Counters for Prometheus", "text/plain"),
    }  # fmt: skip
    return {"openapi": "3.1.0", "info": {"title": title, "version": "1"}, "paths": paths}


def _post(summary: str, properties: dict[str, Any], more: Sequence[str] = ()) -> dict[str, Any]:
    schema = {
        "type": "object", "required": ["modality", "inputs", *more], "properties": properties,
        "additionalProperties": False,
    }  # fmt: skip
    answers = {"200": {"description": "JSON", "content": {"application/json": {}}}}
    answers |= {status: {"description": said} for status, said in ERRORS.items()}
    body = {"required": True, "content": {"application/json": {"schema": schema}}}
    return {"post": {"summary": summary, "requestBody": body, "responses": answers}}


def _get(summary: str, kind: str) -> dict[str, Any]:
    return {
        "get": {
            "summary": summary,
            "responses": {"200": {"description": "It does", "content": {kind: {}}}},
        }
    }


def page(spec: dict[str, Any]) -> str:
    """The document as a page without scripts."""
    title = html.escape(spec["info"]["title"])
    parts = [
        f"<!doctype html><html lang=en><meta charset=utf-8><title>{title}</title>",
        f"<h1>{title}</h1><p><a href=/openapi.json>openapi.json</a></p>",
    ]
    for path, methods in spec["paths"].items():
        for method, about in methods.items():
            parts.append(f"<h2>{method.upper()} {path}</h2><p>{html.escape(about['summary'])}</p>")
            if body := about.get("requestBody"):
                schema = body["content"]["application/json"]["schema"]
                parts.append(f"<pre>{html.escape(json.dumps(schema, indent=1))}</pre>")
            listed = "".join(
                f"<li>{status}: {html.escape(answer['description'])}</li>"
                for status, answer in about["responses"].items()
            )
            parts.append(f"<ul>{listed}</ul>")
    return "".join(parts) + "</html>"
