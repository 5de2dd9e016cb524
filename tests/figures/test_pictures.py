"""The figures of each page: the right numbers in the right places, named axes, text never markup."""

from __future__ import annotations

import numpy as np
import pytest

from kvviz.figures import attention, errors, heads, layers, overview, pipeline, segments, tokens
from tests.figures.drawn import NASTY, assert_escaped, trace

RNG = np.random.default_rng(3)
TOKENS = [NASTY, " the", " the", "\n", "שלום", "🎉"]


def causal(size: int) -> np.ndarray:
    weight = np.tril(RNG.random((size, size)) + 0.01)
    return weight / weight.sum(axis=1, keepdims=True)


# --- pipeline ---------------------------------------------------------------------------------------------------------


def stage(name: str, shape: tuple[int, int, int, int], side="step", detail="") -> pipeline.Stage:
    return pipeline.Stage(name, {"k": shape}, detail, side)


def test_pipeline_marks_what_each_stage_changed(theme) -> None:
    figure = pipeline.pipeline(
        [
            stage("Teacher", (8, 4, 150, 64), "teacher", NASTY),
            stage("Layers", (4, 4, 150, 64)),
            stage(NASTY, (4, 2, 150, 32)),
            stage("Student", (4, 2, 150, 32), "student"),
        ],
        theme=theme,
        parts=["k"],
    )
    boxes = [note.text for note in figure.layout.annotations if "layers" in note.text]
    assert boxes[0] == "8 layers<br>4 heads × 64<br>150 tokens"
    bold = f"<b style='color:{theme.accent}'>"
    assert boxes[1] == f"{bold}4</b> layers<br>4 heads × 64<br>150 tokens"
    assert boxes[2] == f"4 layers<br>{bold}2</b> heads × {bold}32</b><br>150 tokens"
    assert [note.text for note in figure.layout.annotations if note.text in "→=≠"] == ["→", "→", "="]
    assert "8 layers × 4 heads × 150 tokens × 64 dims" in trace(figure, "stages").text[0]
    assert f"{8 * 4 * 150 * 64:,} values" in trace(figure, "stages").text[0]
    assert_escaped(figure)


def test_pipeline_says_when_the_shapes_do_not_meet(theme) -> None:
    figure = pipeline.pipeline(
        [stage("a", (1, 1, 1, 1)), stage("b", (1, 1, 2, 1), "student")], theme=theme, parts=["k"]
    )
    assert "≠" in [note.text for note in figure.layout.annotations]
    with pytest.raises(ValueError, match="stage"):
        pipeline.pipeline([], theme=theme)


# --- tokens -----------------------------------------------------------------------------------------------------------


def test_token_values_hang_under_their_tokens(theme) -> None:
    given = np.array([0.0, 1.0, 2.0, np.nan, 4.0, 0.5])
    figure = tokens.token_values(given, TOKENS, unit="error", theme=theme, selected=2)
    bars, text = trace(figure, "values"), trace(figure, "text")
    np.testing.assert_allclose(bars.x, text.x)
    np.testing.assert_allclose(np.asarray(bars.y) / bars.y[4], [0, 0.25, 0.5, 0, 1, 0.125])
    assert "no value" in bars.hovertext[3]
    assert "error: <b>4</b>" in bars.hovertext[4]
    assert [list(c) for c in bars.customdata] == [[n] for n in range(6)]
    assert len(figure.layout.shapes) == 1
    assert_escaped(figure)


def test_token_values_are_coloured_as_their_scale_says(theme) -> None:
    """In written colours: plotly.js warns in the console of every bar whose colour is a number, which takes its time."""
    figure = tokens.token_values(np.array([0.0, 2.0, np.nan, 4.0]), TOKENS[:4], unit="error", theme=theme)
    low, middle, high = (theme.color_at(share) for share in (0.0, 0.5, 1.0))
    assert list(trace(figure, "values").marker.color) == [low, middle, low, high]
    scale = trace(figure, "scale").marker
    assert (scale.cmin, scale.cmax, scale.showscale) == (0.0, 4.0, True)
    assert [color for _, color in scale.colorscale] == [color for _, color in theme.sequential]


