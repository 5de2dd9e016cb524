"""The losses against plain loops in float64, and what holds for every input."""

import weakref

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from kvviz.losses import StructuralKVLoss, attention_kl_rows, causal_attention_kl, cosine_loss

properties = settings(deadline=None, max_examples=40)
NAMES = ("s_q", "s_k", "s_v", "t_q", "t_k", "t_v")


def cache(seed=0, B=2, L=2, Hkv=2, group=2, T=6, D=4, Dv=3, dtype=torch.float32, scale=1.0):
    """Random q, k, v of student and teacher, as the loss takes them."""
    generator = torch.Generator().manual_seed(seed)

    def draw(heads, dim):
        x = torch.randn(B, L, heads, T, dim, generator=generator, dtype=torch.float64)
        return (scale * x).to(dtype)

    sizes = ((Hkv * group, D), (Hkv, D), (Hkv, Dv)) * 2
    return {name: draw(*size) for name, size in zip(NAMES, sizes, strict=True)}


@st.composite
def caches(draw, **fixed):
    sizes = {"B": (1, 3), "L": (1, 3), "Hkv": (1, 2), "group": (1, 3), "T": (1, 7), "D": (1, 5), "Dv": (1, 4)}
    drawn = {name: draw(st.integers(*bounds)) for name, bounds in sizes.items()}
    return cache(draw(st.integers(0, 999)), **drawn | fixed)


@st.composite
def masked(draw):
    """A cache and a mask that pads each row at the left or at the right."""
    tensors = draw(caches())
    B, T = tensors["s_q"].shape[0], tensors["s_q"].shape[3]
    mask = torch.ones(B, T, dtype=torch.bool)
    for row in mask:
        cut = draw(st.integers(0, T))
        if draw(st.booleans()):
            row[:cut] = False
        else:
            row[T - cut :] = False
    return tensors, mask


def attention_reference(q, k, ok, scaling, temperature):
    """Probabilities of one head over the keys a row may see: list of rows, each {key: probability}."""
    rows = []
    for i in range(len(q)):
        keys = [j for j in range(len(k)) if ok[i][j]]
        scores = [sum(float(a) * float(b) for a, b in zip(q[i], k[j], strict=True)) for j in keys]
        scores = torch.tensor(scores, dtype=torch.float64) * scaling / temperature
        rows.append(dict(zip(keys, torch.softmax(scores, 0).tolist(), strict=True)) if keys else {})
    return rows


def kl_reference(tensors, mask, scaling=None, temperature=1.0, t_attention=None, allowed=None):
    """Mean KL over valid rows, element by element."""
    s_q, s_k, t_q, t_k = (tensors[name].double() for name in ("s_q", "s_k", "t_q", "t_k"))
    B, L, Hq, T, D = s_q.shape
    values = []
    for b in range(B):
        for l in range(L):
            scale = D**-0.5 if scaling is None else scaling if isinstance(scaling, float) else scaling[l]
            ok = [[j <= i and bool(mask[b, i]) and bool(mask[b, j]) for j in range(T)] for i in range(T)]
            if allowed is not None:
                window = allowed[b % len(allowed), l % allowed.shape[1]]
                ok = [[ok[i][j] and bool(window[i, j]) for j in range(T)] for i in range(T)]
            for h in range(Hq):
                g = h // (Hq // s_k.shape[2])
                student = attention_reference(s_q[b, l, h], s_k[b, l, g], ok, scale, temperature)
                teacher = attention_reference(t_q[b, l, h], t_k[b, l, g], ok, scale, temperature)
                for i in range(T):
                    theirs = teacher[i]
                    if t_attention is not None:
                        powers = {j: float(t_attention[b, l, h, i, j]) ** (1 / temperature) for j in theirs}
                        total = sum(powers.values())
                        theirs = {j: p / total for j, p in powers.items()} if total else {}
                    if theirs:
                        pairs = [(p, student[i][j]) for j, p in theirs.items() if p > 0]
                        values.append(sum(p * (torch.tensor(p / s)).log().item() for p, s in pairs))
    return sum(values) / max(len(values), 1)


