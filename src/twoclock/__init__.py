"""twoclock: language models that keep learning after they are deployed, on two clocks."""

from __future__ import annotations

__version__ = "0.1.0"
__all__ = ["__version__"]
