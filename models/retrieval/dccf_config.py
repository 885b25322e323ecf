"""Settings of DCCF, whose two public codes differ in losses, draws and which epoch is kept."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, PositiveInt, model_validator

from headwater.models.base import ModelConfig
from headwater.models.phases import Keep

Preset = Literal["official", "sslrec"]


class DCCFConfig(ModelConfig):
    """Settings of DCCF: those that are left out are the preset's; the defaults shown are of `official`."""

    embedding_dim: int = Field(default=32, gt=0)
    """Dimension of the vectors."""
    num_layers: int = Field(default=2, ge=0)
    """Layers of propagation; with none it is BPR-MF."""
    num_intents: PositiveInt = 128
    """Prototypes of users, and as many of items."""
    preset: Preset = "official"
    """`official`: the authors' code; `sslrec`: that of the SSLRec library."""
    l2_rows: float = Field(default=2.5e-5, ge=0)
    """Weight of the squared norms of the table's rows in a batch, their sum; 0 in `sslrec`."""
    l2_table: float = Field(default=0.0, ge=0)
    """Weight of the squared norm of the whole table; 1e-4 in `sslrec`."""
    l2_intents: float = Field(default=5e-3, ge=0)
    """Weight of the squared norms of the prototypes; 1e-4 in `sslrec`."""
    contrast_weight: float = Field(default=0.1, ge=0)
    """Weight of the contrast of views; 0.01 in `sslrec`."""
    temperature: float = Field(default=1.0, gt=0)
    """Divides the cosines of the contrast; 0.2 in `sslrec`."""
    contrast_items: Literal["positives", "all"] = "positives"
    """Items of a batch that are contrasted: those that users had, or with the drawn ones (`sslrec`)."""
    item_mean: Literal["items", "users"] = "items"
    """Number by which an item term of the contrast is divided: its items, or the users (`sslrec`)."""
    contrast_block: PositiveInt = 256
    """Rows of the contrast at a time; its memory is so many times the distinct users or items of a batch."""
    init: Literal["xavier_normal", "xavier_uniform"] = "xavier_normal"
    """First values of table and prototypes; uniform in `sslrec`."""
    sampling: Literal["users", "interactions"] = "users"
    """Examples of an epoch: users drawn evenly with replacement, or each interaction once (`sslrec`)."""
    draws: PositiveInt = 409_600
    """Users of an epoch where users are drawn."""
    keep: Keep = "last"
    """Epoch whose weights training ends with: the last one, or the best (`sslrec`)."""
    learn_terms: bool = False
    """Learn a weight for each of the four messages of a layer, from 1, shared by all layers."""
    intent_view: bool = True
    """Have the intents' message and contrast; without it intents still weigh edges for the adaptive one."""
    graph_adaptive_view: bool = True
    """Have the message and contrast over edges weighed by likeness of propagated vectors."""
    intent_adaptive_view: bool = True
    """Have the message and contrast over edges weighed by likeness of intents."""

    @model_validator(mode="before")
    @classmethod
    def _fill_from_preset(cls, given: Any) -> Any:
        if isinstance(given, dict) and given.get("preset") == "sslrec":
            return _SSLREC | given
        return given


_SSLREC: dict[str, Any] = {
    "l2_rows": 0.0,
    "l2_table": 1e-4,
    "l2_intents": 1e-4,
    "contrast_weight": 0.01,
    "temperature": 0.2,
    "contrast_items": "all",
    "item_mean": "users",
    "init": "xavier_uniform",
    "sampling": "interactions",
    "keep": "best",
}
