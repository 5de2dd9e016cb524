"""Bad input: each gets a message in place or a sensible clamp; the sidebar stays alive and nothing is lost."""

from __future__ import annotations

import json
import shutil
import time

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM, MambaConfig, MambaForCausalLM

from app.view import View
from kvviz import bundled
from kvviz.align import calibrate
from kvviz.config import AlignmentConfig
from tests.app.browsing import HOSTILE, charts, notes, open_at, specs

PAGES = ["overview", "layers", "segments", "heads", "errors", "attention"]
RIGHT_TO_LEFT = "שלום עולם\u202e مرحبا بالعالم 👩‍👩‍👧‍👦🏳️‍🌈 ﷽ e\u0301\n\u200b\u2067#### 7\u2069"


def said(app) -> str:
    """What the page shows, without the backslashes that keep a message from being markup."""
    return notes(app).replace("\\", "")


def alive(app) -> None:
    """No unexpected error, and the sidebar is there to change what is wrong."""
    assert not app.exception
    assert "#### Pair" in [element.value for element in app.sidebar.markdown]
    assert app.sidebar.text_input(key="control.teacher").value == app.session_state["view"].teacher


def refused(app, *words: str) -> None:
    """An explained error in place of the page."""
    alive(app)
    assert len(app.error) == 1
    assert charts(app) == 0
    for word in words:
        assert word in said(app)


# --- texts ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["", "   \n\t  "])
@pytest.mark.parametrize("page", PAGES)
def test_an_empty_prompt_says_what_to_type(page, text):
    refused(open_at(page, source="own", text=text), "There is no text yet", "sidebar")


def test_from_an_empty_prompt_one_types_on():
    app = open_at("overview", source="own", layer=2)
    app.sidebar.text_area(key="control.text").set_value("Two and two make four.").run()
    alive(app)
    assert not app.error
    assert charts(app) == 2
    assert app.session_state["view"].layer == 2


def test_the_student_without_its_own_text():
    refused(open_at("overview", source="own", text="a b", student_reads="own"), "The student has no text")


def test_a_prompt_longer_than_the_context_names_both_lengths_and_is_kept():
    text = "one two " * 1500
    app = open_at("overview", source="own", text=text)
    refused(app, "too long", "1,024", "Shorten it")
    assert app.sidebar.text_area(key="control.text").value == text


