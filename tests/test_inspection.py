"""An inspection computes what is asked for, once, and refits only when the fit would differ."""

import pytest
import torch

from kvviz import inspection as inspection_module
from kvviz.align import calibrate
from kvviz.align.aligner import PARTS
from kvviz.align.calibrate import CalibrationTexts
from kvviz.align.text import text_warp
from kvviz.config import AlignmentConfig
from kvviz.errors import PromptError
from kvviz.inspection import Inspection, Prompt, inspect, read
from kvviz.pair import wrap_model
from kvviz.segments import Segment
from tests.families import byte_tokenizer, family, model

LONG = "Ann had 12 pens.\nShe lost 5 of them, so 12 - 5 = 7 are left.\nThat is all.\n#### 7"
SHORT = "Ann had 12 pens.\n12 - 5 = 7.\n#### 7"
TEXTS = CalibrationTexts.split([f"Bo has {n} of {n + 3} keys." for n in range(12)])
UNIFORM = AlignmentConfig(init="uniform")


@pytest.fixture(scope="module")
def pair():
    settings = {"num_hidden_layers": 2, "num_attention_heads": 6, "num_key_value_heads": 3}
    return family("llama"), wrap_model(model("llama", seed=2, **settings), byte_tokenizer(), name="student")


@pytest.fixture(scope="module")
def fitted(pair, tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KVVIZ_CACHE", str(tmp_path_factory.mktemp("fitted")))
        yield inspect(*pair, LONG, texts=TEXTS)


def test_a_calibration_is_made_once_and_read_from_disk_after(pair, tmp_path, monkeypatch):
    monkeypatch.setenv("KVVIZ_CACHE", str(tmp_path))
    told = []
    first = inspect(*pair, LONG, texts=TEXTS, progress=lambda *counts: told.append(counts))
    assert told[-1] == (12, 12)
    told.clear()
    again = inspect(*pair, SHORT, texts=TEXTS, progress=lambda *counts: told.append(counts))
    assert told == []
    for part in PARTS:
        assert first.fit_report.scores[part].total_r2 == again.fit_report.scores[part].total_r2
    file = next((tmp_path / "calibration").iterdir())
    file.write_bytes(file.read_bytes()[:100])
    inspect(*pair, LONG, texts=TEXTS, progress=lambda *counts: told.append(counts))
    assert told[-1] == (12, 12)


@pytest.mark.parametrize(
    "config", [UNIFORM, AlignmentConfig(init="random"), AlignmentConfig(kv_projection_mode="identity")]
)
def test_nothing_is_calibrated_where_nothing_is_fitted(pair, monkeypatch, config):
    monkeypatch.setattr(calibrate, "collect", lambda *_, **__: pytest.fail("calibrated"))
    found = inspect(*pair, LONG, config)
    assert found.calibration is None
    assert found.fit_report is None
    assert found.held_out(kv_projection_mode="identity") is None
    assert found.errors["k"].relative_error.isfinite().all()


def test_nothing_is_computed_before_it_is_read(pair, monkeypatch):
    found = Inspection(read(*pair, Prompt(LONG)), UNIFORM)
    monkeypatch.setattr(inspection_module, "align", lambda *_: pytest.fail("aligned"))
    assert found.warp.T_t == len(found.reading.trace_t.tokens[0])
    assert found.layer_matrix.shape == (2, 4)
    assert found.aligner.parameter_count() > 0
    assert not {"alignment", "errors", "attention"} & set(vars(found))


def test_what_is_read_twice_is_computed_once(fitted):
    for name in (
        "warp",
        "layer_matrix",
        "made",
        "alignment",
        "errors",
        "attention",
        "baseline",
        "similarity",
    ):
        assert getattr(fitted, name) is getattr(fitted, name)


@pytest.mark.parametrize(
    "changes",
    [
        {"alpha_map": ((0, 0.5),)},
        {"time_method": "linear"},
        {"attention_target": "mixed"},
        {"target_length": 9},
    ],
)
def test_a_slider_that_is_no_part_of_the_fit_does_not_fit_again(fitted, changes):
    moved = Inspection(fitted.reading, fitted.config.model_copy(update=changes), fitted.calibration)
    assert moved.made is fitted.made


@pytest.mark.parametrize(
    "changes",
    [
        {"kv_projection_mode": "flat"},
        {"share_dim_proj": False},
        {"share_layers": True},
        {"offset": False},
        {"init": "random"},
        {"layer_mapping_strategy": "skip"},
    ],
)
def test_a_choice_that_is_part_of_the_fit_fits_again(fitted, changes):
    moved = Inspection(fitted.reading, fitted.config.model_copy(update=changes), fitted.calibration)
    assert moved.made is not fitted.made
    assert moved.fit_report.scores["k"].total_r2 != fitted.fit_report.scores["k"].total_r2


def test_held_out_scores_of_another_form_are_those_of_its_own_inspection(fitted):
    for changes in ({"kv_projection_mode": "flat"}, {"kv_projection_mode": "identity"}, {"init": "uniform"}):
        other = Inspection(fitted.reading, fitted.config.model_copy(update=changes), fitted.calibration)
        for part in PARTS:
            assert fitted.held_out(**changes).scores[part].total_r2 == other.fit_report.scores[part].total_r2


def test_fitted_maps_beat_every_start(fitted):
    best = fitted.fit_report.scores
    for changes in ({"kv_projection_mode": "identity"}, {"init": "uniform"}, {"init": "random"}):
        other = fitted.held_out(**changes).scores
        for part in PARTS:
            assert best[part].total_error < other[part].total_error, (part, changes)


def test_the_baseline_is_the_identity_on_the_same_layers_and_time(fitted):
    assert fitted.baseline.warp is fitted.warp
    assert torch.equal(fitted.baseline.layer_matrix, fitted.layer_matrix)
    x = torch.einsum("st,bthpd->bshpd", fitted.layer_matrix, fitted.reading.trace_t.v)
    x = fitted.warp.apply(x)
    # Two teacher heads onto three: the first reads head 0 twice over.
    expected = torch.stack([x[:, :, 0], x[:, :, 0], x[:, :, 1]], dim=2)[..., :8]
    torch.testing.assert_close(fitted.baseline.aligned["v"], expected)
    assert fitted.baseline_attention.rows.shape == fitted.attention.rows.shape


def test_the_same_text_is_paired_by_characters(pair):
    for prompt in (Prompt(LONG), Prompt(LONG, LONG)):
        found = Inspection(read(*pair, prompt), UNIFORM)
        trace_t, trace_s = found.reading.trace_t, found.reading.trace_s
        expected = text_warp(trace_t.offsets, trace_t.attention_mask, trace_s.offsets, trace_s.attention_mask)
        assert torch.equal(found.warp.matrix(), expected.matrix())


def test_a_shorter_text_is_paired_segment_by_segment(pair):
    reading = read(*pair, Prompt(LONG, SHORT))
    assert reading.trace_t.texts == [LONG]
    assert reading.trace_s.texts == [SHORT]
    assert reading.segments_s[0].kind == "prompt"
    assert reading.segments_s[-1].kind == "answer"
    found = Inspection(reading, UNIFORM)
    matrix = found.warp.matrix()[0]
    torch.testing.assert_close(matrix.sum(1), torch.ones(len(reading.trace_s.tokens[0])))
    # A student token reads teacher tokens of its own segment and of no other.
    read_by = matrix @ torch.nn.functional.one_hot(reading.ids_t[0]).float()
    own = torch.nn.functional.one_hot(reading.ids_s[0], read_by.shape[1]).float()
    torch.testing.assert_close(read_by, own)
    assert set(reading.names) >= set(reading.ids_t[0].tolist()) | set(reading.ids_s[0].tolist())


def test_segments_somebody_drew_are_kept(pair):
    cut = 17
    drawn = (Segment("head", 0, cut, "prompt"), Segment("tail", cut, len(LONG), "answer"))
    reading = read(*pair, Prompt(LONG, segments=drawn))
    assert reading.segments_t == reading.segments_s == drawn
    assert sorted(reading.names.values()) == ["head", "tail"]
    starts = reading.trace_t.offsets[0, :, 0]
    change = int((reading.ids_t[0].diff() != 0).nonzero()[0]) + 1
    assert starts[change] == cut


def test_cka_reads_the_layers_most_alike(pair):
    found = Inspection(
        read(*pair, Prompt(LONG)), UNIFORM.model_copy(update={"layer_mapping_strategy": "cka"})
    )
    assert ((found.layer_matrix > 0).sum(1) == 2).all()
    for row, similar in zip(found.layer_matrix, found.similarity, strict=True):
        assert set(row.nonzero().flatten().tolist()) == set(similar.topk(2).indices.tolist())
    assert found.alignment.layer_matrix is not None
    torch.testing.assert_close(found.alignment.layer_matrix, found.layer_matrix)


@pytest.mark.parametrize("text", ["", "   \n"])
def test_an_empty_prompt_is_refused(pair, text):
    with pytest.raises(PromptError):
        read(*pair, Prompt(text))


@pytest.mark.parametrize("text", ["x", "مرحبا بالعالم", "🦆🦢 and 👩‍👩‍👧", "<script>alert(1)</script>"])
def test_any_text_can_be_inspected(pair, text):
    found = inspect(*pair, text, UNIFORM)
    assert found.errors["v"].relative_error.isfinite().all()
    assert found.attention.mean >= -1e-6
