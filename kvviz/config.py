"""AlignmentConfig: every choice a user can make about an alignment, written down once.

The URL, the sidebar's widgets, the command line's flags, a YAML file and a saved session are five
spellings of this one frozen object. Each field carries its options, default, title and help text, and
the controls are drawn from them.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar, get_args

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator
from pydantic.fields import FieldInfo

Mode = Literal["structured", "flat", "identity"]
Init = Literal["fitted", "uniform", "random"]
Strategy = Literal["uniform", "ratio", "skip", "cka", "custom"]
KeySpace = Literal["auto", "pre_rope", "post_rope"]
TimeMethod = Literal["auto", "text", "linear", "area"]
AttentionTarget = Literal["projected", "mixed"]
FlatKind = Literal["linear", "elastic"]


class ConfigError(ValueError):
    """A configuration that cannot be used; the message names each field and what it takes."""


def _pairs(value: Any) -> Any:
    """`{0: 1.5}`, `"0:1.5,2:0.5"` or `[[0, 1.5]]` as sorted pairs: hashable, and the same object whatever the spelling."""
    if value is None or value == "":
        return ()
    try:
        if isinstance(value, str):
            value = [item.split(":") for item in value.split(",")]
        items: Iterable[Any] = value.items() if isinstance(value, Mapping) else value
        pairs = tuple(sorted((int(segment), float(number)) for segment, number in items))
    except (TypeError, ValueError, OverflowError) as error:
        raise ValueError("it takes segment: number pairs, such as 0:1.5,2:0.5") from error
    if len(dict(pairs)) < len(pairs):
        raise ValueError("it names a segment twice")
    return pairs


def _matrix(value: Any) -> Any:
    """`"1,0;0,1"` or nested lists as a tuple of rows."""
    if value is None or value == "":
        return None
    try:
        if isinstance(value, str):
            value = [row.split(",") for row in value.split(";")]
        # Six digits are all a layer map has, and they keep a link to one short.
        rows = tuple(tuple(float(f"{float(weight):.6g}") for weight in row) for row in value)
    except (TypeError, ValueError, OverflowError) as error:
        raise ValueError("it takes rows of numbers, such as 1,0;0,1") from error
    if not all(math.isfinite(weight) and weight >= 0 for row in rows for weight in row):
        raise ValueError("it takes weights from 0 up, none of them infinite")
    return rows


SegmentNumbers = Annotated[tuple[tuple[int, float], ...], BeforeValidator(_pairs)]
LayerMatrix = Annotated[tuple[tuple[float, ...], ...] | None, BeforeValidator(_matrix)]


class LossConfig(BaseModel):
    """Weights of the terms of `kvviz.losses.StructuralKVLoss`."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    alpha_k: float = Field(1.0, ge=0, title="K weight", description="Weight of the key term, 1 − cosine.")
    alpha_v: float = Field(1.0, ge=0, title="V weight", description="Weight of the value term, 1 − cosine.")
    alpha_attn: float = Field(
        0.5, ge=0, title="Attention weight", description="Weight of the attention term, KL in nats."
    )
    temperature: float = Field(
        1.0, gt=0, title="Temperature", description="Both attention distributions are softened by it."
    )


