"""The format of CSV and TSV files, as a job says it."""

from __future__ import annotations

import codecs
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from headwater.feature_store.config import Config


def _one_byte(text: str) -> str:
    if not (text.isascii() and len(text) == 1 and text not in "\r\n"):
        raise ValueError("expected one ASCII character")
    return text


def _known_encoding(name: str) -> str:
    try:
        "".encode(name)
    except LookupError:
        raise ValueError("no encoding of text that Python knows") from None
    return name


OneByte = Annotated[str, AfterValidator(_one_byte)]
"""A character that is one byte in a file."""


class CsvFormat(Config):
    """Format of CSV and TSV files, where it is not the usual one."""

    delimiter: OneByte | None = None
    """Character between fields; a comma in `.csv`, a tab in `.tsv` when absent."""
    quote: OneByte | Literal[""] = '"'
    """Character around a field that holds the delimiter; `""` where quotes are plain text."""
    columns: list[str] | None = Field(default=None, min_length=1)
    """Names of the columns, for files without a header."""
    nulls: list[str] = []
    """Texts that stand for a missing value, as `\\N`, beside the empty one."""
    encoding: Annotated[str, AfterValidator(_known_encoding)] = "utf-8"
    """Encoding of the text, as Python names it."""

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        twice = sorted(
            {name for name in self.columns or () if (self.columns or []).count(name) > 1}
        )
        if twice:
            raise ValueError(f"columns: {', '.join(twice)} named twice")
        if self.delimiter is not None and self.delimiter == self.quote:
            raise ValueError(f"delimiter and quote are both {self.quote!r}")
        return self

    def decoder(self) -> codecs.IncrementalDecoder | None:
        """Return what decodes the text; None for UTF-8."""
        name = codecs.lookup(self.encoding).name
        return None if name in ("utf-8", "utf-8-sig") else codecs.getincrementaldecoder(name)()
