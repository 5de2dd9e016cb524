"""Gates: a model aligned with itself is perfect, and a planted map is found from texts alone, end to end."""

from dataclasses import replace

import pytest
import torch

from kvviz import inspection as inspection_module
from kvviz.align import calibrate
from kvviz.align.aligner import PARTS
from kvviz.align.alignment import (
    layer_similarity,
    make_aligner,
    resolve_key_space,
    resolve_layer_map,
    resolve_warp,
)
from kvviz.align.calibrate import CalibrationTexts, collect, states
from kvviz.align.layers import layer_map, linear_cka
from kvviz.align.text import text_warp
from kvviz.capture import capture
from kvviz.config import AlignmentConfig, ConfigError
from kvviz.inspection import Inspection, Prompt, inspect, read
from kvviz.pair import wrap_model
from tests.families import byte_tokenizer, family, model

TEXT = "Ann had 12 pens.\nShe lost 5.\n#### 7"
IDENTITY = {"kv_projection_mode": "identity"}


@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma2", "gemma3_text", "gpt_oss"])
@pytest.mark.parametrize("target", ["projected", "mixed"])
def test_a_model_aligned_with_itself_is_perfect(name, target):
    """Same model, same text, no parameters: zero error, cosine 1, KL 0, in sliding windows, sinks and softcaps too."""
    config = AlignmentConfig(**IDENTITY, attention_target=target)
    found = inspect(family(name), family(name), TEXT, config)
    for part, errors in found.errors.items():
        assert errors.relative_error.max() < 1e-10, part
        torch.testing.assert_close(errors.cosine, torch.ones_like(errors.cosine), atol=1e-5, rtol=0)
        torch.testing.assert_close(errors.r2, torch.ones_like(errors.r2), atol=1e-5, rtol=0)
        torch.testing.assert_close(errors.norm_ratio, torch.ones_like(errors.r2), atol=1e-5, rtol=0)
    assert found.attention.rows.abs().max() < 1e-4
    assert abs(found.attention.mean) < 1e-5
    assert found.attention.outside < 1e-5


@pytest.mark.parametrize("key_space", ["pre_rope", "post_rope"])
@pytest.mark.parametrize("mode", ["flat", "structured"])
def test_a_model_fitted_to_itself_is_perfect(mode, key_space):
    config = AlignmentConfig(kv_projection_mode=mode, key_space=key_space, layer_mapping_strategy="uniform")
    texts = [
        f"Ben has {n} cards and gives {3 * n % 7} to {name}." for n in range(12) for name in ("Al", "Jo")
    ]
    loaded = family("llama")
    # In letters that were calibrated on: layer 0 knows nothing of others.
    text = "Al has 2 cards and gives 3 to Jo."
    moments = collect(loaded, loaded, CalibrationTexts.split(texts), key_space, layer_map(4, 4))
    found = Inspection(read(loaded, loaded, Prompt(text)), config, moments)
    # A head is itself through the flat map; a shared P times a mixer holds the identity too.
    for part, errors in found.errors.items():
        assert errors.total["r2"] > 0.999, part
    assert found.attention.mean < 1e-2


def student_of(kv_heads, heads, layers=2):
    settings = {"num_hidden_layers": layers, "num_attention_heads": heads, "num_key_value_heads": kv_heads}
    return wrap_model(model("llama", seed=2, **settings), byte_tokenizer(), name="student")


def plant(monkeypatch, student, form, seed=0):
    """From now on the student's states are a linear map of the teacher's, layers averaged in pairs, plus an offset."""
    teacher = family("llama")
    draw = torch.Generator().manual_seed(seed)
    layers = student.geometry.layers
    maps, offsets = {}, {}
    for part in PARTS:
        H_t, D_t = teacher.geometry.heads_of(part), teacher.geometry.dim_of(part)
        H_s, D_s = student.geometry.heads_of(part), student.geometry.dim_of(part)
        if form == "flat":
            dense = torch.randn(layers, H_s, D_s, H_t, D_t, generator=draw)
        else:
            A = torch.randn(layers, H_s, H_t, generator=draw)
            P = torch.randn(layers, 1 if form == "shared" else H_s, D_s, D_t, generator=draw)
            dense = torch.einsum("lgh,lged->lgehd", A, P.expand(-1, H_s, -1, -1))
        maps[part] = dense / (H_t * D_t) ** 0.5
        offsets[part] = torch.randn(layers, H_s, D_s, generator=draw)
    matrix = layer_map(layers, teacher.geometry.layers)

    def planted_capture(loaded, texts, **options):
        trace = capture(loaded, texts, **options)
        if loaded is not student:
            return trace
        source = capture(teacher, texts, **options)
        warp = text_warp(source.offsets, source.attention_mask, trace.offsets, trace.attention_mask)
        made = {}
        for part in PARTS:
            x = torch.einsum("st,bthpd->bshpd", matrix, warp.apply(states(source, part, "pre_rope")))
            y = torch.einsum("blhpd,lgehd->blgpe", x, maps[part]) + offsets[part][None, :, :, None]
            made[part] = y if part == "v" else trace.rope.rotate(y)
        return replace(trace, **made)

    for module in (calibrate, inspection_module):
        monkeypatch.setattr(module, "capture", planted_capture)
    return teacher, maps


