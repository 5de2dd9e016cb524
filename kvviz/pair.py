"""A loaded model: weights, tokenizer, checked geometry, and everything that can be wrong with a model path."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, cast, get_args

import torch
from pydantic import BaseModel, ConfigDict
from transformers import CONFIG_MAPPING, AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel
from transformers.utils import cached_file

from kvviz import bundled, intercept
from kvviz.checkup import check_up
from kvviz.errors import ExplainedError, shorten
from kvviz.geometry import Geometry
from kvviz.rope import Rotary
from kvviz.weights import WeightsError, check_weights, digest_folder, digest_parameters, weight_files

Dtype = Literal["auto", "float32", "bfloat16", "float16"]
Device = Literal["auto", "cpu", "cuda", "mps"]
HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")
DEFAULT_CONTEXT = 32_768  # for the few models whose configuration names no longest text


class ModelError(ExplainedError):
    """A model that cannot be used, in words: `what` happened, `why`, and what to `do`."""


class ModelSpec(BaseModel):
    """Which model, and how to hold it. Frozen and hashable: the key of everything loaded from it.

    `path` is a local folder, a hub id, or "bundled:teacher" / "bundled:student".
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    path: str
    revision: str | None = None
    dtype: Dtype = "auto"
    device: Device = "auto"


@dataclass(eq=False)
class LoadedModel:
    """A model ready to be captured.

    Attributes:
        geometry: from the configuration, checked against one captured forward.
        context: longest text in tokens. parameters: how many.
        fingerprint: hash of all that its numbers depend on: configuration, tokenizer, weights, dtype.
        rotary: how it rotates; None where it does not, or in a way that cannot be undone; `rope_note` says why.
        lock: held during every forward; a model is used by one thread at a time.
    """

    spec: ModelSpec
    model: PreTrainedModel
    tokenizer: Any
    geometry: Geometry
    device: torch.device
    dtype: torch.dtype
    parameters: int
    context: int
    fingerprint: str
    name: str
    rotary: Rotary | None = None
    rope_note: str = ""
    lock: threading.RLock = field(default_factory=threading.RLock, repr=False)


def load_model(spec: ModelSpec | str) -> LoadedModel:
    """Load a causal language model from safetensors, never running code that comes with it.

    Raises:
        ModelError: it is not there, has no usable weights or tokenizer, or is of a kind that cannot be captured.
    """
    spec = ModelSpec(path=spec) if isinstance(spec, str) else spec
    device = _device(spec.device)
    path, name, folder = _locate(spec)
    where: dict[str, Any] = {"trust_remote_code": False, "revision": spec.revision}
    with _explained(name, path):
        config = AutoConfig.from_pretrained(path, **where)
        _check_config(config, name)
        tokenizer = AutoTokenizer.from_pretrained(path, **where)
        loading: Any = AutoModelForCausalLM.from_pretrained(
            path, config=config, use_safetensors=True, dtype=spec.dtype, output_loading_info=True, **where
        )
        model, report = loading
        missing = sorted(report["missing_keys"])
        if missing:
            raise ModelError(
                f"The weights of {name} are incomplete.",
                f"{len(missing)} tensors of the model are in no file, {missing[0]} for one.",
                "Download or save the model again.",
            )
        model.to(device)
        if folder is None:
            folder = Path(str(cached_file(path, "config.json", revision=spec.revision))).parent
    fingerprint = digest_folder(folder, f"{model.dtype}")
    return _prepare(model, tokenizer, spec, name, fingerprint)


def wrap_model(model: PreTrainedModel, tokenizer: Any, name: str = "") -> LoadedModel:
    """A model already in memory, checked like a loaded one. Its attention implementation is set to "kvviz".

    Raises:
        ModelError: as `load_model`.
    """
    name = name or model.config.model_type
    _check_config(model.config, name)
    return _prepare(model, tokenizer, ModelSpec(path=name), name, digest_parameters(model))


def _prepare(
    model: PreTrainedModel, tokenizer: Any, spec: ModelSpec, name: str, fingerprint: str
) -> LoadedModel:
    """Put the interception in place and look at one tiny forward."""
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
        declared = Geometry.from_config(model.config)
        checked = check_up(model, context)
    except ValueError as error:
        raise ModelError(
            f"{name} cannot be captured.",
            f"{shorten(error)[:1].upper()}{shorten(error)[1:]}.",
            "Choose another model.",
        ) from error
    return LoadedModel(
        spec=spec,
        model=model,
        tokenizer=tokenizer,
        geometry=replace(checked.geometry, rope_theta=declared.rope_theta, name=name),
        device=model.device,
        dtype=model.dtype,
        parameters=model.num_parameters(),
        context=context,
        fingerprint=fingerprint,
        name=name,
        rotary=checked.rotary,
        rope_note=checked.note,
    )


