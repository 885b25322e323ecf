"""A raw file: how it is named, in which format, and where its bytes are."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

import pyarrow as pa
from fsspec import AbstractFileSystem
from fsspec.implementations.local import LocalFileSystem

from headwater.pipelines.job_csv import CsvFormat

Format = Literal["parquet", "csv", "tsv", "ndjson"]
SUFFIXES: dict[str, Format] = {
    ".parquet": "parquet",
    ".pq": "parquet",
    ".csv": "csv",
    ".csv.gz": "csv",
    ".tsv": "tsv",
    ".tsv.gz": "tsv",
    ".ndjson": "ndjson",
    ".ndjson.gz": "ndjson",
    ".jsonl": "ndjson",
    ".jsonl.gz": "ndjson",
}
DELIMITERS = {"csv": ",", "tsv": "\t"}

_GZIP = b"\x1f\x8b"


@dataclass(frozen=True, slots=True)
class SourceFile:
    """A raw file: `path` as errors name it, and where its bytes are."""

    path: str
    fs: AbstractFileSystem
    location: str
    format: Format
    csv: CsvFormat = field(default_factory=CsvFormat)
    """The form of a CSV or TSV: delimiter, header, quotes."""

    @property
    def is_text(self) -> bool:
        """True where the file holds text without types, as CSV does."""
        return self.format in DELIMITERS

    @property
    def delimiter(self) -> str:
        """The delimiter of the fields of a CSV or TSV."""
        return self.csv.delimiter or DELIMITERS[self.format]

    def open(self) -> Any:
        """Return the bytes of a text file as an Arrow input stream, without gzip around them."""
        with self.fs.open(self.location, "rb") as file:
            is_gzip = file.read(len(_GZIP)) == _GZIP
        compression = "gzip" if is_gzip or self.path.endswith(".gz") else None
        if isinstance(self.fs, LocalFileSystem):
            return pa.input_stream(self.location, compression=compression)
        return pa.input_stream(self.fs.open(self.location, "rb"), compression=compression)


def format_of(path: str) -> Format | None:
    """Return the format that the end of a name tells, None for an unknown one."""
    name = path.lower()
    return next((form for suffix, form in SUFFIXES.items() if name.endswith(suffix)), None)
