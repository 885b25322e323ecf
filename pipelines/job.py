"""The job file: sections that declare data, features, model, training, export and tuning.

TOML in, frozen pydantic models out; every wrong key is reported at once with its path. Values come from
defaults, then the file, then `--set key=value`.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tomli_w
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    ValidationError,
    model_serializer,
    model_validator,
)
from pydantic_core import PydanticCustomError

from headwater.feature_store.config import Config
from headwater.feature_store.encoders import Encoder
from headwater.feature_store.errors import JobError
from headwater.pipelines.arguments import checked, list_of, path_of
from headwater.pipelines.job_csv import CsvFormat
from headwater.pipelines.job_errors import explain
from headwater.pipelines.job_interactions import InteractionLog
from headwater.pipelines.job_splits import Split
from headwater.pipelines.job_tuning import Tune
from headwater.serving.manifest import TableType

if TYPE_CHECKING:
    from headwater.models.base import Model, ModelConfig


def _no_draft(name: str) -> str:
    """Refuse the ending that the service takes for a folder that is still being written."""
    if name.endswith(".tmp"):
        raise ValueError("a name that ends in `.tmp` is never served; choose another")
    return name


FolderName = Annotated[
    str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$"), AfterValidator(_no_draft)
]
"""A name that is one folder wherever it is put, and that the service does not pass over."""


class Join(Config):
    """A side table joined to every row of the data, as users or items to ratings."""

    path: str | list[str]
    """Path, glob or fsspec URL of the side table (Parquet, CSV or NDJSON)."""
    csv: CsvFormat = CsvFormat()
    """Format of the table, where it is CSV or TSV and not the usual one."""
    on: str | list[str]
    """Key columns, of the same names on both sides; they must be unique in the side table."""
    how: Literal["left", "inner"] = "left"
    """`left` keeps rows without a match, with nulls; `inner` drops them."""
    columns: list[str] | None = None
    """Columns to take from the side table; all when absent."""


class ItemTable(Config):
    """What is known of the items of a log: a table with a row an item, under the log's name of the item."""

    path: str | list[str]
    """Path, glob or fsspec URL of the table (Parquet, CSV or NDJSON)."""
    csv: CsvFormat = CsvFormat()
    """Format of the table, where it is CSV or TSV and not the usual one."""
    columns: list[str] | None = None
    """Columns to keep, for filters, rankers and names; all when absent."""


class Data(Config):
    """Files of the rows: `train`, `valid` and `test`, or one `source` and a `split` rule."""

    root: str | None = None
    """Folder or fsspec URL that relative paths of this section start from; the current folder when absent."""
    train: str | list[str] | None = None
    """Training rows: path, glob or fsspec URL, or a list of them (Parquet, CSV or NDJSON)."""
    valid: str | list[str] | None = None
    """Validation rows, which choose the best epoch."""
    test: str | list[str] | None = None
    """Test rows, reported once; may be absent."""
    source: str | list[str] | None = None
    """All rows in one place, to be divided by `split`."""
    split: Split | None = None
    """Rule that divides `source`."""
    csv: CsvFormat = CsvFormat()
    """Format of the CSV and TSV files of these rows; each side table has its own `csv`."""
    join: list[Join] = []
    """Side tables."""
    items: ItemTable | None = None
    """Table of the items of a log, which goes into its release."""
    derive: dict[str, str] = {}
    """New columns by Polars SQL, as `label = "rating >= 4"`: for labels, filters, weights and keys."""
    filter: str | None = None
    """A Polars SQL condition that rows must meet, evaluated after `derive`."""
    negative_rate: float = Field(default=1.0, gt=0, le=1)
    """Share of the negatives that sampling left in these files; the release corrects `prob` by it."""

    @model_validator(mode="before")
    @classmethod
    def _under_root(cls, values: Any) -> Any:
        """Put `root` into the paths, so that nothing after this needs to know of it."""
        if not isinstance(values, dict) or not isinstance(values.get("root"), str):
            return values
        root = values["root"].rstrip("/")
        rooted = {key: value for key, value in values.items() if key != "root"}
        for key in ("train", "valid", "test", "source"):
            rooted[key] = _join_root(root, values.get(key))
        joins = values.get("join", [])
        if isinstance(joins, list):
            rooted["join"] = [
                {**join, "path": _join_root(root, join.get("path"))}
                if isinstance(join, dict)
                else join
                for join in joins
            ]
        if isinstance(items := values.get("items"), dict):
            rooted["items"] = {**items, "path": _join_root(root, items.get("path"))}
        return rooted

    @model_validator(mode="after")
    def _one_way(self) -> Data:
        if self.source is not None:
            if self.train or self.valid or self.test:
                raise ValueError(
                    "give `source` with `split`, or `train`, `valid` and `test`, not both"
                )
            if self.split is None:
                raise ValueError('`source` needs a `split` rule, as split = {by = "ratio"}')
        elif self.train is None or self.valid is None:
            raise ValueError("give `train` and `valid` (and `test`), or `source` with `split`")
        elif self.split is not None:
            raise ValueError("`split` goes with `source`")
        return self


