"""Fitted features: raw columns, programs of primitives, and the schema that joins them.

Light on purpose: only msgspec and the standard library, so that the online service reads the same
types without polars, pyarrow or onnx. Everything learned by `fit` is in a schema, and
`schema_file` keeps it.

Codes (int32): 0 = missing or padding, 1 = unknown, values from 2. Missing on the wire and in the
graph: NaN (double), '' (string), INT64_MIN (int64).
"""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import ClassVar, Literal, cast

import msgspec
from msgspec.structs import force_setattr

Dtype = Literal["int64", "double", "string"]
INT64_MIN = -(2**63)
MISSING_CODE = 0
UNKNOWN_CODE = 1
FIRST_CODE = 2
_KEYS_AT_ONCE = 1 << 16


class RawColumn(msgspec.Struct, frozen=True, kw_only=True):
    """A column of the raw logs, and the input of the same name of a release.

    A scalar is a `[N, 1]` tensor; a list is a padded `[N, L]` tensor beside `<name>.length`, int64
    `[N, 1]`.
    """

    name: str
    dtype: Dtype
    is_list: bool = False


class Split(msgspec.Struct, frozen=True, tag="split"):
    """A text to the list of texts between separators; the first step, of a column that is no list.

    The empty text is an empty list; empty parts and spaces stay.
    """

    separator: str


class Time(msgspec.Struct, frozen=True, tag="time"):
    """Text to int64, the time that it says in ISO 8601 (`times`), in ms since 1970; else INT64_MIN.

    Before all steps but Split; what is missing after it was missing, or said no time.
    """


class Lookup(msgspec.Struct, frozen=True, tag="lookup"):
    """int64 or string to code: the position of the value in `keys` plus 2; 1 where it is not there.

    With `codes` (same length as `keys`), the code is `codes[position]`: several keys may share one.
    Keys are all integers or all strings, unique, and never the missing value of their type. Integers
    are kept in an `array` of int64: objects would take ten times the memory.
    """

    keys: Sequence[int | str]
    codes: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        keys = self.keys
        if not isinstance(keys, array):
            is_text = not keys or isinstance(keys[0], str)
            kept = tuple(keys) if is_text else array("q", cast("Sequence[int]", keys))
            force_setattr(self, "keys", kept)


class Edges(msgspec.Struct, frozen=True, tag="edges"):
    """double or int64 to code: 2 plus the number of `values` (ascending float64) that are <= x."""

    values: tuple[float, ...]


class Affine(msgspec.Struct, frozen=True, tag="affine"):
    """double or int64 to float32: `x * scale + offset`, computed in float64, then rounded once.

    A scale of 1 and an offset of 0 are not applied, so that both compilers keep the sign of zero. Other
    scales are at least `NEAR_ONE` from 1 and other offsets at least `NEAR_ZERO` from 0: onnxruntime
    removes a float64 Mul or Add whose constant becomes 1 or 0 in float32.
    """

    NEAR_ONE: ClassVar[float] = 1e-7
    NEAR_ZERO: ClassVar[float] = 1e-44

    scale: float
    offset: float


class Hash(msgspec.Struct, frozen=True, tag="hash"):
    """string or int64 to code: 2 plus MurmurHash3 of the text, modulo `num_buckets`.

    32 bit, with `seed`; an integer hashes as its decimal text.
    """

    num_buckets: int
    seed: int = 0


