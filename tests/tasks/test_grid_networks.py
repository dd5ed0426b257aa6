"""The networks as shipped; DC power flow against them, against a 3-bus case worked by hand, and on islands."""

from __future__ import annotations

import subprocess
import sys
import warnings
from functools import cache
from typing import Any

import numpy as np
import pandapower
import pandapower.networks
import pytest

from twoclock.errors import ConfigError
from twoclock.tasks.grid_networks import (
    NETWORKS,
    distances,
    line_flows,
    load_network,
    reachable,
    shortest_routes,
    solve_topologies,
    transfer_factors,
)

TRIANGLE = ((0, 1, 10.0), (0, 2, 20.0), (1, 2, 30.0))


@cache
def case(name: str) -> Any:
    return getattr(pandapower.networks, NETWORKS[name])()


def shipped(name: str, out: int | None = None) -> list[float]:
    """MW on each branch of the case as pandapower ships it, by its own rundcpp, with one branch out."""
    net = case(name)
    num_lines = len(net.line)
    net.line["in_service"] = [k != out for k in range(num_lines)]
    net.trafo["in_service"] = [k + num_lines != out for k in range(len(net.trafo))]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pandapower.rundcpp(net)
    flows = [*net.res_line.p_from_mw.fillna(0.0), *net.res_trafo.p_hv_mw.fillna(0.0)]
    return [flow for k, flow in enumerate(flows) if k != out]


@pytest.mark.parametrize(("name", "buses", "lines"), [("ieee14", 14, 20), ("ieee30", 30, 41)])
def test_the_shipped_networks(name: str, buses: int, lines: int) -> None:
    network = load_network(name)
    assert (network.num_buses, len(network.lines), network.source) == (buses, lines, 0)
    assert reachable(buses, network.lines, 0) == frozenset(range(buses))
    assert len({frozenset(line[:2]) for line in network.lines}) == lines  # no two lines side by side
    assert sum(network.loads) == pytest.approx({"ieee14": 259.0, "ieee30": 283.4}[name])


@pytest.mark.parametrize("name", NETWORKS)
def test_flows_are_those_of_the_shipped_case_for_n_and_n_minus_1(name: str) -> None:
    network = load_network(name)
    net_load = [load - made for load, made in zip(network.loads, network.generation, strict=True)]
    outages = [None, *range(0, len(network.lines), 1 if name == "ieee14" else 3)]
    compared = 0
    for out in outages:
        lines = tuple(line for k, line in enumerate(network.lines) if k != out)
        if len(reachable(network.num_buses, lines, 0)) < network.num_buses:
            continue  # the shipped case has generators on islands of their own
        assert line_flows(network.num_buses, lines, net_load) == pytest.approx(shipped(name, out), abs=1e-9)
        compared += 1
    assert compared >= 12


def test_three_buses_by_hand() -> None:
    # Balance: f01 + f02 = P1 + P2 and f12 = f01 - P1; around the loop 10 f01 + 30 f12 = 20 f02.
    # So 60 f01 = 50 P1 + 20 P2; with P1 = 30, P2 = 60: f01 = 45, f02 = 45, f12 = 15.
    assert line_flows(3, TRIANGLE, (0, 30, 60)) == pytest.approx((45.0, 45.0, 15.0))
    for p1, p2 in ((1.0, 0.0), (0.0, 1.0), (7.0, 11.0)):
        f01, f02, f12 = line_flows(3, TRIANGLE, (0, p1, p2))
        assert f01 == pytest.approx((5 * p1 + 2 * p2) / 6)
        assert f01 + f02 == pytest.approx(p1 + p2)
        assert f12 == pytest.approx(f01 - p1)
        assert 10 * f01 + 30 * f12 == pytest.approx(20 * f02)
    # One line out: no loop is left, and reactances no longer matter.
    assert line_flows(3, TRIANGLE[:2], (0, 30, 60)) == pytest.approx((30.0, 60.0))
    assert line_flows(3, TRIANGLE[1:], (0, 30, 60)) == pytest.approx((90.0, -30.0))