@pytest.mark.parametrize("count", [1, 150, 599, 2000])
def test_flowing_text_stays_in_its_lines(theme, count) -> None:
    words = [" word" * (n % 3 + 1) for n in range(count)]
    figure = tokens.token_values(RNG.random(count), words, unit="error", theme=theme)
    bars = trace(figure, "values")
    x, width, line = np.asarray(bars.x), np.asarray(bars.width), np.floor(np.asarray(bars.base))
    assert (x + width / 2).max() <= max(tokens.LINE, count if count > tokens.MOST_FLOWING else 0)
    for number in np.unique(line):  # no two tokens of a line overlap
        here = line == number
        assert (np.diff(x[here]) >= (width[here][1:] + width[here][:-1]) / 2 - 1e-9).all()


def test_a_newline_token_ends_its_line() -> None:
    _, _, line = tokens._flow(["a", "\n", "b"])
    assert line.tolist() == [0, 0, 1]


# --- segments ---------------------------------------------------------------------------------------------------------


def warp() -> np.ndarray:
    matrix = np.zeros((3, 6))
    matrix[0, 0] = 1.0
    matrix[1, [2, 3]] = 0.5
    matrix[2, [3, 5]] = 0.5
    return matrix


def ribbons(theme, **changes):
    given = {
        "teacher_tokens": TOKENS,
        "teacher_ids": [0, 0, 1, 1, 1, 1],
        "student_tokens": TOKENS[:3],
        "student_ids": [0, 1, 1],
        "warp_matrix": warp(),
        "stretch": np.array([2.0, 2.0, 2.0]),
        "names": ["prompt", "answer"],
    } | changes
    return segments.ribbons(**given, theme=theme)


def test_ribbons_are_equally_wide_and_bands_join_equal_segments(theme) -> None:
    figure = ribbons(theme)
    for side, count in (("teacher", 6), ("student", 3)):
        bars = trace(figure, side)
        assert bars.width * count == pytest.approx(1.0)
        np.testing.assert_allclose(bars.x, (np.arange(count) + 0.5) / count)
        assert [list(c) for c in bars.customdata] == [[side, n] for n in range(count)]
    band = trace(figure, "prompt")
    np.testing.assert_allclose(np.array(band.x, dtype=float), [0, 2 / 6, 1 / 3, 0, 0])
    assert "2 teacher → 1 student tokens" in band.text
    np.testing.assert_allclose(trace(figure, "stretch").y, 2.0)
    assert_escaped(figure)


def test_the_chosen_segment_is_framed_on_both_ribbons(theme) -> None:
    def frames(**changes) -> list[tuple]:
        rectangles = [shape for shape in ribbons(theme, **changes).layout.shapes if shape.type == "rect"]
        return [(shape.x0, shape.x1, shape.y1) for shape in rectangles]

    assert frames() == []
    assert frames(chosen=1) == [(2 / 6, 1.0, 1.0), (1 / 3, 1.0, 0.22)]
    scattered = frames(chosen=1, teacher_ids=[1, 0, 1, 1, 0, 0])
    assert scattered == [(0.0, 1 / 6, 1.0), (2 / 6, 4 / 6, 1.0), (1 / 3, 1.0, 0.22)]


def test_ribbons_name_dropped_and_repeated_teacher_tokens(theme) -> None:
    figure = ribbons(theme)
    unread = trace(figure, "not read (2)")
    np.testing.assert_allclose(unread.x, [1.5 / 6, 4.5 / 6])
    repeated = trace(figure, "read more than once (1)")
    np.testing.assert_allclose(repeated.x, [3.5 / 6])
    threads = np.asarray(trace(figure, "reads").x, dtype=float).reshape(3, 3)
    np.testing.assert_allclose(threads[:, 0], [0.5 / 6, 3.0 / 6, 4.5 / 6])
    np.testing.assert_allclose(threads[:, 1], [0.5 / 3, 1.5 / 3, 2.5 / 3])


def test_interleaved_segments_are_joined_run_by_run(theme) -> None:
    figure = ribbons(theme, teacher_ids=[0, 1, 0, 1, -1, -1], student_ids=[0, 1, 0])
    x = list(trace(figure, "prompt").x)
    assert len([value for value in x if value is None or np.isnan(value)]) == 1  # two polygons in one trace
    assert (
        len(list(trace(figure, "answer").x)) == 5
    )  # two runs against one: everything between first and last