TEXTS = CalibrationTexts.split(
    [
        f"{name} buys {n} {thing} for {n * 7 % 23} coins."
        for n in range(9)
        for name in ("Ann", "Bo", "Cy")
        for thing in ("figs", "mugs")
    ]
)


@pytest.mark.parametrize(
    ("form", "options"),
    [
        ("flat", {"kv_projection_mode": "flat"}),
        ("per head", {"share_dim_proj": False}),
        ("shared", {"share_dim_proj": True}),
    ],
)
def test_a_planted_map_is_recovered_end_to_end(monkeypatch, tmp_path, form, options):
    monkeypatch.setenv("KVVIZ_CACHE", str(tmp_path))
    student = student_of(kv_heads=3, heads=6)
    teacher, maps = plant(monkeypatch, student, form)
    found = inspect(teacher, student, TEXT, AlignmentConfig(**options), texts=TEXTS)
    for part in PARTS:
        assert found.errors[part].total["r2"] > 0.9999, part
        assert found.errors[part].cosine.min() > 0.999, part
        assert found.fit_report.scores[part].total_r2 > 0.9999, part
        projector = found.aligner.projector(part)
        off = (projector.dense() - maps[part]).norm() / maps[part].norm()
        assert off < 0.05, part
    assert found.attention.mean < 1e-3
    assert found.baseline_errors["k"].total["r2"] < 0.5
    # Other forms cannot hold a map that is not theirs, and the held-out score says so.
    if form == "flat":
        assert found.held_out(kv_projection_mode="structured").scores["k"].total_r2 < 0.99
    if form == "per head":
        assert found.held_out(share_dim_proj=True).scores["k"].total_r2 < 0.99
        assert found.held_out(kv_projection_mode="flat").scores["k"].total_r2 > 0.9999
    assert found.held_out(share_layers=True).scores["k"].total_r2 < 0.99


def test_rotated_keys_do_not_fit_one_map(monkeypatch, tmp_path):
    """The planted map holds before rotation: asking for the cache as it is costs accuracy where rotations differ."""
    monkeypatch.setenv("KVVIZ_CACHE", str(tmp_path))
    student = student_of(kv_heads=3, heads=6)
    teacher, _ = plant(monkeypatch, student, "flat")
    config = AlignmentConfig(kv_projection_mode="flat", key_space="post_rope")
    found = inspect(teacher, student, TEXT, config, texts=TEXTS)
    assert found.errors["k"].total["r2"] < 0.9
    assert found.errors["v"].total["r2"] > 0.9999


def test_projected_is_what_the_students_cache_would_hold():
    found = inspect(family("llama"), family("qwen3"), TEXT, AlignmentConfig(init="uniform"))
    alignment, rope = found.alignment, found.reading.trace_s.rope
    for layer in range(4):
        for position in (0, 5, 20):
            cos, sin = (x[rope.kinds[layer], 0, position].double() for x in (rope.cos, rope.sin))
            x = alignment.aligned["k"][0, layer, 1, position].detach().double()
            expected = x * cos + x[rope.partner] * sin
            got = alignment.projected.k[0, layer, 1, position].detach().double()
            torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)
    assert alignment.projected.v is alignment.aligned["v"]
    as_it_is = replace(alignment, key_space="post_rope")
    assert as_it_is.cached("k") is alignment.aligned["k"]


def traces(teacher="llama", student="qwen3", text=TEXT):
    return capture(family(teacher), [text]), capture(family(student), [text])