class Features(Config):
    """Label, keys and encoded columns."""

    label: str
    """Column of the label, 0 or 1 (a bool is read as such)."""
    columns: list[Encoder] = Field(min_length=1)
    """The features, each with its encoder; `docs/encoders.md` lists them."""
    user: str | None = None
    """Column of the user."""
    item: str | None = None
    """Column of the item."""
    time: str | None = None
    """Column of the event time; the release states the range it was trained on."""
    group: str | None = None
    """Column that groups rows for grouped AUC; the user when absent."""
    weight: str | None = None
    """Column of the training weight, not negative."""
    known_before: list[str] = []
    """Columns that the label's expression reads and that are known when a request is scored all the same, so
    that features may read them."""

    @model_validator(mode="after")
    def _unique(self) -> Features:
        names = [column.name for column in self.columns]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"columns: {', '.join(twice)} declared twice; `name` must be unique")
        return self


class LoggedFeatures(Features):
    """Features that `[interactions]` stands for: user and item, by vocabulary."""

    label: str = ""
    """Column that tells the hidden items of baskets; empty where every row counts as positive."""

    @classmethod
    def of(cls, log: InteractionLog) -> LoggedFeatures:
        """Return the features of a log."""
        return cls(
            label=log.hidden or "",
            columns=list[Encoder](log.columns()),
            user=log.user,
            item=log.item,
            time=log.time,
            group=log.asker,
            weight=log.weight,
        )


class ModelSection(BaseModel):
    """`type`, then the model's own settings, which that model's Config checks."""

    model_config = ConfigDict(frozen=True, extra="allow", use_attribute_docstrings=True)

    type: str
    """A registered name, or `package.module:Class` of your own."""

    def settings(self) -> dict[str, Any]:
        """Return the model's own settings, as in the file."""
        return dict(self.model_extra or {})


class SparseOptimizer(Config):
    """Training of embedding tables."""

    mode: Literal["auto", "lazy", "fused", "dense"] = "auto"
    """`lazy`: plain torch tables in one process; Adam, whose steps compute the rows of a batch alone.
    `fused`: TorchRec tables with row-wise Adagrad in the backward pass, sharded over ranks.
    `dense`: plain torch tables; Adam over all rows at every step, exactly as in published settings.
    `auto`: `lazy` in one process, `fused` in several."""
    lr: float | None = Field(default=None, gt=0)
    """Learning rate; when absent 0.02 in `fused` mode, else 0.001."""
    l2: float = Field(default=0.0, ge=0)
    """Weight of the L2 penalty: (l2 / 2) * sum of squares; in `fused` mode of the rows that a batch
    reads, else of all."""


class DenseOptimizer(Config):
    """Training of all other weights, by Adam."""

    lr: float = Field(default=1e-3, gt=0)
    """Learning rate."""
    l2: float = Field(default=0.0, ge=0)
    """Weight of the L2 penalty: (l2 / 2) * sum of squares."""


