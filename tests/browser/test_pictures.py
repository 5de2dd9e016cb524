"""Pictures of all pages, kept in tests/artifacts to be looked at; none may overflow, show "nan" or an error."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from kvviz import bundled

ARTIFACTS = Path(__file__).resolve().parents[1] / "artifacts"
# Each page with something selected, so that the picture shows all it has.
PAGES = {
    "overview": {},
    "layers": {"layer": 1, "teacher_layer": 2},
    "segments": {"segment": 1},
    "heads": {"part": "k", "layer": 1, "head": 1},
    "errors": {"part": "k", "layer": 1, "head": 1, "token": 12},
    "attention": {"part": "q", "layer": 1, "head": 2, "token": 40},
}
NONSENSE = re.compile(r"\b(nan|undefined|NaN|null|None|inf)\b")


def looks_right(visitor) -> None:
    page = visitor.page
    wider = page.evaluate(
        """() => ['stMain', 'stSidebarContent'].map(id => document.querySelector(`[data-testid=${id}]`))
            .filter(box => box && box.scrollWidth > box.clientWidth + 1).map(box => box.dataset.testid)"""
    )
    assert wider == [], "nothing overflows sideways"
    assert page.get_by_test_id("stAlertContentError").count() == 0
    assert NONSENSE.findall(visitor.text()) == []
    assert NONSENSE.findall("\n".join(page.locator(".js-plotly-plot svg text").all_text_contents())) == []


@pytest.mark.parametrize("name", PAGES)
def test_every_page_in_both_themes_and_widths(visitor, name):
    ARTIFACTS.mkdir(exist_ok=True)
    for scheme in ("light", "dark"):
        visitor.page.emulate_media(color_scheme=scheme)
        visitor.page.set_viewport_size({"width": 1280, "height": 900})
        visitor.open(name, **PAGES[name])
        for width in (1280, 1920):
            visitor.page.set_viewport_size({"width": width, "height": 900})
            visitor.ready()
            visitor.whole_page()
            visitor.ready()
            visitor.page.screenshot(path=ARTIFACTS / f"{name}-{width}-{scheme}.png")
            looks_right(visitor)


@pytest.fixture(scope="module")
def wide_pair(tmp_path_factory) -> dict[str, str]:
    """24 layers × 32 heads onto 12 × 16, random weights, the bundled tokenizers: the size of the v4.0 report's pair."""
    folder = tmp_path_factory.mktemp("wide")
    shapes = {"teacher": (24, 32, 32), "student": (12, 16, 8)}
    for seed, (role, (layers, heads, kv_heads)) in enumerate(shapes.items()):
        tokenizer = AutoTokenizer.from_pretrained(bundled.path(role))
        torch.manual_seed(seed)
        model = LlamaForCausalLM(
            LlamaConfig(
                vocab_size=len(tokenizer),
                hidden_size=128,
                intermediate_size=128,
                num_hidden_layers=layers,
                num_attention_heads=heads,
                num_key_value_heads=kv_heads,
                head_dim=16,
                max_position_embeddings=2048,
            )
        )
        model.save_pretrained(folder / role)
        tokenizer.save_pretrained(folder / role)
    return {role: str(folder / role) for role in shapes}


@pytest.mark.parametrize("name", PAGES)
def test_a_wide_pair(visitor, wide_pair, name):
    ARTIFACTS.mkdir(exist_ok=True)
    visitor.open(name, **wide_pair, **PAGES[name])
    visitor.whole_page()
    visitor.ready()
    visitor.page.screenshot(path=ARTIFACTS / f"{name}-wide.png")
    looks_right(visitor)
