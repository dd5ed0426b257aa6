"""The prompts channel: finds what helps, resists noise, never trusts an old score, stays in its budget."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from prompts_bench import Answer, FakeBench, FakeTask, chance, coin_flip, evidence_of, no_evidence, planted

from twoclock.allocate.gates import PairedTrialGate
from twoclock.contracts import Population
from twoclock.errors import ConfigError, StoreError
from twoclock.fast.prompts import Candidate, Pool, PromptsChannel, PromptsConfig, PromptsState, Score
from twoclock.models.scripted import ScriptedPolicy
from twoclock.seeding import child_seed
from twoclock.types import Budget, Conditioning, Cost, Declined, Item, Proposal

TASK = "digits"
SHARED = FakeTask()


def bench_of(answer: Answer, *, rollouts: int | None = None, weights: str | None = None) -> FakeBench:
    return FakeBench(answer, task=SHARED, rollouts=rollouts, weights=weights)


def search(
    channel: PromptsChannel, state: PromptsState, bench: FakeBench, seed: int, rollouts: int | None = 192
) -> Proposal[PromptsState] | Declined:
    return channel.propose(bench, state, evidence_of(bench, seed=seed), Budget(rollouts=rollouts), seed)


def turn(
    channel: PromptsChannel, state: PromptsState, answer: Answer, seed: int, bench: FakeBench | None = None
) -> tuple[PromptsState, bool]:
    """One search and its judgement, as the loop does it: the next state, and whether the deployed prompt changed."""
    bench = bench or bench_of(answer)
    evidence = evidence_of(bench, seed=seed)
    offer = channel.propose(bench, state, evidence, Budget(rollouts=192), child_seed("propose", seed))
    if isinstance(offer, Declined):
        return state, False
    verdict = PairedTrialGate(trial_items=32).judge(
        bench, channel, state, offer, evidence, Budget(), child_seed("judge", seed)
    )
    if not verdict.accepted:
        return offer.fallback or state, False
    return offer.state, channel.condition(offer.state, TASK) != channel.condition(state, TASK)


# --------------------------------------------------------------------------------------------------- signal and noise


def test_exemplars_that_help_are_found_and_deployed() -> None:
    channel = PromptsChannel()
    found = 0
    for seed in range(40):
        state, changed = turn(channel, PromptsState(), planted, seed)
        found += changed and bool(channel.condition(state, TASK).exemplars)
    assert found >= 38, f"{found} of 40 searches deployed the exemplars"


def test_changes_without_effect_are_refused() -> None:
    channel = PromptsChannel()
    offered = changes = 0
    state = PromptsState()  # carried on, so that pools fill and mutations take part
    for seed in range(240):
        before = state
        state, changed = turn(channel, state, coin_flip, seed)
        offered += state != before
        changes += changed
    assert changes <= 24, f"{changes} of 240 searches changed the deployed prompt on a coin flip"
    assert offered > 20  # pools did move: the searches were real


def scribbler(prompt: str, conditioning: Conditioning, seed: int) -> str:
    """A policy whose reflections pass every guard and mean nothing."""
    words = [f"word{chr(97 + seed // 26**n % 26)}{chr(97 + seed // 26 ** (n + 3) % 26)}" for n in range(9)]
    return "Think of " + " ".join(words)


@pytest.mark.parametrize(
    "proposers", [("edits",), ("exemplars", "edits"), ("self",), ("exemplars", "edits", "self")], ids="+".join
)
@pytest.mark.parametrize("window", ["random", "ahead"])
def test_no_proposer_gets_changes_without_effect_past_the_gate(proposers: tuple[str, ...], window: str) -> None:
    if "self" in proposers:
        pytest.importorskip("gepa")
    channel = PromptsChannel(PromptsConfig(proposers=proposers, window=window))  # type: ignore[arg-type]
    state, changes, moved, origins = PromptsState(), 0, 0, set()
    for seed in range(100):
        coming = SHARED.split("train")[seed % 4 * 40 :]
        bench = FakeBench(coin_flip, task=SHARED, ahead=coming, keeps=True, policy=ScriptedPolicy(scribbler))
        before = state
        state, changed = turn(channel, state, coin_flip, seed, bench)
        moved += state != before
        changes += changed
        origins |= {c.origin for c in state.pool(TASK).candidates}
    assert changes <= 10, f"{changes} of 100 searches changed the deployed prompt on a coin flip"
    assert moved >= 20  # pools did move: the searches were real
    made = {"exemplars": "exemplars", "edits": "edit", "self": "self"}
    assert {made[name] for name in proposers} <= origins


def test_a_prompt_that_harms_is_replaced() -> None:
    def harmed(item: Item, conditioning: Conditioning, seed: int) -> str:
        return "?" if conditioning.system == "Shout." else (str(item.reference) if chance(0.5, seed) else "?")

    bad = Candidate(system="Shout.", origin="instruction")
    state = PromptsState().with_pool(TASK, Pool(candidates=(bad, Candidate()), deployed=bad.id))
    channel = PromptsChannel()
    after, changed = turn(channel, state, harmed, 3)
    assert changed
    assert channel.condition(after, TASK).system is None


# ----------------------------------------------------------------------------------------------------- stale scores


def two_prompts() -> PromptsState:
    old = Candidate(system="old", origin="instruction")
    new = Candidate(system="new", origin="instruction")
    scores = tuple(Score(candidate=c.id, mean=m, items=32, weights="base") for c, m in ((old, 1.0), (new, 0.0)))
    return PromptsState().with_pool(TASK, Pool(candidates=(old, new, Candidate()), deployed=old.id, scores=scores))


def by_weights(item: Item, conditioning: Conditioning, seed: int) -> str:
    """On the base 'old' is the right prompt, on the new weights 'new' is."""
    right = "new" if conditioning.delta else "old"
    return str(item.reference) if conditioning.system == right else "?"


def test_every_survivor_is_scored_anew_on_the_weights_as_they_are() -> None:
    channel, state = PromptsChannel(), two_prompts()
    for weights, expected in ((None, "old"), ("w" * 8, "new")):
        bench = bench_of(by_weights, weights=weights)
        offer = search(channel, state, bench, 5)
        after = offer.state if isinstance(offer, Proposal) else state
        assert channel.condition(after, TASK).system == expected
        scored = {c.id for call in bench.calls for c in call[1]}
        assert {c.conditioning.id for c in state.pool(TASK).candidates} <= scored
        if isinstance(offer, Proposal):
            assert {s.weights for s in offer.state.pool(TASK).scores} == {weights or "base"}


def test_stored_scores_are_for_people_only() -> None:
    channel, state = PromptsChannel(), two_prompts()
    pool = state.pool(TASK)
    lies = replace(pool, scores=tuple(replace(s, mean=1.0 - s.mean, weights="w" * 8) for s in pool.scores))
    told, lied = (
        search(channel, s, bench_of(by_weights, weights="w" * 8), 5) for s in (state, state.with_pool(TASK, lies))
    )
    assert isinstance(told, Proposal)
    assert isinstance(lied, Proposal)
    assert channel.dump(told.state) == channel.dump(lied.state)
    assert told.cost.rollouts == lied.cost.rollouts


def test_a_loser_is_not_tried_again_until_the_weights_change() -> None:
    def only_be_kind(item: Item, conditioning: Conditioning, seed: int) -> str:
        return str(item.reference) if conditioning.system == "Be kind." else "?"

    config = PromptsConfig(instructions=("Be kind.", "Be loud.", "Be odd.", "Be shy."), pool_size=2, num_new=4)
    channel = PromptsChannel(config)
    first = search(channel, PromptsState(), bench_of(only_be_kind), 1)
    assert isinstance(first, Proposal)
    assert channel.condition(first.state, TASK).system == "Be kind."

    def tried(weights: str | None) -> set[str | None]:
        bench = bench_of(only_be_kind, weights=weights)
        search(channel, first.state, bench, 2)
        return {c.system for call in bench.calls for c in call[1] if not c.exemplars}

    assert not {"Be loud.", "Be odd.", "Be shy."} & tried(None)
    assert {"Be loud.", "Be odd.", "Be shy."} <= tried("w" * 8)


def test_the_memory_is_bounded_and_forgets_the_oldest() -> None:
    channel = PromptsChannel(PromptsConfig(memory=5))
    state = PromptsState()
    for seed in range(4):
        offer = search(channel, state, bench_of(coin_flip), seed)
        state = offer.state if isinstance(offer, Proposal) else state
        assert len(state.pool(TASK).losers) <= 5
    assert len(state.pool(TASK).losers) == 5
    offer = search(PromptsChannel(PromptsConfig(memory=0)), PromptsState(), bench_of(coin_flip), 1)
    assert isinstance(offer, Proposal)
    assert offer.state.pool(TASK).losers == ()


# ----------------------------------------------------------------------------------------------------------- budget


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    rollouts=st.integers(0, 400),
    bench_left=st.one_of(st.none(), st.integers(0, 400)),
    samples=st.integers(1, 3),
    items=st.integers(4, 40),
    pool=st.integers(2, 6),
    seed=st.integers(0, 10),
)
def test_the_budget_is_never_passed(
    rollouts: int, bench_left: int | None, samples: int, items: int, pool: int, seed: int
) -> None:
    config = PromptsConfig(search_items=items, search_samples=samples, pool_size=pool, first_items=min(8, items))
    bench = bench_of(planted, rollouts=bench_left)
    offer = search(PromptsChannel(config), PromptsState(), bench, seed, rollouts=rollouts)
    limit = rollouts if bench_left is None else min(rollouts, bench_left)
    assert bench.spent.rollouts <= limit
    assert offer.cost.rollouts == bench.spent.rollouts
    if limit < 16:
        assert isinstance(offer, Declined)
        assert f"budget of {limit} rollouts" in offer.reason
        assert bench.spent == Cost()
    else:
        assert bench.spent.rollouts >= 8


def test_without_a_limit_the_config_sets_the_size() -> None:
    bench = bench_of(planted)
    search(PromptsChannel(), PromptsState(), bench, 1, rollouts=None)
    assert 9 * 8 <= bench.spent.rollouts <= 9 * 32


def test_an_end_of_tokens_in_the_first_stage_declines_and_later_ends_the_search() -> None:
    channel = PromptsChannel()
    bench = FakeBench(planted, task=SHARED, tokens=100)
    offer = channel.propose(bench, PromptsState(), evidence_of(bench), Budget(rollouts=192, tokens=100), 1)
    assert isinstance(offer, Declined)
    assert "budget ended" in offer.reason
    assert bench.spent == Cost()
    bench = FakeBench(planted, task=SHARED, tokens=800)
    offer = channel.propose(bench, PromptsState(), evidence_of(bench), Budget(rollouts=192, tokens=800), 1)
    assert isinstance(offer, Proposal)
    assert offer.metrics["search_items"] == 8
    assert bench.spent.tokens <= 800


# ----------------------------------------------------------------------------------------------------- declining


def test_no_evidence_is_declined() -> None:
    bench = bench_of(planted)
    offer = PromptsChannel().propose(bench, PromptsState(), no_evidence(), Budget(rollouts=100), 1)
    assert isinstance(offer, Declined)
    assert "no evidence" in offer.reason
    assert bench.spent == Cost()


def test_evidence_that_is_all_right_is_declined() -> None:
    bench = bench_of(lambda item, c, seed: str(item.reference))
    offer = search(PromptsChannel(), PromptsState(), bench, 1)
    assert isinstance(offer, Declined)
    assert "every one of 32 rollouts was right" in offer.reason
    assert bench.spent == Cost()


def test_one_constant_answer_makes_no_exemplars() -> None:
    task = FakeTask(answers=1)
    bench = FakeBench(coin_flip, task=task)
    offer = PromptsChannel().propose(bench, PromptsState(), evidence_of(bench), Budget(rollouts=100), 1)
    assert isinstance(offer, Declined)
    assert "no candidate" in offer.reason


def test_too_few_training_items_are_declined() -> None:
    bench = FakeBench(planted, task=FakeTask(train=6))
    offer = PromptsChannel().propose(bench, PromptsState(), evidence_of(bench, items=3), Budget(rollouts=100), 1)
    assert isinstance(offer, Declined)
    assert "training items are left" in offer.reason


def test_small_training_sets_work_and_no_item_is_scored_that_a_candidate_shows() -> None:
    for seed in range(10):
        bench = FakeBench(planted, task=FakeTask(train=24))
        offer = PromptsChannel().propose(
            bench, PromptsState(), evidence_of(bench, items=4, seed=seed), Budget(rollouts=150), seed
        )
        assert isinstance(offer, Proposal)
        prompts = {i.id: i.prompt for i in bench.task.split("train")}
        shown = {q for call in bench.calls for c in call[1] for q, _ in c.exemplars}
        asked = {prompts[i] for call in bench.calls for i in call[0]}
        assert asked
        assert not asked & shown


def test_a_search_that_changes_nothing_is_declined() -> None:
    channel = PromptsChannel(PromptsConfig(num_new=1, gold_items=0, instructions=("Shout.",)))
    best = Candidate(system="Sing.", origin="instruction")
    losers = ((Candidate(system="Shout.").id, "base"),)
    state = PromptsState().with_pool(TASK, Pool(candidates=(best, Candidate()), deployed=best.id, losers=losers))

    def sing(item: Item, conditioning: Conditioning, seed: int) -> str:
        return str(item.reference) if conditioning.system == "Sing." and chance(0.9, seed) else "?"

    bench = bench_of(sing)
    evidence = evidence_of(bench)  # all wrong: nothing proven, no gold: nothing new either
    offer = channel.propose(bench, state, evidence, Budget(rollouts=100), 1)
    assert isinstance(offer, Declined)
    assert "pool stands as it was" in offer.reason
    assert offer.cost.rollouts > 0


# ------------------------------------------------------------------------------------------- values, bytes, contract


def test_the_same_arguments_give_the_same_bytes_and_touch_nothing() -> None:
    channel = PromptsChannel()
    state = PromptsState()
    for seed in range(3):
        blob = channel.dump(state)
        offers = [search(channel, state, bench_of(coin_flip), seed) for _ in range(2)]
        assert channel.dump(state) == blob
        assert offers[0] == offers[1]
        assert isinstance(offers[0], Proposal)
        assert channel.dump(offers[0].state) != blob
        state = offers[0].state
        assert channel.load(channel.dump(state)) == state
        assert channel.dump(channel.load(channel.dump(state))) == channel.dump(state)
    other = search(channel, PromptsState(), bench_of(coin_flip), 77)
    assert other != search(channel, PromptsState(), bench_of(coin_flip), 78)


@pytest.mark.parametrize("window", ["random", "ahead"])
def test_every_proposer_together_keeps_the_laws(window: str) -> None:
    """The same arguments, the same offer; live state untouched; bytes exact; the budget held, reflections included."""
    pytest.importorskip("gepa")
    proposers = ("exemplars", "edits", "self", "reflective")
    config = PromptsConfig(proposers=proposers, window=window, num_reflections=1)  # type: ignore[arg-type]
    channel = PromptsChannel(config, lambda prompt: f"```\nThink of {child_seed('words', len(prompt))} things.\n```")
    state, fallbacks = PromptsState(), 0
    for seed in range(12):
        offers = []
        for _ in range(2):
            coming = SHARED.split("train")[seed * 10 :]
            policy = ScriptedPolicy(scribbler)
            bench = FakeBench(coin_flip, task=SHARED, rollouts=150, ahead=coming, keeps=True, policy=policy)
            blob = channel.dump(state)
            offers.append(channel.propose(bench, state, evidence_of(bench, seed=seed), Budget(rollouts=120), seed))
            assert channel.dump(state) == blob
            assert offers[-1].cost.rollouts == bench.spent.rollouts <= 120
            assert offers[-1].cost.reflector_calls == 1
            assert len(bench.written) == 1
        assert offers[0] == offers[1]
        offer = offers[0]
        assert isinstance(offer, Proposal)
        for offered in (offer.state, offer.fallback):
            assert offered is None or channel.load(channel.dump(offered)) == offered
        fallbacks += offer.fallback is not None
        state = offer.fallback or offer.state
    assert fallbacks > 2


@pytest.mark.parametrize(
    "blob",
    [b"", b"{}", b"[]", b"\xff", b'{"channel":"null"}', b'{"channel":"prompts","format":99,"pools":{}}'],
)
def test_foreign_bytes_are_refused(blob: bytes) -> None:
    with pytest.raises(StoreError, match="not a state of the channel 'prompts'"):
        PromptsChannel().load(blob)


def test_a_damaged_pool_is_refused() -> None:
    channel = PromptsChannel()
    blob = channel.dump(two_prompts()).replace(Candidate(system="old").id.encode(), b"0" * 16)
    with pytest.raises(StoreError, match="deployed candidate"):
        channel.load(blob)


def test_init_changes_nothing_and_tasks_do_not_share_a_pool() -> None:
    channel = PromptsChannel()
    bench = bench_of(planted)
    state = channel.init(bench.card, 0)
    assert channel.condition(state, TASK).is_identity
    offer = search(channel, state, bench, 1)
    assert isinstance(offer, Proposal)
    assert not channel.condition(offer.state, TASK).is_identity
    assert channel.condition(offer.state, "another").is_identity
    stream = PromptsChannel(PromptsConfig(scope="stream"))
    offer = search(stream, PromptsState(), bench_of(planted), 1)
    assert isinstance(offer, Proposal)
    assert stream.condition(offer.state, TASK) == stream.condition(offer.state, "another") != Conditioning()


def test_the_empty_prompt_stays_and_the_pool_is_capped() -> None:
    channel = PromptsChannel(PromptsConfig(pool_size=3))
    state = PromptsState()
    for seed in range(6):
        offer = search(channel, state, bench_of(planted if seed % 2 else coin_flip), seed)
        state = offer.state if isinstance(offer, Proposal) else state
        pool = state.pool(TASK)
        assert len(pool.candidates) <= 3
        assert any(c.is_empty for c in pool.candidates)
        assert len({c.id for c in pool.candidates}) == len(pool.candidates)


def test_alternatives_begin_with_the_deployed_prompt() -> None:
    channel, state = PromptsChannel(), two_prompts()
    assert isinstance(channel, Population)
    asked = channel.alternatives(state, TASK, 8, 0)
    assert asked[0] == channel.condition(state, TASK)
    assert [c.system for c in asked] == ["old", "new", None]
    assert channel.alternatives(state, TASK, 1, 0) == asked[:1]
    bare = PromptsChannel(PromptsConfig(empty_alternative=False))
    assert [c.system for c in bare.alternatives(state, TASK, 8, 0)] == ["old", "new"]
    assert bare.alternatives(PromptsState(), TASK, 8, 0) == (Conditioning(),)
    with pytest.raises(ValueError, match="at least 1"):
        channel.alternatives(state, TASK, 0, 0)


def test_the_ledger_can_show_what_is_written() -> None:
    offer = search(PromptsChannel(PromptsConfig(instructions=("One digit.",))), PromptsState(), bench_of(planted), 1)
    assert isinstance(offer, Proposal)
    now = offer.state.pool(TASK).deployed_candidate
    turns = [w for w in offer.writes if w.kind == "exemplar"]
    assert [w.text for w in turns] == [f"user: {q}\nassistant: {a}" for q, a in now.exemplars]
    assert {w.lesson for w in turns} == {now.id}
    assert [w.text for w in offer.writes if w.kind == "system"] == ([now.system] if now.system else [])
    assert "training items" in offer.cause
    assert "\n" not in offer.cause


def test_a_prompt_stays_inside_the_context_of_the_policy() -> None:
    bench = bench_of(planted)
    bench.card = replace(bench.card, context_tokens=60)
    search(PromptsChannel(), PromptsState(), bench, 1)
    lengths = [sum(len(q) + len(a) for q, a in c.exemplars) for call in bench.calls for c in call[1]]
    assert 0 < max(lengths) <= 120


def test_a_config_tells_all_its_mistakes() -> None:
    with pytest.raises(ConfigError) as caught:
        PromptsConfig(pool_size=1, proposers=("exemplar",), num_exemplars=(), instructions=(" ",))
    assert len(caught.value.problems) == 4
    assert "did you mean 'exemplars'" in str(caught.value)
    with pytest.raises(ConfigError, match="needs a reflector"):
        PromptsChannel(PromptsConfig(proposers=("reflective",)))
