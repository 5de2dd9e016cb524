"""Fits against the normal equations and planted maps; scores against the residuals of the samples themselves."""

import numpy as np
import pytest
import torch

from kvviz.align.aligner import PARTS, MapProjectionAligner
from kvviz.align.fit import RIDGES, centred, fit_aligner, kronecker, ridge, score, score_projector
from kvviz.align.moments import Moments, SplitMoments
from kvviz.geometry import Geometry

TEACHER = Geometry(layers=2, heads=4, kv_heads=4, head_dim=6, value_dim=6)
STUDENT = Geometry(layers=2, heads=3, kv_heads=3, head_dim=5, value_dim=5)
N, M = 24, 15


def teacher_states(layers, count, seed, width=N):
    """Correlated channels of different sizes around large means."""
    draw = torch.Generator().manual_seed(1000 + width)
    mix = torch.randn(layers, width, width, generator=draw) / width**0.5 + torch.eye(width)
    mean = 10 * torch.randn(layers, 1, width, generator=draw)
    draw.manual_seed(seed)
    return torch.randn(layers, count, width, generator=draw) @ mix + mean


def linear_student(x, weight, noise, seed, mean=7.0):
    draw = torch.Generator().manual_seed(seed)
    y = x @ weight.mT + mean
    return y + noise * torch.randn(y.shape, generator=draw)


def planted(share, layers=2, seed=0):
    """A ⊗ P for each layer, `[layer, m, n]`."""
    draw = torch.Generator().manual_seed(seed)
    A = torch.randn(layers, 3, 4, generator=draw)
    P = torch.randn(layers, 1 if share else 3, 5, 6, generator=draw).expand(-1, 3, -1, -1)
    return torch.einsum("lgh,lged->lgehd", A, P).reshape(layers, M, N)


def splits(weight, noise, counts=(4000, 1000, 4000), mean=7.0):
    data = []
    for index, count in enumerate(counts):
        x = teacher_states(2, count, seed=index)
        data.append((x, linear_student(x, weight, noise, 50 + index, mean)))
    return data, SplitMoments(*(Moments.of(x, y) for x, y in data))


def aligner(mode="structured", share=True, share_layers=False, offset=True):
    return MapProjectionAligner(
        TEACHER, STUDENT, mode, share_dim_proj=share, share_layers=share_layers, offset=offset, seed=0
    )


def apply(projector, x):
    """A projector on rows `[layer, position, n]`."""
    five = x.unflatten(-1, (4, 6)).permute(0, 2, 1, 3)[None]
    return projector(five)[0].permute(0, 2, 1, 3).flatten(2).detach()


def fitted(moments, **form):
    made = aligner(**form)
    return made, fit_aligner(made, dict.fromkeys(PARTS, moments))


