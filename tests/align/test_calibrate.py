"""Calibration: two tiny random models read texts once; the sums are those of the states themselves."""

import copy
import json
import os
import threading
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer

from kvviz.align import calibrate
from kvviz.align.aligner import PARTS
from kvviz.align.calibrate import (
    Calibration,
    CalibrationCancelled,
    CalibrationError,
    CalibrationTexts,
    calibration_key,
    collect,
    load,
    memory_needed,
    save,
)
from kvviz.align.layers import layer_map
from kvviz.align.moments import CrossMoments, Moments
from kvviz.align.text import text_warp
from kvviz.capture import capture
from kvviz.geometry import Geometry
from kvviz.pair import wrap_model
from tests.families import byte_tokenizer, family, model

WORDS = "two apples cost nine cents and the baker sold them all before noon".split()
TEXTS = [" ".join(WORDS[start : start + 2 + start % 3]) for start in range(9)]
SPLITS = CalibrationTexts(tuple(TEXTS[:4]), tuple(TEXTS[4:6]), tuple(TEXTS[6:]))
MATRIX = layer_map(2, 4)


def merging_tokenizer():
    """The byte tokenizer with a few merges: other tokens for the same text."""
    tokenizer = copy.deepcopy(byte_tokenizer())
    spec = json.loads(tokenizer.backend_tokenizer.to_str())
    merges = [["t", "h"], ["th", "e"], ["Ġ", "a"], ["e", "s"], ["Ġa", "n"]]
    for left, right in merges:
        spec["model"]["vocab"][left + right] = len(spec["model"]["vocab"])
    spec["model"]["merges"] = merges
    return type(tokenizer)(
        tokenizer_object=Tokenizer.from_str(json.dumps(spec)),
        pad_token="<pad>",
        bos_token="<bos>",
        eos_token="<eos>",
    )


@pytest.fixture(scope="module")
def pair():
    student = model(
        "llama", seed=1, vocab_size=270, num_hidden_layers=2, num_attention_heads=6, num_key_value_heads=3
    )
    return family("llama"), wrap_model(student, merging_tokenizer(), name="student")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("KVVIZ_CACHE", str(tmp_path))
    return tmp_path / "calibration"


def states_of(trace, part, key_space):
    """`[layer, position, channel]` of one text."""
    if part == "v":
        x = trace.v
    else:
        x = trace.keys(key_space) if part == "k" else trace.queries(key_space)
    return x[0].double().permute(0, 2, 1, 3).flatten(2).numpy()


def direct(pair, texts, part, key_space):
    """Sums over texts read one at a time, so without padding, warped by the dense matrix."""
    sums = None
    for text in texts:
        trace_t, trace_s = (capture(loaded, [text]) for loaded in pair)
        warp = text_warp(trace_t.offsets, trace_t.attention_mask, trace_s.offsets, trace_s.attention_mask)
        x = np.einsum("st,ltn->lsn", warp.matrix()[0].double().numpy(), states_of(trace_t, part, key_space))
        y = states_of(trace_s, part, key_space)
        own = {
            "count": np.array(float(y.shape[1])),
            "x_sum": x.sum(1),
            "y_sum": y.sum(1),
            "xx": np.einsum("apn,bpo->anbo", x, x),
            "xy": np.einsum("apn,bpm->anbm", x, y),
            "yy": (y**2).sum(1),
        }
        sums = own if sums is None else {name: sums[name] + own[name] for name in sums}
    return sums


@pytest.mark.parametrize("key_space", ["pre_rope", "post_rope"])
def test_sums_are_those_of_the_states_themselves(pair, key_space):
    found = collect(*pair, SPLITS, key_space, MATRIX, batch_size=3)
    assert found.layer_matrix is None
    for part in PARTS:
        for moments, texts in zip(
            found.splits[part], (SPLITS.fit, SPLITS.select, SPLITS.report), strict=True
        ):
            assert isinstance(moments, CrossMoments)
            for name, expected in direct(pair, texts, part, key_space).items():
                scale = np.abs(expected).max()
                np.testing.assert_allclose(
                    getattr(moments, name).numpy() / scale,
                    expected / scale,
                    atol=2e-5,
                    err_msg=f"{part} {name}",
                )


def test_the_two_read_different_tokens(pair):
    lengths = [
        [len(trace.tokens[0]) for trace in (capture(loaded, [text]) for loaded in pair)] for text in TEXTS
    ]
    assert any(teacher != student for teacher, student in lengths)


