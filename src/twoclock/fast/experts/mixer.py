"""Mixtures as changes of weights: the library's experts, opened once, and sums of them by amounts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from twoclock.errors import ConfigError, StoreError
from twoclock.fast.experts.state import ExpertsState, Mixture
from twoclock.hashing import content_hash
from twoclock.types import Delta

__all__ = ["Library", "Mixer"]

KEPT = 256
"""Mixtures that are kept, at most: a search makes many and needs each once or twice."""


class Library(Protocol):
    """Where experts are kept."""

    @property
    def kinds(self) -> Mapping[str, str]:
        """By name, what each expert is for, in words."""
        ...

    def require_base(self, base_hash: str) -> None:
        """Raises UnsupportedError where an expert was trained on other weights."""
        ...

    def delta(self, name: str) -> Delta:
        """An expert: a delta of the kind ``svf``. Raises DataError where it cannot be read."""
        ...


class Mixer:
    """See the module. ``names`` are the experts that candidates are made of; ``folder`` is for messages."""

    def __init__(self, library: Library | None, names: Sequence[str], folder: str) -> None:
        self.names = tuple(names)
        self._library, self._folder = library, folder
        self._deltas: dict[str, Delta] = {}
        self._mixed: dict[Mixture, Delta | None] = {}

    def delta(self, name: str) -> Delta:
        """One expert."""
        if name not in self._deltas:
            assert self._library is not None
            self._deltas[name] = self._library.delta(name)
        return self._deltas[name]

    def require_known(self, state: ExpertsState, mixture: Mixture) -> None:
        """Raises StoreError where an expert of a deployed mixture is no longer what it was."""
        for name, _ in mixture.amounts:
            now, then = self.delta(name).id, dict(state.known)[name]
            if now != then:
                raise StoreError(
                    f"the expert '{name}' is another than the one that was deployed ({now[:12]}, and was {then[:12]}): "
                    f"put the old one back into the library '{self._folder}', or roll back to before it was deployed"
                )

    def change(self, mixture: Mixture) -> Delta | None:
        """The mixture as a change of weights; the base is None, one expert at 1 is that expert itself. Raises
        StoreError for a mixture that does not fit its experts, NumericsError for one with NaN or infinity."""
        if mixture not in self._mixed:
            if len(self._mixed) >= KEPT:
                self._mixed.clear()
            self._mixed[mixture] = None if mixture.is_base else self._summed(mixture)
        return self._mixed[mixture]

    def _summed(self, mixture: Mixture) -> Delta:
        from twoclock.nn.mixing import amounts_by_module, mixed

        deltas = {name: self.delta(name) for name, _ in mixture.amounts}
        try:
            rows = {n: amounts_by_module(deltas[n].payload, mixture.grain, row) for n, row in mixture.amounts}
        except ConfigError as error:
            raise StoreError(f"a mixture does not fit the library '{self._folder}': {error}") from error
        first = next(iter(deltas.values()))
        if len(rows) == 1 and all(amount == 1.0 for row in rows.values() for amount in row.values()):
            return first
        content = {deltas[n].id: row for n, row in rows.items()}
        payload = mixed([(deltas[n].payload, row) for n, row in rows.items()])
        return Delta(content_hash({"mixture": content}), "svf", first.base, payload)

    # --------------------------------------------------------------------------------------------------- as candidates

    def widths(self, grain: str) -> list[int]:
        """How many amounts each expert has."""
        from twoclock.nn.mixing import places

        return [len(places(self.delta(name).payload, grain)) for name in self.names]

    def mixture(self, x: Sequence[float], grain: str) -> Mixture:
        """A candidate's numbers, expert by expert, as a mixture."""
        rows, start = {}, 0
        for name, width in zip(self.names, self.widths(grain), strict=True):
            rows[name] = tuple(x[start : start + width])
            start += width
        return Mixture.of(grain, rows)

    def candidate(self, mixture: Mixture, grain: str) -> list[float]:
        """The inverse; where a mixture is of another grain, the mean of an expert's amounts stands for each."""
        known, x = dict(mixture.amounts), []
        for name, width in zip(self.names, self.widths(grain), strict=True):
            row = known.get(name, (0.0,))
            x += list(row) if len(row) == width else [sum(row) / len(row)] * width
        return x
