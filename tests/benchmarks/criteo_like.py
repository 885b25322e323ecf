"""Rows like Criteo's, made from a seed: a label, 13 counts with gaps and 26 categories of 8 hex digits.

Field sizes are those of the Criteo challenge, or the same shape scaled to `--ids` values in all. Of V values
the i-th is drawn as floor(V u^2) with u uniform: a few are frequent, most are rare. Rows are made in pieces,
each from the seed and its own number, so that memory does not grow with rows and a longer file begins with
the rows of a shorter one.

    .venv/bin/python tests/benchmarks/criteo_like.py OUT.parquet --rows 5000000
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq

FIELD_SIZES = (
    1460, 583, 10131227, 2202608, 305, 24, 12517, 633, 3, 93145, 5683, 8351593, 3194, 27, 14992,
    5461306, 10, 5652, 2173, 4, 7046547, 18, 15, 286181, 105, 142572,
)  # fmt: skip
"""Distinct values of C1 to C26 in the data of the challenge."""
MISSING = (
    0.45, 0.0, 0.21, 0.22, 0.03, 0.22, 0.04, 0.01, 0.04, 0.45, 0.04, 0.76, 0.22,
)  # fmt: skip
"""Share of rows in which I1 to I13 are missing."""
SCALES = (0.5, 2.0, 2.0, 1.5, 7.0, 3.0, 2.0, 2.5, 3.5, 0.3, 1.0, 0.2, 1.8)
"""Mean of the logarithm of I1 to I13."""
COUNTS = tuple(f"I{number}" for number in range(1, 14))
CATEGORIES = tuple(f"C{number}" for number in range(1, 27))
PIECE_ROWS = 250_000

_HEX = np.array([list(f"{value:04x}".encode()) for value in range(1 << 16)], np.uint8)


def field_sizes(total: int | None) -> list[int]:
    """Return the values of each category; for a `total` the large fields are scaled to it."""
    if total is None:
        return list(FIELD_SIZES)
    factor = total / sum(FIELD_SIZES)
    return [max(round(size * factor), min(size, 100)) for size in FIELD_SIZES]


def pieces(num_rows: int, seed: int, ids: int | None = None) -> Iterator[Any]:
    """Yield the rows in order, at most PIECE_ROWS a table: label and counts int64, categories string."""
    sizes = field_sizes(ids)
    for number, start in enumerate(range(0, num_rows, PIECE_ROWS)):
        rng = np.random.default_rng([seed, number])
        columns: dict[str, Any] = {"label": pa.array((rng.random(PIECE_ROWS) < 0.25) * 1)}
        for name, missing, scale in zip(COUNTS, MISSING, SCALES, strict=True):
            values = np.exp(rng.normal(scale, 1.5, PIECE_ROWS)).astype(np.int64)
            values -= 1 if name == "I2" else 0
            columns[name] = pa.array(values, mask=rng.random(PIECE_ROWS) < missing)
        for field, (name, size) in enumerate(zip(CATEGORIES, sizes, strict=True)):
            ids_B = (size * rng.random(PIECE_ROWS) ** 2).astype(np.uint32)
            columns[name] = _hex(ids_B, field)
        yield pa.table(columns).slice(0, min(PIECE_ROWS, num_rows - start))


def _hex(ids_B: np.ndarray, field: int) -> Any:
    """Return 8 hex digits for each id: a bijection of 32 bits, another one in each field."""
    mixed = (ids_B + np.uint32(field * 0x9E3779B1 % 2**32)) * np.uint32(0x85EBCA6B)
    mixed ^= mixed >> np.uint32(13)
    mixed *= np.uint32(0xC2B2AE35)
    mixed ^= mixed >> np.uint32(16)
    digits = np.concatenate([_HEX[mixed >> np.uint32(16)], _HEX[mixed & np.uint32(0xFFFF)]], axis=1)
    offsets = np.arange(0, 8 * len(ids_B) + 1, 8, dtype=np.int32)
    return pa.StringArray.from_buffers(len(ids_B), pa.py_buffer(offsets), pa.py_buffer(digits))


def write(
    path: Path, num_rows: int, seed: int, *, ids: int | None = None, plain: bool = False
) -> None:
    """Write a CSV (gaps are empty) or a Parquet file of zstd; `plain`: not compressed, no dictionaries."""
    schema = next(pieces(1, seed, ids)).schema
    part = path.with_name(f"part-{path.name}")
    if path.suffix == ".csv":
        writer = pa_csv.CSVWriter(
            part,
            schema,
            write_options=pa_csv.WriteOptions(quoting_style="none", quoting_header="none"),
        )
    else:
        stored: dict[str, Any] = {"compression": "zstd"}
        if plain:
            stored = {"compression": "none", "use_dictionary": False, "column_encoding": "PLAIN"}
        writer = pq.ParquetWriter(part, schema, **stored)
    with writer:
        for piece in pieces(num_rows, seed, ids):
            writer.write_table(piece)
    part.rename(path)


def write_job(path: Path, train: Path, valid: Path, min_count: int = 10) -> None:
    """Write a job over two such files: counts in log buckets, categories in vocabularies."""
    columns = [
        f'  {{ name = "{name}", encoder = "log_buckets", min_count = {min_count} }},'
        for name in COUNTS
    ]
    columns += [
        f'  {{ name = "{name}", encoder = "vocabulary", min_count = {min_count} }},'
        for name in CATEGORIES
    ]
    path.write_text(
        "\n".join(
            [
                'name = "criteo"',
                "[data]",
                f"train = {json.dumps(str(train))}",
                f"valid = {json.dumps(str(valid))}",
                "[features]",
                'label = "label"',
                "columns = [",
                *columns,
                "]",
                "[model]",
                'type = "finalmlp"',
                "",
            ]
        )
    )


def make(path: Path, num_rows: int, seed: int, *options: str) -> Path:
    """Return `path` after a child has written it, where it is not there yet: our own memory stays small."""
    if not path.exists():
        words = [str(path), "--rows", str(num_rows), "--seed", str(seed), *options]
        subprocess.run([sys.executable, __file__, *words], check=True)
    return path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path, help="file to write: .csv or .parquet")
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--ids", type=int, help="values of all categories together")
    parser.add_argument("--plain", action="store_true", help="Parquet without compression")
    given = parser.parse_args()
    write(given.out, given.rows, given.seed, ids=given.ids, plain=given.plain)


if __name__ == "__main__":
    main()
