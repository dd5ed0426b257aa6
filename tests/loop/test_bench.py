"""The metered handle: whose random numbers a rollout has, what is counted and refused, what is kept for later."""

from __future__ import annotations

from typing import Any

import pytest
from loop_world import solver
from recalling import RECALL, REMEMBERED

from tiny_world import SAMPLING, tiny_bench, tiny_task
from twoclock.bench import MESSAGE_TOKENS, Bench
from twoclock.errors import BudgetError, ConfigError
from twoclock.models.scripted import ScriptedPolicy
from twoclock.seeding import child_seed
from twoclock.types import Budget, Conditioning, Cost, Item, Sampling

TASK = tiny_task()
ITEMS = TASK.split("train")[:3]
PROMPTS = (Conditioning(), Conditioning(system="One."), Conditioning(system="Two."))


def bench(policy: Any = None, *, others: Conditioning | None = None, **options: Any) -> Bench:
    told = {"sampling": SAMPLING, **options}
    return Bench(policy or solver(lambda _: 0.5), TASK, others=others or Conditioning(), **told)


def seeds(handle: Bench, seed: int = 7, **how: Any) -> list[list[tuple[int, ...]]]:
    """By item, by prompt: the seeds of two samples."""
    groups = handle.roll_out(ITEMS, PROMPTS, 2, seed, **how)
    return [[tuple(r.seed for r in g.rollouts[2 * p : 2 * p + 2]) for p in range(len(PROMPTS))] for g in groups]


# --------------------------------------------------------------------------------------------------------------- seeds


def test_paired_rollouts_share_their_random_numbers_across_prompts_and_unpaired_ones_do_not() -> None:
    paired, apart = seeds(bench()), seeds(bench(), paired=False)
    for row in paired:
        assert row[0] == row[1] == row[2]
        assert row[0][0] != row[0][1]
    flat = [seed for row in apart for place in row for seed in place]
    assert len(set(flat)) == len(flat) == 18
    assert not set(flat) & {seed for row in paired for place in row for seed in place}


@pytest.mark.parametrize("paired", [True, False])
def test_seeds_follow_from_the_call_alone(paired: bool) -> None:
    """Not from what was sampled before, nor from the other prompts and items; they are the same tomorrow."""
    used = bench()
    used.roll_out(ITEMS[:1], PROMPTS[:1], 1, 3)
    first = seeds(used, paired=paired)
    assert first == seeds(bench(), paired=paired)
    assert first != seeds(bench(), 8, paired=paired)
    (alone,) = bench().roll_out(ITEMS[1:2], PROMPTS[2:], 1, 7, paired=paired)
    assert alone.rollouts[0].seed == first[1][2][0]
    own = [] if paired else [PROMPTS[2].id]
    assert alone.rollouts[0].seed == child_seed("bench-rollout", 7, ITEMS[1].id, 0, *own)


def test_unpaired_seeds_are_those_of_the_joint_prompt() -> None:
    """What else is deployed is part of it: under another weight change the same prompt draws anew."""
    with_exemplar = bench(others=Conditioning(exemplars=(("a?", "b"),)))
    assert seeds(with_exemplar, paired=False) != seeds(bench(), paired=False)
    assert seeds(with_exemplar) == seeds(bench())


def test_what_memory_says_of_an_item_is_no_part_of_its_seed() -> None:
    (one,) = bench(others=REMEMBERED).roll_out(ITEMS[:1], PROMPTS[:1], 1, 7, paired=False)
    assert one.rollouts[0].seed == child_seed("bench-rollout", 7, ITEMS[0].id, 0, REMEMBERED.id)


# -------------------------------------------------------------------------------------------------------------- writing


def test_what_the_policy_writes_is_counted() -> None:
    policy = ScriptedPolicy(lambda prompt, told, seed: f"{told.system}|{prompt}|{seed % 10}")
    handle = bench(policy, others=PROMPTS[1], sampling=Sampling(max_new_tokens=2, stop=("|",)))
    done = handle.write("Why?", max_new_tokens=40, seed=5)
    # Neither the length nor the stop strings of the task are those of a free text.
    assert done.text == f"One.|Why?|{child_seed('bench-write', 5) % 10}"
    assert handle.spent == Cost(rollouts=1, prompt_tokens=len("One.Why?"), completion_tokens=len(done.tokens))
    assert policy.asked == [("Why?", PROMPTS[1], child_seed("bench-write", 5))]
    assert handle.write("Why?", max_new_tokens=40, seed=5) == done
    assert handle.write("Why?", max_new_tokens=4, seed=5).finish == "length"
    assert handle.spent.rollouts == 3


def test_a_free_prompt_is_asked_of_memory_too() -> None:
    policy = ScriptedPolicy(lambda prompt, told, seed: " ".join(told.notes))
    done = bench(policy, others=REMEMBERED).write("Why?", max_new_tokens=80, seed=5)
    assert done.text.startswith("note on ")
    assert all(told.recall == () for _, told, _ in policy.asked)


