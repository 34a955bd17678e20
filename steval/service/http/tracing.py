"""Traces by OpenTelemetry: what a request or a job spent its time on, sent to a collector where the standard variables name one.

A trace that a client began (W3C's `traceparent` and `tracestate`) goes on, also where nothing is sent: log lines and jobs carry its
id. A trace is handed on as an object, not by OpenTelemetry's context variables: a request's work goes through queues and threads.
"""

import importlib
import importlib.util
import threading
import time
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING

from opentelemetry.context import Context
from opentelemetry.trace import Span, SpanKind, Status, StatusCode, Tracer, get_current_span, set_span_in_context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from steval import __version__
from steval.errors import ConfigError
from steval.wording import needs_extra

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SpanExporter

TRACE = "steval.trace"
"""Where the scope of a request has its `Trace`."""
HEADERS = ("traceparent", "tracestate")
_ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
_PROTOCOLS = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")
_PROTOCOL = "http/protobuf"
_EXPORTER = "opentelemetry.exporter.otlp.proto.http.trace_exporter"
"""Of the extra `tracing`."""
CLOSE_SECONDS = 5.0
"""For what has not been sent when the service stops; OpenTelemetry itself would go on trying for half a minute."""
_W3C = TraceContextTextMapPropagator()
_NOWHERE = Context()
Fact = str | int | float | bool | None
"""An attribute of a span; None: left out."""


class Trace:
    """A place in a trace, under which spans are put; they are dropped where nobody collects them."""

    def __init__(self, place: Context = _NOWHERE, tracer: Tracer | None = None, span: Span | None = None):
        self._place = place
        self._tracer = tracer
        self._span = span

    @property
    def is_collected(self) -> bool:
        """Whether spans go anywhere."""
        return self._tracer is not None

    @property
    def trace_id(self) -> str | None:
        """32 hexadecimal digits; None where the client began no trace and none is collected."""
        found = get_current_span(self._place).get_span_context()
        return f"{found.trace_id:032x}" if found.is_valid else None

    def headers(self) -> dict[str, str]:
        """`traceparent` and `tracestate` for what goes on under this place; empty where there is no trace."""
        carrier: dict[str, str] = {}
        _W3C.inject(carrier, self._place)
        return carrier

    def record(self, name: str, began: int, ended: int, **facts: Fact) -> None:
        """A span of something that is over; nanoseconds of `time.time_ns`."""
        if self._tracer is not None:
            self._tracer.start_span(name, self._place, attributes=_given(facts), start_time=began).end(ended)

    @contextmanager
    def span(self, name: str) -> Generator[None]:
        """A span of what is done inside; it names an error that ended it."""
        if self._tracer is None:
            yield
            return
        began, problem = time.time_ns(), None
        try:
            yield
        except Exception as error:
            problem = type(error).__name__
            raise
        finally:
            self.record(name, began, time.time_ns(), **{"error.type": problem})

    def end(self, *, is_error: bool = False, **facts: Fact) -> None:
        """End the span that this place is in, with what is known of it now."""
        if self._span is not None:
            self._span.set_attributes(_given(facts))
            if is_error:
                self._span.set_status(Status(StatusCode.ERROR))
            self._span.end()


UNTRACED = Trace()
"""No trace, and nobody who collects one."""


class Tracing:
    """Begins the traces of a process; nothing is collected until `start`."""

    def __init__(self) -> None:
        self._provider: TracerProvider | None = None
        self._tracer: Tracer | None = None

    def start(self, environment: Mapping[str, str]) -> None:
        """Collect, where the `OTEL_…` variables name a collector; in the process that answers. Raises `ConfigError`."""
        if is_wanted(environment):
            require_exporter(environment)
            self.collect(importlib.import_module(_EXPORTER).OTLPSpanExporter())

    def collect(self, exporter: "SpanExporter") -> None:
        """Give every span to `exporter`, a batch now and then."""
        from opentelemetry.sdk.resources import SERVICE_NAME, SERVICE_VERSION, OTELResourceDetector, Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor

        ours = Resource.create({SERVICE_NAME: "steval", SERVICE_VERSION: __version__})
        resource = ours.merge(OTELResourceDetector().detect())  # what the variables say goes before what we say
        self._provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        self._provider.add_span_processor(BatchSpanProcessor(exporter))
        self._tracer = self._provider.get_tracer("steval", __version__)

    def request(self, name: str, headers: Mapping[str, str], *, quiet: bool = False, **facts: Fact) -> Trace:
        """The trace of a request, from its headers on; `Trace.end` ends its span. `quiet`: it goes on, and is not collected."""
        place = _from(headers)
        if self._tracer is None or quiet:
            return Trace(place) if place is not _NOWHERE else UNTRACED
        span = self._tracer.start_span(name, place, SpanKind.SERVER, _given(facts))
        inside = set_span_in_context(span, place)
        return Trace(inside, self._tracer, span) if span.is_recording() else Trace(inside)

    def under(self, headers: Mapping[str, str]) -> Trace:
        """A place in a trace that another process began, by what its `Trace.headers` gave."""
        place = _from(headers)
        sampled = get_current_span(place).get_span_context().trace_flags.sampled
        return Trace(place, self._tracer if sampled else None)

    def close(self) -> None:
        """Send what has not been sent; not for long, where the collector does not answer."""
        if self._provider is not None:
            sending = threading.Thread(target=self._provider.shutdown, daemon=True)
            sending.start()
            sending.join(CLOSE_SECONDS)


def is_wanted(environment: Mapping[str, str]) -> bool:
    """Whether OpenTelemetry's variables name a collector of traces."""
    off = environment.get("OTEL_SDK_DISABLED", "").strip().lower() == "true"
    return (
        not off and environment.get("OTEL_TRACES_EXPORTER", "otlp") != "none" and any(map(environment.get, _ENDPOINTS))
    )


def require_exporter(environment: Mapping[str, str]) -> None:
    """A `ConfigError` where traces are wanted that cannot be sent."""
    if not is_wanted(environment):
        return
    asked = {name: environment[name] for name in (*_PROTOCOLS, "OTEL_TRACES_EXPORTER") if environment.get(name)}
    problems = [
        f"{name}={value}: traces are sent by OTLP as {_PROTOCOL} alone; leave the variable out"
        for name, value in asked.items()
        if value != ("otlp" if name == "OTEL_TRACES_EXPORTER" else _PROTOCOL)
    ]
    if problems:
        raise ConfigError("traces cannot be sent as the OTEL_ variables say", problems)
    try:
        found = importlib.util.find_spec(_EXPORTER)
    except ModuleNotFoundError:
        found = None
    if found is None:
        what = "sending traces (OTEL_EXPORTER_OTLP_ENDPOINT is set)"
        raise ConfigError(needs_extra(what, "OpenTelemetry's OTLP exporter", "tracing"))


def _from(headers: Mapping[str, str]) -> Context:
    """The place that W3C's headers name; `_NOWHERE` where there is none, or no valid one."""
    if HEADERS[0] not in headers:
        return _NOWHERE
    place = _W3C.extract({name: headers[name] for name in HEADERS if name in headers}, _NOWHERE)
    return place if get_current_span(place).get_span_context().is_valid else _NOWHERE


def _given(facts: Mapping[str, Fact]) -> dict[str, str | int | float | bool]:
    return {name: value for name, value in facts.items() if value is not None}