def cosine_reference(x, y, mask):
    values = []
    for b in range(x.shape[0]):
        for t in range(x.shape[3]):
            if mask[b, t]:
                for l in range(x.shape[1]):
                    for h in range(x.shape[2]):
                        a, c = x[b, l, h, t].double(), y[b, l, h, t].double()
                        values.append(1 - float(a @ c / (a @ a).sqrt() / (c @ c).sqrt()))
    return sum(values) / max(len(values), 1)


# --- values ---------------------------------------------------------------------------------------


@properties
@given(masked(), st.sampled_from([0.5, 1.0, 3.0]))
def test_every_term_is_its_definition(case, temperature):
    tensors, mask = case
    loss = StructuralKVLoss(alpha_k=2.0, alpha_v=0.5, alpha_attn=3.0, temperature=temperature)
    total, metrics = loss(**tensors, attention_mask=mask)
    k = cosine_reference(tensors["s_k"], tensors["t_k"], mask)
    v = cosine_reference(tensors["s_v"], tensors["t_v"], mask)
    kl = kl_reference(tensors, mask, temperature=temperature)
    expected = {"k_loss": k, "v_loss": v, "attn_loss": kl, "k_cos_sim": 1 - k, "v_cos_sim": 1 - v}
    expected["total_loss"] = 2 * k + 0.5 * v + 3 * kl
    assert set(metrics) == set(expected)
    assert all(type(value) is float for value in metrics.values())
    assert metrics == pytest.approx(expected, rel=1e-4, abs=1e-5)
    assert total.item() == pytest.approx(metrics["total_loss"])


@pytest.mark.parametrize("scaling", [0.3, [0.1, 2.0]])
def test_scaling_for_all_layers_or_each(scaling):
    tensors, mask = cache(), torch.ones(2, 6)
    got = StructuralKVLoss()(**tensors, scaling=scaling)[1]["attn_loss"]
    assert got == pytest.approx(kl_reference(tensors, mask, scaling), rel=1e-5)


def test_sliding_windows_for_each_layer():
    tensors = cache(T=9)
    distance = torch.arange(9)[:, None] - torch.arange(9)
    allowed = torch.stack([distance < 3, distance < 9])[None]
    mask = torch.ones(2, 9, dtype=torch.bool)
    mask[0, :2] = False
    got = StructuralKVLoss()(**tensors, attention_mask=mask, allowed=allowed)[1]["attn_loss"]
    assert got == pytest.approx(kl_reference(tensors, mask, allowed=allowed), rel=1e-5)


@properties
@given(masked(), st.sampled_from([0.5, 1.0, 2.0]), st.integers(0, 99))
def test_the_teachers_own_attention_takes_the_place_of_its_softmax(case, temperature, seed):
    """Rows are masked and renormalised; a row without mass in sight is left out."""
    tensors, mask = case
    B, L, Hq, T, _ = tensors["s_q"].shape
    generator = torch.Generator().manual_seed(seed)
    given_attention = torch.rand(B, L, Hq, T, T, generator=generator)
    given_attention[torch.rand(B, L, Hq, T, T, generator=generator) < 0.4] = 0
    loss = StructuralKVLoss(temperature=temperature)
    got = loss(**tensors, attention_mask=mask, t_attention=given_attention)[1]["attn_loss"]
    expected = kl_reference(tensors, mask, temperature=temperature, t_attention=given_attention)
    assert got == pytest.approx(expected, rel=1e-4, abs=1e-5)


def test_attention_of_q_and_k_given_as_probabilities_is_the_same_loss():
    tensors = cache(dtype=torch.float64)
    scores = (
        torch.einsum("blhid,blhjd->blhij", tensors["t_q"], tensors["t_k"].repeat_interleave(2, dim=2)) / 2
    )
    hidden = torch.ones(6, 6).triu(1).bool()
    probabilities = scores.masked_fill(hidden, -torch.inf).softmax(dim=-1)
    for temperature in (1.0, 2.0):
        options = {"temperature": temperature}
        projected = causal_attention_kl(*(tensors[name] for name in ("s_q", "s_k", "t_q", "t_k")), **options)
        mixed = causal_attention_kl(
            tensors["s_q"], tensors["s_k"], None, None, t_attention=probabilities, **options
        )
        torch.testing.assert_close(projected, mixed)


