"""Pictures of a report as SVG text: curves, ROC, calibration, scores, popularity.

Figures are made without pyplot, so that nothing global changes and no display is needed. Text stays
text in the SVG and is never read as mathematics (a run may be called `$x$`). Equal input gives equal
bytes.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import matplotlib as mpl
from cycler import cycler
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullFormatter

from headwater.pipelines.evaluation.records import ClickSplit, Histogram
from headwater.pipelines.evaluation.retrieval_records import RetrievalSplit
from headwater.pipelines.runs.records import Epoch

COLORS = {"train": "#8a8f98", "valid": "#1f6feb", "test": "#d9480f"}
_TICK_CHARS = 16
CYCLE = ("#1f6feb", "#d9480f", "#2b8a3e", "#9c36b5", "#0b7285", "#a67c00", "#c2255c", "#495057")
_SPREADS = {
    "events": ("training events", COLORS["train"]),
    "taken": ("test items", CYCLE[2]),
    "answered": ("answers", CYCLE[0]),
}
_STYLE: dict[Any, Any] = {
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#adb5bd",
    "axes.grid": True,
    "axes.titlesize": 10.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.labelcolor": "#495057",
    "axes.prop_cycle": cycler(color=CYCLE),
    "grid.color": "#e9ecef",
    "xtick.color": "#495057",
    "ytick.color": "#495057",
    "legend.frameon": False,
    "legend.fontsize": 9,
    "lines.linewidth": 1.6,
    "svg.fonttype": "none",
    "svg.hashsalt": "headwater",
    "text.parse_math": False,
}


def learning_curves(
    history: Sequence[Epoch],
    best_epoch: int | None,
    *,
    title: str,
    metrics: Mapping[str, str],
    rates: Mapping[str, str],
) -> str:
    """Return loss, metrics and learning rates by epoch; the best epoch is marked.

    `metrics` are labels by the names of the picture called `title`, `rates` by the fields of an epoch.
    """

    def draw(figure: Figure) -> None:
        loss, metric, rate = figure.subplots(1, 3)
        epochs = [row.epoch for row in history]
        loss.set_title("Loss")
        _line(loss, epochs, [row.train_loss for row in history], "train", COLORS["train"])
        _line(loss, epochs, _metric(history, "logloss"), "valid", COLORS["valid"])
        metric.set_title(title)
        for (name, label), color in zip(metrics.items(), CYCLE, strict=False):
            _line(metric, epochs, _metric(history, name), label, color)
        rate.set_title("Learning rates")
        for (name, label), color in zip(rates.items(), CYCLE[3:], strict=False):
            _line(rate, epochs, [getattr(row, name) for row in history], label, color)
        rate.set_yscale("log")
        _plain_numbers(rate.yaxis)
        for axes in (loss, metric, rate):
            axes.set_xlabel("epoch")
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
            if best_epoch is not None:
                axes.axvline(best_epoch, color="#adb5bd", linestyle=":", zorder=0)
            _legend(axes, "best")

    return _svg(draw, width=11, height=3)


def at_k(splits: Mapping[str, RetrievalSplit], labels: Mapping[str, str]) -> str:
    """Return metrics by k of each split; `labels` are by the name of the metric."""

    def draw(figure: Figure) -> None:
        for place, (metric, label) in enumerate(labels.items(), start=1):
            axes = figure.add_subplot(1, len(labels), place)
            for name, split in splits.items():
                for curve in split.curves:
                    if curve.metric == metric:
                        _line(axes, curve.k, curve.value, name, COLORS[name])
            axes.set(title=f"{label} at k", xlabel="k")
            axes.set_ylim(bottom=0)
            _legend(axes, "best")

    return _svg(draw, width=11, height=2.9)


def popularity(split: RetrievalSplit) -> str:
    """Return the shares of events, test items and answers that the most popular items have."""

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        for name, (label, color) in _SPREADS.items():
            share = getattr(split.popularity, name)
            axes.plot(split.popularity.items, share, label=label, color=color)
        axes.plot([0, 1], [0, 1], color="#adb5bd", linestyle=":", linewidth=1, zorder=0)
        axes.set(xlabel="share of the catalogue, the most popular first", ylabel="share of all")
        axes.set(title=f"First {split.top_k} of all users", xlim=(0, 1), ylim=(0, 1.01))
        _legend(axes, "lower right")

    return _svg(draw, width=5.2, height=3.6)


def long_tail(split: RetrievalSplit) -> str:
    """Return the shares of each tenth of the catalogue as bars."""

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        for i, (name, (label, color)) in enumerate(_SPREADS.items()):
            share = [getattr(decile, name) for decile in split.deciles]
            places = [place + 1 + 0.27 * (i - 1) for place in range(len(share))]
            axes.bar(places, share, width=0.25, label=label, color=color)
        axes.set(xlabel="tenth of the catalogue, the most popular first", ylabel="share of all")
        axes.set(title="The long tail")
        axes.set_xticks(range(1, len(split.deciles) + 1))
        axes.grid(visible=False, axis="x")
        axes.set_axisbelow(True)
        _legend(axes, "best")

    return _svg(draw, width=5.2, height=3.6)


def roc(splits: Mapping[str, ClickSplit]) -> str:
    """Return the ROC curve of each split that has both classes."""

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        axes.plot([0, 1], [0, 1], color="#adb5bd", linestyle=":", linewidth=1)
        for name, split in splits.items():
            if split.roc.fpr:
                label = f"{name} (AUC {split.metrics['auc']:.4f})"
                axes.plot(split.roc.fpr, split.roc.tpr, color=COLORS[name], label=label)
        axes.set(xlabel="false positive rate", ylabel="true positive rate", title="ROC")
        axes.set(xlim=(0, 1), ylim=(0, 1), aspect="equal")
        _legend(axes, "lower right")

    return _svg(draw, width=3.9, height=3.7)


def calibration(splits: Mapping[str, ClickSplit]) -> str:
    """Return the positive rate against the mean probability of each bin of equal count."""

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        top = 0.0
        for name, split in splits.items():
            mean = [row.mean_prob for row in split.calibration_bins]
            rate = [row.rate for row in split.calibration_bins]
            axes.plot(mean, rate, color=COLORS[name], label=name, marker="o", markersize=3.5)
            top = max([top, *mean, *rate])
        top = min(1.0, top * 1.05) or 1.0
        axes.plot([0, top], [0, top], color="#adb5bd", linestyle=":", linewidth=1, zorder=0)
        axes.set(xlabel="mean predicted probability", ylabel="positive rate", title="Calibration")
        axes.set(xlim=(0, top), ylim=(0, top), aspect="equal")
        _legend(axes, "upper left")

    return _svg(draw, width=3.9, height=3.7)


def histogram(name: str, split: ClickSplit) -> str:
    """Return how scores of positives and of negatives spread, each as shares of its class."""

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        counts = split.histogram
        for side, found, color in (
            ("negatives", counts.negative, COLORS["train"]),
            ("positives", counts.positive, COLORS["test"]),
        ):
            total = sum(found) or 1
            shares = [count / total for count in found]
            label = f"{side} ({sum(found):,})"
            axes.stairs(shares, counts.edges, fill=True, color=color, alpha=0.35)
            axes.stairs(shares, counts.edges, color=color, label=label, linewidth=1.2)
        axes.set(xlabel="predicted probability", ylabel="share of the class", xlim=_reach(counts))
        axes.set_ylim(bottom=0)
        axes.set_title(f"Scores, {name} rows")
        _legend(axes, "best")

    return _svg(draw, width=3.9, height=3.7)


def overlay(histories: Mapping[str, Sequence[Epoch]], labels: Mapping[str, str]) -> str:
    """Return validation metrics by epoch of several runs, by the runs' names; `labels` are by metric.

    A metric that no run has gets no picture.
    """
    every = [epoch for history in histories.values() for epoch in history]
    shown = {
        name: label
        for name, label in labels.items()
        if any(epoch.valid.get(name) is not None for epoch in every)
    }

    def draw(figure: Figure) -> None:
        for place, (metric, label) in enumerate(shown.items(), start=1):
            axes = figure.add_subplot(1, len(shown), place)
            for position, (name, history) in enumerate(histories.items()):
                epochs = [row.epoch for row in history]
                _line(axes, epochs, _metric(history, metric), name, CYCLE[position % len(CYCLE)])
            axes.set(title=f"{label} on validation rows", xlabel="epoch")
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
            _legend(axes, "best")

    return _svg(draw, width=11, height=3.6)


@dataclass(frozen=True, slots=True)
class TrialPoint:
    """A trial of a tuning with the metric that it reached."""

    number: int
    metric: float
    is_complete: bool
    best: float | None
    """The best metric of complete trials up to this one."""
    places: Mapping[str, float]
    """Place of its value on the axis of each key."""


@dataclass(frozen=True, slots=True)
class KeyAxis:
    """The axis of a searched key."""

    scale: Literal["linear", "log"] = "linear"
    ticks: Sequence[str] = ()
    """Names of the places 0, 1, .. of choices; none for numbers."""


def trials(points: Sequence[TrialPoint], label: str) -> str:
    """Return the metric by trial, hollow where it was pruned, and the best so far."""

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        _dots(axes, points, lambda point: point.number)
        best = [(point.number, point.best) for point in points if point.best is not None]
        numbers, values = [each[0] for each in best], [each[1] for each in best]
        axes.step(numbers, values, where="post", color=COLORS["test"], label="best so far")
        axes.set(title="Trials", xlabel="trial", ylabel=label)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        _legend(axes, "best")

    return _svg(draw, width=11, height=3.4)


def trial_values(points: Sequence[TrialPoint], key: str, axis: KeyAxis, label: str) -> str:
    """Return the metric of trials against the values of a key."""

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        _dots(axes, points, lambda point: point.places[key])
        axes.set(title=key, ylabel=label, xscale=axis.scale)
        if axis.scale == "log":
            _plain_numbers(axes.xaxis)
        if axis.ticks:
            axes.set_xticks(range(len(axis.ticks)), [_short(tick) for tick in axis.ticks])
            axes.set_xlim(-0.5, len(axis.ticks) - 0.5)

    return _svg(draw, width=3.9, height=3)


def _dots(axes: Axes, points: Sequence[TrialPoint], place: Callable[[TrialPoint], float]) -> None:
    for is_complete, name in ((True, "complete"), (False, "pruned")):
        shown = [point for point in points if point.is_complete is is_complete]
        if shown:
            axes.plot(
                [place(point) for point in shown],
                [point.metric for point in shown],
                linestyle="",
                marker="o",
                markersize=5,
                color=COLORS["valid" if is_complete else "train"],
                fillstyle="full" if is_complete else "none",
                label=name,
            )


def _plain_numbers(axis: Axis) -> None:
    """Label the powers of ten of a logarithmic axis by numbers, as mathematics is not read."""
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())


def _short(text: str) -> str:
    return text if len(text) <= _TICK_CHARS else f"{text[:_TICK_CHARS]}.."


def frontier(points: Sequence[tuple[float, float]], chosen: tuple[float, float]) -> str:
    """Return candidates by bytes and AUC, the best of each size or smaller, and the one that was chosen."""

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        axes.set_title("AUC on validation rows by bytes of embedding tables")
        axes.scatter(*zip(*points, strict=True), s=9, color=COLORS["train"], label="candidates")
        best: list[tuple[float, float]] = []
        for size, value in sorted(points, key=lambda point: (point[0], -point[1])):
            if not best or value > best[-1][1]:
                best.append((size, value))
        best.append((max(size for size, _ in points), best[-1][1]))
        axes.step(
            *zip(*best, strict=True), where="post", color=COLORS["valid"], label="best so small"
        )
        axes.scatter(*chosen, s=60, marker="*", color=COLORS["test"], label="chosen", zorder=3)
        axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:,.0f}"))
        _legend(axes, "lower right")

    return _svg(draw, width=7.2, height=3.4)


def _metric(history: Sequence[Epoch], name: str) -> list[float | None]:
    return [row.valid.get(name) for row in history]


def _line(
    axes: Axes, epochs: Sequence[int], values: Sequence[float | None], label: str, color: str
) -> None:
    """Draw a line over the epochs that have a value; nothing where none has."""
    points = [(x, y) for x, y in zip(epochs, values, strict=True) if y is not None]
    if points:
        axes.plot(*zip(*points, strict=True), label=label, color=color, marker="o", markersize=3)


def _reach(counts: Histogram) -> tuple[float, float]:
    """Return the range that occurs: clicks are rare, and most of 0 to 1 is often empty."""
    both = zip(counts.negative, counts.positive, strict=True)
    used = [position for position, pair in enumerate(both) if any(pair)]
    if not used:
        return 0.0, 1.0
    return counts.edges[used[0]], counts.edges[used[-1] + 1]


def _legend(axes: Axes, place: Literal["best", "upper left", "lower right"]) -> None:
    if axes.get_legend_handles_labels()[1]:
        axes.legend(loc=place)


def _svg(draw: Callable[[Figure], None], *, width: float, height: float) -> str:
    """Return what `draw` puts on a figure of `width` x `height` inches as SVG text."""
    out = io.StringIO()
    with mpl.rc_context(_STYLE), warnings.catch_warnings():
        # A letter that the measuring font lacks is still right: the reader's fonts draw the text.
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        figure = Figure(figsize=(width, height), layout="constrained")
        draw(figure)
        figure.savefig(out, format="svg", metadata={"Date": None}, transparent=True)
    return out.getvalue()