class Calendar(msgspec.Struct, frozen=True, tag="calendar"):
    """int64 UTC time to code: 2 plus the part of the calendar, at a fixed offset from UTC.

    hour 0..23, weekday 0 (Monday)..6, weekend 0/1, hour_of_week 0..167.
    """

    part: Literal["hour", "weekday", "weekend", "hour_of_week"]
    unit: Literal["s", "ms", "us"] = "ms"
    utc_offset_minutes: int = 0

    @property
    def hour(self) -> int:
        """An hour in `unit`."""
        return 3600 * {"s": 1, "ms": 1000, "us": 1_000_000}[self.unit]

    @property
    def shift(self) -> int:
        """The number to add to a UTC time, modulo a week, so that 0 is Monday 0:00 on the local clock.

        The epoch was a Thursday, three days after a Monday.
        """
        return (72 * self.hour + self.utc_offset_minutes * self.hour // 60) % (168 * self.hour)


class Cross(msgspec.Struct, frozen=True, tag="cross"):
    """Codes of other columns to their mixed-radix number (int64); INT64_MIN where any is 0."""

    cardinalities: tuple[int, ...]


class Missing(msgspec.Struct, frozen=True, tag="missing"):
    """`fill` where the program's input was missing, else the value; the last elementwise step."""

    fill: float = float(MISSING_CODE)


class Pad(msgspec.Struct, frozen=True, tag="pad"):
    """A list to exactly `length` entries: the newest (`tail`) or first (`head`), then zeros."""

    length: int
    keep: Literal["tail", "head"] = "tail"


Step = Split | Time | Lookup | Edges | Affine | Hash | Calendar | Cross | Missing | Pad


class EncodedColumn(msgspec.Struct, frozen=True, kw_only=True):
    """One fitted feature: its program, and the shape of what the program gives.

    `inputs` names one raw column; for a crossed column it names earlier encoded columns.
    """

    name: str
    encoder: str
    """Registered name of the encoder that was fitted."""
    inputs: tuple[str, ...]
    steps: tuple[Step, ...]
    cardinality: int
    """Rows of the embedding table, with the rows for missing and unknown; 0 for a dense column."""
    length: int = 1
    """Codes per example: 1 for a scalar, L for a list."""
    pooling: Literal["sum", "mean"] = "sum"
    """The way in which a list's embeddings become one; without meaning for a scalar."""

    @property
    def is_dense(self) -> bool:
        """True for a float32 number, False for codes of an embedding table."""
        return self.cardinality == 0

    @property
    def is_crossed(self) -> bool:
        """True where the inputs are encoded columns, False where they are raw ones."""
        return isinstance(self.steps[0], Cross)

    @property
    def separator(self) -> str | None:
        """The separator at which the program splits its text, None where it reads the column as it is."""
        first = self.steps[0]
        return first.separator if isinstance(first, Split) else None


class Schema(msgspec.Struct, frozen=True, kw_only=True, dict=True):
    """All fitted features of a job, in the order in which the job declares them."""

    raw: tuple[RawColumn, ...]
    columns: tuple[EncodedColumn, ...]

    @cached_property
    def hash(self) -> str:
        """Hex SHA-256 of the canonical JSON: equal hashes mean equal codes for every input."""
        digest = hashlib.sha256()
        for part in self.json():
            digest.update(part)
        return digest.hexdigest()

    def json(self) -> Iterator[bytes]:
        """Yield the canonical JSON, with all keys in it, a column at a time."""
        yield b'{"raw":' + msgspec.json.encode(self.raw) + b',"columns":['
        for position, column in enumerate(self.columns):
            yield (b"," if position else b"") + msgspec.json.encode(column, enc_hook=_array_json)
        yield b"]}"

    @property
    def codes(self) -> tuple[EncodedColumn, ...]:
        """Columns with an embedding table, in order: the int32 matrix `codes_BW` of a batch."""
        return tuple(column for column in self.columns if not column.is_dense)

    @property
    def dense(self) -> tuple[EncodedColumn, ...]:
        """Float columns, in order: the columns of the float32 matrix `dense_BD` of a batch."""
        return tuple(column for column in self.columns if column.is_dense)

    @property
    def width(self) -> int:
        """W of `codes_BW`: one place per scalar, L per list."""
        return sum(column.length for column in self.codes)

    def code_places(self) -> Iterator[tuple[EncodedColumn, slice]]:
        """Yield each code column with its slice of the columns of `codes_BW`."""
        start = 0
        for column in self.codes:
            yield column, slice(start, start + column.length)
            start += column.length


def _array_json(keys: object) -> msgspec.Raw:
    """Return the JSON of the keys of a Lookup, made of a few at a time."""
    assert isinstance(keys, array), "msgspec encodes all but arrays"
    parts = (keys[start : start + _KEYS_AT_ONCE] for start in range(0, len(keys), _KEYS_AT_ONCE))
    return msgspec.Raw(
        b"[" + b",".join(msgspec.json.encode(part.tolist())[1:-1] for part in parts) + b"]"
    )
