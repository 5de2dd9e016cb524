"""A loaded model: weights, tokenizer, checked geometry, rotation; and an error for all that can be wrong with one."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel
from transformers.utils import cached_file

from kvviz import intercept
from kvviz.checkup import check_up
from kvviz.errors import ModelError, sentence
from kvviz.geometry import Geometry
from kvviz.locate import Place, locate
from kvviz.rope import Rotary
from kvviz.spec import Device, Dtype, ModelSpec
from kvviz.weights import digest_folder, digest_parameters

__all__ = ["Device", "Dtype", "LoadedModel", "ModelError", "ModelSpec", "load_model", "wrap_model"]

DEFAULT_CONTEXT = 32_768  # for the few models whose configuration names no longest text


@dataclass(eq=False)
class LoadedModel:
    """A model ready to be captured.

    Attributes:
        geometry: as seen in a captured forward; `name` and `rope_theta` from the configuration.
        parameters: how many weights. context: longest text in tokens.
        fingerprint: hash of all that its numbers depend on: configuration, tokenizer, weights, dtype.
        rotary: how it rotates; None where it does not, or not in a way that can be undone: `rope_note` says why.
        lock: held during every forward, so that one thread at a time uses the model.
    """

    spec: ModelSpec
    model: PreTrainedModel = field(repr=False)
    tokenizer: Any = field(repr=False)
    geometry: Geometry
    device: torch.device
    dtype: torch.dtype
    parameters: int
    context: int
    fingerprint: str
    name: str
    rotary: Rotary | None = field(default=None, repr=False)
    rope_note: str = ""
    lock: threading.RLock = field(default_factory=threading.RLock, repr=False)


def load_model(spec: ModelSpec | str) -> LoadedModel:
    """Load a causal language model from safetensors, never running code that comes with it.

    Raises:
        ModelError: it is not there, has no usable weights or tokenizer, or is of a kind that cannot be captured.
    """
    spec = ModelSpec(path=spec) if isinstance(spec, str) else spec
    device = _device(spec.device)
    place = locate(spec.path, spec.revision)
    with _explained(place.name):
        model, tokenizer = _from_pretrained(spec, place)
        model.to(device)
        fingerprint = digest_folder(_folder(spec, place), str(model.dtype))
    return _prepare(model, tokenizer, spec, place.name, fingerprint)


def wrap_model(model: PreTrainedModel, tokenizer: Any, name: str = "") -> LoadedModel:
    """A model already in memory, checked like a loaded one. Its attention implementation is set to "kvviz".

    Raises:
        ModelError: its tokenizer is not usable, or it is of a kind that cannot be captured.
    """
    name = name or model.config.model_type
    _check_config(model.config, name)
    fingerprint = digest_parameters(model, str(model.dtype))
    return _prepare(model, tokenizer, ModelSpec(path=name), name, fingerprint)


def _from_pretrained(spec: ModelSpec, place: Place) -> tuple[Any, Any]:
    """Model and tokenizer, by transformers' own loaders."""
    where: dict[str, Any] = {
        "trust_remote_code": False,
        "revision": spec.revision or "main",
        "local_files_only": place.cached or place.folder is not None,
    }
    config = AutoConfig.from_pretrained(place.source, **where)
    _check_config(config, place.name)
    tokenizer = AutoTokenizer.from_pretrained(place.source, **where)
    loading: Any = AutoModelForCausalLM.from_pretrained(
        place.source, config=config, use_safetensors=True, dtype=spec.dtype, output_loading_info=True, **where
    )
    model, report = loading
    missing = sorted(report["missing_keys"])
    if missing:  # transformers would fill them with random numbers and only log it
        raise ModelError(
            f"The weights of {place.name} are incomplete.",
            f"{len(missing)} tensors of the model are in no file, {missing[0]} for one.",
            "Download or save the model again.",
        )
    return model, tokenizer


