"""The look-ahead window: what the next rounds read, in their order, and none of it inside a prompt."""

from __future__ import annotations

from dataclasses import replace

import pytest
from prompts_bench import FakeBench, FakeTask, coin_flip, evidence_of, planted

from twoclock.bench import Bench
from twoclock.errors import ConfigError
from twoclock.fast.prompts import Candidate, Pool, PromptsChannel, PromptsConfig, PromptsState
from twoclock.fast.prompts.edits import shown_answers
from twoclock.fast.prompts.state import EMPTY
from twoclock.fast.prompts.window import showable
from twoclock.models.scripted import ScriptedPolicy
from twoclock.types import Budget, Conditioning, Declined, Item, Proposal, Sampling

TASK = "digits"
MANY = FakeTask(train=200, answers=9000)


def ahead(**config: object) -> PromptsChannel:
    return PromptsChannel(PromptsConfig(window="ahead", **config))  # type: ignore[arg-type]


def search(
    channel: PromptsChannel, bench: FakeBench, state: PromptsState | None = None, seed: int = 1, items: int = 8
) -> Proposal[PromptsState] | Declined:
    evidence = evidence_of(bench, items=items, seed=seed)
    return channel.propose(bench, state or PromptsState(), evidence, Budget(), seed)


def scored(bench: FakeBench) -> list[str]:
    return [item for call in bench.calls for item in call[0]]


def test_the_window_is_what_comes_next_in_its_order() -> None:
    for seed in range(5):
        coming = MANY.split("train")[seed * 20 : seed * 20 + 90]
        bench = FakeBench(planted, task=MANY, ahead=coming)
        offer = search(ahead(), bench, seed=seed)
        assert scored(bench) == [i.id for i in coming[:32]]
        assert isinstance(offer, Proposal)
        assert offer.metrics["search_upcoming"] == offer.metrics["search_items"] == 32


def test_random_items_fill_up_the_end_of_a_phase() -> None:
    coming = MANY.split("train")[150:160]
    bench = FakeBench(planted, task=MANY, ahead=coming)
    offer = search(ahead(), bench)
    asked = scored(bench)
    assert asked[:10] == [i.id for i in coming]
    assert len(asked) == len(set(asked)) == 32
    assert isinstance(offer, Proposal)
    assert offer.metrics["search_upcoming"] == 10
    other = FakeBench(planted, task=MANY, ahead=coming)
    search(ahead(), other, seed=2)
    assert scored(other)[:10] == asked[:10]
    assert scored(other)[10:] != asked[10:]
    last = FakeBench(planted, task=MANY)
    search(ahead(), last)
    assert len(scored(last)) == 32


def test_the_random_window_does_not_look_ahead() -> None:
    coming = MANY.split("train")[:90]
    bench, other = FakeBench(planted, task=MANY, ahead=coming, keeps=True), FakeBench(planted, task=MANY)
    for b in (bench, other):
        search(PromptsChannel(), b)
    assert bench.calls == other.calls
    assert bench.paired == [True] * len(bench.calls)


def test_no_item_of_the_window_stands_in_a_new_prompt_nor_is_one_scored_that_stands_in_an_old_one() -> None:
    """Over a phase, with exemplars and edits: neither text nor answer of what comes up next."""
    channel = ahead(proposers=("exemplars", "edits"), num_new=12)
    by_id = {i.id: i for i in MANY.split("train")}
    order = list(MANY.split("train"))
    state, shown, survivors = PromptsState(), 0, 0
    for number in range(14):
        coming = order[(number + 1) * 12 :]
        bench = FakeBench(coin_flip, task=MANY, ahead=coming)
        evidence = evidence_of(bench, seed=number)
        now = replace(evidence, groups=tuple(g for g in evidence.groups if g.item not in coming) or evidence.groups)
        known = {c.conditioning for c in state.pool(TASK).candidates}
        offer = channel.propose(bench, state, now, Budget(), number)
        window = coming[:32]
        for ids, conditionings, _, _ in bench.calls:
            for conditioning in conditionings:
                text = shown_answers(conditioning.system)
                questions = {q for q, _ in conditioning.exemplars}
                shown += bool(text) + bool(questions)
                survivors += conditioning in known and conditioning != Conditioning()
                there = [by_id[i] for i in ids] if conditioning in known else [*window, *(by_id[i] for i in ids)]
                for item in there:
                    assert item.prompt not in questions
                    assert item.prompt not in (conditioning.system or "")
                    assert str(item.reference) not in text
        if isinstance(offer, Proposal):
            state = offer.state
    assert shown > 100
    assert survivors > 20


