"""kvviz: see how one language model's KV cache maps onto another's.

The public names are imported when first asked for: listing runs or waiting for a device needs neither torch nor
transformers.
"""

import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

from kvviz.version import __version__

if TYPE_CHECKING:
    from kvviz.align.aligner import MapProjectionAligner
    from kvviz.align.alignment import Alignment
    from kvviz.align.flat import KVDimensionProjector
    from kvviz.align.heads import HeadwiseMapProjector
    from kvviz.align.time import TimeWarper
    from kvviz.align.warp import Warp
    from kvviz.capture import capture
    from kvviz.config import AlignmentConfig
    from kvviz.geometry import Geometry
    from kvviz.inspection import Inspection, Prompt, inspect
    from kvviz.losses import StructuralKVLoss
    from kvviz.pair import LoadedModel, load_model
    from kvviz.profile import profile_alignment
    from kvviz.segments import Segment
    from kvviz.spec import ModelSpec
    from kvviz.trace import Trace

__all__ = [
    "Alignment",
    "AlignmentConfig",
    "Geometry",
    "HeadwiseMapProjector",
    "Inspection",
    "KVDimensionProjector",
    "LoadedModel",
    "MapProjectionAligner",
    "ModelSpec",
    "Prompt",
    "Segment",
    "StructuralKVLoss",
    "TimeWarper",
    "Trace",
    "Warp",
    "__version__",
    "capture",
    "inspect",
    "load_model",
    "profile_alignment",
]

_HOMES = {
    "Alignment": "kvviz.align.alignment",
    "AlignmentConfig": "kvviz.config",
    "Geometry": "kvviz.geometry",
    "HeadwiseMapProjector": "kvviz.align.heads",
    "Inspection": "kvviz.inspection",
    "KVDimensionProjector": "kvviz.align.flat",
    "LoadedModel": "kvviz.pair",
    "MapProjectionAligner": "kvviz.align.aligner",
    "ModelSpec": "kvviz.spec",
    "Prompt": "kvviz.inspection",
    "Segment": "kvviz.segments",
    "StructuralKVLoss": "kvviz.losses",
    "TimeWarper": "kvviz.align.time",
    "Trace": "kvviz.trace",
    "Warp": "kvviz.align.warp",
    "capture": "kvviz.capture",
    "inspect": "kvviz.inspection",
    "load_model": "kvviz.pair",
    "profile_alignment": "kvviz.profile",
}


def __getattr__(name: str) -> Any:
    """A public name, from the module it lives in (PEP 562)."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(importlib.import_module(_HOMES[name]), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


class _Package(ModuleType):
    """Keeps `kvviz.capture` the function: importing its module would bind the module to the same name."""

    def __setattr__(self, name: str, value: Any) -> None:
        if not (name in _HOMES and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
