"""Head mixers: which teacher heads each student head reads, and what the dim projection keeps."""

from __future__ import annotations

from functools import partial
from typing import Any

import streamlit as st

from app.charts import cell_chart, chart
from app.controls import keyed
from app.page import Page, open_page
from app.reproduce import reproduce
from app.selection import Selection, layer_of, related, select, selection
from app.view import update
from kvviz.align.aligner import Part
from kvviz.align.flat import FlatProjector
from kvviz.diagnostics.heads import DEAD_SHARE, Mixer, describe_mixer
from kvviz.figures import heads as figures
from kvviz.figures.heatmap import cells

PARTS: tuple[Part, ...] = ("k", "v", "q")


def draw() -> None:
    page = open_page(
        "Head mixers",
        "Which teacher heads does each student head read, and how much of a head's basis is carried over?",
        nothing_selected="Click a row of a heatmap to follow that student head and its teacher sources over all pages.",
    )
    projector = page.inspection.aligner.projector("k")
    if isinstance(projector, FlatProjector) and projector.projector.kind == "elastic":
        _elastic()
        reproduce(page)
        return
    layer = _layer(page)
    mixers = {part: describe_mixer(page.inspection.aligner.projector(part), layer) for part in PARTS}
    chosen = selection(page.view, page.inspection)
    if chosen is not None and chosen.layer != layer:
        chosen = None
    _maps(page, mixers, chosen, layer)
    _numbers(page, mixers, chosen, layer)
    reproduce(page)


def _elastic() -> None:
    st.info(
        "The elastic flat projector (LayerNorm, Linear, SiLU, Dropout, Linear) is not a linear map: it has no weight from one "
        "head to another, so there is no mixer to draw. The other pages show what comes out of it.",
        icon=":material/info:",
    )
    st.button(
        "Use the linear flat projector",
        key="heads.linear",
        on_click=partial(update, flat_kind="linear", init="fitted"),
    )


def _layer(page: Page) -> int:
    """The student layer whose maps are shown."""
    layers = page.inspection.student.layers
    layer = layer_of(page.view, page.inspection.student)
    config = page.inspection.config
    if layers > 1:
        st.slider("Student layer", 0, layers - 1, **keyed("layer", layer, place="heads."))
    notes = {
        "identity": "Identity: no parameters. Each student head takes the mean of its group of teacher heads and their first dims.",
        "flat": "Flat: one matrix over all (head, dim) pairs. A cell shows the Frobenius norm of the block from one teacher head "
        "to one student head, so it has no sign.",
        "structured": "Structured: a cell is the signed weight with which a student head takes a teacher head, before the dim "
        "projection.",
    }
    words = notes[config.kv_projection_mode]
    if layers == 1:
        words += " The student has one layer."
    elif config.kv_projection_mode == "identity" or config.share_layers:
        words += " All student layers share one map: these pictures are the same for each."
    st.caption(words)
    return layer


def _maps(page: Page, mixers: dict[Part, Mixer], chosen: Selection | None, layer: int) -> None:
    left, right = st.columns(2)
    with left:
        _map(page, "k", mixers["k"], chosen, layer)
    with right:
        _map(page, "v", mixers["v"], chosen, layer)
    _map(page, "q", mixers["q"], chosen, layer)


def _map(page: Page, part: Part, mixer: Mixer, chosen: Selection | None, layer: int) -> None:
    teacher, student = page.inspection.teacher, page.inspection.student
    kind = "query" if part == "q" else "KV"
    st.markdown(
        f"**{part.upper()}**: {student.heads_of(part)} student {kind} heads read {teacher.heads_of(part)} of the teacher"
    )
    rows = related(chosen, part, student) if chosen else []
    sources = chosen.sources if chosen and chosen.part == part else []
    strongest = (rows[0], sources[0]) if sources else None
    grouped = part == "q"
    width = 700 if grouped else 380  # Of the narrowest page: K and V share a row.
    if page.inspection.config.kv_projection_mode == "flat":
        figure = cells(
            mixer.weights.cpu().numpy(),
            row_title=f"student {kind} head",
            col_title=f"teacher {kind} head",
            unit="norm of the block",
            theme=page.theme,
            selected=strongest,
            highlight_rows=rows,
            highlight_cols=sources,
            width=width,
            row_brackets=figures.gqa_brackets(student.heads, student.kv_heads) if grouped else (),
            col_brackets=figures.gqa_brackets(teacher.heads, teacher.kv_heads) if grouped else (),
        )
    else:
        figure = figures.mixer(
            mixer.weights.cpu().numpy(),
            theme=page.theme,
            part=part,
            selected=strongest,
            highlight_rows=rows,
            highlight_cols=sources,
            width=width,
            student_brackets=figures.gqa_brackets(student.heads, student.kv_heads) if grouped else (),
            teacher_brackets=figures.gqa_brackets(teacher.heads, teacher.kv_heads) if grouped else (),
        )
    cell_chart(figure, f"mixer.{part}", lambda head, _source: select(part, layer, head))
    st.caption(_dead(part, mixer) + " " + _groups(page, part))


