"""What the memory channels promise beyond the laws of all channels: who is shown what, and what it is credited with."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import pytest

from twoclock.bench import Bench, grade_rollouts
from twoclock.errors import ConfigError
from twoclock.fast import build_fast
from twoclock.fast.memory.credit import contrasts, whole_effect
from twoclock.fast.memory.state import MemoryState
from twoclock.memory.bank import Bank
from twoclock.memory.records import Entry, Scope
from twoclock.models.scripted import ScriptedPolicy
from twoclock.seeding import child_seed
from twoclock.types import (
    Budget,
    Completion,
    Conditioning,
    Declined,
    Evidence,
    Grade,
    Group,
    Item,
    Proposal,
    Request,
    Rollout,
    Sampling,
)

SAMPLING = Sampling(max_new_tokens=16)


class Words:
    """A task whose answer is the item's last word backwards: no model guesses it, a case can tell it."""

    name = "words"
    description = "Say the word."

    def __init__(self, words: Sequence[str] = ("kestrel", "heron", "osprey", "linnet", "plover", "merlin")) -> None:
        self.items = tuple(Item(id=f"i{n}", prompt=f"What is the code of {w}?", reference=w[::-1]) for n, w in
                           enumerate(words))  # fmt: skip

    def split(self, name: str) -> tuple[Item, ...]:
        return self.items

    def grade(self, items: Sequence[Item], texts: Sequence[str]) -> list[Grade]:
        return [
            Grade(reward=float(i.reference == t), feedback="" if i.reference == t else f"the code is {i.reference}")
            for i, t in zip(items, texts, strict=True)
        ]


def bench(policy: Any, task: Any, **more: Any) -> Bench:
    return Bench(policy, task, others=Conditioning(), sampling=SAMPLING, **more)


def saw(
    task: Any,
    answers: Mapping[str, Sequence[str]],
    *,
    told: Mapping[str, Sequence[Conditioning]] | None = None,
    round: int = 1,
) -> Evidence:
    """Evidence in which each item (by id) got these answers, each under a conditioning of its own where told."""
    groups, seen = [], {Conditioning().id: Conditioning()}
    for item in task.items:
        texts = answers.get(item.id, ())
        under = list((told or {}).get(item.id, [Conditioning()] * len(texts)))
        grades = task.grade([item] * len(texts), texts)
        rollouts = tuple(
            Rollout(
                item_id=item.id,
                conditioning_id=c.id,
                seed=n,
                completion=Completion(tokens=(1,), logprobs=(-1.0,), text=t, finish="stop", prompt_tokens=3),
                grade=g,
            )
            for n, (t, c, g) in enumerate(zip(texts, under, grades, strict=True))
        )
        seen |= {c.id: c for c in under}
        if rollouts:
            groups.append(Group(item=item, rollouts=rollouts))
    return Evidence(round=round, phase=0, task=task.name, groups=tuple(groups), conditionings=seen, sampling=SAMPLING)


def mute(script: Callable[..., str] = lambda prompt, conditioning, seed: "nothing") -> ScriptedPolicy:
    return ScriptedPolicy(script)


def offer(channel: Any, state: Any, evidence: Evidence, policy: Any = None, task: Any = None) -> Any:
    return channel.propose(bench(policy or mute(), task or Words()), state, evidence, Budget(), 3)


def case(word: str, *, item: str = "", task: str = "words", **more: Any) -> Entry:
    question = f"What is the code of {word}?"
    body = {"question": question, "answer": word[::-1], "item": item, "success": True}
    return Entry(kind="case", key=question, text=word[::-1], scope=Scope(task=task), reward=1.0, body=body, **more)


# ------------------------------------------------------------------------------------------------------------- cases


def test_a_success_and_a_failure_of_an_item_become_cases_with_where_they_came_from() -> None:
    channel, task = build_fast("cases", {}), Words()
    evidence = saw(task, {"i0": ["lertsek", "x", "x", "y"], "i1": ["", "z"]}, round=7)
    after = offer(channel, MemoryState(), evidence)
    assert isinstance(after, Proposal)
    found = {(e.body["item"], e.text): e for e in after.state.bank.entries}
    assert set(found) == {("i0", "lertsek"), ("i0", "x"), ("i1", "z")}
    right, wrong = found["i0", "lertsek"], found["i0", "x"]
    assert (right.reward, wrong.reward) == (1.0, 0.0)
    assert (right.provenance, wrong.provenance) == (("round 7, item i0, seed 0",), ("round 7, item i0, seed 1",))
    assert wrong.body["feedback"] == "the code is lertsek"
    assert [w.lesson for w in after.writes] == [e.id for e in after.state.bank.entries]


