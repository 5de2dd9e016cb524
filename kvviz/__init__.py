"""kvviz: see how one language model's KV cache maps onto another's."""

from kvviz.version import __version__

__all__ = ["__version__"]
