"""Levels of the power-network questions, from three buses to the whole IEEE 30-bus network, and how one is drawn.

Small levels cut connected buses out of the real network and keep the lines between them. Answers are drawn first, and
evenly, so that no constant answer pays; so is whether the N-1 case changes the answer: for half of the latents it does.
Flow questions use a fixed pool of cuts for each level, so that all their topologies, every outage and addition
included, are solved in one call.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from random import Random
from statistics import median
from typing import Literal

from twoclock.seeding import child_rng
from twoclock.tasks.grid_networks import (
    Line,
    Network,
    distances,
    load_network,
    neighbours,
    reachable,
    shortest_routes,
    solve_topologies,
)
from twoclock.tasks.grid_questions import GridLatent, exact_flow, outages
from twoclock.tasks.grid_wording import draw_labels

__all__ = ["LEVELS", "Level", "draw_latent"]


@dataclass(frozen=True, kw_only=True)
class Level:
    """How large the networks of a level are, and what chance gives on it."""

    network: str
    buses: int
    targets: tuple[int, ...] = ()
    """The N answers that are drawn evenly: lines of a path, connected buses, MW. Empty: as they come."""
    asks: Literal["line", "bus"] = "line"
    """``flow``: the MW on a line, or the MW that a bus gets."""
    loops: bool = True
    """``flow``: whether networks have loops, where flows follow from reactances, or none, where loads are added up."""
    max_load: int = 0
    """``flow``: loads are drawn from 1 to this many MW; 0 takes the network's own, each times 0.5 to 1.5."""
    chance: float
    """What a random answer of the right form scores on N questions (see ``grid_questions.guess``)."""


DIGITS = tuple(range(1, 10))

LEVELS: Mapping[str, tuple[Level, ...]] = {
    "path": (
        Level(network="ieee14", buses=4, targets=(2,), chance=1 / 5),
        Level(network="ieee14", buses=5, targets=(2, 3), chance=1 / 16),
        Level(network="ieee14", buses=7, targets=(2, 3, 4), chance=1 / 326),
        Level(network="ieee30", buses=10, targets=(2, 3, 4), chance=1 / 109_601),
        Level(network="ieee14", buses=14, targets=(2, 3, 4), chance=7.68e-10),
        Level(network="ieee30", buses=30, targets=(2, 3, 4, 5), chance=1.21e-30),
    ),
    "connectivity": (
        Level(network="ieee14", buses=4, targets=(2, 3, 4), chance=1 / 3),
        Level(network="ieee14", buses=5, targets=(2, 3, 4, 5), chance=1 / 4),
        Level(network="ieee14", buses=7, targets=tuple(range(2, 8)), chance=1 / 6),
        Level(network="ieee30", buses=10, targets=tuple(range(2, 11)), chance=1 / 9),
        Level(network="ieee14", buses=14, targets=tuple(range(2, 15)), chance=1 / 13),
        Level(network="ieee30", buses=30, targets=tuple(range(2, 31)), chance=1 / 29),
    ),
    "flow": (
        Level(network="ieee14", buses=3, targets=DIGITS, asks="bus", loops=False, max_load=9, chance=0.1),
        Level(network="ieee14", buses=4, targets=tuple(range(1, 19)), loops=False, max_load=9, chance=0.073),
        Level(network="ieee14", buses=6, targets=tuple(range(1, 28)), loops=False, max_load=9, chance=0.04),
        Level(network="ieee14", buses=5, targets=tuple(range(1, 21)), max_load=20, chance=0.027),
        Level(network="ieee14", buses=14, chance=0.0039),
        Level(network="ieee30", buses=30, chance=0.0035),
    ),
}
"""By question, the easiest first; a config counts them from 1."""

TRIES = 400
REDRAWS = 40
POOL = 48


@dataclass(frozen=True, kw_only=True)
class Cut:
    """Connected buses of a network and lines between them, counted anew from 0."""

    buses: tuple[int, ...]
    """Their places in the network."""
    lines: tuple[Line, ...]
    spares: tuple[Line, ...] = ()
    """What N+1 may add."""


