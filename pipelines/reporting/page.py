"""Pages of reports: each one self-contained HTML file from a template.

Styles are inside, pictures are embedded SVG, there is no script and nothing is fetched. Whatever a
column or a value is called is text and nothing else: jinja2 escapes it, and the page's own security
policy forbids scripts.
"""

from __future__ import annotations

import base64
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from headwater.pipelines.output import write_whole

ABSENT = "-"
"""Shown where there is no value."""


def render(template: str, page: Path, context: Mapping[str, Any]) -> Path:
    """Write `templates/<template>` filled with `context` to `page`, and return `page`."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
    )
    environment.filters.update(
        number=number,
        signed=lambda value: f"{value:+.5f}",
        count=count,
        share=share,
        interval=interval,
        svg=_data_url,
    )
    write_whole(page, environment.get_template(template).render(context).encode())
    return page


def _data_url(svg: str) -> str:
    """Return the picture as a data URL: an image of its own, in which nothing can run."""
    return "data:image/svg+xml;base64," + base64.b64encode(svg.encode()).decode()


def interval(ends: Sequence[float] | None) -> str:
    """Return the two ends of an interval."""
    return ABSENT if ends is None else f"{number(ends[0])} .. {number(ends[1])}"


def number(value: float | None, digits: int = 5) -> str:
    """Return a number with `digits` decimals."""
    return ABSENT if value is None or not math.isfinite(value) else f"{value:.{digits}f}"


def count(value: float | None) -> str:
    """Return a whole number with thousands apart."""
    return ABSENT if value is None else f"{value:,.0f}"


def share(value: float | None) -> str:
    """Return a share in per cent; one that is not 0 never reads as 0."""
    if value is None:
        return ABSENT
    return "0" if value == 0 else "< 0.01 %" if value < 1e-4 else f"{100 * value:.2f} %"


def megabytes(value: float | None) -> str:
    """Return an amount of memory, given in MB of 2^20 bytes."""
    if value is None:
        return ABSENT
    return f"{value / 1024:.1f} GB" if value >= 1024 else f"{value:.0f} MB"


def duration(seconds: float) -> str:
    """Return a time in hours and minutes, minutes and seconds, or seconds."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60} h {minutes % 60} min" if minutes >= 60 else f"{minutes} min {rest} s"
