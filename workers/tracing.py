"""OpenTelemetry traces, from the request through the broker to the job; nothing is imported or done unless configured.

`LOOMWEIGHT_TRACES_ENDPOINT` names a collector (OTLP over HTTP); `pip install loomweight[tracing]` brings the packages.
The W3C context travels in the message's headers, as it comes in with a request.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

from workers import logs

_tracer: Any = None
_provider: Any = None


def configure(service: str, endpoint: str | None, exporter: Any = None) -> None:
    """Send spans of this process to the collector; without an endpoint (or, in tests, an exporter) nothing happens."""
    global _tracer, _provider
    if endpoint is None and exporter is None:
        return
    try:
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor, SimpleSpanProcessor
    except ImportError as error:
        raise RuntimeError("Traces need more packages: pip install 'loomweight[tracing]'.") from error
    _provider = TracerProvider(resource=Resource.create({"service.name": service}))
    if exporter is None:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

        _provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint=endpoint)))
    else:
        _provider.add_span_processor(SimpleSpanProcessor(exporter))
    _tracer = _provider.get_tracer("loomweight")


def close() -> None:
    """Send what is left, and stop."""
    global _tracer, _provider
    if _provider is not None:
        with suppress(Exception):  # a collector that is away must not keep a process
            _provider.shutdown()
    _tracer = _provider = None


@contextmanager
def span(name: str, carrier: Mapping[str, str] | None = None, **attributes: str) -> Iterator[Any]:
    """A span around what follows, below the one that `carrier` (or else this context) names; None if not configured."""
    if _tracer is None:
        yield None
        return
    from opentelemetry.propagate import extract

    parent = extract(dict(carrier)) if carrier is not None else None
    with (
        _tracer.start_as_current_span(name, context=parent, attributes=attributes) as made,
        logs.serving(logs.trace_id, f"{made.get_span_context().trace_id:032x}"),
    ):
        yield made


def carried() -> dict[str, str]:
    """What to send along with a message, so that its receiver's spans and log lines belong to this request."""
    headers = {}
    if (request := logs.request_id.get()) is not None:
        headers["request_id"] = request
    if _tracer is not None:
        from opentelemetry.propagate import inject

        inject(headers)
    return headers