def test_batches_make_no_difference(pair):
    one, many = (collect(*pair, SPLITS, "pre_rope", MATRIX, batch_size=size) for size in (1, 10))
    for part in PARTS:
        for a, b in zip(one.splits[part], many.splits[part], strict=True):
            assert a.count == b.count
            torch.testing.assert_close(a.xy, b.xy, rtol=1e-4, atol=1e-3)


def test_a_large_pair_has_its_layer_map_baked_in(pair, monkeypatch):
    cross = collect(*pair, SPLITS, "pre_rope", MATRIX).under(MATRIX)
    monkeypatch.setattr(calibrate, "CROSS_LIMIT", 0)
    baked = collect(*pair, SPLITS, "pre_rope", MATRIX)
    assert torch.equal(baked.layer_matrix, MATRIX)
    for part in PARTS:
        for name in ("fit", "select", "report"):
            a, b = getattr(baked.under(MATRIX)[part], name), getattr(cross[part], name)
            assert isinstance(a, Moments)
            for field in ("count", "x_sum", "y_sum", "xx", "xy", "yy"):
                torch.testing.assert_close(getattr(a, field), getattr(b, field), rtol=1e-4, atol=1e-2)


@pytest.mark.parametrize("cross", [True, False])
def test_saved_and_loaded_again_is_the_same(pair, folder, monkeypatch, cross):
    if not cross:
        monkeypatch.setattr(calibrate, "CROSS_LIMIT", 0)
    found = collect(*pair, SPLITS, "pre_rope", MATRIX)
    save("key", found)
    assert [path.name for path in folder.iterdir()] == ["key.safetensors"]
    again = load("key")
    assert (again.layer_matrix is None) == (found.layer_matrix is None) == cross
    for part in PARTS:
        for a, b in zip(found.splits[part], again.splits[part], strict=True):
            assert type(a) is type(b)
            for field in ("count", "x_sum", "y_sum", "xx", "xy", "yy"):
                assert torch.equal(getattr(a, field), getattr(b, field))
    assert load("another") is None


def spoil(path, how):
    if how == "cut short":
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    elif how == "empty":
        path.write_bytes(b"")
    elif how == "other bytes":
        path.write_bytes(b"not tensors at all" * 100)
    else:
        tensors = load_file(path)
        del tensors["k.1.xy"]
        save_file(tensors, path)


@pytest.mark.parametrize("how", ["cut short", "empty", "other bytes", "a tensor missing"])
def test_a_spoiled_file_is_removed(pair, folder, how):
    save("key", collect(*pair, SPLITS, "post_rope", MATRIX))
    spoil(folder / "key.safetensors", how)
    assert load("key") is None
    assert list(folder.iterdir()) == []


def test_a_write_that_fails_leaves_nothing(pair, folder, monkeypatch):
    def full(tensors, path):
        path.write_bytes(b"half")
        raise OSError("no space left")

    found = collect(*pair, SPLITS, "post_rope", MATRIX)
    monkeypatch.setattr(calibrate, "save_file", full)
    with pytest.raises(OSError, match="no space"):
        save("key", found)
    assert list(folder.iterdir()) == []


def test_the_key_names_all_the_sums_depend_on(pair, monkeypatch):
    teacher, student = pair
    key = calibration_key(teacher, student, SPLITS, "pre_rope", MATRIX)
    assert key == calibration_key(teacher, student, SPLITS, "pre_rope", MATRIX)
    other = wrap_model(model("llama", seed=5), byte_tokenizer())
    others = [
        calibration_key(other, student, SPLITS, "pre_rope", MATRIX),
        calibration_key(teacher, other, SPLITS, "pre_rope", MATRIX),
        calibration_key(student, teacher, SPLITS, "pre_rope", MATRIX),
        calibration_key(teacher, replace(student, dtype=torch.bfloat16), SPLITS, "pre_rope", MATRIX),
        calibration_key(teacher, student, SPLITS, "post_rope", MATRIX),
        calibration_key(teacher, student, replace(SPLITS, fit=SPLITS.fit[1:]), "pre_rope", MATRIX),
        calibration_key(
            teacher, student, replace(SPLITS, select=SPLITS.report, report=SPLITS.select), "pre_rope", MATRIX
        ),
    ]
    assert len({key, *others}) == len(others) + 1
    # All pairs of layers are kept, so the layer map is no part of the key until it is baked in.
    skip = layer_map(2, 4, "skip")
    assert calibration_key(teacher, student, SPLITS, "pre_rope", skip) == key
    monkeypatch.setattr(calibrate, "CROSS_LIMIT", 0)
    keys = {calibration_key(teacher, student, SPLITS, "pre_rope", m) for m in (MATRIX, skip)}
    assert len(keys) == 2