class AlignmentConfig(BaseModel):
    """What is mapped onto what, and how. Frozen and hashable: equal configurations give equal pictures."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    kv_projection_mode: Mode = Field(
        "structured",
        title="Projection mode",
        description=(
            "structured: a head mixer and a head-dim projection. flat: one matrix over all (head, dim) pairs "
            "of a layer. identity: no parameters, group means over heads and the first dims: the zero line."
        ),
    )
    init: Init = Field(
        "fitted",
        title="Projector weights",
        description=(
            "fitted: closed-form least squares on calibration texts. uniform and random are the v4.0 report's "
            "starting points; untrained, both show a cosine near 0."
        ),
    )
    share_dim_proj: bool = Field(
        True,
        title="Share the dim projection over heads",
        description="On: one [D_s, D_t] matrix for all student heads. Off: one for each student head.",
    )
    share_layers: bool = Field(
        False,
        title="Share the map over layers",
        description=(
            "On: one map for all layers, as in the v4.0 report. Off: one for each student layer; layers of "
            "unrelated models share no basis, so sharing costs accuracy."
        ),
    )
    offset: bool = Field(
        True,
        title="Add an offset",
        description="Keys have large means. On: a constant for each student head and dim is fitted beside the map.",
    )
    flat_kind: FlatKind = Field(
        "linear",
        title="Flat projector",
        description=(
            "linear: one matrix. elastic: LayerNorm, Linear, SiLU, Dropout, Linear; it has no closed form, so "
            "it stays at its random start until it is trained."
        ),
    )
    layer_mapping_strategy: Strategy = Field(
        "uniform",
        title="Layer map",
        description=(
            "uniform: contiguous blocks, fractional at the borders. ratio: the report's rounding rule. skip: evenly "
            "spaced single layers. cka: the two most similar layers on this prompt. custom: the edited matrix."
        ),
    )
    layer_matrix: LayerMatrix = Field(
        None,
        title="Custom layer map",
        description="Rows are student layers, columns teacher layers; used when the strategy is custom.",
    )
    key_space: KeySpace = Field(
        "auto",
        title="Key space",
        description=(
            "pre_rope: keys and queries are un-rotated, aligned, and rotated again at the student's positions. "
            "post_rope: the cache as it is. auto: pre_rope where both models are rotary."
        ),
    )
    time_method: TimeMethod = Field(
        "auto",
        title="Time warp",
        description=(
            "text: by shared characters, where both read the same text. linear: interpolation in each segment "
            "(alpha 0 nearest to 1 linear). area: averages when compressing. auto: text for the same text, else linear."
        ),
    )
    alpha_map: SegmentNumbers = Field(
        (), title="Alpha by segment", description="Segment index to alpha: 0 nearest, 1 linear."
    )
    ratio_map: SegmentNumbers = Field(
        (),
        title="Ratio by segment",
        description="Segment index to its share of the target length, relative to its own length.",
    )
    target_length: int | None = Field(
        None,
        ge=1,
        le=8192,
        title="Target length T_s",
        description="What if the student had this many positions? Used by the Segments page and the time warper.",
    )
    attention_target: AttentionTarget = Field(
        "projected",
        title="Attention target",
        description=(
            "projected: softmax of the aligned queries and keys. mixed: what the teacher really attended to, "
            "carried through the layer map, the head mixer and the time warp."
        ),
    )
    seed: int = Field(
        0, ge=0, le=2**31 - 1, title="Seed", description="Seed of random and uniform starting points."
    )
    loss_config: LossConfig = Field(
        default_factory=LossConfig, title="Loss weights", description="Loss weights."
    )

    @model_validator(mode="before")
    @classmethod
    def _report_keys(cls, values: Any) -> Any:
        """`init_uniform`, the v4.0 report's key, sets `init` when it is given."""
        if isinstance(values, Mapping) and "init_uniform" in values:
            values = dict(values)
            uniform = values.pop("init_uniform")
            if isinstance(uniform, str) and uniform.lower() in ("true", "false"):
                uniform = uniform.lower() == "true"
            if not isinstance(uniform, bool):
                raise ValueError(f"init_uniform: takes true or false, not {uniform!r}")
            start = "uniform" if uniform else "random"
            if values.setdefault("init", start) != start:
                raise ValueError(f"init_uniform: {uniform} contradicts init: {values['init']}")
        return values

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.layer_mapping_strategy == "custom" and self.layer_matrix is None:
            raise ValueError("layer_mapping_strategy: custom needs a layer_matrix")
        elastic = self.kv_projection_mode == "flat" and self.flat_kind == "elastic"
        if elastic and self.attention_target == "mixed":
            raise ValueError("attention_target: mixed needs weights by head, an elastic projector has none")
        for name, numbers in (("alpha_map", self.alpha_map), ("ratio_map", self.ratio_map)):
            for segment, number in numbers:
                top = 1.0 if name == "alpha_map" else 100.0
                if segment < 0 or not 0.0 <= number <= top:
                    raise ValueError(
                        f"{name}: segment {segment} has {number:g}, it takes 0 to {top:g} for segments 0, 1, …"
                    )
        return self

    @classmethod
    def parse(cls, values: Mapping[str, Any]) -> Self:
        """From plain values, as YAML or flags give them.

        Raises:
            ConfigError: with one line a field that is unknown or has a value it cannot take.
        """
        return strict(cls, values)

    @classmethod
    def from_yaml(cls, path: str | Path) -> Self:
        """From a YAML file with the report's own keys (`kv_projection_mode`, `share_dim_proj`, `init_uniform`, …)."""
        try:
            values = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
        except (OSError, yaml.YAMLError, UnicodeDecodeError) as error:
            raise ConfigError(f"{path} cannot be read as YAML: {error}") from error
        if values is None:
            return cls()
        if not isinstance(values, dict):
            raise ConfigError(f"{path} holds a {type(values).__name__}; it needs `key: value` lines")
        return cls.parse(values)

    def to_yaml(self) -> str:
        """Every field that differs from its default, as YAML that `from_yaml` reads back to an equal object."""
        return (
            yaml.safe_dump(self.differences(), sort_keys=False, allow_unicode=True)
            if self.differences()
            else "{}\n"
        )

    def whole(self) -> dict[str, Any]:
        """Every field, in JSON types: what was written down so stays what it was when a default changes."""
        return json.loads(self.model_dump_json())

    def differences(self) -> dict[str, Any]:
        """The fields that are not at their default, in JSON types."""
        return json.loads(self.model_dump_json(exclude_defaults=True))

    def to_query(self) -> dict[str, str]:
        """The URL's spelling: only what differs from the default, one short string a field."""
        spelled = {}
        for name, value in self.differences().items():
            if name in ("alpha_map", "ratio_map"):
                spelled[name] = ",".join(f"{segment}:{_short(number)}" for segment, number in value)
            elif name == "layer_matrix":
                spelled[name] = ";".join(",".join(f"{_short(weight)}" for weight in row) for row in value)
            elif name == "loss_config":
                spelled |= {f"loss.{term}": _short(weight) for term, weight in value.items()}
            else:
                spelled[name] = str(value).lower() if isinstance(value, bool) else str(value)
        return spelled

    @classmethod
    def from_query(cls, query: Mapping[str, str]) -> tuple[AlignmentConfig, list[str]]:
        """Read the URL's spelling; what makes no sense falls back to its default and is named.

        Returns the configuration and one message for each field that was ignored. Keys that are not fields
        are left to others.
        """
        names = (*cls.model_fields, "init_uniform")
        values: dict[str, Any] = {name: query[name] for name in names if name in query}
        values.pop("loss_config", None)
        loss = {key.removeprefix("loss."): value for key, value in query.items() if key.startswith("loss.")}
        if loss:
            values["loss_config"] = loss
        return tolerant(cls, values)


