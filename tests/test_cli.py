"""The command line: the same configuration as everywhere else, and messages instead of tracebacks."""

import json

import pytest

from kvviz import AlignmentConfig
from kvviz.cli import main

TEXT = "Question: Tom has 3 apples.\nReasoning:\n3 + 4 = 7\n#### 7"


def test_profile_json_has_the_promised_keys(capsys):
    assert main(["profile", "--mode", "structured", "--init", "uniform", "--text", TEXT, "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert {
        "teacher",
        "student",
        "stages",
        "parameters",
        "finite",
        "k_cosine",
        "v_cosine",
        "attention_kl",
        "identity",
    } <= set(report)
    assert {"name", "shape", "seconds", "peak_bytes"} == set(report["stages"][0])
    assert {"k_cosine", "v_cosine", "attention_kl"} <= set(report["identity"])
    assert report["config"]["init"] == "uniform"


def test_profile_table_is_readable(capsys):
    assert main(["profile", "--mode", "identity", "--text", TEXT]) == 0
    out = capsys.readouterr().out
    assert "identity" in out
    assert "attention kl, nats" in out


def test_flags_go_on_top_of_the_yaml(tmp_path, capsys):
    path = tmp_path / "config.yaml"
    path.write_text("kv_projection_mode: flat\ninit_uniform: false\nshare_layers: true\n")
    assert AlignmentConfig.from_yaml(path).init == "random"
    assert main(["profile", "--config", str(path), "--share-layers", "false", "--text", TEXT, "--json"]) == 0
    config = json.loads(capsys.readouterr().out)["config"]
    assert (config["kv_projection_mode"], config["init"], config["share_layers"]) == ("flat", "random", False)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--mode", "sideways"], ["kv_projection_mode", "sideways", "structured, flat, identity"]),
        (["--seed", "x"], ["seed", "'x'"]),
        (["--teacher", "/no/such/folder"], ["/no/such/folder", "do:"]),
        (["--text", ""], ["why:"]),
        (["--text", "a", "--text-file", "b"], ["not both"]),
        (["--text-file", "/no/such/file"], ["/no/such/file"]),
        (["--config", "/no/such.yaml"], ["/no/such.yaml"]),
    ],
)
def test_unusable_input_is_explained_without_a_traceback(arguments, words, capsys):
    assert main(["profile", *arguments]) == 2
    message = capsys.readouterr().err
    for word in words:
        assert word in message
    assert "Traceback" not in message


def test_help_names_every_alignment_field(capsys):
    with pytest.raises(SystemExit):
        main(["profile", "--help"])
    out = capsys.readouterr().out
    for name in AlignmentConfig.model_fields:
        if name != "loss_config":
            assert f"--{name.replace('_', '-')}" in out