def test_ribbons_use_few_traces_for_many_tokens(theme) -> None:
    count = 500
    figure = ribbons(
        theme,
        teacher_tokens=["a"] * count,
        teacher_ids=[n // 100 for n in range(count)],
        student_tokens=["a"] * count,
        student_ids=[n // 100 for n in range(count)],
        warp_matrix=np.eye(count),
        stretch=np.ones(count),
        names=[],
    )
    assert len(figure.data) <= 5 + 6


def test_ribbons_refuse_a_warp_of_another_shape(theme) -> None:
    with pytest.raises(ValueError, match="warp of shape"):
        ribbons(theme, warp_matrix=np.zeros((2, 6)))


def test_warp_heatmap(theme) -> None:
    figure = segments.warp_heatmap(warp(), TOKENS, TOKENS[:3], theme=theme)
    np.testing.assert_allclose(trace(figure, "W").z, warp())
    assert figure.layout.xaxis.title.text == "teacher token"
    assert figure.layout.yaxis.title.text == "student token"
    assert_escaped(figure)
    with pytest.raises(ValueError, match="warp of shape"):
        segments.warp_heatmap(warp(), TOKENS[:2], TOKENS[:3], theme=theme)


# --- layers -----------------------------------------------------------------------------------------------------------


def test_layer_map_points_out_unmapped_and_overloaded_layers(theme) -> None:
    matrix = np.array([[1.0, 0, 0], [0.9, 0.1, 0]])
    figure = layers.layer_map(matrix, theme=theme, unmapped=[2], overloaded=[0], selected=(1, 0))
    np.testing.assert_allclose(trace(figure, "values").z, matrix)
    assert [(note.x, note.text) for note in figure.layout.annotations] == [(2, "∅"), (0, "▲")]
    hover = trace(figure, "values").text[0]
    assert "column sum 1.9 (overloaded)" in hover[0]
    assert "no student layer reads it" in hover[2]


def test_per_layer_error_has_a_tick_of_the_baseline_over_each_bar(theme) -> None:
    figure = layers.per_layer_error(
        {"K": np.array([0.1, 0.2]), "V": np.array([0.3, np.nan])},
        {"K": np.array([0.9, 0.8])},
        theme=theme,
        unit="error",
    )
    np.testing.assert_allclose(trace(figure, "K").y, [0.1, 0.2])
    assert [list(c) for c in trace(figure, "V").customdata] == [[0], [1]]
    tick = trace(figure, "identity")
    np.testing.assert_allclose(np.asarray(tick.y, dtype=float).reshape(2, 4)[:, :3], [[0.9] * 3, [0.8] * 3])
    np.testing.assert_allclose(np.asarray(tick.x, dtype=float).reshape(2, 4)[:, 1], trace(figure, "K").x)
    assert figure.layout.yaxis.title.text == "error"
    assert "no value" in trace(figure, "V").hovertext[1]
    with pytest.raises(ValueError, match="lengths"):
        layers.per_layer_error({"K": np.zeros(2), "V": np.zeros(3)}, theme=theme)


# --- heads ------------------------------------------------------------------------------------------------------------


def test_gqa_brackets() -> None:
    assert heads.gqa_brackets(8, 2) == [(0, 3, "KV 0"), (4, 7, "KV 1")]
    assert heads.gqa_brackets(4, 4) == []
    with pytest.raises(ValueError, match="share"):
        heads.gqa_brackets(6, 4)


def test_mixer_is_signed_about_zero(theme) -> None:
    weights = np.array([[0.5, -1.5], [0.1, 0.2]])
    figure = heads.mixer(weights, theme=theme, part="q", student_brackets=[(0, 1, "KV 0")])
    heat = trace(figure, "values")
    assert (heat.zmin, heat.zmax) == (-1.5, 1.5)
    assert figure.layout.xaxis.title.text == "teacher query head"
    assert heads.mixer(weights, theme=theme, part="k").layout.xaxis.title.text == "teacher KV head"


def test_head_bars_name_the_dead(theme) -> None:
    figure = heads.row_sums(np.array([1.0, 0.001, 0.9]), theme=theme, dead=[1], selected=2)
    bars = figure.data[0]
    assert bars.marker.color[1] == theme.bad
    assert "dead" in bars.hovertext[1]
    assert [note.text for note in figure.layout.annotations].count("dead") == 1
    effective = heads.effective_heads(np.array([1.2, 3.4]), 4, theme=theme)
    assert effective.layout.yaxis.title.text == "effective teacher heads"
    assert "all 4" in [note.text for note in effective.layout.annotations]
    with pytest.raises(ValueError, match="shape"):
        heads.row_sums(np.zeros((2, 2)), theme=theme)


def test_singular_values_fall_and_leave_out_zeros(theme) -> None:
    figure = heads.singular_values({"K": np.array([1.0, 4.0, 0.0, 2.0]), NASTY: np.array([1.0])}, theme=theme)
    np.testing.assert_allclose(trace(figure, "K").y, [4, 2, 1])
    assert "1 more are zero" in trace(figure, "K").text[-1]
    assert figure.layout.yaxis.type == "log"
    assert_escaped(figure)


# --- errors -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("metric", sorted(errors.METRICS))
def test_error_map_has_the_scale_of_its_metric(theme, metric) -> None:
    grid = RNG.uniform(0.2, 1.0, (4, 2))
    heat = trace(errors.error_map(grid, metric, theme=theme, part="v", baseline=grid + 1), "values")
    np.testing.assert_allclose(heat.z, grid)
    assert f"V {errors.METRICS[metric].unit}" in heat.colorbar.title.text
    if metric == "norm_ratio":
        assert (heat.zmin + heat.zmax) / 2 == pytest.approx(1.0)
    else:
        assert heat.zmin == 0
    if metric in ("cosine", "r2"):
        assert heat.zmax == 1


def test_error_map_tells_the_baseline(theme) -> None:
    figure = errors.error_map(np.array([[0.5]]), "r2", theme=theme, baseline=np.array([[-1.25]]))
    assert "identity: -1.25" in trace(figure, "values").text[0][0]
    with pytest.raises(ValueError, match="baseline"):
        errors.error_map(np.zeros((2, 2)), "r2", theme=theme, baseline=np.zeros((1, 2)))


def test_head_matrices_share_one_scale(theme) -> None:
    projected, student = RNG.normal(size=(6, 5)), 3 * RNG.normal(size=(6, 5))
    figure = errors.head_matrices(projected, student, TOKENS, theme=theme, selected=0)
    panels = [one for one in figure.data if one.type == "heatmap"]
    assert [one.name for one in panels] == ["teacher, projected", "student", "difference"]
    assert {one.coloraxis for one in panels} == {"coloraxis"}
    np.testing.assert_allclose(panels[2].z, projected - student, rtol=1e-5, atol=1e-6)
    axis = figure.layout.coloraxis
    assert axis.cmin == -axis.cmax
    assert "one scale" in axis.colorbar.title.text
    assert len(figure.layout.shapes) == 3
    assert_escaped(figure)
    with pytest.raises(ValueError, match="shapes"):
        errors.head_matrices(projected, student[:3], TOKENS, theme=theme)


def test_cosine_histogram_counts_every_token_once(theme) -> None:
    cosines = np.array([-0.31, 0.49, 0.5, 0.79, 0.8, 0.95, 1.0, 1.0 + 1e-7, np.nan])
    figure = errors.cosine_histogram(cosines, theme=theme)
    assert sum(trace(figure, "tokens").y) == 8
    shares = [note.text.split("<b>")[1].split("%")[0] for note in figure.layout.annotations]
    assert [int(share) for share in shares] == [25, 25, 12, 38]
    assert len(figure.layout.shapes) == 4
    with pytest.raises(ValueError, match="finite"):
        errors.cosine_histogram(np.array([np.nan]), theme=theme)


# --- attention --------------------------------------------------------------------------------------------------------


def test_kl_map_is_in_nats(theme) -> None:
    figure = attention.kl_map(np.array([[0.1, 2.0]]), theme=theme, baseline=np.array([[1.0, 3.0]]))
    heat = trace(figure, "values")
    assert (heat.zmin, heat.zmax) == (0, 2.0)
    assert "nats" in heat.colorbar.title.text
    assert "identity: 3 nats" in trace(figure, "values").text[0][1]


@pytest.mark.parametrize("wide", [False, True])
@pytest.mark.parametrize("bend", ["linear", "sqrt", "log"])
def test_attention_maps_share_one_scale_and_keep_their_values(theme, bend, wide) -> None:
    teacher, aligned, student = causal(6), causal(3), causal(3)
    kl = np.array([0.0, np.nan, 0.7])
    figure = attention.attention_maps(
        teacher, aligned, student, TOKENS, TOKENS[:3], kl, theme=theme, bend=bend, wide=wide, selected=1
    )
    for name, given in (("teacher", teacher), ("teacher, aligned", aligned), ("student", student)):
        np.testing.assert_allclose(trace(figure, name).z, given, rtol=1e-6)
        assert trace(figure, name).coloraxis == "coloraxis"
    axis = figure.layout.coloraxis
    assert axis.cmin == 0
    assert axis.cmax == pytest.approx(1.0)
    bars = trace(figure, "KL of each row")
    np.testing.assert_allclose(bars.x, [0, 0, 0.7])
    assert "no value" in bars.hovertext[1]
    assert [list(c) for c in bars.customdata] == [[0], [1], [2]]
    ranges = {figure.layout[name].range for name in ("yaxis2", "yaxis3", "yaxis4")}
    assert ranges == {(2.5, -0.5)}  # the KL bars stand beside their rows
    assert_escaped(figure)


def test_bent_scales_run_from_zero_to_one_and_follow_their_bend(theme) -> None:
    for bend, colour_at_one_percent in (("sqrt", 0.1), ("log", 0.5)):
        scale = attention.bent_scale(theme, bend)
        places = [place for place, _ in scale]
        assert places[0] == 0
        assert places[-1] == 1
        assert places == sorted(places)
        at = np.interp(0.01, places, np.linspace(0, 1, len(places)))
        assert at == pytest.approx(colour_at_one_percent, abs=0.02)


def test_large_maps_go_to_the_canvas(theme) -> None:
    assert not attention.needs_canvas(np.zeros((256, 256)))
    assert attention.needs_canvas(np.zeros((3, 3)), np.zeros((257, 257)))
    big = ["a"] * 257
    with pytest.raises(ValueError, match="canvas"):
        attention.attention_maps(*[np.eye(257)] * 3, big, big, np.zeros(257), theme=theme)
    panels, top = attention.attention_panels(np.eye(257), np.eye(3), np.eye(3) / 2, big, ["a"] * 3)
    assert top == 1.0
    assert panels[0].levels.shape == (257, 257)
    assert panels[0].levels.max() == 254
    assert panels[2].levels[0, 0] == round(254 * 0.5**0.5)


def test_maps_of_another_size_are_refused(theme) -> None:
    with pytest.raises(ValueError, match="do not fit"):
        attention.attention_maps(
            causal(6), causal(3), causal(2), TOKENS, TOKENS[:3], np.zeros(3), theme=theme
        )


# --- overview ---------------------------------------------------------------------------------------------------------


def test_headline_shows_methods_against_the_baseline(theme) -> None:
    given = {
        "K": {"fitted": 0.72, "identity": -0.2, "random": -56.0},
        NASTY: {"fitted": 0.5, "identity": float("nan")},
    }
    figure = overview.headline(given, theme=theme, chosen="fitted")
    bars = trace(figure, "K")
    np.testing.assert_allclose(bars.x, [0.72, -0.2, -1.0])  # the axis ends at −1
    assert bars.hovertext[2] == "K, random<br>held-out R²: <b>−56</b>"
    assert bars.marker.color[0] == theme.key
    written = [one for one in figure.data if one.name == "written"]
    assert "◂ −56" in written[0].text[2]
    assert "no value" in written[1].text[2]
    assert figure.layout.xaxis.title.text == "held-out R²"
    assert_escaped(figure)
    with pytest.raises(ValueError, match="method"):
        overview.headline({"K": {}}, theme=theme)
