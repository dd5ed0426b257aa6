"""Questions about a power network as values: the latent, its solver, how an answer is read, and its N-1 and N+1.

A *latent* is one network with one question, drawn together with the line that its N-1 case takes out and with what
its N+1 case adds. So N, N-1 and N+1 of one latent are partners, and each is a pure function of it. Three questions:

- ``path``: a route with the fewest lines between two buses. Any such route is right: topology decides, not a key.
- ``connectivity``: how many buses are connected to a given one, itself included.
- ``flow``: by DC power flow, where one bus feeds all loads, the MW on a line, whichever way; or the MW that a bus gets.

The *stale* answer is the one of the N network: what a policy that overlooks the change would say. A case is *changed*
where the stale answer is no longer right. This module knows no wording (``grid_wording``) and draws nothing
(``grid_levels``).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from math import perm
from random import Random
from typing import Any

from twoclock.tasks.grid_networks import Line, reachable, shortest_routes, transfer_factors
from twoclock.tasks.text import last_number

__all__ = [
    "CASES",
    "QUESTIONS",
    "GridLatent",
    "answer",
    "chance",
    "changed",
    "exact_flow",
    "guess",
    "is_right",
    "n_minus_one",
    "n_plus_one",
    "outages",
    "parse",
    "stale_answer",
]

QUESTIONS = ("path", "connectivity", "flow")
CASES = ("n", "n-1", "n+1")
HALF_MW = 0.5 + 1e-6
"""A flow is right when it rounds to the right number of whole MW; exact halves may go either way."""


@dataclass(frozen=True, kw_only=True)
class GridLatent:
    """One question about one network: all that the answer depends on, as plain numbers. Buses are indices."""

    question: str
    network: str
    """Where it was cut from; the answer does not depend on it."""
    num_buses: int
    lines: tuple[Line, ...]
    """In service in the N network, in the order and direction they are listed in."""
    asked: tuple[int, ...]
    """``path``: from, to; ``connectivity``: the bus; ``flow``: the two ends of a line, or a bus that draws power."""
    outage: int
    """The line, by its place in ``lines``, that N-1 takes out."""
    reserve: Line
    """What N+1 adds: a line between two buses, or, where its second bus is ``num_buses``, a new bus on a line."""
    labels: tuple[str, ...]
    """What each bus is called; the last is the new bus's."""
    loads: tuple[int, ...] = ()
    """``flow``: MW at each bus, the new one last. Bus 0 feeds them."""
    case: str = "n"
    note: str = ""
    """A true but irrelevant sentence, or none."""

    @property
    def active(self) -> tuple[Line, ...]:
        """The lines in service in this case."""
        if self.case == "n-1":
            return self.lines[: self.outage] + self.lines[self.outage + 1 :]
        return (*self.lines, self.reserve) if self.case == "n+1" else self.lines

    @property
    def buses(self) -> range:
        return range(self.num_buses + (self.case == "n+1" and self.reserve[1] == self.num_buses))

    @property
    def total_load(self) -> int:
        return sum(self.loads[bus] for bus in self.buses) if self.loads else 0

    def named(self, line: Line | tuple[int, ...]) -> str:
        """A line as it is written: ``2-5``."""
        return f"{self.labels[line[0]]}-{self.labels[line[1]]}"

    @property
    def key(self) -> dict[str, Any]:
        """What makes two latents the same N question, however their lines are ordered: splits must not share it."""
        lines = sorted((*sorted((self.labels[a], self.labels[b])), x) for a, b, x in self.lines)
        # The source matters, and with it which bus a load belongs to; otherwise buses are no more than their names.
        fed = zip(self.labels[1 : self.num_buses], self.loads[1:], strict=False)
        return {
            "question": self.question,
            "buses": sorted(self.labels[: self.num_buses]),
            "lines": lines,
            "asked": sorted(self.labels[bus] for bus in self.asked),
            "supply": [self.labels[0], *sorted(f"{name}={mw}" for name, mw in fed)] if self.loads else [],
        }

    def to_json(self) -> dict[str, Any]:
        """Plain JSON; :meth:`from_json` is the inverse."""
        plain = asdict(self)
        return plain | {
            "lines": [list(line) for line in self.lines],
            "reserve": list(self.reserve),
            **{name: list(plain[name]) for name in ("asked", "labels", "loads")},
        }

    @classmethod
    def from_json(cls, plain: Mapping[str, Any]) -> GridLatent:
        def line(values: Any) -> Line:
            return int(values[0]), int(values[1]), values[2]

        return cls(
            **{
                **plain,
                "lines": tuple(line(values) for values in plain["lines"]),
                "reserve": line(plain["reserve"]),
                **{name: tuple(plain[name]) for name in ("asked", "labels", "loads")},
            }
        )


