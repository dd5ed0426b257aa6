"""reasoning-gym: disjoint splits, the same items in every process, scores that can be trusted, clear refusals."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
from itertools import combinations
from pathlib import Path

import pytest

pytest.importorskip("reasoning_gym")

from twoclock.errors import ConfigError
from twoclock.tasks import ReasoningGymTask, SplitSizes
from twoclock.tasks.rg_scoring import exact_score, refusal
from twoclock.tasks.rg_source import Source, plain_json

SMALL = SplitSizes(train=12, trial=4, heldout=6)

FAMILIES = [
    "gcd",
    "letter_counting",
    "chain_sum",
    "spell_backward",
    "count_bits",
    "lcm",
    "basic_arithmetic",
    "number_sequence",
    "products",
    "leg_counting",
    "prime_factorization",
    "game_of_life_halting",
]

ODD = [
    "",
    " \n",
    "\x00",
    "None",
    "nan",
    "inf",
    "-",
    "()",
    "[]",
    "{}",
    "1/0",
    "9" * 50_000,
    "é" * 5_000,
    "\ud800",
    "a × b",
]


def mutations(gold: str) -> list[str]:
    rng = random.Random(1)
    near = [
        gold + "x",
        "x" + gold,
        gold + " " + gold,
        gold + gold,
        gold + "1",
        "1" + gold,
        "9" + gold + "9",
        gold[:-1],
        gold[1:],
        gold[::-1],
        "The answer is " + gold,
        gold + "\nbecause",
        "yes",
        "None",
        "nan",
        "[]",
        "zq zq",
        "-" + gold,
        gold.replace(gold[0], "#"),
        gold + "?",
        "".join(rng.sample(gold, len(gold))),
        "1000003",
        "maybe",
    ]
    return [text for text in near if not same_answer(text, gold)][:20]


def same_answer(text: str, gold: str) -> bool:
    """Whether a mutation happens to be right: the same number, or the same factors in another order."""
    try:
        return float(text) == float(gold)
    except ValueError:
        return sorted(text.casefold().split()) == sorted(gold.casefold().split())


@pytest.mark.parametrize("family", FAMILIES)
def test_gold_passes_and_mutations_do_not(family: str) -> None:
    task = ReasoningGymTask(family, sizes=SMALL, seed=7)
    items = task.split("train")
    assert [g.reward for g in task.grade(items, [f" {i.reference}\n" for i in items])] == [1.0] * len(items)
    for item in items:
        wrong = mutations(item.reference or "")
        assert len(wrong) >= 17
        rewards = [grade.reward for grade in task.grade([item] * len(wrong), wrong)]
        assert rewards == [0.0] * len(wrong), [w for w, r in zip(wrong, rewards, strict=True) if r]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("scoring", ["strict", "graded"])
def test_odd_texts_never_raise_nor_pass(family: str, scoring: str) -> None:
    task = ReasoningGymTask(family, sizes=SMALL, seed=7, scoring=scoring)
    item = task.split("train")[0]
    grades = task.grade([item] * len(ODD), ODD)
    assert len(grades) == len(ODD)
    if scoring == "strict":
        assert [grade.reward for grade in grades] == [0.0] * len(ODD)
    assert grades[0].reward == grades[1].reward == 0.0


def test_a_grader_that_raises_is_a_failed_grade_and_its_siblings_go_on() -> None:
    task = ReasoningGymTask("prime_factorization", sizes=SMALL)
    item = task.split("train")[0]
    grades = task.grade([item] * 3, [item.reference or "", "two × three", item.reference or ""])
    assert [g.reward for g in grades] == [1.0, 0.0, 1.0]
    assert grades[0].failure is None
    assert (grades[1].failure or "").startswith("grader raised ValueError: ")


def test_lenient_graders_are_replaced_and_noted() -> None:
    for family in ("game_of_life_halting", "complex_arithmetic", "spell_backward", "puzzle24"):
        task = ReasoningGymTask(family, sizes=SplitSizes(train=2, trial=1, heldout=1))
        assert len(task.notes) == 1
        assert task.notes[0].startswith("warning: the grader of reasoning-gym family")
    assert ReasoningGymTask("gcd", sizes=SMALL).notes == ()
    assert ReasoningGymTask("countdown", sizes=SMALL).notes == ()


def test_the_stand_in_still_takes_a_number_written_another_way() -> None:
    entry = {"answer": "5.50", "question": "", "metadata": {}}
    assert [exact_score(text, entry) for text in ("5.5", " 5.50 ", "5.51", "nan", "5.5x")] == [1.0, 1.0, 0.0, 0.0, 0.0]
    assert exact_score("anything", {**entry, "answer": None}) == 0.0


def test_strict_against_graded() -> None:
    strict = ReasoningGymTask("chain_sum", sizes=SMALL)
    graded = ReasoningGymTask("chain_sum", sizes=SMALL, scoring="graded")
    item = strict.split("train")[0]
    text = f"{item.reference}{item.reference}"
    assert strict.grade([item], [text])[0].reward == 0.0
    assert 0.0 < graded.grade([item], [text])[0].reward < 1.0
    assert graded.grade([item], [item.reference or ""])[0].reward == 1.0


def prompts(task: ReasoningGymTask) -> dict[str, set[str]]:
    return {name: {item.prompt for item in task.split(name)} for name in ("train", "trial", "heldout")}


@pytest.mark.parametrize("family", ["gcd", "letter_counting", "acre", "survo", "list_functions", "pool_matrix"])
def test_splits_are_disjoint_also_for_neighbouring_seeds(family: str) -> None:
    sizes = SplitSizes(train=40, trial=10, heldout=20)
    one, two = (prompts(ReasoningGymTask(family, sizes=sizes, seed=seed)) for seed in (1000, 1001))
    for splits in (one, two):
        assert {name: len(found) for name, found in splits.items()} == {"train": 40, "trial": 10, "heldout": 20}
        assert not any(a & b for a, b in combinations(splits.values(), 2))
    # Sharing one shifted stream, as adding seeds makes neighbours do, would give all but one in common.
    assert len(one["train"] & two["train"]) <= 4
    assert len(one["train"] & two["heldout"]) <= 4


def test_a_tiny_space_is_told_with_sizes_that_fit() -> None:
    config = {"min_value": 1, "max_value": 6}
    task = ReasoningGymTask("gcd", config, sizes=SplitSizes(train=60, trial=10, heldout=20))
    with pytest.raises(ConfigError) as caught:
        task.split("train")
    text = str(caught.value)
    assert "gave only" in text
    assert "train = 60, trial = 10, heldout = 20 ask for 90" in text
    sizes = text.split("size = { ")[1].split(" }")[0]
    fitting = SplitSizes(**{k: int(v) for k, v in (part.split(" = ") for part in sizes.split(", "))})
    found = prompts(ReasoningGymTask("gcd", config, sizes=fitting))
    assert sum(len(split) for split in found.values()) == fitting.total > 20


def test_two_thousand_items_are_quick() -> None:
    task = ReasoningGymTask("gcd", sizes=SplitSizes(train=1700, trial=100, heldout=200))
    start = time.perf_counter()
    assert len(task.split("train")) == 1700
    assert time.perf_counter() - start < 5.0  # 0.25 s on an idle machine


SCRIPT = """
import json, sys
from twoclock.tasks import FamilyTask, ReasoningGymTask, SplitSizes, Stream
sizes = SplitSizes(train=9, trial=3, heldout=5)
made = []
for task in (ReasoningGymTask("letter_counting", sizes=sizes, seed=5), ReasoningGymTask("list_functions", sizes=sizes),
             FamilyTask("lookup", sizes=sizes, seed=5)):
    items = [i for split in ("train", "trial", "heldout") for i in task.split(split)]
    made.append([[i.id, i.prompt, i.reference, i.metadata] for i in items])
    made.append([i.id for i in Stream([(task.name, 5)], {task.name: task}).batch(4, 4, 1)])
