"""Makes the helpers of this folder importable from every room's tests, and shares one tiny model between them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tiny_world import model_folder, open_tiny


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama as a folder on disk."""
    return model_folder(tmp_path_factory.mktemp("tiny") / "llama")


@pytest.fixture(scope="session")
def tiny(tiny_folder: Path) -> Any:
    """The same as a local policy. It holds no learned state, so one serves every test."""
    return open_tiny(tiny_folder)
