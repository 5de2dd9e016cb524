"""What a matrix found, as tables: what was measured, and beyond a line, in a column of its own, what the report expected."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from html import escape

import streamlit as st

from kvviz.distill.ab import Interval, Row
from kvviz.figures.theme import Theme

NOTHING = "–"
EXPECTED = "expected by the v4.0 report, not measured"
# Of each column: its head, what its figures mean, and the cell of an arm.
Column = tuple[str, str, Callable[[Row, Theme], str]]


def _measure(name: str, digits: int = 3) -> Callable[[Row, Theme], str]:
    return lambda row, _: f"{row.measures[name]:.{digits}f}" if name in row.measures else NOTHING


def _number(value: float | None) -> str:
    return NOTHING if value is None else f"{value:,.0f}"


def _share(found: Interval | None, theme: Theme) -> str:
    if found is None:
        return NOTHING
    return f"<b>{found.value:.1%}</b><br>{_muted(f'{found.low:.1%} to {found.high:.1%}', theme)}"


def _points(found: Interval | None, theme: Theme) -> str:
    """In colour only where chance does not reach zero."""
    if found is None:
        return NOTHING
    color = theme.text if not found.excludes_zero else theme.good if found.value > 0 else theme.bad
    interval = f"{100 * found.low:+.1f} to {100 * found.high:+.1f}"
    return f'<b style="color:{color}">{100 * found.value:+.1f}</b><br>{_muted(interval, theme)}'


def _muted(text: str, theme: Theme) -> str:
    return f'<span style="color:{theme.muted};font-size:0.85em">{text}</span>'


INTERVAL = "95%, by drawing seeds and problems anew 10,000 times."
ACCURACY: tuple[Column, ...] = (
    ("seeds", "Of the runs that finished.", lambda row, _: ", ".join(map(str, row.seeds)) or "none yet"),
    (
        "exact match",
        f"Share of held-out problems solved by greedy decoding at the end of the run, over seeds; {INTERVAL}",
        lambda row, theme: _share(row.accuracy, theme),
    ),
    (
        "against flat, points",
        f"Exact match less the flat arm's, on the same problems with the same seeds; {INTERVAL}",
        lambda row, theme: _points(row.against_baseline, theme),
    ),
    (
        "against no KV loss, points",
        f"Exact match less that of the arm without any KV loss, on the same problems with the same seeds; {INTERVAL}",
        lambda row, theme: _points(row.against_none, theme),
    ),
)
CACHE: tuple[Column, ...] = (
    ("held-out CE", "Cross-entropy of reasoning and answer, nats a token.", _measure("eval_ce_loss")),
    (
        "K error",
        "1 − cosine of the student's keys to the teacher's, aligned by the arm's own map.",
        _measure("eval_k_loss"),
    ),
    ("V error", "1 − cosine of values, likewise.", _measure("eval_v_loss")),
    (
        "attention KL",
        "KL(teacher ‖ student) of causal attention through the arm's own map, nats a row.",
        _measure("eval_attn_loss"),
    ),
    ("K, R²", "1 − residual / variance of the student's keys under the arm's own map.", _measure("k_r2", 2)),
    (
        "spread of K",
        "Standard deviation of each channel of the student's keys: a small cache is a collapsed one.",
        _measure("k_spread"),
    ),
    ("spread of V", "Of values, likewise.", _measure("v_spread")),
    ("parameters", "Numbers in the projectors.", lambda row, _: _number(row.parameters)),
    (
        "seconds",
        "Of training with its evaluations, median over seeds; it depends on what else the machine did.",
        lambda row, _: _number(row.seconds),
    ),
    (
        "CPU seconds",
        "Of the run's process in training, median over seeds.",
        lambda row, _: _number(row.cpu_seconds),
    ),
)


def accuracy_table(rows: Sequence[Row], theme: Theme) -> None:
    """Exact match and its differences; to their right, set apart, what the report expects."""
    expected = any(row.expected is not None for row in rows)
    _draw(rows, ACCURACY, theme, EXPECTED if expected else "")


def cache_table(rows: Sequence[Row], theme: Theme) -> None:
    """What the arms did to the cache, what their maps are worth, what they cost."""
    _draw(rows, CACHE, theme, "")


def _draw(rows: Sequence[Row], columns: Sequence[Column], theme: Theme, apart: str) -> None:
    line = f"1px solid {theme.grid}"
    cell = f"padding:6px 10px;border:0;border-bottom:{line};vertical-align:top"
    # A gap, a dashed line and another script: nobody takes these figures for measured ones.
    far = (
        f"padding:6px 10px 6px 14px;border:0;border-left:2px dashed {theme.muted};color:{theme.muted};"
        "font-style:italic;vertical-align:top"
    )
    gap = '<td style="border:0;min-width:18px"></td>'

    head = f'<th style="{cell};text-align:left">arm</th>' + "".join(
        f'<th style="{cell};text-align:right;font-weight:600;cursor:help" title="{escape(words, quote=True)}">'
        f"{escape(name)}</th>"
        for name, words, _ in columns
    )
    if apart:
        head += gap + f'<th style="{far};text-align:left;font-weight:400;width:9em">{escape(apart)}</th>'
    body = ""
    for row in rows:
        body += f'<tr><td style="{cell}">{escape(row.title)}</td>'
        body += "".join(
            f'<td style="{cell};text-align:right;white-space:nowrap">{show(row, theme)}</td>'
            for _, _, show in columns
        )
        if apart:
            share = NOTHING if row.expected is None else f"{row.expected:.0%}"
            body += gap + f'<td style="{far}">{share}</td>'
        body += "</tr>"
    st.html(
        '<div style="overflow-x:auto"><table style="border-collapse:collapse;width:100%;font-size:0.9rem;'
        f'font-variant-numeric:tabular-nums"><thead><tr style="vertical-align:bottom">{head}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )
