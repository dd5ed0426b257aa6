"""A trial that ends as soon as it is decided: its error, its power, its price."""

from __future__ import annotations

from typing import Any

import pytest

from tiny_world import SAMPLING, tiny_task
from twoclock.allocate import PairedTrialGate, SequentialTrialGate
from twoclock.bench import Bench
from twoclock.models.scripted import ScriptedPolicy
from twoclock.seeding import child_rng
from twoclock.types import Budget, Conditioning, Cost, Evidence, Proposal, Timescale, Verdict

TASK = tiny_task()
NOTHING = Evidence(round=1, phase=0, task=TASK.name, groups=(), conditionings={})


class Says:
    """A channel whose state is a system prompt."""

    name = "says"
    timescale = Timescale.FAST

    def condition(self, state: str | None, task: str) -> Conditioning:
        return Conditioning(system=state)


def trial(gate: Any, live: float, offered: float, seed: int, budget: Budget | None = None) -> Verdict:
    """The verdict on a change from one chance of being right to another; each answer draws by its own seed."""

    def script(prompt: str, conditioning: Conditioning, at: int) -> str:
        chance = offered if conditioning.system else live
        return "7" if child_rng("trial", seed, at, prompt, str(conditioning.system)).random() < chance else "\x00"

    bench = Bench(
        ScriptedPolicy(script, name="scripted"), TASK, others=Conditioning(), sampling=SAMPLING, budget=budget
    )
    offer: Proposal[Any] = Proposal(channel="says", state="new", cause="test", cost=Cost())
    verdict: Verdict = gate.judge(bench, Says(), None, offer, NOTHING, Budget(), seed)
    assert bench.spent.rollouts == verdict.cost.rollouts
    return verdict


GATE = SequentialTrialGate(trial_items=40)


def test_a_change_without_effect_is_accepted_at_most_at_alpha() -> None:
    verdicts = [trial(GATE, 0.5, 0.5, seed) for seed in range(120)]
    assert sum(v.accepted for v in verdicts) <= 10, "5 % of 120 is 6; more than 10 has a chance of 4 %"


def test_what_is_plain_is_decided_early() -> None:
    good = [trial(GATE, 0.05, 0.95, seed) for seed in range(10)]
    assert all(v.accepted for v in good)
    assert max(v.cost.rollouts for v in good) <= 48
    bad = [trial(GATE, 0.9, 0.1, seed) for seed in range(10)]
    assert not any(v.accepted for v in bad)
    assert max(v.cost.rollouts for v in bad) <= 32
    fixed = trial(PairedTrialGate(trial_items=40), 0.05, 0.95, 0)
    assert fixed.cost.rollouts == 80


def test_a_stricter_level_takes_more_items() -> None:
    loose = [
        trial(SequentialTrialGate(trial_items=40, alpha=0.2), 0.2, 0.8, s).metrics["trial_items"] for s in range(8)
    ]
    strict = [
        trial(SequentialTrialGate(trial_items=40, alpha=0.001), 0.2, 0.8, s).metrics["trial_items"] for s in range(8)
    ]
    assert sum(strict) > sum(loose)


def test_dear_rollouts_end_a_trial_that_says_little() -> None:
    cheap = trial(SequentialTrialGate(trial_items=40, price=0.0), 0.5, 0.5, 1)
    dear = trial(SequentialTrialGate(trial_items=40, price=50.0), 0.5, 0.5, 1)
    assert cheap.cost.rollouts == 80
    assert dear.cost.rollouts == 16
    assert "not worth its rollouts" in dear.reason


@pytest.mark.parametrize("rollouts", [0, 5, 20, 30])
def test_it_stays_inside_its_bench(rollouts: int) -> None:
    verdict = trial(GATE, 0.5, 0.6, 3, Budget(rollouts=rollouts))
    assert verdict.cost.rollouts <= rollouts
    assert verdict.accepted is False
