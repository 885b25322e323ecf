"""Write a first job for data, with a remark for each decision."""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from headwater.feature_store.errors import DataError, JobError
from headwater.models.registry import CTR_MODELS, RETRIEVAL_MODELS
from headwater.pipelines.console import note

if TYPE_CHECKING:
    from headwater.pipelines.data.source_file import SourceFile
    from headwater.pipelines.first_job.guess import Guess
    from headwater.pipelines.first_job.log import Log
    from headwater.pipelines.first_job.profile import Look

SPLIT_WORDS = {
    "train": ("train", "training"),
    "valid": ("valid", "val", "validation", "dev"),
    "test": ("test", "testing"),
}
"""Words in a file's name that say which rows it holds."""
FIRST_RETRIEVAL = "item_knn"
"""Model of a first job for a log of interactions."""


def write_job(
    data: Sequence[str],
    *,
    out: Path | None = None,
    label: str | None = None,
    force: bool = False,
    csv: Mapping[str, Any] | None = None,
) -> tuple[Path, Guess | Log]:
    """Write a first job for data files, CSV written as `csv` says; return its path and what was guessed.

    A log of users and items, without a label, gets a job for a retrieval model, unless `label` names one.
    Raises JobError where the job file exists and `force` is not set, or where no column can be the
    label, DataError where the data cannot be read.
    """
    from headwater.pipelines.data.files import find_files
    from headwater.pipelines.data.table import Table
    from headwater.pipelines.first_job.guess import guess
    from headwater.pipelines.first_job.log import find_log
    from headwater.pipelines.first_job.profile import look_at
    from headwater.pipelines.job import parse_job, read_csv_format
    from headwater.pipelines.output import write_whole

    written = read_csv_format(csv or {}, "--csv")
    files = [find_files(pattern, written) for pattern in data]
    parts = _parts(data, files)
    name = _job_name(data[0])
    path = out or Path(f"{name}.toml")
    if path.exists() and not force:
        raise JobError(f"{path}: exists already. Give another file by --out, or --force.")
    table = Table(parts["train"][1] if parts else [file for group in files for file in group])
    _same_columns(table.files)
    note(f"looking at {table.path}")
    look = look_at(table)
    paths = {part: paths for part, (paths, _) in parts.items()} if parts else {"source": list(data)}
    options = written.model_dump(exclude_defaults=True)
    found = find_log(look) if label is None else None
    if found is None:
        found = guess(look, label)
        lines = _lines(name, paths, found, look, options)
    else:
        lines = _log_lines(name, paths, found, look, options)
    text = "\n".join(lines) + "\n"
    parse_job(tomllib.loads(text), source=str(path))
    write_whole(path, text.encode())
    return path, found


def _lines(
    name: str,
    paths: Mapping[str, Sequence[str]],
    guessed: Guess,
    look: Look,
    csv: Mapping[str, Any],
) -> Iterator[str]:
    yield from _head_lines(name, look, "prepares, trains, evaluates and exports")
    yield from _data_lines(paths, csv)
    if "source" in paths:
        yield f"split = {_toml(guessed.split)}  # {guessed.split_why}"
    if guessed.filter:
        yield f"filter = {_toml(guessed.filter)}  # rows without a label teach nothing"
    if guessed.derive:
        yield ""
        yield "[data.derive]  # Polars SQL"
        for column, text in guessed.derive.items():
            yield f"{_toml_key(column)} = {_toml(text)}"
    yield from ("", "[features]", f"label = {_toml(guessed.label)}  # {guessed.label_why}")
    keys = {
        "user": "groups the rows for grouped AUC",
        "item": "",
        "time": "the release states the range it was trained on",
    }
    for role, remark in keys.items():
        column = getattr(guessed, role)
        if column is not None:
            yield f"{role} = {_toml(column)}" + (f"  # {remark}" if remark else "")
        elif role in guessed.perhaps:
            column = guessed.perhaps[role]
            amount = f"its {look[column].distinct:,} values recur"
            yield f"# {role} = {_toml(column)}  # perhaps: no column is named like one, but {amount}"
        else:
            yield f'# {role} = "..."  # no column looks like one'
    yield "columns = ["
    for encoder, remark in guessed.columns:
        yield f"    {_toml(encoder)},  # {_comment(remark)}"
    if guessed.left_out:
        yield "    # Left out:"
    for column, reason in guessed.left_out.items():
        yield f"    #   {_toml(column)}: {_comment(reason)}"
    yield "]"
    yield from _model_lines(guessed)
    batch_size = _batch_size(look)
    yield from ("", "[train]", f"batch_size = {batch_size}")
    yield "epochs = 20  # at most: training stops when validation AUC no longer improves"
    yield "seed = 2024"
    yield from ("", "[export]")
    yield "# A ranking request gives these once; all other inputs come with each candidate."
    is_known = guessed.context and guessed.user and guessed.item
    context = _toml(guessed.context) if guessed.context else '["..."]'
    yield f"{'' if is_known else '# '}context = {context}"


