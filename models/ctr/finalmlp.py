"""FinalMLP (Mao et al., AAAI 2023, arXiv 2304.00902): two gated MLP streams and a bilinear fusion.

Each stream sees the embeddings through its own gate, which context features (a user, an item) set;
the two stream outputs are fused by a bilinear form in each of K subspaces. Without gates and fusion
it is DualMLP.

B examples, F features, D embedding dimension, E coordinates of all features, C context features of a gate.
"""

from __future__ import annotations

from collections.abc import Mapping

from pydantic import Field, PositiveInt, model_validator
from torch import Tensor

from headwater.models.base import ModelConfig, Slot
from headwater.models.ctr.base import PrunableModel
from headwater.models.layers import MLP, BilinearFusion, FeatureGate


class FinalMLPConfig(ModelConfig):
    """Settings of FinalMLP."""

    hidden_1: tuple[PositiveInt, ...] = Field(default=(400, 400), min_length=1)
    """Widths of stream 1."""
    hidden_2: tuple[PositiveInt, ...] = Field(default=(400,), min_length=1)
    """Widths of stream 2."""
    dropout_1: float = Field(default=0.2, ge=0, lt=1)
    """Dropout after each hidden layer of stream 1."""
    dropout_2: float = Field(default=0.2, ge=0, lt=1)
    """Dropout after each hidden layer of stream 2."""
    batch_norm_1: bool = True
    """Batch normalisation before each ReLU of stream 1."""
    batch_norm_2: bool = True
    """Batch normalisation before each ReLU of stream 2."""
    num_heads: int = Field(default=10, gt=0)
    """Heads of the bilinear fusion; must divide the last width of both streams."""
    use_gates: bool = True
    """Gate the embeddings of each stream."""
    gate_hidden: tuple[PositiveInt, ...] = (400,)
    """Widths of the hidden layers of each gate."""
    gate_1_context: tuple[str, ...] = ()
    """Encoded columns that set the gate of stream 1, as the user; without any it is static."""
    gate_2_context: tuple[str, ...] = ()
    """Encoded columns that set the gate of stream 2, as the item; without any it is static."""

    @model_validator(mode="after")
    def _heads_divide(self) -> FinalMLPConfig:
        for key, widths in (("hidden_1", self.hidden_1), ("hidden_2", self.hidden_2)):
            if widths[-1] % self.num_heads:
                raise ValueError(
                    f"num_heads = {self.num_heads} does not divide {widths[-1]}, the last width of "
                    f"{key}; choose a divisor of both last widths"
                )
        return self

    @model_validator(mode="after")
    def _context_needs_gates(self) -> FinalMLPConfig:
        if not self.use_gates and (self.gate_1_context or self.gate_2_context):
            raise ValueError("gate_1_context and gate_2_context need use_gates = true")
        return self


class FinalMLP(PrunableModel):
    """Two gated multi-layer perceptrons with multi-head bilinear fusion."""

    config: FinalMLPConfig
    config_class = FinalMLPConfig

    def __init__(
        self, config: FinalMLPConfig, *, num_features: int, width: int | None = None
    ) -> None:
        super().__init__(config, num_features=num_features, width=width)
        dim = config.embedding_dim
        if config.use_gates:
            self.gate_1 = FeatureGate(
                self.width, dim, num_context=len(config.gate_1_context), hidden=config.gate_hidden
            )
            self.gate_2 = FeatureGate(
                self.width, dim, num_context=len(config.gate_2_context), hidden=config.gate_hidden
            )
        self.mlp_1 = MLP(
            self.width, config.hidden_1, dropout=config.dropout_1, batch_norm=config.batch_norm_1
        )
        self.mlp_2 = MLP(
            self.width, config.hidden_2, dropout=config.dropout_2, batch_norm=config.batch_norm_2
        )
        self.fusion = BilinearFusion(self.mlp_1.width_out, self.mlp_2.width_out, config.num_heads)

    @classmethod
    def slots(cls, config: ModelConfig) -> Mapping[str, Slot]:
        """Return the main slot, and a slot of separate tables for each gate that has context."""
        assert isinstance(config, FinalMLPConfig)
        slots = {"emb_BFD": Slot(config.embedding_dim)}
        if config.gate_1_context:
            slots["gate_1_BCD"] = Slot(config.embedding_dim, config.gate_1_context)
        if config.gate_2_context:
            slots["gate_2_BCD"] = Slot(config.embedding_dim, config.gate_2_context)
        return slots

    def forward(
        self,
        emb_BFD: Tensor,
        gate_1_BCD: Tensor | None = None,
        gate_2_BCD: Tensor | None = None,
    ) -> Tensor:
        """Return the click logit, shape (B,); a gate without columns gets no context."""
        return self.score(emb_BFD, emb_BFD.flatten(1), gate_1_BCD, gate_2_BCD)

    def score(
        self,
        emb_BFD: Tensor,  # noqa: ARG002
        emb_BE: Tensor,
        gate_1_BCD: Tensor | None = None,
        gate_2_BCD: Tensor | None = None,
    ) -> Tensor:
        """Return the click logit, shape (B,), of the coordinates that are there."""
        in_1_BE = in_2_BE = emb_BE
        if self.config.use_gates:
            in_1_BE = emb_BE * self.gate_1(gate_1_BCD)
            in_2_BE = emb_BE * self.gate_2(gate_2_BCD)
        return self.fusion(self.mlp_1(in_1_BE), self.mlp_2(in_2_BE))

    def gates(
        self,
        emb_BFD: Tensor,
        gate_1_BCD: Tensor | None = None,
        gate_2_BCD: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Return the gate values of both streams, each (B, F, D) in (0, 2); needs `use_gates`.

        The arguments are those of `forward`, with all coordinates. The mean over B and D is a field's weight.
        """
        assert self.config.use_gates, "this FinalMLP has no gates"
        return (
            self.gate_1(gate_1_BCD).view(-1, *emb_BFD.shape[1:]).expand_as(emb_BFD),
            self.gate_2(gate_2_BCD).view(-1, *emb_BFD.shape[1:]).expand_as(emb_BFD),
        )
