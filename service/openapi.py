"""Completes the OpenAPI document with what FastAPI cannot see: problems, keys, links, bodies read by hand."""

from collections.abc import Sequence
from typing import Any, Literal

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from service.access import rules
from service.errors import Problem, problems

Body = tuple[type[BaseModel], Literal["validation", "serialization"]]

_BY_EVERY_KEY = problems(401, 403, 429)
_JOB, _MODEL = {"job_id": "$response.body#/id"}, {"model_id": "$response.body#/id"}
_RESULT = {"model_id": "$response.body#/result/models/0/id"}
# (method, path, status) of an answer ► (name, method, path of where it leads, parameters)
_LINKS: tuple[tuple[tuple[str, str, str], tuple[tuple[str, str, str, dict[str, str]], ...]], ...] = tuple(
    ((method, path, status), links)
    for (method, path), statuses, links in (
        (
            ("post", "/generate"),
            ("200", "202"),
            (
                ("job", "get", "/jobs/{job_id}", _JOB),
                ("events", "get", "/jobs/{job_id}/events", _JOB),
                ("cancel", "post", "/jobs/{job_id}/cancel", _JOB),
            ),
        ),
        (
            ("get", "/jobs/{job_id}"),
            ("200",),
            (
                ("cancel", "post", "/jobs/{job_id}/cancel", _JOB),
                ("card", "get", "/models/{model_id}", _RESULT),
                ("weights", "get", "/models/{model_id}/weights", _RESULT),
                ("onnx", "get", "/models/{model_id}/onnx", _RESULT),
            ),
        ),
        (
            ("get", "/jobs"),
            ("200",),
            (
                ("next", "get", "/jobs", {"cursor": "$response.body#/next_cursor"}),
                ("job", "get", "/jobs/{job_id}", {"job_id": "$response.body#/jobs/0/id"}),
            ),
        ),
        (
            ("get", "/models"),
            ("200",),
            (
                ("next", "get", "/models", {"cursor": "$response.body#/next_cursor"}),
                ("card", "get", "/models/{model_id}", {"model_id": "$response.body#/models/0/id"}),
            ),
        ),
        (
            ("get", "/models/{model_id}"),
            ("200",),
            (
                ("weights", "get", "/models/{model_id}/weights", _MODEL),
                ("onnx", "get", "/models/{model_id}/onnx", _MODEL),
                ("delete", "delete", "/models/{model_id}", _MODEL),
            ),
        ),
    )
    for status in statuses
)


def document(app: FastAPI, bodies: Sequence[type[BaseModel]]) -> None:
    """Make the app's document complete; `bodies` are models of bodies that endpoints read by themselves."""

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            app.openapi_schema = _complete(app, bodies)
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]


def _complete(app: FastAPI, bodies: Sequence[type[BaseModel]]) -> dict[str, Any]:
    schema = get_openapi(
        title=app.title,
        version=app.version,
        description=app.description,
        license_info=app.license_info,
        routes=app.routes,
    )
    wanted: list[Body] = [(Problem, "serialization"), *((body, "validation") for body in bodies)]
    _, unseen = models_json_schema(wanted, ref_template="#/components/schemas/{model}")
    components = schema["components"]
    components["schemas"] |= unseen["$defs"]
    components["securitySchemes"] = {
        "key": {"type": "http", "scheme": "bearer", "description": "An API key, `lw_…`; see docs/security.md."}
    }
    for path, operations in schema["paths"].items():
        for method, operation in operations.items():
            # FastAPI adds a 422 of its own to whatever has a parameter; where one can be wrong, ours stands there.
            if "application/json" in operation["responses"].get("422", {}).get("content", {}):
                del operation["responses"]["422"]
            if not rules.is_open(method.upper(), path):
                scopes = sorted(rules.asked(method.upper(), path))
                operation["security"] = [{"key": []}]
                operation["x-scopes"] = scopes
                operation["responses"] |= {str(status): response for status, response in _BY_EVERY_KEY.items()}
    for name in ("HTTPValidationError", "ValidationError"):
        components["schemas"].pop(name, None)
    for (method, path, status), links in _LINKS:
        schema["paths"][path][method]["responses"][status]["links"] = {
            name: {"operationId": schema["paths"][to][by]["operationId"], "parameters": parameters}
            for name, by, to, parameters in links
        }
    return schema
