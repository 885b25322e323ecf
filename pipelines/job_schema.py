"""The job file described for editors (JSON Schema) and for readers (a reference page).

Both are made from the pydantic models that read a job, so that neither can fall behind. `docs/job.md` and
`docs/job.schema.json` are written by `python -m headwater.pipelines.job_schema`; a test holds that they
are current.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from headwater.models.registry import MODELS, load_model
from headwater.pipelines.job import (
    CsvFormat,
    Data,
    DenseOptimizer,
    Export,
    Features,
    Job,
    Join,
    ModelSection,
    SparseOptimizer,
    Train,
)
from headwater.pipelines.job_interactions import InteractionLog
from headwater.pipelines.job_splits import ColumnSplit, LeaveOneOutSplit, RatioSplit, TimeSplit
from headwater.pipelines.job_tuning import Range, Tune

SCHEMA_NAME = "job.schema.json"
PAGE_NAME = "job.md"

_INTRO = """\
# The job file

A job is one TOML file: where the rows are, what the features are, which model learns them and how, and
what the release looks like. Values come from the defaults on this page, then the file, then
`--set key.path=value` on the command line. Unknown keys and wrong values are refused, all at once, each with
its path. The resolved job, with every default, is written into the run folder as `job.toml`.

`headwater init DATA` writes a first job for a file, and `headwater validate JOB.toml` checks one against
its data. Relative paths are read from the current folder. Secrets, as those of object stores, come from
the environment only.

For completion and checks while you write, save the JSON Schema beside your jobs with
`headwater schema > job.schema.json` and name it in the first line of a job file, which editors with a TOML
language server read:

```toml
#:schema ./job.schema.json
```

This page is made from the code by `python -m headwater.pipelines.job_schema docs`.
"""

_SECTIONS: tuple[tuple[str, str, type[BaseModel]], ...] = (
    ("Top level", "", Job),
    ("`[data]`", "data", Data),
    ('`data.split` with `by = "time"`', "data.split", TimeSplit),
    ('`data.split` with `by = "ratio"`', "data.split", RatioSplit),
    ('`data.split` with `by = "leave-one-out"`', "data.split", LeaveOneOutSplit),
    ('`data.split` with `by = "column"`', "data.split", ColumnSplit),
    ("`data.csv`", "data.csv", CsvFormat),
    ("`[[data.join]]`", "data.join[i]", Join),
    ("`[features]`", "features", Features),
    ("`[interactions]`", "interactions", InteractionLog),
    ("`[model]`", "model", ModelSection),
    ("`[train]`", "train", Train),
    ("`[train.sparse]`", "train.sparse", SparseOptimizer),
    ("`[train.dense]`", "train.dense", DenseOptimizer),
    ("`[export]`", "export", Export),
    ("`[tune]`", "tune", Tune),
    ("A range in `[tune.keys]`", "", Range),
)
"""Heading, path in the file and model of every section, in the order of the page."""


def job_schema() -> dict[str, Any]:
    """Return the JSON Schema (draft 2020-12) of a job file, with the settings of every registered model."""
    schema = Job.model_json_schema()
    definitions: dict[str, Any] = schema["$defs"]
    options: list[dict[str, Any]] = []
    for name in MODELS:
        config = load_model(name).config_class.model_json_schema()
        definitions.update(config.pop("$defs", {}))
        config["properties"] = {
            "type": {"const": name, "description": _type_description()},
            **config["properties"],
        }
        config["required"] = ["type", *config.get("required", [])]
        options.append(config)
    own = definitions["ModelSection"]
    own["title"] = "A model of your own"
    own["properties"]["type"]["pattern"] = ":"
    definitions["ModelSection"] = {"anyOf": [*options, own]}
    schema["required"].remove("features")
    schema["oneOf"] = [{"required": ["features"]}, {"required": ["interactions"]}]
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}


def job_reference() -> str:
    """Return the reference of the job file as Markdown: a table a section, an encoder and a model."""
    parts = [_INTRO]
    for heading, path, model in _SECTIONS:
        parts.append(f"## {heading}\n\n{_summary(model)}\n\n{_table(model, path)}\n")
    parts.append("## Encoders: `features.columns`\n\n" + _ENCODERS_TEXT)
    for config in _encoder_configs():
        name = config.model_fields["encoder"].default
        parts.append(f'### `encoder = "{name}"`\n\n{_summary(config)}\n\n{_table(config, "")}\n')
    parts.append("## Models: `[model]`\n\n" + _MODELS_TEXT)
    for name in MODELS:
        model = load_model(name)
        parts.append(
            f'### `type = "{name}"`\n\n{_summary(model)}\n\n{_table(model.config_class, "model")}\n'
        )
        parts += [_table(inner, f"model.{key}") + "\n" for key, inner in _inner(model.config_class)]
    return "\n".join(parts)


def write_docs(folder: Path) -> None:
    """Write `job.md` and `job.schema.json` into `folder`."""
    (folder / PAGE_NAME).write_text(job_reference(), encoding="utf-8")
    text = json.dumps(job_schema(), indent=2, ensure_ascii=False) + "\n"
    (folder / SCHEMA_NAME).write_text(text, encoding="utf-8")


def rows(config: type[BaseModel]) -> Iterator[tuple[str, str, str, str]]:
    """Yield key, type, default and description of every field of a config, for tables."""
    schema = config.model_json_schema()
    required = set(schema.get("required", ()))
    for key, part in schema["properties"].items():
        if "const" in part:
            continue  # what tells one alternative from another stands in the heading
        default = "required" if key in required else _default(part.get("default"))
        yield key, _type(part, schema.get("$defs", {})), default, part.get("description", "")


_ENCODERS_TEXT = """\
`columns` is a list of tables, one a feature, whose `encoder` says how a raw column becomes codes of an
embedding table, or a number. [encoders.md](encoders.md) says what each computes; code 0 is missing, 1 is
unknown.
"""

_MODELS_TEXT = """\
Beside `type`, a model has settings of its own. `type = "package.module:Class"` names a model of yours, whose
`config_class` declares its settings.
"""


def _encoder_configs() -> list[type[BaseModel]]:
    from headwater.feature_store.encoders import ENCODERS

    return list(ENCODERS.values())


def _type_description() -> str:
    return ModelSection.model_fields["type"].description or ""


def _summary(documented: type[Any]) -> str:
    """Return the first paragraph of a class's docstring on one line."""
    doc = documented.__doc__ or ""
    return " ".join(doc.strip().split("\n\n")[0].split())