def test_an_upcoming_item_that_a_survivor_shows_is_passed_over() -> None:
    coming = MANY.split("train")[40:120]
    turns = tuple((i.prompt, str(i.reference)) for i in (coming[0], coming[3]))
    told = f"Be brief.\nExample answers: {coming[5].reference}, 9999999."
    survivors = (Candidate(exemplars=turns, origin="exemplars"), Candidate(system=told, origin="edit"))
    state = PromptsState().with_pool(TASK, Pool(candidates=(*survivors, EMPTY), deployed=survivors[0].id))
    bench = FakeBench(coin_flip, task=MANY, ahead=coming)
    search(ahead(), bench, state)
    left = [i.id for i in coming if i not in (coming[0], coming[3], coming[5])]
    assert scored(bench) == left[:32]


def test_a_small_training_set_is_shared_between_scores_and_exemplars() -> None:
    """All of it comes up, and in a tiny set even the items of this round do."""
    task = FakeTask(train=24)
    coming = task.split("train")
    bench = FakeBench(planted, task=task, ahead=coming)
    offer = search(ahead(), bench)
    assert isinstance(offer, Proposal)
    asked = scored(bench)
    assert asked == [i.id for i in coming if i.id in asked][: len(asked)]
    assert len(asked) >= 12
    by_id = {i.id: i.prompt for i in coming}
    shown = {q for call in bench.calls for c in call[1] for q, _ in c.exemplars}
    assert shown
    assert not {by_id[i] for i in asked} & shown


def test_gold_answers_come_from_what_is_read_last() -> None:
    """Where every item comes up, the exemplars are those farthest ahead."""
    task = FakeTask(train=200, answers=9000)
    coming = task.split("train")
    bench = FakeBench(lambda item, c, seed: "?", task=task, ahead=coming)
    search(ahead(gold_items=20), bench)
    shown = {q for call in bench.calls for c in call[1] for q, _ in c.exemplars}
    assert shown
    assert shown <= {i.prompt for i in coming[-20:]}


def test_rollouts_on_upcoming_items_are_drawn_each_by_its_own_numbers_where_they_are_kept() -> None:
    coming = MANY.split("train")[150:162]
    ids = {i.id for i in coming}
    for keeps in (True, False):
        bench = FakeBench(planted, task=MANY, ahead=coming, keeps=keeps)
        search(ahead(), bench)
        for (asked, _, _, _), paired in zip(bench.calls, bench.paired, strict=True):
            assert paired == (not (keeps and set(asked) & ids))
            assert not keeps or set(asked) <= ids or not set(asked) & ids  # never both in one call
        assert False in bench.paired or not keeps
        assert scored(bench)[:12] == [i.id for i in coming]


def test_candidates_of_a_stage_answer_the_same_items_paired_or_not() -> None:
    coming = MANY.split("train")[:100]
    bench = FakeBench(coin_flip, task=MANY, ahead=coming, keeps=True)
    offer = search(ahead(), bench)
    assert bench.paired == [False] * 3
    assert [len(call[0]) for call in bench.calls] == [8, 8, 16]
    assert [len(call[1]) for call in bench.calls] == sorted((len(call[1]) for call in bench.calls), reverse=True)
    assert isinstance(offer, Proposal)
    assert {s.items for s in offer.state.pool(TASK).scores} == {32}


def test_a_real_bench_keeps_what_it_should() -> None:
    """The groups that are kept are those of the upcoming items, with the prompts that they were sampled under."""
    coming = MANY.split("train")[150:162]

    def script(prompt: str, conditioning: Conditioning, seed: int) -> str:
        return "?" if seed % 2 else str(next(i.reference for i in MANY.split("train") if i.prompt == prompt))

    bench = Bench(
        ScriptedPolicy(script),
        MANY,
        others=Conditioning(),
        sampling=Sampling(),
        upcoming=lambda count: coming[:count],
        keeps_upcoming=True,
    )
    evidence = evidence_of(FakeBench(planted, task=MANY))
    offer = ahead().propose(bench, PromptsState(), evidence, Budget(rollouts=300), 1)
    assert isinstance(offer, Proposal)
    assert list(dict.fromkeys(g.item.id for g in bench.kept)) == [i.id for i in coming]
    for group in bench.kept:
        assert {r.conditioning_id for r in group.rollouts} <= set(bench.conditionings)
        assert len({r.seed for r in group.rollouts}) == len(group.rollouts)
    deployed = offer.state.pool(TASK).deployed_candidate.conditioning
    assert deployed.id in bench.conditionings


def test_answers_that_would_give_an_item_away_are_not_shown() -> None:
    items = [Item(id=str(n), prompt=f"q{n}", reference=str(n)) for n in range(10)]
    assert showable(["3", "11", "12", "11"], items) == ("11", "12")
    yes = [Item(id=str(n), prompt=f"q{n}", reference="yes" if n % 2 else "no") for n in range(10)]
    assert showable(["yes", "no"] * 5, yes) == ("yes", "no")  # what many items share gives none of them away
    assert showable([], items) == ()


def test_a_mistyped_window_is_told() -> None:
    with pytest.raises(ConfigError, match="unknown window 'ahed'; did you mean 'ahead'"):
        PromptsConfig(window="ahed")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="proposers names 'edits' more than once"):
        PromptsConfig(proposers=("edits", "exemplars", "edits"))
