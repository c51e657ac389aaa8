"""A small HTTP client of the service, for the command line and for benchmarks.

ClientError
├── Unreachable      no answer, or none within the patience
├── Refused          the server answered with a problem document
├── JobEnded         the job failed, was canceled or expired
└── WrongBytes       a download does not have the hash its card declares
"""

import hashlib
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Self

import httpx

Job = dict[str, Any]
TERMINAL = frozenset({"succeeded", "failed", "canceled", "expired"})
POLL_SECONDS = (0.05, 0.5)  # the first pause between two looks at a job, and the longest
_BUSY = frozenset({429, 503})


class ClientError(Exception):
    """Anything that kept a call from succeeding; its text is fit for a terminal."""


class Unreachable(ClientError):
    """The server gave no answer."""


class Refused(ClientError):
    """The server refused; `problem` is its problem document."""

    def __init__(self, status: int, problem: Mapping[str, Any]) -> None:
        self.status = status
        self.problem = problem
        text = str(problem.get("detail") or problem.get("title") or "no detail was given")
        items = "".join(f"\n  {e.get('pointer', '')}: {e.get('detail', '')}" for e in problem.get("errors") or ())
        super().__init__(f"{text} (HTTP {status}){items}")


class JobEnded(ClientError):
    """The job ended without a result; `job` is its last state."""

    def __init__(self, job: Job) -> None:
        self.job = job
        error = job.get("error") or {}
        super().__init__(f"the job {job['status']}: {error.get('detail', 'no detail was given')}")


class WrongBytes(ClientError):
    """A download differs from what its card declares."""