def test_ten_megabytes_are_refused_within_seconds():
    app = open_at("overview", source="own")
    text = "All work and no play. " * (10 * 2**20 // 22)
    started = time.monotonic()
    app.sidebar.text_area(key="control.text").set_value(text).run()
    assert time.monotonic() - started < 10
    refused(app, "too long", "Shorten it")
    assert app.session_state["view"].text == text
    assert "text" not in app.query_params
    assert "kept in this session" in said(app) + "".join(item.value for item in app.sidebar.caption)


@pytest.mark.parametrize(
    "text",
    [RIGHT_TO_LEFT, HOSTILE, "\0\x1b[31m\ufeff", "a", "é" * 300],
    ids="rtl html control one long".split(),
)
@pytest.mark.parametrize("page", PAGES)
def test_odd_texts_are_texts(page, text):
    app = open_at(page, source="own", text=text, part="k", head=0, segments="")
    alive(app)
    assert not app.error
    assert charts(app) >= 1
    for spec in specs(app):
        assert "<script" not in spec
        assert "<img" not in spec
    for element in app.get("html"):
        assert "<script" not in element.proto.body
        assert "<img" not in element.proto.body


# --- models -----------------------------------------------------------------------------------------


def copied(role, folder):
    return shutil.copytree(bundled.path(role), folder / role)


@pytest.mark.parametrize("page", PAGES)
def test_teacher_and_student_the_same_model_differ_in_nothing(page):
    app = open_at(
        page,
        teacher="bundled:student",
        student="bundled:student",
        kv_projection_mode="identity",
        part="k",
        head=0,
    )
    alive(app)
    assert not app.error
    if page == "overview":
        values = [metric.value for metric in app.metric]
        assert values[:3] == ["0.000", "0.000", "0.000"]


@pytest.mark.parametrize("field", ["teacher", "student"])
@pytest.mark.parametrize(
    "path", ["/no/such/folder", "", " ", "bundled:nobody", "<script>alert(1)</script>", "a/b/c/d", "\0", "~"]
)
def test_a_path_without_a_model(field, path):
    app = open_at("overview", **{field: path})
    refused(app)
    assert app.session_state["view"].model_dump()[field] == path
    app.sidebar.text_input(key=f"control.{field}").set_value(f"bundled:{field}").run()
    alive(app)
    assert not app.error
    assert charts(app) == 2


def test_a_folder_without_weights(tmp_path):
    folder = copied("student", tmp_path)
    (folder / "model.safetensors").unlink()
    refused(open_at("layers", student=str(folder)), "no weights")


def test_a_folder_with_only_pickled_weights(tmp_path):
    folder = copied("student", tmp_path)
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    refused(open_at("errors", student=str(folder)), "pytorch_model.bin", "only safetensors")


@pytest.mark.parametrize("share", [0.0, 0.001, 0.5, 0.999])
def test_truncated_weights(tmp_path, share):
    weights = copied("teacher", tmp_path) / "model.safetensors"
    content = weights.read_bytes()
    weights.write_bytes(content[: int(len(content) * share)])
    refused(open_at("overview", teacher=str(weights.parent)), "model.safetensors", "cut short")


def test_weights_of_another_model(tmp_path):
    folder = copied("teacher", tmp_path)
    shutil.copy(bundled.path("student") / "model.safetensors", folder)
    refused(open_at("overview", teacher=str(folder)))


def test_a_configuration_that_is_no_json(tmp_path):
    folder = copied("teacher", tmp_path)
    (folder / "config.json").write_text("{not json")
    refused(open_at("overview", teacher=str(folder)))


def test_a_model_without_attention(tmp_path):
    folder = copied("teacher", tmp_path)
    (folder / "config.json").unlink()
    (folder / "model.safetensors").unlink()
    MambaForCausalLM(MambaConfig(vocab_size=64, hidden_size=16, num_hidden_layers=2)).save_pretrained(folder)
    refused(open_at("overview", teacher=str(folder)), "attention")


def test_a_device_this_machine_has_not():
    missing = "mps" if torch.cuda.is_available() else "cuda"
    refused(open_at("overview", teacher_device=missing), missing, "auto or cpu")


def test_no_chat_template_is_needed(tmp_path):
    folder = copied("student", tmp_path)
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    settings.pop("chat_template", None)
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    (folder / "chat_template.jinja").unlink(missing_ok=True)
    chat = "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n<think>\nhm\n</think>\nHello"
    app = open_at("segments", student=str(folder), source="own", text=chat)
    alive(app)
    assert not app.error


# --- the address ------------------------------------------------------------------------------------

NONSENSE = dict.fromkeys((*View.model_fields, *AlignmentConfig.model_fields), "<b>nonsense</b>")
for free in ("teacher", "student", "text", "student_text", "teacher_revision", "student_revision"):
    del NONSENSE[free]


@pytest.mark.parametrize("page", PAGES)
def test_nonsense_in_every_field(page):
    app = open_at(page, **NONSENSE, unheard="of")
    alive(app)
    assert not app.error
    assert "Ignored" in said(app)
    assert "more fields of the address" in said(app)
    assert charts(app) >= 1
    assert not {"unheard", "metric", "layer"} & set(app.query_params)


@pytest.mark.parametrize("page", PAGES)
def test_numbers_beyond_every_end_are_clamped(page):
    far = 10**30
    app = open_at(page, part="q", layer=far, head=far, token=far, teacher_layer=far, segment=far)
    alive(app)
    assert not app.error
    assert charts(app) >= 2


@pytest.mark.parametrize(
    ("query", "named"),
    [
        ({"layer_mapping_strategy": "custom", "layer_matrix": "1,0;0,1"}, "layer_matrix"),
        ({"layer_mapping_strategy": "custom", "layer_matrix": "1;2,3"}, "layer_matrix"),
        ({"layer_mapping_strategy": "custom", "layer_matrix": ";".join(["0,0,0,0,0,0"] * 4)}, "layer_matrix"),
        ({"time_method": "text", "student_reads": "brief"}, "time_method"),
    ],
)
def test_an_alignment_that_cannot_be_made_is_undone_alone(query, named):
    app = open_at("layers", share_layers="true", layer=2, **query)
    refused(app, named)
    app.button(key="reset").click().run()
    alive(app)
    assert not app.error
    assert charts(app) >= 3
    assert app.session_state["view"].alignment.share_layers, "what was right is kept"
    assert app.session_state["view"].layer == 2


def test_an_elastic_projector_asked_to_fit_is_explained():
    app = open_at("errors", kv_projection_mode="flat", flat_kind="elastic")
    refused(app, "closed form")
    app.button(key="reset").click().run()
    assert charts(app) == 3


# --- calibration ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def other_pair(tmp_path_factory):
    """A pair nobody calibrated: random weights under the bundled tokenizers."""
    folder = tmp_path_factory.mktemp("pair")
    for seed, role in enumerate(("teacher", "student")):
        tokenizer = AutoTokenizer.from_pretrained(bundled.path(role))
        torch.manual_seed(seed)
        config = LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=32,
            intermediate_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            max_position_embeddings=256,
        )
        LlamaForCausalLM(config).save_pretrained(folder / role)
        tokenizer.save_pretrained(folder / role)
    return {role: str(folder / role) for role in ("teacher", "student")}


