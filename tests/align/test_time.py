"""The time warp against plain-loop references in float64, and what holds for every warp."""

import math
import time
from itertools import groupby

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from kvviz.align.time import TimeWarper, segment_lengths, segment_warp, text_warp

properties = settings(deadline=None, max_examples=80)
METHODS = ("linear", "area")


@st.composite
def id_rows(draw, batch, length, padding=True):
    """Ids that may repeat and interleave, padded left or right, with at least one token a row."""
    rows = []
    for _ in range(batch):
        row = draw(st.lists(st.integers(0, 4), min_size=length, max_size=length))
        if draw(st.booleans()):
            row.sort()
        cut = draw(st.integers(0, length - 1)) if padding else 0
        row = [-1] * cut + row[cut:] if draw(st.booleans()) else row[: length - cut] + [-1] * cut
        rows.append(row)
    return torch.tensor(rows)


@st.composite
def warps(draw, with_target=None):
    batch, T_t, T_s = draw(st.integers(1, 3)), draw(st.integers(1, 24)), draw(st.integers(1, 48))
    source = draw(id_rows(batch, T_t))
    targeted = draw(st.booleans()) if with_target is None else with_target
    target = draw(id_rows(batch, T_s)) if targeted else None
    method = draw(st.sampled_from(METHODS))
    alphas = draw(st.dictionaries(st.integers(0, 4), st.floats(0, 1)))
    ratios = draw(st.dictionaries(st.integers(0, 4), st.floats(0.1, 4)))
    return source, T_s, target, ratios, alphas, method