class LoomweightClient:
    """Talks to one server. Use it as a context manager, or call `close`.

    `patience` is how many seconds a call goes on trying while the server is away or answers 429 or 503.
    """

    def __init__(
        self,
        server: str,
        *,
        token: str | None = None,
        timeout: float = 30.0,
        patience: float = 10.0,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        headers = {"authorization": f"Bearer {token}"} if token else {}
        self._http = httpx.Client(
            base_url=server, headers=headers, timeout=timeout, transport=transport, follow_redirects=True
        )
        self._patience = patience

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def generate_dataset(self, name: str, data: bytes, options: Mapping[str, Any]) -> Job:
        """Ask for weights from one dataset file (zip, parquet or npz); returns the accepted job."""
        return self._generate([("dataset", (name, data, "application/octet-stream"))], options)

    def generate_samples(self, images: Sequence[bytes], labels: Sequence[str], options: Mapping[str, Any]) -> Job:
        """Ask for weights from encoded images and their labels; returns the accepted job."""
        files = [("samples", (f"{i}", data, "application/octet-stream")) for i, data in enumerate(images)]
        return self._generate(files, {**options, "labels": list(labels)})

    def _generate(self, files: list[tuple[str, tuple[str, bytes, str]]], options: Mapping[str, Any]) -> Job:
        form = {name: value for name, value in options.items() if value is not None}
        # The key makes it safe to send again when the answer was lost.
        headers = {"idempotency-key": uuid.uuid4().hex}
        return self._json("POST", "/generate", files=files, data=form, headers=headers)

    def job(self, job_id: str) -> Job:
        """Return the job as it is now."""
        return self._json("GET", f"/jobs/{job_id}")

    def cancel(self, job_id: str) -> Job:
        """Ask the job to stop."""
        return self._json("POST", f"/jobs/{job_id}/cancel")

    def wait(self, job: Job, *, on_change: Callable[[Job], None] | None = None, timeout: float | None = None) -> Job:
        """Poll until the job has succeeded; raises `JobEnded` if it ended otherwise, `Unreachable` at the timeout."""
        end = None if timeout is None else time.monotonic() + timeout
        pause, longest = POLL_SECONDS
        while True:
            if on_change:
                on_change(job)
            if job["status"] in TERMINAL:
                break
            if end is not None and time.monotonic() > end:
                raise Unreachable(f"the job {job['id']} is still {job['status']} after {timeout:g} s")
            time.sleep(pause)
            pause = min(longest, pause * 1.5)
            job = self.job(job["id"])
        if job["status"] != "succeeded":
            raise JobEnded(job)
        return job

    def card(self, model_id: str) -> dict[str, Any]:
        """Return the card of a model."""
        return self._json("GET", f"/models/{model_id}")

    def upload(self, path: Path, *, classes: Sequence[str] = (), licence: str | None = None) -> dict[str, Any]:
        """Store a safetensors file as a model; returns its card."""
        form = {"classes": list(classes)} | ({"licence": licence} if licence else {})
        return self._json("POST", "/models", files={"weights": (path.name, path.read_bytes())}, data=form)

    def similarity(self, a: str | Path, b: str | Path) -> dict[str, Any]:
        """Compare two checkpoints, each a safetensors file or the id of a stored model."""
        sides = {"a": a, "b": b}
        files = {name: (side.name, side.read_bytes()) for name, side in sides.items() if isinstance(side, Path)}
        ids = {name: side for name, side in sides.items() if isinstance(side, str)}
        body: dict[str, Any] = {"files": files, "data": ids} if files else {"json": ids}
        return self._answered(self._json("POST", "/similarity", **body))

    def similarity_matrix(self, ids: Sequence[str]) -> dict[str, Any]:
        """Compare stored models, each with each."""
        return self._answered(self._json("POST", "/similarity/matrix", json={"ids": list(ids)}))

    def neighbours(self, model_id: str, k: int = 10) -> dict[str, Any]:
        """Return the models nearest to a stored one."""
        return self._answered(self._json("GET", f"/models/{model_id}/neighbours", params={"k": k}))

    def _answered(self, answer: dict[str, Any]) -> dict[str, Any]:
        """The answer itself, waited for where it came as a job."""
        if "status" not in answer:
            return answer
        result: dict[str, Any] = self.wait(answer)["result"]
        return result

    def targets(self) -> dict[str, Any]:
        """Return the catalogue of targets."""
        return self._json("GET", "/targets")

    def download(self, model_id: str, path: Path, *, part: Literal["weights", "onnx"] = "weights") -> str:
        """Write a model's weights or ONNX file to `path`, whole and verified or not at all; returns its sha256."""
        card = self.card(model_id)
        expected = card["sha256"] if part == "weights" else card["onnx"]["sha256"]
        digest = hashlib.sha256()
        partial = path.with_name(f".{path.name}.part")
        try:
            with self._http.stream("GET", f"/models/{model_id}/{part}") as response, partial.open("wb") as file:
                if response.is_error:
                    response.read()
                    raise _refusal(response)
                for chunk in response.iter_bytes():
                    digest.update(chunk)
                    file.write(chunk)
            if digest.hexdigest() != expected:
                raise WrongBytes(f"{part} of {model_id}: expected sha256 {expected}, received {digest.hexdigest()}")
            partial.replace(path)
        except httpx.TransportError as error:
            raise Unreachable(f"{self._http.base_url} broke off the download: {error}") from error
        finally:
            partial.unlink(missing_ok=True)
        return digest.hexdigest()

    def _json(self, method: str, path: str, **request: Any) -> dict[str, Any]:
        end = time.monotonic() + self._patience
        while True:
            try:
                response = self._http.request(method, path, **request)
            except httpx.TransportError as error:
                if time.monotonic() > end:
                    reason = str(error) or type(error).__name__
                    raise Unreachable(f"no answer from {self._http.base_url}: {reason}") from error
                time.sleep(0.2)
                continue
            if response.status_code in _BUSY and time.monotonic() < end:
                time.sleep(min(_retry_after(response), max(0.0, end - time.monotonic())))
                continue
            if response.is_error:
                raise _refusal(response)
            answer: dict[str, Any] = response.json()
            return answer


def _retry_after(response: httpx.Response) -> float:
    value = response.headers.get("retry-after", "")
    return float(value) if value.isdigit() else 1.0


def _refusal(response: httpx.Response) -> Refused:
    try:
        problem = response.json()
    except ValueError:
        problem = {}
    return Refused(response.status_code, problem if isinstance(problem, dict) else {})