def test_rows_longer_than_a_block_are_the_plain_softmax():
    """T = 300 spans three blocks of query rows; left and right padding cross their borders."""
    tensors, T = cache(B=2, L=2, T=300, D=8, dtype=torch.float64), 300
    mask = torch.ones(2, T, dtype=torch.bool)
    mask[0, :140], mask[1, 200:] = False, False
    ok = (torch.ones(T, T).tril().bool() & mask[:, None, :] & mask[:, :, None])[:, None, None]
    logs = []
    for side in "ts":
        keys = tensors[f"{side}_k"].repeat_interleave(2, dim=2)
        scores = torch.einsum("blhid,blhjd->blhij", tensors[f"{side}_q"], keys) / 8**0.5
        logs.append(scores.masked_fill(~ok, -1e300).log_softmax(dim=-1))
    kl = torch.where(ok, logs[0].exp() * (logs[0] - logs[1]), 0).sum(dim=-1)
    q_k = [tensors[name] for name in ("s_q", "s_k", "t_q", "t_k")]
    rows, valid = attention_kl_rows(*q_k, mask)
    assert torch.equal(valid, mask[:, None, None].expand(2, 2, 4, T))
    torch.testing.assert_close(rows, kl.masked_fill(~valid, 0))
    torch.testing.assert_close(causal_attention_kl(*q_k, mask), kl[valid].mean())


# --- properties -----------------------------------------------------------------------------------


@properties
@given(masked())
def test_zero_at_equality(case):
    tensors, mask = case
    same = {name: tensors["s_" + name[2:]] for name in NAMES}
    _, metrics = StructuralKVLoss()(**same, attention_mask=mask)
    assert metrics == {
        "k_loss": 0, "v_loss": 0, "attn_loss": 0, "k_cos_sim": 1, "v_cos_sim": 1, "total_loss": 0,
    }  # fmt: skip


@properties
@given(masked(), st.sampled_from([torch.float32, torch.bfloat16]), st.sampled_from([0.0, 1e-3, 1.0, 100.0]))
def test_never_negative(case, dtype, difference):
    tensors, mask = case
    near = {
        n: (tensors["s_" + n[2:]] + difference * (x if n[0] == "t" else 0)).to(dtype)
        for n, x in tensors.items()
    }
    _, metrics = StructuralKVLoss()(**near, attention_mask=mask)
    assert min(metrics["k_loss"], metrics["v_loss"], metrics["attn_loss"]) >= 0
    assert max(metrics["k_cos_sim"], metrics["v_cos_sim"]) <= 1


@properties
@given(masked(), st.randoms(use_true_random=False))
def test_order_of_batch_layers_and_head_groups_does_not_matter(case, random):
    tensors, mask = case
    B, L, Hkv = tensors["s_k"].shape[:3]
    batch, layers, groups = (random.sample(range(n), n) for n in (B, L, Hkv))

    def shuffled(x):
        x = x[batch][:, layers]
        return x.unflatten(2, (Hkv, -1))[:, :, groups].flatten(2, 3)

    _, before = StructuralKVLoss()(**tensors, attention_mask=mask)
    _, after = StructuralKVLoss()(**{n: shuffled(x) for n, x in tensors.items()}, attention_mask=mask[batch])
    assert after == pytest.approx(before, rel=1e-4, abs=1e-6)


@properties
@given(
    masked(), st.integers(0, 4), st.integers(0, 4), st.sampled_from([0.0, 1e4, float("nan"), float("inf")])
)
def test_padding_changes_nothing_whatever_lies_there(case, left, right, junk):
    tensors, mask = case
    padded = {
        name: torch.nn.functional.pad(x, (0, 0, left, right), value=junk).requires_grad_()
        for name, x in tensors.items()
    }
    total, after = StructuralKVLoss()(
        **padded, attention_mask=torch.nn.functional.pad(mask, (left, right), value=False)
    )
    _, before = StructuralKVLoss()(**tensors, attention_mask=mask)
    assert after == pytest.approx(before, rel=1e-4, abs=1e-6)
    total.backward()
    assert all(x.grad.isfinite().all() for x in padded.values())


