"""Which model, and how to hold it: the key of everything loaded from it."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict

Dtype = Literal["auto", "float32", "bfloat16", "float16"]
Device = Literal["auto", "cpu", "cuda", "mps"]


class ModelSpec(BaseModel):
    """Frozen and hashable. `path` is a local folder, a hub id, or "bundled:teacher" / "bundled:student"."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    path: str
    revision: str | None = None
    dtype: Dtype = "auto"
    device: Device = "auto"
