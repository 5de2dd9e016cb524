"""One configuration, five spellings: each reads back to an equal object, and what makes no sense is named."""

import math

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, Field, ValidationError

from kvviz.config import AlignmentConfig, ConfigError, LossConfig, tolerant

properties = settings(deadline=None, max_examples=60)
finite = st.floats(0, 1e6, allow_nan=False)
options = {
    "kv_projection_mode": st.sampled_from(["structured", "flat", "identity"]),
    "init": st.sampled_from(["fitted", "uniform", "random"]),
    "share_dim_proj": st.booleans(),
    "share_layers": st.booleans(),
    "offset": st.booleans(),
    "flat_kind": st.sampled_from(["linear", "elastic"]),
    "layer_mapping_strategy": st.sampled_from(["uniform", "ratio", "skip", "cka"]),
    "key_space": st.sampled_from(["auto", "pre_rope", "post_rope"]),
    "time_method": st.sampled_from(["auto", "text", "linear", "area"]),
    "alpha_map": st.dictionaries(st.integers(0, 40), st.floats(0, 1), max_size=4),
    "ratio_map": st.dictionaries(st.integers(0, 40), st.floats(0, 100), max_size=4),
    "target_length": st.none() | st.integers(1, 8192),
    "attention_target": st.sampled_from(["projected", "mixed"]),
    "seed": st.integers(0, 2**31 - 1),
    "loss_config": st.fixed_dictionaries(
        {},
        optional={
            "alpha_k": finite,
            "alpha_v": finite,
            "alpha_attn": finite,
            "temperature": st.floats(1e-6, 1e6),
        },
    ),
    "layer_matrix": st.none() | st.lists(st.lists(finite, min_size=3, max_size=3), min_size=1, max_size=4),
}


@st.composite
def configs(draw):
    values = draw(st.fixed_dictionaries({}, optional=options))
    if values.get("kv_projection_mode") == "flat" and values.get("flat_kind") == "elastic":
        values.pop("attention_target", None)  # an elastic projector has no weights by head to mix with
    config = AlignmentConfig.parse(values)
    if config.layer_matrix is not None and draw(st.booleans()):
        config = AlignmentConfig.parse({**config.model_dump(), "layer_mapping_strategy": "custom"})
    return config


@properties
@given(configs())
def test_every_spelling_reads_back_to_an_equal_object(tmp_path_factory, config):
    path = tmp_path_factory.mktemp("config") / "alignment.yaml"
    path.write_text(config.to_yaml(), encoding="utf-8")
    spellings = [
        AlignmentConfig.from_yaml(path),
        AlignmentConfig.model_validate_json(config.model_dump_json()),
        AlignmentConfig.parse(config.model_dump()),
        AlignmentConfig.parse(config.differences()),
    ]
    read, ignored = AlignmentConfig.from_query(config.to_query())
    assert ignored == []
    for other in (*spellings, read):
        assert other == config
        assert hash(other) == hash(config)


@properties
@given(configs())
def test_a_flag_a_field_reads_back(config):
    # Flags come as text, whatever the field's type.
    query = config.to_query()
    flags = {name: text for name, text in query.items() if not name.startswith("loss.")}
    flags["loss_config"] = {k.removeprefix("loss."): v for k, v in query.items() if k.startswith("loss.")}
    assert AlignmentConfig.parse(flags) == config


def test_the_default_is_spelled_by_nothing():
    assert AlignmentConfig().to_query() == {}
    assert AlignmentConfig().differences() == {}
    assert yaml.safe_load(AlignmentConfig().to_yaml()) == {}
    assert AlignmentConfig.from_query({}) == (AlignmentConfig(), [])


def test_frozen_and_hashable():
    config = AlignmentConfig(alpha_map={1: 0.5, 0: 1})
    assert config == AlignmentConfig(alpha_map="0:1,1:0.5") == AlignmentConfig(alpha_map=[[1, 0.5], [0, 1]])
    assert len({config, AlignmentConfig(alpha_map={0: 1, 1: 0.5})}) == 1
    with pytest.raises(ValidationError):
        config.seed = 3


def test_a_matrix_has_one_spelling():
    thirds = [[1 / 3, 2 / 3], [0, 1]]
    config = AlignmentConfig(layer_mapping_strategy="custom", layer_matrix=thirds)
    assert config.to_query()["layer_matrix"] == "0.333333,0.666667;0,1"
    assert AlignmentConfig.from_query(config.to_query())[0] == config


