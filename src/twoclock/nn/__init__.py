"""Pure tensor functions, each beside a slow reference that its tests hold it to."""

from __future__ import annotations

__all__: list[str] = []