@pytest.mark.parametrize(("keep", "texts"), [("successes", {"lertsek"}), ("failures", {"x"})])
def test_either_kind_alone_can_be_kept(keep: str, texts: set[str]) -> None:
    after = offer(build_fast("cases", {"keep": keep}), MemoryState(), saw(Words(), {"i0": ["lertsek", "x"]}))
    assert {e.text for e in after.state.bank.entries} == texts


def test_an_item_is_shown_the_nearest_cases_and_never_its_own() -> None:
    channel, task = build_fast("cases", {"k": 2, "show": "exemplars"}), Words()
    bank = Bank().add(*(case(w, item=i.id) for w, i in zip(("kestrel", "heron", "osprey"), task.items, strict=False)))
    told = channel.condition(MemoryState(bank), "words")
    for item in task.items[:3]:
        shown = told.for_item(item)
        assert len(shown.exemplars) == len(shown.recalled) == 2
        assert item.reference not in [answer for _, answer in shown.exemplars]
    again = Item(id="new", prompt="Tell me: what is the code of osprey, please?")
    assert told.for_item(again).exemplars[-1] == ("What is the code of osprey?", "yerpso"), "the nearest stands last"


def test_no_case_is_shown_on_another_task() -> None:
    channel = build_fast("cases", {})
    state = MemoryState(Bank().add(case("kestrel")))
    assert channel.condition(state, "another").is_identity
    assert not channel.condition(state, "words").is_identity


def test_k_0_is_no_memory_at_all() -> None:
    channel = build_fast("cases", {"k": 0})
    state = MemoryState(Bank().add(case("kestrel")))
    assert channel.condition(state, "words") == Conditioning()
    assert channel.alternatives(state, "words", 3, 1) == (Conditioning(),)


def test_exemplars_never_show_a_failure() -> None:
    channel = build_fast("cases", {"show": "exemplars"})
    wrong = replace(case("heron"), text="x", reward=0.0, body={**case("heron").body, "answer": "x", "success": False})
    told = channel.condition(MemoryState(Bank().add(case("kestrel"), wrong)), "words").for_item(
        Item(id="n", prompt="What is the code of heron?")
    )
    assert [answer for _, answer in told.exemplars] == ["lertsek"]


def test_memory_that_was_not_asked_is_not_left_out_silently() -> None:
    told = build_fast("cases", {}).condition(MemoryState(Bank().add(case("kestrel"))), "words")
    with pytest.raises(ValueError, match="for_item"):
        told.told("What is the code of kestrel?")


# ------------------------------------------------------------------------------------------- hold-outs and their credit


def test_alternatives_leave_out_one_entry_or_all_by_item() -> None:
    channel, task = build_fast("cases", {"k": 3, "hold_all": 0.25}), Words()
    state = MemoryState(Bank().add(*(case(f"bird{n}") for n in range(9))))
    deployed, *held = channel.alternatives(state, "words", 9, 5)
    counts = {0: 0, 1: 0, 3: 0}
    for item in task.items:
        full = deployed.for_item(item).recalled
        for other in held:
            shown = other.for_item(item).recalled
            assert set(shown) < set(full)
            counts[len(full) - len(shown)] = counts.get(len(full) - len(shown), 0) + 1
            assert other.for_item(item) == other.for_item(item)
    assert counts[0] == 0
    assert counts[3] / len(task.items) / 8 == pytest.approx(0.25, abs=0.18)
    assert channel.alternatives(state, "words", 9, 5)[1:] == tuple(held)
    assert channel.alternatives(state, "words", 9, 6)[1:] != tuple(held)


def under(*entries: str) -> Conditioning:
    return Conditioning(notes=tuple(entries), recalled=entries)


def test_only_sets_that_differ_by_one_entry_say_something_of_it() -> None:
    task = Words()
    both, left, none = under("a", "b"), under("a"), under()
    told = {"i0": [both, both, left, left], "i1": [both, none], "i2": [left, none]}
    answers = {"i0": ["lertsek", "lertsek", "lertsek", "x"], "i1": ["noreh", "x"], "i2": ["x", "x"]}
    evidence = saw(task, answers, told=told)
    assert sorted(contrasts(evidence)) == [("a", 0.0), ("b", 0.5)]
    assert whole_effect(evidence) == (pytest.approx(0.5), 2)  # i1: 1 − 0; i2: 0 − 0; i0 has no rollout without