class Train(Config):
    """The training loop."""

    batch_size: int = Field(default=4096, gt=0)
    """Examples in a step, over all ranks; with batch normalisation at least two for each rank."""
    epochs: int = Field(default=100, gt=0)
    """Passes over the training data at most."""
    sparse: SparseOptimizer = SparseOptimizer()
    """Embedding tables."""
    dense: DenseOptimizer = DenseOptimizer()
    """Other weights."""
    monitor: str | None = None
    """Validation metric that decides, or several joined by '-', whose gains are summed, as auc-logloss; the
    default of the model's family when absent."""
    min_delta: float = Field(default=1e-6, ge=0)
    """Improvement that counts."""
    patience: int = Field(default=2, gt=0)
    """Epochs without improvement before training stops; each lowers both learning rates."""
    lr_factor: float = Field(default=0.1, gt=0, le=1)
    """Factor of the learning rates at a plateau."""
    min_lr: float = Field(default=1e-6, ge=0)
    """Learning rates fall no lower."""
    clip_norm: float = Field(default=10.0, gt=0)
    """Global norm to which gradients of weights outside fused tables are clipped."""
    shuffle_rows: int = Field(default=1_000_000, gt=0)
    """Rows in the shuffle buffer."""
    checkpoint_steps: int | None = Field(default=None, gt=0)
    """Also save a checkpoint each so many steps, not only after an epoch."""
    seed: int = 2024
    """Seed of initial weights, shuffling and dropout."""
    device: str = "auto"
    """`auto`, `cpu`, `cuda` or `cuda:N`."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Precision of the dense layers; bfloat16 is refused on a CPU without instructions for it."""
    compile: bool = False
    """Run the dense layers through torch.compile."""


class Export(Config):
    """The release."""

    name: FolderName | None = None
    """Name of the model in the service and of its folder; the job's name when absent."""
    opset: int | None = Field(default=None, ge=18, le=22)
    """ONNX operator set; when absent the least that the encoders need: 18, or 20 where they read text as a
    list or a time."""
    context: list[str] = []
    """Raw columns that a ranking request gives once for all candidates."""
    tolerance: float = Field(default=1e-5, gt=0)
    """Largest absolute difference of probabilities between torch and ONNX that a release may show."""
    precision: Literal["float32", "int8"] = "float32"
    """Of the dense layers: int8 takes a fraction of the CPU time, and costs some AUC, which is measured."""
    tables: TableType = "float32"
    """Of the embedding tables: float16 takes half the bytes, int8 with a scale for each row a third to a
    quarter; the AUC that it costs is measured. The vectors of numbers stay float32."""
    int8_tolerance: float = Field(default=0.1, gt=0)
    """`tolerance` where layers or tables are int8, and single rows differ by some hundredths."""
    float16_tolerance: float = Field(default=0.01, gt=0)
    """`tolerance` where tables are float16, and nothing is int8."""
    max_auc_cost: float = Field(default=0.001, ge=0)
    """With int8 or float16: the release is refused where they cost more validation AUC, layers and tables
    together."""
    golden_rows: int = Field(default=32, gt=0)
    """Raw rows with their scores that the service checks when it loads the release."""


_NO_LOG = InteractionLog(user="user", item="item")