@pytest.mark.parametrize("strength", [1e-6, 1e-2, 1.0])
@pytest.mark.parametrize("offset", [True, False])
def test_ridge_solves_the_normal_equations(strength, offset):
    data, _ = splits(torch.randn(2, M, N), 0.5)
    x, y = (z.double() for z in data[0])
    count = torch.tensor(float(x.shape[1]), dtype=torch.float64)
    # Summed in float64 throughout, so that the solution is compared and not the sums.
    moments = Moments(count, x.sum(1), y.sum(1), x.mT @ x, x.mT @ y, y.square().sum(1))
    got = ridge(*centred(moments, offset), strength).numpy()
    x, y = x.numpy(), y.numpy()
    for layer in range(2):
        a, b = x[layer], y[layer]
        if offset:
            a, b = a - a.mean(0), b - b.mean(0)
        # min ‖b − a Wᵀ‖² + λ s N ‖W‖² as one least-squares problem with extra rows.
        scale = np.sqrt(strength * (a**2).mean() * len(a))
        stacked = np.concatenate([a, scale * np.eye(N)])
        expected, *_ = np.linalg.lstsq(stacked, np.concatenate([b, np.zeros((N, M))]), rcond=None)
        np.testing.assert_allclose(got[layer], expected.T, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("share", [True, False])
def test_kronecker_recovers_a_planted_map_to_its_noise(share):
    noise = 0.5
    data, moments = splits(planted(share), noise)
    made, report = fitted(moments, share=share)
    x, y = data[2]
    error = (apply(made.projector("k"), x) - y).double().square().mean()
    assert noise**2 * 0.98 < error < noise**2 * 1.02
    for part in PARTS:
        residual = report.scores[part].total_error * y.double().square().mean()
        torch.testing.assert_close(residual, error, rtol=1e-3, atol=0)


@pytest.mark.parametrize("share", [True, False])
@pytest.mark.parametrize("share_layers", [True, False])
def test_a_planted_map_without_noise_is_found_exactly(share, share_layers):
    weight = planted(share, layers=1).expand(2, -1, -1) if share_layers else planted(share)
    _, moments = splits(weight, 0.0)
    made, report = fitted(moments, share=share, share_layers=share_layers)
    dense = made.projector("v").dense().reshape(-1, M, N)
    torch.testing.assert_close(dense.expand(2, -1, -1), weight, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(
        made.projector("v").offset.flatten(1), torch.full((2, M), 7.0), rtol=1e-2, atol=1e-2
    )
    assert report.scores["v"].total_r2 > 1 - 1e-6


def test_order_of_the_forms_on_held_out_data():
    """Any linear relation: a flat map can hold it, a Kronecker product only in part, a shared one in less."""
    torch.manual_seed(2)
    _, moments = splits(torch.randn(2, M, N) / N**0.5, 0.05)
    r2 = {}
    for name, form in {
        "flat": {"mode": "flat"},
        "per head": {"share": False},
        "shared": {"share": True},
        "identity": {"mode": "identity"},
        "one for all layers": {"share": True, "share_layers": True},
        "flat for all layers": {"mode": "flat", "share_layers": True},
    }.items():
        _, report = fitted(moments, **form)
        r2[name] = report.scores["k"].total_r2
    assert r2["flat"] > 0.99
    assert r2["flat"] > r2["per head"] > r2["shared"] > r2["identity"]
    assert r2["shared"] > r2["one for all layers"]
    assert r2["flat"] > r2["flat for all layers"]


def kronecker_by_loops(x, y, strength, share, start, sweeps=200):
    """Alternating least squares on the samples themselves, one lstsq after another, for one layer."""
    x = x.reshape(len(x), 4, 6)
    y = y.reshape(len(y), 3, 5)
    count = len(x)
    scale = strength * (x**2).mean() * count
    groups = [range(3)] if share else [[0], [1], [2]]
    total = 0.0
    for group in groups:
        P = start[group[0]].copy()
        for _ in range(sweeps):
            features = np.einsum("nhd,ed->neh", x, P).reshape(-1, 4)
            gram = features.T @ features + scale * (P**2).sum() * np.eye(4)
            A = np.stack([np.linalg.solve(gram, features.T @ y[:, out].reshape(-1)) for out in group])
            mixed = [np.einsum("nhd,h->nd", x, row) for row in A]
            gram = sum(z.T @ z for z in mixed) + scale * (A**2).sum() * np.eye(6)
            P = np.linalg.solve(gram, sum(z.T @ y[:, out] for z, out in zip(mixed, group, strict=True))).T
        total += scale * (A**2).sum() * (P**2).sum()
        for row, out in zip(A, group, strict=True):
            total += ((np.einsum("nhd,h,ed->ne", x, row, P) - y[:, out]) ** 2).sum()
    return total


@pytest.mark.parametrize("share", [True, False])
@pytest.mark.parametrize("strength", [1e-6, 1e-1])
def test_alternation_reaches_the_best_of_many_starts(share, strength):
    torch.manual_seed(3)
    x = teacher_states(1, 400, seed=0)
    y = linear_student(x, torch.randn(1, M, N) / N**0.5, 0.5, 1)
    moments = Moments.of(x, y)
    xx, xy = centred(moments, offset=True)
    A, P = kronecker(
        xx.reshape(1, 4, 6, 4, 6),
        xy.reshape(1, 4, 6, 3, 5),
        torch.tensor([strength], dtype=torch.float64),
        share,
    )
    weight = torch.einsum("gh,ged->gehd", A[0, 0], P[0, 0].expand(3, -1, -1)).reshape(M, N)
    a, b = (z[0].double() - z[0].double().mean(0) for z in (x, y))
    penalty = strength * a.square().mean() * len(a)
    reached = (b - a @ weight.T).square().sum() + penalty * weight.square().sum()
    draw = np.random.default_rng(0)
    best = min(
        kronecker_by_loops(a.numpy(), b.numpy(), strength, share, draw.normal(size=(3, 5, 6)), sweeps=40)
        for _ in range(5)
    )
    assert reached <= best * 1.01


@pytest.mark.parametrize("share", [True, False])
def test_mixers_carry_no_scale(share):
    _, moments = splits(planted(share), 0.5)
    made, _ = fitted(moments, share=share)
    mixer = made.projector("k").head_mixer.detach()
    torch.testing.assert_close(mixer.abs().sum(-1).mean(-1), torch.ones(2))
    totals = mixer.sum((-2, -1)) if share else mixer.sum(-1)
    assert (totals >= 0).all()


@pytest.mark.parametrize("offset", [True, False])
def test_score_is_the_residual_of_the_samples(offset):
    torch.manual_seed(4)
    x = teacher_states(2, 300, seed=0)
    y = linear_student(x, torch.randn(2, M, N), 1.0, 1)
    weight = torch.randn(2, M, N, dtype=torch.float64)
    bias = torch.randn(2, M, dtype=torch.float64) if offset else None
    got = score(Moments.of(x, y), weight, bias, heads=3)
    x, y = x.double().numpy(), y.double().numpy()
    errors, variances, powers = (np.zeros((2, 3)) for _ in range(3))
    for layer in range(2):
        for head in range(3):
            own = slice(head * 5, head * 5 + 5)
            for position in range(300):
                predicted = weight[layer, own].numpy() @ x[layer, position]
                predicted = predicted + (bias[layer, own].numpy() if offset else 0)
                errors[layer, head] += ((y[layer, position, own] - predicted) ** 2).sum()
                powers[layer, head] += (y[layer, position, own] ** 2).sum()
            variances[layer, head] = ((y[layer, :, own] - y[layer, :, own].mean(0)) ** 2).sum()
    np.testing.assert_allclose(got.error.numpy(), errors / powers, rtol=1e-6)
    np.testing.assert_allclose(got.r2.numpy(), 1 - errors / variances, rtol=1e-5)
    np.testing.assert_allclose(got.total_error, errors.sum() / powers.sum(), rtol=1e-6)
    np.testing.assert_allclose(got.total_r2, 1 - errors.sum() / variances.sum(), rtol=1e-5)


@pytest.mark.parametrize("mode", ["structured", "flat", "identity"])
@pytest.mark.parametrize("share_layers", [True, False])
@pytest.mark.parametrize("offset", [True, False])
def test_a_projectors_score_is_that_of_what_it_returns(mode, share_layers, offset):
    data, moments = splits(torch.randn(2, M, N) / 5, 0.5, (300, 100, 200))
    made, report = fitted(moments, mode=mode, share_layers=share_layers, offset=offset)
    x, y = data[2]
    residual = (apply(made.projector("q"), x) - y).double().square().sum()
    expected = float(residual / y.double().square().sum())
    assert report.scores["q"].total_error == pytest.approx(expected, rel=1e-3)
    again = score_projector(made.projector("q"), moments.report)
    assert again.total_r2 == report.scores["q"].total_r2


@pytest.mark.parametrize("mode", ["structured", "flat"])
@pytest.mark.parametrize("share_layers", [True, False])
def test_the_offset_is_what_the_means_leave(mode, share_layers):
    data, moments = splits(planted(True), 0.5, (400, 100, 100))
    made, _ = fitted(moments, mode=mode, share_layers=share_layers)
    x, y = data[0]
    # On the texts fitted to, residuals of every layer and channel average to zero.
    left = (apply(made.projector("k"), x) - y).double().mean(1)
    assert left.abs().max() < 1e-4
    assert made.projector("k").offset.shape == (2, 3, 5)


def test_without_an_offset_large_means_cost_accuracy():
    _, moments = splits(planted(True), 0.5, mean=50.0)
    _, with_offset = fitted(moments)
    made, without = fitted(moments, offset=False)
    assert made.projector("k").offset is None
    assert with_offset.scores["k"].total_r2 > without.scores["k"].total_r2


def test_one_flat_map_for_all_layers_solves_the_pooled_equations():
    data, moments = splits(torch.randn(2, M, N), 0.5)
    made = aligner("flat", share_layers=True)
    fit_aligner(made, dict.fromkeys(PARTS, moments), ridges=(1e-3,))
    x, y = (z.double() for z in data[0])
    a, b = ((z - z.mean(1, keepdim=True)).flatten(0, 1).numpy() for z in (x, y))
    gram = a.T @ a + 1e-3 * (a**2).mean() * len(a) * np.eye(N)
    expected = np.linalg.solve(gram, a.T @ b).T
    np.testing.assert_allclose(
        made.projector("k").projector.weight.detach().numpy(), expected, rtol=1e-3, atol=1e-4
    )


@pytest.mark.parametrize("mode", ["structured", "flat"])
@pytest.mark.parametrize("share_layers", [True, False])
def test_the_select_split_chooses_the_regulariser(mode, share_layers):
    torch.manual_seed(5)
    # Few and noisy texts to fit on, so that the choice matters.
    _, moments = splits(torch.randn(2, M, N) / N**0.5, 3.0, (60, 400, 400))
    _, report = fitted(moments, mode=mode, share_layers=share_layers)
    by_hand = []
    for strength in RIDGES:
        made = aligner(mode, share_layers=share_layers)
        fit_aligner(made, dict.fromkeys(PARTS, moments), ridges=(strength,))
        by_hand.append(score_projector(made.projector("k"), moments.select).r2.mean(1))
    r2 = torch.stack(by_hand)
    best = [int(r2.mean(1).argmax())] if share_layers else r2.argmax(0).tolist()
    assert report.ridge["k"] == [RIDGES[index] for index in best]
    assert max(report.ridge["k"]) > RIDGES[0]


def test_the_report_split_is_not_looked_at():
    _, moments = splits(torch.randn(2, M, N), 3.0, (60, 100, 100))
    other = SplitMoments(moments.fit, moments.select, moments.fit)
    torch.testing.assert_close(fitted(moments)[0].state_dict(), fitted(other)[0].state_dict())


def blank(moments, x_channels=(), y_channels=()):
    """The same moments of states in which some channels are zero throughout."""
    keep_x, keep_y = torch.ones(N, dtype=torch.float64), torch.ones(M, dtype=torch.float64)
    keep_x[list(x_channels)] = 0
    keep_y[list(y_channels)] = 0
    return Moments(
        moments.count,
        moments.x_sum * keep_x,
        moments.y_sum * keep_y,
        moments.xx * keep_x[:, None] * keep_x,
        moments.xy * keep_x[:, None] * keep_y,
        moments.yy * keep_y,
    )


@pytest.mark.parametrize("form", [{"mode": "flat"}, {"share": True}, {"share": False}])
def test_dead_teacher_channels_do_no_harm(form):
    # A whole teacher head and two channels more; the student never depended on them.
    dead = [*range(6, 12), 0, 17]
    alive = torch.ones(N)
    alive[dead] = 0
    weight = (torch.randn(2, M, N) / N**0.5) * alive
    _, moments = splits(weight, 0.1)
    blanked = SplitMoments(*(blank(m, dead) for m in (moments.fit, moments.select, moments.report)))
    made, report = fitted(blanked, **form)
    assert all(p.isfinite().all() for p in made.parameters())
    assert report.scores["k"].r2.isfinite().all()
    if form == {"mode": "flat"}:
        assert report.scores["k"].total_r2 > 0.98
        torch.testing.assert_close(
            made.projector("k").projector.weight[..., dead], torch.zeros(2, M, len(dead))
        )


@pytest.mark.parametrize("form", [{"mode": "flat"}, {"share": True}, {"share": False}])
def test_a_student_head_that_never_varies_has_no_r2_and_decides_nothing(form):
    torch.manual_seed(6)
    data, moments = splits(torch.randn(2, M, N) / N**0.5, 3.0, (60, 400, 400))
    own = slice(5, 10)
    constant = []
    for x, y in data:
        y = y.clone()
        y[..., own] = 0.1
        constant.append(Moments.of(x, y))
    made, report = fitted(SplitMoments(*constant), **form)
    assert report.scores["k"].r2[:, 1].isnan().all()
    assert report.scores["k"].r2[:, [0, 2]].isfinite().all()
    assert np.isfinite(report.scores["k"].total_r2)
    assert max(report.ridge["k"]) > RIDGES[0]
    assert all(p.isfinite().all() for p in made.parameters())
    zero = SplitMoments(
        *(blank(m, y_channels=range(5, 10)) for m in (moments.fit, moments.select, moments.report))
    )
    _, report = fitted(zero, **form)
    assert report.scores["k"].error[:, 1].isnan().all()
    assert report.scores["k"].error[:, [0, 2]].isfinite().all()


def test_nothing_at_all_fits_to_nothing():
    _, moments = splits(torch.randn(2, M, N), 1.0, (60, 40, 40))
    empty = SplitMoments(
        *(blank(m, range(N), range(M)) for m in (moments.fit, moments.select, moments.report))
    )
    for form in ({"mode": "flat"}, {"share": True}, {"share": False}):
        made, report = fitted(empty, **form)
        assert all(p.isfinite().all() for p in made.parameters())
        assert np.isnan(report.scores["k"].total_r2)


@pytest.mark.parametrize("form", [{"mode": "flat"}, {"share": True}, {"share": False}])
def test_fewer_positions_than_channels(form):
    _, moments = splits(planted(True), 0.5, (10, 300, 300))
    made, report = fitted(moments, **form)
    assert all(p.isfinite().all() for p in made.parameters())
    # Better than the student's mean, or the regulariser is no use.
    assert report.scores["k"].total_r2 > 0


def test_identity_is_scored_and_not_fitted():
    _, moments = splits(planted(True), 0.5, (60, 40, 40))
    _, report = fitted(moments, mode="identity")
    assert report.ridge == {}
    assert set(report.scores) == set(PARTS)


def test_elastic_has_no_closed_form():
    _, moments = splits(planted(True), 0.5, (60, 40, 40))
    made = MapProjectionAligner(TEACHER, STUDENT, "flat", flat_kind="elastic")
    with pytest.raises(ValueError, match="no closed form"):
        fit_aligner(made, dict.fromkeys(PARTS, moments))