def _locate(spec: ModelSpec) -> tuple[str, str, Path | None]:
    """What to hand to transformers, what to call the model, and its folder where it is a local one."""
    if spec.path.startswith("bundled:"):
        role = spec.path.removeprefix("bundled:")
        if role not in get_args(bundled.Role):
            raise ModelError(
                f"There is no bundled model {role!r}.",
                "Two come with kvviz.",
                "Use bundled:teacher or bundled:student.",
            )
        folder = bundled.path(cast(bundled.Role, role))
        _check_folder(folder, f"bundled {role}")
        return str(folder), f"bundled {role}", folder
    try:
        folder = Path(spec.path).expanduser()
        exists = bool(spec.path.strip()) and folder.exists()
    except (OSError, ValueError, RuntimeError) as error:  # too long a name, a null byte, an unknown ~user
        raise _not_found(spec.path) from error
    if exists:
        name = folder.resolve().name
        _check_folder(folder, name)
        return str(folder), name, folder
    if not HUB_ID.fullmatch(spec.path) or spec.path.startswith("."):
        raise _not_found(spec.path)
    return spec.path, spec.path, None


def _not_found(path: str) -> ModelError:
    shown = path if len(path) <= 120 else path[:119] + "…"
    return ModelError(
        f"There is no model at {shown!r}.",
        "It is neither a folder on this machine nor the name of a model on the hub.",
        "Give the folder that holds config.json, or a name such as Qwen/Qwen3-0.6B.",
    )


def _check_folder(folder: Path, name: str) -> None:
    """Look at a local model's files before transformers does, whose messages name neither cause nor cure."""
    if not folder.is_dir():
        raise ModelError(
            f"{name} is not a model.",
            "It is a file.",
            "Give the folder that holds config.json and the weights.",
        )
    if not (folder / "config.json").is_file():
        raise ModelError(
            f"{name} is not a model.", "The folder holds no config.json.", "Give the folder of a saved model."
        )
    try:
        for path in weight_files(folder):
            check_weights(path)
    except WeightsError as error:
        raise ModelError(
            f"The weights of {name} cannot be loaded.",
            f"{str(error)[0].upper()}{str(error)[1:]}.",
            "Download or save the model again, as safetensors.",
        ) from error
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise ModelError(
            f"{name} cannot be loaded.",
            f"Its config.json cannot be read ({shorten(error)}).",
            "Save the model again.",
        ) from error
    kind = config.get("model_type") if isinstance(config, dict) else None
    if kind not in CONFIG_MAPPING:
        custom = isinstance(config, dict) and "auto_map" in config
        raise ModelError(
            f"{name} cannot be loaded.",
            "It needs code of its own, which kvviz never runs."
            if custom
            else f"transformers knows no model type {kind!r}.",
            "Choose a model of a family that transformers has.",
        )


def _check_config(config: Any, name: str) -> None:
    """Refuse what no forward could be captured of."""
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
            f"{name} cannot be captured.",
            f"It has no attention layers, so no keys and values: {error}.",
            "Choose a transformer language model.",
        ) from error


@contextmanager
def _explained(name: str, path: str) -> Iterator[None]:
    """Turn what transformers raises while it loads into a ModelError; the original stays attached."""
    try:
        yield
    except ModelError:
        raise
    except (torch.OutOfMemoryError, MemoryError) as error:
        raise ModelError(
            f"{name} does not fit into memory.",
            f"{shorten(error)}.",
            "Choose a smaller model, dtype or another device.",
        ) from error
    except OSError as error:
        chain = _chain(error)
        offline = any(type(link).__name__ in _OFFLINE for link in chain)
        if offline and not Path(path).exists():
            raise ModelError(
                f"{name} could not be fetched from the hub.",
                "The hub cannot be reached from here, and the model is not in the local cache.",
                "Check the network, or give a local folder.",
            ) from error
        raise ModelError(
            f"{name} could not be loaded.",
            f"{shorten(error)}",
            "Check the name and that it has a config.json, a tokenizer.json and safetensors weights.",
        ) from error
    except (
        Exception
    ) as error:  # any family's loader may raise anything; the person is told, the cause is kept
        raise ModelError(
            f"{name} could not be loaded.",
            f"{type(error).__name__}: {shorten(error)}",
            "Choose another model.",
        ) from error


_OFFLINE = (
    "LocalEntryNotFoundError",
    "OfflineModeIsEnabled",
    "ConnectionError",
    "ConnectError",
    "ConnectTimeout",
)


def _chain(error: BaseException | None) -> list[BaseException]:
    """An error and what led to it."""
    links: list[BaseException] = []
    while error is not None and error not in links:
        links.append(error)
        error = error.__cause__ or error.__context__
    return links


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
