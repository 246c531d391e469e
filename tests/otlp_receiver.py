"""A small OTLP/HTTP receiver: what it was posted, decoded."""

from __future__ import annotations

import queue
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span


class Receiver:
    """Listens on a free port of this machine until it is closed."""

    def __init__(self) -> None:
        self._posted: queue.SimpleQueue[tuple[str, bytes]] = queue.SimpleQueue()
        self._seen: list[bytes] = []
        posted = self._posted

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                posted.put((self.path, self.rfile.read(int(self.headers["Content-Length"]))))
                self.send_response(200)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, format: str, *args: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever)
        self._thread.start()
        self.endpoint = f"http://127.0.0.1:{self._server.server_port}"

    def close(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def next_spans(self) -> list[Span]:
        """The spans of the next request; waits for one."""
        path, content = self._posted.get(timeout=120)
        assert path == "/v1/traces"
        self._seen.append(content)
        request = ExportTraceServiceRequest.FromString(content)
        return [span for resource in request.resource_spans for scope in resource.scope_spans for span in scope.spans]

    def spans_of(self, trace: str, *, until: str) -> list[Span]:
        """The spans of a trace that have come when the one named `until` has, which ends after its parts."""
        found: list[Span] = []
        while until not in {span.name for span in found}:
            found += [span for span in self.next_spans() if span.trace_id.hex() == trace]
        return found

    def everything(self) -> list[bytes]:
        """Every request's body so far."""
        while not self._posted.empty():
            self._seen.append(self._posted.get()[1])
        return self._seen
