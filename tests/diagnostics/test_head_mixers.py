"""What a mixer is said to do, against entropies and norms worked out by hand."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kvviz.align.flat import FlatProjector
from kvviz.align.heads import HeadwiseMapProjector
from kvviz.align.identity import IdentityProjector
from kvviz.diagnostics.heads import describe_mixer, head_weights, normalised


def structured(weights, **form):
    weights = torch.tensor(weights)
    projector = HeadwiseMapProjector(weights.shape[-1], weights.shape[-2], 5, 3, **form)
    with torch.no_grad():
        projector.head_mixer.copy_(weights)
    return projector


@settings(deadline=None, max_examples=40)
@given(st.lists(st.lists(st.floats(-3, 3, width=32), min_size=4, max_size=4), min_size=1, max_size=5))
def test_effective_heads_is_exp_of_the_entropy_of_the_magnitudes(rows):
    mixer = describe_mixer(structured(rows), 0)
    for head, row in enumerate(rows):
        total = sum(abs(weight) for weight in row)
        if total == 0:
            assert mixer.effective[head] == 0
            assert head in mixer.dead_student
            continue
        entropy = -sum(abs(w) / total * math.log(abs(w) / total) for w in row if abs(w) / total > 1e-30)
        assert float(mixer.effective[head]) == pytest.approx(math.exp(entropy), rel=1e-3)
        assert 1 - 1e-4 <= mixer.effective[head] <= 4 + 1e-4
        assert float(mixer.row_sums[head]) == pytest.approx(sum(row), abs=1e-5)
        assert head not in mixer.dead_student


def test_even_reading_counts_the_heads_read():
    mixer = describe_mixer(HeadwiseMapProjector(8, 2, 5, 3), 0)
    torch.testing.assert_close(mixer.effective, torch.tensor([4.0, 4.0]))
    torch.testing.assert_close(mixer.row_sums, torch.ones(2))
    assert mixer.dead_teacher == []


@pytest.mark.parametrize("teacher_heads", [4, 64, 128])
def test_no_head_of_an_even_mixer_is_dead(teacher_heads):
    """One KV head that reads 64 teacher heads gives each 1.6%: little, but what everybody gets."""
    assert describe_mixer(HeadwiseMapProjector(teacher_heads, 1, 5, 3), 0).dead_teacher == []
    assert describe_mixer(IdentityProjector(teacher_heads, 1, 5, 3), 0).dead_teacher == []


def test_dead_heads():
    # Head 1 is read by nobody, head 3 hardly; student head 2 reads nobody, and that kills no teacher head.
    mixer = describe_mixer(
        structured([[1.0, 0.0, 0.5, 0.01], [0.0, 0.0, -2.0, 0.03], [0.0, 0.0, 0.0, 0.0]]), 0
    )
    assert mixer.dead_teacher == [1, 3]
    assert mixer.dead_student == [2]
    # Read by one student head is enough.
    assert describe_mixer(structured([[1.0, 0.0], [0.0, 0.001]]), 0).dead_teacher == []


def test_normalised_leaves_a_row_of_zeros():
    weights = torch.tensor([[1.0, -3.0], [0.0, 0.0]])
    torch.testing.assert_close(normalised(weights), torch.tensor([[0.25, 0.75], [0.0, 0.0]]))


@pytest.mark.parametrize("share", [True, False])
@pytest.mark.parametrize("layers", [None, 2])
def test_each_layer_and_head_has_its_own_singular_values(share, layers):
    torch.manual_seed(0)
    projector = HeadwiseMapProjector(4, 3, 6, 5, share, False, num_layers=layers)
    for layer in range(2):
        mixer = describe_mixer(projector, layer)
        P = projector.dim_proj.detach().double().numpy()
        P = P if layers is None else P[layer]
        matrices = {"all heads": P} if share else {f"head {head}": P[head] for head in range(3)}
        assert list(mixer.singular_values) == list(matrices)
        for name, matrix in matrices.items():
            expected = np.sqrt(np.linalg.eigvalsh(matrix @ matrix.T)[::-1].clip(0))
            np.testing.assert_allclose(mixer.singular_values[name].numpy(), expected, atol=1e-5)
        A = projector.head_mixer.detach()
        torch.testing.assert_close(mixer.weights, A if layers is None else A[layer])


@pytest.mark.parametrize("layers", [None, 2])
def test_flat_heads_weigh_as_much_as_their_blocks(layers):
    torch.manual_seed(0)
    projector = FlatProjector(4, 3, 6, 5, num_layers=layers)
    for layer in range(2):
        weight = projector.projector.weight.detach().double().numpy()
        weight = weight if layers is None else weight[layer]
        expected = np.zeros((3, 4))
        for h_s in range(3):
            for h_t in range(4):
                block = weight[h_s * 5 : h_s * 5 + 5, h_t * 6 : h_t * 6 + 6]
                expected[h_s, h_t] = math.sqrt((block**2).sum())
        np.testing.assert_allclose(head_weights(projector, layer).numpy(), expected, rtol=1e-5)
        values = describe_mixer(projector, layer).singular_values["whole map"]
        np.testing.assert_allclose(values.numpy(), np.linalg.svd(weight, compute_uv=False), rtol=1e-4)


def test_identity_keeps_what_it_reads():
    mixer = describe_mixer(IdentityProjector(4, 2, 6, 3), 1)
    torch.testing.assert_close(mixer.weights, torch.tensor([[0.5, 0.5, 0, 0], [0, 0, 0.5, 0.5]]))
    torch.testing.assert_close(mixer.singular_values["all heads"], torch.ones(3))


def test_an_elastic_map_has_no_mixer():
    with pytest.raises(ValueError, match="not linear"):
        describe_mixer(FlatProjector(4, 3, 6, 5, kind="elastic"), 0)