# --- numbers at the edge --------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("padding", ["none", "left", "right"])
def test_finite_for_logits_of_ten_thousand(dtype, padding):
    tensors = cache(T=12, dtype=dtype)
    for name in ("s_q", "s_k", "t_q", "t_k"):
        # ±1 · 141 each: scores q·k/√4 reach ±4 · 141² / 2 = ±4e4.
        tensors[name] = tensors[name].sign() * 141
        tensors[name].requires_grad_()
    mask = torch.ones(2, 12)
    if padding != "none":
        mask[0, slice(0, 5) if padding == "left" else slice(7, 12)] = 0
    total, metrics = StructuralKVLoss()(**tensors, attention_mask=mask)
    total.backward()
    assert all(map(torch.isfinite, map(torch.tensor, metrics.values())))
    assert metrics["attn_loss"] > 1000
    assert all(tensors[name].grad.isfinite().all() for name in ("s_q", "s_k", "t_q", "t_k"))


def test_bf16_input_is_computed_in_float32_also_under_autocast():
    tensors = cache(T=40, D=16, dtype=torch.bfloat16)
    wide = StructuralKVLoss()(**{name: x.float() for name, x in tensors.items()})[1]
    assert StructuralKVLoss()(**tensors)[1] == wide
    with torch.autocast("cpu", dtype=torch.bfloat16):
        total, metrics = StructuralKVLoss()(**{name: x.float() for name, x in tensors.items()})
    assert metrics == wide
    assert total.dtype == torch.float32


def test_zero_vectors():
    zero, one = torch.zeros(1, 1, 1, 2, 3, requires_grad=True), torch.ones(1, 1, 1, 2, 3)
    assert cosine_loss(zero, one).item() == 1
    assert cosine_loss(zero, zero).item() == 0
    cosine_loss(zero, one).backward()
    assert zero.grad.isfinite().all()


def test_nothing_valid_is_zero():
    tensors = {name: x.requires_grad_() for name, x in cache().items()}
    total, metrics = StructuralKVLoss()(**tensors, attention_mask=torch.zeros(2, 6))
    assert metrics["total_loss"] == 0
    total.backward()
    assert all((x.grad == 0).all() for x in tensors.values())
    hidden = torch.zeros(1, 1, 6, 6, dtype=torch.bool)
    assert StructuralKVLoss()(**tensors, allowed=hidden)[1]["attn_loss"] == 0


# --- gradients ------------------------------------------------------------------------------------


def test_gradients_of_each_term_are_right():
    tensors = cache(B=1, L=1, Hkv=1, group=2, T=4, D=3, dtype=torch.float64)
    x = [tensor.requires_grad_() for tensor in tensors.values()]
    mask = torch.tensor([[0, 1, 1, 1]])
    s_q, s_k, s_v, t_q, t_k, t_v = x
    probabilities = torch.rand(1, 1, 2, 4, 4, dtype=torch.float64, requires_grad=True)

    def kl(*arguments):
        return causal_attention_kl(*arguments, mask, temperature=1.5)

    def mixed(q, k, attention):
        return causal_attention_kl(q, k, None, None, mask, t_attention=attention)

    assert torch.autograd.gradcheck(lambda a, b: cosine_loss(a, b, mask), (s_k, t_k))
    assert torch.autograd.gradcheck(lambda a, b: cosine_loss(a, b, mask), (s_v, t_v))
    assert torch.autograd.gradcheck(kl, (s_q, s_k, t_q, t_k))
    assert torch.autograd.gradcheck(mixed, (s_q, s_k, probabilities))
    assert torch.autograd.gradcheck(lambda a, b: mixed(a, b, probabilities.detach()), (s_q, s_k))


