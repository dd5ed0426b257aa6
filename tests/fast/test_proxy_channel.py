"""The proxy channel over a scripted policy whose answers depend on alpha: what it proposes, keeps and refuses."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from prompts_bench import FakeBench, evidence_of

from twoclock.errors import ConfigError, StoreError
from twoclock.fast import build_fast
from twoclock.fast.proxy import ProxyChannel, ProxyConfig, ProxyState, ShiftConfig
from twoclock.seeding import child_rng
from twoclock.types import Budget, Conditioning, Declined, Delta, Evidence, Item, Proposal, SideModel

BASE = "b" * 64
TERSE = ShiftConfig(name="terse", expert="runs/terse")
POLITE = ShiftConfig(name="polite", expert="small-polite", anti="small", plausible=0.1)


def open_sides(shift: ShiftConfig, base: str) -> Any:
    if shift.name == "terse":
        return Delta("terse-1", "lora", base, None), None
    return SideModel(weights="small-polite", source="x"), SideModel(weights="small", source="y")


def chances(best: dict[str, float]) -> Any:
    """Answers that are right the more often the nearer each shift's alpha is to its best."""

    def answer(item: Item, told: Conditioning, seed: int) -> str:
        alphas = {shift.name: shift.alphas[0] for shift in told.shifts}
        chance = 0.9
        for name, wanted in best.items():
            chance -= 0.4 * abs(alphas.get(name, 0.0) - wanted)
        right = child_rng("fake", seed).random() < chance
        return str(item.reference) if right else "x"

    return answer


def make(*shifts: ShiftConfig, **options: Any) -> ProxyChannel:
    return ProxyChannel(ProxyConfig(shifts=shifts or (TERSE,), **options), open_sides)


def bench_for(best: dict[str, float], **options: Any) -> FakeBench:
    bench = FakeBench(chances(best), **options)
    bench.card = replace(bench.card, trainable=True)
    return bench


def seen(bench: FakeBench, *, round: int = 1) -> Evidence:
    return evidence_of(bench, round=round)


def propose(channel: ProxyChannel, state: ProxyState, bench: FakeBench, *, round: int = 1, **budget: Any) -> Any:
    return channel.propose(bench, state, seen(bench, round=round), Budget(**budget), seed=7)


@pytest.fixture
def fresh() -> ProxyState:
    return ProxyState(BASE)


def test_it_finds_the_best_amount_and_says_so(fresh: ProxyState) -> None:
    channel = make(search_items=60)
    offer = propose(channel, fresh, bench_for({"terse": 1.0}))
    assert isinstance(offer, Proposal)
    assert offer.state.alphas("digits") == {"terse": 1.0}
    (shift,) = channel.condition(offer.state, "digits").shifts
    assert (shift.alpha, shift.name, shift.expert) == (1.0, "terse", Delta("terse-1", "lora", BASE, None))
    assert channel.condition(offer.state, "another").is_identity
    (write,) = offer.writes
    assert (write.text, write.kind, write.lesson) == ("terse: alpha 0 → 1 on task 'digits'", "alpha", "terse")
    assert offer.metrics["alpha"] == 1.0
    assert offer.metrics["search_gain"] > 0.0
    assert "1: 0.9" in offer.cause
    assert offer.cost.rollouts == 60 * 6


def test_it_goes_back_to_nothing_where_nothing_is_best(fresh: ProxyState) -> None:
    channel = make(search_items=60)
    there = fresh.with_alpha("digits", "terse", 1.0, channel._shift(TERSE, BASE).id)
    offer = propose(channel, there, bench_for({"terse": 0.0}))
    assert isinstance(offer, Proposal)
    assert offer.state.alphas("digits") == {}
    assert channel.condition(offer.state, "digits").is_identity
    assert "alpha 1 → 0" in offer.writes[0].text


