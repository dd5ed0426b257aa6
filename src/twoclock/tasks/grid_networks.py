"""Power networks and their solver: the IEEE 14- and 30-bus cases that pandapower ships, as graphs, with DC power flow.

Owns the only import of pandapower, made when a network is first asked for. A line here is any branch, transformers
too: ``(bus, bus, reactance)`` with buses counted from 0 and the reactance in percent on a base of 100 MVA, seen through
the transformer's tap. Resistances, shunts and reactive power play no part in DC power flow.

DC power flow: with the source's angle at 0, a line carries ``P_ij = (theta_i - theta_j) / x_ij``, and the flows into
each bus sum to its load. It is linear in the loads, so the flows for 1 MW at each bus in turn say everything about a
topology; many are solved in one call of ``pandapower.rundcpp``, as islands that share nothing but the source.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from types import ModuleType
from typing import Any

from twoclock.errors import ConfigError, MissingExtraError, unknown_name

__all__ = [
    "NETWORKS",
    "Line",
    "Network",
    "distances",
    "line_flows",
    "load_network",
    "neighbours",
    "reachable",
    "require_pandapower",
    "shortest_routes",
    "solve_topologies",
    "transfer_factors",
]

Line = tuple[int, int, float]
"""(bus, bus, reactance in percent on 100 MVA)."""
Topology = tuple[int, tuple[Line, ...]]
"""(number of buses, lines in service); bus 0 is the source."""

NETWORKS: Mapping[str, str] = {"ieee14": "case14", "ieee30": "case_ieee30"}
"""Our names, and those of the functions in ``pandapower.networks``."""

BASE_MVA = 100.0
BASE_KV = 100.0  # with 100 MVA this makes one ohm one percent, so that reactances go in as they are stated


@dataclass(frozen=True, kw_only=True)
class Network:
    """A network as shipped. Buses are counted from 0; their IEEE numbers are one more."""

    name: str
    num_buses: int
    lines: tuple[Line, ...]
    """Lines first, then transformers, in the order of the case."""
    loads: tuple[float, ...]
    """MW at each bus."""
    generation: tuple[float, ...]
    """MW fed in at each bus other than the source."""
    source: int
    """The reference bus, which balances the rest."""


def require_pandapower() -> ModuleType:
    """pandapower, or MissingExtraError with the command that installs it."""
    try:
        with _quiet():
            import pandapower
            import pandapower.networks
    except ImportError as error:
        raise MissingExtraError.of("pandapower", "grid", "a task of source 'grid'") from error
    module: ModuleType = pandapower
    return module


@contextmanager
def _quiet() -> Iterator[None]:
    """pandapower warns of its own deprecations, and logs at each solution that numba would make it faster."""
    logger = logging.getLogger("pandapower.auxiliary")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


@cache
def load_network(name: str) -> Network:
    """A network of ``NETWORKS``. Raises ConfigError for another name, MissingExtraError without pandapower."""
    if name not in NETWORKS:
        raise ConfigError(unknown_name("network", name, NETWORKS))
    package = require_pandapower()
    with _quiet():
        net = getattr(package.networks, NETWORKS[name])()
    num_buses = len(net.bus)
    return Network(
        name=name,
        num_buses=num_buses,
        lines=(*_lines(net), *_transformers(net)),
        loads=_at_buses(num_buses, net.load.bus, net.load.p_mw),
        generation=_at_buses(num_buses, net.gen.bus, net.gen.p_mw),
        source=int(net.ext_grid.bus.iloc[0]),
    )


def _lines(net: Any) -> list[Line]:
    ohm = net.line.x_ohm_per_km * net.line.length_km / net.line.parallel
    base_kv = net.bus.vn_kv.loc[net.line.from_bus].to_numpy()
    percent = 100.0 * ohm.to_numpy() * BASE_MVA / base_kv**2
    return [(int(a), int(b), float(x)) for a, b, x in zip(net.line.from_bus, net.line.to_bus, percent, strict=True)]


def _transformers(net: Any) -> list[Line]:
    trafo = net.trafo
    tap = 1.0 + trafo.tap_pos.fillna(0.0) * trafo.tap_step_percent.fillna(0.0) / 100.0
    percent = trafo.vk_percent * BASE_MVA / trafo.sn_mva * tap
    return [(int(a), int(b), float(x)) for a, b, x in zip(trafo.hv_bus, trafo.lv_bus, percent, strict=True)]


def _at_buses(num_buses: int, buses: Iterable[Any], megawatts: Iterable[Any]) -> tuple[float, ...]:
    total = [0.0] * num_buses
    for bus, power in zip(buses, megawatts, strict=True):
        total[int(bus)] += float(power)
    return tuple(total)


# ------------------------------------------------------------------------------------------------------------- graph


def neighbours(num_buses: int, lines: Iterable[Line]) -> list[list[int]]:
    """The buses that each bus has a line to, ascending."""
    found: list[set[int]] = [set() for _ in range(num_buses)]
    for a, b, _ in lines:
        found[a].add(b)
        found[b].add(a)
    return [sorted(others) for others in found]


def distances(num_buses: int, lines: Iterable[Line], start: int) -> dict[int, int]:
    """The fewest lines to each bus that can be reached from ``start``; itself is 0 away."""
    near = neighbours(num_buses, lines)
    found = {start: 0}
    frontier = [start]
    while frontier:
        ahead = [(bus, other) for bus in frontier for other in near[bus] if other not in found]
        frontier = []
        for bus, other in ahead:
            if other not in found:
                found[other] = found[bus] + 1
                frontier.append(other)
    return found


def reachable(num_buses: int, lines: Iterable[Line], start: int) -> frozenset[int]:
    """The buses connected to ``start``, itself included."""
    return frozenset(distances(num_buses, lines, start))


def shortest_routes(num_buses: int, lines: Sequence[Line], start: int, end: int) -> list[tuple[int, ...]]:
    """All routes with the fewest lines, as buses from start to end, in ascending order; none where there is no way."""
    to_end = distances(num_buses, lines, end)
    if start not in to_end:
        return []
    near = neighbours(num_buses, lines)
    routes: list[tuple[int, ...]] = [(start,)]
    for left in range(to_end[start] - 1, -1, -1):
        routes = [(*route, bus) for route in routes for bus in near[route[-1]] if to_end.get(bus) == left]
    return routes


# ------------------------------------------------------------------------------------------------------------ solver

_SOLVED: dict[Topology, tuple[tuple[float, ...], ...]] = {}
_MAX_SOLVED = 20_000


def transfer_factors(num_buses: int, lines: Sequence[Line]) -> tuple[tuple[float, ...], ...]:
    """For each line the MW on it, from its first bus to its second, for 1 MW of load at each bus, fed from bus 0.

    An island without the source has no DC solution; its buses are without power, as in pandapower, and its lines
    carry 0. A load at the source flows over no line.
    """
    topology = (num_buses, tuple(lines))
    solve_topologies([topology])
    return _SOLVED[topology]


def line_flows(num_buses: int, lines: Sequence[Line], loads: Sequence[float]) -> tuple[float, ...]:
    """The DC power flow on each line in MW, from its first bus to its second, for these MW at each bus."""
    factors = transfer_factors(num_buses, lines)
    return tuple(sum(f * mw for f, mw in zip(row, loads, strict=True)) for row in factors)


def solve_topologies(topologies: Iterable[Topology]) -> None:
    """Solve those that were not solved yet, all in one call: far cheaper than one by one."""
    fresh = [t for t in dict.fromkeys(topologies) if t not in _SOLVED]
    if not fresh:
        return
    if len(_SOLVED) + len(fresh) > _MAX_SOLVED:
        _SOLVED.clear()  # they can be had again
    flows = iter(_solve(fresh))
    for num_buses, lines in fresh:
        by_bus = [[0.0] * len(lines), *([next(flows) for _ in lines] for _ in range(1, num_buses))]
        _SOLVED[num_buses, lines] = tuple(tuple(loaded[k] for loaded in by_bus) for k in range(len(lines)))


def _solve(topologies: Sequence[Topology]) -> list[float]:
    """The flows of every topology under 1 MW at each bus in turn: one island for each (topology, loaded bus)."""
    starts, ends, percent, loaded = [], [], [], []
    offset = 0  # bus b > 0 of the island is bus offset + b; bus 0, the source, is shared by all
    for num_buses, lines in topologies:
        for bus in range(1, num_buses):
            starts += [a and offset + a for a, _, _ in lines]
            ends += [b and offset + b for _, b, _ in lines]
            percent += [x for _, _, x in lines]
            loaded.append(offset + bus)
            offset += num_buses - 1
    if not starts:
        return []
    pp: Any = require_pandapower()
    with _quiet():
        net = pp.create_empty_network(sn_mva=BASE_MVA)
        pp.create_buses(net, offset + 1, vn_kv=BASE_KV)
        pp.create_ext_grid(net, 0)
        pp.create_lines_from_parameters(
            net,
            starts,
            ends,
            length_km=1.0,
            r_ohm_per_km=0.0,
            x_ohm_per_km=percent,
            c_nf_per_km=0.0,
            max_i_ka=1.0,
        )
        pp.create_loads(net, loaded, p_mw=1.0)
        pp.rundcpp(net, check_connectivity=True)
    flows = net.res_line.p_from_mw.fillna(0.0).to_numpy()
    return [float(flow) for flow in flows]