def _table(config: type[BaseModel], path: str) -> str:
    prefix = f"{path}." if path else ""
    lines = ["| key | type | default | meaning |", "| --- | --- | --- | --- |"]
    for key, kind, default, text in rows(config):
        cells = (f"`{prefix}{key}`", kind, default, " ".join(text.split()))
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines)


def _inner(config: type[BaseModel]) -> Iterator[tuple[str, type[BaseModel]]]:
    """Yield the settings that are tables of one kind, by key."""
    for key, field in config.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            yield key, kind


def _default(value: object) -> str:
    """Return a default as TOML writes it; an absent value as a dash."""
    if value is None:
        return "-"
    if isinstance(value, Mapping):
        return "see its section" if value else "`{}`"
    return f"`{json.dumps(value)}`"


def _type(part: Mapping[str, Any], definitions: Mapping[str, Any]) -> str:
    """Return a JSON Schema's type in words: `int > 0`, `list of string`, `"left"` or `"inner"`."""
    if "$ref" in part:
        name = part["$ref"].rsplit("/", 1)[-1]
        target = definitions.get(name, {})
        return "table" if target.get("type") == "object" else _type(target, definitions)
    if "const" in part:
        return f"`{json.dumps(part['const'])}`"
    if "enum" in part:
        return " or ".join(f"`{json.dumps(value)}`" for value in part["enum"])
    options = part.get("anyOf") or part.get("oneOf")
    if options:
        names = [_type(option, definitions) for option in options if option.get("type") != "null"]
        return " or ".join(dict.fromkeys(names))
    kind = part.get("type")
    if kind == "array":
        return f"list of {_type(part.get('items', {}), definitions)}"
    if kind == "object":
        values = part.get("additionalProperties")
        return f"table of {_type(values, definitions)}" if isinstance(values, dict) else "table"
    names = {"integer": "int", "number": "float", "boolean": "bool", "string": "string"}
    return names.get(str(kind), "any value") + _bounds(part)


def _bounds(part: Mapping[str, Any]) -> str:
    signs = {"exclusiveMinimum": ">", "minimum": ">=", "exclusiveMaximum": "<", "maximum": "<="}
    found = [f"{sign} {part[key]:g}" for key, sign in signs.items() if key in part]
    return f" {', '.join(found)}" if found else ""


if __name__ == "__main__":
    write_docs(Path(sys.argv[1] if len(sys.argv) > 1 else "docs"))
