"""What is kept where the gate refuses: the new pool, with the old prompt deployed."""

from __future__ import annotations

import pytest
from prompts_bench import FakeBench, FakeTask, chance, coin_flip, evidence_of, planted

from twoclock.fast.prompts import Candidate, Pool, PromptsChannel, PromptsConfig, PromptsState
from twoclock.fast.prompts.state import EMPTY
from twoclock.types import Budget, Conditioning, Item, Proposal

TASK = "digits"
SHARED = FakeTask()


@pytest.mark.parametrize("scope", ["task", "stream"])
@pytest.mark.parametrize("pool_size", [2, 3, 4, 6])
def test_a_fallback_speaks_as_the_live_state_does(pool_size: int, scope: str) -> None:
    """Over states carried on by fallbacks and by states in turn, as a gate would decide."""
    channel = PromptsChannel(
        PromptsConfig(pool_size=pool_size, scope=scope, proposers=("exemplars", "edits"))  # type: ignore[arg-type]
    )
    key = TASK if scope == "task" else "*"
    live, offered = PromptsState(), 0
    for seed in range(40):
        bench = FakeBench(coin_flip, task=SHARED)
        offer = channel.propose(bench, live, evidence_of(bench, seed=seed), Budget(rollouts=192), seed)
        if not isinstance(offer, Proposal):
            continue
        changed = channel.condition(offer.state, TASK) != channel.condition(live, TASK)
        if offer.fallback is None:
            assert not changed or pool_size == 2
        else:
            assert changed
            offered += 1
            for task in (TASK, "another"):
                assert channel.condition(offer.fallback, task) == channel.condition(live, task)
                assert channel.condition(offer.fallback, task).id == channel.condition(live, task).id
            before, after, beside = (s.pool(key) for s in (live, offer.state, offer.fallback))
            ids = [c.id for c in beside.candidates]
            assert len(ids) == len(set(ids)) <= pool_size
            assert EMPTY in beside.candidates
            assert beside.deployed == before.deployed
            assert beside.deployed in ids
            assert set(ids) <= {c.id for c in after.candidates} | {before.deployed}
            assert {s.candidate for s in beside.scores} <= set(ids)
            assert channel.load(channel.dump(offer.fallback)) == offer.fallback
            assert channel.dump(offer.fallback) != channel.dump(live)
        live = offer.state if seed % 3 == 0 or offer.fallback is None else offer.fallback
    assert offered > 3


def test_survivors_are_carried_over_a_refusal() -> None:
    channel = PromptsChannel()
    bench = FakeBench(planted, task=SHARED)
    offer = channel.propose(bench, PromptsState(), evidence_of(bench), Budget(rollouts=192), 1)
    assert isinstance(offer, Proposal)
    assert offer.fallback is not None
    beside, after = offer.fallback.pool(TASK), offer.state.pool(TASK)
    assert beside.deployed_candidate.is_empty
    assert {c.id for c in beside.candidates} == {c.id for c in after.candidates}
    assert after.deployed_candidate in beside.candidates
    # ... and the next search scores them anew
    again = FakeBench(planted, task=SHARED)
    channel.propose(again, offer.fallback, evidence_of(again, seed=2), Budget(rollouts=192), 2)
    assert {c.conditioning for c in beside.candidates} <= set(again.calls[0][1])
    # ... and groups roll out under them
    assert after.deployed_candidate.conditioning in channel.alternatives(offer.fallback, TASK, 4, 0)
    assert channel.alternatives(offer.fallback, TASK, 4, 0)[0].is_identity


def test_the_last_of_the_others_makes_room_for_the_old_prompt() -> None:
    """Three places: the empty prompt, the old one that lost on every item, and the winner; nothing else."""
    names = ("Good.", "Fair.", "Weak.")
    old = Candidate(system="Old.", origin="instruction")
    level = {"Old.": 0.0, "Good.": 1.0, "Fair.": 0.8, "Weak.": 0.6, None: 0.3}

    def graded(item: Item, conditioning: Conditioning, seed: int) -> str:
        return str(item.reference) if chance(level.get(conditioning.system, 0.0), seed) else "?"

    channel = PromptsChannel(PromptsConfig(pool_size=3, instructions=names, num_new=3))
    live = PromptsState().with_pool(TASK, Pool(candidates=(old, EMPTY), deployed=old.id))
    bench = FakeBench(graded, task=SHARED)
    offer = channel.propose(bench, live, evidence_of(bench), Budget(), 3)
    assert isinstance(offer, Proposal)
    assert offer.fallback is not None
    after, beside = offer.state.pool(TASK), offer.fallback.pool(TASK)
    assert after.deployed_candidate.system == "Good."
    assert "Old." not in {c.system for c in after.candidates}
    assert [c.system for c in beside.candidates if c.system] == ["Old.", "Good."]
    assert beside.deployed == old.id
    assert (old.id, "base") in after.losers
    assert (old.id, "base") not in beside.losers
    displaced = {c.id for c in after.candidates} - {c.id for c in beside.candidates}
    assert displaced <= {c for c, _ in beside.losers}


def test_with_two_places_there_may_be_nothing_to_fall_back_on() -> None:
    """The old prompt and the empty one fill the pool: the fallback would be the live state."""
    old, good = (Candidate(system=s, origin="instruction") for s in ("Old.", "Good."))

    def only_good(item: Item, conditioning: Conditioning, seed: int) -> str:
        return str(item.reference) if conditioning.system == "Good." else "?"

    channel = PromptsChannel(PromptsConfig(pool_size=2, instructions=("Good.",), num_new=1, memory=0))
    live = PromptsState().with_pool(TASK, Pool(candidates=(old, EMPTY), deployed=old.id))
    bench = FakeBench(only_good, task=SHARED)
    offer = channel.propose(bench, live, evidence_of(bench), Budget(), 3)
    assert isinstance(offer, Proposal)
    assert offer.state.pool(TASK).deployed == good.id
    assert offer.fallback is None


def test_a_change_of_the_pool_alone_has_no_fallback() -> None:
    def old_is_best(item: Item, conditioning: Conditioning, seed: int) -> str:
        return str(item.reference) if conditioning.system == "Old." and chance(0.9, seed) else "?"

    old = Candidate(system="Old.", origin="instruction")
    live = PromptsState().with_pool(TASK, Pool(candidates=(old, EMPTY), deployed=old.id))
    bench = FakeBench(old_is_best, task=SHARED)
    offer = PromptsChannel().propose(bench, live, evidence_of(bench), Budget(rollouts=192), 1)
    assert isinstance(offer, Proposal)
    assert offer.state.pool(TASK).deployed == old.id
    assert offer.fallback is None