def test_it_stays_where_it_is_best(fresh: ProxyState) -> None:
    channel = make(search_items=60)
    there = fresh.with_alpha("digits", "terse", 1.0, channel._shift(TERSE, BASE).id)
    offer = propose(channel, there, bench_for({"terse": 1.0}))
    assert isinstance(offer, Declined)
    assert "no amount did better than 1" in offer.reason
    assert offer.cost.rollouts == 60 * 6


def test_several_shifts_take_turns_and_add(fresh: ProxyState) -> None:
    channel = make(TERSE, POLITE, search_items=80)
    bench = bench_for({"terse": 0.5, "polite": 1.0})
    state, changed = fresh, []
    for round in (1, 2, 3, 4):
        offer = propose(channel, state, bench, round=round)
        if isinstance(offer, Proposal):
            changed.append(offer.writes[0].lesson)
            state = offer.state
    assert state.alphas("digits") == {"terse": 0.5, "polite": 1.0}
    assert changed[:2] == ["polite", "terse"]
    assert [s.name for s in channel.condition(state, "digits").shifts] == ["terse", "polite"]
    assert channel.condition(state, "digits").shifts[1].plausible == 0.1


def test_one_amount_for_the_whole_stream(fresh: ProxyState) -> None:
    channel = make(scope="stream", search_items=60)
    offer = propose(channel, fresh, bench_for({"terse": 1.0}))
    assert channel.condition(offer.state, "another") == channel.condition(offer.state, "digits") != Conditioning()
    assert "every task" in offer.writes[0].text


def test_a_small_budget_compares_fewer_amounts(fresh: ProxyState) -> None:
    channel = make()
    for limit, compared in ((72, 6), (24, 6), (23, 2), (8, 2), (4, 2)):
        bench = bench_for({"terse": 1.0}, rollouts=limit)
        propose(channel, fresh, bench)
        evidence, *search = bench.calls[0:1], *bench.calls
        assert bench.spent.rollouts <= limit
        assert len(search[-1][1]) == compared, (limit, evidence)
    bench = bench_for({"terse": 1.0}, rollouts=3)
    offer = propose(channel, fresh, bench)
    assert isinstance(offer, Declined)
    assert "needs 4 rollouts" in offer.reason


def test_what_there_is_nothing_to_do_for(fresh: ProxyState) -> None:
    bench = bench_for({"terse": 1.0})
    none = Evidence(round=1, phase=0, task="digits", groups=(), conditionings={})
    cases = [
        (make(), bench, none, "no evidence"),
        (ProxyChannel(), bench, seen(bench), "names none"),
        (make(), FakeBench(chances({"terse": 1.0})), seen(bench), "gives no logits"),
        (make(), bench_for({}), seen(FakeBench(lambda i, c, s: str(i.reference))), "was right"),
    ]
    for channel, where, evidence, told in cases:
        offer = channel.propose(where, fresh, evidence, Budget(), 1)
        assert isinstance(offer, Declined)
        assert told in offer.reason


def test_alternatives_are_a_step_of_the_grid_away(fresh: ProxyState) -> None:
    channel = make(TERSE, POLITE, alphas=(0.5, 1.0))
    there = fresh.with_alpha("digits", "terse", 0.5, channel._shift(TERSE, BASE).id)
    found = channel.alternatives(there, "digits", 9, 0)
    assert [{s.name: s.alpha for s in c.shifts} for c in found] == [
        {"terse": 0.5},
        {"terse": 1.0},
        {},
        {"terse": 0.5, "polite": 0.5},
    ]
    assert found[:2] == channel.alternatives(there, "digits", 2, 1)
    with pytest.raises(ValueError, match="count = 0"):
        channel.alternatives(there, "digits", 0, 1)


