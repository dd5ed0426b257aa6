"""Names are exported on purpose: ``__all__`` of a module lists what that module makes, and packages hide nothing."""

from __future__ import annotations

import ast
import importlib
import pkgutil
from pathlib import Path
from types import ModuleType

import pytest

import twoclock

PACKAGES = [
    "twoclock",
    *(m.name for m in pkgutil.iter_modules(twoclock.__path__, "twoclock.") if m.ispkg and m.name != "twoclock.data"),
]
MODULES = sorted(
    m.name
    for m in pkgutil.walk_packages(twoclock.__path__, "twoclock.", onerror=lambda name: None)
    if not m.ispkg and not m.name.endswith("__main__")
)


def tree(module: ModuleType) -> ast.Module:
    assert module.__file__ is not None
    return ast.parse(Path(module.__file__).read_text(encoding="utf-8"))


def brought(module: ModuleType) -> set[str]:
    """Public names that a package's file brings in from its own rooms, or defines."""
    names: set[str] = set()
    for node in tree(module).body:
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith(module.__name__ + "."):
            names |= {alias.asname or alias.name for alias in node.names}
    return {n for n in names | defined(module) if not n.startswith("_")}


def defined(module: ModuleType) -> set[str]:
    """Classes, functions and constants that the file itself makes."""
    names: set[str] = set()
    for node in tree(module).body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Assign):
            names |= {n.id for target in node.targets for n in ast.walk(target) if isinstance(n, ast.Name)}
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            names.add(node.target.id)
    return names


def test_the_list_of_packages_is_not_empty() -> None:
    assert {"twoclock.fast", "twoclock.slow", "twoclock.store", "twoclock.tasks"} <= set(PACKAGES)
    assert "twoclock.loop" in MODULES


@pytest.mark.parametrize("name", PACKAGES)
def test_a_packages_names_are_what_it_says(name: str) -> None:
    module = importlib.import_module(name)
    listed = list(getattr(module, "__all__", []))
    assert len(set(listed)) == len(listed), "a name is listed twice"
    for entry in listed:
        assert hasattr(module, entry), f"{name}.__all__ lists '{entry}', which is not there"
    assert brought(module) <= set(listed), "a name that others can see is not in __all__"


@pytest.mark.parametrize("name", MODULES)
def test_a_modules_names_are_there_and_its_own(name: str) -> None:
    module = importlib.import_module(name)
    listed = list(getattr(module, "__all__", []))
    assert len(set(listed)) == len(listed)
    missing = [entry for entry in listed if not hasattr(module, entry)]
    assert not missing, f"{name}.__all__ lists {missing}, which are not there"
    foreign = [entry for entry in listed if entry not in defined(module)]
    assert not foreign, f"{name}.__all__ lists {foreign}, which another module makes: import them from there"


@pytest.mark.parametrize("name", [*PACKAGES, *MODULES])
def test_every_module_says_what_it_owns(name: str) -> None:
    module = importlib.import_module(name)
    assert module.__doc__ is not None
    assert len(module.__doc__.split()) >= 5