def draw_latent(question: str, level: int, labels: str, rng: Random) -> GridLatent | None:
    """One latent of a level (from 1); ``None`` where this generator led to none."""
    made, network = LEVELS[question][level - 1], load_network(LEVELS[question][level - 1].network)
    candidate = {"path": _path, "connectivity": _connectivity, "flow": _flow}[question]
    for _ in range(REDRAWS):
        want_change, target = rng.random() < 0.5, rng.choice(made.targets or (None,))
        for _ in range(TRIES):
            latent = candidate(made, network, target, rng)
            if latent is None:
                continue
            places = [place for place, changes in outages(latent).items() if changes == want_change]
            if places:
                return _finished(latent, network, rng.choice(places), labels, rng)
    return None


def _finished(latent: GridLatent, network: Network, outage: int, kind: str, rng: Random) -> GridLatent:
    """Named, with its lines in a random order and direction. Until here labels were the buses' places."""
    order = rng.sample(range(len(latent.lines)), len(latent.lines))
    lines = tuple(
        (b, a, x) if rng.random() < 0.5 else (a, b, x) for a, b, x in (latent.lines[place] for place in order)
    )
    own = tuple(int(label) for label in latent.labels[:-1])
    labels = draw_labels(kind, own, network.num_buses, rng)
    return replace(latent, lines=lines, outage=order.index(outage), labels=labels)


# -------------------------------------------------------------------------------------------------------------- cuts


def _cut(level: Level, network: Network, rng: Random) -> Cut:
    """Connected buses, grown one neighbour at a time from a random one; where all are wanted, all."""
    picked = _grow(network.num_buses, network.lines, rng.randrange(network.num_buses), level.buses, rng)
    # The bus nearest to the network's source comes first: it is the one that feeds a cut.
    depth = distances(network.num_buses, network.lines, network.source)
    buses = tuple(sorted(picked, key=lambda bus: (depth[bus], bus)))
    place = {bus: i for i, bus in enumerate(buses)}
    lines = tuple((place[a], place[b], x) for a, b, x in network.lines if a in place and b in place)
    return Cut(buses=buses, lines=lines)


def _grow(num_buses: int, lines: Sequence[Line], start: int, count: int, rng: Random) -> set[int]:
    near = neighbours(num_buses, lines)
    picked = {start}
    while len(picked) < count:
        edge = sorted({other for bus in picked for other in near[bus]} - picked)
        picked.add(rng.choice(edge))
    return picked


def _unjoined(num_buses: int, lines: Sequence[Line]) -> list[tuple[int, int]]:
    joined = {frozenset(line[:2]) for line in lines}
    return [(a, b) for b in range(num_buses) for a in range(b) if frozenset((a, b)) not in joined]


def _same(lines: Sequence[Line]) -> tuple[Line, ...]:
    """Without reactances, where nothing depends on them."""
    return tuple((a, b, 1) for a, b, _ in lines)


def _latent(question: str, level: Level, cut: Cut, **more: object) -> GridLatent:
    fields = {
        "question": question,
        "network": level.network,
        "num_buses": len(cut.buses),
        "outage": 0,
        "labels": (*map(str, cut.buses), ""),
        "lines": cut.lines,
        **more,
    }
    return GridLatent(**fields)  # type: ignore[arg-type]


# ---------------------------------------------------------------------------------------------------------- questions


def _path(level: Level, network: Network, target: int | None, rng: Random) -> GridLatent | None:
    cut = _cut(level, network, rng)
    count = len(cut.buses)
    if len(cut.lines) < count:  # a tree: no line can be lost
        return None
    start = rng.randrange(count)
    ends = [bus for bus, far in distances(count, cut.lines, start).items() if far == target]
    free = _unjoined(count, cut.lines)
    if not ends or not free:
        return None
    asked = (start, rng.choice(ends))
    # One shortest route only: else half of the ways would be right by luck.
    if len(shortest_routes(count, cut.lines, *asked)) != 1:
        return None
    return _latent("path", level, cut, lines=_same(cut.lines), asked=asked, reserve=(*rng.choice(free), 1))


