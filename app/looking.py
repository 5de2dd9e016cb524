"""Looking inside a run: its student and projectors at one step, in place of the pair's own, on every inspection page."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from kvviz.config import AlignmentConfig, ConfigError
from kvviz.distill.checkpoint import Stage, stage
from kvviz.distill.problems import RunGone
from kvviz.distill.run import Run, runs_root

if TYPE_CHECKING:
    from app.view import View

# What made a run's projectors: looking at them, none of it can be chosen.
DECIDED = frozenset(
    "kv_projection_mode init share_dim_proj share_layers offset flat_kind seed layer_mapping_strategy layer_matrix "
    "key_space".split()
)
PAIR = frozenset("teacher teacher_revision student student_revision".split())
# How a run read its texts: where looking begins, and free to be moved then.
READ = ("time_method", "alpha_map", "ratio_map", "attention_target")


def run_of(view: View) -> Run:
    """The run that the view names. It may be gone."""
    return Run(runs_root() / view.run)


def agreed(view: View) -> View:
    """The view with the pair and the projectors' choices of the run it looks inside; as it is where there is none."""
    if not view.inspects:
        return view
    try:
        config = run_of(view).config
    except (RunGone, ConfigError, OSError):
        return view  # The page says so.
    alignment = view.alignment.model_dump() | config.model_dump(include=set(DECIDED))
    try:
        made = AlignmentConfig.parse(alignment)
    except ConfigError:  # An elastic projector under the mixed target, say: what a run decides comes first.
        made = AlignmentConfig.parse(config.model_dump(include=set(DECIDED)))
    pair = {name: getattr(config, name) or "" for name in PAIR}
    return view.model_copy(update={"alignment": made, **pair})


def opened(run: Run, step: int) -> dict[str, Any]:
    """The changes to a view that open a run at a step in the inspector; ConfigError as `Run.config`."""
    return {"run": run.name, "checkpoint": step} | run.config.model_dump(include=set(READ))


def looked_at(view: View) -> Stage | None:
    """What the view looks at; None where it looks at the plain pair.

    Raises:
        RunGone, RunError, ConfigError: it is not there, or cannot be used.
    """
    return stage(run_of(view), view.checkpoint or 0) if view.inspects else None
