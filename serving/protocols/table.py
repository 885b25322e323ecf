"""The table of routes: each protocol or route group has a line here."""

from __future__ import annotations

from headwater.serving.protocols import oip, prometheus, rank, recommend
from headwater.serving.protocols.openapi import with_page

ROUTES = with_page(
    (
        *oip.ROUTES,
        *rank.ROUTES,
        *recommend.ROUTES,
        *prometheus.ROUTES,
    )
)
"""All routes of the service, that of the OpenAPI page among them."""
