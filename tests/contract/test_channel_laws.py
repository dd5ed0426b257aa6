"""The laws of channels, run over every channel in the tables.

Promises: a fresh state changes nothing; proposing touches nothing live; the same inputs and seed give the same
proposal; a dump is exact and canonical; the budget is never exceeded; empty evidence is declined with a reason;
``condition`` is pure; commit and rollback, through the store, restore identical logits.
"""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from contract_world import Meter, agent_task, answers, lived, logits, model_bits, same_bits, seen_by

from tiny_world import SAMPLING, channel_names, make_channel, no_evidence, tiny_bench
from twoclock.bench import Bench
from twoclock.contracts import Channel, Population, Teaching
from twoclock.errors import BudgetError, ConfigError, StoreError
from twoclock.store import RunStore
from twoclock.types import (
    Budget,
    Conditioning,
    Cost,
    Declined,
    LedgerEntry,
    Proposal,
    RoundRecord,
    Snapshot,
    Timescale,
)

TASK = agent_task()

pytestmark = pytest.mark.parametrize("name", channel_names())


@pytest.fixture
def channel(name: str) -> Channel[Any]:
    return make_channel(name)


@pytest.fixture(params=["fresh", "lived"])
def state(request: pytest.FixtureRequest, channel: Channel[Any], tiny: Any) -> Any:
    return channel.init(tiny.card, 11) if request.param == "fresh" else lived(channel, tiny, TASK)


def propose(channel: Channel[Any], policy: Any, state: Any, *, seed: int = 5, rollouts: int = 120) -> Any:
    deployed = channel.condition(state, TASK.name)
    evidence = seen_by(channel, policy, TASK, conditioning=deployed, round=4)
    return channel.propose(tiny_bench(policy, TASK), state, evidence, Budget(rollouts=rollouts), seed)


def essence(channel: Channel[Any], offer: Proposal[Any] | Declined) -> Any:
    """All of an offer but its wall clock."""
    cost = replace(offer.cost, seconds=0.0)
    if isinstance(offer, Declined):
        return offer.reason, cost, offer.metrics
    return channel.dump(offer.state), offer.cause, offer.writes, offer.metrics, cost


def test_the_name_is_the_tables_and_the_clock_is_one(name: str, channel: Channel[Any]) -> None:
    assert channel.name == name
    assert channel.timescale in (Timescale.FAST, Timescale.SLOW)


def test_a_fresh_state_changes_nothing(name: str, channel: Channel[Any], tiny: Any) -> None:
    fresh = channel.init(tiny.card, 11)
    for task in ("largest", "another", ""):
        assert channel.condition(fresh, task).is_identity
    assert channel.condition(fresh, "largest").id == Conditioning().id
    assert channel.dump(make_channel(name).init(tiny.card, 11)) == channel.dump(fresh)


def test_the_states_that_these_laws_are_tried_on_have_lived(name: str, channel: Channel[Any], tiny: Any) -> None:
    moved = channel.dump(lived(channel, tiny, TASK)) != channel.dump(channel.init(tiny.card, 11))
    assert moved == (name != "null")


def test_proposing_touches_nothing_live(name: str, channel: Channel[Any], state: Any, tiny: Any) -> None:
    deployed = channel.condition(state, TASK.name)
    before = channel.dump(state), model_bits(tiny), logits(tiny, deployed), logits(tiny, Conditioning())
    dice = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()  # type: ignore[index]
    propose(channel, tiny, state)
    assert channel.dump(state) == before[0]
    assert model_bits(tiny) == before[1]
    assert same_bits(logits(tiny, channel.condition(state, TASK.name)), before[2])
    assert same_bits(logits(tiny, Conditioning()), before[3])
    after = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()  # type: ignore[index]
    assert after == dice, "global random state was drawn from"


def test_the_same_inputs_give_the_same_proposal(name: str, channel: Channel[Any], state: Any, tiny: Any) -> None:
    first = essence(channel, propose(channel, tiny, state))
    propose(channel, tiny, state, seed=99)  # whatever is asked in between
    assert essence(channel, propose(channel, tiny, state)) == first
    other = make_channel(name)  # nothing is hidden in the object
    assert essence(other, propose(other, tiny, other.load(channel.dump(state)))) == first