def uploaded(app, content: bytes):
    app.get("file_uploader")[0].upload("texts.txt", content, "text/plain")
    return next(button for button in app.button if button.label == "Calibrate this pair").click().run()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"\xff\xfe\x00bad", "not UTF-8"),
        (b"", "too few"),
        (b"one\n\ntwo\n\nthree", "too few"),
        (b"\n\n".join(b"%d and %d " % (n, n) * 400 for n in range(12)), "too long"),
    ],
    ids=["latin", "empty", "short", "beyond the context"],
)
def test_calibration_texts_that_cannot_be_used(other_pair, content, words):
    app = uploaded(open_at("overview", source="own", text="1 2 3", **other_pair), content)
    alive(app)
    assert words in said(app)
    assert charts(app) >= 1, "the uniform start is shown all the same"
    assert "calibration_texts" not in app.session_state


def test_a_broken_calibration_on_disk_is_made_again(tmp_path, monkeypatch, other_pair):
    monkeypatch.setenv("KVVIZ_CACHE", str(tmp_path))
    paragraphs = "\r\n\r\n".join(f"{n} plus {n} is {2 * n}." for n in range(12)).encode()
    app = uploaded(open_at("overview", source="own", text="1 2 3", **other_pair), paragraphs)
    alive(app)
    assert "not calibrated" not in said(app)
    (kept,) = calibrate.cache_folder().glob("*.safetensors")
    whole = kept.read_bytes()
    for broken in (b"", b"nonsense", whole[:100], whole[:-8]):
        kept.write_bytes(broken)
        assert calibrate.load(kept.stem) is None
        kept.write_bytes(broken)
        alive(open_at("overview", source="own", text="1 2 3", **other_pair))


def test_a_cache_that_cannot_be_written_is_said(tmp_path, monkeypatch, other_pair):
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("KVVIZ_CACHE", str(tmp_path / "file"))
    paragraphs = "\n\n".join(f"{n} less {n} is 0." for n in range(12)).encode()
    app = uploaded(open_at("overview", source="own", text="1 2 3", **other_pair), paragraphs)
    alive(app)
    assert "KVVIZ_CACHE" in said(app)