class Job(Config):
    """A declared job: one file, from raw logs to a release."""

    name: FolderName
    """Name of the job; folders of runs and releases carry it."""
    data: Data
    """Rows: files, joins, split."""
    features: Features
    """Columns that a click model sees, and the one that it should predict."""
    interactions: InteractionLog | None = None
    """In place of `[features]`: a log of users and items, for a retrieval model."""
    model: ModelSection
    """Model and its settings."""
    train: Train = Train()
    """Training."""
    export: Export = Export()
    """Release."""
    tune: Tune | None = None
    """Search over settings, by `headwater tune`."""

    @model_validator(mode="before")
    @classmethod
    def _features_of_log(cls, values: Any) -> Any:
        """Put in what `[interactions]` stands for, so that nothing after this needs to ask."""
        if not isinstance(values, dict) or values.get("interactions") is None:
            return values
        if "features" in values:
            raise PydanticCustomError(
                "two_sections",
                "found both [features] and [interactions]: a click model has the first, a retrieval model "
                "the second",
            )
        try:
            log = InteractionLog.model_validate(values["interactions"])
        except ValidationError:
            # Told below, where the section is read; no second error for features that are not there.
            return {**values, "features": LoggedFeatures.of(_NO_LOG)}
        return {**values, "features": LoggedFeatures.of(log)}

    @model_serializer(mode="wrap")
    def _without_features_of_log(self, serialise: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave out the features that `[interactions]` stands for."""
        values = serialise(self)
        if self.interactions is not None:
            values.pop("features", None)
        return values


def load_job(path: Path | str, overrides: Sequence[str] = ()) -> Job:
    """Return the job in a TOML file with `key.path=value` overrides; JobError names file, key and remedy.

    Relative paths inside the job are read from the current folder, as a shell would.
    """
    path = path_of(path, "load_job: path")
    expected = "a list of settings, as ['train.seed=7']"
    settings = [
        checked(each, str, "load_job: overrides", expected)
        for each in list_of(overrides, "load_job: overrides", expected)
    ]
    try:
        # Some editors put a byte-order mark before UTF-8.
        values = tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise JobError(f"{path}: no such file.") from None
    except (UnicodeDecodeError, IsADirectoryError, PermissionError) as error:
        raise JobError(f"{path}: cannot be read as text: {error}.") from error
    except tomllib.TOMLDecodeError as error:
        raise JobError(f"{path}: not valid TOML: {error}.") from error
    for setting in settings:
        _apply(values, setting, "--set")
    return parse_job(values, source=f"{path} with --set" if settings else str(path))


def require_job(job: object, argument: str) -> Job:
    """Return `job`; InputError where it is none, as the path of one."""
    return checked(job, Job, argument, "a Job, as load_job returns it")


def parse_job(values: Mapping[str, Any], source: str = "job") -> Job:
    """Return the job in a nested dict, as read from TOML; `source` names it in errors."""
    try:
        return Job.model_validate(dict(values))
    except ValidationError as error:
        lines = [*explain(error, Job, values), *_model_problems(values.get("model"))]
        raise JobError("\n".join(f"{source}: {line}" for line in lines)) from None


def with_values(job: Job, values: Mapping[str, Any]) -> Job:
    """Return the job with other values of some keys, as `train.seed`; JobError where they make none."""
    nested = job.model_dump(mode="json", exclude_none=True)
    for key, value in values.items():
        _put(nested, key, value, "job")
    return parse_job(nested)


def read_model(name: str, settings: Mapping[str, Any]) -> tuple[type[Model], ModelConfig]:
    """Return the class that `model.type` names and its settings, with defaults.

    JobError has a line for each problem. It imports torch, which a sound job can do without.
    """
    from headwater.models.registry import load_model

    model_class: type[Model] = load_model(name)
    config = model_class.config_class
    try:
        return model_class, config.model_validate(dict(settings))
    except ValidationError as error:
        raise JobError("\n".join(explain(error, config, settings, "model"))) from None


def read_csv_format(values: Mapping[str, Any], source: str = "csv") -> CsvFormat:
    """Return how CSV files are written, as `data.csv` says it; JobError names a wrong key after `source`."""
    try:
        return CsvFormat.model_validate(dict(values))
    except ValidationError as error:
        raise JobError("\n".join(explain(error, CsvFormat, values, source))) from None


def read_settings(settings: Sequence[str], flag: str) -> dict[str, Any]:
    """Return the nested dict that `key.path=value` settings of an option make; JobError for another form."""
    values: dict[str, Any] = {}
    for setting in settings:
        _apply(values, setting, flag)
    return values


def dump_job(job: Job) -> str:
    """Return the resolved job as TOML: every value, defaults too, without absent ones."""
    return tomli_w.dumps(job.model_dump(mode="json", exclude_none=True))


def _model_problems(section: object) -> Iterator[str]:
    """Yield the errors of the model's own settings, so that all of a job's errors come at once."""
    if not isinstance(section, Mapping) or not isinstance(section.get("type"), str):
        return
    settings = {key: value for key, value in section.items() if key != "type"}
    try:
        read_model(section["type"], settings)
    except JobError as error:
        yield from str(error).splitlines()


def _join_root(root: str, paths: Any) -> Any:
    """Return paths with relative ones under `root`; what is no path is left for pydantic to refuse."""
    if isinstance(paths, list):
        return [_join_root(root, path) for path in paths]
    if not isinstance(paths, str) or paths.startswith("/") or "://" in paths:
        return paths
    return f"{root}/{paths}"


def _apply(values: dict[str, Any], override: str, flag: str) -> None:
    """Set `a.b=value` in nested dicts; the value is TOML, or text where it is not TOML."""
    key, separator, text = override.partition("=")
    if not separator or not key:
        raise JobError(f"{flag} {override!r}: expected key.path=value.")
    try:
        value = tomllib.loads(f"v = {text}")["v"]
    except tomllib.TOMLDecodeError:
        value = text.strip()
    _put(values, key.strip(), value, f"{flag} {override!r}")


def _put(values: dict[str, Any], key: str, value: Any, source: str) -> None:
    """Set a key as `a.b` in nested dicts; JobError, which names `source`, where `a` is no table."""
    *parents, last = key.split(".")
    table = values
    for depth, parent in enumerate(parents):
        table = table.setdefault(parent, {})
        if not isinstance(table, dict):
            raise JobError(f"{source}: {'.'.join(parents[: depth + 1])} is not a table.")
    table[last] = value
