"""Find a model's files and look at them before transformers does, whose errors name neither cause nor cure."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import cast, get_args

from huggingface_hub import HfApi, try_to_load_from_cache
from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError
from transformers import CONFIG_MAPPING

from kvviz import bundled
from kvviz.errors import ModelError, sentence
from kvviz.weights import WeightsError, check_weights, weight_files

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?")
HUB_SECONDS = 10.0  # how long to wait for the hub to say whether it has a model


@dataclass(frozen=True)
class Place:
    """Where a model is.

    Attributes:
        source: what to hand to transformers. name: what to call the model.
        folder: of a local model, else None.
        cached: a hub model that must come from the local cache, because the hub did not answer.
    """

    source: str
    name: str
    folder: Path | None = None
    cached: bool = False


def locate(path: str, revision: str | None = None) -> Place:
    """Find a local folder, a model on the hub, or "bundled:teacher" / "bundled:student".

    Raises:
        ModelError: there is no such model, or its files cannot be loaded.
    """
    if path.startswith("bundled:"):
        role = path.removeprefix("bundled:")
        if role not in get_args(bundled.Role):
            raise ModelError(
                f"There is no bundled model {role[:40]!r}.",
                "Two come with kvviz.",
                "Use bundled:teacher or bundled:student.",
            )
        folder = bundled.path(cast(bundled.Role, role))
        _check_folder(folder, f"bundled {role}")
        return Place(str(folder), f"bundled {role}", folder)
    try:
        folder = Path(path).expanduser()
        exists = bool(path.strip()) and folder.exists()
    except (OSError, ValueError, RuntimeError) as error:  # too long a name, a null byte, an unknown ~user
        raise _not_found(path) from error
    if exists:
        name = folder.resolve().name
        _check_folder(folder, name)
        return Place(str(folder), name, folder)
    if not HUB_ID.fullmatch(path):
        raise _not_found(path)
    return Place(path, path, cached=_must_come_from_cache(path, revision))


def _not_found(path: str) -> ModelError:
    return ModelError(
        f"There is no model at {path if len(path) <= 120 else path[:119] + '…'!r}.",
        "It is neither a folder on this machine nor the name of a model on the hub.",
        "Give the folder that holds config.json, or a name such as Qwen/Qwen3-0.6B.",
    )


def _check_folder(folder: Path, name: str) -> None:
    """A folder with a readable config.json of a known family, and whole safetensors."""
    if not folder.is_dir():
        why = "It is a file." if folder.exists() else "Its folder is not there."
        raise ModelError(
            f"{name} is not a model.", why, "Give the folder that holds config.json and the weights."
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
            sentence(error),
            "Download or save the model again, as safetensors.",
        ) from error
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        kind, custom = config.get("model_type"), "auto_map" in config
    except (OSError, ValueError, AttributeError) as error:
        raise ModelError(
            f"{name} cannot be loaded.",
            f"Its config.json cannot be read: {sentence(error)}",
            "Save the model again.",
        ) from error
    if kind not in CONFIG_MAPPING:
        why = "It needs code of its own" if custom else f"transformers knows no model type {str(kind)[:40]!r}"
        raise ModelError(
            f"{name} cannot be loaded.",
            f"{why}, and kvviz never runs code that comes with a model.",
            "Choose a model of a family that transformers has.",
        )


def _must_come_from_cache(name: str, revision: str | None) -> bool:
    """Ask the hub for a model: False if it is there, True if the hub does not answer but the cache has it."""
    try:
        info = HfApi().model_info(name, revision=revision, timeout=HUB_SECONDS)
    except GatedRepoError as error:
        raise ModelError(
            f"{name} is not open to everyone.",
            "Its owners ask for a licence to be accepted.",
            "Accept it on the model's page and log in with `hf auth login`.",
        ) from error
    except RepositoryNotFoundError as error:
        raise _not_found(name) from error
    except RevisionNotFoundError as error:
        raise ModelError(
            f"{name} has no revision {str(revision)[:80]!r}.",
            "The hub knows the model but not this branch, tag or commit.",
            "Leave the revision empty for the newest.",
        ) from error
    except Exception as error:  # whatever the network library of the day raises: the hub is out of reach
        if isinstance(try_to_load_from_cache(name, "config.json", revision=revision), str):
            return True
        raise ModelError(
            f"{name} could not be fetched.",
            f"The hub cannot be reached ({type(error).__name__}), and the model is not in the local cache.",
            "Check the network, or give a local folder.",
        ) from error
    files = [sibling.rfilename for sibling in info.siblings or []]
    if not any(file.endswith(".safetensors") for file in files):
        raise ModelError(
            f"{name} has no weights that kvviz reads.",
            f"None of its {len(files)} files is a safetensors file.",
            "Choose a model, or a revision of it, with safetensors weights.",
        )
    return False
