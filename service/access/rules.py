"""Which scope each endpoint asks for; what stands in neither table is for `admin` alone."""

import re
from collections.abc import Collection, Mapping

from starlette.routing import compile_path

from service.access.keys import Scope

OPEN: frozenset[tuple[str, str]] = frozenset(
    {
        ("GET", "/livez"),  # probes carry no key, and neither tells more than whether the service works
        ("GET", "/readyz"),
        ("GET", "/"),
        ("GET", "/console.css"),
        ("GET", "/console.js"),
        ("GET", "/docs"),
        ("HEAD", "/docs"),
        ("GET", "/openapi.json"),
        ("HEAD", "/openapi.json"),
        ("PUT", "/session"),  # looks at the key itself
        ("DELETE", "/session"),
    }
)
SCOPED: Mapping[tuple[str, str], Collection[Scope]] = {
    ("POST", "/generate"): {"generate"},
    ("GET", "/jobs"): {"read"},
    ("GET", "/jobs/{job_id}"): {"read"},
    ("GET", "/jobs/{job_id}/events"): {"read"},
    ("POST", "/jobs/{job_id}/cancel"): {"generate", "similarity"},
    ("GET", "/models"): {"read"},
    ("POST", "/models"): {"generate", "similarity"},
    ("GET", "/models/{model_id}"): {"read"},
    ("DELETE", "/models/{model_id}"): {"generate", "similarity"},
    ("GET", "/models/{model_id}/weights"): {"read"},
    ("HEAD", "/models/{model_id}/weights"): {"read"},
    ("GET", "/models/{model_id}/onnx"): {"read"},
    ("HEAD", "/models/{model_id}/onnx"): {"read"},
    ("GET", "/models/{model_id}/neighbours"): {"similarity"},
    ("GET", "/models/{model_id}/properties"): {"similarity"},
    ("POST", "/similarity"): {"similarity"},
    ("POST", "/similarity/matrix"): {"similarity"},
    ("GET", "/targets"): {"read"},
    ("GET", "/bundles"): {"read"},
    ("GET", "/metrics"): {"metrics"},
}
_OPEN_PATHS = {path for _, path in OPEN}
_PATTERNS: tuple[tuple[str, re.Pattern[str], Collection[Scope]], ...] = tuple(
    (method, compile_path(path)[0], scopes) for (method, path), scopes in SCOPED.items()
)


def is_open(method: str, path: str) -> bool:
    """Whether anybody may ask, without a key: also for a method that such a path does not have, which answers 405."""
    return (method, path) in OPEN or (path in _OPEN_PATHS and (method, path) not in SCOPED)


def template(path: str) -> str:
    """Return the path as the table has it, for the metrics of requests that get no further."""
    matching = (key[1] for key, (_, pattern, _) in zip(SCOPED, _PATTERNS, strict=True) if pattern.match(path))
    return next(matching, "unmatched")


def asked(method: str, path: str) -> Collection[Scope]:
    """Return the scopes of which one is needed."""
    for known, pattern, scopes in _PATTERNS:
        if known == method and pattern.match(path):
            return scopes
    return {"admin"}