def _log_lines(
    name: str,
    paths: Mapping[str, Sequence[str]],
    log: Log,
    look: Look,
    csv: Mapping[str, Any],
) -> Iterator[str]:
    yield from _head_lines(name, look, "prepares, trains and evaluates")
    yield from _data_lines(paths, csv)
    if "source" in paths:
        yield f"split = {_toml(log.split)}  # {log.split_why}"
    if log.liked:
        yield f"# filter = {_toml(log.liked)}  # of the ratings only the high ones"
    if log.repeated:
        same = "user, item and time" if log.time else "user and item"
        yield f"# Note: {log.repeated:,} rows repeat the {same} of another one. Where these fall into two"
        yield "# splits, prepare refuses them; leave them out of the files" + (
            "." if log.time else ", or name a time."
        )
    yield from ("", "[interactions]", f"user = {_toml(log.user)}", f"item = {_toml(log.item)}")
    if log.time:
        yield f"time = {_toml(log.time)}  # orders a user's items"
    else:
        yield '# time = "..."  # no column looks like one: the order of the rows counts'
    yield "# min_user_count = 5  # leave out users with fewer events"
    yield "# min_item_count = 5  # and items"
    yield "mask_seen = true  # what a user had is no answer; false where items come again"
    yield "top_k = [10, 20, 50]"
    if log.left_out:
        yield "# Left out:"
    for column, reason in log.left_out.items():
        yield f"#   {_toml(column)}: {_comment(reason)}"
    others = ", ".join(each for each in RETRIEVAL_MODELS if each != FIRST_RETRIEVAL)
    yield from ("", f"[model]  # also: {others}")
    yield f"type = {_toml(FIRST_RETRIEVAL)}  # items like those of the history, computed in one step"
    yield from (
        "",
        "[train]  # for models that learn in epochs",
        f"batch_size = {_batch_size(look)}",
    )
    yield "epochs = 100  # at most: training stops when validation NDCG@10 no longer improves"
    yield "seed = 2024"


def _head_lines(name: str, look: Look, run: str) -> Iterator[str]:
    seen = f"{'all' if look.is_whole else 'the first'} {look.num_rows:,} rows"
    yield f"# A first job, written by `headwater init` from {seen}: read it, change it, then"
    yield "#   headwater validate THIS_FILE    checks it and shows what the model will see"
    yield f"#   headwater run THIS_FILE         {run}"
    yield f"name = {_toml(name)}"
    yield ""


def _data_lines(paths: Mapping[str, Sequence[str]], csv: Mapping[str, Any]) -> Iterator[str]:
    yield "[data]"
    for part, each in paths.items():
        yield f"{part} = {_toml(each[0] if len(each) == 1 else list(each))}"
    if csv:
        yield f"csv = {_toml(csv)}"