def test_without_hold_outs_nothing_is_claimed() -> None:
    evidence = saw(Words(), {"i0": ["lertsek", "x"]}, told={"i0": [under("a", "b")] * 2})
    assert list(contrasts(evidence)) == []
    assert math.isnan(whole_effect(evidence)[0])


@pytest.mark.parametrize("kind", ["harmful", "useless"])
def test_an_entry_that_harms_is_retired_and_one_without_effect_is_not(kind: str) -> None:
    channel, task = build_fast("cases", {"k": 2, "hold_all": 0.0}), Words()
    good, odd = case("kestrel"), case("egret")
    state = MemoryState(Bank().add(good, odd))
    with_both, without = under(good.id, odd.id), under(good.id)
    retired = None
    for number in range(1, 25):
        worse = "x" if kind == "harmful" else "lertsek"
        told = {"i0": [with_both, with_both, without, without]}
        after = offer(channel, state, saw(task, {"i0": [worse, worse, "lertsek", "lertsek"]}, told=told, round=number))
        if isinstance(after, Proposal):
            state = after.state
            gone = [w for w in after.writes if w.kind == "retire"]
            if gone:
                retired = (number, gone[0])
                break
    if kind == "useless":
        assert retired is None
        assert state.bank.effect(odd.id).difference == 0.0
    else:
        assert retired is not None
        assert retired[1].lesson == odd.id
        assert "harmful" in retired[1].text
        assert state.bank.get(good.id) is not None


def test_the_bank_never_outgrows_its_budget() -> None:
    channel = build_fast("cases", {"max_entries": 4})
    task, state = Words([f"word{n:02d}" for n in range(30)]), MemoryState()
    for number in range(1, 6):
        chosen = {f"i{n}": ["x"] for n in range(6 * (number - 1), 6 * number)}
        after = offer(channel, state, saw(task, chosen, round=number), task=task)
        state = after.state if isinstance(after, Proposal) else state
        assert len(state.bank) == 4


@pytest.mark.parametrize("retrieval", ["topk", "random", "kernel", "parametric"])
def test_every_retrieval_learns_in_the_loop_and_survives_its_bytes(retrieval: str) -> None:
    """A reader that answers as the last exemplar does: cases of a misleading bank are worth nothing, the others 1."""
    channel, task = (
        build_fast("cases", {"k": 1, "retrieval": retrieval, "show": "exemplars", "encoder": "hashing"}),
        Words(),
    )
    state = MemoryState(Bank().add(*(case(w) for w in ("kestrel", "heron", "osprey", "linnet"))))

    def reader(prompt: str, conditioning: Conditioning, seed: int) -> str:
        return conditioning.exemplars[-1][1] if conditioning.exemplars else "?"

    policy = mute(reader)
    for number in range(1, 4):
        offered = channel.alternatives(state, "words", 2, number)
        requests = [
            Request(prompt=i.prompt, conditioning=c.for_item(i), seeds=(child_seed("t", number, i.id),))
            for i in task.items
            for c in offered
        ]
        groups = grade_rollouts(task, task.items, requests, policy.sample(requests, SAMPLING))
        evidence = Evidence(
            round=number,
            phase=0,
            task="words",
            groups=groups,
            conditionings={r.conditioning.id: r.conditioning for r in requests},
            sampling=SAMPLING,
        )
        after = offer(channel, state, evidence, policy)
        if isinstance(after, Proposal):
            state = channel.load(channel.dump(after.state))
            assert channel.dump(state) == channel.dump(after.state)
    item = Item(id="new", prompt="What is the code of heron?")
    shown = channel.condition(state, "words").for_item(item)
    assert len(shown.exemplars) == 1
    if retrieval != "random":
        assert shown.exemplars[0][1] == "noreh"


# ------------------------------------------------------------------------------------------------------- reflections


def reflect(texts: Sequence[str], **options: Any) -> Any:
    """A reflections channel whose reflector says these texts in turn, and what it was asked."""
    said, asked = iter(texts), []

    def reflector(prompt: str) -> str:
        asked.append(prompt)
        return next(said)

    return build_fast("reflections", {"reflector": "given", **options}, reflector=reflector), asked