def read(row_length, n, m, j, alpha, method):
    """What student position j of m reads of n teacher positions: a dense row, by the definition."""
    row = np.zeros(row_length)
    if method == "area" and m < n:
        for p in range(n):
            row[p] = max(0.0, min((j + 1) * n / m, p + 1) - max(j * n / m, p)) * m / n
        return row
    p = min(max((j + 0.5) * n / m - 0.5, 0.0), n - 1.0)
    low = min(math.floor(p + 1e-12), n - 1)
    fraction = max(p - low, 0.0)
    row[low] += alpha * (1 - fraction)
    if fraction > 0:
        row[low + 1] += alpha * fraction
    row[min((2 * j + 1) * n // (2 * m), n - 1)] += 1 - alpha
    return row


def runs_of(pairs):
    """[(position, id), …] in reading order → [(id, positions), …], one for each run."""
    return [(key, [p for p, _ in group]) for key, group in groupby(pairs, key=lambda pair: pair[1])]


def reference(source, T_s, target, ratios, alphas, method):
    """W [B, T_s, T_t] in float64, one loop a choice."""
    batch, T_t = source.shape
    dense = np.zeros((batch, T_s, T_t))
    for b in range(batch):
        tokens = [(p, int(i)) for p, i in enumerate(source[b]) if i >= 0]
        theirs = runs_of(tokens)
        if target is None:
            lengths = segment_lengths(
                [len(r) for _, r in theirs], T_s, [ratios.get(i, 1.0) for i, _ in theirs]
            )
            plan, s = [], 0
            for (key, positions), length in zip(theirs, lengths, strict=True):
                plan += [(s + j, key, positions, j, length) for j in range(length)]
                s += length
        else:
            slots = [(p, int(i)) for p, i in enumerate(target[b]) if i >= 0]
            ours = runs_of(slots)
            plan = []
            for rank, (s, key) in enumerate(slots):
                same_t = [r for i, r in theirs if i == key]
                same_s = [r for i, r in ours if i == key]
                if not same_t:
                    plan.append((s, key, [p for p, _ in tokens], rank, len(slots)))
                elif len(same_t) == len(same_s):
                    k = next(k for k, r in enumerate(same_s) if s in r)
                    plan.append((s, key, same_t[k], same_s[k].index(s), len(same_s[k])))
                else:
                    everything = [p for r in same_s for p in r]
                    plan.append(
                        (s, key, [p for r in same_t for p in r], everything.index(s), len(everything))
                    )
        for s, key, positions, j, length in plan:
            n = len(positions)
            dense[b, s, positions] = read(n, n, length, j, alphas.get(key, 1.0), method)
    return dense


# --- lengths --------------------------------------------------------------------------------------


@properties
@given(
    st.lists(st.tuples(st.integers(0, 300), st.floats(0.01, 100)), min_size=1, max_size=12),
    st.integers(0, 500),
)
def test_lengths_sum_to_the_target_and_stay_within_one_of_their_share(segments, T_s):
    lengths, ratios = [n for n, _ in segments], [r for _, r in segments]
    if not sum(lengths):
        lengths[0] = 1
    result = segment_lengths(lengths, T_s, ratios)
    total = sum(n * r for n, r in zip(lengths, ratios, strict=True))
    assert sum(result) == T_s
    for got, n, r in zip(result, lengths, ratios, strict=True):
        assert got >= 0
        assert abs(got - T_s * n * r / total) < 1 + 1e-6


def test_lengths_by_largest_remainder():
    assert segment_lengths([10, 20, 30], 30) == [5, 10, 15]
    assert segment_lengths([1, 1, 1], 2) == [1, 1, 0]  # ties go to the earlier segment
    assert segment_lengths([10, 10], 9, [2, 1]) == [6, 3]
    assert segment_lengths([5, 5], 7, [0, 1]) == [0, 7]
    assert segment_lengths([1, 2], 3, [1e-300, 1e-300]) == [1, 2]
    assert segment_lengths([1, 2], 3, [1e300, 1e300]) == [1, 2]
    assert segment_lengths([], 0) == []


@pytest.mark.parametrize(
    ("lengths", "T_s", "ratios"),
    [
        ([1], -1, None),
        ([-1], 1, None),
        ([1], 1, [-1.0]),
        ([1], 1, [math.nan]),
        ([1], 1, [math.inf]),
        ([1, 2], 1, [1.0]),
    ]
    + [([1, 2], 3, [0.0, 0.0]), ([0], 3, None), ([], 3, None)],
)
def test_lengths_that_make_no_sense(lengths, T_s, ratios):
    with pytest.raises(ValueError):
        segment_lengths(lengths, T_s, ratios)


# --- the segment warp -----------------------------------------------------------------------------


@properties
@given(warps())
def test_warp_is_its_definition(case):
    source, T_s, target, ratios, alphas, method = case
    warp = segment_warp(source, T_s, target, ratios, alphas, method)
    np.testing.assert_allclose(warp.matrix().numpy(), reference(*case), atol=1e-6)


@properties
@given(warps())
def test_rows_are_probabilities_and_padding_reads_nothing(case):
    source, T_s, target, *rest = case
    warp = segment_warp(source, T_s, target, *rest)
    assert warp.index.shape == warp.weight.shape
    assert warp.index.shape[:2] == (len(source), T_s)
    assert (warp.weight >= 0).all()
    rows = torch.ones(len(source), T_s) if target is None else (target >= 0).float()
    torch.testing.assert_close(warp.weight.sum(dim=2), rows)
    # No weight falls on the teacher's padding.
    assert (warp.matrix().transpose(1, 2)[source < 0] == 0).all()


@properties
@given(warps(with_target=False))
def test_reading_order_is_kept_and_each_segment_stays_inside_itself(case):
    """Ids interleave and repeat here: the runs still come in reading order."""
    source, T_s, _, ratios, alphas, method = case
    warp = segment_warp(source, T_s, None, ratios, alphas, method)
    centre = warp.centre()
    assert (centre.diff(dim=1) >= -1e-5).all()
    for row, W in zip(source.tolist(), warp.matrix(), strict=True):
        runs = [positions for _, positions in runs_of([(p, i) for p, i in enumerate(row) if i >= 0])]
        lengths = segment_lengths([len(r) for r in runs], T_s, [ratios.get(row[r[0]], 1.0) for r in runs])
        borders = np.cumsum([0, *lengths])
        for positions, start, end in zip(runs, borders[:-1], borders[1:], strict=True):
            mass = W[start:end, positions].sum(dim=1)
            torch.testing.assert_close(mass, torch.ones(int(end - start)))


@properties
@given(warps(with_target=True), st.data())
def test_positions_of_one_segment_read_in_order(case, data):
    source, T_s, target, ratios, alphas, method = case
    centre = segment_warp(source, T_s, target, ratios, alphas, method).centre()
    for b in range(len(source)):
        for key in set(target[b].tolist()) & set(source[b].tolist()) - {-1}:
            assert (centre[b, target[b] == key].diff() >= -1e-5).all()


@properties
@given(warps())
def test_samples_do_not_see_each_other(case):
    source, T_s, target, *rest = case
    together = segment_warp(source, T_s, target, *rest).matrix()
    for b in range(len(source)):
        alone = segment_warp(source[b : b + 1], T_s, None if target is None else target[b : b + 1], *rest)
        torch.testing.assert_close(together[b : b + 1], alone.matrix(), atol=1e-6, rtol=0)


@properties
@given(st.integers(1, 3), st.integers(1, 24), st.data(), st.sampled_from(METHODS), st.floats(0, 1))
def test_the_same_segments_on_both_sides_are_the_identity(batch, length, data, method, alpha):
    ids = data.draw(id_rows(batch, length))
    warp = segment_warp(ids, length, ids, alpha_map={0: alpha, 3: alpha}, method=method)
    assert torch.equal(warp.matrix(), torch.diag_embed((ids >= 0).float()))
    assert warp.unread() == [[] for _ in range(batch)]
    assert warp.repeated() == [[] for _ in range(batch)]
    torch.testing.assert_close(warp.stretch(), (ids >= 0).float())


@properties
@given(st.integers(1, 64), st.integers(1, 64))
def test_one_segment_is_torchs_interpolation(T_t, T_s):
    x = torch.randn(2, 3, 2, T_t, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    flat = x.flatten(0, 2).transpose(1, 2)
    ids = torch.full((2, T_t), 7)
    for alpha, expected in (
        (1.0, F.interpolate(flat, size=T_s, mode="linear", align_corners=False)),
        (0.0, F.interpolate(flat, size=T_s, mode="nearest-exact")),
    ):
        got = TimeWarper(alpha_map={7: alpha})(x, ids, T_s)
        expected = expected.transpose(1, 2).unflatten(0, (2, 3, 2))
        # Weights are held in float32.
        torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)


@properties
@given(st.integers(1, 12), st.integers(1, 12))
def test_area_is_the_adaptive_average_where_it_divides_evenly(T_s, factor):
    x = torch.randn(1, 2, 3, T_s * factor, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    ids = torch.zeros(1, T_s * factor, dtype=torch.long)
    flat = x.flatten(0, 2).transpose(1, 2)
    expected = F.adaptive_avg_pool1d(flat, T_s).transpose(1, 2).unflatten(0, (1, 2, 3))
    torch.testing.assert_close(TimeWarper(method="area")(x, ids, T_s), expected, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("T_s", [30, 50, 80])
def test_the_reports_shapes(T_s):
    x = torch.randn(2, 12, 32, 100, 128)
    ids = torch.tensor([[0] * 30 + [1] * 50 + [2] * 20, [0] * 10 + [1] * 40 + [2] * 50])
    warper = TimeWarper(num_segments=3, ratio_map={1: 0.5}, alpha_map={0: 0.0})
    y = warper(x, ids, T_s)
    assert y.shape == (2, 12, 32, T_s, 128)
    # Each row by its own ids, not row 0 for all: sample 1's prompt is shorter.
    lengths = [segment_lengths(n, T_s, [1, 0.5, 1]) for n in ([30, 50, 20], [10, 40, 50])]
    assert lengths[0] != lengths[1]
    for b, (first, *_) in enumerate(lengths):
        prompt = [30, 10][b]
        picked = [(2 * j + 1) * prompt // (2 * first) for j in range(first)]
        assert torch.equal(y[b, :, :, :first], x[b, :, :, picked])


def test_ids_beyond_the_expected_and_of_any_integer_type():
    x = torch.randn(1, 1, 1, 4, 2)
    expected = TimeWarper(num_segments=2)(x, torch.tensor([[0, 0, 9, 9]]), 6)
    assert torch.equal(TimeWarper()(x, torch.tensor([[0, 0, 1, 1]], dtype=torch.int8), 6), expected)
    assert torch.equal(TimeWarper()(x, torch.tensor([[False, False, True, True]]), 6), expected)


@pytest.mark.parametrize("method", METHODS)
def test_padding_and_texts_of_nothing_but_padding(method):
    ids = torch.tensor([[-1, -1, -1], [0, 0, -1]])
    warp = segment_warp(ids, 2, method=method)
    assert warp.matrix().tolist() == [[[0, 0, 0], [0, 0, 0]], [[1, 0, 0], [0, 1, 0]]]
    assert (warp.apply(torch.ones(2, 1, 1, 3, 1))[0] == 0).all()
    empty_target = segment_warp(torch.tensor([[0, 1]]), 3, torch.full((1, 3), -1), method=method)
    assert (empty_target.matrix() == 0).all()
    assert empty_target.unread() == [[0, 1]]
    assert (empty_target.stretch() == 0).all()


def test_nonsense_is_refused():
    ids = torch.zeros(2, 4, dtype=torch.long)
    for arguments in (
        {"segment_ids": ids[0], "T_s": 3},
        {"segment_ids": ids.float(), "T_s": 3},
        {"segment_ids": ids, "T_s": 0},
        {"segment_ids": ids, "T_s": 3, "target_segment_ids": ids},
        {"segment_ids": ids, "T_s": 3, "alpha_map": {0: 1.5}},
        {"segment_ids": ids, "T_s": 3, "alpha_map": {0: math.nan}},
        {"segment_ids": ids, "T_s": 3, "ratio_map": {0: -1.0}},
        {"segment_ids": ids, "T_s": 3, "method": "cubic"},
    ):
        with pytest.raises(ValueError):
            segment_warp(**arguments)
    warp = segment_warp(ids, 3)
    for shape in ((2, 1, 1, 5, 2), (3, 1, 1, 4, 2), (2, 4, 2)):
        with pytest.raises(ValueError, match="this warp takes"):
            warp.apply(torch.zeros(shape))


# --- applying it ----------------------------------------------------------------------------------


@properties
@given(warps())
def test_applying_is_the_matrix_product_and_its_gradient_the_transpose(case):
    source, T_s, target, *rest = case
    warp = segment_warp(source, T_s, target, *rest)
    x = torch.randn(len(source), 2, 3, source.shape[1], 4, dtype=torch.float64, requires_grad=True)
    W = warp.matrix().double()
    y = warp.apply(x)
    expected = torch.stack([W[b] @ x[b] for b in range(len(x))])
    torch.testing.assert_close(y, expected)
    upstream = torch.randn_like(y)
    (gradient,) = torch.autograd.grad(y, x, upstream)
    torch.testing.assert_close(gradient, torch.stack([W[b].T @ upstream[b] for b in range(len(x))]))


@pytest.mark.parametrize("method", METHODS)
def test_bf16_is_summed_in_float32(method):
    x = torch.randn(1, 2, 2, 40, 8).bfloat16()
    warp = segment_warp(torch.zeros(1, 40, dtype=torch.long), 7, method=method)
    y = warp.apply(x)
    assert y.dtype == torch.bfloat16
    assert torch.equal(y, warp.apply(x.float()).bfloat16())


def test_one_warp_serves_a_batch():
    x = torch.randn(3, 1, 2, 10, 4)
    for method in METHODS:
        warp = segment_warp(torch.zeros(1, 10, dtype=torch.long), 2, method=method)
        expected = torch.cat([warp.apply(x[b : b + 1]) for b in range(3)])
        torch.testing.assert_close(warp.apply(x), expected)


def test_what_a_page_shows_of_a_warp():
    halved = segment_warp(torch.zeros(1, 8, dtype=torch.long), 4, alpha_map={0: 0.0})
    assert halved.unread() == [[0, 2, 4, 6]]
    assert halved.repeated() == [[]]
    doubled = segment_warp(torch.zeros(1, 3, dtype=torch.long), 6)
    assert doubled.repeated() == [[0, 1, 2]]
    assert doubled.unread() == [[]]
    # Padding is not "unread": it holds no token.
    padded = segment_warp(torch.tensor([[-1, 0, 0, 1]]), 2, torch.tensor([[0, 0]]))
    assert padded.unread() == [[3]]


@properties
@given(warps(with_target=False))
def test_stretch_adds_up_to_the_teachers_length(case):
    source, T_s, target, *rest = case
    stretch = segment_warp(source, T_s, target, *rest).stretch()
    torch.testing.assert_close(stretch.sum(dim=1), (source >= 0).sum(dim=1).float(), atol=1e-3, rtol=1e-4)
    assert (stretch >= -1e-5).all()


def test_stretch_inside_a_segment_is_the_ratio_of_lengths():
    warp = segment_warp(torch.tensor([[0] * 30 + [1] * 10]), 25, torch.tensor([[0] * 15 + [1] * 10]))
    torch.testing.assert_close(warp.stretch()[0, 2:13], torch.full((11,), 2.0))
    torch.testing.assert_close(warp.stretch()[0, 17:23], torch.full((6,), 1.0))


@properties
@given(warps())
def test_spread_conserves_the_mass_of_what_is_read(case):
    source, T_s, target, *rest = case
    warp = segment_warp(source, T_s, target, *rest)
    column = warp.spread().sum(dim=1)
    read_at_all = warp.matrix().sum(dim=1) > 0
    torch.testing.assert_close(column, read_at_all.float())


# --- by characters --------------------------------------------------------------------------------


@st.composite
def tokenizations(draw, length):
    """Spans over a text of `length` characters, with specials and padding: offsets [T, 2] and mask [T]."""
    cuts = sorted(draw(st.sets(st.integers(1, max(length - 1, 1)), max_size=length)) | {0, length})
    spans = [(a, b) for a, b in zip(cuts[:-1], cuts[1:], strict=True) if draw(st.integers(0, 9))]
    for _ in range(draw(st.integers(0, 3))):
        spans.insert(draw(st.integers(0, len(spans))), (0, 0))
    left, right = draw(st.integers(0, 2)), draw(st.integers(0, 2))
    offsets = [(0, 0)] * left + spans + [(0, 0)] * right
    return torch.tensor(offsets or [(0, 0)]), torch.tensor([0] * left + [1] * len(spans) + [0] * right or [0])


@st.composite
def two_tokenizations(draw):
    length = draw(st.integers(1, 30))
    return draw(tokenizations(length)), draw(tokenizations(length))


@properties
@given(two_tokenizations())
def test_text_warp_weights_by_shared_characters(case):
    (offsets_t, mask_t), (offsets_s, mask_s) = case
    warp = text_warp(offsets_t[None], mask_t[None], offsets_s[None], mask_s[None])
    W = warp.matrix()[0].double().numpy()
    rows = mask_s.double().numpy() if mask_t.any() else np.zeros(len(mask_s))
    np.testing.assert_allclose(W.sum(axis=1), rows, atol=1e-6)
    assert (W[:, mask_t.numpy() == 0] == 0).all()
    for s, (a, b) in enumerate(offsets_s.tolist()):
        if not mask_s[s] or a == b:
            continue
        spans = enumerate(zip(offsets_t.tolist(), mask_t.tolist(), strict=True))
        shared = np.array(
            [max(0, min(b, d) - max(a, c)) if keep else 0 for _, ((c, d), keep) in spans], float
        )
        if shared.sum():
            np.testing.assert_allclose(W[s], shared / shared.sum(), atol=1e-6)
        elif mask_t.any():
            assert W[s].max() == 1  # its characters are in no teacher token: one nearest token


@properties
@given(two_tokenizations())
def test_text_warp_reads_in_order(case):
    (offsets_t, mask_t), (offsets_s, mask_s) = case
    centre = text_warp(offsets_t[None], mask_t[None], offsets_s[None], mask_s[None]).centre()[0]
    centre = centre[~centre.isnan()]
    assert (centre.diff() >= -1e-5).all()


@properties
@given(st.integers(1, 30).flatmap(tokenizations))
def test_a_tokenization_matches_itself_token_by_token(case):
    offsets, mask = case
    W = text_warp(offsets[None], mask[None], offsets[None], mask[None]).matrix()[0]
    torch.testing.assert_close(W, torch.diag(mask.float()))


def test_pieces_of_one_character_match_in_order():
    """Byte-level tokenizers give the four bytes of an emoji one span."""
    pieces = torch.tensor([[[0, 2], [2, 3], [2, 3], [2, 3], [2, 3], [3, 5]]])
    whole = torch.tensor([[[0, 2], [2, 3], [3, 5]]])
    ones_6, ones_3 = torch.ones(1, 6), torch.ones(1, 3)
    torch.testing.assert_close(text_warp(pieces, ones_6, pieces, ones_6).matrix()[0], torch.eye(6))
    assert text_warp(pieces, ones_6, whole, ones_3).matrix()[0, 1].tolist() == [0, 0.25, 0.25, 0.25, 0.25, 0]
    assert (text_warp(whole, ones_3, pieces, ones_6).matrix()[0, 1:5, 1] == 1).all()


def test_tokens_without_characters_find_their_like():
    text = [[0, 3], [3, 6]]
    bos, eos = [0, 0], [0, 0]
    with_both, with_none = torch.tensor([[bos, *text, eos]]), torch.tensor([text])
    both, none = torch.ones(1, 4), torch.ones(1, 2)
    torch.testing.assert_close(text_warp(with_both, both, with_both, both).matrix()[0], torch.eye(4))
    # A teacher without specials: the nearest token stands in.
    assert text_warp(with_none, none, with_both, both).matrix()[0].argmax(dim=1).tolist() == [0, 0, 1, 1]
    assert text_warp(with_both, both, with_none, none).unread() == [[0, 3]]
    # Nothing but specials on one side.
    bare, one = torch.tensor([[bos]]), torch.ones(1, 1)
    assert text_warp(bare, one, with_both, both).matrix()[0].tolist() == [[1.0]] * 4
    assert text_warp(with_both, both, bare, one).matrix()[0].tolist() == [[1.0, 0, 0, 0]]


def test_characters_the_teacher_leaves_out_go_to_the_nearest_edge():
    """Between teacher tokens [1, 2) and [4, 9): by the edges, not the middles, or the token at 3 would come out of order."""
    teacher, student = torch.tensor([[[1, 2], [4, 9]]]), torch.tensor([[[2, 3], [0, 0], [3, 4]]])
    warp = text_warp(teacher, torch.ones(1, 2), student, torch.ones(1, 3))
    assert warp.centre().tolist() == [[0, 0, 1]]


def test_text_warp_refuses_shapes_that_do_not_fit():
    offsets, mask = torch.zeros(1, 3, 2, dtype=torch.long), torch.ones(1, 3)
    for arguments in ((offsets, mask[:, :2], offsets, mask), (offsets[0], mask, offsets, mask)):
        with pytest.raises(ValueError, match="offsets"):
            text_warp(*arguments)
    with pytest.raises(ValueError, match="texts"):
        text_warp(offsets, mask, offsets.repeat(2, 1, 1), mask.repeat(2, 1))


# --- speed ----------------------------------------------------------------------------------------


def test_four_thousand_positions_take_well_under_a_second():
    generator = torch.Generator().manual_seed(0)

    def tokens(n, characters=16_000):
        cuts = torch.randperm(characters - 1, generator=generator)[: n - 1].sort().values + 1
        borders = torch.cat([torch.tensor([0]), cuts, torch.tensor([characters])])
        return torch.stack([borders[:-1], borders[1:]], dim=1)[None], torch.ones(1, n)

    ids = torch.randint(0, 5, (1, 4096), generator=generator)  # interleaved: three thousand runs
    teacher, student = tokens(4096), tokens(3500)
    for task in (
        lambda: text_warp(*teacher, *student),
        lambda: segment_warp(ids, 3500, method="area"),
        lambda: segment_warp(ids, 3500, torch.randint(0, 5, (1, 3500), generator=generator)),
        lambda: segment_warp(ids.sort(dim=1).values, 4096, ids),
    ):
        start = time.process_time()
        task()
        assert time.process_time() - start < 1


@pytest.mark.parametrize("device", ["cpu", *(["cuda"] if torch.cuda.is_available() else [])])
def test_ids_and_tensors_may_live_on_an_accelerator(device):
    x, ids = torch.randn(1, 1, 2, 6, 4, device=device), torch.tensor([[0, 0, 0, 1, 1, 1]], device=device)
    y = TimeWarper()(x, ids, 4, torch.tensor([[0, 0, 1, 1]], device=device))
    assert y.device == x.device
    torch.testing.assert_close(y.cpu(), TimeWarper()(x.cpu(), ids.cpu(), 4))
