"""FuxiCTR's own FinalMLP, trainer and data loader on the benchmark's data; run by FuxiCTR's interpreter.

    RIVAL_PYTHON fuxictr_train.py SOURCE FOLDER --dim 12 --widths 400,400,400 --batch 4096

SOURCE is its checkout. `--repaired` replaces the fusion, which copies its weight for every row, by one matrix
product with the same result; everything else stays its own. Prints one JSON object.
"""

from __future__ import annotations

import argparse
import json
import resource
import sys
import tempfile
import time
from collections import OrderedDict
from itertools import pairwise
from pathlib import Path


class Timed:
    """Gives some batches, and notes the clocks before each: a difference is a load and a step."""

    def __init__(self, batches, num_steps):
        self.batches = batches
        self.num_steps = num_steps
        self.cpu_s = []
        self.wall_s = []

    def __iter__(self):
        found = iter(self.batches)
        for _ in range(self.num_steps):
            self._note()
            yield next(found)
        self._note()

    def _note(self):
        self.cpu_s.append(time.process_time())
        self.wall_s.append(time.perf_counter())

    def steps(self, first):
        """Return the seconds of each step from `first` on."""
        clocks = {"cpu_s": self.cpu_s, "wall_s": self.wall_s}
        return {
            key: [end - start for start, end in pairwise(marks)][first:]
            for key, marks in clocks.items()
        }


def feature_map(folder, feature_map_class):
    """Return FuxiCTR's description of the fields: one categorical field each, row 0 for padding."""
    sizes = json.loads((folder / "fields.json").read_text())
    described = feature_map_class("speed", str(folder))
    described.features = OrderedDict(
        (name, {"source": "", "type": "categorical", "padding_idx": 0, "vocab_size": size})
        for name, size in sizes.items()
    )
    described.labels = ["label"]
    described.num_fields = described.get_num_fields()
    described.total_features = sum(sizes.values())
    described.set_column_index()
    return described


def repair(fusion):
    """Give the fusion (one head, one output) another forward of the same function."""

    def forward(x, y):
        weight = fusion.w_xy.view(fusion.head_x_dim, fusion.head_y_dim)
        return fusion.w_x(x) + fusion.w_y(y) + ((x @ weight) * y).sum(1, keepdim=True)

    fusion.forward = forward


def main():
    """Train for one epoch over the data and print what each step took."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("source", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--dim", type=int, required=True)
    parser.add_argument("--widths", required=True)
    parser.add_argument("--batch", type=int, required=True)
    parser.add_argument("--warmup", type=int, default=1)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--repaired", action="store_true")
    args = parser.parse_args()
    sys.path[:0] = [str(args.source), str(args.source / "model_zoo" / "FinalMLP")]
    from fuxictr.features import FeatureMap
    from fuxictr.pytorch.dataloaders import RankDataLoader
    from fuxictr.pytorch.torch_utils import seed_everything
    from src import FinalMLP

    seed_everything(2024)
    described = feature_map(args.folder, FeatureMap)
    widths = [int(width) for width in args.widths.split(",")]
    model = FinalMLP(
        described,
        embedding_dim=args.dim,
        mlp1_hidden_units=list(widths),
        mlp2_hidden_units=list(widths),
        use_fs=False,
        num_heads=1,
        learning_rate=1e-3,
        optimizer="adam",
        loss="binary_crossentropy",
        metrics=["AUC"],
        monitor="AUC",
        verbose=0,
        model_root=tempfile.gettempdir(),
    )
    if args.repaired:
        repair(model.fusion_module)
    loader, _ = RankDataLoader(
        described,
        stage="train",
        train_data=str(args.folder / "train.parquet"),
        batch_size=args.batch,
        shuffle=True,
        data_format="parquet",
        num_workers=0,
    ).make_iterator()
    num_steps = min(args.warmup + args.steps, len(loader))
    timed = Timed(loader, num_steps)
    # What its `fit` sets before the first epoch; no evaluation falls into the steps.
    model._max_gradient_norm = 10.0
    model._total_steps = 0
    model._eval_steps = num_steps + 1
    model._stop_training = False
    model.train_epoch(timed)
    result = timed.steps(args.warmup)
    result["peak_mib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps(result))


if __name__ == "__main__":
    main()