def _short(number: float) -> str:
    """The shortest spelling that reads back as the same number."""
    return repr(number).removesuffix(".0")


M = TypeVar("M", bound=BaseModel)


def strict(model: type[M], values: Mapping[str, Any]) -> M:
    """Build a model from values a person wrote.

    Raises:
        ConfigError: with one line a field that is unknown or has a value it cannot take.
    """
    try:
        return model.model_validate(dict(values))
    except ValidationError as error:
        raise ConfigError("\n".join(_explain(model, detail) for detail in error.errors())) from error


def tolerant(model: type[M], values: Mapping[str, Any]) -> tuple[M, list[str]]:
    """Build a model from values nobody checked: a field that cannot be used falls back to its default and is named."""
    values = dict(values)
    ignored: list[str] = []
    while True:
        try:
            return model.model_validate(values), ignored
        except ValidationError as error:
            dropped = False
            for detail in error.errors():
                # A rule between fields names the one to drop at the beginning of its message.
                named = str(detail["msg"]).removeprefix("Value error, ").partition(":")[0]
                if _drop(values, detail["loc"] or (named,)):
                    ignored.append(_explain(model, detail))
                    dropped = True
            if not dropped:
                raise  # Nothing left to drop: the defaults themselves are wrong.


def _drop(values: dict[str, Any], place: Sequence[int | str]) -> bool:
    """Take the value at a place of nested mappings away, and nothing beside it; False where there is none (any more)."""
    first, *rest = place
    if first not in values:
        return False
    inner = values[str(first)]
    if rest and isinstance(inner, Mapping):
        values[str(first)] = inner = dict(inner)
        return _drop(inner, rest)
    del values[str(first)]
    return True


def _explain(model: type[BaseModel], detail: Any) -> str:
    """One validation error in words: which field, what it was given, what it takes."""
    path = ".".join(str(part) for part in detail["loc"])
    if not path:
        return str(detail["msg"]).removeprefix("Value error, ")
    if detail["type"] == "extra_forbidden":
        return f"{path}: unknown key; known are {', '.join(_known(model, detail['loc'][:-1]))}"
    field = _field(model, detail["loc"])
    options = get_args(field.annotation) if field is not None else ()
    given = repr(detail["input"])
    given = given if len(given) < 80 else given[:77] + "…"
    if options and all(isinstance(option, str) for option in options):
        return f"{path}: {given} is none of {', '.join(options)}"
    message = str(detail["msg"]).removeprefix("Value error, ")
    return f"{path}: {given} is not usable ({message})"


def _field(model: type[BaseModel], place: Sequence[int | str]) -> FieldInfo | None:
    """The field at a place of nested models."""
    field = model.model_fields.get(str(place[0]))
    inner = None if field is None else field.annotation
    if len(place) > 1 and isinstance(inner, type) and issubclass(inner, BaseModel):
        return _field(inner, place[1:])
    return field


def _known(model: type[BaseModel], place: Sequence[int | str]) -> list[str]:
    """The keys that are known at a place of nested models."""
    field = _field(model, place) if place else None
    inner: Any = model if field is None else field.annotation
    return [*inner.model_fields, *(["init_uniform"] if issubclass(inner, AlignmentConfig) else [])]
