"""The aligner: layers → time → heads and dims, against the three stages written out; and the report's own example."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import LlamaConfig

from kvviz.align.aligner import PARTS, MapProjectionAligner, time_warper
from kvviz.align.layers import layer_map
from kvviz.align.time import segment_warp
from kvviz.align.warp import Warp
from kvviz.config import AlignmentConfig
from kvviz.geometry import Geometry
from kvviz.rope import Rope

TEACHER = Geometry(layers=4, heads=4, kv_heads=2, head_dim=6, value_dim=5)
STUDENT = Geometry(layers=2, heads=6, kv_heads=3, head_dim=4, value_dim=3)
MODES = ("structured", "flat", "identity")
MATRIX = [[3.0, 1.0, 0.0, 0.0], [0.0, 0.0, 0.0, 2.0]]
IDS = torch.tensor([[0, 0, 0, 1, 1, 1, 2, 2], [-1, -1, 0, 0, 1, 2, 2, 2]])
TARGET = torch.tensor([[0, 0, 1, 1, 2], [-1, 0, 1, 2, 2]])


def llama(layers, heads, kv_heads, head_dim):
    return LlamaConfig(
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        hidden_size=heads * head_dim,
    )


def states(geometry=TEACHER, batch=2, length=8, seed=0, dtype=torch.float32):
    torch.manual_seed(seed)
    return {
        part: torch.randn(
            batch, geometry.layers, geometry.heads_of(part), length, geometry.dim_of(part), dtype=dtype
        )
        for part in PARTS
    }


def run(aligner, x, *where, **options):
    k, v, q = aligner(x["k"], x["v"], x["q"], *where, **options)
    return {"q": q, "k": k, "v": v}


def by_stages(aligner, x, layers, times):
    """Layers, then time, then the dense map of the projector, each a plain sum over one axis, in float64."""
    x = x.double().numpy()
    batch, _, heads, length, dims = x.shape
    mapped = np.zeros((batch, len(layers), heads, length, dims))
    for student in range(len(layers)):
        for teacher in range(x.shape[1]):
            mapped[:, student] += layers[student][teacher] * x[:, teacher]
    warped = np.zeros((batch, len(layers), heads, times.shape[1], dims))
    for sample in range(batch):
        for to in range(times.shape[1]):
            for since in range(length):
                warped[sample, :, :, to] += times[sample, to, since] * mapped[sample, :, :, since]
    dense = aligner.dense().detach().double().expand(len(layers), -1, -1, -1, -1).numpy()
    offset = getattr(aligner, "offset", None)
    _, student_heads, student_dims, _, _ = dense.shape
    result = np.zeros((batch, len(layers), student_heads, times.shape[1], student_dims))
    for layer in range(len(layers)):
        for head in range(student_heads):
            for h_t in range(heads):
                result[:, layer, head] += warped[:, layer, h_t] @ dense[layer, head, :, h_t].T
            if offset is not None:
                constant = offset if offset.ndim == 2 else offset[layer]
                result[:, layer, head] += constant[head].detach().numpy()
    return result


@pytest.mark.parametrize("as_config", [True, False])
def test_the_reports_example_has_13824_parameters(as_config):
    if as_config:
        teacher, student = llama(24, 32, 32, 64), llama(12, 16, 16, 64)
    else:
        teacher = Geometry(layers=24, heads=32, kv_heads=32, head_dim=64, value_dim=64)
        student = Geometry(layers=12, heads=16, kv_heads=16, head_dim=64, value_dim=64)
    aligner = MapProjectionAligner(teacher, student)
    assert aligner.parameter_count() == 13_824 == 3 * (16 * 32 + 64 * 64)
    assert sum(p.numel() for p in aligner.state_dict().values()) == 13_824


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("strategy", ["uniform", "ratio", "skip", MATRIX])
@pytest.mark.parametrize("share_layers", [True, False])
def test_layers_then_time_then_heads_and_dims(mode, strategy, share_layers):
    aligner = MapProjectionAligner(
        TEACHER, STUDENT, mode, strategy, share_dim_proj=False, share_layers=share_layers, offset=True, seed=3
    )
    with torch.no_grad():
        for parameter in aligner.parameters():
            parameter.copy_(torch.randn_like(parameter))
    x = states()
    got = run(aligner, x, IDS, 5, TARGET)
    layers = layer_map(2, 4, strategy).double().numpy()
    times = segment_warp(IDS, 5, TARGET).matrix().double().numpy()
    for part in PARTS:
        expected = by_stages(aligner.projector(part), x[part], layers, times)
        assert got[part].shape == (2, 2, STUDENT.heads_of(part), 5, STUDENT.dim_of(part))
        np.testing.assert_allclose(got[part].detach().numpy(), expected, atol=2e-5)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("kinds", [(0, 0, 0, 0), (1, 1, 1, 1), (0, 1, 0, 1), (2, 0, 1, 1)])
@pytest.mark.parametrize("part", ["q", "k"])
def test_a_rotation_is_undone_on_the_way(mode, kinds, part):
    """Where layers rotate alike and where they do not: as if it had been undone before anything else, pair by pair."""
    aligner = MapProjectionAligner(
        TEACHER, STUDENT, mode, MATRIX, share_layers=False, offset=True, seed=3
    ).double()
    x = states(dtype=torch.float64)[part]
    length, dims = x.shape[3:]
    pairs = dims // 2
    angle = torch.rand(3, 2, length, pairs) * 6
    cos, sin = angle.cos().repeat(1, 1, 1, 2), torch.cat([-angle.sin(), angle.sin()], dim=-1)
    partner = torch.cat([torch.arange(pairs, 2 * pairs), torch.arange(pairs)])
    rope = Rope(partner, cos, sin, kinds)
    first, second = x[..., :pairs], x[..., pairs:]
    turn = angle.double()[list(kinds)].transpose(0, 1)[:, :, None]
    undone = torch.cat(
        [first * turn.cos() + second * turn.sin(), second * turn.cos() - first * turn.sin()], -1
    )
    warp = segment_warp(IDS, 5, TARGET)
    expected = aligner.carry(part, undone, warp)
    torch.testing.assert_close(aligner.carry(part, x, warp, rope), expected, atol=1e-5, rtol=1e-5)


def test_explicit_rows_are_renormalised():
    aligner = MapProjectionAligner(TEACHER, STUDENT, "identity", MATRIX)
    torch.testing.assert_close(aligner.layer_matrix, torch.tensor([[0.75, 0.25, 0, 0], [0, 0, 0, 1.0]]))


@pytest.mark.parametrize("mode", MODES)
def test_target_length_defaults_to_the_teachers(mode):
    aligner = MapProjectionAligner(TEACHER, STUDENT, mode, seed=0)
    x = states()
    for part, y in run(aligner, x, torch.zeros(2, 8, dtype=torch.long)).items():
        assert y.shape == (2, 2, STUDENT.heads_of(part), 8, STUDENT.dim_of(part))
    # One segment onto as many positions is every position itself.
    same = run(aligner, x, torch.zeros(2, 8, dtype=torch.long), 8)
    for part, y in run(aligner, x, warp=identity_warp(8)).items():
        torch.testing.assert_close(y, same[part])


def identity_warp(length):
    return Warp(torch.arange(length)[None, :, None], torch.ones(1, length, 1), length)


@settings(deadline=None, max_examples=30)
@given(
    st.tuples(*[st.integers(1, 5)] * 5),
    st.tuples(*[st.integers(1, 5)] * 5),
    st.sampled_from(MODES),
    st.sampled_from(["uniform", "ratio", "skip"]),
    st.integers(1, 9),
    st.booleans(),
)
def test_any_two_geometries_fit_together(teacher, student, mode, strategy, length, share):
    teacher, student = (
        Geometry(layers=n, heads=group * kv, kv_heads=kv, head_dim=d, value_dim=v)
        for n, group, kv, d, v in (teacher, student)
    )
    aligner = MapProjectionAligner(teacher, student, mode, strategy, share_layers=share, seed=0)
    for part, y in run(aligner, states(teacher, 1, 4), torch.tensor([[0, 0, 1, 1]]), length).items():
        assert y.shape == (1, student.layers, student.heads_of(part), length, student.dim_of(part))
        assert y.isfinite().all()


def test_grouped_queries_have_maps_of_their_own():
    aligner = MapProjectionAligner(TEACHER, STUDENT)
    shapes = {part: tuple(aligner.projector(part).head_mixer.shape) for part in PARTS}
    assert shapes == {"q": (6, 4), "k": (3, 2), "v": (3, 2)}
    assert tuple(aligner.projector("v").dim_proj.shape) == (3, 5)
    assert tuple(aligner.projector("k").dim_proj.shape) == (4, 6)


@pytest.mark.parametrize("mode", ["structured", "flat"])
@pytest.mark.parametrize("share_layers", [True, False])
@pytest.mark.parametrize("offset", [True, False])
def test_gradients_reach_parameters_and_inputs(mode, share_layers, offset):
    aligner = MapProjectionAligner(TEACHER, STUDENT, mode, share_layers=share_layers, offset=offset, seed=0)
    x = {part: y.requires_grad_() for part, y in states().items()}
    sum(y.square().sum() for y in run(aligner, x, IDS, 5, TARGET).values()).backward()
    for name, parameter in aligner.named_parameters():
        assert (parameter.grad != 0).any(), name
    assert all((y.grad != 0).any() for y in x.values())


@pytest.mark.parametrize("mode", ["structured", "flat"])
@pytest.mark.parametrize("init_uniform", [True, False])
def test_a_seed_gives_the_same_start_and_leaves_the_global_generator_alone(mode, init_uniform):
    def start(seed):
        aligner = MapProjectionAligner(TEACHER, STUDENT, mode, init_uniform=init_uniform, seed=seed)
        return torch.cat([p.flatten() for p in aligner.parameters()])

    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    first = start(1)
    torch.testing.assert_close(torch.rand(3), expected)
    assert torch.equal(first, start(1))
    assert not torch.equal(first, start(2))
    torch.manual_seed(8)
    assert not torch.equal(start(None), start(None))


@pytest.mark.parametrize("mode", MODES)
def test_bfloat16_in_bfloat16_out(mode):
    aligner = MapProjectionAligner(TEACHER, STUDENT, mode, share_layers=False, offset=True, seed=0)
    x = states()
    exact = run(aligner, x, IDS, 5, TARGET)
    for part, y in run(aligner, {p: z.bfloat16() for p, z in x.items()}, IDS, 5, TARGET).items():
        assert y.dtype == torch.bfloat16
        torch.testing.assert_close(y.float(), exact[part], atol=0.08, rtol=0.05)


def test_elastic_form_in_every_layer():
    aligner = MapProjectionAligner(TEACHER, STUDENT, "flat", flat_kind="elastic", seed=0).eval()
    for part, y in run(aligner, states(), IDS, 5).items():
        assert y.shape == (2, 2, STUDENT.heads_of(part), 5, STUDENT.dim_of(part))


def test_what_does_not_fit_is_refused():
    aligner = MapProjectionAligner(TEACHER, STUDENT)
    x = states()
    with pytest.raises(ValueError, match="segment_ids"):
        run(aligner, x)
    with pytest.raises(ValueError, match=r"\[2, 8\], got \[2, 7\]"):
        run(aligner, x, IDS[:, :7])
    with pytest.raises(ValueError, match="T_s must be at least 1"):
        run(aligner, x, IDS, 0)
    with pytest.raises(ValueError, match="4 layers"):
        run(aligner, {part: y[:, :3] for part, y in x.items()}, IDS)
    with pytest.raises(ValueError, match="4 heads, position, 6 dims"):
        aligner(x["k"], x["v"], x["q"][:, :, :3], IDS)
    with pytest.raises(ValueError, match="'diagonal'"):
        MapProjectionAligner(TEACHER, STUDENT, mode="diagonal")
    with pytest.raises(ValueError, match="nearest"):
        MapProjectionAligner(TEACHER, STUDENT, layer_mapping_strategy="nearest")
    with pytest.raises(ValueError, match="2 student × 4 teacher"):
        MapProjectionAligner(TEACHER, STUDENT, layer_mapping_strategy=[[1.0, 0.0]])


def test_a_configuration_makes_the_aligner_it_names():
    config = AlignmentConfig(
        kv_projection_mode="structured",
        init="random",
        share_dim_proj=False,
        layer_mapping_strategy="custom",
        layer_matrix=MATRIX,
        seed=4,
    )
    torch.testing.assert_close(
        MapProjectionAligner.from_config(TEACHER, STUDENT, config).state_dict(),
        MapProjectionAligner(
            TEACHER, STUDENT, "structured", MATRIX, False, False, share_layers=False, offset=True, seed=4
        ).state_dict(),
    )
    assert MapProjectionAligner.from_config(TEACHER, STUDENT, config).layer_matrix[0, 0] == 0.75


def test_report_form_by_configuration():
    config = AlignmentConfig(share_layers=True, offset=False, init="uniform")
    teacher, student = llama(24, 32, 32, 64), llama(12, 16, 16, 64)
    assert MapProjectionAligner.from_config(teacher, student, config).parameter_count() == 13_824


def test_cka_needs_a_measured_matrix():
    config = AlignmentConfig(layer_mapping_strategy="cka")
    with pytest.raises(ValueError, match="cka"):
        MapProjectionAligner.from_config(TEACHER, STUDENT, config)
    matrix = torch.tensor(MATRIX)
    aligner = MapProjectionAligner.from_config(TEACHER, STUDENT, config, layer_matrix=matrix)
    torch.testing.assert_close(aligner.layer_matrix, layer_map(2, 4, MATRIX))


def test_time_options_reach_the_warper():
    config = AlignmentConfig(time_method="area", alpha_map={0: 0.0}, ratio_map={1: 2.0})
    aligner = MapProjectionAligner.from_config(TEACHER, STUDENT, config)
    expected = segment_warp(IDS, 5, None, {1: 2.0}, {0: 0.0}, "area").matrix()
    assert torch.equal(aligner.time_warper.warp(IDS, 5).matrix(), expected)
    assert torch.equal(time_warper(config).warp(IDS, 5).matrix(), expected)


def test_padding_stays_padding_when_no_length_is_asked_for():
    """A padded batch without T_s: each text as if it were alone, nothing stretched over the padding."""
    teacher, student = Geometry(2, 4, 2, 6, 6), Geometry(2, 2, 2, 4, 4)
    aligner = MapProjectionAligner(teacher, student, seed=0)
    k, v, q = (torch.randn(2, 2, heads, 5, 6) for heads in (2, 2, 4))
    ids = torch.tensor([[0, 0, 1, 1, 1], [0, 1, 1, -1, -1]])
    together = aligner(k, v, q, ids)
    alone = aligner(k[1:, ..., :3, :], v[1:, ..., :3, :], q[1:, ..., :3, :], ids[1:, :3])
    for whole, part in zip(together, alone, strict=True):
        torch.testing.assert_close(whole[1:, ..., :3, :], part)
        assert not whole[1, ..., 3:, :].any()
