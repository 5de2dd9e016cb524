"""The statistics of a matrix got another way; what the report expects and what was measured never meet."""

import itertools
import json
import math
import random
from dataclasses import asdict, replace

import numpy as np
import pytest

from kvviz.config import ConfigError
from kvviz.distill import ab
from kvviz.distill.ab import MEASURES, as_json, as_markdown, mean_interval, table, verdict
from kvviz.distill.arms import ARMS, BASELINE, ZERO, MatrixConfig
from kvviz.distill.config import DistillConfig
from tests.matrices import PROBLEMS, answers, cell_of, made_cell, made_matrix

RNG = np.random.default_rng(5)


def by_loops(values, draws):
    """The same bootstrap, draw by draw and value by value, with another generator."""
    rng = random.Random(3)
    seeds, problems = len(values), len(values[0])
    means = []
    for _ in range(draws):
        drawn_seeds = [rng.randrange(seeds) for _ in range(seeds)]
        drawn_problems = [rng.randrange(problems) for _ in range(problems)]
        total = 0.0
        for seed in drawn_seeds:
            for problem in drawn_problems:
                total += values[seed][problem]
        means.append(total / (seeds * problems))
    means.sort()
    return means[round(0.025 * draws)], means[round(0.975 * draws)]


@pytest.mark.parametrize(("seeds", "problems"), [(1, 12), (3, 12), (4, 25)])
def test_an_interval_is_that_of_plain_loops(seeds, problems):
    # Problems differ in how hard they are, seeds in how good they are: both are drawn anew.
    skill = 0.2 + 0.6 * RNG.random(problems)[None] + 0.3 * (RNG.random(seeds)[:, None] - 0.5)
    values = (RNG.random((seeds, problems)) < skill).astype(float)
    found = mean_interval(values)
    low, high = by_loops(values.tolist(), 4000)
    assert found.value == pytest.approx(values.mean())
    assert found.low == pytest.approx(low, abs=0.03)
    assert found.high == pytest.approx(high, abs=0.03)


def test_one_seed_gives_the_binomial_interval():
    for share in (0.1, 0.5, 0.9):
        right = np.arange(400) < 400 * share
        found = mean_interval([right])
        half = 1.96 * math.sqrt(share * (1 - share) / 400)
        assert (found.low, found.high) == pytest.approx((share - half, share + half), abs=0.004)


def test_both_ways_of_chance_count():
    """The variance of a mean over independent seeds' and problems' effects is the sum of both parts."""
    seeds, problems = 12, 500
    seed_effect, problem_effect = RNG.normal(size=(seeds, 1)), 4 * RNG.normal(size=(1, problems))
    found = mean_interval(seed_effect + problem_effect)
    sd = math.sqrt(seed_effect.var() / seeds + problem_effect.var() / problems)
    assert (found.high - found.low) / 2 == pytest.approx(1.96 * sd, rel=0.06)
    # Drawing problems alone, or taking all values for independent, would be far too sure.
    assert (found.high - found.low) / 2 > 1.5 * 1.96 * problem_effect.std() / math.sqrt(problems)


def test_an_interval_is_the_same_each_time_and_has_no_width_without_chance():
    values = RNG.random((3, 40))
    assert mean_interval(values) == mean_interval(list(values))
    assert asdict(mean_interval(np.ones((2, 9)))) == {"value": 1, "low": 1, "high": 1}
    assert mean_interval(values, draws=1).low == mean_interval(values, draws=1).high


def test_zero_is_excluded_by_an_interval_on_either_side_only():
    intervals = [ab.Interval(0.1, low, high) for low, high in ((0.01, 0.2), (-0.2, -0.01), (-0.1, 0.2))]
    assert [one.excludes_zero for one in intervals] == [True, True, False]


@pytest.fixture
def matrix(tmp_path):
    return made_matrix(tmp_path)


def full(matrix):
    for arm, seed in itertools.product(matrix.config.arms, matrix.config.seeds):
        made_cell(matrix, arm, seed)


def rows_of(matrix):
    return {row.arm: row for row in table(matrix).rows}


def test_differences_pair_the_same_problem_of_the_same_seed(tmp_path):
    matrix = made_matrix(tmp_path, arms=("flat", "fitted", "none"), seeds=(0, 1))
    flat = RNG.random((2, PROBLEMS)) < 0.5
    better = flat.copy()
    better[:, :10] = True  # right wherever flat is, and in ten more places
    for seed in (0, 1):
        made_cell(matrix, "flat", seed, right=flat[seed])
        made_cell(matrix, "fitted", seed, right=better[seed])
        made_cell(matrix, "none", seed, right=flat[seed])
    rows = rows_of(matrix)
    difference = better.astype(float) - flat
    assert rows["fitted"].against_baseline == mean_interval(difference)
    assert rows["fitted"].against_baseline.value == pytest.approx(difference.mean())
    assert rows["fitted"].against_baseline.low >= 0, "never worse on any problem, so in no draw"
    unpaired = rows["fitted"].accuracy.low - rows["flat"].accuracy.high
    assert unpaired < 0, "which two intervals side by side could not tell"
    assert asdict(rows["flat"].against_none) == {"value": 0, "low": 0, "high": 0}
    assert rows["flat"].against_baseline is None
    assert rows["none"].against_none is None


