"""What observers make of steps: metrics, log lines, and spans that a real OTLP receiver is sent."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator

import pytest
import structlog
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from otlp_receiver import Receiver
from thawbox.api.logs import StepLog, set_up_logs
from thawbox.api.metrics import Metrics
from thawbox.api.tracing import Tracing
from thawbox.errors import DumpFailed, HookFailed, InvalidRequest
from thawbox.telemetry import Telemetry

# Metrics


def value(metrics: Metrics, name: str, **labels: str) -> float | None:
    return metrics.registry.get_sample_value(name, labels)


def test_steps_are_counted_by_what_they_are() -> None:
    metrics = Metrics()
    telemetry = Telemetry(metrics)
    with telemetry.step("pool.acquire", pool="web"):
        pass
    with telemetry.step("engine.dump") as step:
        step.note(frozen_ms=30.0)
    with telemetry.step("clone") as step:
        step.note(restore_ms=20.0)
    with telemetry.step("store.put") as step:
        step.note(kind="delta", bytes=4096)
    with telemetry.step("recovery") as step:
        step.note(outcome="recovered", healthy_ms=250.0)
    assert value(metrics, "thawbox_acquire_seconds_count", pool="web") == 1
    assert value(metrics, "thawbox_dump_frozen_seconds_sum") == 0.03
    assert value(metrics, "thawbox_dump_frozen_seconds_bucket", le="0.02") == 0
    assert value(metrics, "thawbox_dump_frozen_seconds_bucket", le="0.04") == 1
    assert value(metrics, "thawbox_restore_seconds_sum", kind="clone") == 0.02
    assert value(metrics, "thawbox_snapshot_written_bytes_total", kind="delta") == 4096
    assert value(metrics, "thawbox_recovery_seconds_sum", outcome="recovered") == 0.25
    assert value(metrics, "thawbox_step_seconds_count", step="engine.dump") == 1
    assert b"# TYPE thawbox_acquire_seconds histogram" in metrics.text()


def test_failures_are_counted_by_code_and_not_among_the_times() -> None:
    metrics = Metrics()
    with pytest.raises(DumpFailed), Telemetry(metrics).step("engine.dump"):
        raise DumpFailed("no")
    assert value(metrics, "thawbox_failures_total", step="engine.dump", code="engine.dump") == 1
    assert value(metrics, "thawbox_dump_frozen_seconds_count") == 0


# Logs


@pytest.fixture
def written() -> Iterator[io.StringIO]:
    """What is logged as JSON from `info` up."""
    stream = io.StringIO()
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    set_up_logs(level="info", as_json=True, stream=stream)
    yield stream
    structlog.reset_defaults()
    root.handlers[:], root.level = handlers, level


def events(stream: io.StringIO) -> list[dict[str, object]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_each_fact_is_one_event_and_parts_are_left_out_above_debug(written: io.StringIO) -> None:
    telemetry = Telemetry(StepLog())
    with telemetry.step("checkpoint", sandbox="sb-1"), telemetry.step("engine.dump"):
        pass
    telemetry.happened("snapshot.damaged", snapshot="0f")
    complete, damaged = events(written)
    assert (complete["event"], complete["sandbox"], complete["level"]) == ("checkpoint.complete", "sb-1", "info")
    assert (damaged["event"], damaged["level"]) == ("snapshot.damaged", "error")


def test_a_failure_is_told_by_its_code_and_by_its_words_only_where_they_are_the_machines(written: io.StringIO) -> None:
    telemetry = Telemetry(StepLog())
    errors = (DumpFailed("disk full"), HookFailed("it printed hunter2"), InvalidRequest("hunter2 is no number"))
    for error in errors:
        with pytest.raises(type(error)), telemetry.step("clone"):
            raise error
    dump, hook, invalid = events(written)
    assert (dump["code"], dump["cause"], dump["level"]) == ("engine.dump", str(errors[0]), "warning")
    assert (hook["code"], hook["level"]) == ("engine.hook", "warning")
    assert (invalid["code"], invalid["level"]) == ("invalid", "info")
    assert "hunter2" not in written.getvalue()


@pytest.mark.parametrize("as_json", [True, False])
def test_a_traceback_shows_no_values_of_variables(written: io.StringIO, as_json: bool) -> None:
    set_up_logs(level="info", as_json=as_json, stream=written)

    def fail(secret: str) -> None:
        raise ValueError(len(secret))

    try:
        fail("".join(["hunt", "er2"]))
    except ValueError as error:
        structlog.get_logger().error("request.failed", exc_info=error)
        logging.getLogger("uvicorn.error").exception("failed")
    assert "ValueError" in written.getvalue()
    assert "hunter2" not in written.getvalue()


def test_what_libraries_log_is_written_the_same_way(written: io.StringIO) -> None:
    logging.getLogger("uvicorn.error").warning("invalid request")
    (told,) = events(written)
    assert (told["event"], told["level"]) == ("invalid request", "warning")


# Traces


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    receiver = Receiver()
    yield receiver
    receiver.close()


@pytest.fixture
def tracing(receiver: Receiver) -> Iterator[Tracing]:
    tracing = Tracing(receiver.endpoint, node="test")
    yield tracing
    tracing.close()


def test_a_trace_goes_on_the_callers_and_leads_down_to_phases(tracing: Tracing, receiver: Receiver) -> None:
    telemetry = Telemetry(tracing)
    trace, parent = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
    with telemetry.step(
        "http.request", method="POST", route="/v1/sandboxes/{ref}/checkpoint", traceparent=f"00-{trace}-{parent}-01"
    ) as request:
        with telemetry.step("engine.dump") as dump:
            telemetry.passed("criu.until-post-dump", seconds=0.25)
            dump.note(frozen_ms=3.5)
        request.note(status=201)
    assert request.fields["trace"] == trace
    tracing.flush(seconds=30)
    spans = {span.name: span for span in receiver.next_spans()}
    http, dumped, phase = (spans[name] for name in ("http.request", "engine.dump", "criu.until-post-dump"))
    assert {span.trace_id.hex() for span in spans.values()} == {trace}
    assert http.parent_span_id.hex() == parent
    assert dumped.parent_span_id == http.span_id
    assert phase.parent_span_id == dumped.span_id
    assert phase.end_time_unix_nano - phase.start_time_unix_nano == pytest.approx(0.25e9, abs=1e4)
    assert http.kind == Span.SPAN_KIND_SERVER
    said = {pair.key: pair.value for pair in http.attributes}
    assert said["http.route"].string_value == "/v1/sandboxes/{ref}/checkpoint"
    assert said["http.response.status_code"].int_value == 201
    assert "traceparent" not in str(said)


def test_a_span_of_what_failed_says_the_code_and_nothing_else(tracing: Tracing, receiver: Receiver) -> None:
    with pytest.raises(HookFailed), Telemetry(tracing).step("clone"):
        raise HookFailed("it printed hunter2")
    tracing.flush(seconds=30)
    span = next(span for span in receiver.next_spans() if span.name == "clone")
    assert (span.status.code, span.status.message) == (2, "engine.hook")
    assert b"hunter2" not in span.SerializeToString()