def test_the_reports_yaml(tmp_path):
    path = tmp_path / "report.yaml"
    path.write_text(
        "kv_projection_mode: flat\nshare_dim_proj: false\ninit_uniform: true\n"
        "loss_config: {alpha_k: 2, alpha_v: 0, alpha_attn: 1e-3}\n"
    )
    assert AlignmentConfig.from_yaml(path) == AlignmentConfig(
        kv_projection_mode="flat",
        share_dim_proj=False,
        init="uniform",
        loss_config=LossConfig(alpha_k=2, alpha_v=0, alpha_attn=0.001),
    )


@pytest.mark.parametrize(
    ("given", "init"),
    [(True, "uniform"), (False, "random"), ("true", "uniform"), ("False", "random")],
)
def test_init_uniform_sets_init(given, init):
    assert AlignmentConfig.parse({"init_uniform": given}).init == init
    assert AlignmentConfig.parse({"init_uniform": given, "init": init}).init == init
    assert AlignmentConfig.from_query({"init_uniform": str(given)}) == (AlignmentConfig(init=init), [])


def test_init_uniform_refuses_nonsense_and_contradiction():
    with pytest.raises(ConfigError, match="init_uniform: takes true or false, not 'maybe'"):
        AlignmentConfig.parse({"init_uniform": "maybe"})
    with pytest.raises(ConfigError, match="init_uniform: True contradicts init: fitted"):
        AlignmentConfig.parse({"init_uniform": True, "init": "fitted"})


@pytest.mark.parametrize(
    ("values", "words"),
    [
        (
            {"kv_projection_mod": "flat"},
            ["kv_projection_mod: unknown key", "kv_projection_mode", "init_uniform"],
        ),
        (
            {"kv_projection_mode": "curved"},
            ["kv_projection_mode: 'curved' is none of structured, flat, identity"],
        ),
        ({"share_layers": "perhaps"}, ["share_layers: 'perhaps'"]),
        ({"seed": -1}, ["seed: -1", "greater than or equal to 0"]),
        ({"seed": 1.5}, ["seed: 1.5"]),
        ({"seed": None}, ["seed: None"]),
        ({"target_length": 0}, ["target_length: 0"]),
        ({"target_length": 10**9}, ["target_length: 1000000000"]),
        ({"alpha_map": "0-1"}, ["alpha_map: '0-1'", "0:1.5,2:0.5"]),
        ({"alpha_map": {0: 1.5}}, ["alpha_map: segment 0 has 1.5, it takes 0 to 1"]),
        ({"alpha_map": {0: math.nan}}, ["alpha_map", "nan"]),
        ({"alpha_map": {math.inf: 1}}, ["alpha_map", "0:1.5,2:0.5"]),
        ({"alpha_map": "0:0.5,0:1"}, ["alpha_map", "names a segment twice"]),
        ({"ratio_map": {-1: 1}}, ["ratio_map: segment -1"]),
        ({"ratio_map": {0: math.inf}}, ["ratio_map", "inf"]),
        ({"layer_matrix": "1,x"}, ["layer_matrix: '1,x'", "rows of numbers"]),
        ({"layer_matrix": [[math.nan]]}, ["layer_matrix", "from 0 up"]),
        ({"layer_matrix": [[-1.0, 2.0]]}, ["layer_matrix", "from 0 up"]),
        ({"layer_mapping_strategy": "custom"}, ["custom needs a layer_matrix"]),
        ({"loss_config": {"alpha_q": 1}}, ["loss_config.alpha_q: unknown key; known are alpha_k, alpha_v"]),
        ({"loss_config": {"alpha_k": -1}}, ["loss_config.alpha_k: -1"]),
        ({"loss_config": {"alpha_k": math.inf}}, ["loss_config.alpha_k: inf"]),
        ({"loss_config": {"temperature": 0}}, ["loss_config.temperature: 0"]),
        ({"loss_config": "all"}, ["loss_config: 'all'"]),
        ({"seed": "x" * 500, "init": "best"}, ["seed: 'xxx", "init: 'best'"]),
    ],
)
def test_what_cannot_be_used_is_refused_by_name(values, words):
    with pytest.raises(ConfigError) as caught:
        AlignmentConfig.parse(values)
    for word in words:
        assert word in str(caught.value)
    assert all(len(line) < 600 for line in str(caught.value).splitlines())


def test_unknown_loss_terms_are_offered_the_loss_terms_only():
    with pytest.raises(ConfigError) as caught:
        AlignmentConfig.parse({"loss_config": {"alpha_q": 1}})
    assert "kv_projection_mode" not in str(caught.value)


@pytest.mark.parametrize("text", ["a: [", "- 1\n- 2\n", "just words", "\x00"])
def test_a_file_that_is_no_configuration_is_refused_with_its_name(tmp_path, text):
    path = tmp_path / "broken.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=r"broken\.yaml"):
        AlignmentConfig.from_yaml(path)


