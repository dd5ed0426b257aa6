"""How a budget is cut into stages, and successive halving."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from prompts_bench import FakeBench, FakeTask, planted

from twoclock.fast.prompts.search import halve, plan_search
from twoclock.fast.prompts.state import EMPTY, Candidate
from twoclock.types import Conditioning, Item


def test_the_stages_by_hand() -> None:
    plan = plan_search(candidates=12, items=32, samples=1, first=8, halving=2, finalists=4, budget=None)
    assert plan is not None
    assert plan.stages == ((12, 8), (6, 8), (4, 16))
    assert plan.rollouts == 96 + 48 + 64


def test_items_go_before_candidates_and_candidates_before_the_first_stage() -> None:
    def stages(budget: int) -> tuple[tuple[int, int], ...]:
        plan = plan_search(candidates=12, items=32, samples=1, first=8, halving=2, finalists=4, budget=budget)
        assert plan is not None
        return plan.stages

    assert stages(150) == ((12, 8), (6, 8), (4, 1))
    assert stages(96) == ((12, 8),)
    assert stages(60)[0] == (7, 8)
    assert stages(16)[0] == (2, 8)


def test_repeated_samples_are_the_last_to_go() -> None:
    plan = plan_search(candidates=4, items=8, samples=3, first=8, halving=2, finalists=2, budget=30)
    assert plan is not None
    assert plan.samples == 3
    plan = plan_search(candidates=4, items=8, samples=3, first=8, halving=2, finalists=2, budget=20)
    assert plan is not None
    assert plan.samples == 1


@given(
    candidates=st.integers(0, 20),
    items=st.integers(0, 40),
    samples=st.integers(1, 4),
    first=st.integers(4, 16),
    halving=st.integers(2, 4),
    finalists=st.integers(2, 6),
    budget=st.integers(0, 500),
)
def test_a_plan_stays_in_its_budget_and_exists_when_it_can(
    candidates: int, items: int, samples: int, first: int, halving: int, finalists: int, budget: int
) -> None:
    plan = plan_search(
        candidates=candidates,
        items=items,
        samples=samples,
        first=first,
        halving=halving,
        finalists=finalists,
        budget=budget,
    )
    assert (plan is not None) == (candidates >= 2 and items >= 4 and budget >= 16)
    if plan is not None:
        assert plan.rollouts <= budget
        assert sum(n for _, n in plan.stages) <= items
        assert 2 <= plan.candidates <= candidates
        counts = [c for c, _ in plan.stages]
        assert counts == sorted(counts, reverse=True)


def test_halving_keeps_the_best_and_the_deployed_one_on_common_items_and_numbers() -> None:
    names = [f"p{n}" for n in range(8)]

    def graded(item: Item, conditioning: Conditioning, seed: int) -> str:
        quality = int((conditioning.system or "p0")[1:]) / 10
        return str(item.reference) if (seed % 1000) / 1000 < quality else "?"

    bench = FakeBench(graded, task=FakeTask())
    items = bench.items("train", 32, 1)
    plan = plan_search(candidates=9, items=32, samples=2, first=8, halving=2, finalists=3, budget=None)
    assert plan is not None
    candidates = [EMPTY, *(Candidate(system=name) for name in names)]
    scores = halve(bench, candidates, items, plan, 7)
    assert scores.finalists[0] == EMPTY
    assert scores.finalists[1].system == "p7"
    assert len(scores.finalists) == 3
    assert {len(row) for row in scores.rows} == {32}
    assert bench.spent.rollouts == plan.rollouts
    assert sorted(c.id for c in (*scores.finalists, *scores.eliminated)) == sorted(c.id for c in candidates)
    asked = [i for call in bench.calls for i in call[0]]
    assert len(asked) == len(set(asked)) == 32
    again = halve(FakeBench(graded, task=FakeTask()), candidates, items, plan, 7)
    assert again == scores


def test_rows_are_the_rewards_of_their_own_candidate() -> None:
    bench = FakeBench(planted, task=FakeTask())
    items = bench.items("train", 8, 1)
    plan = plan_search(candidates=2, items=8, samples=3, first=8, halving=2, finalists=2, budget=None)
    assert plan is not None
    shown = Candidate(exemplars=(("a", "1"), ("b", "2")))
    scores = halve(bench, [EMPTY, shown], items, plan, 7)
    assert set(scores.rows[0]) == {0.0}
    assert scores.mean(1) > 0.5
