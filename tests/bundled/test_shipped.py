"""The files that ship: small, safe, readable without a network, and as good as the card says."""

import json

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

from kvviz.bundled import HERE, card, path
from kvviz.bundled.evaluate import exact_match, wilson_interval
from kvviz.bundled.problems import problems
from kvviz.bundled.train import card_text

ROLES = ["teacher", "student"]


def load(role):
    model = AutoModelForCausalLM.from_pretrained(path(role), local_files_only=True, use_safetensors=True)
    return model, AutoTokenizer.from_pretrained(path(role), local_files_only=True)


def test_all_bundled_files_are_small_and_weights_are_safetensors_only():
    files = [f for role in ROLES for f in path(role).rglob("*") if f.is_file()]
    files += [HERE / "card.json", HERE / "CARD.md"]
    assert sum(f.stat().st_size for f in files) <= 16 * 2**20
    assert {f.suffix for f in files} <= {".safetensors", ".json", ".md"}
    assert all((path(role) / "model.safetensors").is_file() for role in ROLES)


def test_the_two_differ_in_everything_the_aligner_bridges():
    configs = [json.loads((path(role) / "config.json").read_text()) for role in ROLES]
    for key in ("num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_dim", "vocab_size"):
        assert configs[0][key] != configs[1][key], key
    assert configs[0]["rope_parameters"]["rope_theta"] != configs[1]["rope_parameters"]["rope_theta"]
    for config in configs:
        assert config["model_type"] == "llama"
        assert config["num_key_value_heads"] < config["num_attention_heads"]


def test_the_teacher_solves_most_problems():
    correct, n = exact_match(*load("teacher"), problems(40, "heldout", 3), batch_size=40)
    assert correct / n >= 0.8


def test_the_student_is_partly_trained():
    correct, n = exact_match(*load("student"), problems(60, "heldout", 3), batch_size=60)
    assert 0.1 <= correct / n <= 0.75


@pytest.mark.parametrize(("role", "low", "high"), [("teacher", 0.9, 1.0), ("student", 0.2, 0.6)])
def test_the_card_reports_the_figures_asked_for(role, low, high):
    entry = card()[role]
    exact = entry["exact_match"]
    assert exact["n"] == 500
    assert low <= exact["correct"] / exact["n"] <= high
    assert (exact["low"], exact["high"]) == pytest.approx(wilson_interval(exact["correct"], exact["n"]))
    assert entry["training_seconds"] > 0
    assert len(set(entry["seeds"].values())) == 3


def test_the_card_to_read_is_the_one_written_from_the_numbers():
    assert (HERE / "CARD.md").read_text(encoding="utf-8") == card_text(card())


def test_an_unknown_role_is_refused():
    with pytest.raises(ValueError, match="role"):
        path("assistant")
