"""Ranking with the context once and with int8 dense layers, beside the plain call; what int8 costs in AUC.

    .venv/bin/python tests/benchmarks/rank.py [--data FRAPPE]

One FinalMLP (39 integer features of which 20 are the context's, as `releases.py` makes it) in four releases:
float32 and int8, each with and without `export.context`. One user, 100 and 500 candidates.

- The graph: calls of onnxruntime on ready arrays, all in one process with one thread, in turn. `plain` has
  the context repeated in each row, `once` has it in one.
- The service: one connection asks `headwater serve --runners 1`. `plain` is a JSON request of
  `/v2/models/{model}/infer` with every value in every row; `once` is `/v1/rank` with the context once and the
  candidates as columns. CPU of the whole server.

`gain` = CPU time of the plain float32 call / CPU time of this one, round by round.

With `--data`, a folder of the Frappe data (train*.parquet, valid.parquet, test.parquet),
`examples/frappe.toml` is trained there once and exported both ways; AUC of the test rows is that of
`headwater score` on either release.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from load import Body, Wrk, feeds, infer_body, post, running
from measure import Spread, interleave, machine, ratios, table, write_figures
from releases import make_release, rows

from headwater.serving.kinds.graph import open_session
from headwater.serving.manifest import MODEL_NAME

CONTEXT = tuple(f"f{index:02}" for index in range(20))
CANDIDATES = (100, 500)
PLAIN = "plain float32"
VARIANTS = (PLAIN, "once float32", "plain int8", "once int8")
NUM_BODIES = 16
EXAMPLE = Path(__file__).parents[2] / "examples" / "frappe.toml"


def request(num_rows: int, seed: int) -> pl.DataFrame:
    """Return candidates of one user: the columns of the context are the same in all rows."""
    frame = rows("ids", num_rows, seed)
    return frame.with_columns(pl.col(name).first() for name in CONTEXT)


def rank_body(frame: pl.DataFrame, model: str) -> Body:
    """Return a request of `/v1/rank`, the context once and the candidates as columns."""
    message = {
        "model": model,
        "context": {name: frame[name][0] for name in CONTEXT},
        "candidates": frame.drop(CONTEXT).to_dict(as_series=False),
    }
    return Body(json.dumps(message, separators=(",", ":")).encode())


@dataclass(frozen=True, slots=True)
class Found:
    """CPU milliseconds of a call, by round."""

    cpu_ms: list[float]
    plain_ms: list[float]

    def line(self, num_rows: int) -> list[str]:
        """Return CPU ms, rows per CPU second, and the gain."""
        return [
            Spread.of(self.cpu_ms).text(),
            f"{1000 * num_rows / Spread.of(self.cpu_ms).median:,.0f}",
            ratios(self.cpu_ms, self.plain_ms).text(),
        ]


def measure_graphs(
    releases: Mapping[str, Path], num_rows: int, rounds: int, seconds: float
) -> tuple[dict[str, Found], dict[str, float]]:
    """Return the CPU time of bare calls, and how far scores are from plain float32 at most."""
    frames = [request(num_rows, seed) for seed in range(NUM_BODIES)]
    runs: dict[str, Callable[[], float]] = {}
    scored: dict[str, np.ndarray] = {}
    for variant in VARIANTS:
        session = open_session(releases[variant] / MODEL_NAME)
        calls = [feeds(frame) for frame in frames]
        if variant.startswith("once"):
            calls = [
                {name: a[:1] if name in CONTEXT else a for name, a in call.items()}
                for call in calls
            ]
        outputs: list[Any] = [session.run(["prob"], call)[0] for call in calls]
        scored[variant] = np.concatenate(outputs)

        def run(session: Any = session, calls: Sequence[Any] = calls) -> float:
            start_s, count, end_s = time.process_time(), 0, time.monotonic() + seconds
            while time.monotonic() < end_s:
                session.run(["prob"], calls[count % len(calls)])
                count += 1
            return 1000 * (time.process_time() - start_s) / count

        runs[variant] = run
    cost = interleave(runs, rounds)
    far = {name: float(np.abs(s - scored[PLAIN]).max()) for name, s in scored.items()}
    return {name: Found(cost[name], cost[PLAIN]) for name in VARIANTS}, far


def measure_service(
    releases: Mapping[str, Path], num_rows: int, rounds: int, seconds: int
) -> dict[str, Found]:
    """Return the server's CPU time a request, one connection."""
    frames = [request(num_rows, seed) for seed in range(NUM_BODIES)]
    runs: dict[str, Callable[[], float]] = {}
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        for variant in VARIANTS:
            release = releases[variant]
            model = release.parent.name
            served = release.parent.parent
            command = [sys.executable, "-m", "headwater.pipelines.cli", "serve", served, "--json"]
            pid, line = stack.enter_context(
                running(
                    [*command, "--port", "0", "--runners", "1"],
                    ready_path=f"/v2/models/{model}/ready",
                )
            )
            url = json.loads(line)["url"]
            if variant.startswith("once"):
                path, bodies = "/v1/rank", [rank_body(frame, model) for frame in frames]
            else:
                path = f"/v2/models/{model}/infer"
                bodies = [infer_body(frame, "json") for frame in frames]
            post(url + path, bodies[0])
            wrk = Wrk(url, path, bodies, folder)
            wrk.run(pid, connections=1, seconds=1)
            runs[variant] = lambda wrk=wrk, pid=pid: (
                wrk.run(pid, connections=1, seconds=seconds).cpu_ms
            )
        cost = interleave(runs, rounds)
    return {name: Found(cost[name], cost[PLAIN]) for name in VARIANTS}


