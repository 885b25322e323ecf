"""Cost of a search: CPU time of search and retraining beside one training of the same base, equal epochs.

    .venv/bin/python tests/benchmarks/search_cost.py --work FOLDER

OptInter stands against all pairs memorised, OptEmbed on DeepFM against the plain DeepFM, on planted data of
the defaults. Each side is `headwater train` in a process of its own, in turn; its start is counted, what
`headwater prepare` does before is not. Nothing stops early: search, retraining and base all see the
training rows `--epochs` times.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from measure import Cost, Spread, interleave, machine, ratios, run_child, table, write_figures

HEADWATER = Path(sys.executable).parent / "headwater"
OPTINTER = 'type="optinter", embedding_dim=8, interaction_dim=8, hidden=[64, 64], min_count=10'
DEEPFM = 'type="deepfm", embedding_dim=32'
SEARCH = "{epochs=EPOCHS}"
SIDES = {
    "OptInter": (f"{OPTINTER}, search={SEARCH}", 1024),
    "all memorised": (f'{OPTINTER}, architecture="memorise"', 1024),
    "OptEmbed": (f'type="optembed", base={{{DEEPFM}}}, search={SEARCH}', 4096),
    "DeepFM": (DEEPFM, 4096),
}
"""Model of each side, and its batch size."""
TARGETS = (("OptInter", "all memorised", 3), ("OptEmbed", "DeepFM", 4))


def main() -> None:
    """Run all sides in turn, and print their costs and ratios as Markdown."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--work", type=Path, required=True, help="folder for data and runs")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--rows", type=int, default=250_000)
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--out", type=Path, help="file for the raw figures")
    args = parser.parse_args()
    work = args.work.resolve()
    work.mkdir(parents=True, exist_ok=True)
    data = f"data-{args.rows}"
    run_child(
        [HEADWATER, "datasets", "make", "planted", data, "--set", f"rows={args.rows}"], folder=work
    )

    def side(step: str, name: str) -> Cost:
        model, batch_size = SIDES[name]
        settings = (
            f"model={{{model.replace('EPOCHS', str(args.epochs))}}}",
            f"train.batch_size={batch_size}",
            f"train.epochs={args.epochs}",
            f"train.patience={args.epochs}",
        )
        words = [word for setting in settings for word in ("--set", setting)]
        return run_child([HEADWATER, step, f"{data}/job.toml", *words], folder=work)

    for name in SIDES:
        side("prepare", name)
    costs = interleave({name: lambda name=name: side("train", name) for name in SIDES}, args.rounds)
    cpu_s = {name: [cost.cpu_s for cost in each] for name, each in costs.items()}
    rows: list[list[object]] = []
    for searching, base, target in TARGETS:
        ratio = ratios(cpu_s[base], cpu_s[searching])
        verdict = "" if ratio.median <= target else ": missed"
        rows.append([base, Spread.of(cpu_s[base]).text(1), "", ""])
        cells = (Spread.of(cpu_s[searching]).text(1), ratio.text(), f"at most {target}{verdict}")
        rows.append([f"{searching}: search and retraining", *cells])
    print(machine())
    print(table(["side", "CPU s", "times the base", "target"], rows))
    write_figures(args.out, {"cpu_s": cpu_s, "rows": args.rows, "epochs": args.epochs})


if __name__ == "__main__":
    main()
