"""Vectors of a Parquet file are looked up beside what events changed."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from headwater.feature_store.errors import DataError, InputError
from headwater.feature_store.online.definition import Definition, Table
from headwater.feature_store.online.kinds import Count, Vector
from headwater.feature_store.online.lmdb import LmdbStore
from headwater.feature_store.online.lookup import Lookup
from headwater.feature_store.online.store import Bound
from headwater.pipelines.streams.arrow import DataType
from headwater.pipelines.streams.vectors import load_vectors

ITEMS = Table("items", "item", "int64", (Count("views"), Vector("taste", 3)))
DEFINITION = Definition("job", ("views",), "ts_ms", "", 0, (ITEMS,))


@pytest.fixture
def store(tmp_path: Path) -> LmdbStore:
    opened = LmdbStore(tmp_path / "store", "job")
    opened.bind(Bound(msgspec.Raw(DEFINITION.encoded()), "earliest"))
    return opened


@pytest.mark.parametrize(
    "kind", [pa.list_(pa.float64()), pa.list_(pa.float32(), 3), pa.large_list(pa.int32())]
)
def test_vectors_of_a_file_are_looked_up(store: LmdbStore, tmp_path: Path, kind: DataType) -> None:
    path = tmp_path / "vectors.parquet"
    vectors = pa.array([[1, 2, 3], [4, 5, 6]], kind)
    pq.write_table(pa.table({"item": [7, 8], "taste": vectors, "other": ["a", "b"]}), path)
    assert load_vectors(store, DEFINITION, "items.taste", path) == 2
    found = Lookup(store, source="test").look_up({"items": [8, 7]}, 1)["items"]
    assert found.values["taste"] == [[4.0, 5.0, 6.0], [1.0, 2.0, 3.0]]
    assert found.num_missing == {"views": 2, "taste": 0}
    store.close()


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"item": [7], "taste": [[1.0, 2.0]]}, r"vectors of \['2'\] numbers or none, expected 3"),
        ({"item": [7], "taste": ["x"]}, "is string, expected lists of numbers"),
        ({"taste": [[1.0, 2.0, 3.0]]}, "no column 'item'; there are taste"),
    ],
)
def test_other_files_are_refused(
    store: LmdbStore, tmp_path: Path, columns: dict[str, list[object]], message: str
) -> None:
    path = tmp_path / "vectors.parquet"
    pq.write_table(pa.table(columns), path)
    with pytest.raises(DataError, match=message):
        load_vectors(store, DEFINITION, "items.taste", path)
    store.close()


def test_a_vector_that_is_not_declared_is_refused(store: LmdbStore, tmp_path: Path) -> None:
    with pytest.raises(
        InputError, match=r"no vector 'items\.color'; the job declares items\.taste"
    ):
        load_vectors(store, DEFINITION, "items.color", tmp_path / "none")
    store.close()
