"""A new A/B matrix: which arms, which seeds, on what common ground; and its launch."""

from __future__ import annotations

import streamlit as st

from app.controls import keyed
from app.form import field, problems
from app.recipe import config_of
from app.view import View, current, update
from app.words import explain, plain
from kvviz.config import ConfigError
from kvviz.distill.arms import ARMS, MatrixConfig
from kvviz.distill.config import DistillConfig
from kvviz.distill.data import DataError, load_data
from kvviz.distill.matrix import Matrix
from kvviz.distill.queue import launch_matrix
from kvviz.distill.slots import runs_at_once
from kvviz.errors import ExplainedError

MOST_SEEDS = 20
# What an arm is about: of the sidebar's alignment, these are not the base's.
DECIDED = ("kv_projection_mode", "init", "share_dim_proj", "share_layers", "offset", "flat_kind")
COURSE = ("steps", "batch_size", "eval_examples", "eval_every", "seed")
LABELS = {"seed": "First seed", "eval_examples": "Problems"}


def new_matrix() -> None:
    """The form, what it amounts to, and the button."""
    view = current()
    wrong: dict[str, str] = {}
    config: MatrixConfig | None = None
    try:
        config = matrix_of(view)
    except ConfigError as error:
        wrong = problems(error)
    _arms(view)
    seeds, *columns = st.columns(1 + len(COURSE), vertical_alignment="bottom")
    with seeds:
        st.number_input(
            "Seeds",
            min_value=1,
            max_value=MOST_SEEDS,
            step=1,
            help="How many. Each arm is run once with each: of data drawn, their order, and projectors' starts.",
            **keyed("seeds", view.seeds, int),
        )
    for column, name in zip(columns, COURSE, strict=True):
        with column:
            field(name, wrong, LABELS.get(name))
    if elsewhere := {name: words for name, words in wrong.items() if name not in COURSE}:
        st.error(
            "  \n".join(plain(f"{name}: {words}" if name else words) for name, words in elsewhere.items())
            + "  \nChange it on the Distil page or in the sidebar.",
            icon=":material/error:",
        )
    _summary(config)
    if st.button(
        "Launch matrix",
        type="primary",
        icon=":material/rocket_launch:",
        key="ab.launch",
        disabled=config is None,
    ):
        assert config is not None  # the button was enabled
        _launch(config)
    if config is not None:
        _spelled(config)


def matrix_of(view: View) -> MatrixConfig:
    """The matrix that the view describes: its arms and seeds over its pair and the Distil page's recipe.

    Raises:
        ConfigError: naming what cannot be used or does not go together.
    """
    values = config_of(_undecided(view)).differences()
    values.pop("seed", None)
    first = view.distill.seed
    return MatrixConfig.parse(
        {
            "arms": chosen_arms(view),
            "seeds": tuple(range(first, first + view.seeds)),
            "base": DistillConfig.parse(values),
        }
    )


def chosen_arms(view: View) -> tuple[str, ...]:
    """In the order of ARMS; all where none is named."""
    named = view.arms.split("/")
    return tuple(arm for arm in ARMS if arm in named) or tuple(ARMS)


def _undecided(view: View) -> View:
    """The view with what the arms decide at its default, so that it cannot contradict them."""
    fields = type(view.alignment).model_fields
    return view.model_copy(
        update={
            "alignment": view.alignment.model_copy(update={name: fields[name].default for name in DECIDED})
        }
    )


def _arms(view: View) -> None:
    def spelled(chosen: list[str]) -> str:
        kept = [arm for arm in ARMS if arm in chosen]
        # With none chosen there is nothing to compare: the last one stays.
        return "" if len(kept) == len(ARMS) else "/".join(kept) or view.arms or next(iter(ARMS))

    st.pills(
        "Arms",
        list(ARMS),
        selection_mode="multi",
        format_func=lambda arm: ARMS[arm].title,
        help=(
            "The v4.0 report's four, whose projectors learn along with the student; then projectors fitted first and "
            "frozen; then no KV loss at all, which is what the others have to beat."
        ),
        **keyed("arms", list(chosen_arms(view)), spelled),
    )


def _summary(config: MatrixConfig | None) -> None:
    view = current()
    if config is not None:
        arms, seeds = len(config.arms), len(config.seeds)
        st.markdown(
            f"**{_several(arms, 'arm')} × {_several(seeds, 'seed')} = {_several(arms * seeds, 'run')}** of "
            f"{config.base.steps:,} steps, seeds {', '.join(map(str, config.seeds))}; {_pace()}"
        )
        if not config.base.loss_config.structural:
            st.warning(
                "The weights of K, V and attention are all 0 on the Distil page: every arm would be the same.",
                icon=":material/balance:",
            )
    st.caption(
        f"Teacher **{plain(view.teacher)}**, student **{plain(view.student)}**, layer map, key space and time are the "
        "sidebar's; loss weights, learning rate and data are the Distil page's. Projectors, their start and whether "
        "they learn along are the arm's."
    )


def _several(number: int, word: str) -> str:
    return f"{number} {word}" if number == 1 else f"{number} {word}s"


def _pace() -> str:
    try:
        at_once = runs_at_once()
    except ConfigError as error:
        return plain(str(error))
    return "one after the other." if at_once == 1 else f"up to {at_once} at once."


def _launch(config: MatrixConfig) -> None:
    """Look at the data first: what is wrong with them is better said here than by every run."""
    try:
        with st.spinner("Reading the examples…", show_time=True):
            load_data(config.base)
        matrix = Matrix.create(config)
        launch_matrix(matrix)
    except DataError as error:
        explain(error.what, error.why, f"{error.do} (Data, on the Distil page.)")
        return
    except ExplainedError as error:
        explain(error.what, error.why, error.do)
        return
    except OSError as error:
        explain(
            "The matrix's folder cannot be written.",
            str(error),
            "Set KVVIZ_RUNS to a folder that can be written to, and start kvviz again.",
        )
        return
    update(matrix=matrix.name)
    st.rerun()


def _spelled(config: MatrixConfig) -> None:
    """The same matrix outside the browser."""
    with st.expander("Run it from a shell", icon=":material/terminal:"):
        left, right = st.columns(2)
        with left:
            st.caption("matrix.yaml")
            st.code(config.to_yaml(), language="yaml")
            st.download_button(
                "Download matrix.yaml", config.to_yaml(), "matrix.yaml", icon=":material/download:"
            )
        with right:
            st.caption("Makes the runs, and writes ab.md and ab.json; given the matrix's folder, it goes on")
            st.code("kvviz ab matrix.yaml --name my-matrix", language="bash", wrap_lines=True)
