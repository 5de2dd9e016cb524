"""What every page begins with: the heading, the pair, the text, and the inspection; or a message in their place."""

from __future__ import annotations

import re
from dataclasses import dataclass

import streamlit as st

from app import resources
from app.banner import banner
from app.reading import what_happens, what_they_read
from app.selection import strip
from app.view import View, current, update
from app.words import explain, plain
from kvviz import bundled
from kvviz.align import calibrate
from kvviz.align.calibrate import CalibrationError, CalibrationTexts
from kvviz.config import AlignmentConfig, ConfigError
from kvviz.errors import ExplainedError, PromptError, sentence
from kvviz.figures.theme import Theme
from kvviz.figures.theme import theme as theme_for
from kvviz.inspection import Inspection, Prompt, Reading
from kvviz.pair import LoadedModel
from kvviz.segments import from_spec

IGNORED_NAMED = 12  # Fields of an address that are named one by one.


@dataclass(frozen=True, eq=False)
class Page:
    """What a page works with."""

    view: View
    theme: Theme
    teacher: LoadedModel
    student: LoadedModel
    reading: Reading
    inspection: Inspection


def theme() -> Theme:
    """The figures' theme that fits the visitor's."""
    return theme_for(st.context.theme.type == "dark")


def heading(title: str, question: str) -> None:
    """A page's title and the question it answers."""
    st.title(title, anchor=False)
    st.caption(question)
    ignored = st.session_state.get("ignored", [])
    for message in ignored[:IGNORED_NAMED]:
        st.warning(plain(f"Ignored. {message}"), icon=":material/link_off:")
    if len(ignored) > IGNORED_NAMED:
        st.warning(
            f"Ignored. {len(ignored) - IGNORED_NAMED} more fields of the address.", icon=":material/link_off:"
        )


def open_page(title: str, question: str, nothing_selected: str = "") -> Page:
    """Heading, models, traces and inspection of the current view; stops the page with a message where one fails.

    nothing_selected: what to do while no head is selected, in the place where the selected head is named.
    """
    heading(title, question)
    view = current()
    at = banner(view)
    try:
        with st.spinner("Loading the pair and reading the text…", show_time=True):
            teacher, student = resources.pair(view)
            prompt = read_prompt(view)
            reading = resources.reading(teacher, student, prompt)
        config = view.alignment
        key = _calibrated(view, reading, teacher, student)
        if key is None and at is None and config.init == "fitted" and config.kv_projection_mode != "identity":
            # Until the pair is calibrated there is nothing to fit: show the start, and say so above.
            config = config.model_copy(update={"init": "uniform"})
        inspection = resources.inspection(
            teacher.fingerprint,
            student.fingerprint,
            config,
            key,
            None if at is None else at.fingerprint,
            reading,
            at,
            prompt,
        )
        inspection.alignment  # noqa: B018  a configuration that does not fit this pair is explained here, not below
    except ExplainedError as error:
        explain(error.what, error.why, error.do)
        st.stop()
    except (ConfigError, CalibrationError) as error:
        explain("This alignment cannot be made.", str(error), "Change it in the sidebar, or reset it here.")
        _offer_reset(str(error).partition(":")[0])
        st.stop()
    page = Page(view, theme(), teacher, student, reading, inspection)
    strip(page, nothing_selected)
    return page


def read_prompt(view: View) -> Prompt:
    """The prompt a view asks for.

    Raises:
        ExplainedError: where there is no text yet.
    """
    if view.source == "example":
        problem = bundled.examples()[view.example]
        text, brief = problem.text, problem.brief_text
    else:
        text, brief = view.text, None
    if not text.strip():
        raise ExplainedError(
            "There is no text yet.",
            "Both models need something to read.",
            "Type one in the sidebar, or choose a held-out problem.",
        )
    student_text = {"same": None, "brief": brief, "own": view.student_text or None}[view.student_reads]
    if view.student_reads == "own" and not (student_text or "").strip():
        raise ExplainedError(
            "The student has no text yet.",
            "It was set to read its own.",
            "Type one in the sidebar, or let it read the same.",
        )
    return Prompt(
        text,
        student_text,
        _segments(view.segments, text),
        _segments(view.student_segments, student_text) if student_text else None,
    )


def _segments(spec: str, text: str):
    if not spec:
        return None
    try:
        return tuple(from_spec(spec, text))
    except ValueError as error:
        st.warning(plain(f"The address's segments do not fit this text and were left out: {error}"))
        return None


