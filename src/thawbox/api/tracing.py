"""OpenTelemetry traces made of the node's steps, sent by OTLP over HTTP; imported only where an endpoint is set.

A trace begins with a request, and goes on one that the caller has begun (W3C `traceparent`), down to CRIU's phases.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from importlib.metadata import version

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import Span, SpanKind, Status, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from thawbox.telemetry import Step

TRACEPARENT, TRACESTATE = "traceparent", "tracestate"
_BORROWED = {"method": "http.request.method", "route": "http.route", "status": "http.response.status_code"}
"""Names that OpenTelemetry has for what a request's step says."""


class Tracing:
    """An observer of steps: each becomes a span. `endpoint` is the receiver's base address, as OTEL_… has it.

    What cannot be delivered is dropped, and said in the log by the exporter; nobody waits for it.
    """

    def __init__(self, endpoint: str, *, node: str) -> None:
        resource = Resource.create({
            "service.name": "thawbox", "service.version": version("thawbox"), "service.instance.id": node,
        })  # fmt: skip
        exporter = OTLPSpanExporter(endpoint=f"{endpoint.rstrip('/')}/v1/traces")
        self._provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        self._provider.add_span_processor(BatchSpanProcessor(exporter))
        self._tracer = self._provider.get_tracer("thawbox")
        self._propagator = TraceContextTextMapPropagator()

    def __call__(self, step: Step) -> Callable[[], None]:
        kind = SpanKind.SERVER if step.name == "http.request" else SpanKind.INTERNAL
        begun = _ns(step.began)
        span = self._tracer.start_span(step.name, context=self._context_of(step), kind=kind, start_time=begun)
        step.attached[self] = span
        if step.parent is None:
            step.note(trace=trace.format_trace_id(span.get_span_context().trace_id))
        return partial(_end, span, step)

    def flush(self, *, seconds: float) -> None:
        """Send what has not been sent yet, for at most so long."""
        self._provider.force_flush(int(seconds * 1000))

    def close(self) -> None:
        """Send what is left and end."""
        self._provider.shutdown()

    def _context_of(self, step: Step) -> Context | None:
        if step.parent is not None:
            above = step.parent.attached.get(self)
            return trace.set_span_in_context(above) if isinstance(above, Span) else None
        carrier = {key: str(step.fields.pop(key)) for key in (TRACEPARENT, TRACESTATE) if key in step.fields}
        return self._propagator.extract(carrier) if carrier else None


def _end(span: Span, step: Step) -> None:
    for key, value in step.fields.items():
        if isinstance(value, (bool, int, float, str)):
            span.set_attribute(
                _BORROWED.get(key, f"thawbox.{key}") if step.name == "http.request" else f"thawbox.{key}", value
            )
    if step.error is not None:
        span.set_attribute("error.type", step.failure)
        span.set_status(Status(StatusCode.ERROR, step.failure))
    if step.is_fact:
        span.set_attribute("thawbox.fact", True)
    span.end(end_time=_ns(step.began + step.seconds))


def _ns(moment: float) -> int:
    return int(moment * 1e9)