def _connectivity(level: Level, network: Network, target: int | None, rng: Random) -> GridLatent | None:
    cut = _cut(level, network, rng)
    count = len(cut.buses)
    start = rng.randrange(count)
    part = _grow(count, cut.lines, start, target or count, rng)
    # Lines that leave the part are switched off, and some within it and outside it, as long as the part holds together.
    lines = [line for line in cut.lines if (line[0] in part) == (line[1] in part)]
    for line in rng.sample(lines, len(lines)):
        without = [other for other in lines if other != line]
        if rng.random() < 0.3 and reachable(count, without, start) == part:
            lines = without
    free = _unjoined(count, lines)
    if not lines or not free:
        return None
    # Most pairs lie in different parts; drawn evenly, N+1 would change nearly all answers, and mostly to all buses.
    joins = rng.random() < 0.5
    free = [(a, b) for a, b in free if ((a in part) != (b in part)) == joins] or free
    return _latent("connectivity", level, cut, lines=_same(lines), asked=(start,), reserve=(*rng.choice(free), 1))


def _flow(level: Level, network: Network, target: int | None, rng: Random) -> GridLatent | None:
    cut = rng.choice(_pool(level))
    loads = [0, *(_load(level, network.loads[bus], rng) for bus in cut.buses[1:]), max(1, level.max_load)]
    if level.max_load:
        loads[-1] = rng.randint(1, level.max_load)
    if level.asks == "bus":
        asked: tuple[int, ...] = (rng.randrange(1, len(cut.buses)),)
        if loads.count(loads[asked[0]]) > 1:  # the load of another bus must not be right too
            return None
    else:
        asked = rng.choice(cut.lines)[:2]
    latent = _latent(
        "flow",
        level,
        cut,
        asked=asked,
        reserve=rng.choice(cut.spares),
        loads=tuple(loads),
    )
    flow = round(exact_flow(latent))
    return latent if flow == target or (target is None and flow > 0) else None


def _load(level: Level, own: float, rng: Random) -> int:
    return rng.randint(1, level.max_load) if level.max_load else round(own * rng.uniform(0.5, 1.5))


@cache
def _pool(level: Level) -> tuple[Cut, ...]:
    """The fixed cuts of a flow level, the same for every seed of a task; all that may be asked of them is solved."""
    network = load_network(level.network)
    whole = level.buses == network.num_buses
    cuts: dict[tuple[Line, ...], Cut] = {}
    for index in range(20 * POOL):
        cut = _flow_cut(level, network, child_rng("grid-pool", 0, level.network, level.buses, index))
        if cut is not None:
            cuts.setdefault((*((bus, bus, 0.0) for bus in cut.buses), *cut.lines), cut)
        if len(cuts) == (1 if whole else POOL):
            break
    pool = tuple(cuts.values())
    solve_topologies(topology for cut in pool for topology in _topologies(cut))
    return pool


def _flow_cut(level: Level, network: Network, rng: Random) -> Cut | None:
    cut = _cut(level, network, rng)
    count = len(cut.buses)
    if not level.loops:
        lines: tuple[Line, ...] = _same(_tree(count, cut.lines, rng))
        spares: tuple[Line, ...] = tuple((bus, count, 1) for bus in range(count))
    else:
        # Stated in whole percent, and solved as stated.
        lines = tuple((min(a, b), max(a, b), max(1, round(x))) for a, b, x in cut.lines)
        free, usual = _unjoined(count, lines), round(median(x for _, _, x in lines))
        spares = tuple((*pair, usual) for pair in rng.sample(free, min(4, len(free))))
        if len(lines) < count or not spares:
            return None
    return Cut(buses=cut.buses, lines=tuple(sorted(lines)), spares=spares)


def _tree(count: int, lines: Sequence[Line], rng: Random) -> list[Line]:
    """The lines of a random spanning tree: the others are switched off, as in a network that is run radially."""
    kept: list[Line] = []
    for line in rng.sample(lines, len(lines)):
        if line[1] not in reachable(count, kept, line[0]):
            kept.append((min(line[:2]), max(line[:2]), line[2]))
    return kept


def _topologies(cut: Cut) -> list[tuple[int, tuple[Line, ...]]]:
    count = len(cut.buses)
    added = [(max(count, spare[1] + 1), tuple(sorted((*cut.lines, spare)))) for spare in cut.spares]
    lost = [(count, cut.lines[:k] + cut.lines[k + 1 :]) for k in range(len(cut.lines))]
    return [(count, cut.lines), *lost, *added]
