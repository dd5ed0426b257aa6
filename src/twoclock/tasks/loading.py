"""Functions by name: ``package.module:function`` or ``path/to/file.py:function``, with errors that say what to type."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

from twoclock.errors import ConfigError, nearest, unknown_name
from twoclock.tasks.text import clip

__all__ = ["load_function"]


def load_function(spec: str, base_dir: Path, *, kind: str = "verifier") -> Callable[..., Any]:
    """The function that ``spec`` names; relative paths and modules are looked for in ``base_dir`` too. ``kind`` is what
    messages call it.

    Raises ConfigError for a spec of another form, a missing or broken module, an unknown or uncallable name.
    """
    module_name, colon, name = spec.rpartition(":")
    if not (colon and module_name and name.isidentifier()):
        raise ConfigError(f"a {kind} is named as 'package.module:function' or 'path/to/file.py:function'; got '{spec}'")
    is_file = module_name.endswith(".py")
    with _on_path(base_dir):
        module = (
            _from_file(spec, base_dir / Path(module_name).expanduser(), kind)
            if is_file
            else _by_name(spec, module_name, kind)
        )
    function = getattr(module, name, None)
    if function is None:
        known = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
        raise ConfigError(
            unknown_name(f"function in {module_name}", name, known)
            if known
            else f"'{module_name}' defines no function, and so no '{name}'"
        )
    if not callable(function):
        raise ConfigError(f"'{spec}' is a {type(function).__name__}, not a function")
    result: Callable[..., Any] = function
    return result


@contextmanager
def _on_path(base_dir: Path) -> Iterator[None]:
    entry = str(base_dir.resolve())
    sys.path.insert(0, entry)
    try:
        yield
    finally:
        sys.path.remove(entry)


def _from_file(spec: str, path: Path, kind: str) -> ModuleType:
    if not path.is_file():
        there = [p.name for p in path.parent.glob("*.py")] if path.parent.is_dir() else []
        close = nearest(path.name, there)
        hint = f"; did you mean {' or '.join(close)}?" if close else ""
        raise ConfigError(f"{kind} '{spec}': there is no file {path}{hint}")
    name = f"twoclock_verifier_{hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:12]}"
    found = importlib.util.spec_from_file_location(name, path)
    assert found is not None, path  # a path that ends in .py always has a loader
    assert found.loader is not None, path
    module = importlib.util.module_from_spec(found)
    sys.modules[name] = module  # dataclasses and pickle look their module up there
    try:
        found.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        del sys.modules[name]
        raise ConfigError(_broken(spec, error, kind)) from error
    return module


def _by_name(spec: str, name: str, kind: str) -> ModuleType:
    importlib.invalidate_caches()
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name and (name == error.name or name.startswith(error.name + ".")):
            raise ConfigError(
                f"{kind} '{spec}': there is no module '{error.name}'; install it, or name a file: 'path/to/file.py:"
                f"{spec.rpartition(':')[2]}'"
            ) from error
        raise ConfigError(_broken(spec, error, kind)) from error
    except (Exception, SystemExit) as error:
        raise ConfigError(_broken(spec, error, kind)) from error


def _broken(spec: str, error: BaseException, kind: str) -> str:
    return f"{kind} '{spec}' cannot be imported: {type(error).__name__}: {clip(str(error), 300)}"
