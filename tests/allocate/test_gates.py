"""Gates: what is let through, what is not, why, and at what price."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from twoclock.allocate import AcceptGate, DriftGate, GateConfig, PairedTrialGate, gate_for
from twoclock.contracts import Gate
from twoclock.errors import BudgetError, ConfigError, NumericsError, UnsupportedError
from twoclock.seeding import child_rng, child_seed
from twoclock.types import (
    Budget,
    Completion,
    Conditioning,
    Cost,
    Delta,
    Evidence,
    Grade,
    Group,
    Item,
    PolicyCard,
    Proposal,
    Rollout,
    Timescale,
)

EVIDENCE = Evidence(round=1, phase=0, task="t", groups=(), conditionings={})
BASE = "b" * 64
DELTA = Delta(id="d1", kind="fake", base=BASE, payload=None)
RewardFn = Callable[[Item, Conditioning, int], float]


class Model:
    """exact_kl by a table: KL is 0 for equal weights, ``forward`` where p has the delta, ``backward`` where q has."""

    def __init__(self, forward: float, backward: float) -> None:
        self.forward, self.backward = forward, backward
        self.calls: list[tuple[tuple[str, ...], tuple[tuple[int, ...], ...], Conditioning, Conditioning]] = []

    def exact_kl(
        self, prompts: Sequence[str], completions: Sequence[Sequence[int]], p: Conditioning, q: Conditioning
    ) -> list[float]:
        self.calls.append((tuple(prompts), tuple(tuple(c) for c in completions), p, q))
        value = 0.0 if p.delta == q.delta else self.forward if p.delta else self.backward
        return [value] * len(prompts)


class Bench:
    def __init__(
        self,
        reward: RewardFn,
        *,
        rollouts: int | None = None,
        refuse: bool = False,
        trial: int = 200,
        model: Model | None = None,
        others: Conditioning | None = None,
        empty: bool = False,
    ) -> None:
        self.reward, self.rollouts, self.refuse, self.model, self.empty = reward, rollouts, refuse, model, empty
        self.trial = tuple(Item(id=f"i{n}", prompt=f"q{n}") for n in range(trial))
        self.spent = Cost()
        self.card = PolicyCard(name="fake", base_hash=BASE, trainable=model is not None, context_tokens=100)
        self.others = others or Conditioning()
        self.splits: list[str] = []

    @property
    def rollouts_left(self) -> int | None:
        return None if self.rollouts is None else self.rollouts - self.spent.rollouts

    def items(self, split: str, count: int, seed: int) -> tuple[Item, ...]:
        self.splits.append(split)
        return tuple(child_rng("items", seed).sample(self.trial, min(count, len(self.trial))))

    def roll_out(
        self, items: Sequence[Item], conditionings: Sequence[Conditioning], samples: int, seed: int
    ) -> tuple[Group, ...]:
        count = len(items) * len(conditionings) * samples
        if self.refuse or (self.rollouts is not None and self.spent.rollouts + count > self.rollouts):
            raise BudgetError(f"{count} rollouts asked for")
        self.spent = self.spent + Cost(rollouts=count)

        def one(item: Item, conditioning: Conditioning, sample: int) -> Rollout:
            own = child_seed("rollout", seed, item.id, sample)
            tokens = () if self.empty else (2 if conditioning.delta else 1,)
            done = Completion(tokens=tokens, logprobs=(), text="", finish="stop", prompt_tokens=1)
            grade = Grade(reward=self.reward(item, conditioning, own))
            return Rollout(item_id=item.id, conditioning_id=conditioning.id, seed=own, completion=done, grade=grade)

        return tuple(
            Group(item=i, rollouts=tuple(one(i, c, s) for c in conditionings for s in range(samples))) for i in items
        )

    def trainable(self) -> Model:
        if self.model is None:
            raise UnsupportedError("a remote policy has no weights")
        return self.model


class Direct:
    """A channel whose state is its conditioning."""

    name = "direct"
    timescale = Timescale.FAST

    def condition(self, state: Conditioning, task: str) -> Conditioning:
        return state


OLD, NEW = Conditioning(system="old"), Conditioning(system="new")


def judge(
    gate: Gate,
    bench: Bench,
    *,
    live: Conditioning = OLD,
    offered: Conditioning = NEW,
    budget: Budget | None = None,
    metrics: dict[str, float] | None = None,
    seed: int = 0,
) -> Any:
    channel: Any = Direct()
    handle: Any = bench
    proposal = Proposal(channel="direct", state=offered, cause="test", cost=Cost(), metrics=metrics or {})
    return gate.judge(handle, channel, live, proposal, EVIDENCE, budget or Budget(), seed)


def better(item: Item, c: Conditioning, seed: int) -> float:
    return float(child_seed("r", seed, c.id) % 100 < (70 if c.system == "new" else 20))


def coin(item: Item, c: Conditioning, seed: int) -> float:
    return float(child_seed("r", seed, c.id) % 2)


# ------------------------------------------------------------------------------------------------------ paired trials


def test_what_is_better_on_fresh_items_is_accepted() -> None:
    bench = Bench(better)
    verdict = judge(PairedTrialGate(), bench)
    assert verdict.accepted
    assert bench.splits == ["trial"]
    assert verdict.cost.rollouts == bench.spent.rollouts == 96
    assert "48 fresh items" in verdict.reason
    assert verdict.metrics["trial_gain"] == pytest.approx(
        verdict.metrics["trial_offered"] - verdict.metrics["trial_live"]
    )
    assert verdict.metrics["trial_gain"] > 0.2


def test_what_is_worse_is_rejected_with_its_numbers() -> None:
    verdict = judge(PairedTrialGate(), Bench(better), live=NEW, offered=OLD)
    assert not verdict.accepted
    assert "> α = 0.05" in verdict.reason
    assert verdict.metrics["trial_gain"] < 0


@pytest.mark.parametrize("samples", [1, 3])
def test_a_change_without_effect_passes_at_most_alpha_of_the_time(samples: int) -> None:
    gate = PairedTrialGate(trial_items=24, samples=samples)
    accepted = sum(judge(gate, Bench(coin), seed=seed).accepted for seed in range(300))
    assert accepted <= 25, f"{accepted} of 300; 15 are expected"
    assert sum(judge(PairedTrialGate(alpha=0.5), Bench(coin), seed=seed).accepted for seed in range(60)) > 10


def test_the_pairs_are_of_one_item_and_all_its_samples() -> None:
    def by_item(item: Item, c: Conditioning, seed: int) -> float:
        return (int(item.id[1:]) % 7) / 8 + (0.125 if c.system == "new" else 0.0)

    verdict = judge(PairedTrialGate(trial_items=20, samples=2), Bench(by_item))  # huge spread, constant difference
    assert verdict.accepted
    assert verdict.metrics["trial_gain"] == pytest.approx(0.125)
    assert verdict.metrics["trial_p"] == pytest.approx(2.0**-20)


def test_the_same_prompt_passes_without_a_trial() -> None:
    bench = Bench(coin)
    verdict = judge(PairedTrialGate(), bench, offered=OLD)
    assert verdict.accepted
    assert "pool only" in verdict.reason
    assert bench.spent == Cost()


def test_a_small_budget_shrinks_the_trial_and_a_tiny_one_rejects() -> None:
    bench = Bench(better, rollouts=41)
    verdict = judge(PairedTrialGate(), bench)
    assert verdict.metrics["trial_items"] == 20
    bench = Bench(better, rollouts=9)
    verdict = judge(PairedTrialGate(), bench)
    assert not verdict.accepted
    assert "no trial: 4 items, at least 5 needed" in verdict.reason
    assert bench.spent == Cost()
    verdict = judge(PairedTrialGate(), Bench(better, trial=3))
    assert not verdict.accepted
    assert "3 items" in verdict.reason


def test_a_refused_trial_and_bad_numbers_are_rejections() -> None:
    verdict = judge(PairedTrialGate(), Bench(better, refuse=True))
    assert not verdict.accepted
    assert "rollouts asked for" in verdict.reason
    for gate in (PairedTrialGate(), AcceptGate(), DriftGate()):
        verdict = judge(gate, Bench(better), metrics={"loss": math.nan, "norm": math.inf, "fine": 1.0})
        assert not verdict.accepted
        assert verdict.reason == "not finite: loss = nan, norm = inf"


def test_the_same_seed_gives_the_same_verdict() -> None:
    assert judge(PairedTrialGate(), Bench(coin), seed=3) == judge(PairedTrialGate(), Bench(coin), seed=3)


# ------------------------------------------------------------------------------------------------------------- drift

SLOW = Conditioning(delta=DELTA)


def test_within_the_drift_budget_in_both_directions() -> None:
    for forward, backward, accepted in ((0.1, 0.1, True), (0.3, 0.1, False), (0.1, 0.3, False), (0.2, 0.2, True)):
        bench = Bench(coin, model=Model(forward, backward))
        verdict = judge(DriftGate(), bench, live=Conditioning(), offered=SLOW, budget=Budget(drift=0.2))
        assert verdict.accepted is accepted, verdict.reason
        assert verdict.metrics == {"drift_live_base": forward, "drift_base_live": backward}
        assert f"{max(forward, backward):.4g}" in verdict.reason
        assert verdict.cost.rollouts == bench.spent.rollouts == 16


def test_each_direction_runs_along_its_own_samples_under_the_other_channels() -> None:
    model = Model(0.1, 0.1)
    bench = Bench(coin, model=model, others=Conditioning(system="learned"))
    judge(DriftGate(), bench, live=Conditioning(), offered=SLOW, budget=Budget(drift=0.2))
    (_, sampled_live, p, q), (_, sampled_base, p2, q2) = model.calls
    assert set(sampled_live) == {(2,)}
    assert set(sampled_base) == {(1,)}
    assert p == q2 == Conditioning(system="learned", delta=DELTA)
    assert q == p2 == Conditioning(system="learned")
    assert bench.splits == ["trial"]


def test_without_a_drift_budget_nothing_is_measured() -> None:
    bench = Bench(coin)
    assert judge(DriftGate(), bench, live=Conditioning(), offered=SLOW).accepted
    assert bench.spent == Cost()


def test_the_base_itself_does_not_drift() -> None:
    verdict = judge(DriftGate(), Bench(coin), live=SLOW, offered=Conditioning(), budget=Budget(drift=0.0))
    assert verdict.accepted
    assert verdict.metrics["drift_live_base"] == 0.0


def test_a_delta_of_another_base_is_rejected() -> None:
    foreign = Conditioning(delta=Delta(id="x", kind="fake", base="c" * 64, payload=None))
    verdict = judge(DriftGate(), Bench(coin), live=Conditioning(), offered=foreign)
    assert not verdict.accepted
    assert "cccccccccccc" in verdict.reason


def test_what_cannot_be_measured_is_rejected() -> None:
    tight = Budget(drift=0.2)
    assert "no weights" in judge(DriftGate(), Bench(coin), offered=SLOW, budget=tight).reason
    short = Bench(coin, model=Model(0.1, 0.1), rollouts=3)
    assert "rollouts asked for" in judge(DriftGate(), short, offered=SLOW, budget=tight).reason
    silent = Bench(coin, model=Model(0.1, 0.1), empty=True)
    assert "empty" in judge(DriftGate(), silent, offered=SLOW, budget=tight).reason
    verdict = judge(DriftGate(), Bench(coin, model=Model(math.nan, 0.1)), offered=SLOW, budget=tight)
    assert not verdict.accepted
    assert "not finite" in verdict.reason


def test_a_meter_of_ones_own() -> None:
    asked = []

    def meter(bench: Any, offered: Conditioning, seed: int) -> tuple[float, float]:
        asked.append(offered)
        return 0.5, 0.1

    verdict = judge(DriftGate(meter=meter), Bench(coin), offered=SLOW, budget=Budget(drift=0.4))
    assert not verdict.accepted
    assert asked == [SLOW]

    def broken(bench: Any, offered: Conditioning, seed: int) -> tuple[float, float]:
        raise NumericsError("logits are NaN")

    assert "logits are NaN" in judge(DriftGate(meter=broken), Bench(coin), offered=SLOW, budget=Budget(drift=1)).reason


# ----------------------------------------------------------------------------------------------------------- choosing


def test_the_gate_follows_the_clock_and_the_config() -> None:
    assert gate_for(Timescale.FAST) == PairedTrialGate(trial_items=48, samples=1, alpha=0.05)
    assert gate_for(Timescale.SLOW) == DriftGate()
    config = GateConfig(fast="accept", slow="paired", trial_items=20, trial_samples=2, alpha=0.1)
    assert gate_for(Timescale.FAST, config) == AcceptGate()
    assert gate_for(Timescale.SLOW, config) == PairedTrialGate(trial_items=20, samples=2, alpha=0.1)


def test_a_bad_gate_config_tells_all() -> None:
    with pytest.raises(ConfigError) as caught:
        GateConfig(fast="pared", trial_items=3, trial_samples=0)  # type: ignore[arg-type]
    assert len(caught.value.problems) == 3
    assert "did you mean 'paired'" in str(caught.value)
    assert "too few to reach alpha" in str(caught.value)
    with pytest.raises(ConfigError, match="between 0 and 1"):
        GateConfig(alpha=5)