def test_key_space_follows_the_models():
    rotary, mixed = traces(), traces("llama", "gpt2")
    auto, pre, post = (AlignmentConfig(key_space=space) for space in ("auto", "pre_rope", "post_rope"))
    assert resolve_key_space(auto, *rotary) == resolve_key_space(pre, *rotary) == "pre_rope"
    assert resolve_key_space(post, *rotary) == "post_rope"
    assert resolve_key_space(auto, *mixed) == resolve_key_space(post, *mixed) == "post_rope"
    with pytest.raises(ConfigError, match="the student is not"):
        resolve_key_space(pre, *mixed)
    with pytest.raises(ConfigError, match="the teacher is not"):
        resolve_key_space(pre, *mixed[::-1])


def test_layer_maps_follow_the_configuration():
    teacher = family("llama").geometry
    student = replace(teacher, layers=2)
    for strategy in ("uniform", "ratio", "skip"):
        config = AlignmentConfig(layer_mapping_strategy=strategy)
        assert torch.equal(resolve_layer_map(config, teacher, student), layer_map(2, 4, strategy))
    matrix = [[2, 0, 0, 2], [0, 1, 0, 0]]
    custom = AlignmentConfig(layer_mapping_strategy="custom", layer_matrix=matrix)
    expected = torch.tensor([[0.5, 0, 0, 0.5], [0, 1.0, 0, 0]])
    torch.testing.assert_close(resolve_layer_map(custom, teacher, student), expected)
    for broken in ([[1, 0], [0, 1]], [[1, 0, 0, 0]] * 3, [[0, 0, 0, 0], [1, 0, 0, 0]], []):
        config = AlignmentConfig(layer_mapping_strategy="custom", layer_matrix=broken)
        with pytest.raises(ConfigError, match="layer_matrix"):
            resolve_layer_map(config, teacher, student)
    cka = AlignmentConfig(layer_mapping_strategy="cka")
    with pytest.raises(ConfigError, match="similarity"):
        resolve_layer_map(cka, teacher, student)
    similarity = torch.tensor([[0.1, 0.9, 0.3, 0.2], [0.1, 0.2, 0.6, 0.2]])
    found = resolve_layer_map(cka, teacher, student, similarity)
    torch.testing.assert_close(found[0], torch.tensor([0, 0.75, 0.25, 0]))


def test_similarity_is_cka_of_keys_on_the_tokens_of_the_text():
    trace_t, trace_s = traces()
    warp = text_warp(trace_t.offsets, trace_t.attention_mask, trace_s.offsets, trace_s.attention_mask)
    found = layer_similarity(trace_t, trace_s, warp, "pre_rope")
    assert found.shape == (4, 4)
    for student in range(4):
        for teacher in range(4):
            x = warp.apply(trace_t.keys("pre_rope"))[0, teacher].transpose(0, 1).flatten(1)
            y = trace_s.keys("pre_rope")[0, student].transpose(0, 1).flatten(1)
            assert float(found[student, teacher]) == pytest.approx(linear_cka(x, y), abs=1e-6)
    own = layer_similarity(trace_t, trace_t, warp, "pre_rope")
    torch.testing.assert_close(own.diagonal(), torch.ones(4), atol=1e-5, rtol=0)


def test_time_methods_follow_the_texts():
    trace_t, trace_s = traces()
    ids = torch.zeros(trace_t.attention_mask.shape, dtype=torch.long)
    ids[0, 10:] = 1
    by_text = text_warp(trace_t.offsets, trace_t.attention_mask, trace_s.offsets, trace_s.attention_mask)

    def warp(method, same):
        return resolve_warp(AlignmentConfig(time_method=method), trace_t, trace_s, ids, ids, same).matrix()

    assert torch.equal(warp("auto", True), by_text.matrix())
    assert torch.equal(warp("text", True), by_text.matrix())
    with pytest.raises(ConfigError, match="same text"):
        warp("text", False)
    assert torch.equal(warp("auto", False), warp("linear", True))


def test_what_cannot_be_fitted_says_so():
    teacher, student = family("llama").geometry, family("qwen3").geometry
    matrix = layer_map(4, 4)
    with pytest.raises(ConfigError, match="needs a calibration"):
        make_aligner(teacher, student, AlignmentConfig(), matrix, None)
    elastic = {"kv_projection_mode": "flat", "flat_kind": "elastic"}
    with pytest.raises(ConfigError, match="no closed form"):
        make_aligner(teacher, student, AlignmentConfig(**elastic), matrix, None)
    for options in (elastic | {"init": "random"}, {"init": "uniform"}, IDENTITY):
        _, report = make_aligner(teacher, student, AlignmentConfig(**options), matrix, None)
        assert report is None