def test_progress_is_told_and_a_stop_is_heard(pair):
    told, stop = [], threading.Event()
    collect(*pair, SPLITS, "post_rope", MATRIX, batch_size=2, progress=lambda *counts: told.append(counts))
    assert told == [(2, 9), (4, 9), (6, 9), (8, 9), (9, 9)]
    told.clear()

    def stop_at_once(done, total):
        told.append(done)
        stop.set()

    with pytest.raises(CalibrationCancelled):
        collect(*pair, SPLITS, "post_rope", MATRIX, batch_size=2, progress=stop_at_once, stop=stop)
    assert told == [2]


def test_moments_too_large_for_memory_are_refused(pair, monkeypatch):
    monkeypatch.setattr(calibrate, "MEMORY_LIMIT", 1000)
    with pytest.raises(CalibrationError, match="GiB, over the limit"):
        collect(*pair, SPLITS, "pre_rope", MATRIX)


def test_the_memory_foreseen_is_that_of_the_sums(pair, monkeypatch):
    for limit in (calibrate.CROSS_LIMIT, 0):
        monkeypatch.setattr(calibrate, "CROSS_LIMIT", limit)
        found = collect(*pair, SPLITS, "post_rope", MATRIX)
        held = sum(sums.nbytes for splits in found.splits.values() for m in splits for sums in (m.xx, m.xy))
        assert memory_needed(pair[0].geometry, pair[1].geometry) == held
    # Llama 3.1 70B onto 8B: far past what fits for every pair of layers.
    monkeypatch.undo()
    large = Geometry(layers=80, heads=64, kv_heads=8, head_dim=128, value_dim=128)
    small = Geometry(layers=32, heads=32, kv_heads=8, head_dim=128, value_dim=128)
    assert not calibrate.fits_cross(large)
    assert memory_needed(large, small) > calibrate.MEMORY_LIMIT


@pytest.mark.parametrize("missing", ["fit", "select", "report"])
def test_an_empty_split_is_refused(pair, missing):
    with pytest.raises(CalibrationError, match="at least one text"):
        collect(*pair, replace(SPLITS, **{missing: ()}), "post_rope", MATRIX)


def test_bundled_texts_are_disjoint():
    texts = CalibrationTexts.bundled()
    assert [len(split) for split in (texts.fit, texts.select, texts.report)] == [160, 40, 60]
    assert len({*texts.fit, *texts.select, *texts.report}) == 260
    assert CalibrationTexts.bundled() == texts


def test_own_texts_are_dealt_out_once():
    texts = [f"text {number}" for number in range(23)]
    dealt = CalibrationTexts.split([*texts, "", "  \n", *texts])
    assert sorted([*dealt.fit, *dealt.select, *dealt.report]) == sorted(texts)
    assert len(dealt.fit) > len(dealt.report) >= len(dealt.select) >= 2
    ten = CalibrationTexts.split(texts[:10])
    assert [len(split) for split in (ten.fit, ten.select, ten.report)] == [7, 1, 2]


@pytest.mark.parametrize("texts", [[], ["a"] * 30, [str(n) for n in range(9)], [" ", "\n"] * 20])
def test_too_few_texts_are_refused(texts):
    with pytest.raises(CalibrationError, match="at least 10"):
        CalibrationTexts.split(texts)


def test_baked_sums_serve_only_the_layer_map_they_were_made_for():
    moments = Moments.of(torch.randn(2, 5, 3), torch.randn(2, 5, 3))
    calibration = Calibration(dict.fromkeys(PARTS, (moments,) * 3), layer_matrix=MATRIX)
    assert calibration.under(MATRIX)["k"].fit is moments
    with pytest.raises(CalibrationError, match="another layer map"):
        calibration.under(MATRIX.flip(0))


def test_only_the_newest_calibrations_are_kept(tmp_path, monkeypatch):
    monkeypatch.setenv("KVVIZ_CACHE", str(tmp_path))
    folder = calibrate.cache_folder()
    folder.mkdir(parents=True)
    for age, name in enumerate(("new", "old", "oldest")):
        path = folder / f"{name}.safetensors"
        path.write_bytes(b"x" * 100)
        os.utime(path, (1e9 - age, 1e9 - age))
    monkeypatch.setattr(calibrate, "KEPT_BYTES", 200)
    calibrate._forget_oldest(folder)
    assert sorted(path.stem for path in folder.iterdir()) == ["new", "old"]
    monkeypatch.setattr(calibrate, "KEPT_BYTES", 1)
    calibrate._forget_oldest(folder)
    assert [path.stem for path in folder.iterdir()] == ["new"]