def _calibrated(view: View, reading: Reading, teacher: LoadedModel, student: LoadedModel) -> str | None:
    """The key of this pair's calibration. The bundled pair is calibrated at once, another on a button."""
    own = None if view.bundled else st.session_state.get("calibration_texts")
    texts: CalibrationTexts = own or resources.bundled_texts()
    key = resources.calibration_key(reading, teacher, student, view.alignment, texts)
    slot = st.empty()  # Calibrated or not: what stands below keeps its place, and its picture.
    if resources.kept_calibration(key) is not None:
        return key
    if not view.bundled or st.session_state.get("calibration_cancelled"):
        asked = _asked(slot, view)
        if asked is None:
            return None
        texts = asked
        st.session_state["calibration_cancelled"] = False
        key = resources.calibration_key(reading, teacher, student, view.alignment, texts)
    with slot.container():
        bar = st.progress(0.0, "Calibrating: both models read the calibration texts, once.")
        # The rerun that a click starts ends this one at its next step; what was read so far is let go.
        st.button(
            "Cancel",
            key="calibrate.cancel",
            on_click=lambda: st.session_state.update(calibration_cancelled=True),
        )

        def read_so_far(done: int, total: int) -> None:
            bar.progress(done / total, f"Calibrating: {done} of {total} texts read")

        # Something to look at meanwhile: it needs no calibration.
        what_happens(reading, view.alignment, theme(), "calibrate.pipeline")
        what_they_read(reading, teacher, student, theme())
        asked_for = Inspection(reading, view.alignment)
        failed: PromptError | CalibrationError | None = None
        try:
            found = calibrate.collect(
                teacher,
                student,
                texts,
                asked_for.key_space,
                asked_for.layer_matrix,
                progress=read_so_far,
            )
            calibrate.save(key, found)
        except (PromptError, CalibrationError) as error:
            failed = error
        except OSError as error:
            raise ExplainedError(
                "The calibration could not be kept on disk.",
                sentence(error),
                "Set KVVIZ_CACHE to a folder that can be written to, and start kvviz again.",
            ) from error
    if failed is not None:
        slot.empty()
        explain(
            "This pair was not calibrated.",
            f"{failed.what} {failed.why}" if isinstance(failed, PromptError) else sentence(failed),
            "Below is the uniform start. Give other texts, or calibrate on the bundled problems.",
        )
        return None
    slot.empty()
    if not view.bundled:
        st.session_state["calibration_texts"] = texts
    return key


def _asked(slot, view: View) -> CalibrationTexts | None:
    """Offer to calibrate; the texts to do it on, or None while nobody asked or the texts cannot be used."""
    box = (
        slot.expander("Held-out figures of this checkpoint need a calibration", icon=":material/straighten:")
        if view.inspects
        else slot.container(border=True)
    )
    with box:
        st.markdown(
            "Both models read the calibration texts, once. The projectors stay the run's: they are only scored."
            if view.inspects
            else "**This pair is not calibrated yet.** Until it is, fitted projectors have nothing to be fitted on: "
            "the figures show the uniform start, whose cosine is near 0."
        )
        upload = st.file_uploader(
            "Your own texts, one a paragraph; without them the bundled problems are read", "txt"
        )
        if not st.button("Calibrate this pair", type="primary"):
            return None
        if upload is None:
            return resources.bundled_texts()
        what, do = f"{upload.name} cannot be calibrated on.", "Give another file, or none."
        try:
            return CalibrationTexts.split(re.split(r"\n\s*\n", upload.getvalue().decode("utf-8-sig")))
        except UnicodeDecodeError as error:
            explain(
                what,
                f"It is not UTF-8 text ({error.reason} at byte {error.start:,}).",
                f"Save it as UTF-8. {do}",
            )
        except CalibrationError as error:
            explain(what, sentence(str(error)), do)
    return None


def _offer_reset(field: str) -> None:
    """A way out of an alignment that cannot be made: the field at fault alone, where it is known, else all of it."""
    default = AlignmentConfig()
    if getattr(current().alignment, field, None) != getattr(default, field, None):
        title = AlignmentConfig.model_fields[field].title
        changes = {field: getattr(default, field)}
        if field == "layer_matrix":
            changes["layer_mapping_strategy"] = default.layer_mapping_strategy
        st.button(f"Reset: {title}", key="reset", on_click=lambda: update(**changes))
    else:
        st.button("Reset the alignment", key="reset", on_click=lambda: update(**default.model_dump()))