def _dead(part: Part, mixer: Mixer) -> str:
    """Dead heads in words."""
    words = []
    if mixer.dead_teacher:
        heads = _listed("Teacher head", mixer.dead_teacher)
        verb = "is" if len(mixer.dead_teacher) == 1 else "are"
        words.append(
            f"**{heads} {verb} dead**: no student head gives it {DEAD_SHARE:.0%} of what it gives its favourite."
        )
    else:
        words.append("Every teacher head is read.")
    if mixer.dead_student:
        words.append(f"**{_listed('Student head', mixer.dead_student)} read nothing**: all weights are zero.")
    return " ".join(words)


def _listed(noun: str, heads: list[int]) -> str:
    return f"{noun}{'s' if len(heads) > 1 else ''} {', '.join(str(head) for head in heads)}"


def _groups(page: Page, part: Part) -> str:
    """How KV heads and query heads belong together, in words."""
    sides = []
    for role, geometry in (("teacher", page.inspection.teacher), ("student", page.inspection.student)):
        group = geometry.heads // geometry.kv_heads
        if group > 1:
            sides.append(f"a {role} KV head serves {group} query heads")
    if not sides:
        return ""
    words = " and ".join(sides)
    return f"Brackets: {words}." if part == "q" else f"{words[:1].upper()}{words[1:]} (bracketed under Q)."


def _numbers(page: Page, mixers: dict[Part, Mixer], chosen: Selection | None, layer: int) -> None:
    part = page.view.part
    mixer = mixers[part]
    st.subheader("In numbers", anchor=False)
    # A head of one part is not a head of another: the selection does not carry over.
    st.segmented_control(
        "Row sums and effective heads of",
        PARTS,
        format_func=str.upper,
        **keyed("part", part, place="heads.", also={"head": None, "token": None}),
    )
    flat = page.inspection.config.kv_projection_mode == "flat"
    selected = chosen.head if chosen and chosen.part == part else None
    title = f"student {'query' if part == 'q' else 'KV'} head"
    sums, counts, values = st.columns(3)
    with sums:
        st.markdown(
            "**Row sums**",
            help="Sum of a student head's weights over teacher heads. The uniform start sums to 1.",
        )
        common: dict[str, Any] = {
            "theme": page.theme,
            "dead": mixer.dead_student,
            "head_title": title,
            "selected": selected,
            "width": 330,
        }
        figure = (
            figures.head_bars(mixer.row_sums.cpu().numpy(), unit="row sum of block norms", **common)
            if flat
            else figures.row_sums(mixer.row_sums.cpu().numpy(), **common)
        )
        chart(figure, "row-sums")
    with counts:
        st.markdown(
            "**Effective teacher heads**",
            help="exp of the entropy of a row's |weights|, normalised: 1 reads one teacher head, "
            f"{page.inspection.teacher.heads_of(part)} reads all alike.",
        )
        chart(
            figures.effective_heads(
                mixer.effective.cpu().numpy(), page.inspection.teacher.heads_of(part), **common
            ),
            "effective",
        )
    with values:
        st.markdown(
            "**Singular values**",
            help=("Of the whole flat map. " if flat else "Of the dim projection. ")
            + "A steep fall: few directions of a teacher head reach the student. "
            "Largest first; scaled as fitted, so compare shapes, not heights.",
        )
        if all(len(other.singular_values) == 1 for other in mixers.values()):
            series = {
                name.upper(): next(iter(other.singular_values.values())) for name, other in mixers.items()
            }
        else:
            series = {f"{part.upper()}, {name}": found for name, found in mixer.singular_values.items()}
        chart(
            figures.singular_values(
                {name: found.cpu().numpy() for name, found in series.items()}, theme=page.theme
            ),
            "singular",
        )


draw()
