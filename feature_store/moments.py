"""Exact sums of float64 values and of their squares: mergeable in any order with the same bits.

A float64 is an integer of 54 bits with sign times a power of two. Summing those integers per
exponent has no rounding, so neither the order of rows, the number of threads nor the cut into
fragments can change the result; it is rounded once, at the end.
"""

from __future__ import annotations

import math
from fractions import Fraction

import polars as pl

_FRACTION_BITS = 52
_LOW_BITS = 26
_UNIT_EXPONENT = 1075
"""A double of biased exponent e (at least 1) is its 53-bit integer times 2^(e - 1075)."""


def exact_sums(values: pl.LazyFrame) -> pl.LazyFrame:
    """Return count and integer sums of the finite numbers in `value`, per biased exponent `key`.

    With m = high * 2^26 + low the signed integer of a double: `high` and `low` sum to the total,
    `high_high`, `high_low` and `low_low` to the total of squares. Int128 holds them for more than
    2^60 rows.
    """
    value = pl.col("value").cast(pl.Float64)
    bits = value.reinterpret(dtype=pl.Int64)
    magnitude = bits & pl.lit(2**63 - 1, pl.Int64)
    exponent = magnitude // 2**_FRACTION_BITS
    fraction = magnitude % 2**_FRACTION_BITS
    integer = fraction + pl.when(exponent > 0).then(2**_FRACTION_BITS).otherwise(0)
    sign = pl.when(bits < 0).then(-1).otherwise(1)
    parts = values.filter(value.is_finite()).select(
        pl.max_horizontal(exponent, pl.lit(1, pl.Int64)).alias("key"),
        (sign * (integer // 2**_LOW_BITS)).alias("high"),
        (sign * (integer % 2**_LOW_BITS)).alias("low"),
    )
    high, low = pl.col("high"), pl.col("low")
    return parts.group_by("key").agg(
        pl.len().cast(pl.Int64).alias("count"),
        high.cast(pl.Int128).sum(),
        low.cast(pl.Int128).sum(),
        (high * high).cast(pl.Int128).sum().alias("high_high"),
        (high * low).cast(pl.Int128).sum().alias("high_low"),
        (low * low).cast(pl.Int128).sum().alias("low_low"),
    )


def mean_and_deviation(sums: pl.DataFrame) -> tuple[float, float]:
    """Return mean and population standard deviation, rounded once; (0, 0) without values."""
    count = 0
    total = squares = Fraction(0)
    shift = 2**_LOW_BITS
    for row in sums.iter_rows(named=True):
        unit = Fraction(2) ** (row["key"] - _UNIT_EXPONENT)
        count += row["count"]
        total += (row["high"] * shift + row["low"]) * unit
        square = (row["high_high"] * shift + 2 * row["high_low"]) * shift + row["low_low"]
        squares += square * unit**2
    if count == 0:
        return 0.0, 0.0
    mean = total / count
    variance = squares / count - mean**2
    return float(mean), _square_root(variance)


def _square_root(value: Fraction) -> float:
    """Return the square root of a rational that may itself be beyond the range of float64."""
    if value == 0:
        return 0.0
    # Scale by 4^k so that about 120 significant bits are left above the point, take the root of
    # integers.
    scale = (120 - value.numerator.bit_length() + value.denominator.bit_length()) // 2
    scaled = value * Fraction(4) ** scale
    return float(Fraction(math.isqrt(int(scaled))) / Fraction(2) ** scale)
