"""The architecture that OptInter finds: a method for each pair of features, as a file that people read.

architecture.toml
    [[pairs]]
    columns = ["user", "genre"]
    method = "memorise"
    strength = [0.91, 0.06, 0.03]   # of memorise, factorise, naive
    rows = 1204                     # of the crossed table
    information = 0.013             # mutual information of the crossed value and the label, nats
"""

from __future__ import annotations

import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import tomli_w

from headwater.feature_store.config import Config

ARCHITECTURE = "architecture.toml"

Method = Literal["memorise", "factorise", "naive"]
METHODS: tuple[Method, ...] = get_args(Method)


class Pair(Config):
    """A pair of features and its method."""

    columns: tuple[str, str]
    """The two features."""
    method: Method
    """`memorise`, `factorise` or `naive`."""

    @property
    def name(self) -> str:
        """Name of the crossed column."""
        return " x ".join(self.columns)


class FoundPair(Pair):
    """A pair as a search leaves it, with what it was chosen by."""

    strength: tuple[float, float, float]
    """Weights of the methods, which sum to 1."""
    rows: int
    """Rows of the crossed table, with those for missing and for rare values."""
    information: float
    """Mutual information of the crossed value and the label in the training data, in nats."""

    @property
    def chosen(self) -> Pair:
        """The pair and its method alone."""
        return Pair(columns=self.columns, method=self.method)


def architecture_file(pairs: Sequence[FoundPair]) -> bytes:
    """Return the content of `architecture.toml` for what a search found."""
    return tomli_w.dumps({"pairs": [pair.model_dump(mode="json") for pair in pairs]}).encode()


def read_pairs(path: Path) -> list[dict[str, Any]]:
    """Return the pairs and methods of a file, to be validated; ValueError where it cannot be read."""
    try:
        pairs = tomllib.loads(path.read_text(encoding="utf-8"))["pairs"]
        return [{"columns": pair["columns"], "method": pair["method"]} for pair in pairs]
    except OSError as error:
        raise ValueError(
            f"{path}: cannot be read: {error.strerror}. Expected the architecture.toml of a search, or "
            f"one of {', '.join(METHODS)}"
        ) from None
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{path}: no architecture of OptInter: {error}. Expected [[pairs]] with columns and method"
        ) from None


def read_architecture(path: Path) -> tuple[FoundPair, ...]:
    """Return what a search wrote."""
    pairs = tomllib.loads(path.read_text(encoding="utf-8"))["pairs"]
    return tuple(FoundPair.model_validate(pair) for pair in pairs)