@pytest.mark.parametrize(("rollouts", "written"), [(0, 0), (1, 1), (2, 2), (None, 3)])
def test_writing_takes_from_the_rollouts(rollouts: int | None, written: int) -> None:
    policy = solver(lambda _: 1.0)
    handle = bench(policy, budget=Budget(rollouts=rollouts))
    for n in range(written):
        handle.write("Why?", max_new_tokens=4, seed=n)
    if rollouts is not None:
        with pytest.raises(BudgetError, match=f"one rollout was asked for and none is left of {rollouts}"):
            handle.write("Why?", max_new_tokens=4, seed=9)
        assert handle.rollouts_left == 0
        with pytest.raises(BudgetError, match="1 rollouts were asked for and 0 are left"):
            handle.roll_out(ITEMS[:1], PROMPTS[:1], 1, 0)
    assert policy.calls == handle.spent.rollouts == written


def test_writing_takes_from_the_tokens_and_never_passes_them() -> None:
    """Behind an endpoint a prompt counts by its bytes and its messages; a token too few, and nothing is sampled."""
    most = 30 + len("Why?") + 2 * MESSAGE_TOKENS
    policy = solver(lambda _: 1.0)
    with pytest.raises(BudgetError, match=f"up to {most} tokens were asked for and {most - 1} are left of {most - 1}"):
        bench(policy, budget=Budget(tokens=most - 1)).write("Why?", max_new_tokens=30, seed=0)
    assert policy.calls == 0
    handle = bench(policy, budget=Budget(tokens=most))
    handle.write("Why?", max_new_tokens=30, seed=0)
    assert handle.spent.tokens == len("Why?") + 1
    with pytest.raises(BudgetError, match=f"and {most - 5} are left of {most}"):
        handle.write("Why?", max_new_tokens=30, seed=1)


def test_a_local_policys_prompt_is_counted_exactly(tiny: Any) -> None:
    told = Conditioning(system="Be brief.")
    most = 6 + tiny.prompt_tokens("Why?", told)
    with pytest.raises(BudgetError):
        bench(tiny, others=told, budget=Budget(tokens=most - 1)).write("Why?", max_new_tokens=6, seed=0)
    handle = bench(tiny, others=told, budget=Budget(tokens=most))
    done = handle.write("Why?", max_new_tokens=6, seed=0)
    assert handle.spent == Cost(rollouts=1, prompt_tokens=most - 6, completion_tokens=len(done.tokens))


def test_what_memory_says_is_part_of_the_bound() -> None:
    """Of the tokens of a rollout: the notes and exemplars that the item brings with it."""
    (item,) = ITEMS[:1]
    told = REMEMBERED.for_item(item)
    texts = ["", *told.exemplars[0], told.told(item.prompt)]
    most = SAMPLING.max_new_tokens + sum(len(t.encode()) + MESSAGE_TOKENS for t in texts)
    with pytest.raises(BudgetError, match=f"up to {most} tokens"):
        bench(others=REMEMBERED, budget=Budget(tokens=most - 1)).roll_out([item], PROMPTS[:1], 1, 0)
    bench(others=REMEMBERED, budget=Budget(tokens=most)).roll_out([item], PROMPTS[:1], 1, 0)


# ----------------------------------------------------------------------------------------------------------- what comes


def ahead(count: int) -> tuple[Item, ...]:
    return ITEMS[1:][:count]


def test_what_comes_is_told_where_it_is_known() -> None:
    assert bench().upcoming(5) == ()
    handle = bench(upcoming=ahead)
    assert (handle.upcoming(1), handle.upcoming(5)) == (ITEMS[1:2], ITEMS[1:])


@pytest.mark.parametrize(
    ("options", "keeps"),
    [
        ({}, False),
        ({"keeps_upcoming": True}, False),  # nobody knows what comes
        ({"upcoming": ahead}, False),
        ({"upcoming": ahead, "keeps_upcoming": True}, True),
    ],
)
@pytest.mark.parametrize("paired", [True, False])
def test_rollouts_are_kept_where_they_may_be_learned_from(options: Any, keeps: bool, paired: bool) -> None:
    """Paired ones never are: their group's mean would depend on the rollout that is held against it."""
    handle = bench(others=PROMPTS[1], **options)
    assert handle.keeps_upcoming is keeps
    groups = [*handle.roll_out(ITEMS[1:], PROMPTS[:1], 2, 1, paired=paired)]
    groups += handle.roll_out(ITEMS[:1], PROMPTS[:1], 1, 2, paired=paired)
    kept = keeps and not paired
    assert handle.kept == (groups if kept else [])
    assert handle.conditionings == ({PROMPTS[1].id: PROMPTS[1]} if kept else {})


def test_what_is_kept_names_what_each_item_was_told() -> None:
    handle = bench(others=REMEMBERED, upcoming=ahead, keeps_upcoming=True)
    groups = handle.roll_out(ITEMS[1:], PROMPTS[:1], 2, 1, paired=False)
    told = [RECALL.ask(item) for item in ITEMS[1:]]
    assert handle.conditionings == {c.id: c for c in told}
    assert [{r.conditioning_id for r in g.rollouts} for g in groups] == [{c.id} for c in told]


def test_a_task_that_can_only_half_be_played_is_refused(tiny: Any) -> None:
    """Answering its items in one turn instead would go unnoticed."""
    task: Any = tiny_task()
    task.play = lambda policy, items, requests, sampling: []
    with pytest.raises(ConfigError, match="answer_of"):
        tiny_bench(tiny, task).roll_out(task.split("train")[:1], [Conditioning()], 1, 1)
