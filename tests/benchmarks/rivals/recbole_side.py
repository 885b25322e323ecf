"""RecBole's own models, trainer and evaluator on the benchmark's data; run by RecBole's interpreter.

    RIVAL_PYTHON recbole_side.py lightgcn|sasrec|evaluation FOLDER --batch 2048

FOLDER holds atomic files as `retrieval_speed.py` writes them: `log/log.train.inter` and likewise `valid` and
`test`, or `log/log.inter`. Prints one JSON object of CPU seconds.
"""

from __future__ import annotations

import argparse
import json
import logging
import time
from itertools import islice
from pathlib import Path

import numpy as np
import scipy.sparse
from recbole.config import Config
from recbole.data import create_dataset, data_preparation
from recbole.utils import get_model, get_trainer, init_seed

FIXED = ("log.train.inter", "log.valid.inter", "log.test.inter")


def repair():
    """Give scipy's dictionary matrix back the update of all entries, which RecBole's LightGCN calls."""
    matrix = scipy.sparse.dok_matrix
    if not hasattr(matrix, "_update"):
        matrix._update = lambda self, entries: self._dict.update(entries)


def build(model, folder, settings):
    """Return RecBole's configuration, its three data loaders, and an untrained model with its trainer."""
    fixed = all((folder / "log" / name).exists() for name in FIXED)
    config = Config(
        model=model,
        dataset="log",
        config_dict={
            "data_path": str(folder),
            "use_gpu": False,
            "show_progress": False,
            "state": "ERROR",
            "seed": 1,
            "checkpoint_dir": str(folder / "saved"),
            **({"benchmark_filename": ["train", "valid", "test"]} if fixed else {}),
            **settings,
        },
    )
    init_seed(1, True)
    dataset = create_dataset(config)
    loaders = data_preparation(config, dataset)
    network = get_model(model)(config, loaders[0].dataset)
    trainer = get_trainer(config["MODEL_TYPE"], model)(config, network)
    return config, loaders, network, trainer


class Some:
    """The first batches of a loader, with what the trainer asks of one."""

    def __init__(self, loader, number):
        self.loader = loader
        self.number = number
        self.shuffle = False

    def __iter__(self):
        return islice(iter(self.loader), self.number)


def train(model, folder, settings, batches):
    """Return the CPU seconds of an epoch and its steps; of `batches` of them where that is given."""
    _, (train_data, _, _), _, trainer = build(model, folder, settings)
    steps = len(train_data)
    part = train_data if batches is None else Some(train_data, batches)
    trainer._train_epoch(Some(train_data, 1), 0)
    started_s = time.process_time()
    trainer._train_epoch(part, 1)
    cpu_s = time.process_time() - started_s
    return {"cpu_s": cpu_s * steps / min(steps, batches or steps), "steps": steps}


def evaluate(folder, settings, repeats):
    """Return the CPU seconds of evaluations of the test split by an untrained BPR, and its users."""
    _, (_, _, test_data), network, trainer = build("BPR", folder, settings)
    network.eval()
    seconds = []
    for _ in range(repeats + 1):
        started_s = time.process_time()
        found = trainer.evaluate(test_data, load_best_model=False)
        seconds.append(time.process_time() - started_s)
    return {
        "cpu_s": float(np.median(seconds[1:])),
        "users": len(test_data.uid_list),
        "metrics": {name: float(value) for name, value in found.items()},
    }


def main():
    """Run the side that the command line names."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("side", choices=["lightgcn", "sasrec", "evaluation"])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--batch", type=int, required=True)
    parser.add_argument("--batches", type=int, help="batches of an epoch to time; all when absent")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--settings", type=json.loads, default={})
    args = parser.parse_args()
    logging.disable(logging.CRITICAL)
    repair()
    if args.side == "evaluation":
        settings = {**args.settings, "eval_batch_size": args.batch}
        result = evaluate(args.folder, settings, args.repeats)
    else:
        model = {"lightgcn": "LightGCN", "sasrec": "SASRec"}[args.side]
        settings = {**args.settings, "train_batch_size": args.batch}
        result = train(model, args.folder, settings, args.batches)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
