"""The JSON Schema and the reference page of the job file: complete, and the committed ones current."""

from __future__ import annotations

import json
from pathlib import Path

from headwater.feature_store.encoders import ENCODERS
from headwater.models.registry import MODELS
from headwater.pipelines.job import Job
from headwater.pipelines.job_schema import job_reference, job_schema, rows, write_docs

DOCS = Path(__file__).parents[2] / "docs"


def test_committed_pages_are_current(tmp_path: Path) -> None:
    write_docs(tmp_path)
    for name in ("job.md", "job.schema.json"):
        written = (tmp_path / name).read_text(encoding="utf-8")
        committed = (DOCS / name).read_text(encoding="utf-8")
        assert committed == written, f"run `python -m headwater.pipelines.job_schema` for {name}"


def test_every_field_is_described() -> None:
    page = job_reference()
    empty = [line for line in page.splitlines() if line.startswith("| `") and line.endswith("|  |")]
    assert empty == []


def test_page_has_a_section_for_every_encoder_and_model() -> None:
    page = job_reference()
    for name in ENCODERS:
        assert f'### `encoder = "{name}"`' in page
    for name in MODELS:
        assert f'### `type = "{name}"`' in page


def test_types_are_shown_in_words() -> None:
    table = {key: (kind, default) for key, kind, default, _ in rows(Job)}
    assert table["name"] == ("string", "required")
    assert table["train"] == ("table", "see its section")
    page = job_reference()
    assert "| `train.lr_factor` | float > 0, <= 1 | `0.1` |" in page
    assert "| `train.checkpoint_steps` | int > 0 | - |" in page
    assert "| `data.source` | string or list of string | - |" in page
    kinds = " or ".join(f'`"{mode}"`' for mode in ("auto", "lazy", "fused", "dense"))
    assert f'| `train.sparse.mode` | {kinds} | `"auto"` |' in page


def test_schema_knows_the_settings_of_each_model_and_allows_a_model_of_ones_own() -> None:
    schema = job_schema()
    options = schema["$defs"]["ModelSection"]["anyOf"]
    by_name = {option["properties"]["type"].get("const"): option for option in options}
    assert {*MODELS, None} == set(by_name)
    assert "num_heads" in by_name["finalmlp"]["properties"]
    assert by_name["finalmlp"]["additionalProperties"] is False
    assert by_name[None]["properties"]["type"]["pattern"] == ":"
    json.dumps(schema)
