"""The structured projector and the identity against plain loops over heads and dims, in float64."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kvviz.align.heads import HeadwiseMapProjector, uniform_mixer
from kvviz.align.identity import IdentityProjector

properties = settings(deadline=None, max_examples=40)
size = st.integers(1, 6)
FORMS = list(itertools.product((True, False), (None, 3), (None, "own", "by layer")))


def built(form, H_t=4, H_s=2, D_t=5, D_s=3, seed=0):
    """A projector with random parameters (also the offset, which starts at zero) in float64."""
    share, layers, offset = form
    torch.manual_seed(seed)
    projector = HeadwiseMapProjector(
        H_t,
        H_s,
        D_t,
        D_s,
        share_dim_proj=share,
        num_layers=layers,
        offset=offset is not None,
        offset_layers=3 if offset == "by layer" else None,
    ).double()
    with torch.no_grad():
        for parameter in projector.parameters():
            parameter.copy_(torch.randn_like(parameter))
    return projector


def by_loops(projector, x):
    """y[b, l, h_s, t, d_s] = Σ A[h_s, h_t] P[d_s, d_t] x[b, l, h_t, t, d_t] + offset, one number at a time."""
    x = x.numpy()
    A, P = projector.head_mixer.detach().numpy(), projector.dim_proj.detach().numpy()
    offset = None if projector.offset is None else projector.offset.detach().numpy()
    batch, layers, _, length, _ = x.shape
    y = np.zeros((batch, layers, projector.H_s, length, projector.D_s))
    for b, l, h, t, d in np.ndindex(*y.shape):
        mixer = A if projector.num_layers is None else A[l]
        projection = P if projector.num_layers is None else P[l]
        projection = projection if projector.share_dim_proj else projection[h]
        for h_t in range(projector.H_t):
            for d_t in range(projector.D_t):
                y[b, l, h, t, d] += mixer[h, h_t] * projection[d, d_t] * x[b, l, h_t, t, d_t]
        if offset is not None:
            y[b, l, h, t, d] += (offset if offset.ndim == 2 else offset[l])[h, d]
    return y


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("sizes", [(4, 2, 5, 3), (2, 4, 3, 5), (1, 3, 4, 4)])
def test_matches_plain_loops(form, sizes):
    projector = built(form, *sizes)
    x = torch.randn(2, 3, sizes[0], 4, sizes[2], dtype=torch.float64)
    np.testing.assert_allclose(projector(x).detach().numpy(), by_loops(projector, x), atol=1e-12)


@properties
@given(size, size, size, size, st.sampled_from(FORMS[:6:3] + FORMS[6::3]))
def test_both_orders_of_contraction_agree(H_t, H_s, D_t, D_s, form):
    projector = built(form, H_t, H_s, D_t, D_s)
    x = torch.randn(1, 3, H_t, 2, D_t, dtype=torch.float64)
    heads_first = projector._project_dims(projector._mix_heads(x))
    if projector.share_dim_proj:
        torch.testing.assert_close(projector._mix_heads(projector._project_dims(x)), heads_first)
    torch.testing.assert_close(projector(x), heads_first)


@properties
@given(size, size, size, size)
def test_the_order_taken_needs_fewer_multiplications(H_t, H_s, D_t, D_s):
    projector = HeadwiseMapProjector(H_t, H_s, D_t, D_s)
    heads_first = H_s * H_t * D_t + H_s * D_s * D_t
    dims_first = H_t * D_s * D_t + H_s * H_t * D_s
    assert projector.mix_heads_first() == (heads_first <= dims_first)


@pytest.mark.parametrize("form", FORMS)
def test_dense_is_the_same_map(form):
    projector = built(form)
    x = torch.randn(2, 3, 4, 4, 5, dtype=torch.float64)
    dense = projector.dense().expand(3, -1, -1, -1, -1)
    y = torch.einsum("blhtd,lgehd->blgte", x, dense)
    if projector.offset is not None:
        y = y + projector.offset.expand(3, -1, -1)[None, :, :, None]
    torch.testing.assert_close(projector(x), y)


@properties
@given(st.integers(1, 40), st.integers(1, 40))
def test_uniform_rows_are_even_over_the_reports_range(H_s, H_t):
    mixer = uniform_mixer(H_s, H_t)
    assert mixer.shape == (H_s, H_t)
    for h in range(H_s):
        first, past = int(h * H_t / H_s), int((h + 1) * H_t / H_s)
        expected = np.zeros(H_t)
        if past > first:
            expected[first:past] = 1 / (past - first)
        else:
            expected[first] = 1  # no teacher head of its own: the one its place falls on
        np.testing.assert_allclose(mixer[h].numpy(), expected, atol=1e-7)


@properties
@given(st.integers(1, 40), st.integers(1, 40))
def test_uniform_rows_sum_to_one_and_leave_no_teacher_head_out(H_s, H_t):
    mixer = uniform_mixer(H_s, H_t)
    torch.testing.assert_close(mixer.sum(1), torch.ones(H_s))
    if H_t >= H_s:
        assert (mixer.sum(0) > 0).all()


def test_the_reports_shapes():
    projector = HeadwiseMapProjector(32, 16, 128, 64)
    assert projector(torch.randn(2, 12, 32, 16, 128)).shape == (2, 12, 16, 16, 64)
    assert {name: tuple(p.shape) for name, p in projector.named_parameters()} == {
        "head_mixer": (16, 32),
        "dim_proj": (64, 128),
    }


@pytest.mark.parametrize(
    ("form", "shapes"),
    [
        ((True, None, None), {"head_mixer": (2, 4), "dim_proj": (3, 5)}),
        ((False, None, "own"), {"head_mixer": (2, 4), "dim_proj": (2, 3, 5), "offset": (2, 3)}),
        ((True, 3, "own"), {"head_mixer": (3, 2, 4), "dim_proj": (3, 3, 5), "offset": (3, 2, 3)}),
        ((False, 3, None), {"head_mixer": (3, 2, 4), "dim_proj": (3, 2, 3, 5)}),
        ((True, None, "by layer"), {"head_mixer": (2, 4), "dim_proj": (3, 5), "offset": (3, 2, 3)}),
    ],
)
def test_parameter_shapes(form, shapes):
    assert {name: tuple(p.shape) for name, p in built(form).named_parameters()} == shapes


def test_starts_uniform_or_random_and_without_an_offset():
    uniform = HeadwiseMapProjector(8, 4, 6, 3, num_layers=2, offset=True)
    for layer in range(2):
        torch.testing.assert_close(uniform.head_mixer[layer], uniform_mixer(4, 8))
    assert (uniform.offset == 0).all()
    assert not torch.equal(uniform.dim_proj[0], uniform.dim_proj[1])
    random = HeadwiseMapProjector(8, 4, 6, 3, init_uniform=False)
    assert not torch.allclose(random.head_mixer, uniform_mixer(4, 8))
    # Glorot: uniform within ±√(6 / (in + out)), of one head's matrix and not of all heads together.
    for matrix, bound in ((random.head_mixer, (6 / 12) ** 0.5), (random.dim_proj, (6 / 9) ** 0.5)):
        assert matrix.abs().max() <= bound
        assert matrix.abs().max() > 0.7 * bound


@pytest.mark.parametrize(
    "shape", [(1, 1, 4, 2), (1, 1, 3, 2, 5), (1, 1, 4, 2, 6), (1, 1, 1, 4, 2, 5), (1, 1, 5, 2, 4)]
)
def test_other_shapes_are_refused_by_name(shape):
    with pytest.raises(ValueError, match="4 heads, position, 5 dims"):
        HeadwiseMapProjector(4, 2, 5, 3)(torch.zeros(shape))


@pytest.mark.parametrize("layers", [1, 2, 4])
@pytest.mark.parametrize("options", [{"num_layers": 3}, {"offset": True, "offset_layers": 3}])
def test_a_wrong_number_of_layers_is_refused(layers, options):
    with pytest.raises(ValueError, match=f"each of 3 layers, got {layers}"):
        HeadwiseMapProjector(4, 2, 5, 3, **options)(torch.zeros(1, layers, 4, 1, 5))


@pytest.mark.parametrize("sizes", [(0, 2, 5, 3), (4, 0, 5, 3), (4, 2, -1, 3), (4, 2, 5, 0)])
def test_sizes_below_one_are_refused(sizes):
    with pytest.raises(ValueError, match="at least 1"):
        HeadwiseMapProjector(*sizes)


@pytest.mark.parametrize("form", FORMS)
def test_gradients_reach_every_parameter(form):
    projector = built(form)
    x = torch.randn(2, 3, 4, 4, 5, dtype=torch.float64, requires_grad=True)
    projector(x).square().sum().backward()
    assert (x.grad != 0).any()
    for name, parameter in projector.named_parameters():
        assert parameter.grad is not None, name
        assert (parameter.grad != 0).all(), name


def test_bfloat16_in_bfloat16_out():
    projector = built((False, 3, "own")).float()
    x = torch.randn(2, 3, 4, 4, 5)
    y = projector(x.bfloat16())
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y.float(), projector(x), atol=0.15, rtol=0.05)


@properties
@given(size, size, size, size)
def test_identity_is_group_means_and_the_first_dims(H_t, H_s, D_t, D_s):
    torch.manual_seed(0)
    projector = IdentityProjector(H_t, H_s, D_t, D_s)
    x = torch.randn(2, 2, H_t, 3, D_t)
    y = projector(x)
    assert y.shape == (2, 2, H_s, 3, D_s)
    assert list(projector.parameters()) == []
    for h in range(H_s):
        first = h * H_t // H_s
        past = max((h + 1) * H_t // H_s, first + 1)
        mean = x[:, :, first:past].double().mean(2)
        for d in range(D_s):
            expected = mean[..., d] if d < D_t else torch.zeros_like(mean[..., 0])
            torch.testing.assert_close(y[:, :, h, :, d].double(), expected, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(torch.einsum("blhtd,gehd->blgte", x, projector.dense()), y)


def test_identity_between_equal_shapes_changes_nothing():
    x = torch.randn(1, 2, 4, 3, 5)
    assert torch.equal(IdentityProjector(4, 4, 5, 5)(x), x)


def test_identity_refuses_another_teacher():
    with pytest.raises(ValueError, match="4 heads, position, 5 dims"):
        IdentityProjector(4, 2, 5, 3)(torch.zeros(1, 2, 4, 3, 6))
