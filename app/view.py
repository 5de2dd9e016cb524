"""View: all that decides what a page shows, in one frozen object; the address bar holds it.

The widgets never keep state of their own. A change goes through `update`, which replaces the view in the
session; every run then draws the widgets from the view and writes the view into the address bar.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import streamlit as st
from pydantic import BaseModel, ConfigDict, Field

from app import looking
from app.recipe import PREFIX, Recipe
from kvviz.align.aligner import Part
from kvviz.config import AlignmentConfig, ConfigError, tolerant
from kvviz.distill.arms import ARMS
from kvviz.distill.metrics import Compared
from kvviz.distill.run import Run, runs_root
from kvviz.figures.canvas import Bend
from kvviz.figures.labels import visible
from kvviz.pair import Device, Dtype, ModelSpec

SPELLED_LIMIT = 4000  # Characters of a text that still fit into an address people can send around.
Metric = Literal["relative_error", "cosine", "r2", "norm_ratio"]
Side = Literal["teacher", "student"]
# Names of runs are names of folders: none that leads elsewhere, none that is hidden.
RUN = r"^([^./\\\x00-\x1f][^/\\\x00-\x1f]*)?$"
RUNS = r"^([^./\\\x00-\x1f][^/\\\x00-\x1f]*(/[^./\\\x00-\x1f][^/\\\x00-\x1f]*)*)?$"

ARMS_NAMED = f"^(({'|'.join(ARMS)})(/({'|'.join(ARMS)}))*)?$"


class View(BaseModel):
    """The pair, the prompt, the selection and the alignment. Frozen: equal views show equal pictures."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    teacher: str = Field("bundled:teacher", max_length=500)
    teacher_revision: str = Field("", max_length=200)
    teacher_dtype: Dtype = "auto"
    teacher_device: Device = "auto"
    student: str = Field("bundled:student", max_length=500)
    student_revision: str = Field("", max_length=200)
    student_dtype: Dtype = "auto"
    student_device: Device = "auto"

    source: Literal["example", "own"] = "example"
    example: int = Field(0, ge=0, lt=24)
    text: str = ""
    student_reads: Literal["same", "brief", "own"] = "same"
    student_text: str = ""
    segments: str = ""
    student_segments: str = ""

    part: Part = "k"
    layer: int = Field(0, ge=0)
    head: int | None = Field(None, ge=0)  # None: no head is followed, all are shown.
    token: int | None = Field(None, ge=0)
    metric: Metric = "relative_error"
    baseline: bool = Field(
        False,
        title="Show the identity baseline",
        description="In place of the aligner: group means over heads, the first dims, no parameters.",
    )
    bend: Bend = "sqrt"
    teacher_layer: int = Field(0, ge=0)
    segment_side: Side = "teacher"
    segment: int = Field(0, ge=0)

    run: str = Field("", max_length=255, pattern=RUN)  # the run that is watched, or looked inside
    checkpoint: int | None = Field(None, ge=0)  # None: the plain pair; 0: the run's start
    runs: str = Field("", max_length=4000, pattern=RUNS)  # those compared, "/" between them
    compare: Compared = "accuracy"
    moment: int | None = Field(None, ge=0)  # of the run's timeline; None: its end

    matrix: str = Field("", max_length=81, pattern=RUN)  # the A/B matrix that is followed; none: the newest
    arms: str = Field("", pattern=ARMS_NAMED)  # of a new one, "/" between them; none: all
    seeds: int = Field(3, ge=1, le=20)  # how many it has

    alignment: AlignmentConfig = AlignmentConfig()
    distill: Recipe = Recipe()

    def spec(self, role: Literal["teacher", "student"]) -> ModelSpec:
        """Which model a side loads; looking inside a run, its checkpoint."""
        if role == "student" and self.inspects and self.checkpoint:
            folder = Run(runs_root() / self.run).checkpoint(self.checkpoint)
            return ModelSpec(path=str(folder), dtype=self.student_dtype, device=self.student_device)
        return ModelSpec(
            path=getattr(self, role).strip(),
            revision=getattr(self, f"{role}_revision").strip() or None,
            dtype=getattr(self, f"{role}_dtype"),
            device=getattr(self, f"{role}_device"),
        )

    @property
    def inspects(self) -> bool:
        """Whether the inspection pages look inside a run."""
        return bool(self.run) and self.checkpoint is not None

    @property
    def bundled(self) -> bool:
        return not self.inspects and self.teacher == "bundled:teacher" and self.student == "bundled:student"

    def to_query(self) -> dict[str, str]:
        """The address bar's spelling: what differs from the default. Texts over SPELLED_LIMIT stay in the session."""
        values = self.model_dump(exclude={"alignment", "distill"}, exclude_defaults=True)
        query = {
            name: str(value) for name, value in values.items() if len(str(value)) <= SPELLED_LIMIT
        } | self.alignment.to_query()
        if self.inspects:  # The run says the rest.
            query = {
                name: value
                for name, value in query.items()
                if name not in looking.DECIDED and name not in looking.PAIR
            }
        return query | self.distill.to_query()

    def unspelled(self) -> list[str]:
        """Texts, and segments drawn on them, that are too long for the address bar."""
        names = ("text", "student_text", "segments", "student_segments")
        return [name for name in names if len(getattr(self, name)) > SPELLED_LIMIT]

    @classmethod
    def from_query(cls, query: Mapping[str, str]) -> tuple[View, list[str]]:
        """Read an address; each field that makes no sense falls back to its default and is named."""
        fields = set(cls.model_fields) - {"alignment", "distill"}
        alignment, ignored = AlignmentConfig.from_query(query)
        view, more = tolerant(cls, {name: query[name] for name in fields if name in query})
        known = fields | set(AlignmentConfig.model_fields) | {"init_uniform"}
        unknown = [name for name in query if name not in known and not name.startswith(("loss.", PREFIX))]
        recipe, wrong = Recipe.read_query(query)
        ignored += more + wrong + [f"{visible(name, 60)}: unknown" for name in unknown]
        return view.model_copy(update={"alignment": alignment, "distill": recipe}), ignored


