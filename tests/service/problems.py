"""What every error must look like."""

from typing import Any

import httpx

from workers.messages import PROBLEM_BASE


def problem(response: httpx.Response, status: int, slug: str) -> dict[str, Any]:
    """Check that a response is the problem document expected, and return it."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    body: dict[str, Any] = response.json()
    assert body["type"] == PROBLEM_BASE + slug, body
    assert body["status"] == status
    assert body["title"]
    assert body["detail"]
    assert body["request_id"] == response.headers["x-request-id"]
    if status == 503:
        assert int(response.headers["retry-after"]) > 0
    return body
