"""How a power-network question is put into words: templates, names of buses, distractors. No answer depends on it.

Each question has four templates, and two more for probes. The lines in service stand in all of them, so that the text
holds all that the answer depends on; flows also state loads and, where there are loops, reactances.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from random import Random
from typing import Any

from twoclock.tasks.grid_questions import GridLatent

__all__ = ["LABELS", "PROBE_TEMPLATES", "TEMPLATES", "draw_labels", "relabelled", "render", "with_distractor"]

TEMPLATES: Mapping[str, tuple[str, ...]] = {
    "path": (
        'Lines: {lines}.{more}\nGive the shortest path from bus {a} to bus {b}: its buses joined by "-".',
        "A power grid has these lines: {lines}.{more} Which way from bus {a} to bus {b} uses the fewest lines? Write "
        'the buses in order, joined by "-".',
        'Grid lines: {lines}{more}\nFrom: {a}\nTo: {b}\nShortest path, buses joined by "-":',
        "Find the way from {a} to {b} that uses the fewest of these lines: {lines}.{more} Answer with its buses joined "
        'by "-", from {a} to {b}.',
        "Power goes from bus {a} to bus {b} over as few lines as possible. Lines in service: {lines}.{more} Name the "
        'buses on its way, first to last, joined by "-".',
        "The lines {lines} make up a grid.{more} List every bus on the shortest way from {a} to {b}, both included, "
        'joined by "-".',
    ),
    "connectivity": (
        "Buses: {buses}. Lines: {lines}.{more}\nHow many buses are connected to bus {a}, also over other buses? Count "
        "bus {a} too.",
        "A power grid has the buses {buses} and the lines {lines}.{more} Count the buses that can be reached from bus "
        "{a}, bus {a} included.",
        "Buses: {buses}\nLines: {lines}{more}\nStart: {a}\nNumber of buses connected to it, itself included:",
        "Bus {a} is live. It feeds every bus that lines connect to it. The buses are {buses}, the lines {lines}.{more} "
        "How many buses are live, bus {a} included?",
        "Buses {buses} are joined by lines {lines}.{more} How many buses are in the same part of the grid as bus {a}, "
        "with bus {a} itself?",
        "How large is the part of the grid that bus {a} belongs to, in buses? The buses: {buses}. The lines: {lines}."
        "{more}",
    ),
    "flow": (
        "Bus {source} feeds all buses connected to it. Lines{with_x}: {lines}. Loads in MW: {loads}.{more}\nHow many "
        "MW flow on line {line}?{rounding}",
        "Loads in MW: {loads}. Lines{with_x}: {lines}.{more} Bus {source} supplies every load that lines connect to "
        "it.\nWhat is the flow on line {line} in MW?{rounding}",
        "Source of all buses connected to it: {source}\nLines{with_x}: {lines}{more}\nLoads in MW: {loads}\n"
        "MW on line {line}{rounding_short}:",
        "How many MW does line {line} carry?{rounding} Bus {source} feeds the buses connected to it. The lines{with_x} "
        "are {lines}. The loads in MW are {loads}.{more}",
        "Power reaches the loads ({loads}; in MW) from bus {source}, as far as they are connected to it. The lines"
        "{with_x}: {lines}.{more} Which power does line {line} take, in MW?{rounding}",
        "Find the MW on line {line} of a grid.{rounding} Its lines{with_x}: {lines}.{more} Its loads in MW: {loads}. "
        "They are fed by bus {source} where they are connected to it, and off where not.",
    ),
    "supply": (
        "Bus {source} feeds all buses connected to it. Lines: {lines}. Loads in MW: {loads}.{more}\nHow many MW does "
        "bus {bus} get?",
        "Loads in MW: {loads}. Lines: {lines}.{more} Bus {source} supplies every load that lines connect to it.\nHow "
        "many MW reach bus {bus}?",
        "Source of all buses connected to it: {source}\nLines: {lines}{more}\nLoads in MW: {loads}\nMW into bus {bus}:",
        "How many MW flow into bus {bus}? Bus {source} feeds the buses connected to it. The lines are {lines}. The "
        "loads in MW are {loads}.{more}",
        "Power reaches the loads ({loads}; in MW) from bus {source}, as far as they are connected to it. The lines: "
        "{lines}.{more} Which power does bus {bus} take, in MW?",
        "Find the MW that bus {bus} of a grid gets. Its lines: {lines}.{more} Its loads in MW: {loads}. They are fed "
        "by bus {source} where they are connected to it, and off where not.",
    ),
}
"""By question; flows into a bus stand under ``supply``. ``{more}`` holds what the case or a distractor adds."""

PROBE_TEMPLATES = 2
"""The last ones of each question: kept for probes of other wordings, used by a task only when it names them."""

ROUNDING = " Use the DC power flow and round to whole MW."


def render(latent: GridLatent, template: int, *, stated: bool = False) -> str:
    """The question in one of its templates.

    The changed network is shown as it is, without the line that is out (or with the one that was added); ``stated``
    shows the N network instead and says in a sentence what is out or added, if anything.
    """
    more = [_change(latent)] if stated else []
    shown = replace(latent, case="n") if stated else latent
    if latent.note:
        more.append(latent.note)
    kind = "supply" if latent.question == "flow" and len(latent.asked) == 1 else latent.question
    fields = _FIELDS[latent.question](shown) | {"more": "".join(f" {sentence}" for sentence in more)}
    text = TEMPLATES[kind][template]
    if more and "{lines}{more}" in text:  # a list by rows: the sentences get a row of their own
        fields["more"] = "\n" + " ".join(more)
    return text.format(**fields)


def _change(latent: GridLatent) -> str:
    if latent.case == "n-1":
        return f"Line {latent.named(latent.lines[latent.outage])} is out of service."
    if latent.case == "n":
        return "All these lines are in service."
    reserve = latent.reserve
    x = f" (reactance {reserve[2]:g})" if _shows_reactance(latent) else ""
    added = f"Line {latent.named(reserve)}{x} has been added"
    if reserve[1] < latent.num_buses:
        return f"{added}."
    return f"{added} with bus {latent.labels[reserve[1]]}, which has a load of {latent.loads[reserve[1]]} MW."


def _shows_reactance(latent: GridLatent) -> bool:
    """Where the network has no loops, and its N+1 makes none, flows follow from the loads alone."""
    return latent.question == "flow" and latent.reserve[1] < latent.num_buses


def _lines(latent: GridLatent) -> str:
    with_x = _shows_reactance(latent)
    return ", ".join(latent.named(line) + (f" ({line[2]:g})" if with_x else "") for line in latent.active) or "none"


def _buses(latent: GridLatent) -> str:
    return ", ".join(sorted((latent.labels[bus] for bus in latent.buses), key=_order))


def _order(label: str) -> tuple[int, str]:
    return len(label), label


def _flow_fields(latent: GridLatent) -> dict[str, Any]:
    with_x = _shows_reactance(latent)
    loaded = sorted((bus for bus in latent.buses if bus and latent.loads[bus]), key=lambda b: _order(latent.labels[b]))
    return {
        "source": latent.labels[0],
        "lines": _lines(latent),
        "loads": ", ".join(f"bus {latent.labels[bus]}: {latent.loads[bus]}" for bus in loaded) or "none",
        "line": latent.named((latent.asked[0], latent.asked[-1])),
        "bus": latent.labels[latent.asked[0]],
        "with_x": " (reactance in brackets)" if with_x else "",
        "rounding": ROUNDING if with_x else "",
        "rounding_short": " by DC power flow, rounded" if with_x else "",
    }


_FIELDS: Mapping[str, Callable[[GridLatent], dict[str, Any]]] = {
    "path": lambda latent: {
        "lines": _lines(latent),
        "a": latent.labels[latent.asked[0]],
        "b": latent.labels[latent.asked[1]],
    },
    "connectivity": lambda latent: {
        "lines": _lines(latent),
        "buses": _buses(latent),
        "a": latent.labels[latent.asked[0]],
    },
    "flow": _flow_fields,
}

# ------------------------------------------------------------------------------------------------- names, distractors

_ALPHABET = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
_LETTERS = (*_ALPHABET, *(f"A{letter}" for letter in _ALPHABET))

LABELS = ("shuffled", "own", "letters")
"""``shuffled``: numbers in a random order; ``own``: the IEEE numbers; ``letters``: A, B, ... in a random order."""


def draw_labels(kind: str, buses: tuple[int, ...], num_in_network: int, rng: Random) -> tuple[str, ...]:
    """A name for each bus and one more for a new bus. ``buses`` are the buses' own places in their network."""
    count = len(buses) + 1
    if kind == "own":
        return (*(str(bus + 1) for bus in buses), str(num_in_network + 1))
    if kind == "letters":
        return tuple(rng.sample(_LETTERS[: max(count, len(_ALPHABET))], count))
    return tuple(str(number) for number in rng.sample(range(1, max(9, count) + 1), count))