def test_only_seeds_that_both_finished_are_compared(tmp_path):
    matrix = made_matrix(tmp_path, arms=("flat", "none"), seeds=(0, 1, 2))
    right = {seed: RNG.random(PROBLEMS) < 0.5 for seed in range(3)}
    for seed in (0, 1):
        made_cell(matrix, "flat", seed, right=right[seed])
    for seed in (1, 2):
        made_cell(matrix, "none", seed, right=~right[seed])
    row = rows_of(matrix)["flat"]
    assert row.seeds == (0, 1)
    assert row.accuracy == mean_interval([right[0], right[1]])
    assert row.against_none == mean_interval([right[1].astype(float) - ~right[1]])


def test_problems_that_changed_between_two_runs_are_not_compared(tmp_path):
    matrix = made_matrix(tmp_path, arms=("flat", "none"), seeds=(0,))
    right = np.arange(PROBLEMS) % 2 == 0
    made_cell(matrix, "flat", 0, right=right)
    cell = made_cell(matrix, "none", 0)
    answers(cell, right[: PROBLEMS // 2])
    row = rows_of(matrix)["flat"]
    assert asdict(row.against_none) == {"value": 0, "low": 0, "high": 0}
    answers(cell, right, "another {}")
    assert rows_of(matrix)["flat"].against_none is None


def test_measures_are_means_over_seeds_and_times_medians(tmp_path):
    matrix = made_matrix(tmp_path, arms=("flat",), seeds=(0, 1, 2))
    for seed, (error, seconds) in enumerate([(0.1, 100), (0.2, 900), (0.6, 110)]):
        cell = made_cell(matrix, "flat", seed)
        began = cell.run.metrics()[0]["time"]
        cell.run.append({"step": 20, "time": began + seconds, "eval_k_loss": error, "cpu_seconds": 51.0})
    row = rows_of(matrix)["flat"]
    assert row.measures["eval_k_loss"] == pytest.approx(0.3)
    assert set(row.measures) == set(MEASURES)
    assert row.seconds == pytest.approx(110)
    assert row.cpu_seconds == pytest.approx(50)
    assert row.start_accuracy == pytest.approx(0.25)
    assert row.parameters is None, "there is no checkpoint to count in"


def test_what_cannot_be_read_is_left_out_and_counted(matrix):
    full(matrix)
    (cell_of(matrix, "flat", 0).run.folder / "metrics.jsonl").unlink()
    (cell_of(matrix, "flat", 1).run.folder / "answers" / "step-000020.jsonl").write_text("{}\n")
    (cell_of(matrix, "none", 0).run.folder / "answers" / "step-000020.jsonl").unlink()
    found = table(matrix)
    assert found.states == {"finished": 16, "unreadable": 2}
    rows = {row.arm: row for row in found.rows}
    assert rows["flat"].seeds == (2,)
    assert rows["none"].seeds == (0, 1, 2), "its other figures count"
    assert rows["flat"].against_none is not None


def test_an_empty_matrix_has_an_empty_table(matrix):
    found = table(matrix)
    assert found.states == {"not begun": 18}
    assert [row.accuracy for row in found.rows] == [None] * 6
    assert verdict(found) == []
    text = as_markdown(found, "the command")
    assert text.count("none yet") == 6
    assert "`the command`" in text
    assert json.loads(as_json(found))["states"] == {"not begun": 18}


def test_what_the_report_expects_changes_its_own_column_only(matrix, monkeypatch):
    full(matrix)
    before, page = table(matrix), as_markdown(table(matrix))
    assert [row.expected for row in before.rows] == [0.65, 0.67, 0.70, 0.71, None, None]
    for name in ARMS:
        monkeypatch.setitem(ARMS, name, replace(ARMS[name], expected=0.123))
    after, other = table(matrix), as_markdown(table(matrix))
    assert after.states == before.states
    for one, two in zip(before.rows, after.rows, strict=True):
        assert two.expected == 0.123
        assert replace(one, expected=None) == replace(two, expected=None)
    assert verdict(before) == verdict(after)
    # In the text too: only the last cell of each row differs.
    cut = [line.rsplit("|", 2)[0] for line in page.splitlines()]
    assert cut == [line.rsplit("|", 2)[0] for line in other.splitlines()]


@pytest.mark.parametrize("value", [0.65, 0.67, 0.70, 0.71])
def test_an_expected_figure_is_never_read_as_measured(tmp_path, value):
    matrix = made_matrix(tmp_path, seeds=(0,))
    assert all(row.accuracy is None and row.measures == {} for row in table(matrix).rows)
    assert f"{value:.0%}" in as_markdown(table(matrix))


def test_the_verdict_says_whatever_came_out(tmp_path):
    matrix = made_matrix(tmp_path, arms=("flat", "fitted", "none"), seeds=(0,))
    half = np.arange(PROBLEMS) % 2 == 0
    made_cell(matrix, "flat", 0, right=half)
    made_cell(matrix, "fitted", 0, right=half & (np.arange(PROBLEMS) > 20))
    made_cell(matrix, "none", 0, right=half | (np.arange(PROBLEMS) > 20))
    said = verdict(table(matrix))
    assert len(said) == 3
    assert said[0].startswith(f"{ARMS['fitted'].title} against {ARMS[BASELINE].title}: -27.5 points")
    assert all(sentence.endswith(", worse.") for sentence in said)
    assert said[2].startswith(f"{ARMS['flat'].title} against {ARMS[ZERO].title}: ")
    made_cell(matrix, "fitted", 0, right=half)
    assert "no difference that this matrix can tell from chance" in verdict(table(matrix))[0]
    assert json.loads(as_json(table(matrix)))["verdict"] == verdict(table(matrix))


def test_the_files_are_written_whole(matrix):
    full(matrix)
    found = ab.write(matrix, "kvviz ab")
    assert (matrix.folder / "ab.md").read_text() == as_markdown(found, "kvviz ab")
    assert json.loads((matrix.folder / "ab.json").read_text())["rows"][0]["title"] == ARMS["flat"].title
    assert not list(matrix.folder.glob(".*partial"))


# What the v4.0 report trains, and nothing else of a base may change.
SETTINGS = {
    "flat": {"kv_projection_mode": "flat", "flat_kind": "linear", "init": "random"},
    "random": {"kv_projection_mode": "structured", "init": "random", "share_dim_proj": True},
    "uniform": {"kv_projection_mode": "structured", "init": "uniform", "share_dim_proj": True},
    "per-head": {"kv_projection_mode": "structured", "init": "uniform", "share_dim_proj": False},
}
BASES = [
    {},
    {"share_dim_proj": False, "flat_kind": "elastic", "kv_projection_mode": "flat", "init": "random"},
    {"kv_projection_mode": "identity", "offset": False, "share_layers": True, "aligner": "frozen"},
    {"loss_config": {"alpha_k": 2.0}, "steps": 7, "seed": 99},
]


@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("arm", list(ARMS))
def test_an_arm_is_the_report_s_whatever_the_base_says(arm, base):
    base = DistillConfig.parse(base)
    config = MatrixConfig(base=base).config(arm, 5)
    assert config.seed == 5
    assert (config.steps, config.loss_config.alpha_ce) == (base.steps, base.loss_config.alpha_ce)
    if arm in SETTINGS:
        asked = SETTINGS[arm] | {"aligner": "trained", "share_layers": True, "offset": False}
        assert config.model_dump(include=set(asked)) == asked
        assert config.loss_config == base.loss_config
    else:
        assert (config.kv_projection_mode, config.init, config.aligner) == (
            "structured",
            "fitted",
            "frozen",
        )
        assert config.loss_config.structural == (arm == "fitted")


def test_the_arms_are_the_report_s_four_and_two_more():
    assert {name: arm.expected for name, arm in ARMS.items()} == {
        "flat": 0.65,
        "random": 0.67,
        "uniform": 0.70,
        "per-head": 0.71,
        "fitted": None,
        "none": None,
    }


@pytest.mark.parametrize(
    "config",
    [
        MatrixConfig(),
        MatrixConfig(arms=("none",), seeds=(7,)),
        MatrixConfig(
            base=DistillConfig.parse(
                {
                    "steps": 20,
                    "loss_config": {"alpha_v": 0},
                    "alpha_map": {0: 0.5},
                    "trainer": {"bf16": False},
                }
            )
        ),
    ],
)
def test_yaml_reads_back(config):
    assert MatrixConfig.from_yaml(config.to_yaml()) == config


def test_an_empty_yaml_is_the_default():
    assert MatrixConfig.from_yaml("") == MatrixConfig()


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("armz: [flat]", "armz"),
        ("arms: [flatt]", "flatt"),
        ("arms: []", "arms"),
        ("arms: [flat, flat]", "arms"),
        ("seeds: [0, 0]", "seeds"),
        ("seeds: [one]", "seeds"),
        ("seeds: []", "seeds"),
        ("seeds: [0, -1]", "seed"),
        ("base: {stepz: 3}", "stepz"),
        ("base: {steps: many}", "steps"),
        ("base: 3", "base"),
        ("base: {loss_config: {alpha_ce: 0}}", "loss_config"),
        ("- a list", "list"),
        ("arms: [flat", "YAML"),
    ],
)
def test_what_cannot_be_used_is_refused_by_name(text, named):
    with pytest.raises(ConfigError, match=named):
        MatrixConfig.from_yaml(text)
