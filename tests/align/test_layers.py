"""The layer map against plain-loop references, and what holds for every map."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kvviz.align.layers import STRATEGIES, cka_map, layer_map, linear_cka, overloaded, unmapped, with_weight

depth = st.integers(1, 64)
properties = settings(deadline=None, max_examples=60)


@st.composite
def maps(draw):
    L_s, L_t = draw(st.integers(1, 8)), draw(st.integers(1, 8))
    weights = st.one_of(st.just(0.0), st.floats(1e-3, 10))
    rows = [draw(st.lists(weights, min_size=L_t, max_size=L_t).filter(sum)) for _ in range(L_s)]
    return rows, layer_map(L_s, L_t, rows)


def uniform_reference(L_s, L_t):
    matrix = np.zeros((L_s, L_t))
    for i in range(L_s):
        for j in range(L_t):
            low, high = max(i * L_t / L_s, j), min((i + 1) * L_t / L_s, j + 1)
            matrix[i, j] = max(high - low, 0) * L_s / L_t
    return matrix


@properties
@given(depth, depth, st.sampled_from(STRATEGIES))
def test_rows_are_probabilities_in_reading_order(L_s, L_t, strategy):
    matrix = layer_map(L_s, L_t, strategy)
    assert matrix.shape == (L_s, L_t)
    assert matrix.dtype == torch.float32
    assert (matrix >= 0).all()
    torch.testing.assert_close(matrix.sum(dim=1), torch.ones(L_s))
    centre = matrix.double() @ torch.arange(L_t, dtype=torch.float64)
    assert (centre.diff() >= -1e-5).all()


@properties
@given(depth, depth)
def test_uniform_is_the_overlap_of_intervals(L_s, L_t):
    np.testing.assert_allclose(layer_map(L_s, L_t).numpy(), uniform_reference(L_s, L_t), atol=1e-6)


@properties
@given(depth, depth)
def test_uniform_loads_every_teacher_layer_alike(L_s, L_t):
    matrix = layer_map(L_s, L_t)
    torch.testing.assert_close(matrix.sum(dim=0), torch.full((L_t,), L_s / L_t), atol=1e-5, rtol=1e-5)
    assert unmapped(matrix) == []
    assert overloaded(matrix) == []


@properties
@given(depth, depth)
def test_ratio_averages_the_layers_that_the_reports_rule_sends_to_a_row(L_s, L_t):
    matrix = layer_map(L_s, L_t, "ratio")
    senders = {i: [t for t in range(L_t) if min(round(t * L_s / L_t), L_s - 1) == i] for i in range(L_s)}
    for i, teachers in senders.items():
        if teachers:
            expected = torch.zeros(L_t)
            expected[teachers] = 1 / len(teachers)
            torch.testing.assert_close(matrix[i], expected)
        else:
            read = int(matrix[i].argmax())
            assert matrix[i, read] == 1
            distance = [abs(t * L_s / L_t - i) for t in range(L_t)]
            assert distance[read] == pytest.approx(min(distance))


@properties
@given(depth, depth)
def test_skip_reads_one_layer_each_evenly_and_the_last_for_the_last(L_s, L_t):
    matrix = layer_map(L_s, L_t, "skip")
    read = matrix.argmax(dim=1)
    assert (matrix.amax(dim=1) == 1).all()
    assert read[-1] == L_t - 1
    steps = read.diff()
    assert len(steps) == 0 or steps.max() - steps.min() <= 1


def test_known_maps():
    assert layer_map(4, 8).nonzero().tolist() == [[i, j] for i in range(4) for j in (2 * i, 2 * i + 1)]
    torch.testing.assert_close(layer_map(2, 3), torch.tensor([[2 / 3, 1 / 3, 0], [0, 1 / 3, 2 / 3]]))
    assert layer_map(6, 12, "skip").argmax(dim=1).tolist() == [1, 3, 5, 7, 9, 11]
    # The report's rule loads layers unevenly: of 3 student layers over 6 the last gets three, the middle one.
    assert (layer_map(3, 6, "ratio") > 0).sum(dim=1).tolist() == [2, 1, 3]
    for strategy in STRATEGIES:
        assert torch.equal(layer_map(5, 5, strategy), torch.eye(5))


@properties
@given(maps())
def test_explicit_rows_are_renormalised(case):
    rows, matrix = case
    expected = np.array(rows) / np.array(rows).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(matrix.numpy(), expected, atol=1e-6)


@pytest.mark.parametrize(
    ("matrix", "message"),
    [
        ([[1.0, 1.0]], "2 student"),
        ([[1.0], [1.0]], "2 student"),
        ([[1.0, -0.1], [1.0, 1.0]], "negative"),
        ([[1.0, 0.0], [0.0, 0.0]], "layer 1"),
        ([[float("nan"), 0.0], [0.0, 1.0]], "finite"),
        ([[1.0, 0.0], [1.0]], "matrix"),
        ([["a", "b"], ["c", "d"]], "matrix"),
        ("diagonal", "strategy"),
    ],
)
def test_nonsense_maps_say_what_is_wrong(matrix, message):
    with pytest.raises(ValueError, match=message):
        layer_map(2, 2, matrix)


def test_no_layers_and_huge_weights():
    with pytest.raises(ValueError, match="at least one layer"):
        layer_map(0, 3)
    torch.testing.assert_close(layer_map(1, 2, [[1e308, 1e308]]), torch.tensor([[0.5, 0.5]]))


@properties
@given(maps(), st.data())
def test_editing_a_cell_keeps_the_row_a_probability_and_the_others_in_proportion(case, data):
    _, matrix = case
    L_s, L_t = matrix.shape
    row, col = data.draw(st.integers(0, L_s - 1)), data.draw(st.integers(0, L_t - 1))
    weight = data.draw(st.floats(-1, 2))
    edited = with_weight(matrix, row, col, weight)
    untouched = [i for i in range(L_s) if i != row]
    assert torch.equal(edited[untouched], matrix[untouched])
    assert (edited >= 0).all()
    torch.testing.assert_close(edited.sum(dim=1), torch.ones(L_s))
    assert edited[row, col] == pytest.approx(min(max(weight, 0), 1) if L_t > 1 else 1, abs=1e-6)
    others = [j for j in range(L_t) if j != col]
    if matrix[row, others].sum() > 0:
        left = edited[row, others].sum()
        torch.testing.assert_close(
            edited[row, others] * matrix[row, others].sum(), matrix[row, others] * left, atol=1e-6, rtol=1e-5
        )


def test_lowering_the_only_weight_of_a_row_hands_the_rest_to_its_neighbours():
    edited = with_weight(torch.eye(3), 1, 1, 0.5)
    torch.testing.assert_close(edited[1], torch.tensor([0.25, 0.5, 0.25]))
    torch.testing.assert_close(with_weight(torch.eye(3), 0, 0, 0.25)[0], torch.tensor([0.25, 0.75, 0.0]))
    with pytest.raises(IndexError):
        with_weight(torch.eye(3), 3, 0, 0.5)
    with pytest.raises(ValueError, match="finite"):
        with_weight(torch.eye(3), 0, 0, float("nan"))


def test_unmapped_and_overloaded_are_found():
    matrix = torch.tensor([[0.0, 1.0, 0.0, 0.0], [0.0, 0.5, 0.0, 0.5]])
    assert unmapped(matrix) == [0, 2]
    assert overloaded(matrix) == [1]  # 1.5 against an even 0.5; layer 3 has exactly 0.5


def test_cka_map_reads_the_most_similar_in_proportion():
    similarity = torch.tensor([[0.1, 0.6, 0.3], [-0.5, -0.2, -0.9]])
    torch.testing.assert_close(
        cka_map(similarity, 2), torch.tensor([[0, 2 / 3, 1 / 3], [0.5, 0.5, 0.0]]), atol=1e-6, rtol=0
    )
    torch.testing.assert_close(cka_map(similarity, 9).sum(dim=1), torch.ones(2))
    for bad, top_k in ((similarity, 0), (similarity[0], 1), (similarity / 0, 1)):
        with pytest.raises(ValueError):
            cka_map(bad, top_k)


@pytest.mark.parametrize("samples", [5, 200])
def test_linear_cka_against_its_definition(samples):
    generator = np.random.default_rng(0)
    x, y = generator.normal(size=(samples, 7)), generator.normal(size=(samples, 4))
    centring = np.eye(samples) - 1 / samples
    gram_x, gram_y = centring @ x @ x.T @ centring, centring @ y @ y.T @ centring
    expected = np.trace(gram_x @ gram_y) / np.sqrt(np.trace(gram_x @ gram_x) * np.trace(gram_y @ gram_y))
    assert linear_cka(torch.from_numpy(x), torch.from_numpy(y)) == pytest.approx(expected, rel=1e-9)


def test_linear_cka_sees_through_rotation_scale_and_shift():
    x = torch.randn(50, 6, generator=torch.Generator().manual_seed(0))
    rotation = torch.linalg.qr(torch.randn(6, 6, generator=torch.Generator().manual_seed(1)))[0]
    assert linear_cka(x, 3 * x @ rotation + 5) == pytest.approx(1, abs=1e-6)
    assert linear_cka(x, torch.ones(50, 2)) == 0
    with pytest.raises(ValueError):
        linear_cka(x, x[:10])