# ------------------------------------------------------------------------------------------------------------- cases


def n_minus_one(latent: GridLatent, outage: int | None = None) -> GridLatent:
    """The same question with one line out: the one that was drawn, or another by its place in ``lines``."""
    return replace(latent, case="n-1", outage=latent.outage if outage is None else outage)


def n_plus_one(latent: GridLatent) -> GridLatent:
    """The same question with the reserve element added."""
    return replace(latent, case="n+1")


def stale_answer(latent: GridLatent) -> str:
    """The answer of the N network, whatever the case."""
    return answer(replace(latent, case="n"))


def changed(latent: GridLatent) -> bool:
    """Whether the stale answer is wrong here."""
    return not is_right(latent, stale_answer(latent))


def outages(latent: GridLatent) -> dict[int, bool]:
    """The lines whose loss leaves a question with an answer, each with whether it changes the answer.

    A path must still exist, and the line whose flow is asked for stays in service and connected to the source: else
    most N-1 flows would be 0. Elsewhere islands are allowed: their loads are off, which changes the flows before them.
    """
    found: dict[int, bool] = {}
    stale = stale_answer(latent)
    for place, line in enumerate(latent.lines):
        case = n_minus_one(latent, place)
        if latent.question == "flow" and len(latent.asked) == 2:
            live = reachable(latent.num_buses, case.active, 0)
            if set(line[:2]) == set(latent.asked) or latent.asked[0] not in live:
                continue
        if latent.question == "path" and not _routes(case):
            continue
        found[place] = not is_right(case, stale)
    return found


# ----------------------------------------------------------------------------------------------------------- answers


def exact_flow(latent: GridLatent) -> float:
    """MW on the asked line, or into the asked bus, at least 0; by ``pandapower.rundcpp``."""
    # In one order and direction, so that a topology is solved once however it is listed.
    lines = sorted((min(a, b), max(a, b), x) for a, b, x in latent.active)
    factors = transfer_factors(len(latent.buses), lines)

    def flow(place: int) -> float:
        return sum(factor * latent.loads[bus] for bus, factor in enumerate(factors[place]))

    if len(latent.asked) == 1:
        bus = latent.asked[0]
        signs = ((place, (bus == b) - (bus == a)) for place, (a, b, _) in enumerate(lines))
        return abs(sum(sign * flow(place) for place, sign in signs if sign))
    ends = tuple(sorted(latent.asked))
    return abs(flow(next(place for place, line in enumerate(lines) if line[:2] == ends)))


def answer(latent: GridLatent) -> str:
    """The gold answer: a route ``3-1-4``, or a whole number."""
    if latent.question == "path":
        return "-".join(latent.labels[bus] for bus in _routes(latent)[0])
    if latent.question == "connectivity":
        return str(len(reachable(len(latent.buses), latent.active, latent.asked[0])))
    return str(round(exact_flow(latent)))


def is_right(latent: GridLatent, given: str) -> bool:
    """Whether an answer, in the form that :func:`parse` gives, is right in this case."""
    if latent.question == "path":
        return given in {"-".join(latent.labels[bus] for bus in route) for route in _routes(latent)}
    if latent.question == "connectivity":
        return float(given) == float(answer(latent))
    return abs(abs(float(given)) - exact_flow(latent)) <= HALF_MW


