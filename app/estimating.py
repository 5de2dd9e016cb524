"""A trial of a configuration in a process of its own: what a run would take, before it is started."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import streamlit as st

from app.words import explain, plain
from kvviz.distill.config import DistillConfig
from kvviz.distill.progress import duration

PROGRAM = (sys.executable, "-m", "kvviz")
KEY = "estimate"
TICK_SECONDS = 0.5
LINES = 6  # of an error


@dataclass
class Trial:
    """One trial: its process while it runs, then its figures or the words it ended with."""

    config: DistillConfig
    folder: tempfile.TemporaryDirectory[str] = field(default_factory=tempfile.TemporaryDirectory)
    began: float = field(default_factory=time.monotonic)
    process: subprocess.Popen[bytes] | None = None
    found: dict[str, Any] | None = None
    trouble: str = ""

    def start(self) -> None:
        """Begin; OSError where no process can be started."""
        config = Path(self.folder.name) / "config.yaml"
        config.write_text(self.config.to_yaml(), encoding="utf-8")
        with self._file("out").open("wb") as out, self._file("err").open("wb") as err:
            self.process = subprocess.Popen(
                [*PROGRAM, "distill", str(config), "--trial"],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                start_new_session=True,
            )

    def running(self) -> bool:
        """Whether it still runs; its outcome is taken in when it does no more."""
        if self.process is None:
            return False
        if self.process.poll() is None:
            return True
        code, self.process = self.process.returncode, None
        try:
            text = self._file("out").read_text(encoding="utf-8", errors="replace")
            self.found = json.loads(text[text.index("{") :]) if code == 0 else None
        except ValueError:
            self.found = None
        if self.found is None:
            self.trouble = "\n".join(self.said().splitlines()[-LINES:]) or f"It ended with status {code}."
        return False

    def said(self) -> str:
        """What it has printed beside its figures."""
        text = self._file("err").read_text(encoding="utf-8", errors="replace")
        # A progress bar writes over its line: the last writing counts.
        return "\n".join(line.rsplit("\r", 1)[-1] for line in text.strip().splitlines())

    def cancel(self) -> None:
        """End it."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None

    def _file(self, name: str) -> Path:
        return Path(self.folder.name) / name


def begin(config: DistillConfig) -> None:
    """Start a trial in place of the last (in a callback)."""
    cancel()
    trial = Trial(config)
    try:
        trial.start()
    except OSError as error:
        trial.trouble = str(error)
    st.session_state[KEY] = trial


def cancel() -> None:
    """End the trial that runs, if one does (in a callback)."""
    trial: Trial | None = st.session_state.pop(KEY, None)
    if trial is not None:
        trial.cancel()


def estimate(config: DistillConfig) -> None:
    """The trial in progress with a way to cancel it, or what it found."""
    trial: Trial | None = st.session_state.get(KEY)
    if trial is not None:
        running = trial.running()
        st.fragment(_shown, run_every=TICK_SECONDS if running else None)(trial, config, running)


def _shown(trial: Trial, config: DistillConfig, ticking: bool) -> None:
    running = trial.running()
    if running != ticking:
        st.rerun()
    with st.container(border=True):
        if running:
            with st.container(horizontal=True, vertical_alignment="center"):
                st.markdown(
                    f":material/progress_activity: Trial: two steps of this run, {duration(time.monotonic() - trial.began)} so far.",
                    width="stretch",
                )
                st.button("Cancel", key="estimate.cancel", on_click=cancel)
        elif trial.found is None:
            lines = [line for line in trial.trouble.splitlines() if line.strip()]
            explain(
                "This run would not start.",
                "\n\n".join(lines),
                "Change what it names, and estimate again.",
            )
        else:
            _figures(trial.found, stale=trial.config != config)


def _figures(found: dict[str, Any], stale: bool) -> None:
    if stale:
        st.caption(":material/history: Of the settings before the last change; estimate again.")
    whole, step, evaluation, memory = st.columns(4)
    whole.metric(
        "Estimated time",
        duration(found["seconds_total"]),
        f"{duration(found['seconds_ready'])} of it to load and calibrate",
        delta_color="off",
        delta_arrow="off",
        help="Loading and calibrating, all steps and all evaluations; a machine that does other things takes longer.",
    )
    step.metric("A step", f"{found['seconds_step']:.3g} s", help="The second of two.")
    evaluation.metric("An evaluation", duration(found["seconds_evaluation"]))
    memory.metric(
        "Peak memory",
        f"{found['peak_bytes'] / 2**30:.2f} GiB",
        f"{found['parameters_trained']:,} parameters on {plain(str(found['device']))}",
        delta_color="off",
        delta_arrow="off",
    )
