"""The command and the Python lines that make the numbers of a page again."""

from __future__ import annotations

import shlex

import streamlit as st

from app.controls import folded
from app.page import Page


def reproduce(page: Page) -> None:
    """A closed expander at the foot of a page."""
    with folded("Reproduce this outside the browser", "reproduce", icon=":material/terminal:") as opened:
        if not opened:
            return
        left, right = st.columns(2)
        left.caption("Command")
        if page.view.inspects:
            left.caption("The command line inspects plain pairs; inside a run, use the Python lines.")
        else:
            left.code(_command(page), language="bash", wrap_lines=True)
        right.caption("Python")
        lines = _python_inside(page) if page.view.inspects else _python(page)
        right.code(lines, language="python", wrap_lines=True)


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


def _python_inside(page: Page) -> str:
    view, prompt = page.view, page.reading.prompt
    student_text = "" if prompt.student_text is None else f", student_text={prompt.student_text!r}"
    return (
        "from kvviz import AlignmentConfig, Inspection, Prompt, load_model\n"
        "from kvviz.distill.checkpoint import read_projectors, stage\n"
        "from kvviz.distill.run import Run, runs_root\n"
        "from kvviz.inspection import read\n\n"
        f"at = stage(Run(runs_root() / {view.run!r}), {view.checkpoint})\n"
        f"teacher, student = load_model({view.teacher!r}), load_model(at.student)\n"
        f"reading = read(teacher, student, Prompt({prompt.text!r}{student_text}))\n"
        f"config = AlignmentConfig.parse({view.alignment.differences()!r})\n"
        "inspection = Inspection(reading, config, projectors=read_projectors(at))\n"
        'print(inspection.errors["k"].total, inspection.errors["v"].total)\n'
        "print(inspection.attention.mean)\n"
    )
