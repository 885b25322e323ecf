"""Schemas in files: canonical JSON with all keys, and large vocabularies as Arrow beside it."""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Sequence
from pathlib import Path

import msgspec
import pytest

from headwater.feature_store import schema as fs
from headwater.feature_store import schema_file
from headwater.feature_store.errors import ShardError
from headwater.feature_store.schema_file import read_schema, write_schema

TEXTS = ("a", "a\0", "\u65e5\u672c", "", "0")
INTEGERS = (7, -3, 2**63 - 1, -(2**63) + 1, 0)


def schema_of(*vocabularies: Sequence[int | str]) -> fs.Schema:
    columns = [
        fs.EncodedColumn(
            name=f"x{position}",
            encoder="vocabulary",
            inputs=("x",),
            steps=(fs.Lookup(keys=keys), fs.Missing()),
            cardinality=len(keys) + 2,
        )
        for position, keys in enumerate(vocabularies)
    ]
    return fs.Schema(raw=(fs.RawColumn(name="x", dtype="int64"),), columns=tuple(columns))


def keys_of(schema: fs.Schema) -> list[Sequence[int | str]]:
    return [s.keys for c in schema.columns for s in c.steps if isinstance(s, fs.Lookup)]


@pytest.fixture
def few_inline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(schema_file, "INLINE_KEYS", 3)


class TestJson:
    def test_small_vocabularies_lie_in_the_file_as_they_always_did(self, tmp_path: Path) -> None:
        expected = (
            b'{"raw":[{"name":"x","dtype":"int64","is_list":false}],"columns":[{"name":"x0",'
            b'"encoder":"vocabulary","inputs":["x"],"steps":[{"type":"lookup","keys":[7,-3],'
            b'"codes":null},{"type":"missing","fill":0.0}],"cardinality":4,"length":1,'
            b'"pooling":"sum"}]}'
        )
        schema = schema_of((7, -3))
        write_schema(schema, tmp_path / "schema.json")
        assert (tmp_path / "schema.json").read_bytes() == expected
        assert schema.hash == hashlib.sha256(expected).hexdigest()
        assert [path.name for path in tmp_path.iterdir()] == ["schema.json"]

    def test_integers_are_kept_in_eight_bytes_each_and_text_as_it_is(self) -> None:
        integers, texts, nothing = keys_of(schema_of(INTEGERS, TEXTS, ()))
        assert isinstance(integers, array)
        assert integers.itemsize == 8
        assert tuple(integers) == INTEGERS
        assert (texts, nothing) == (TEXTS, ())

    def test_many_keys_have_the_json_of_a_list(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(fs, "_KEYS_AT_ONCE", 4)
        keys = list(range(-3, 10))
        (column,) = schema_of(keys).columns
        text = b"".join(schema_of(keys).json())
        steps = msgspec.json.decode(text)["columns"][0]["steps"]
        assert steps[0]["keys"] == keys
        assert msgspec.json.decode(text, type=fs.Schema).columns == (column,)


@pytest.mark.usefixtures("few_inline")
class TestFilesOfKeys:
    def test_a_schema_and_its_hash_do_not_depend_on_where_keys_lie(self, tmp_path: Path) -> None:
        schema = schema_of(INTEGERS, (1, 2, 3), TEXTS)
        inline = schema.hash
        write_schema(schema, tmp_path / "schema.json")
        assert sorted(path.name for path in tmp_path.iterdir()) == [
            "keys-00000.arrow", "keys-00001.arrow", "schema.json",
        ]  # fmt: skip
        again = read_schema(tmp_path / "schema.json")
        assert again == schema
        assert again.hash == inline
        assert keys_of(again) == keys_of(schema)

    def test_the_schema_names_file_content_and_count(self, tmp_path: Path) -> None:
        write_schema(schema_of((1, 2, 3), INTEGERS), tmp_path / "schema.json")
        found = msgspec.json.decode((tmp_path / "schema.json").read_bytes())
        content = (tmp_path / "keys-00000.arrow").read_bytes()
        digest = hashlib.sha256(content).hexdigest()
        assert found["vocabularies"] == {
            "x1": {"file": "keys-00000.arrow", "count": 5, "sha256": digest}
        }
        assert found["columns"][1]["steps"][0]["keys"] == []

    def test_a_vocabulary_in_the_json_is_read_however_large(self, tmp_path: Path) -> None:
        schema = schema_of(INTEGERS)
        (tmp_path / "schema.json").write_bytes(b"".join(schema.json()))
        assert read_schema(tmp_path / "schema.json") == schema

    @pytest.mark.parametrize("found", ["absent", "corrupt"])
    def test_a_damaged_vocabulary_is_refused_by_name(self, tmp_path: Path, found: str) -> None:
        write_schema(schema_of(INTEGERS), tmp_path / "schema.json")
        path = tmp_path / "keys-00000.arrow"
        if found == "absent":
            path.unlink()
        else:
            content = bytearray(path.read_bytes())
            content[len(content) // 2] ^= 1
            path.write_bytes(content)
        with pytest.raises(
            ShardError, match=f"keys-00000.arrow: the vocabulary of .*'x0' is {found}"
        ):
            read_schema(tmp_path / "schema.json")
