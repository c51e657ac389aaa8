"""A proxy in front of the real S3 server that loses, cuts or replaces the answers it is told to."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import ClassVar, Literal
from urllib.parse import urlsplit

Fault = Literal["lose the answer", "cut the body"] | int
"""What happens to one request; a number is an error status, answered without asking the server."""


class FaultyProxy(ThreadingHTTPServer):
    """`plan(method, path)` names the fault of each request, None for none; `requests` keeps what came."""

    daemon_threads = True

    def __init__(self, upstream: str) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.upstream = urlsplit(upstream).netloc
        self.endpoint = f"http://127.0.0.1:{self.server_port}"
        self.requests: list[tuple[str, str]] = []
        self.plan: Callable[[str, str], Fault | None] = lambda method, path: None

    def once(self, method: str, fault: Fault, times: int = 1) -> None:
        """Let the next requests of this method fail."""
        left = [fault] * times
        self.plan = lambda asked, path: left.pop() if asked == method and left else None


class _Handler(BaseHTTPRequestHandler):
    server: FaultyProxy
    protocol_version = "HTTP/1.1"
    hop: ClassVar = {"connection", "transfer-encoding", "content-length", "date", "server"}

    def handle_any(self) -> None:
        self.server.requests.append((self.command, self.path))
        fault = self.server.plan(self.command, self.path)
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if isinstance(fault, int):
            self._answer(fault, {}, b"<Error><Code>Injected</Code></Error>")
            return
        upstream = HTTPConnection(self.server.upstream)
        headers = {name: value for name, value in self.headers.items() if name.lower() != "expect"}
        upstream.request(self.command, self.path, body, headers)
        answer = upstream.getresponse()
        content = answer.read()
        upstream.close()
        if fault == "lose the answer":
            self.close_connection = True
            return
        kept = {name: value for name, value in answer.getheaders() if name.lower() not in self.hop}
        if self.command == "HEAD":
            self._answer(answer.status, kept, b"", length=answer.getheader("Content-Length"))
        elif fault == "cut the body":
            self._answer(answer.status, kept, content[: len(content) // 2], length=str(len(content)))
            self.close_connection = True
        else:
            self._answer(answer.status, kept, content)

    def _answer(self, status: int, headers: dict[str, str], body: bytes, length: str | None = None) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        if status != 204:
            self.send_header("Content-Length", length or str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = handle_any

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def faulty_proxy(upstream: str) -> Iterator[FaultyProxy]:
    with FaultyProxy(upstream) as proxy:
        thread = Thread(target=proxy.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield proxy
        proxy.shutdown()
        thread.join()
