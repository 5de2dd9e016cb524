"""The flat projector: one matrix over all (head, dim) pairs of a layer, against loops; and its elastic form."""

import itertools

import numpy as np
import pytest
import torch

from kvviz.align.flat import FlatProjector, KVDimensionProjector


def randomised(projector):
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in projector.parameters():
            parameter.copy_(torch.randn_like(parameter))
    return projector.double()


@pytest.mark.parametrize("offset", [True, False])
@pytest.mark.parametrize("shape", [(6,), (2, 6), (2, 3, 4, 6)])
def test_shared_over_layers_takes_any_leading_axes(offset, shape):
    projector = randomised(KVDimensionProjector(6, 4, offset=offset))
    x = torch.randn(shape, dtype=torch.float64)
    weight, constant = projector.weight.detach().numpy(), projector.offset
    expected = np.zeros((*shape[:-1], 4))
    for place in np.ndindex(*shape[:-1]):
        for out in range(4):
            for channel in range(6):
                expected[(*place, out)] += weight[out, channel] * x.numpy()[(*place, channel)]
            expected[(*place, out)] += constant[out].item() if offset else 0
    np.testing.assert_allclose(projector(x).detach().numpy(), expected, atol=1e-12)


@pytest.mark.parametrize(
    ("options", "shapes"),
    [
        ({}, {"weight": (4, 6), "offset": (4,)}),
        ({"offset": False}, {"weight": (4, 6)}),
        ({"num_layers": 3}, {"weight": (3, 4, 6), "offset": (3, 4)}),
        ({"offset_layers": 3}, {"weight": (4, 6), "offset": (3, 4)}),
    ],
)
def test_parameter_shapes(options, shapes):
    projector = KVDimensionProjector(6, 4, **options)
    assert {name: tuple(p.shape) for name, p in projector.named_parameters()} == shapes


@pytest.mark.parametrize(
    ("layers", "offset", "offset_layers"), itertools.product((None, 3), (True, False), (None, 3))
)
def test_five_axes_against_loops(layers, offset, offset_layers):
    H_t, H_s, D_t, D_s = 4, 2, 3, 5
    projector = randomised(
        FlatProjector(H_t, H_s, D_t, D_s, num_layers=layers, offset=offset, offset_layers=offset_layers)
    )
    x = torch.randn(2, 3, H_t, 4, D_t, dtype=torch.float64)
    weight = projector.projector.weight.detach().expand(3, -1, -1).numpy()
    constant = projector.projector.offset
    constant = np.zeros((3, 10)) if constant is None else constant.detach().expand(3, -1).numpy()
    expected = np.zeros((2, 3, H_s, 4, D_s))
    for b, l, h, t, d in np.ndindex(*expected.shape):
        out = h * D_s + d
        expected[b, l, h, t, d] = constant[l, out] + sum(
            weight[l, out, h_t * D_t + d_t] * x[b, l, h_t, t, d_t].item()
            for h_t in range(H_t)
            for d_t in range(D_t)
        )
    np.testing.assert_allclose(projector(x).detach().numpy(), expected, atol=1e-12)
    dense = projector.dense().expand(3, -1, -1, -1, -1)
    moved = torch.einsum("blhtd,lgehd->blgte", x, dense)
    if projector.offset is not None:
        moved = moved + projector.offset.expand(3, -1, -1)[None, :, :, None]
    torch.testing.assert_close(moved, projector(x))


def test_elastic_is_norm_linear_silu_dropout_linear():
    projector = randomised(KVDimensionProjector(6, 4, kind="elastic")).eval()
    x = torch.randn(2, 3, 6, dtype=torch.float64)
    norm, first, _, _, second = projector.net
    z = (x - x.mean(-1, keepdim=True)) / (x.var(-1, unbiased=False, keepdim=True) + norm.eps).sqrt()
    z = z * norm.weight + norm.bias
    z = z @ first.weight.T + first.bias
    z = z / (1 + (-z).exp())
    torch.testing.assert_close(projector(x), z @ second.weight.T + second.bias)


def test_elastic_drops_out_in_training_only():
    torch.manual_seed(0)
    projector = KVDimensionProjector(32, 16, kind="elastic", dropout=0.5)
    x = torch.randn(4, 32)
    assert not torch.equal(projector(x), projector(x))
    projector.eval()
    assert torch.equal(projector(x), projector(x))


def test_elastic_over_five_axes():
    projector = FlatProjector(4, 2, 3, 5, kind="elastic").eval()
    x = torch.randn(2, 3, 4, 6, 3)
    y = projector(x)
    assert y.shape == (2, 3, 2, 6, 5)
    row = x[1, 2, :, 3].reshape(-1)
    torch.testing.assert_close(y[1, 2, :, 3].reshape(-1), projector.projector(row))
    assert projector.offset is None
    with pytest.raises(ValueError, match="not linear"):
        projector.dense()


def test_wrong_shapes_and_kinds_are_refused():
    with pytest.raises(ValueError, match="6 \\(head, dim\\) pairs, got 5"):
        KVDimensionProjector(6, 4)(torch.zeros(2, 5))
    for shape in [(2, 6), (1, 2, 4, 6), (3, 4, 6)]:
        with pytest.raises(ValueError, match="3 layers"):
            KVDimensionProjector(6, 4, num_layers=3)(torch.zeros(shape))
    with pytest.raises(ValueError, match="3 layers"):
        KVDimensionProjector(6, 4, offset_layers=3)(torch.zeros(1, 2, 4, 6))
    with pytest.raises(ValueError, match="'cubic'"):
        KVDimensionProjector(6, 4, kind="cubic")
    with pytest.raises(ValueError, match="shared over layers"):
        KVDimensionProjector(6, 4, kind="elastic", num_layers=3)


@pytest.mark.parametrize("sizes", [(0, 4), (6, 0)])
def test_sizes_below_one_are_refused(sizes):
    with pytest.raises(ValueError, match="at least 1"):
        KVDimensionProjector(*sizes)


def test_five_axes_refuses_another_layout():
    # 2 heads of 6 dims have as many pairs as 4 of 3: only the axes tell them apart.
    with pytest.raises(ValueError, match="4 heads, position, 3 dims"):
        FlatProjector(4, 2, 3, 5)(torch.zeros(1, 2, 2, 7, 6))


@pytest.mark.parametrize("kind", ["linear", "elastic"])
def test_gradients_reach_every_parameter(kind):
    torch.manual_seed(0)
    projector = FlatProjector(4, 2, 3, 5, kind=kind)
    projector(torch.randn(2, 3, 4, 6, 3)).square().sum().backward()
    assert all((p.grad != 0).any() for p in projector.parameters())


@pytest.mark.parametrize(
    "options", [{"kind": "linear"}, {"kind": "linear", "num_layers": 3}, {"kind": "elastic"}]
)
def test_bfloat16_in_bfloat16_out(options):
    torch.manual_seed(0)
    projector = FlatProjector(4, 2, 3, 5, **options).eval()
    x = torch.randn(2, 3, 4, 6, 3)
    y = projector(x.bfloat16())
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y.float(), projector(x), atol=0.15, rtol=0.05)