def measure_auc(data: Path) -> dict[str, Any]:
    """Train the example on the Frappe data once, and return the test AUC of both releases."""
    # Late: these bring torch, which the rest does not need.
    from headwater.pipelines.evaluation.metrics import auc
    from headwater.pipelines.job import load_job
    from headwater.pipelines.preparing.prepare import prepare
    from headwater.pipelines.release.export import export
    from headwater.pipelines.scoring.score import score
    from headwater.pipelines.training.train import train
    from headwater.serving.release import read_manifest

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        job = load_job(EXAMPLE, [f"data.root={json.dumps(str(data))}"])
        run = train(job, prepare(job, folder / "prepared"), runs=folder / "runs")
        figures: dict[str, Any] = {}
        scores: dict[str, np.ndarray] = {}
        for precision in ("float32", "int8"):
            settings = job.export.model_copy(update={"precision": precision})
            release = export(run, folder / precision, settings=settings)
            out = folder / f"{precision}.parquet"
            score(release, data / "test.parquet", out)
            frame = pl.read_parquet(out)
            scores[precision] = frame["prob"].to_numpy()
            labels = frame[job.features.label].to_numpy().astype(np.uint8)
            figures[f"auc_{precision}"] = auc(labels, scores[precision])
            figures[f"parity_{precision}"] = read_manifest(release).parity
        difference = np.abs(scores["float32"] - scores["int8"])
        return figures | {
            "test_rows": len(labels),
            "max_abs_diff": float(difference.max()),
            "mean_abs_diff": float(difference.mean()),
        }


def main() -> None:
    """Measure and print the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--data", type=Path, help="folder of the Frappe data, for the AUC")
    parser.add_argument(
        "--releases", type=Path, help="folder of releases, made where they are absent"
    )
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=int, default=1, help="of each stretch")
    parser.add_argument("--skip-speed", action="store_true", help="AUC alone")
    parser.add_argument("--out", type=Path, help="write the raw figures as JSON")
    arguments = parser.parse_args()
    figures: dict[str, Any] = {}
    print(f"{machine()}; {arguments.rounds} rounds; median (smallest to largest)\n")
    if not arguments.skip_speed:
        with tempfile.TemporaryDirectory() as name:
            releases = four_releases(arguments.releases or Path(name))
            figures["speed"] = speed(releases, arguments.rounds, arguments.seconds)
    if arguments.data is not None:
        found = figures["frappe"] = measure_auc(arguments.data)
        cost = found["auc_float32"] - found["auc_int8"]
        print(
            f"\nFrappe, {found['test_rows']:,} test rows: AUC {found['auc_float32']:.6f} in float32, "
            f"{found['auc_int8']:.6f} in int8, cost {cost:.6f}; scores differ by "
            f"{found['mean_abs_diff']:.1e} in the mean, {found['max_abs_diff']:.1e} at most"
        )
    write_figures(arguments.out, figures)


def four_releases(folder: Path) -> dict[str, Path]:
    """Return the release of each variant below `folder`."""
    found: dict[str, Path] = {}
    for variant in VARIANTS:
        kind, precision = variant.split()
        found[variant] = folder / variant / "ids" / "1"
        if not found[variant].exists():
            make_release(
                folder / variant,
                "ids",
                context=CONTEXT if kind == "once" else (),
                precision="int8" if precision == "int8" else "float32",
            )
    return found


def speed(releases: Mapping[str, Path], rounds: int, seconds: int) -> dict[str, Any]:
    """Measure the graphs and the service, print a table, and return the figures."""
    head = ("", "candidates", "call", "CPU ms", "rows per CPU s", "gain", "largest difference")
    lines: list[list[str]] = []
    figures: dict[str, Any] = {}
    for num_rows in CANDIDATES:
        graphs, far = measure_graphs(releases, num_rows, rounds, seconds)
        service = measure_service(releases, num_rows, rounds, seconds)
        for side, found in (("graph", graphs), ("service", service)):
            for variant, cost in found.items():
                figures[f"{side} {num_rows} {variant}"] = cost.cpu_ms
                end = f"{far[variant]:.0e}" if side == "graph" else ""
                lines.append([side, str(num_rows), variant, *cost.line(num_rows), end])
        figures[f"difference {num_rows}"] = far
    print(table(head, lines))
    return figures


if __name__ == "__main__":
    main()