@pytest.mark.parametrize("wide", [False, True])
@pytest.mark.parametrize("target", ["projected", "mixed"])
def test_the_mean_and_the_rows_agree_in_value_and_gradient(target, wide, monkeypatch):
    """The mean over rows is worked out twice: with its gradient on the way, and by autograd through every row."""
    monkeypatch.setattr("kvviz.mean_kl.CPU_BLOCK", 3)
    tensors = cache(B=2, L=2, Hkv=2, group=2, T=8, D=4, dtype=torch.float64)
    mask = torch.ones(2, 8, dtype=torch.bool)
    mask[0, :3] = mask[1, 6:] = False
    allowed = torch.ones(1, 2, 8, 8, dtype=torch.bool)
    allowed[0, 1] = torch.ones(8, 8).tril(0).triu(-2).bool()  # a sliding window in the second layer
    options = {"scaling": [0.3, 0.7], "temperature": 1.7, "allowed": allowed if wide else None}
    names = ("s_q", "s_k") if target == "mixed" else ("s_q", "s_k", "t_q", "t_k")
    if target == "mixed":
        options["t_attention"] = torch.rand(2, 2, 4, 8, 8, dtype=torch.float64)
        options["t_attention"][:, :, :, 5] = 0  # a row without mass does not count

    def both(function):
        x = {name: tensors[name].clone().requires_grad_() for name in names}
        theirs = (x.get("t_q"), x.get("t_k"))
        value = function(x["s_q"], x["s_k"], *theirs, mask, **options)
        value.backward()
        return value.detach(), [x[name].grad for name in names]

    def averaged(*arguments, **options):
        rows, valid = attention_kl_rows(*arguments, **options)
        return rows.sum() / valid.sum()

    mean, mean_grads = both(causal_attention_kl)
    reference, reference_grads = both(averaged)
    torch.testing.assert_close(mean, reference)
    for grad, expected in zip(mean_grads, reference_grads, strict=True):
        torch.testing.assert_close(grad, expected)


@st.composite
def patchy(draw):
    """A cache with holes anywhere in its texts, NaN in them, and keys that each layer or each sample sees differently."""
    tensors = draw(caches(dtype=torch.float64))
    B, L, _, T, _ = tensors["s_q"].shape
    generator = torch.Generator().manual_seed(draw(st.integers(0, 999)))
    mask = torch.rand(B, T, generator=generator) < draw(st.sampled_from([0.0, 0.5, 0.8, 1.0]))
    junk = draw(st.sampled_from([0.0, 3.0, float("nan"), float("inf")]))
    for x in tensors.values():
        x.masked_fill_(~mask[:, None, None, :, None], junk)
    shape = draw(st.sampled_from([None, (1, 1), (1, L), (B, 1), (B, L)]))
    allowed = None if shape is None else torch.rand(*shape, T, T, generator=generator) < 0.7
    return tensors, mask, allowed


def mean_kl_by_rows(x, mask, scaling, allowed):
    """Mean KL over valid rows, one softmax over the keys a row sees at a time; autograd gives its gradient."""
    B, L, Hq, T, _ = x["s_q"].shape
    group, values = Hq // x["s_k"].shape[2], []
    for b, l, h, i in torch.cartesian_prod(*(torch.arange(n) for n in (B, L, Hq, T))).tolist():
        seen = mask[b] & mask[b, i] & (torch.arange(T) <= i)
        if allowed is not None:
            seen = seen & allowed[b % len(allowed), l % allowed.shape[1], i]
        if seen.any():
            student, teacher = (
                (
                    x[f"{side}_k"][b, l, h // group][seen] @ x[f"{side}_q"][b, l, h, i] * scaling[l]
                ).log_softmax(0)
                for side in ("s", "t")
            )
            values.append((teacher.exp() * (teacher - student)).sum())
    return torch.stack(values).mean() if values else sum(tensor.sum() * 0 for tensor in x.values())


@pytest.mark.parametrize(("rows", "scores"), [(64, 2**18), (2, 1), (3, 20)])
@properties
@given(case=patchy())
def test_blocks_of_any_size_see_what_each_row_may(rows, scores, case):
    """However few rows and heads go together; gaps, windows and groups of heads included, in value and gradient."""
    tensors, mask, allowed = case
    scaling = [0.4 + layer for layer in range(tensors["s_q"].shape[1])]
    names = ("s_q", "s_k", "t_q", "t_k")
    x, y = ({name: tensors[name].clone().requires_grad_() for name in names} for _ in range(2))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("kvviz.mean_kl.CPU_BLOCK", rows)
        patch.setattr("kvviz.mean_kl.CPU_SCORES", scores)
        got = causal_attention_kl(*(x[name] for name in names), mask, scaling=scaling, allowed=allowed)
    got.backward()
    expected = mean_kl_by_rows(y, mask, scaling, allowed)
    if not expected.isfinite():  # nothing is valid: zero times what lies in the padding
        assert got == 0
        return
    expected.backward()
    torch.testing.assert_close(got, expected.clamp(min=0), atol=1e-10, rtol=1e-8)
    for name in names:
        reference = y[name].grad.masked_fill(~mask[:, None, None, :, None], 0.0)
        torch.testing.assert_close(x[name].grad, reference, atol=1e-9, rtol=1e-7)


def test_gradients_reach_the_student_and_if_asked_the_aligner():
    tensors = {name: x.requires_grad_() for name, x in cache().items()}
    StructuralKVLoss()(**tensors)[0].backward()
    assert all(x.grad is not None and x.grad.abs().sum() > 0 for x in tensors.values())
    frozen = {name: x.detach().requires_grad_(name[0] == "s") for name, x in tensors.items()}
    StructuralKVLoss()(**frozen)[0].backward()
    for name, x in frozen.items():
        if name[0] == "s":
            torch.testing.assert_close(x.grad, tensors[name].grad)
        else:
            assert x.grad is None


def test_descent_brings_the_student_to_the_teacher():
    tensors = cache(B=1, L=1, T=5)
    student = {name: tensors[name].clone().requires_grad_() for name in NAMES[:3]}
    optimizer = torch.optim.Adam(student.values(), lr=0.05)
    losses = []
    for _ in range(150):
        total, _ = StructuralKVLoss()(**tensors | student)
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
        losses.append(total.item())
    assert losses[-1] < 0.02 * losses[0]


# --- memory ---------------------------------------------------------------------------------------


class LiveBytes(TorchDispatchMode):
    """Peak of the bytes held by tensors made while it is on, forward and backward."""

    def __init__(self):
        super().__init__()
        self.live, self.peak, self.known = 0, 0, set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, torch.Tensor):
                self.count(tensor.untyped_storage())
        return out

    def count(self, storage):
        key = storage._cdata
        if key in self.known:
            return
        self.known.add(key)
        self.live += storage.nbytes()
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self.forget, key, storage.nbytes())

    def forget(self, key, size):
        self.known.discard(key)
        self.live -= size


