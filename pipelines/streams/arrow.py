"""Arrow for the type checker: pyarrow has no types of its own, and makes its functions on import."""

from __future__ import annotations

from typing import Any, TypeAlias

import pyarrow.compute

RecordBatch: TypeAlias = Any
"""A `pyarrow.RecordBatch`."""
Array: TypeAlias = Any
"""A `pyarrow.Array`."""
Table: TypeAlias = Any
"""A `pyarrow.Table`."""
Schema: TypeAlias = Any
"""A `pyarrow.Schema`."""
DataType: TypeAlias = Any
"""A `pyarrow.DataType`."""
compute: Any = pyarrow.compute
"""Arrow's functions."""
