"""Widgets drawn from the view: each shows a field's value and, when moved, replaces it in the view.

Options, titles and help of alignment fields come from `AlignmentConfig`, where each is written down once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, get_args

import streamlit as st

from app.view import View, current, update
from kvviz.config import AlignmentConfig


def value_of(name: str) -> Any:
    """A field of the view, or of its alignment."""
    view = current()
    return getattr(view.alignment if name in AlignmentConfig.model_fields else view, name)


def keyed(
    name: str,
    value: Any,
    clean: Callable[[Any], Any] = lambda value: value,
    place: str = "",
    also: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """`key` and `on_change` of a widget that shows `value` and writes what a person sets into the field `name`.

    place: a prefix of the key, so that a field can have a second widget on a page. also: fields set along with it.
    """
    key = f"control.{place}{name}"
    st.session_state[key] = value

    def changed() -> None:
        chosen = st.session_state[key]
        # A segmented control that is clicked twice gives None: nothing was chosen, the value stays.
        if chosen is not None:
            update(**(dict(also or {}) | {name: clean(chosen)}))

    return {"key": key, "on_change": changed}


def describe(name: str) -> dict[str, Any]:
    """`label` and `help` of a field."""
    model: Any = AlignmentConfig if name in AlignmentConfig.model_fields else View
    field = model.model_fields[name]
    return {"label": field.title or name, "help": field.description}


def choice(
    name: str,
    options: Sequence[str] | None = None,
    label: str | None = None,
    place: str = "",
    also: Mapping[str, Any] | None = None,
    **kwargs: Any,
) -> None:
    """A segmented control over a field's options; `place` and `also` as in `keyed`."""
    model: Any = AlignmentConfig if name in AlignmentConfig.model_fields else View
    options = options or get_args(model.model_fields[name].annotation)
    words = describe(name) | ({"label": label} if label else {})
    st.segmented_control(
        options=options,
        width="stretch",
        format_func=_readable,
        **words,
        **keyed(name, value_of(name), place=place, also=also),
        **kwargs,
    )


def dropdown(
    name: str, options: Sequence[str] | None = None, label: str | None = None, **kwargs: Any
) -> None:
    """A select box over a field's options."""
    model: Any = AlignmentConfig if name in AlignmentConfig.model_fields else View
    options = options or get_args(model.model_fields[name].annotation)
    words = describe(name) | ({"label": label} if label else {})
    st.selectbox(options=options, format_func=_readable, **words, **keyed(name, value_of(name)), **kwargs)


def switch(name: str, **kwargs: Any) -> None:
    """A toggle of a boolean field."""
    st.toggle(**describe(name), **keyed(name, value_of(name)), **kwargs)


@contextmanager
def folded(label: str, key: str, **kwargs: Any) -> Iterator[bool]:
    """An expander, and whether it is open: what is made only then costs nothing while it is closed."""
    box = st.expander(label, key=key, on_change="rerun", **kwargs)
    with box:
        yield bool(box.open)


def _readable(option: str) -> str:
    return option.replace("_", "-")
