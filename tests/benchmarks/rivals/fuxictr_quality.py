"""Trains FuxiCTR's FinalMLP or DNN once on ctr_frappe_x1 and writes what it reached, for quality.py.

Run by the rival's interpreter. Model, trainer, feature processor and metrics are FuxiCTR's own; only the
loader is replaced, through the hook that it has for that: the same batches (a fresh permutation of all rows
each epoch, the last one partial) cut from tensors, because the original collates row by row in Python.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import logging
import math
import os
import sys
import time
from pathlib import Path

FIELDS = [
    *("user", "item", "daytime", "weekday", "isweekend"),
    *("homework", "cost", "weather", "country", "city"),
]
MODELS = {
    "finalmlp": (
        "FinalMLP",
        "model_zoo/FinalMLP/src/FinalMLP.py",
        {
            "mlp1_hidden_units": [400],
            "mlp1_hidden_activations": "relu",
            "mlp1_dropout": 0.4,
            "mlp1_batch_norm": True,
            "mlp2_hidden_units": [100],
            "mlp2_hidden_activations": "relu",
            "mlp2_dropout": 0.4,
            "mlp2_batch_norm": True,
            "use_fs": True,
            "fs_hidden_units": [400],
            "fs1_context": ["user"],
            "fs2_context": ["item"],
            "num_heads": 5,
        },
    ),
    "dnn": (
        "DNN",
        "model_zoo/DNN/DNN_torch/src/DNN.py",
        {
            "hidden_units": [400, 400, 400],
            "hidden_activations": "relu",
            "net_dropout": 0.2,
            "batch_norm": True,
        },
    ),
}


def main() -> None:
    """Prepare the data once in `--work`, train, and write one JSON object to `--out`."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--fuxictr", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--model", choices=MODELS, required=True)
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--epochs", type=int, default=100)
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    sys.path.insert(0, str(given.fuxictr))
    logging.basicConfig(level=logging.WARNING)

    import numpy as np
    import pandas as pd
    import torch
    from fuxictr.features import FeatureMap
    from fuxictr.preprocess import FeatureProcessor, build_dataset
    from fuxictr.pytorch.dataloaders import RankDataLoader
    from fuxictr.pytorch.torch_utils import seed_everything

    class TensorLoader:
        """Batches of a file that FuxiCTR encoded, as FuxiCTR's model wants them."""

        def __init__(self, feature_map, data_path, batch_size=32, shuffle=False, **_):
            frame = pd.read_parquet(f"{data_path}.parquet")
            self.columns = {
                name: torch.from_numpy(frame[name].to_numpy().copy())
                for name in [*feature_map.features, *feature_map.labels]
            }
            self.batch_size, self.shuffle = batch_size, shuffle
            self.num_samples, self.num_blocks = len(frame), 1

        def __len__(self):
            return math.ceil(self.num_samples / self.batch_size)

        def __iter__(self):
            rows = torch.randperm(self.num_samples) if self.shuffle else None
            for start in range(0, self.num_samples, self.batch_size):
                stop = start + self.batch_size
                part = slice(start, stop) if rows is None else rows[start:stop]
                yield {name: values[part] for name, values in self.columns.items()}

    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    class_name, source, settings = MODELS[given.model]
    params = {
        "dataset_id": "frappe_x1",
        "data_root": f"{given.work}/",
        "data_format": "parquet",
        "train_data": str(given.data / "train_reconstructed.parquet"),
        "valid_data": str(given.data / "valid.parquet"),
        "test_data": str(given.data / "test.parquet"),
        "feature_cols": [{"name": FIELDS, "active": True, "dtype": "int", "type": "categorical"}],
        "label_col": {"name": "label", "dtype": "float"},
        "min_categr_count": 1,
        "model_root": f"{given.work}/checkpoints/",
        "model_id": f"{given.model}_{given.seed}",
        "loss": "binary_crossentropy",
        "metrics": ["logloss", "AUC"],
        "task": "binary_classification",
        "optimizer": "adam",
        "learning_rate": 1e-3,
        "embedding_regularizer": 0.05,
        "net_regularizer": 0,
        "batch_size": 4096,
        "embedding_dim": 10,
        "epochs": given.epochs,
        "shuffle": True,
        "seed": given.seed,
        "monitor": "AUC",
        "monitor_mode": "max",
        "early_stop_patience": 2,
        "save_best_only": True,
        "eval_steps": None,
        "verbose": 0,
        "gpu": -1,
        "data_loader": TensorLoader,
        **settings,
    }
    (given.work / "checkpoints" / params["dataset_id"]).mkdir(parents=True, exist_ok=True)
    seed_everything(given.seed)
    encoder = FeatureProcessor(**params)
    paths = build_dataset(encoder, **params)
    params |= dict(zip(("train_data", "valid_data", "test_data"), paths, strict=True))
    feature_map = FeatureMap(params["dataset_id"], str(given.work / params["dataset_id"]))
    feature_map.load(encoder.json_file, params)

    spec = importlib.util.spec_from_file_location("rival_model", given.fuxictr / source)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    seed_everything(given.seed)
    model = getattr(module, class_name)(feature_map, **params)
    train, valid, test = RankDataLoader(feature_map, stage="both", **params).make_iterator()

    history = []
    evaluate = model.evaluate

    def noted(data, metrics=None):
        found = evaluate(data, metrics=metrics)
        history.append(found["AUC"])
        return found

    model.evaluate = noted
    started_s = time.process_time()
    model.fit(train, validation_data=valid, **params)
    cpu_s = time.process_time() - started_s
    model.evaluate = evaluate
    best_valid, best_test = model.evaluate(valid), model.evaluate(test)
    result = {
        "system": "fuxictr",
        "model": given.model,
        "seed": given.seed,
        "valid_auc": best_valid["AUC"],
        "valid_logloss": best_valid["logloss"],
        "test_auc": best_test["AUC"],
        "test_logloss": best_test["logloss"],
        "epochs": len(history),
        "best_epoch": int(np.argmax(history)) + 1,
        "history": history,
        "cpu_s": cpu_s,
        "parameters": sum(weight.numel() for weight in model.parameters()),
        "rows": [train.num_samples, valid.num_samples, test.num_samples],
    }
    given.out.write_text(json.dumps(result, default=float) + "\n")


if __name__ == "__main__":
    main()
