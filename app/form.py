"""The fields of a run as widgets: options, titles, help and bounds come from `DistillConfig`, where each is written once."""

from __future__ import annotations

from collections.abc import Mapping
from types import NoneType, UnionType
from typing import Any, Union, get_args, get_origin

import streamlit as st
from annotated_types import Ge, Gt, Le, Lt
from pydantic.fields import FieldInfo

from app.recipe import LOSSES, Recipe, arguments_of, arguments_text
from app.view import View, current
from app.words import plain
from kvviz.config import ConfigError
from kvviz.distill.config import DistillConfig, DistillLossConfig

FAR = 2**53 - 1  # The largest whole number a browser keeps.
STEPS = {"learning_rate": 1e-4, "weight_decay": 0.01, "batch_size": 1, "steps": 10, "eval_every": 5}


def problems(error: ConfigError) -> dict[str, str]:
    """What is wrong with a configuration, by field; messages of losses under `loss_config` or the one at fault."""
    found: dict[str, str] = {}
    for line in str(error).splitlines():
        name, separator, words = line.partition(":")
        name = name.strip().removeprefix("loss_config.")
        found[name if separator else ""] = words.strip() if separator else line
    return found


def field(name: str, wrong: Mapping[str, str], label: str | None = None) -> None:
    """One field's widget, and under it what is wrong with it."""
    known = _field(name)
    value = current().distill.value(name)
    key = f"distill.{name}"
    words: dict[str, Any] = {"label": label or known.title or name, "help": known.description, "key": key}
    kind = _kind(known)
    if name == "trainer":
        value = arguments_text(value)
    st.session_state[key] = value
    words["on_change"] = lambda: _set(name, st.session_state[key])
    if get_args(kind):
        st.segmented_control(options=get_args(kind), width="stretch", **words)
    elif kind is int:
        low, high = _bounds(known)
        st.number_input(
            min_value=int(low if low is not None else -FAR),
            max_value=int(min(high, FAR) if high is not None else FAR),
            step=STEPS.get(name, 1),
            **words,
        )
    elif kind is float:
        low, high = _bounds(known)
        st.number_input(min_value=low, max_value=high, step=STEPS.get(name, 0.1), format="%g", **words)
    else:
        st.text_input(max_chars=2000, placeholder="none" if value is None else None, **words)
    if name in wrong:
        st.caption(f":red[:material/error: {plain(wrong[name])}]")


def _set(name: str, value: Any) -> None:
    """Replace a field of the recipe; what a widget's bounds let through and the field does not is put back."""
    if value is None and name != "data_config":
        return  # A segmented control that is clicked twice: nothing was chosen.
    if name == "trainer":
        value = arguments_of(value)
    elif name == "data_config":
        value = value or None
    view = current()
    st.session_state["ignored"] = []
    try:
        recipe = Recipe.parse(view.distill.replaced(name, value))
    except ConfigError as error:
        st.session_state["ignored"] = [str(error)]
        return
    st.session_state["view"] = View.model_validate(view.model_dump() | {"distill": recipe.model_dump()})


def _field(name: str) -> FieldInfo:
    model: Any = DistillLossConfig if name in LOSSES else DistillConfig
    return model.model_fields[name]


def _kind(known: FieldInfo) -> Any:
    """The field's type, without its None."""
    kind = known.annotation
    if get_origin(kind) in (Union, UnionType):
        kind = next(one for one in get_args(kind) if one is not NoneType)
    return str if get_origin(kind) is tuple else kind


def _bounds(known: FieldInfo) -> tuple[float | None, float | None]:
    """The least and the largest value a widget lets through."""
    low = high = None
    for bound in known.metadata:
        if isinstance(bound, Ge | Gt):
            low = float(bound.ge if isinstance(bound, Ge) else bound.gt)  # type: ignore[arg-type]
        if isinstance(bound, Le | Lt):
            high = float(bound.le if isinstance(bound, Le) else bound.lt)  # type: ignore[arg-type]
    return low, high
