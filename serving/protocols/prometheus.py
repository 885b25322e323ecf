"""`GET /metrics`: all metrics in the text format of Prometheus."""

from __future__ import annotations

from headwater.serving.protocols.routes import Form, Request, Response, Route
from headwater.serving.service import Service


async def metrics(service: Service, _: Request) -> Response:
    """Answer with all metrics in the text format of Prometheus."""
    return Response(service.metrics.text(), headers=[("content-type", "text/plain; version=0.0.4")])


ROUTES: tuple[Route, ...] = (
    Route("GET", "/metrics", metrics, "Metrics for Prometheus", answers=(Form("text/plain"),)),
)