def relabelled(latent: GridLatent, rng: Random, kind: str = "letters") -> GridLatent:
    """The same question with other names and the lines in another order and direction: surface only."""
    if kind == "own":
        raise ValueError("a cut network does not know its own numbers again; use 'letters' or 'shuffled'")
    labels = draw_labels(kind, tuple(range(latent.num_buses)), latent.num_buses, rng)
    order = rng.sample(range(len(latent.lines)), len(latent.lines))
    lines = tuple(_turned(latent.lines[place], rng) for place in order)
    return replace(latent, labels=labels, lines=lines, outage=order.index(latent.outage), note="")


def _turned(line: tuple[int, int, float], rng: Random) -> tuple[int, int, float]:
    a, b, x = line
    return (b, a, x) if rng.random() < 0.5 else (a, b, x)


def with_distractor(latent: GridLatent, rng: Random) -> GridLatent:
    """The same question with a sentence that no answer can depend on. It speaks of a bus, never of a line, which might
    be the one that is out."""
    bus = latent.labels[rng.randrange(latent.num_buses)]
    year, team = rng.randint(1950, 2020), rng.choice(("north", "south", "east", "west"))
    notes = (
        f"Bus {bus} was built in {year}.",
        f"The fence around bus {bus} was painted in {year}.",
        f"The {team} crew looks after bus {bus}.",
        f"The control room near bus {bus} has {rng.randint(2, 30)} windows.",
    )
    return replace(latent, note=rng.choice(notes))
