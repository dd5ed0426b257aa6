"""Exemplar sets: from what, how diverse, how long."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace

from prompts_bench import FakeBench, FakeTask, evidence_of

from twoclock.fast.prompts.exemplars import draw_turns, gold_turns, mutate, new_candidates, proven_turns
from twoclock.fast.prompts.state import EMPTY, Candidate
from twoclock.types import Grade, Item

TURNS = [(f"question {n}", str(n % 3)) for n in range(12)]


def test_answers_are_balanced_and_never_all_the_same() -> None:
    skewed = [(f"q{n}", "yes") for n in range(40)] + [("q40", "no"), ("q41", "maybe")]
    for seed in range(30):
        drawn = draw_turns(skewed, 4, 1000, random.Random(seed))
        assert drawn is not None
        assert len({a for _, a in drawn}) == 3
    constant = [(f"q{n}", answer) for n, answer in enumerate(["Yes", "yes ", "YES"] * 4)]
    assert draw_turns(constant, 4, 1000, random.Random(0)) is None


def test_order_is_not_by_answer() -> None:
    orders = {draw_turns(TURNS, 3, 1000, random.Random(seed))[0][1] for seed in range(30)}  # type: ignore[index]
    assert orders == {"0", "1", "2"}


def test_a_set_fits_the_length() -> None:
    turns = [*TURNS, ("long " * 50, "1"), ("long " * 60, "2")]
    for seed in range(20):
        drawn = draw_turns(turns, 4, 100, random.Random(seed))
        assert drawn is not None
        assert sum(len(q) + len(a) for q, a in drawn) <= 100
    assert draw_turns([("long " * 50, "1")], 2, 100, random.Random(0)) is None


def test_fewer_turns_than_asked_for_is_a_smaller_set() -> None:
    drawn = draw_turns(TURNS[:3], 8, 1000, random.Random(0))
    assert drawn is not None
    assert len(drawn) == 3


def test_proven_turns_are_right_ended_and_shortest() -> None:
    task = FakeTask()
    bench = FakeBench(lambda item, c, seed: str(item.reference) if seed % 2 else "?", task=task)
    evidence = evidence_of(bench, items=10, samples=4)
    turns = proven_turns(evidence)
    right = {g.item.prompt: g.item.reference for g in evidence.groups if any(r.reward == 1 for r in g.rollouts)}
    assert dict(turns) == right
    cut = tuple(
        replace(g, rollouts=tuple(replace(r, completion=replace(r.completion, finish="length")) for r in g.rollouts))
        for g in evidence.groups
    )
    assert proven_turns(replace(evidence, groups=cut)) == []


def test_gold_answers_that_their_own_verifier_refuses_are_left_out() -> None:
    class Strict(FakeTask):
        def grade(self, items: Sequence[Item], texts: Sequence[str]) -> list[Grade]:
            return [Grade(reward=1.0 if text.startswith("#") else 0.0) for text in texts]

    items = FakeTask().split("train")[:5]
    assert len(gold_turns(FakeTask(), items)) == 5
    assert gold_turns(Strict(), items) == []
    assert gold_turns(FakeTask(), [replace(i, reference=None) for i in items]) == []


def test_mutations_change_one_exemplar() -> None:
    parent = Candidate(exemplars=tuple(TURNS[:4]), origin="exemplars")
    sizes = set()
    for seed in range(40):
        child = mutate(parent, TURNS, 1000, random.Random(seed))
        assert child is not None
        sizes.add(len(child.exemplars))
        assert child.parent == parent.id != child.id
        assert len(set(parent.exemplars) - set(child.exemplars)) <= 1
        assert len(set(child.exemplars) - set(parent.exemplars)) <= 1
    assert sizes == {3, 4, 5}
    assert mutate(EMPTY, TURNS, 1000, random.Random(0)) is None
    assert mutate(Candidate(exemplars=(TURNS[0],)), [TURNS[0]], 1000, random.Random(0)) is None


def test_new_candidates_are_distinct_unknown_and_of_all_sizes() -> None:
    def make(known: set[str], deployed: Candidate = EMPTY) -> list[Candidate]:
        return new_candidates(
            deployed=deployed,
            proven=TURNS[:6],
            gold=TURNS[6:],
            sizes=(2, 4),
            instructions=("Be brief.",),
            count=10,
            max_chars=500,
            known=known,
            rng=random.Random(1),
        )

    first = make(set())
    ids = [c.id for c in first]
    assert len(ids) == len(set(ids)) == 10
    assert first[0].system == "Be brief."
    assert {len(c.exemplars) for c in first} == {0, 2, 4}
    again = make(set(ids))
    assert not set(ids) & {c.id for c in again}
    mutated = make(set(), deployed=Candidate(exemplars=tuple(TURNS[:3])))
    assert {"mutation", "exemplars", "instruction"} == {c.origin for c in mutated}