def current() -> View:
    """The session's view."""
    return st.session_state["view"]


def update(**changes: Any) -> None:
    """Replace fields of the view, or of its alignment, in a widget's callback: names say which.

    A change that contradicts the rest (an elastic projector and the mixed target) is not made; the page says why.
    """
    view = current()
    st.session_state["ignored"] = []
    if view.inspects and (held := sorted((looking.DECIDED | looking.PAIR) & set(changes))):
        named = ", ".join(
            AlignmentConfig.model_fields[name].title or name for name in held if name in looking.DECIDED
        )
        st.session_state["ignored"] = [
            f"{named or 'The pair'}: decided by run {view.run}; go back to the plain pair to change it."
        ]
        return
    alignment = {name: value for name, value in changes.items() if name in AlignmentConfig.model_fields}
    if alignment:
        changes = {name: value for name, value in changes.items() if name not in alignment}
        try:
            changes["alignment"] = AlignmentConfig.parse(view.alignment.model_dump() | alignment)
        except ConfigError as error:
            st.session_state["ignored"] = [str(error)]
            return
    st.session_state["view"] = View.model_validate(view.model_dump() | changes)


def synchronise() -> list[str]:
    """Read the address bar when it was changed from outside, else write the view into it.

    A new session and an edited address are read; a page switch arrives with an empty address and is written to.
    Returns one message for each field of the address that was ignored.
    """
    address = st.query_params.to_dict()
    written = st.session_state.get("address")
    if "view" not in st.session_state or (address and address != written):
        before = st.session_state.get("view")
        view, st.session_state["ignored"] = View.from_query(address)
        if before is not None:
            # An address cannot hold a long text: going back in the browser must not lose it.
            view = view.model_copy(update={name: getattr(before, name) for name in before.unspelled()})
        st.session_state["view"] = view
    st.session_state["view"] = looking.agreed(current())
    query = current().to_query()
    if query != address:
        st.query_params.from_dict(query)
    st.session_state["address"] = query
    return st.session_state.get("ignored", [])
