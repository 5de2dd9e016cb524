"""Recipe: the Distil page's own fields of a run, and the configuration they make with the view's pair and alignment."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Self

import yaml
from pydantic import model_validator

from kvviz.config import AlignmentConfig, tolerant
from kvviz.distill.config import DistillConfig, DistillLossConfig

if TYPE_CHECKING:
    from app.view import View

PREFIX = "distill."
# What the sidebar decides; all else of a DistillConfig is the page's.
PAIR = {"teacher", "teacher_revision", "teacher_dtype", "student", "student_revision", "device"}
OWN = (set(DistillConfig.model_fields) - set(AlignmentConfig.model_fields) - PAIR) | {"seed", "loss_config"}
LOSSES = set(DistillLossConfig.model_fields)
# Of the sidebar's alignment, what a run has of its own or takes from its texts.
LEFT_OUT = ("seed", "loss_config", "target_length")


class Recipe(DistillConfig):
    """The page's fields of a DistillConfig. Each is checked alone: what does not go together is shown, not refused."""

    @model_validator(mode="after")
    def _goes_together(self) -> Self:
        return self

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        return self

    def value(self, name: str) -> Any:
        """A field of the page, the weight of a loss or any other."""
        return getattr(self.loss_config if name in LOSSES else self, name)

    def replaced(self, name: str, value: Any) -> dict[str, Any]:
        """All values with one in place of another, to be checked."""
        values = self.model_dump()
        if name in LOSSES:
            values["loss_config"][name] = value
        else:
            values[name] = value
        return values

    def to_query(self) -> dict[str, str]:
        """The address bar's spelling: `distill.steps=100`; only what differs from the default."""
        values = {name: value for name, value in self.differences().items() if name in OWN}
        values |= values.pop("loss_config", {})
        if "trainer" in values:
            values["trainer"] = arguments_text(values["trainer"])
        return {f"{PREFIX}{name}": _spelled(value) for name, value in values.items()}

    @classmethod
    def read_query(cls, query: Mapping[str, str]) -> tuple[Recipe, list[str]]:
        """Read the fields of an address; what makes no sense falls back to its default and is named."""
        given = {name.removeprefix(PREFIX): text for name, text in query.items() if name.startswith(PREFIX)}
        unknown = [f"{PREFIX}{name[:60]}: unknown" for name in given if name not in (OWN | LOSSES)]
        values: dict[str, Any] = {name: text for name, text in given.items() if name in OWN - {"loss_config"}}
        if "trainer" in values:
            values["trainer"] = arguments_of(values["trainer"])
        if losses := {name: text for name, text in given.items() if name in LOSSES}:
            values["loss_config"] = losses
        recipe, ignored = tolerant(cls, values)
        return recipe, [f"{PREFIX}{message}" for message in ignored] + unknown


def config_of(view: View) -> DistillConfig:
    """The run that the view describes.

    Raises:
        ConfigError: naming what cannot be used or does not go together.
    """
    values = view.alignment.differences()
    for name in LEFT_OUT:
        values.pop(name, None)
    values |= {name: value for name, value in view.distill.differences().items() if name in OWN}
    return DistillConfig.parse(
        values
        | {
            "teacher": view.teacher.strip(),
            "teacher_revision": view.teacher_revision.strip() or None,
            "teacher_dtype": view.teacher_dtype,
            "student": view.student.strip(),
            "student_revision": view.student_revision.strip() or None,
            "device": view.student_device,
        }
    )


def arguments_text(trainer: Any) -> str:
    """Trainer arguments on one line, as YAML: `fsdp: full_shard, bf16: true`."""
    values = {name: _thawed(value) for name, value in dict(trainer).items()}
    return yaml.safe_dump(values, default_flow_style=True, width=10**6).strip()[1:-1] if values else ""


def arguments_of(text: str) -> Any:
    """What `arguments_text` wrote; text that is none is handed on, to be refused by name."""
    try:
        values = yaml.safe_load("{" + text + "}")
    except yaml.YAMLError:
        return text
    return values if isinstance(values, dict) else text


def _thawed(value: Any) -> Any:
    return [_thawed(item) for item in value] if isinstance(value, tuple | list) else value


def _spelled(value: Any) -> str:
    return repr(value).removesuffix(".0") if isinstance(value, float) else str(value)