def test_against_the_bus_equations() -> None:
    """B theta = -P, solved densely, on a random network: the slow oracle."""
    rng = np.random.default_rng(3)
    pairs = [(0, 1), (1, 2), (2, 3), (3, 0), (1, 3), (3, 4)]
    lines = tuple((a, b, float(x)) for (a, b), x in zip(pairs, rng.integers(5, 60, len(pairs)), strict=True))
    loads = rng.integers(0, 40, 5).astype(float)
    susceptance = np.zeros((5, 5))
    for a, b, x in lines:
        susceptance[[a, b, a, b], [a, b, b, a]] += np.array([1, 1, -1, -1]) / x
    theta = np.zeros(5)
    theta[1:] = np.linalg.solve(susceptance[1:, 1:], -loads[1:])
    assert line_flows(5, lines, tuple(loads)) == pytest.approx([(theta[a] - theta[b]) / x for a, b, x in lines])


def test_islands_have_no_power() -> None:
    lines = ((0, 1, 10.0), (2, 3, 10.0), (1, 4, 5.0))
    assert line_flows(5, lines, (0, 3, 4, 5, 6)) == pytest.approx((9.0, 0.0, 6.0))
    assert line_flows(3, (), (0, 1, 1)) == ()
    assert line_flows(3, ((1, 2, 10.0),), (0, 1, 1)) == (0.0,)


def test_many_at_once_are_what_each_is_alone() -> None:
    topologies = [(3, TRIANGLE), (3, TRIANGLE[1:]), (2, ((0, 1, 7.0),)), (4, (*TRIANGLE, (2, 3, 12.5)))]
    solve_topologies(topologies)
    together = [transfer_factors(*topology) for topology in topologies]
    alone = [transfer_factors(count, tuple((a, b, x + 0.0) for a, b, x in lines)) for count, lines in topologies]
    assert together == alone
    assert together[2] == ((0.0, pytest.approx(1.0)),)
    assert [len(rows) for rows in together] == [3, 2, 1, 4]


def test_graph_by_hand() -> None:
    ring = ((0, 1, 1.0), (1, 2, 1.0), (2, 3, 1.0), (3, 0, 1.0), (4, 5, 1.0))
    assert distances(6, ring, 0) == {0: 0, 1: 1, 3: 1, 2: 2}
    assert reachable(6, ring, 4) == {4, 5}
    assert shortest_routes(6, ring, 0, 2) == [(0, 1, 2), (0, 3, 2)]
    assert shortest_routes(6, ring, 0, 5) == []
    assert shortest_routes(6, ring, 1, 1) == [(1,)]


def test_an_unknown_network() -> None:
    with pytest.raises(ConfigError, match="unknown network 'ieee41'; did you mean 'ieee14'"):
        load_network("ieee41")


def test_without_pandapower_everything_else_works() -> None:
    script = """
import sys
sys.modules["pandapower"] = None
import twoclock.tasks.sources as sources
from twoclock.errors import MissingExtraError
assert not [m for m in ("pandas", "numpy", "scipy", "networkx") if m in sys.modules]
size = {"train": 2, "trial": 1, "heldout": 1}
assert sources.build_task("a", {"source": "family", "family": "sum", "size": size}, 0).split("train")
try:
    sources.build_task("b", {"source": "grid", "family": "flow", "size": size}, 0)
except MissingExtraError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == (
        "a task of source 'grid' needs the package 'pandapower'; type: pip install 'twoclock[grid]'"
    )


def test_the_solver_neither_warns_nor_logs() -> None:
    script = """
import warnings
warnings.simplefilter("error")
from twoclock.tasks.grid import GridTask
from twoclock.tasks import SplitSizes
for question in ("path", "connectivity", "flow"):
    GridTask(question, {"level": 4}, sizes=SplitSizes(train=2, trial=1, heldout=1)).split("train")
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("", "")
