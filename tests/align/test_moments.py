"""Sums of a streaming pass against the sums written out in float64; and that large means cost no digits."""

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kvviz.align.fit import centred
from kvviz.align.layers import layer_map
from kvviz.align.moments import CrossMoments, Moments

NAMES = ("count", "x_sum", "y_sum", "xx", "xy", "yy")


def rows(layers, count, width, seed, mean=0.0):
    torch.manual_seed(seed)
    return torch.randn(layers, count, width) + mean


def plain(x, y):
    """Each sum, one position at a time."""
    x, y = x.double().numpy(), y.double().numpy()
    layers, count, n = x.shape
    m = y.shape[2]
    sums = {
        "count": np.array(float(count)),
        "x_sum": np.zeros((layers, n)),
        "y_sum": np.zeros((layers, m)),
        "xx": np.zeros((layers, n, n)),
        "xy": np.zeros((layers, n, m)),
        "yy": np.zeros((layers, m)),
    }
    for layer in range(layers):
        for position in range(count):
            a, b = x[layer, position], y[layer, position]
            sums["x_sum"][layer] += a
            sums["y_sum"][layer] += b
            sums["xx"][layer] += a[:, None] * a[None, :]
            sums["xy"][layer] += a[:, None] * b[None, :]
            sums["yy"][layer] += b * b
    return sums


def assert_equal(moments, sums, rtol=1e-6, atol=1e-5):
    for name in NAMES:
        value = getattr(moments, name)
        assert value.dtype == torch.float64
        np.testing.assert_allclose(value.numpy(), sums[name], rtol=rtol, atol=atol, err_msg=name)


@settings(deadline=None, max_examples=25)
@given(st.integers(1, 3), st.integers(1, 9), st.integers(1, 5), st.integers(1, 4), st.integers(0, 99))
def test_sums_are_sums(layers, count, n, m, seed):
    x, y = rows(layers, count, n, seed), rows(layers, count, m, seed + 1, mean=3.0)
    assert_equal(Moments.of(x, y), plain(x, y))


def test_adding_batches_is_one_pass():
    x, y = rows(2, 30, 4, 0, mean=5.0), rows(2, 30, 3, 1)
    cuts = [0, 7, 8, 30]
    parts = [(x[:, a:b], y[:, a:b]) for a, b in zip(cuts, cuts[1:], strict=False)]
    for kind in (Moments, CrossMoments):
        total = kind.of(*parts[0]) + kind.of(*parts[1]) + kind.of(*parts[2])
        whole = kind.of(x, y)
        for name in NAMES:
            torch.testing.assert_close(getattr(total, name), getattr(whole, name), rtol=1e-6, atol=1e-4)


@settings(deadline=None, max_examples=25)
@given(st.integers(1, 5), st.integers(1, 5), st.sampled_from(["uniform", "ratio", "skip", "random"]))
def test_a_layer_map_can_follow_the_sums(L_s, L_t, strategy):
    torch.manual_seed(L_s * 10 + L_t)
    matrix = layer_map(L_s, L_t, torch.rand(L_s, L_t) + 0.01 if strategy == "random" else strategy)
    x, y = rows(L_t, 20, 4, 2, mean=1.0), rows(L_s, 20, 3, 3)
    mapped = torch.einsum("st,tpn->spn", matrix.double(), x.double())
    assert_equal(CrossMoments.of(x, y).under(matrix), plain(mapped, y), rtol=1e-5, atol=1e-4)


def test_cross_moments_hold_every_pair_of_layers():
    x, y = rows(3, 10, 2, 4), rows(2, 10, 4, 5)
    cross = CrossMoments.of(x, y)
    for a in range(3):
        for b in range(3):
            expected = x[a].double().T @ x[b].double()
            torch.testing.assert_close(cross.xx[a, :, b], expected, rtol=1e-6, atol=1e-5)
        for b in range(2):
            expected = x[a].double().T @ y[b].double()
            torch.testing.assert_close(cross.xy[a, :, b], expected, rtol=1e-6, atol=1e-5)


def test_large_means_cost_no_digits():
    """Centred second moments of states whose means are 1,000 to 30,000 times their spread."""
    torch.manual_seed(6)
    means = torch.tensor([0.0, 1e3, -1e4, 3e4])
    # Rounded to float32 first, as a model would hand them over: what is lost there is not ours to lose.
    x = (torch.randn(1, 4000, 4) + means).float()
    y = (torch.randn(1, 4000, 2) + torch.tensor([2e4, -50.0])).float()
    batches = [(x[:, i : i + 500], y[:, i : i + 500]) for i in range(0, 4000, 500)]
    total = Moments.of(*batches[0])
    for batch in batches[1:]:
        total = total + Moments.of(*batch)
    xx, xy = centred(total, offset=True)
    exact_x, exact_y = (z.double() - z.double().mean(1, keepdim=True) for z in (x, y))
    torch.testing.assert_close(xx, exact_x.mT @ exact_x / 4000, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(xy, exact_x.mT @ exact_y / 4000, rtol=1e-4, atol=1e-5)


def test_half_precision_states_are_summed_in_double():
    x, y = rows(2, 50, 3, 7, mean=2.0).bfloat16(), rows(2, 50, 2, 8).bfloat16()
    assert_equal(Moments.of(x, y), plain(x.float(), y.float()))
