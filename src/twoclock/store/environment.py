"""What a run was made with: Python, packages, this package's own source, the machine. Recorded, never acted upon."""

from __future__ import annotations

import os
import platform
import socket
from importlib import metadata
from pathlib import Path
from typing import Any

import twoclock
from twoclock.hashing import content_hash

__all__ = ["describe_environment"]

PACKAGES = (
    "accelerate", "gepa", "gguf", "httpx", "numpy", "peft", "reasoning-gym", "safetensors", "scipy", "tokenizers",
    "torch", "transformers",
)  # fmt: skip
"""Whose versions can change a run's numbers."""


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def source_hash() -> str:
    """One hash over the package's source files: tells an edited checkout from a release of the same version."""
    root = Path(twoclock.__file__).parent
    files = sorted(root.rglob("*.py"), key=lambda path: path.relative_to(root).as_posix())
    return content_hash([[path.relative_to(root).as_posix(), content_hash(path.read_bytes())] for path in files])


def describe_environment() -> dict[str, Any]:
    """Plain JSON; packages that are not installed are left out. Imports none of them."""
    versions = {package: _version(package) for package in PACKAGES}
    return {
        "twoclock": {"version": twoclock.__version__, "source_hash": source_hash()},
        "python": {"version": platform.python_version(), "implementation": platform.python_implementation()},
        "packages": {package: version for package, version in versions.items() if version is not None},
        "machine": {
            "host": socket.gethostname(),
            "system": platform.system(),
            "release": platform.release(),
            "architecture": platform.machine(),
            "cpus": os.cpu_count(),
        },
        "python_hash_seed": os.environ.get("PYTHONHASHSEED"),
    }
