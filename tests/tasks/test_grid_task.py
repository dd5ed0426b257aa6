"""Grid tasks: an oracle that reads only the prompt, a stale policy, splits, grading, determinism, and mistakes."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from itertools import combinations
from typing import Any

import networkx
import numpy as np
import pytest

from twoclock.errors import ConfigError
from twoclock.measure import wilson
from twoclock.tasks import SplitSizes, build_task
from twoclock.tasks.grid import GridTask
from twoclock.tasks.grid_levels import LEVELS
from twoclock.tasks.grid_questions import CASES, QUESTIONS, GridLatent, n_minus_one
from twoclock.types import Item

SMALL = SplitSizes(train=30, trial=10, heldout=20)


def every_level() -> list[tuple[str, int]]:
    return [(question, level) for question in QUESTIONS for level in range(1, len(LEVELS[question]) + 1)]


# -------------------------------------------------------------------------------------------------- policies to test


def solve(question: str, prompt: str) -> str:
    """An answer worked out from the text of template 0 alone, by networkx and a dense solve."""
    facts, asked = prompt.split("\n")[:2]
    grid = networkx.Graph()
    grid.add_nodes_from(re.findall(r"\d+", facts.partition("Lines")[0]))
    out = re.findall(r"Line (\d+)-(\d+) is out of service", facts)
    added = re.findall(r"Line (\d+)-(\d+)(?: \(reactance (\d+)\))? has been added", facts)
    loads = {bus: float(mw) for bus, mw in re.findall(r"bus (\d+): (\d+)", facts)}
    loads |= {bus: float(mw) for bus, mw in re.findall(r"with bus (\d+), which has a load of (\d+) MW", facts)}
    listed = re.findall(
        r"(\d+)-(\d+)(?: \((\d+)\))?", re.split(r"\. (?:Loads|Line|All)|\.$", facts.partition("Lines")[2])[0]
    )
    for a, b, x in [*listed, *added]:
        grid.add_edge(a, b, x=float(x or 1))
    grid.remove_edges_from(out)
    if question == "path":
        start, end = re.findall(r"from bus (\d+) to bus (\d+)", asked)[0]
        return "-".join(networkx.shortest_path(grid, start, end))
    if question == "connectivity":
        return str(len(networkx.node_connected_component(grid, re.findall(r"connected to bus (\d+)", asked)[0])))
    source = re.findall(r"Bus (\d+) feeds", facts)[0]
    into = re.findall(r"does bus (\d+) get", asked)
    live = networkx.node_connected_component(grid, source)
    if into:
        return str(round(loads[into[0]])) if into[0] in live else "0"
    a, b = re.findall(r"line (\d+)-(\d+)", asked)[0]
    return str(round(abs(dense_flow(grid.subgraph(live), loads, source, a, b)))) if a in live else "0"


def dense_flow(grid: Any, loads: dict[str, float], source: str, a: str, b: str) -> float:
    buses = [source, *(bus for bus in grid if bus != source)]
    place = {bus: i for i, bus in enumerate(buses)}
    matrix = np.zeros((len(buses), len(buses)))
    for u, v, x in grid.edges(data="x"):
        i, j = place[u], place[v]
        matrix[[i, j, i, j], [i, j, j, i]] += np.array([1, 1, -1, -1]) / x
    theta = np.zeros(len(buses))
    theta[1:] = np.linalg.solve(matrix[1:, 1:], [-loads.get(bus, 0.0) for bus in buses[1:]])
    return float((theta[place[a]] - theta[place[b]]) / grid[a][b]["x"])


def rewards(task: GridTask, items: tuple[Item, ...], texts: list[str]) -> list[float]:
    return [grade.reward for grade in task.grade(items, texts)]


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize(("question", "level"), every_level())
def test_an_exact_solver_scores_1_from_the_prompt_alone(question: str, level: int, case: str) -> None:
    for change in ("shown", "stated"):
        config = {"level": level, "case": case, "change": change}
        task = GridTask(question, config, sizes=SplitSizes(train=12, trial=1, heldout=1), seed=2, templates=[0])
        items = task.split("train")
        assert rewards(task, items, [solve(question, item.prompt) for item in items]) == [1.0] * len(items)
        assert rewards(task, items, [item.reference or "" for item in items]) == [1.0] * len(items)


@pytest.mark.parametrize(("question", "level"), every_level())
def test_a_stale_policy_scores_1_on_n_and_the_unchanged_share_on_n_minus_1(question: str, level: int) -> None:
    sizes = SplitSizes(train=150, trial=1, heldout=1)
    n, n_1 = (GridTask(question, {"level": level, "case": case}, sizes=sizes, seed=4) for case in ("n", "n-1"))
    known = {item.metadata["base"]: item.metadata["value"] for item in n.split("train")}
    assert rewards(n, n.split("train"), list(known.values())) == [1.0] * 150
    items = n_1.split("train")
    assert [item.metadata["base"] for item in items] == list(known)  # partners, in the same order
    stale = [known[item.metadata["base"]] for item in items]
    assert stale == [item.metadata["stale"] for item in items]
    scored = rewards(n_1, items, stale)
    assert scored == [float(not item.metadata["changed"]) for item in items]
    interval = wilson(round(sum(scored)), len(scored), 0.99)
    assert interval.low <= 0.5 <= interval.high


@pytest.mark.parametrize("question", QUESTIONS)
def test_partners_differ_in_one_line(question: str) -> None:
    n, n_1 = (GridTask(question, {"level": 3, "case": case}, sizes=SMALL, seed=4) for case in ("n", "n-1"))
    for whole, less in zip(n.split("heldout"), n_1.split("heldout"), strict=True):
        out = less.metadata["outage"]
        assert len(re.findall(r"\d+-\d+", whole.prompt)) == len(re.findall(r"\d+-\d+", less.prompt)) + 1
        assert re.search(rf"(?<!\d){out}(?!\d)", whole.prompt)
        assert whole.metadata["template"] == less.metadata["template"]
        assert (whole.metadata["outage"], whole.metadata["changed"]) == ("", False)
        assert whole.id != less.id
        latent = GridLatent.from_json(whole.metadata["latent"])
        assert n.item(n_minus_one(latent), whole.metadata["template"]) == less


# ------------------------------------------------------------------------------------------------------------ grading


def test_gold_passes_and_other_texts_do_not() -> None:
    for question in QUESTIONS:
        task = GridTask(question, sizes=SMALL, seed=3)
        for item in task.split("train"):
            gold = item.metadata["value"]
            wrong = ["", " ", "zq zq", "nan", "None", "yes", "-", "999", "99-98", gold + "1", gold + "-99", "1e9", "½"]
            wrong += ["9" * 100_000, "1-" * 20_000, " " * 50_000, "\x00", "\ud800", "é" * 50, "bus " * 9_000, "٣"]
            grades = task.grade([item] * len(wrong), wrong)
            assert {grade.reward for grade in grades} == {0.0}
            assert all(grade.failure is None and gold in grade.feedback for grade in grades)
            right = [gold, f" {gold}\n", f"**{gold}**", f"Answer: {gold}.", f"I think the answer is {gold}"]
            assert {grade.reward for grade in task.grade([item] * len(right), right)} == {1.0}


def test_a_parse_failure_is_told_from_a_wrong_answer() -> None:
    task = GridTask("flow", sizes=SMALL, seed=3)
    item = task.split("train")[0]
    unread, wrong = task.grade([item, item], ["I do not know.", "98 MW"])
    assert task.parsed(item, "I do not know.") is None
    assert task.parsed(item, "98 MW") == "98"
    assert unread.feedback.startswith('No answer was found in "I do not know."; it should be a number of MW')
    assert wrong.feedback.startswith('Wrong: you wrote "98 MW", read as "98"; the right answer is')


def test_feedback_names_a_stale_answer() -> None:
    task = GridTask("connectivity", {"case": "n-1"}, sizes=SMALL, seed=3)
    item = next(item for item in task.split("train") if item.metadata["changed"])
    said = task.grade([item], [item.metadata["stale"]])[0].feedback
    assert "Yours is right for another network" in said


def test_another_task_of_the_kind_grades_the_item_too() -> None:
    """Variants are graded by the task they were derived from."""
    plain = GridTask("path", sizes=SMALL, seed=1)
    other = GridTask("path", {"labels": "letters", "case": "n-1", "level": 2}, sizes=SMALL, seed=9)
    items = other.split("heldout")
    assert rewards(plain, items, [item.reference or "" for item in items]) == [1.0] * len(items)


def test_items_survive_json() -> None:
    task = GridTask("flow", {"level": 4}, sizes=SMALL, seed=3)
    item = task.split("train")[0]
    stored = Item(
        id=item.id, prompt=item.prompt, reference=item.reference, metadata=json.loads(json.dumps(item.metadata))
    )
    assert task.grade([stored], [item.reference or ""])[0].reward == 1.0


# ------------------------------------------------------------------------------------------------- splits and seeds


@pytest.mark.parametrize(("question", "level"), every_level())
def test_splits_share_no_question_and_neighbouring_seeds_little(question: str, level: int) -> None:
    bases = {}
    for seed in (42, 43):
        task = GridTask(question, {"level": level}, sizes=SMALL, seed=seed)
        splits = [{item.metadata["base"] for item in task.split(name)} for name in ("train", "trial", "heldout")]
        assert [len(s) for s in splits] == [30, 10, 20]
        assert not any(a & b for a, b in combinations(splits, 2))
        bases[seed] = splits[0]
    assert len(bases[42] & bases[43]) <= 3


def test_more_training_items_leave_heldout_as_it_was() -> None:
    few = GridTask("connectivity", sizes=SMALL, seed=5)
    many = GridTask("connectivity", sizes=SplitSizes(train=200, trial=10, heldout=20), seed=5)
    assert few.split("heldout") == many.split("heldout")
    assert few.split("train") == many.split("train")[:30]


def test_the_same_items_in_every_process() -> None:
    script = """