def _folder(spec: ModelSpec, place: Place) -> Path:
    """The folder a model was loaded from; of a hub model, its snapshot in the cache."""
    if place.folder is not None:
        return place.folder
    config = cached_file(place.source, "config.json", revision=spec.revision or "main", local_files_only=True)
    return Path(str(config)).parent


def _prepare(
    model: PreTrainedModel, tokenizer: Any, spec: ModelSpec, name: str, fingerprint: str
) -> LoadedModel:
    """Put the interception in place and look at two tiny forwards."""
    if not getattr(tokenizer, "is_fast", False):
        raise ModelError(
            f"The tokenizer of {name} cannot be used.",
            "It does not tell which characters each token holds (it is not a fast tokenizer).",
            "Use a model with a tokenizer.json.",
        )
    model.eval()
    model.set_attn_implementation(intercept.NAME)
    if model.config._attn_implementation != intercept.NAME:
        raise ModelError(
            f"{name} cannot be captured.",
            f"{type(model).__name__} does not use transformers' AttentionInterface.",
            "Choose a family that does: Llama, Qwen, Mistral, Gemma, Phi, GPT-2, GPT-NeoX, OPT and most others.",
        )
    text = model.config.get_text_config(decoder=True)
    named = (getattr(text, key, None) for key in ("max_position_embeddings", "n_positions", "max_seq_len"))
    context = next((length for length in named if length), None) or DEFAULT_CONTEXT
    try:
        checkup = check_up(model, context)
    except ValueError as error:
        raise ModelError(f"{name} cannot be captured.", sentence(error), "Choose another model.") from error
    theta = Geometry.from_config(model.config).rope_theta
    return LoadedModel(
        spec=spec,
        model=model,
        tokenizer=tokenizer,
        geometry=replace(checkup.geometry, rope_theta=theta, name=name),
        device=model.device,
        dtype=model.dtype,
        parameters=model.num_parameters(),
        context=context,
        fingerprint=fingerprint,
        name=name,
        rotary=checkup.rotary,
        rope_note=checkup.note,
    )


def _check_config(config: Any, name: str) -> None:
    """Refuse what has no one KV cache to capture."""
    if getattr(config, "is_encoder_decoder", False):
        raise ModelError(
            f"{name} cannot be captured.",
            "It is an encoder with a decoder; its text has no one KV cache.",
            "Choose a decoder-only language model.",
        )
    try:
        Geometry.from_config(config)
    except ValueError as error:
        raise ModelError(
            f"{name} cannot be captured.", sentence(error), "Choose another transformer language model."
        ) from error


@contextmanager
def _explained(name: str) -> Iterator[None]:
    """Turn what transformers raises while it loads into a ModelError; the original stays attached."""
    try:
        yield
    except ModelError:
        raise
    except (torch.OutOfMemoryError, MemoryError) as error:
        raise ModelError(
            f"{name} does not fit into memory.",
            sentence(error),
            "Choose a smaller model, dtype or another device.",
        ) from error
    except (
        Exception
    ) as error:  # a family's loader may raise anything; the person is told, and the cause is kept
        if "trust_remote_code" in str(error):
            raise ModelError(
                f"{name} cannot be loaded.",
                "It needs code of its own, and kvviz never runs code that comes with a model.",
                "Choose a model of a family that transformers has.",
            ) from error
        raise ModelError(
            f"{name} could not be loaded.",
            sentence(error),
            "Check that it is a causal language model with config.json, tokenizer.json and safetensors weights.",
        ) from error


def _device(wanted: Device) -> torch.device:
    """The device asked for; `auto` takes CUDA, then MPS, then the CPU."""
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if wanted == "auto":
        return torch.device(next(name for name, there in available.items() if there))
    if not available[wanted]:
        raise ModelError(
            f"The model cannot run on {wanted}.",
            f"This machine has no {wanted} device.",
            "Set the device to auto or cpu.",
        )
    return torch.device(wanted)
