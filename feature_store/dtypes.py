"""The three types of raw values: how each is stored, called and shown, and what a missing value is.

Light on purpose, as `schema`: what Polars and ONNX call these types lies where those libraries are imported.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from headwater.feature_store.schema import INT64_MIN, Dtype


@dataclass(frozen=True, slots=True)
class DtypeFacts:
    """The facts of one dtype that several parts need."""

    missing: int | float | str
    """The missing value on the wire and in the graph; NaN is the one that JSON lacks."""
    numpy: np.dtype[Any]
    datatype: Literal["INT64", "FP64", "BYTES"]
    """Name in the Open Inference Protocol."""
    meaning: str
    """The values, in the words of messages."""


DTYPES: dict[Dtype, DtypeFacts] = {
    "int64": DtypeFacts(INT64_MIN, np.dtype(np.int64), "INT64", "an integer of 64 bits"),
    "double": DtypeFacts(math.nan, np.dtype(np.float64), "FP64", "a number"),
    "string": DtypeFacts("", np.dtype(object), "BYTES", "a string"),
}