print(json.dumps(made, sort_keys=True))
"""


def test_the_same_items_in_every_process() -> None:
    outputs = {
        subprocess.run(
            [sys.executable, "-c", SCRIPT],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(outputs) == 1
    assert len(json.loads(outputs.pop())) == 6


def test_the_global_generators_are_left_alone() -> None:
    import numpy as np

    random.seed(4)
    np.random.seed(4)
    before = random.getstate(), np.random.get_state()[1].tolist()
    ReasoningGymTask("pool_matrix", sizes=SMALL).split("train")
    ReasoningGymTask("list_functions", sizes=SMALL).split("train")
    assert (random.getstate(), np.random.get_state()[1].tolist()) == before


@pytest.mark.parametrize("family", ["word_ladder", "ransom_note"])
def test_hash_dependent_families_need_a_pinned_hash_seed(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for value in (None, "random", ""):
        monkeypatch.delenv("PYTHONHASHSEED", raising=False)
        if value is not None:
            monkeypatch.setenv("PYTHONHASHSEED", value)
        with pytest.raises(ConfigError, match="type PYTHONHASHSEED=0 in front"):
            ReasoningGymTask(family)
    monkeypatch.setenv("PYTHONHASHSEED", "7")
    assert ReasoningGymTask(family, sizes=SplitSizes(train=1, trial=1, heldout=1)).split("train")


def test_refused_and_unknown_families() -> None:
    with pytest.raises(ConfigError, match="'codeio' cannot be used: its items differ"):
        ReasoningGymTask("codeio")
    with pytest.raises(ConfigError, match="'composite' cannot be used"):
        ReasoningGymTask("composite")
    with pytest.raises(
        ConfigError, match="unknown reasoning-gym family 'letter_count'; did you mean 'letter_counting'"
    ):
        ReasoningGymTask("letter_count")


def test_bad_configs() -> None:
    with pytest.raises(ConfigError) as caught:
        ReasoningGymTask("gcd", {"max_valu": 3, "seed": 1, "min_numbers": 2}, extract="lines")
    text = str(caught.value)
    assert "no option 'max_valu'; did you mean 'max_value'" in text
    assert "it has: min_numbers, max_numbers, min_value, max_value" in text
    assert "'seed' is not set in a reasoning-gym config" in text
    assert "extract 'lines'" in text
    with pytest.raises(ConfigError, match="refuses this config: min_numbers must be at least 2"):
        ReasoningGymTask("gcd", {"min_numbers": 1})
    with pytest.raises(ConfigError, match=r"refuses this config|cannot make an item"):
        ReasoningGymTask("gcd", {"max_value": "many"})


def test_extraction_and_instruction() -> None:
    task = ReasoningGymTask("gcd", sizes=SMALL, extract="tag", instruction="Answer in tags.")
    item = task.split("train")[0]
    assert item.prompt.endswith("\nAnswer in tags.")
    assert task.grade([item], [item.reference or ""])[0].reward == 1.0
    bare = (item.reference or "").removeprefix("<answer>").removesuffix("</answer>")
    grades = task.grade([item] * 3, [f"<answer>1</answer> no, <answer> {bare} </answer>", bare, f"<answer>{bare}"])
    assert [g.reward for g in grades] == [1.0, 0.0, 0.0]
    assert "no answer was found" in grades[1].feedback
    number = ReasoningGymTask("gcd", sizes=SMALL, extract="last_number")
    item = number.split("train")[0]
    assert number.grade([item], [f"Among 2 numbers it is **{item.reference}**."])[0].reward == 1.0


def test_extraction_that_loses_the_gold_answer_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"extract = 'last_number' does not suit .*'spell_backward'"):
        ReasoningGymTask("spell_backward", extract="last_number")


def test_items_of_another_task_are_refused() -> None:
    one, two = (ReasoningGymTask("gcd", sizes=SMALL, seed=seed) for seed in (1, 2))
    with pytest.raises(ValueError, match="is not one of task 'gcd'"):
        one.grade(two.split("train")[:1], ["1"])


def test_evaluating_graders_never_see_code_and_run_apart(tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    task = ReasoningGymTask("countdown", sizes=SplitSizes(train=2, trial=1, heldout=1), timeout_s=20.0)
    try:
        item = task.split("train")[0]
        bad = [f"__import__('os').system('touch {mark}')", f"open('{mark}','w')", "9**9**9**9", "2**99999", "(" * 3000]
        grades = task.grade([item] * 7, [*bad, "1 + 1 +", item.reference or ""])
        assert [g.reward for g in grades] == [0.0] * 6 + [1.0]
        assert all((g.failure or "").startswith("not graded: ") for g in grades[:5])
        assert not mark.exists()
        shuffled = f"({item.reference})"  # not the gold text, but as right: the child process must score it
        assert task.grade([item], [shuffled])[0].reward == 1.0
    finally:
        task.close()


def test_what_the_filter_lets_through() -> None:
    fine = ["4*x**9 - 2*x**2*y**3 + C", "sin(3*x)**2/3", "(2*x + 1)**(3/2)", "1*(7*4 - 4)", "sqrt(1 - 9*x**2)"]
    assert [refusal("simple_integration", text) for text in fine] == [None] * len(fine)
    assert refusal("n_queens", '[["_", "Q"], ["Q", "_"]]') is None
    assert refusal("n_queens", "exit()") is not None
    assert refusal("simple_integration", "x.__class__") is not None
    assert refusal("simple_integration", "9**(9*9**9)") is not None
    assert refusal("gcd", "exit()") is None


def test_families_without_reference_are_verifier_only() -> None:
    task = ReasoningGymTask("graph_color", sizes=SplitSizes(train=2, trial=1, heldout=1))
    item = task.split("train")[0]
    assert item.reference is None
    assert task.grade([item], ["{}"])[0].reward == 0.0


def test_metadata_is_plain_json() -> None:
    for family in ("gcd", "arc_1d", "graph_color"):
        item = ReasoningGymTask(family, sizes=SplitSizes(train=1, trial=1, heldout=1)).split("train")[0]
        assert json.loads(json.dumps(item.metadata, allow_nan=False)) == item.metadata
    assert plain_json({1: (2, {3}), "f": float("nan"), "o": object}) == {
        "1": [2, [3]],
        "f": "nan",
        "o": "<class 'object'>",
    }


def test_an_entry_follows_from_its_seed_alone() -> None:
    for family in ("gcd", "acre", "gsm_symbolic", "list_functions", "survo"):
        one, two = Source(family, {}), Source(family, {})
        two.entry(99)
        assert one.entry(5) == two.entry(5)
        assert one.entry(5) != one.entry(6)