def _routes(latent: GridLatent) -> list[tuple[int, ...]]:
    return shortest_routes(len(latent.buses), latent.active, *latent.asked)


# ----------------------------------------------------------------------------------------------------------- parsing

_JOIN = r"\s*(?:[-=]+>|-+|–|—|→|>|,|;|/)\s*(?:then\s+|and\s+|to\s+)?(?:bus\s+)?"
_LOOSE_JOIN = r"\s+(?:(?:then|and|to|via|bus)\s+)*"
_NAME = r"(?:[0-9]{1,4}|[A-Z]{1,2})\b"
_MENTION = re.compile(
    rf"\bbus(?:es)?\s+{_NAME}(?:(?:\s*,\s*(?:and\s+)?|\s+and\s+){_NAME})*"  # bus 3; buses 1, 2 and 5
    r"|\b\w+[-–—]\w+\b"  # line 2-5
    r"|\b[0-9.]+e[-+]?[0-9]+\b",  # 1e9, which holds no 9
    re.IGNORECASE,
)
_NUMBER_WORDS = {
    word: str(value)
    for value, word in enumerate(
        ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
    )
}


def parse(latent: GridLatent, text: str) -> str | None:
    """The answer in a text, or ``None`` where there is none to be found: a parse failure, not a wrong answer.

    A route is the last row of two or more buses joined by dashes, arrows or commas, or else by spaces; the same bus
    twice in a row counts once, so that a list of lines is a route too. A number is the last one that is no name of a
    bus or a line.
    """
    if latent.question == "path":
        return _parse_route(latent, text)
    number = last_number(_MENTION.sub(" ", text))
    if number is None:
        words = [word for word in re.findall(r"[a-z]+", text.casefold()) if word in _NUMBER_WORDS]
        return _NUMBER_WORDS[words[-1]] if words else None
    return number


def _parse_route(latent: GridLatent, text: str) -> str | None:
    name = r"[0-9]{1,4}" if all(label.isdigit() for label in latent.labels) else r"[A-Z]{1,2}"
    for join in (_JOIN, _LOOSE_JOIN):
        rows = [m.group() for m in re.finditer(rf"(?<!\w){name}(?:{join}{name}(?!\w))+", text)]
        if rows:
            buses = re.findall(rf"(?<!\w){name}(?!\w)", rows[-1])
            return "-".join(bus for i, bus in enumerate(buses) if i == 0 or bus != buses[i - 1])
    return None


# ------------------------------------------------------------------------------------------------------------ chance


def chance(latent: GridLatent) -> float:
    """The probability that :func:`guess` is right here, exactly."""
    if latent.question == "path":
        others = len(latent.buses) - 2
        return len(_routes(latent)) / sum(perm(others, count) for count in range(others + 1))
    if latent.question == "connectivity":
        return 1 / (latent.num_buses - 1) if int(answer(latent)) >= 2 else 0.0
    flow, last = exact_flow(latent), latent.total_load
    return sum(is_right(latent, str(mw)) for mw in {int(flow), int(flow) + 1} if mw <= last) / (last + 1)


def guess(latent: GridLatent, rng: Random) -> str:
    """An answer of the right form and nothing more, evenly drawn: a route between the two buses over any others, a
    count that N questions have (2 to all buses), whole MW from 0 to the total load."""
    if latent.question == "path":
        start, end = latent.asked
        others = [bus for bus in latent.buses if bus not in latent.asked]
        weights = [perm(len(others), count) for count in range(len(others) + 1)]
        count = rng.choices(range(len(others) + 1), weights)[0]
        return "-".join(latent.labels[bus] for bus in (start, *rng.sample(others, count), end))
    if latent.question == "connectivity":
        return str(rng.randint(2, latent.num_buses))
    return str(rng.randint(0, latent.total_load))