def test_a_shift_is_a_lesson_and_can_be_taken_back(fresh: ProxyState) -> None:
    channel = make(TERSE, POLITE)
    one, two = (channel._shift(s, BASE).id for s in (TERSE, POLITE))
    state = fresh.with_alpha("digits", "terse", 0.5, one).with_alpha("sums", "terse", 1.0, one)
    state = state.with_alpha("sums", "polite", 0.25, two)
    terse, _ = channel.lessons(state)
    assert (terse.id, terse.tasks, terse.live) == ("terse", ("digits", "sums"), True)
    assert "runs/terse − base" in terse.text
    without = channel.without(state, ["terse"])
    assert without.alphas("digits") == {}
    assert without.alphas("sums") == {"polite": 0.25}
    assert channel.without(state, []) == state
    assert channel.condition(channel.without(state, ["terse", "polite"]), "sums").is_identity
    with pytest.raises(ConfigError, match="unknown shift 'tense'; did you mean 'terse'"):
        channel.without(state, ["tense"])


def test_dumps_are_canonical_and_others_are_refused(fresh: ProxyState) -> None:
    channel = make(TERSE, POLITE)
    one, two = (channel._shift(s, BASE).id for s in (TERSE, POLITE))
    forward = fresh.with_alpha("a", "terse", 0.5, one).with_alpha("b", "polite", 1.0, two)
    backward = fresh.with_alpha("b", "polite", 1.0, two).with_alpha("a", "terse", 0.5, one)
    assert channel.dump(forward) == channel.dump(backward)
    assert channel.load(channel.dump(forward)) == forward
    with pytest.raises(StoreError, match="deploys unknown shift 'polite'"):
        make(TERSE).load(channel.dump(forward))
    for wrong in (b'{"channel":"prompts"}', b"[]", channel.dump(forward).replace(b"0.5", b"NaN")):
        with pytest.raises(StoreError, match="proxy"):
            channel.load(wrong)


def test_an_expert_that_has_changed_since_is_refused(fresh: ProxyState) -> None:
    before = make()
    state = before.load(before.dump(propose(before, fresh, bench_for({"terse": 1.0})).state))
    after = ProxyChannel(ProxyConfig(shifts=(TERSE,)), lambda s, b: (Delta("terse-2", "lora", b, None), None))
    with pytest.raises(StoreError, match="have changed since"):
        after.condition(state, "digits")
    assert after.condition(state, "another").is_identity


def test_experts_are_opened_once_and_only_when_they_are_used(fresh: ProxyState) -> None:
    opened = []

    def counting(shift: ShiftConfig, base: str) -> Any:
        opened.append(shift.name)
        return open_sides(shift, base)

    channel = ProxyChannel(ProxyConfig(shifts=(TERSE, POLITE)), counting)
    channel.condition(fresh, "digits")
    channel.load(channel.dump(fresh))
    assert opened == []
    for _ in range(3):
        propose(channel, fresh, bench_for({"terse": 1.0}), round=2)
    assert opened == ["terse"]


def test_mistakes_in_the_configuration_are_told_together() -> None:
    for options, told in (
        ({"shifts": [{"name": "a", "expert": "x", "alhpa": 1}]}, "alhpa"),
        ({"shifts": [{"name": " ", "expert": "x"}]}, "has no name"),
        ({"shifts": [{"name": "a"}]}, "expert and anti are the same"),
        ({"shifts": [{"name": "a", "expert": "x", "plausible": 3}]}, "plausible = 3"),
        ({"shifts": [{"name": "a", "expert": "x"}, {"name": "a", "expert": "y"}]}, "two shifts are called 'a'"),
        ({"alphas": [0.0, 1.0]}, "numbers other than 0"),
        ({"alphas": []}, "numbers other than 0"),
        ({"scope": "tasks"}, "scope = 'tasks'"),
        ({"search_items": 1}, "search_items = 1"),
        ({"search_samples": 0}, "search_samples = 0"),
    ):
        with pytest.raises(ConfigError) as problem:
            build_fast("proxy", options)
        assert told in str(problem.value), options
    with pytest.raises(ConfigError, match="nothing to open their experts with"):
        ProxyChannel(ProxyConfig(shifts=(TERSE,)))
