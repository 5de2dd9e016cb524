"""kvviz: see how one language model's KV cache maps onto another's."""

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
from kvviz.pair import LoadedModel, ModelSpec, load_model
from kvviz.profile import profile_alignment
from kvviz.segments import Segment
from kvviz.trace import Trace
from kvviz.version import __version__

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