def test_a_failed_item_gets_a_lesson_that_it_alone_is_shown_verbatim() -> None:
    channel, asked = reflect(["I guessed the code; next time I will spell the word backwards."], k=0)
    task = Words()
    after = offer(channel, MemoryState(), saw(task, {"i0": ["kestrel"], "i1": ["noreh"]}))
    assert isinstance(after, Proposal)
    assert len(asked) == 1, "the item that was solved is not reflected on"
    assert "What is the code of kestrel?" in asked[0]
    assert "the code is lertsek" in asked[0]
    told = channel.condition(after.state, "words")
    assert "I guessed the code; next time I will spell the word backwards." in told.for_item(task.items[0]).notes[0]
    assert told.for_item(task.items[1]) == Conditioning()


@pytest.mark.parametrize("window", [0, 1, 2, 3])
def test_the_window_shows_the_newest_lessons_and_drops_the_oldest_first(window: int) -> None:
    lessons = [f"I should try plan number {word} first." for word in ("one", "two", "three")]
    channel, _ = reflect(lessons, k=0, window=window)
    task, state = Words(), MemoryState()
    for number in (1, 2, 3):
        state = offer(channel, state, saw(task, {"i0": ["x"]}, round=number)).state
    told = channel.condition(state, "words").for_item(task.items[0])
    shown = [word for word in ("one", "two", "three") if any(f"plan number {word}" in note for note in told.notes)]
    assert shown == ["one", "two", "three"][3 - window :]
    if window == 0:
        assert channel.condition(state, "words") == Conditioning()


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "empty"),
        ("lertsek", "answer"),
        ("1234 567", "no word"),
        ("go on go on go on go on go on go on go on", "repeats itself"),
        ("In one or two sentences, say what went wrong and what you will do differently", "echoes"),
        ("x " * 700, "characters"),
    ],
)
def test_what_is_no_lesson_is_refused_with_its_reason(text: str, why: str) -> None:
    channel, _ = reflect([text])
    after = offer(channel, MemoryState(), saw(Words(), {"i0": ["x"]}))
    assert isinstance(after, Declined)
    assert why in after.reason


def test_what_memory_said_is_not_written_back() -> None:
    lesson = "I will spell the word backwards before I answer anything at all."
    channel, _ = reflect([lesson, "So: I will spell the word backwards before I answer anything."])
    task = Words()
    state = offer(channel, MemoryState(), saw(task, {"i0": ["x"]})).state
    told = channel.condition(state, "words").for_item(task.items[0])
    again = offer(channel, state, saw(task, {"i0": ["y"]}, told={"i0": [told]}, round=2))
    assert isinstance(again, Declined)
    assert "repeats what memory said" in again.reason


def test_a_reflector_that_raises_loses_nothing() -> None:
    def broken(prompt: str) -> str:
        raise RuntimeError("no line")

    channel = build_fast("reflections", {"reflector": "given"}, reflector=broken)
    after = offer(channel, MemoryState(), saw(Words(), {"i0": ["x"]}))
    assert isinstance(after, Declined)
    assert "RuntimeError: no line" in after.reason


def test_the_policy_reflects_on_the_budget() -> None:
    policy = mute(lambda prompt, conditioning, seed: "I will slow down and look at the letters.")
    task, channel = Words(), build_fast("reflections", {"per_round": 2})
    metered = bench(policy, task, budget=Budget(rollouts=1))
    evidence = saw(task, {"i0": ["x"], "i1": ["x"], "i2": ["x"]})
    after = channel.propose(metered, MemoryState(), evidence, Budget(rollouts=1), 3)
    assert isinstance(after, Proposal)
    assert (after.cost.rollouts, len(after.state.bank)) == (1, 1)
    assert "the budget ended" in after.cause


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("cases", {"k": -1}, "k = -1"),
        ("cases", {"k": 9, "candidates": 4}, "candidates = 4"),
        ("cases", {"retrieval": "top"}, "Input should be"),
        ("cases", {"retrieval": "kernel", "encoder": "none"}, 'encoder = "minilm"'),
        ("cases", {"encoder": "policy"}, "hold the model"),
        ("cases", {"hold_all": 2.0}, "hold_all = 2.0"),
        ("cases", {"success": 0.0}, "success = 0.0"),
        ("reflections", {"reflector": "given"}, "[reflector]"),
        ("reflections", {"show": "exemplars"}, "notes"),
        ("reflections", {"window": -1}, "window = -1"),
    ],
)
def test_mistakes_are_told(name: str, options: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        build_fast(name, options)
    assert words in str(caught.value)
