"""Loading: what is on disk comes back, and all that can be wrong with a model path is said in words."""

import json
import struct
from unittest.mock import Mock

import pytest
import torch
from huggingface_hub.errors import RepositoryNotFoundError
from huggingface_hub.hf_api import ModelInfo
from pydantic import ValidationError
from safetensors.torch import load_file, save_file
from transformers import MambaConfig, MambaForCausalLM, T5Config, T5ForConditionalGeneration

from kvviz import locate
from kvviz.capture import capture
from kvviz.pair import ModelError, ModelSpec, load_model, wrap_model
from tests.families import byte_tokenizer, family, model


@pytest.fixture
def saved(tmp_path):
    """A tiny Llama in a folder, as save_pretrained writes it."""
    folder = tmp_path / "tiny llama"
    model("llama").save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder


def refusal(path, **spec):
    with pytest.raises(ModelError) as caught:
        load_model(ModelSpec(path=str(path), **spec))
    error = caught.value
    assert all(part and part[-1] in ".?!" for part in (error.what, error.why, error.do)), str(error)
    assert "\n" not in str(error)
    return str(error)


def test_a_saved_model_comes_back(saved):
    loaded, memory = load_model(str(saved)), family("llama")
    assert loaded.name == "tiny llama" == loaded.geometry.name
    assert (loaded.dtype, loaded.context, loaded.parameters) == (torch.float32, 8192, memory.parameters)
    assert loaded.spec == ModelSpec(path=str(saved))
    assert torch.equal(capture(loaded, ["Two apples."]).k.cpu(), capture(memory, ["Two apples."]).k)


def test_dtype_and_device_are_honoured(saved):
    loaded = load_model(ModelSpec(path=str(saved), dtype="bfloat16", device="cpu"))
    assert loaded.dtype == torch.bfloat16
    assert loaded.device.type == "cpu"
    assert capture(loaded, ["a"]).k.dtype == torch.bfloat16


def test_the_fingerprint_follows_all_that_numbers_depend_on(saved):
    prints = [load_model(str(saved)).fingerprint, load_model(str(saved)).fingerprint]
    prints.append(load_model(ModelSpec(path=str(saved), dtype="bfloat16")).fingerprint)
    weights = load_file(saved / "model.safetensors")
    weights["model.norm.weight"][3] += 1e-3
    save_file(weights, saved / "model.safetensors", metadata={"format": "pt"})
    prints.append(load_model(str(saved)).fingerprint)
    config = json.loads((saved / "config.json").read_text())
    (saved / "config.json").write_text(json.dumps(config | {"rms_norm_eps": 1e-3}))
    prints.append(load_model(str(saved)).fingerprint)
    assert prints[0] == prints[1]
    assert len(set(prints[1:])) == 4

    same, other = (wrap_model(model("llama", seed=seed), byte_tokenizer()).fingerprint for seed in (0, 1))
    assert family("llama").fingerprint == same != other


def test_sharded_weights_load_and_a_lacking_shard_is_named(tmp_path):
    model("llama").save_pretrained(tmp_path, max_shard_size="50KB")
    byte_tokenizer().save_pretrained(tmp_path)
    assert load_model(str(tmp_path)).geometry.layers == 4
    shard = sorted(tmp_path.glob("model-*.safetensors"))[1]
    shard.unlink()
    assert f"weight files are not there, {shard.name}" in refusal(tmp_path)


def test_paths_that_lead_nowhere(tmp_path):
    assert "There is no model at" in refusal(tmp_path / "nothing here")
    assert "There is no model at" in refusal("/nothing/here")
    assert "There is no model at ''" in refusal("")
    assert "There is no model at" in refusal("a\0b")
    assert "There is no model at" in refusal("~nobody-of-this-name/model")
    assert "There is no model at" in refusal("../" * 2000)
    assert "There is no model at" in refusal("<script>alert(1)</script>")
    assert "Use bundled:teacher or bundled:student" in refusal("bundled:professor")
    (tmp_path / "file").write_text("x")
    assert "It is a file" in refusal(tmp_path / "file")
    (tmp_path / "empty").mkdir()
    assert "no config.json" in refusal(tmp_path / "empty")


def test_missing_and_pickled_weights(saved):
    (saved / "model.safetensors").rename(saved / "pytorch_model.bin")
    assert "holds pytorch_model.bin but no model.safetensors" in refusal(saved)
    (saved / "pytorch_model.bin").unlink()
    assert "It holds no weights" in refusal(saved)


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda data: data[:-1], "it is cut short"),
        (lambda data: data[: len(data) // 2], "it is cut short"),
        (lambda data: data[:100], "ends within its header"),
        (lambda data: data[:5], "is empty, cut short, or no safetensors file"),
        (lambda data: b"", "is empty, cut short, or no safetensors file"),
        (lambda data: b"PK\x03\x04" + data, "is empty, cut short, or no safetensors file"),
        (lambda data: struct.pack("<Q", 9) + b"not json!" + data, "a header that cannot be read"),
        (lambda data: struct.pack("<Q", 8) + b'{"a": 1}', "a header that cannot be read"),
    ],
)
def test_damaged_weights(saved, damage, says):
    file = saved / "model.safetensors"
    file.write_bytes(damage(file.read_bytes()))
    message = refusal(saved)
    assert says in message
    assert "model.safetensors" in message