def test_files_that_are_missing_binary_or_empty(tmp_path):
    with pytest.raises(ConfigError, match=r"absent\.yaml"):
        AlignmentConfig.from_yaml(tmp_path / "absent.yaml")
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\xfa")
    with pytest.raises(ConfigError, match=r"binary\.yaml"):
        AlignmentConfig.from_yaml(tmp_path / "binary.yaml")
    (tmp_path / "empty.yaml").write_text("# nothing\n")
    assert AlignmentConfig.from_yaml(tmp_path / "empty.yaml") == AlignmentConfig()


def test_an_address_with_nonsense_keeps_the_rest_and_names_what_it_ignored():
    config, ignored = AlignmentConfig.from_query(
        {
            "kv_projection_mode": "curved",
            "seed": "7",
            "target_length": "soon",
            "loss.alpha_k": "heavy",
            "loss.alpha_v": "lots",
            "loss.alpha_attn": "2",
            "loss.alpha_q": "1",
            "teacher": "bundled:teacher",
            "loss_config": "3",
        }
    )
    assert config == AlignmentConfig(seed=7, loss_config=LossConfig(alpha_attn=2))
    named = sorted(message.partition(":")[0] for message in ignored)
    assert named == [
        "kv_projection_mode",
        "loss_config.alpha_k",
        "loss_config.alpha_q",
        "loss_config.alpha_v",
        "target_length",
    ]


@pytest.mark.parametrize(
    ("query", "expected", "named"),
    [
        ({"layer_mapping_strategy": "custom"}, {}, ["layer_mapping_strategy"]),
        (
            {"layer_mapping_strategy": "custom", "layer_matrix": "1;x"},
            {},
            ["layer_matrix", "layer_mapping_strategy"],
        ),
        ({"alpha_map": "0:7", "ratio_map": "0:2"}, {"ratio_map": {0: 2.0}}, ["alpha_map"]),
        ({"init_uniform": "maybe", "seed": "3"}, {"seed": 3}, ["init_uniform"]),
        ({"init_uniform": "true", "init": "fitted"}, {"init": "fitted"}, ["init_uniform"]),
    ],
)
def test_a_rule_between_fields_drops_the_one_it_names(query, expected, named):
    config, ignored = AlignmentConfig.from_query(query)
    assert config == AlignmentConfig(**expected)
    assert [message.partition(":")[0] for message in ignored] == named


@properties
@given(
    st.dictionaries(
        st.sampled_from(
            [*AlignmentConfig.model_fields, "init_uniform", "loss.alpha_k", "loss.temperature", "loss.x"]
        ),
        st.text(max_size=8) | st.sampled_from(["1", "0:1", "custom", "true", "nan", "inf", "-1", "1e999"]),
    )
)
def test_no_address_is_refused(query):
    config, ignored = AlignmentConfig.from_query(query)
    assert len(ignored) <= len(query)
    assert AlignmentConfig.from_query(config.to_query()) == (config, [])


class Nested(BaseModel):
    model_config = {"extra": "forbid"}

    count: int = Field(1, ge=1)
    inner: LossConfig = LossConfig()


def test_tolerant_reads_any_model_and_drops_values_of_none():
    model, ignored = tolerant(Nested, {"count": None, "inner": {"alpha_k": None, "alpha_v": 2}, "more": None})
    assert model == Nested(inner=LossConfig(alpha_v=2))
    assert sorted(message.partition(":")[0] for message in ignored) == ["count", "inner.alpha_k", "more"]
    assert not any("init_uniform" in message for message in ignored)


def test_tolerant_leaves_what_it_was_given_alone():
    values = {"loss_config": {"alpha_k": "x", "alpha_v": 2}}
    tolerant(AlignmentConfig, values)
    assert values == {"loss_config": {"alpha_k": "x", "alpha_v": 2}}


def test_every_field_says_what_it_is():
    for name, field in [*AlignmentConfig.model_fields.items(), *LossConfig.model_fields.items()]:
        assert field.title, name
        assert field.description, name


def test_the_mixed_target_needs_weights_by_head():
    with pytest.raises(ConfigError, match="attention_target"):
        AlignmentConfig.parse(
            {"kv_projection_mode": "flat", "flat_kind": "elastic", "attention_target": "mixed"}
        )
    read, ignored = AlignmentConfig.from_query(
        {"kv_projection_mode": "flat", "flat_kind": "elastic", "attention_target": "mixed"}
    )
    assert (read.flat_kind, read.attention_target) == ("elastic", "projected")
    assert any("attention_target" in message for message in ignored)
