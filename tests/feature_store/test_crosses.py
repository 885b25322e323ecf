"""Crosses in numpy: counted as Python counts, in any chunks, and encoded as both compilers do."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headwater.feature_store import crosses, fit
from headwater.feature_store import encoders as enc
from headwater.feature_store import schema as fs
from headwater.feature_store.polars_compiler import encode_frame

ENCODERS: list[enc.Declared] = [
    enc.Vocabulary(name="a", min_count=2),
    enc.Quantiles(name="b", num_buckets=3),
    enc.Crossed(name="ab", columns=["a", "b"]),
    enc.Vocabulary(name="l", length=2),
    enc.Vocabulary(name="c", max_size=5),
    enc.Crossed(name="abc", columns=["c", "ab"], min_count=2),
    enc.Identity(name="d", column="b"),
    enc.Crossed(name="cab", columns=["c", "a", "b"], max_size=4),
]


def rows(num_rows: int, seed: int = 0) -> pl.DataFrame:
    rng = np.random.default_rng(seed)
    draw = rng.integers(0, 6, (4, num_rows))
    return pl.DataFrame(
        {
            "a": [None if value == 5 else f"v{value}" for value in draw[0]],
            "b": [None if value == 5 else float(value) for value in draw[1]],
            "c": [None if value == 0 else int(value) ** 20 for value in draw[2]],
            "l": [[int(value)] * (int(value) % 3) for value in draw[3]],
        },
        schema={"a": pl.String, "b": pl.Float64, "c": pl.Int64, "l": pl.List(pl.Int64)},
    )


def fitted(frame: pl.DataFrame, num_fragments: int = 1) -> fs.Schema:
    size = -(-frame.height // num_fragments)
    fragments = [frame.lazy().slice(start, size) for start in range(0, frame.height, size)]
    return fit.fit(ENCODERS, fragments, fit.raw_columns(ENCODERS, frame.schema))


class TestCount:
    @pytest.mark.parametrize("places", [0, 1 << 22])
    @given(
        codes=st.lists(st.tuples(st.integers(0, 3), st.integers(0, 4)), max_size=30),
        cut=st.integers(0, 30),
        width=st.sampled_from([5, 2**40]),
        least=st.integers(1, 3),
    )
    def test_combinations_are_counted_where_nothing_is_missing(
        self, places: int, codes: list[tuple[int, int]], cut: int, width: int, least: int
    ) -> None:
        columns = np.array(codes, np.int32).reshape(-1, 2)
        step = fs.Cross(cardinalities=(4, width))
        chunks = [[part[:, 0], part[:, 1]] for part in (columns[:cut], columns[cut:])]
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(crosses, "COUNTED_PLACES", places)
            patch.setattr(crosses, "BUCKET_BITS", 3)
            counted = list(crosses.count(lambda: chunks, step, least))
        assert [frame.schema for frame in counted] == [{"key": pl.Int64, "count": pl.Int64}] * 2
        found = Counter[int]()
        for frame in counted:
            found.update(dict(frame.iter_rows()))
        expected = Counter(a * width + b for a, b in codes if a and b)
        assert {key: n for key, n in found.items() if n >= least} == {
            key: n for key, n in expected.items() if n >= least
        }

    def test_chunks_on_disk_are_the_rows_that_were_added(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(crosses, "CHUNK_ROWS", 4)
        disk = crosses.CodesOnDisk(tmp_path)
        codes = np.arange(18, dtype=np.int32).reshape(2, 9)
        for part in (slice(0, 5), slice(5, 9)):
            disk.add({"x": codes[0, part]})
            disk.add({"y": codes[1, part]})
        chunks = list(disk.chunks(["y", "x"]))
        assert [len(chunk[0]) for chunk in chunks] == [4, 4, 1]
        np.testing.assert_array_equal(np.hstack(chunks), codes[::-1])


class TestFit:
    @pytest.mark.parametrize("num_fragments", [2, 5])
    @pytest.mark.parametrize("chunk_rows", [7, 1 << 23])
    def test_fragments_and_chunks_change_no_byte(
        self, num_fragments: int, chunk_rows: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        frame = rows(300)
        # Only one of the columns is fitted fragment by fragment, and its sketch holds all values.
        whole = fitted(frame)
        monkeypatch.setattr(crosses, "CHUNK_ROWS", chunk_rows)
        monkeypatch.setattr(fit, "COLUMNS_AT_ONCE", 2)
        assert fitted(frame, num_fragments).hash == whole.hash

    def test_partials_made_elsewhere_give_the_same_schema(self) -> None:
        frame = rows(300)
        raw = fit.raw_columns(ENCODERS, frame.schema)
        fragments = [frame.lazy().slice(start, 100) for start in (0, 100, 200)]
        schema = fs.Schema(raw=(), columns=())
        while len(schema.columns) < len(ENCODERS):
            ready = fit.next_pass(ENCODERS, schema)
            parts = [fit.partial(ready, fragment, raw, schema) for fragment in fragments]
            schema = fit.finish(ENCODERS, ready, fit.merge(parts), raw, schema)
        assert schema == fitted(frame)

    def test_temporary_codes_lie_in_the_workspace_and_go(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        seen: list[Path] = []
        add = crosses.CodesOnDisk.add

        def watched(disk: crosses.CodesOnDisk, codes: dict[str, crosses.Codes]) -> None:
            add(disk, codes)
            seen.extend(tmp_path.rglob("*.codes"))

        monkeypatch.setattr(crosses.CodesOnDisk, "add", watched)
        frame = rows(30)
        raw = fit.raw_columns(ENCODERS, frame.schema)
        fit.fit(ENCODERS, [frame.lazy()], raw, workspace=tmp_path)
        assert seen
        assert not list(tmp_path.iterdir())


class TestEncode:
    @settings(max_examples=20)
    @given(seed=st.integers(0, 2**32), lookup_rows=st.sampled_from([3, 1 << 14]))
    def test_codes_are_those_of_polars(self, seed: int, lookup_rows: int) -> None:
        schema = fitted(rows(200))
        encoded = encode_frame(rows(100, seed).lazy(), schema).collect()
        codes = np.hstack([encoded[c.name].to_numpy().reshape(100, c.length) for c in schema.codes])
        kept = [
            position
            for column, place in schema.code_places()
            if not column.is_crossed
            for position in range(place.start, place.stop)
        ]
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(crosses, "LOOKUP_ROWS", lookup_rows)
            wide = crosses.CrossEncoder(schema).widen(codes[:, kept])
        np.testing.assert_array_equal(wide, codes)
