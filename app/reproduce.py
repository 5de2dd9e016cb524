"""The command and the Python lines that make the numbers of a page again."""

from __future__ import annotations

import shlex

import streamlit as st

from app.page import Page


def reproduce(page: Page) -> None:
    """A closed expander at the foot of a page."""
    with st.expander("Reproduce this outside the browser", icon=":material/terminal:"):
        left, right = st.columns(2)
        left.caption("Command")
        left.code(_command(page), language="bash", wrap_lines=True)
        right.caption("Python")
        right.code(_python(page), language="python", wrap_lines=True)


def _command(page: Page) -> str:
    view, prompt = page.view, page.reading.prompt
    words = ["kvviz", "profile", "--mode", view.alignment.kv_projection_mode]
    for role in ("teacher", "student"):
        if getattr(view, role) != f"bundled:{role}":
            words += [f"--{role}", getattr(view, role)]
    words += ["--text", prompt.text]
    if prompt.student_text is not None:
        words += ["--student-text", prompt.student_text]
    for name, value in view.alignment.to_query().items():
        if name != "kv_projection_mode":
            words += ["--set", f"{name}={value}"]
    return shlex.join(words)


def _python(page: Page) -> str:
    view, prompt = page.view, page.reading.prompt
    spelled = view.alignment.differences()
    config = f"AlignmentConfig.parse({spelled!r})" if spelled else "AlignmentConfig()"
    student_text = "" if prompt.student_text is None else f", student_text={prompt.student_text!r}"
    return (
        "from kvviz import AlignmentConfig, Prompt, inspect, load_model\n\n"
        f"teacher = load_model({view.teacher!r})\n"
        f"student = load_model({view.student!r})\n"
        f"prompt = Prompt({prompt.text!r}{student_text})\n"
        f"inspection = inspect(teacher, student, prompt, {config})\n"
        'print(inspection.errors["k"].total, inspection.errors["v"].total)\n'
        "print(inspection.attention.mean)\n"
    )
