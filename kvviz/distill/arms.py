"""The arms of the A/B matrix: the v4.0 report's four, and the two that say what they are worth."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from kvviz.config import ConfigError, strict
from kvviz.distill.config import DistillConfig

# The report trains its projectors along with the student: linear ones, one map for all layers, without an offset, and one
# dim projection for all heads unless an arm says otherwise. All of it is named, whatever the base has.
REPORT: dict[str, Any] = {
    "aligner": "trained",
    "share_layers": True,
    "share_dim_proj": True,
    "offset": False,
    "flat_kind": "linear",
}


@dataclass(frozen=True)
class Arm:
    """One way to distil. expected: the accuracy the v4.0 report expects of it, None where it says nothing."""

    title: str
    changes: Mapping[str, Any]
    expected: float | None = None


ARMS: dict[str, Arm] = {
    "flat": Arm("flat, trained along", REPORT | {"kv_projection_mode": "flat", "init": "random"}, 0.65),
    "random": Arm(
        "structured, random start, trained along",
        REPORT | {"kv_projection_mode": "structured", "init": "random"},
        0.67,
    ),
    "uniform": Arm(
        "structured, uniform start, trained along",
        REPORT | {"kv_projection_mode": "structured", "init": "uniform"},
        0.70,
    ),
    "per-head": Arm(
        "structured per head, uniform start, trained along",
        REPORT | {"kv_projection_mode": "structured", "init": "uniform", "share_dim_proj": False},
        0.71,
    ),
    "fitted": Arm(
        "structured, fitted and frozen",
        {"kv_projection_mode": "structured", "init": "fitted", "aligner": "frozen"},
    ),
    "none": Arm(
        "no KV loss",
        {
            "kv_projection_mode": "structured",
            "init": "fitted",
            "aligner": "frozen",
            "loss_config": {"alpha_k": 0.0, "alpha_v": 0.0, "alpha_attn": 0.0},
        },
    ),
}
BASELINE = "flat"  # the report's own baseline
ZERO = "none"  # what any KV loss has to beat


class MatrixConfig(BaseModel):
    """Which arms, over which seeds, from which common configuration."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    arms: tuple[str, ...] = Field(
        tuple(ARMS), min_length=1, title="Arms", description="Names of arms to compare, in order."
    )
    seeds: tuple[int, ...] = Field(
        (0, 1, 2), min_length=1, title="Seeds", description="Each arm is run once with each."
    )
    base: DistillConfig = Field(
        default_factory=DistillConfig, title="Base", description="What all arms share."
    )

    @field_validator("arms")
    @classmethod
    def _known(cls, arms: tuple[str, ...]) -> tuple[str, ...]:
        unknown = [arm for arm in arms if arm not in ARMS]
        if unknown:
            raise ValueError(f"no arm is called {unknown[0]}; known are {', '.join(ARMS)}")
        return arms

    @model_validator(mode="after")
    def _once_each(self) -> Self:
        for name, values in (("arms", self.arms), ("seeds", self.seeds)):
            if len(set(values)) < len(values):
                raise ValueError(f"{name}: one is named twice")
        for arm in self.arms:
            self.config(arm, self.seeds[0])
        for seed in self.seeds:
            self.config(self.arms[0], seed)
        return self

    def config(self, arm: str, seed: int) -> DistillConfig:
        """The run of one arm with one seed.

        Raises:
            ConfigError: the arm's changes and the base contradict each other.
        """
        values = self.base.differences()
        changes = dict(ARMS[arm].changes)
        # Terms the arm says nothing about keep the base's weights.
        weights = values.get("loss_config", {}) | changes.pop("loss_config", {})
        return DistillConfig.parse(values | changes | {"loss_config": weights, "seed": seed})

    @classmethod
    def parse(cls, values: Mapping[str, Any]) -> Self:
        """From plain values, `base` as a DistillConfig.

        Raises:
            ConfigError: with one line a key that is unknown or has a value it cannot take.
        """
        return strict(cls, values)

    @classmethod
    def from_yaml(cls, text: str, where: str = "the matrix") -> Self:
        """From YAML with the keys `arms`, `seeds` and `base` (a distillation configuration).

        Raises:
            ConfigError: it is no YAML, or a key is unknown or has a value it cannot take; named.
        """
        try:
            values = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise ConfigError(f"{where} cannot be read as YAML: {error}") from error
        if values is None:
            return cls()
        if not isinstance(values, dict):
            raise ConfigError(f"{where} holds a {type(values).__name__}; it needs `key: value` lines")
        base = values.pop("base", None)
        if base is not None:
            if not isinstance(base, dict):
                raise ConfigError(f"base: takes `key: value` lines, not {base!r}")
            values["base"] = DistillConfig.parse(base)
        return cls.parse(values)

    def to_yaml(self) -> str:
        """YAML that `from_yaml` reads back to an equal object."""
        values = {"arms": list(self.arms), "seeds": list(self.seeds), "base": self.base.whole()}
        return yaml.safe_dump(values, sort_keys=False, allow_unicode=True)
