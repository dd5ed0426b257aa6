"""What importing costs: runs are read, listed and reported where torch is slow to load or not installed at all.

Each import happens in an interpreter of its own; what it loaded is read from ``sys.modules``.
"""

from __future__ import annotations

import json
import pkgutil
import subprocess
import sys
from functools import cache

import pytest

import twoclock

HEAVY = {"torch", "transformers", "peft", "safetensors", "accelerate", "reasoning_gym", "gepa"}
"""Packages that no module outside nn, models, fast and slow may bring, and those only when they need them."""

MAY_IMPORT_TORCH = ("twoclock.nn", "twoclock.models", "twoclock.fast", "twoclock.slow")

LIGHT_IN_THOSE = ("twoclock.fast", "twoclock.slow", "twoclock.models.scripted", "twoclock.models.remote")
"""Modules of those rooms that must start at once all the same: tables and names, and policies without weights."""


def all_modules() -> list[str]:
    found = pkgutil.walk_packages(twoclock.__path__, "twoclock.", onerror=lambda name: None)
    return ["twoclock", *(m.name for m in found if not m.name.endswith("__main__"))]


@cache
def loaded_by(*modules: str) -> frozenset[str]:
    """The top-level packages that an interpreter holds after these imports."""
    code = (
        f"import json, sys\nfor name in {modules!r}:\n    __import__(name)\n"
        "print(json.dumps(sorted({name.partition('.')[0] for name in sys.modules})))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return frozenset(json.loads(done.stdout))


def light_modules() -> list[str]:
    return [
        m
        for m in all_modules()
        if m in LIGHT_IN_THOSE or not any(m == room or m.startswith(room + ".") for room in MAY_IMPORT_TORCH)
    ]


def test_nothing_light_brings_a_framework() -> None:
    """All of them in one interpreter; where that fails, one by one, so that the culprit is named."""
    light = light_modules()
    assert {"twoclock.loop", "twoclock.build", "twoclock.bench", "twoclock.evaluation"} <= set(light)
    if not loaded_by(*light) & HEAVY:
        return
    culprits = {name: sorted(loaded_by(name) & HEAVY) for name in light if loaded_by(name) & HEAVY}
    pytest.fail(f"these modules import what they must not: {culprits}")


@pytest.mark.parametrize(
    "module",
    ["twoclock", "twoclock.cli", "twoclock.report", "twoclock.store", "twoclock.tasks", "twoclock.measure"],
)
def test_rooms_that_must_start_at_once(module: str) -> None:
    assert not loaded_by(module) & HEAVY


def test_a_run_can_be_read_where_torch_is_not_installed() -> None:
    """With the import of torch made impossible, everything light still imports, and so do the tables of channels."""
    code = (
        "import sys\n"
        f"for name in {sorted(HEAVY)!r}:\n    sys.modules[name] = None\n"
        f"for name in {light_modules()!r}:\n    __import__(name)\n"
        "from twoclock.fast import fast_names\nfrom twoclock.slow import SLOW_CHANNELS\n"
        "from twoclock.fast import build_fast\nbuild_fast('prompts', {}), build_fast('null', {})\n"
        "from twoclock.errors import MissingExtraError\nfrom twoclock.slow import build_slow\n"
        "try:\n    build_slow('lora', {})\nexcept MissingExtraError as error:\n    print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "the slow channel 'lora' needs the package 'torch'; type: pip install 'twoclock[local]'" in done.stdout


def test_help_needs_no_number_cruncher() -> None:
    code = "import sys\nfrom twoclock.cli import main\ntry:\n    main(['--help'])\nexcept SystemExit:\n    pass\n"
    code += "sys.stderr.write(' '.join(sorted({n.partition('.')[0] for n in sys.modules})))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    loaded = set(done.stderr.split())
    assert not loaded & (HEAVY | {"numpy", "scipy", "pydantic", "plotly"})
    assert "Usage" in done.stdout