def _model_lines(guessed: Guess) -> Iterator[str]:
    features = {encoder["name"] for encoder, _ in guessed.columns}
    others = ", ".join(name for name in CTR_MODELS if name != "finalmlp")
    yield from ("", f"[model]  # also: {others}", 'type = "finalmlp"')
    yield from ("embedding_dim = 16", "hidden_1 = [128, 64]", "hidden_2 = [64]", "num_heads = 4")
    yield "gate_hidden = [64]"
    yield "# The features by which each stream's gate weighs the others: as a rule the user's, the item's."
    for key, role in (("gate_1_context", "user"), ("gate_2_context", "item")):
        column = getattr(guessed, role)
        if column in features:
            yield f"{key} = {_toml([column])}"
        else:
            yield f"# {key} = {_toml([guessed.perhaps.get(role, '...')])}"


def _batch_size(look: Look) -> int:
    """Return a power of two that gives at least some fifty steps an epoch, within 32 and 4096."""
    wanted = look.num_rows // 50
    return max(32, min(4096, 1 << max(0, wanted.bit_length() - 1)))


def _parts(
    data: Sequence[str], files: Sequence[Sequence[SourceFile]]
) -> dict[str, tuple[list[str], list[SourceFile]]]:
    """Return paths and files of train, valid and test where file names tell them; else nothing."""
    pairs = [
        (
            pattern
            if len(group) == 1 and group[0].path.endswith(Path(pattern).name)
            else file.path,
            file,
        )
        for pattern, group in zip(data, files, strict=True)
        for file in group
    ]
    found: dict[str, tuple[list[str], list[SourceFile]]] = {}
    unused: list[str] = []
    for path, file in pairs:
        words = re.findall(r"[a-z]+", Path(path).name.partition(".")[0].lower())
        part = next((p for p, names in SPLIT_WORDS.items() if set(names) & set(words)), None)
        if part is None:
            unused.append(path)
            continue
        paths, members = found.setdefault(part, ([], []))
        paths.append(path)
        members.append(file)
    if "train" not in found or len(pairs) == 1:
        return {}
    if "valid" not in found:
        if "test" in found:
            raise JobError(
                f"{found['train'][0][0]} and {found['test'][0][0]}: a job with files of its own for test "
                "needs one for validation too. Give a file named valid, or one file to be split."
            )
        return {}
    if unused:
        note(f"not used, as their names say neither train, valid nor test: {', '.join(unused)}")
    return {part: found[part] for part in SPLIT_WORDS if part in found}


def _same_columns(files: Sequence[SourceFile]) -> None:
    """Raise DataError where the files are of several kinds, as in a folder with side tables."""
    from headwater.pipelines.data.table import Table

    first = set(Table(files[:1]).names())
    for file in files[1:]:
        other = set(Table([file]).names())
        if file.format != "ndjson" and other != first:
            raise DataError(
                f"{files[0].path} and {file.path} have different columns "
                f"({', '.join(sorted(first ^ other)[:8])}). Name the files of one table; a side table, as "
                f"of users or items, is joined in the job by [[data.join]]."
            )


def _job_name(pattern: str) -> str:
    """Return a name for the job from a path: `clicks` for clicks_train.parquet, else its folder's."""
    part_words = "|".join(word for names in SPLIT_WORDS.values() for word in names)
    path = Path(pattern.partition("://")[2] or pattern)
    for part in (path, path.parent, path.absolute().parent):
        stem = re.sub(r"[^A-Za-z0-9._-]+", "-", part.name.partition(".")[0])
        stem = re.sub(rf"(^|[-_])({part_words})(?=$|[-_])", "", stem, flags=re.IGNORECASE)
        stem = stem.strip("-._")
        if stem:
            return stem
    return "job"


def _toml(value: Any) -> str:
    """Return a value in TOML, on one line."""
    if isinstance(value, Mapping):
        return "{ " + ", ".join(f"{_toml_key(k)} = {_toml(v)}" for k, v in value.items()) + " }"
    if isinstance(value, list):
        return "[" + ", ".join(map(_toml, value)) + "]"
    # JSON writes text, numbers and booleans as TOML does, but for the one control character it leaves.
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def _toml_key(key: str) -> str:
    return key if re.fullmatch(r"[A-Za-z0-9_-]+", key) else _toml(key)


def _comment(text: str) -> str:
    return " ".join(text.split())