from twoclock.hashing import content_hash
from twoclock.tasks import SplitSizes
from twoclock.tasks.grid import GridTask
sizes = SplitSizes(train=20, trial=2, heldout=2)
items = [i for q in ("flow", "connectivity", "path") for level in (1, 4)
         for i in GridTask(q, {"level": level, "case": "n-1"}, sizes=sizes, seed=7).split("train")]
print(content_hash([[i.id, i.prompt, i.reference, dict(i.metadata)] for i in items]))
"""
    seen = set()
    for hash_seed in ("0", "4242"):
        done = subprocess.run(
            [sys.executable, "-c", script],
            capture_output=True,
            text=True,
            check=True,
            env={"PYTHONHASHSEED": hash_seed, "PATH": ""},
        )
        seen.add(done.stdout.strip())
    assert len(seen) == 1


def test_a_fresh_order_of_use_makes_the_same_items() -> None:
    """What was solved before, and in which batch, must not show."""
    first = GridTask("flow", {"level": 6, "case": "n-1"}, sizes=SMALL, seed=7).split("train")
    GridTask("flow", {"level": 4}, sizes=SMALL, seed=8).split("train")
    assert GridTask("flow", {"level": 6, "case": "n-1"}, sizes=SMALL, seed=7).split("train") == first


# ------------------------------------------------------------------------------------------------ config and mistakes


def test_the_source_in_a_config() -> None:
    spec = {
        "source": "grid",
        "family": "path",
        "config": {"level": 2, "case": "n-1", "labels": "letters", "change": "stated"},
        "size": {"train": 8, "trial": 2, "heldout": 4},
        "templates": [0, 3],
        "instruction": "Be brief.",
        "extract": "tag",
    }
    task = build_task("mine", spec, 3)
    assert task.name == "mine"
    assert "random answer is right in 6.2 % of cases" in task.description
    item = task.split("heldout")[0]
    assert item.prompt.endswith("\nBe brief.")
    assert "is out of service" in item.prompt
    assert item.metadata["template"] in (0, 3)
    assert [g.reward for g in task.grade([item, item], [item.reference or "", item.metadata["value"]])] == [1.0, 0.0]
    assert build_task("mine", spec, 3).split("train") == task.split("train")


def test_wordings_kept_for_probes_are_not_used_unasked() -> None:
    task = GridTask("flow", sizes=SplitSizes(train=100, trial=1, heldout=1))
    assert {item.metadata["template"] for item in task.split("train")} == {0, 1, 2, 3}
    probe = GridTask("flow", sizes=SMALL, templates=[4, 5])
    assert {item.metadata["template"] for item in probe.split("train")} == {4, 5}


def problems(spec: dict[str, Any]) -> str:
    with pytest.raises(ConfigError) as caught:
        build_task("mine", {"source": "grid", **spec}, 0)
    return "\n".join(caught.value.problems)


def test_all_mistakes_at_once() -> None:
    config = {"levle": 2, "level": 9, "case": "n-2", "labels": "letter", "change": "said"}
    found = problems({"family": "path", "config": config, "templates": [6], "extract": "lastline"})
    for part in (
        "source 'grid' has no parameter 'levle'; did you mean 'level'",
        "level must be a whole number from 1 (easiest) to 6; got 9",
        "unknown case 'n-2'; did you mean 'n-1'",
        "unknown labels 'letter'; did you mean 'letters'",
        "unknown change 'said'",
        "templates must be some of 0 to 5, the wordings that 'path' has; got [6]",
        "unknown extract 'lastline'",
    ):
        assert part in found


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({}, "'family' is missing: source 'grid' needs it"),
        ({"family": "flows"}, "unknown family of source 'grid' 'flows'; did you mean 'flow'"),
        ({"family": "grid_path"}, "did you mean 'path'"),
        ({"family": "flow", "config": {"level": True}}, "level must be a whole number"),
        ({"family": "flow", "config": {"level": "1"}}, "got '1'"),
        ({"family": "flow", "config": {"case": 1}}, "unknown case '1'"),
        ({"family": "flow", "config": {"case": ["n"]}}, "unknown case"),
        ({"family": "flow", "config": 3}, "'config' must be a table"),
        ({"family": "flow", "convention": "arrow"}, "unknown key 'convention'"),
        ({"family": "path", "extract": "last_number"}, "extract = 'last_number' does not suit"),
        ({"family": "flow", "templates": []}, "templates must be some of 0 to 5"),
    ],
)
def test_one_mistake(spec: dict[str, Any], message: str) -> None:
    assert message in problems(spec)


def test_too_few_questions_says_what_fits() -> None:
    task = GridTask("path", {"level": 5, "labels": "own"}, sizes=SplitSizes(train=500, trial=20, heldout=50))
    with pytest.raises(ConfigError, match=r"distinct items .* ask for 570.*sizes that fit"):
        task.split("train")