def peak_bytes(T):
    tensors = {
        name: x.requires_grad_() for name, x in cache(B=1, L=2, Hkv=1, group=2, T=T, D=8, Dv=8).items()
    }
    with LiveBytes() as meter:
        total, _ = StructuralKVLoss()(**tensors)
        total.backward()
    return meter.peak


def saved_bytes(T):
    """Bytes of distinct storage that the graph keeps between forward and backward."""
    tensors = {
        name: x.requires_grad_() for name, x in cache(B=1, L=2, Hkv=1, group=2, T=T, D=8, Dv=8).items()
    }
    kept = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        total, _ = StructuralKVLoss()(**tensors)
    total.backward()
    return sum(kept.values())


@pytest.mark.parametrize("measure", [saved_bytes, peak_bytes])
def test_memory_grows_with_length_and_not_its_square(measure):
    measure(256)  # what is allocated once is allocated here
    assert measure(1024) / measure(512) < 2.3
    assert measure(512) / measure(256) < 2.3


# --- nonsense -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"s_q": torch.zeros(2, 2, 3, 6, 4), "t_q": torch.zeros(2, 2, 3, 6, 4)}, "go together"),
        ({"t_q": torch.zeros(2, 2, 4, 5, 4)}, "queries"),
        ({"t_k": torch.zeros(2, 1, 2, 6, 4)}, "keys"),
        ({"t_v": torch.zeros(2, 2, 2, 6, 4)}, "keys or values"),
        ({"attention_mask": torch.ones(2, 5)}, "attention_mask"),
        ({"scaling": [1.0]}, "scaling"),
        ({"t_attention": torch.ones(2, 2, 4, 6, 5)}, "t_attention"),
        ({"allowed": torch.ones(6, 6, dtype=torch.bool)}, "allowed"),
    ],
)
def test_shapes_that_do_not_fit_are_named(changes, message):
    with pytest.raises(ValueError, match=message):
        StructuralKVLoss()(**cache() | changes)


def test_a_temperature_of_nothing_and_a_missing_teacher():
    with pytest.raises(ValueError, match="temperature"):
        StructuralKVLoss(temperature=0.0)(**cache())
    tensors = cache()
    with pytest.raises(ValueError, match="t_attention"):
        causal_attention_kl(tensors["s_q"], tensors["s_k"], None, None)
