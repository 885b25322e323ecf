"""FuxiCTR's side of `preparing.py`, run by FuxiCTR's interpreter: fit on one CSV, encode it and a second.

    RIVALS/fuxictr/bin/python fuxictr_prepare.py SOURCE_OF_FUXICTR TRAIN.csv VALID.csv OUT

Its own processor for Criteo, configured as its benchmarks configure it: the 13 counts in buckets of the
logarithm squared, then the 39 columns as categories of values seen ten times or more. Prints, as JSON, the
size of each vocabulary without its two reserved rows.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

source, train, valid, out = sys.argv[1:]
sys.path.insert(0, source)

from fuxictr.datasets.criteo import CustomizedFeatureProcessor  # noqa: E402
from fuxictr.preprocess import build_dataset  # noqa: E402

RESERVED = 2  # padding and unknown


def main() -> None:
    columns = [
        {
            "name": [f"I{number}" for number in range(1, 14)],
            "active": True,
            "dtype": "float",
            "type": "categorical",
            "preprocess": "convert_to_bucket",
            "fill_na": 0,
        },
        {
            "name": [f"C{number}" for number in range(1, 27)],
            "active": True,
            "dtype": "str",
            "type": "categorical",
            "fill_na": "",
        },
    ]
    label = {"name": "label", "dtype": "float"}
    processor = CustomizedFeatureProcessor(columns, label, dataset_id="criteo", data_root=out)
    build_dataset(
        processor,
        train_data=train,
        valid_data=valid,
        data_format="csv",
        min_categr_count=10,
    )
    features = json.loads((Path(out) / "criteo" / "feature_map.json").read_text())["features"]
    sizes = {
        name: spec["vocab_size"] - RESERVED for each in features for name, spec in each.items()
    }
    print(json.dumps({"sizes": sizes}))


if __name__ == "__main__":
    main()
