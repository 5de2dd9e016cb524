"""Geometry: the shape of a model's attention, the one thing an aligner must know about it."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

Part = Literal["q", "k", "v"]


@dataclass(frozen=True)
class Geometry:
    """How many layers, heads and dims a model's queries, keys and values have.

    Attributes:
        layers: attention layers L.
        heads: query heads Hq.
        kv_heads: key and value heads Hkv; smaller than `heads` under grouped-query attention.
        head_dim: dims D of a query or key head. Not always hidden_size // heads (Qwen3, Gemma).
        value_dim: dims of a value head; differs from `head_dim` in multi-head latent attention only.
        rope_theta: base of the rotary frequencies, None where positions are not rotary. Where layers differ
            (Gemma 3), that of the full-attention layers. For display: rotations come from the model itself.
        name: what to call the model in a table.

    Raises:
        ValueError: for a count below one, or query heads that do not divide into the KV heads.
    """

    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    value_dim: int
    rope_theta: float | None = None
    name: str = ""

    def __post_init__(self) -> None:
        for field in ("layers", "heads", "kv_heads", "head_dim", "value_dim"):
            if getattr(self, field) < 1:
                raise ValueError(f"a geometry needs {field} ≥ 1, not {getattr(self, field)}")
        if self.heads % self.kv_heads:
            raise ValueError(f"{self.heads} query heads do not divide into {self.kv_heads} key-value heads")

    @classmethod
    def from_config(cls, config: Any) -> Geometry:
        """Read any transformers config; of a multimodal one, its text decoder's.

        Raises:
            ValueError: the config names no attention heads, as those of models without attention do, or
                other heads and dims for each layer.
        """
        text = config.get_text_config(decoder=True) if hasattr(config, "get_text_config") else config
        try:
            return cls._from_text_config(text, getattr(config, "name_or_path", ""))
        except RuntimeError as error:  # Gemma 4: a field that each layer has its own value of
            raise ValueError("the layers of this model differ in heads and dims") from error

    @classmethod
    def _from_text_config(cls, text: Any, name: str) -> Geometry:
        layers, heads = (getattr(text, key, None) for key in ("num_hidden_layers", "num_attention_heads"))
        if not layers or not heads:
            kind = getattr(text, "model_type", type(text).__name__)
            raise ValueError(
                f"the configuration of {kind} names no attention layers, so there are no keys and values"
            )
        head_dim = getattr(text, "head_dim", None) or text.hidden_size // heads
        if getattr(text, "qk_nope_head_dim", None):  # multi-head latent attention (DeepSeek-V3)
            head_dim = text.qk_nope_head_dim + text.qk_rope_head_dim
        return cls(
            layers=layers,
            heads=heads,
            kv_heads=getattr(text, "num_key_value_heads", None) or heads,
            head_dim=head_dim,
            value_dim=getattr(text, "v_head_dim", None) or head_dim,
            rope_theta=_rope_theta(text),
            name=name or getattr(text, "model_type", ""),
        )

    def heads_of(self, part: Part) -> int:
        """Heads of the queries, keys or values."""
        return self.heads if part == "q" else self.kv_heads

    def dim_of(self, part: Part) -> int:
        """Dims of one head of the queries, keys or values."""
        return self.value_dim if part == "v" else self.head_dim

    @property
    def group(self) -> int:
        """Query heads that share one key-value head."""
        return self.heads // self.kv_heads

    def as_dict(self) -> dict[str, Any]:
        """The fields by name, for JSON."""
        return asdict(self)


def _rope_theta(config: Any) -> float | None:
    """Base of the rotary frequencies, under any of the spellings transformers 5 uses."""
    parameters = getattr(config, "rope_parameters", None) or {}
    by_layer_type = [kind for kind in parameters.values() if isinstance(kind, dict)]
    if by_layer_type:
        parameters = parameters.get("full_attention") or by_layer_type[0]
    theta = parameters.get("rope_theta", getattr(config, "rope_theta", None))
    return None if theta is None else float(theta)
