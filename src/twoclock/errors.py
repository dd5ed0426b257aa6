"""Every error that twoclock raises on purpose.

::

    TwoclockError
    ├── ConfigError            (ValueError)        a config or argument is wrong; lists all problems at once     exit 2
    ├── DataError              (ValueError)        a data file is wrong; names file and line                     exit 2
    ├── VerifierError          (RuntimeError)      a verifier broke its contract (length, type)                  exit 2
    ├── ModelError             (RuntimeError)      a model cannot be found, fetched, read or used                exit 3
    │   └── UnsupportedError                       the policy cannot do what a channel asks of it                exit 3
    ├── StoreError             (RuntimeError)      a run folder is missing, damaged or of another version        exit 4
    │   └── RunLockedError                         another process is at work on the run                         exit 4
    ├── BudgetError            (RuntimeError)      a channel asked for more than it was given                    exit 1
    ├── NumericsError          (ArithmeticError)   NaN or infinity, refused before it reaches a state            exit 1
    └── MissingExtraError      (ImportError)       an optional dependency is not installed                       exit 3

A message is a sentence with the value given, what was expected and what to type. An expected failure (a bad rollout, a
grader that raised on odd text) is no exception: it is a value in the records, and its siblings go on.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence

__all__ = [
    "TwoclockError",
    "ConfigError",
    "DataError",
    "VerifierError",
    "ModelError",
    "UnsupportedError",
    "StoreError",
    "RunLockedError",
    "BudgetError",
    "NumericsError",
    "MissingExtraError",
    "nearest",
    "unknown_name",
]


class TwoclockError(Exception):
    """The root of the tree; ``exit_code`` is what the command line ends with."""

    exit_code = 1


class ConfigError(TwoclockError, ValueError):
    """A config or an argument is wrong. ``problems`` holds every mistake found, not only the first."""

    exit_code = 2

    def __init__(self, problems: str | Sequence[str]) -> None:
        self.problems: tuple[str, ...] = (problems,) if isinstance(problems, str) else tuple(problems)
        super().__init__(self.problems)

    def __str__(self) -> str:
        if len(self.problems) == 1:
            return self.problems[0]
        lines = "\n".join(f"  {i}. {text}" for i, text in enumerate(self.problems, 1))
        return f"{len(self.problems)} mistakes in the configuration:\n{lines}"

    def __reduce__(self) -> tuple[type[ConfigError], tuple[tuple[str, ...]]]:
        return (type(self), (self.problems,))


class DataError(TwoclockError, ValueError):
    """A data file is missing or malformed; the message names the file and the line."""

    exit_code = 2


class VerifierError(TwoclockError, RuntimeError):
    """A verifier broke its contract: wrong number of scores, or something that is no score."""

    exit_code = 2


class ModelError(TwoclockError, RuntimeError):
    """A model cannot be found, fetched, read or used."""

    exit_code = 3


class UnsupportedError(ModelError):
    """The policy cannot do what is asked of it, such as training weights behind an endpoint."""


class StoreError(TwoclockError, RuntimeError):
    """A run folder is missing, damaged, or written by another version."""

    exit_code = 4


class RunLockedError(StoreError):
    """Another process is at work on the run."""


class BudgetError(TwoclockError, RuntimeError):
    """A channel asked for more rollouts or tokens than the allocator gave it."""


class NumericsError(TwoclockError, ArithmeticError):
    """NaN or infinity turned up where a state would have taken it in."""


class MissingExtraError(TwoclockError, ImportError):
    """An optional dependency is missing; the message names the command that installs it."""

    exit_code = 3

    @classmethod
    def of(cls, package: str, extra: str, purpose: str) -> MissingExtraError:
        return cls(f"{purpose} needs the package '{package}'; type: pip install 'twoclock[{extra}]'")


MUCH_LESS = 0.2
"""A difference of difflib's ratios."""


def nearest(name: str, known: Iterable[str], count: int = 3) -> list[str]:
    """The known names most like ``name``, best first; beside one that is nearly it, those far less like it are none."""
    close = difflib.get_close_matches(name, list(known), n=count, cutoff=0.5)
    alike = [difflib.SequenceMatcher(None, name, other).ratio() for other in close]
    return [other for other, ratio in zip(close, alike, strict=True) if ratio >= alike[0] - MUCH_LESS]


def unknown_name(kind: str, name: str, known: Iterable[str]) -> str:
    """The sentence for a name that is not in a table, with the nearest ones that are."""
    names = sorted(known)
    close = nearest(name, names)
    if close:
        return f"unknown {kind} '{name}'; did you mean {' or '.join(repr(c) for c in close)}?"
    listing = ", ".join(names[:12]) + (f", … ({len(names)} in all)" if len(names) > 12 else "")
    return f"unknown {kind} '{name}'; known: {listing}"