def test_weights_that_lack_a_tensor_are_not_filled_with_noise(saved):
    weights = load_file(saved / "model.safetensors")
    del weights["model.layers.2.self_attn.k_proj.weight"]
    save_file(weights, saved / "model.safetensors", metadata={"format": "pt"})
    message = refusal(saved)
    assert "incomplete" in message
    assert "model.layers.2.self_attn.k_proj.weight" in message


def test_configs_that_cannot_be_used(saved):
    config = json.loads((saved / "config.json").read_text())

    def write(text):
        (saved / "config.json").write_text(text)

    write("{broken")
    assert "config.json cannot be read" in refusal(saved)
    write("[1, 2]")
    assert "config.json cannot be read" in refusal(saved)
    write(json.dumps(config | {"model_type": "novel"}))
    assert "transformers knows no model type 'novel'" in refusal(saved)
    write(json.dumps(config | {"model_type": "novel", "auto_map": {"AutoConfig": "evil.Config"}}))
    assert "kvviz never runs code that comes with a model" in refusal(saved)
    write(json.dumps(config | {"num_hidden_layers": 9}))
    assert "incomplete" in refusal(saved)
    write(json.dumps(config | {"intermediate_size": 99}))
    assert "could not be loaded" in refusal(saved)


def test_no_tokenizer(saved):
    for file in saved.glob("*token*"):
        file.unlink()
    assert "tiny llama" in refusal(saved)


def test_a_tokenizer_without_offsets():
    class Slow:
        is_fast = False

    with pytest.raises(ModelError, match="not a fast tokenizer"):
        wrap_model(model("llama"), Slow())


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        ("gptj", {"n_embd": 48, "n_head": 4, "n_layer": 2, "rotary_dim": 4}),
        ("bloom", {"n_head": 4, "n_layer": 2}),
        ("falcon", {}),
        ("mpt", {"d_model": 48, "n_heads": 4, "n_layers": 2}),
    ],
)
def test_families_without_the_interface_are_refused(kind, settings):
    with pytest.raises(ModelError, match="does not use transformers' AttentionInterface"):
        wrap_model(model(kind, **settings), byte_tokenizer())


def test_models_without_one_kv_cache_are_refused(tmp_path):
    MambaForCausalLM(MambaConfig(hidden_size=16, num_hidden_layers=2, vocab_size=259)).save_pretrained(
        tmp_path / "m"
    )
    byte_tokenizer().save_pretrained(tmp_path / "m")
    assert "mamba names no attention layers" in refusal(tmp_path / "m")
    t5 = T5ForConditionalGeneration(
        T5Config(d_model=16, d_kv=4, d_ff=16, num_layers=1, num_heads=2, vocab_size=259)
    )
    t5.save_pretrained(tmp_path / "t5")
    byte_tokenizer().save_pretrained(tmp_path / "t5")
    assert "an encoder with a decoder" in refusal(tmp_path / "t5")


def test_layers_that_attend_twice_are_refused():
    with pytest.raises(ModelError, match="attends more than once"):
        wrap_model(model("diffllama"), byte_tokenizer())


def test_a_device_that_is_not_there(saved):
    if torch.cuda.is_available():
        assert load_model(ModelSpec(path=str(saved))).device.type == "cuda"
    assert "no mps device" in refusal(saved, device="mps")


def test_the_hub_out_of_reach(monkeypatch):
    def unreachable(self, *args, **kwargs):
        raise ConnectionError("[Errno -2] Name or service not known")

    monkeypatch.setattr(locate.HfApi, "model_info", unreachable)
    message = refusal("someone/some-model")
    assert "someone/some-model could not be fetched. The hub cannot be reached (ConnectionError)" in message


def test_a_name_the_hub_does_not_know(monkeypatch):
    def unknown(self, *args, **kwargs):
        raise RepositoryNotFoundError("404", response=Mock())

    monkeypatch.setattr(locate.HfApi, "model_info", unknown)
    assert "There is no model at 'someone/no-model'" in refusal("someone/no-model")


def test_a_hub_model_without_safetensors(monkeypatch):
    siblings = [{"rfilename": "config.json"}, {"rfilename": "pytorch_model.bin"}]
    monkeypatch.setattr(
        locate.HfApi, "model_info", lambda self, name, **kwargs: ModelInfo(id=name, siblings=siblings)
    )
    assert "None of its 2 files is a safetensors file" in refusal("someone/old-model")


def test_specs_are_keys():
    assert hash(ModelSpec(path="a")) == hash(ModelSpec(path="a"))
    assert ModelSpec(path="a") != ModelSpec(path="a", dtype="bfloat16")
    with pytest.raises(ValidationError):
        ModelSpec(path="a", dtype="int8")