def test_a_dump_is_exact_and_canonical(name: str, channel: Channel[Any], state: Any, tiny: Any) -> None:
    blob = channel.dump(state)
    other = make_channel(name)
    loaded = other.load(blob)
    assert other.dump(loaded) == blob
    assert channel.dump(channel.load(bytes(bytearray(blob)))) == blob
    for task in (TASK.name, "another"):
        assert other.condition(loaded, task).id == channel.condition(state, task).id
    mine, theirs = (answers(tiny, c.condition(s, TASK.name)) for c, s in ((channel, state), (other, loaded)))
    assert mine == theirs


def test_bytes_that_are_no_dump_are_refused(name: str, channel: Channel[Any], tiny: Any) -> None:
    blob = channel.dump(lived(channel, tiny, TASK))
    for wrong in (b"", b"nonsense", b"{}", blob[: len(blob) // 2], blob[:-1]):
        with pytest.raises(StoreError, match=name):
            channel.load(wrong)


@pytest.mark.parametrize("rollouts", [0, 1, 7, 8, 40, 121])
def test_the_rollout_budget_holds(name: str, channel: Channel[Any], tiny: Any, rollouts: int) -> None:
    meter, budget = Meter(tiny), Budget(rollouts=rollouts)
    state = channel.init(tiny.card, 11)
    bench = tiny_bench(meter, TASK, budget=budget)
    offer = channel.propose(bench, state, seen_by(channel, tiny, TASK), budget, 5)
    assert meter.rollouts == bench.spent.rollouts <= rollouts
    assert offer.cost.rollouts <= rollouts


@pytest.mark.parametrize("tokens", [0, 300, 2500, 20_000])
def test_the_token_budget_holds(name: str, channel: Channel[Any], tiny: Any, tokens: int) -> None:
    meter, budget = Meter(tiny), Budget(tokens=tokens)
    state = channel.init(tiny.card, 11)
    bench = tiny_bench(meter, TASK, budget=budget)
    channel.propose(bench, state, seen_by(channel, tiny, TASK), budget, 5)
    assert meter.tokens == bench.spent.tokens <= tokens


def test_empty_evidence_is_declined_with_a_reason(name: str, channel: Channel[Any], state: Any, tiny: Any) -> None:
    meter = Meter(tiny)
    offer = channel.propose(tiny_bench(meter, TASK), state, no_evidence(TASK), Budget(), 5)
    assert isinstance(offer, Declined)
    assert offer.channel == name
    assert len(offer.reason.split()) >= 3
    assert meter.rollouts == 0


def test_condition_is_pure(name: str, channel: Channel[Any], state: Any, tiny: Any) -> None:
    blob, model = channel.dump(state), model_bits(tiny)
    first = channel.condition(state, TASK.name)
    channel.condition(state, "another")
    again = channel.condition(state, TASK.name)
    assert (first, first.id, hash(first)) == (again, again.id, hash(again))
    assert channel.dump(state) == blob
    assert model_bits(tiny) == model


def test_alternatives_are_distinct_and_begin_with_what_is_deployed(
    name: str, channel: Channel[Any], state: Any, tiny: Any
) -> None:
    if not isinstance(channel, Population):
        assert not hasattr(channel, "alternatives"), "half an ability: the protocol Population is not met"
        return
    for count in (1, 2, 5):
        found = channel.alternatives(state, TASK.name, count, 3)
        assert 1 <= len(found) <= count
        assert found[0].id == channel.condition(state, TASK.name).id
        assert len({c.id for c in found}) == len(found)
        assert found == channel.alternatives(state, TASK.name, count, 3)


def test_a_lesson_taken_out_is_out_and_the_rest_stays(name: str, channel: Channel[Any], state: Any, tiny: Any) -> None:
    if not isinstance(channel, Teaching):
        pytest.skip("this channel has no lessons to name")
    known = channel.lessons(state)
    if channel.dump(state) != channel.dump(channel.init(tiny.card, 11)):
        assert known, "a state that has lived has a lesson"
    assert len({lesson.id for lesson in known}) == len(known)
    assert [lesson.live for lesson in known] == sorted((lesson.live for lesson in known), reverse=True)
    assert channel.without(state, []) is state
    before = channel.dump(state)
    for lesson in known:
        after = channel.without(state, [lesson.id])
        assert lesson.id not in {kept.id for kept in channel.lessons(after) if kept.live}
        others = {kept.id for kept in known if kept.live} - {lesson.id}
        assert others == {kept.id for kept in channel.lessons(after) if kept.live}
        assert channel.dump(channel.load(channel.dump(after))) == channel.dump(after)
    nothing = channel.without(state, [lesson.id for lesson in known if lesson.live])
    assert same_bits(logits(tiny, channel.condition(nothing, TASK.name)), logits(tiny, Conditioning()))
    assert channel.dump(state) == before
    with pytest.raises(ConfigError):
        channel.without(state, ["no such lesson"])


def test_rollback_through_the_store_restores_identical_logits(name: str, tiny: Any, tmp_path: Path) -> None:
    channel = make_channel(name)
    bases = logits(tiny, Conditioning()), answers(tiny, Conditioning()), model_bits(tiny)
    states = [channel.init(tiny.card, 11)]
    seen = []
    with RunStore.create(tmp_path / "run", config={}) as store:

        def live() -> tuple[Any, Any]:
            loaded = make_channel(name).load(store.get_blob(store.head().states[name]))
            conditioning = channel.condition(loaded, TASK.name)
            return logits(tiny, conditioning), answers(tiny, conditioning)

        def entry(number: int, before: str, after: str) -> LedgerEntry:
            return LedgerEntry(
                round=number,
                channel=name,
                timescale=str(channel.timescale),
                action="init" if number == 0 else "commit",
                before=before,
                after=after,
                cause="test",
                reason="test",
                cost=Cost(),
            )

        hashes = [store.put_blob(channel.dump(states[0]))]
        store.begin(Snapshot(round=0, states={name: hashes[0]}, next_round=1), [entry(0, "", hashes[0])])
        seen.append(live())
        for number in range(1, 4):
            states.append(lived(channel, tiny, TASK, rounds=number))
            hashes.append(store.put_blob(channel.dump(states[-1])))
            store.commit_round(
                RoundRecord(
                    round=number,
                    phase=0,
                    task=TASK.name,
                    snapshot=Snapshot(round=number, states={name: hashes[-1]}, next_round=number + 1),
                    entries=(entry(number, hashes[-2], hashes[-1]),),
                    evidence=None,
                    metrics={},
                )
            )
            seen.append(live())
        if channel.condition(states[-1], TASK.name).delta is not None:
            assert not same_bits(seen[-1][0], seen[0][0]), "the change of weights changes nothing"
        for target in (0, 2, 3, 1, 0):
            store.append_rollback(target, reason="test")
            now = live()
            assert same_bits(now[0], seen[target][0])
            assert now[1] == seen[target][1]
        assert store.verify() == []
    assert same_bits(live()[0], bases[0])
    assert (live()[1], model_bits(tiny)) == bases[1:]


def test_overspending_is_refused_before_anything_is_spent(name: str, tiny: Any) -> None:
    """A channel around this one that asks for more than it was given."""
    meter = Meter(tiny)
    bench = Bench(meter, TASK, others=Conditioning(), sampling=SAMPLING, budget=Budget(rollouts=9))
    state = make_channel(name).init(tiny.card, 1)
    mine = make_channel(name).condition(state, TASK.name)
    items = bench.items("train", 5, 1)
    with pytest.raises(BudgetError, match="10 rollouts were asked for and 9 are left of 9"):
        bench.roll_out(items, [mine, mine], 1, 1)
    assert meter.rollouts == bench.spent.rollouts == 0
    bench.roll_out(items, [mine], 1, 1)
    with pytest.raises(BudgetError, match="5 rollouts were asked for and 4 are left of 9"):
        bench.roll_out(items, [mine], 1, 2)
    assert meter.rollouts == bench.spent.rollouts == 5
