"""Model files on disk: are they whole, and which ones are they."""

from __future__ import annotations

import hashlib
import json
import struct
from pathlib import Path

from torch import nn

SAMPLE = 1 << 20  # bytes hashed at each end of a weight file
HEADER_LIMIT = 100 << 20  # the safetensors format's own bound on its header
PICKLED = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.h5", "*.msgpack", "*.gguf")


class WeightsError(ValueError):
    """A folder without usable safetensors; the message says which file and why."""


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files a model is loaded from, in order.

    Raises:
        WeightsError: there are none, or a shard that the index names is not there.
    """
    index = folder / "model.safetensors.index.json"
    single = folder / "model.safetensors"
    if single.is_file():
        return [single]
    if index.is_file():
        try:
            names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
        except (ValueError, KeyError, AttributeError, TypeError) as error:
            raise WeightsError(f"the file {index.name} is not a readable index of weight files") from error
        lacking = [name for name in names if not (folder / name).is_file()]
        if lacking:
            raise WeightsError(
                f"{len(lacking)} of its {len(names)} weight files are not there, {lacking[0]} for one"
            )
        return [folder / name for name in names]
    others = sorted(path.name for pattern in PICKLED for path in folder.glob(pattern))
    if others:
        raise WeightsError(f"it holds {others[0]} but no model.safetensors, and kvviz reads only safetensors")
    raise WeightsError("it holds no weights (no model.safetensors)")


def check_weights(path: Path) -> None:
    """Check that a safetensors file is as long as its header says.

    The file is 8 bytes of header length, a JSON header with each tensor's byte range, then the bytes
    (huggingface.co/docs/safetensors).

    Raises:
        WeightsError: it is cut short or is no safetensors file.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
        if not 0 < length <= HEADER_LIMIT:
            raise WeightsError(
                f"the file {path.name} is empty, cut short, or no safetensors file ({size} bytes)"
            )
        if 8 + length > size:
            raise WeightsError(f"the file {path.name} is cut short: it ends within its header")
        try:
            header = json.loads(file.read(length))
            ends = [tensor["data_offsets"][1] for name, tensor in header.items() if name != "__metadata__"]
        except (ValueError, KeyError, IndexError, AttributeError, TypeError) as error:
            raise WeightsError(f"the file {path.name} has a header that cannot be read") from error
    expected = 8 + length + max(ends, default=0)
    if size != expected:
        raise WeightsError(
            f"the file {path.name} has {size:,} bytes where its header promises {expected:,}: it is cut short"
        )


def digest_folder(folder: Path, *more: str) -> str:
    """Hash of a model's configuration, tokenizer and weights.

    Of each weight file the name, the size and a mebibyte at both ends are hashed (the header is in the
    first): enough to tell any two saved models apart, and quick for large ones.
    """
    digest = hashlib.sha256("\0".join(more).encode())
    for name in ("config.json", "tokenizer.json"):
        if (folder / name).is_file():
            digest.update((folder / name).read_bytes())
    for path in weight_files(folder):
        size = path.stat().st_size
        digest.update(f"{path.name}\0{size}\0".encode())
        with path.open("rb") as file:
            digest.update(file.read(SAMPLE))
            file.seek(max(0, size - SAMPLE))
            digest.update(file.read(SAMPLE))
    return digest.hexdigest()


def digest_parameters(model: nn.Module, *more: str) -> str:
    """Hash of a model in memory: name, shape, dtype and two moments of every parameter."""
    digest = hashlib.sha256("\0".join(more).encode())
    for name, parameter in model.named_parameters():
        values = parameter.detach().double()
        moments = f"{values.sum().item()!r} {values.square().sum().item()!r}"
        digest.update(f"{name} {tuple(values.shape)} {parameter.dtype} {moments}\0".encode())
    return digest.hexdigest()
