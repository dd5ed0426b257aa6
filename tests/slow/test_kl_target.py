"""``kl_target``: the coefficient of the KL follows what the KL of the rollouts is, and is part of the state."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from lora_world import TEXTS, bench, make_evidence, merged, plain_logprobs  # noqa: E402

from tiny_models import make_policy  # noqa: E402
from twoclock.models.local import LocalPolicy  # noqa: E402
from twoclock.slow.channel import FIRST_KL_COEF  # noqa: E402
from twoclock.slow.full import FullChannel, FullConfig  # noqa: E402
from twoclock.slow.lora import LoraChannel, LoraConfig  # noqa: E402
from twoclock.types import Budget, Declined, Evidence, Proposal  # noqa: E402

LORA = LoraConfig(rank=3, alpha=6.0, targets=("q_proj", "v_proj", "down_proj"), learning_rate=0.03)
FULL = FullConfig(targets=("q_proj", "down_proj"), learning_rate=0.01)
STEERED = {"kl": "k1_reward", "kl_target": 1.0, "kl_coef": 0.1}


@pytest.fixture(scope="module")
def policy() -> LocalPolicy:
    return make_policy("llama")


@pytest.fixture(scope="module")
def evidence(policy: LocalPolicy) -> Evidence:
    return make_evidence(policy)


def channel_of(config: Any) -> Any:
    return LoraChannel(config) if isinstance(config, LoraConfig) else FullChannel(config)


def offer(policy: LocalPolicy, evidence: Evidence, config: Any, state: Any) -> Proposal[Any]:
    found = channel_of(config).propose(bench(policy), state, evidence, Budget(), 4)
    assert isinstance(found, Proposal), found
    return found


@pytest.fixture(scope="module")
def moved(policy: LocalPolicy) -> Mapping[str, Any]:
    """A state of each channel a few rounds away from the base, steered by nothing."""
    found = {}
    for name, config in (("lora", LORA), ("full", FULL)):
        state = channel_of(config).init(policy.card, 0)
        for seed in range(3):
            state = offer(policy, make_evidence(policy, seed=seed + 1), config, state).state
        found[name] = state
    return found


@pytest.fixture(scope="module")
def here(policy: LocalPolicy, moved: Mapping[str, Any]) -> Mapping[str, Evidence]:
    """Rollouts under each state's own weights, so that the KL is above 0 as it is in a run."""
    return {
        name: make_evidence(policy, texts=[replace(text, delta=state.delta) for text in TEXTS], seed=9)
        for name, state in moved.items()
    }


def kl_by_hand(policy: LocalPolicy, evidence: Evidence, state: Any) -> float:
    """Σ log π/π_base over all tokens, divided by all tokens; those of dead groups too."""
    weights = merged(policy, state.tensors, state.scale)
    logs = []
    for group in evidence.groups:
        for rollout in group.rollouts:
            now, base = (plain_logprobs(policy, w, rollout, group.item.prompt, evidence) for w in (weights, {}))
            logs += (now - base).detach().tolist()
    return sum(logs) / len(logs)


@pytest.mark.parametrize("kl", ["k1_reward", "k2_loss", "k3_loss"])
def test_the_kl_that_steers_is_that_of_the_rollouts(
    policy: LocalPolicy, evidence: Evidence, moved: Mapping[str, Any], kl: str
) -> None:
    """Over every rollout of the round, in each form: what a rollout was paid says nothing of how far it has drifted."""
    found = offer(policy, evidence, replace(LORA, **STEERED | {"kl": kl}), moved["lora"]).metrics["kl_base"]
    assert found == pytest.approx(kl_by_hand(policy, evidence, moved["lora"]), rel=1e-3)
    assert abs(found) > 0.01


@pytest.mark.parametrize(("factor", "times"), [(1.51, 2.0), (1.49, 1.0), (1.0, 1.0), (1 / 1.49, 1.0), (1 / 1.51, 0.5)])
@pytest.mark.parametrize("kl", ["k1_reward", "k2_loss"])
@pytest.mark.parametrize("name", ["lora", "full"])
def test_it_doubles_above_the_target_and_halves_below(
    policy: LocalPolicy,
    moved: Mapping[str, Any],
    here: Mapping[str, Evidence],
    name: str,
    kl: str,
    factor: float,
    times: float,
) -> None:
    """``factor`` is the KL over the target: between 1/1.5 and 1.5 nothing changes."""
    config: Any = replace(LORA if name == "lora" else FULL, **STEERED | {"kl": kl})
    measured = offer(policy, here[name], config, moved[name]).metrics["kl_base"]
    assert measured > 0.01
    proposal = offer(policy, here[name], replace(config, kl_target=measured / factor), moved[name])
    assert proposal.metrics["kl_coef"] == 0.1
    assert proposal.state.kl_coef == pytest.approx(0.1 * times)


def test_the_steered_coefficient_is_the_next_rounds(
    policy: LocalPolicy, moved: Mapping[str, Any], here: Mapping[str, Evidence]
) -> None:
    """Round after round below a target that is far away: halved each time, and what is used is what is told."""
    config, state = replace(LORA, **STEERED | {"kl_target": 50.0, "learning_rate": 1e-6}), moved["lora"]
    used = []
    for _ in range(4):
        proposal = offer(policy, here["lora"], config, state)
        used.append(proposal.metrics["kl_coef"])
        state = proposal.state
    assert used == [0.1, 0.05, 0.025, 0.0125]
    # The same gradient as with that coefficient set by hand: it is not only told.
    fixed = replace(config, kl_target=None, kl_coef=0.0125)
    last = offer(policy, here["lora"], config, replace(moved["lora"], kl_coef=0.0125))
    by_hand = offer(policy, here["lora"], fixed, moved["lora"])
    assert last.metrics["grad_norm"] == by_hand.metrics["grad_norm"]
    assert last.state.delta == by_hand.state.delta
    other = offer(policy, here["lora"], replace(fixed, kl_coef=0.1), moved["lora"])
    assert other.metrics["grad_norm"] != by_hand.metrics["grad_norm"]


def test_a_target_alone_begins_with_a_coefficient_of_its_own(policy: LocalPolicy, evidence: Evidence) -> None:
    config = replace(LORA, kl="k1_reward", kl_target=0.05)
    proposal = offer(policy, evidence, config, LoraChannel(config).init(policy.card, 0))
    assert proposal.metrics["kl_coef"] == FIRST_KL_COEF
    assert proposal.metrics["kl_base"] == pytest.approx(0.0, abs=1e-6)
    assert proposal.state.kl_coef == FIRST_KL_COEF / 2


@pytest.mark.parametrize("name", ["lora", "full"])
def test_it_is_dumped_loaded_and_goes_on_from_there(
    policy: LocalPolicy, moved: Mapping[str, Any], here: Mapping[str, Evidence], name: str
) -> None:
    config: Any = replace(LORA if name == "lora" else FULL, **STEERED)
    channel = channel_of(config)
    state = offer(policy, here[name], replace(config, kl_target=50.0), moved[name]).state
    assert state.kl_coef == 0.05
    back = channel.load(channel.dump(state))
    assert back.kl_coef == 0.05
    one, two = (offer(policy, here[name], config, s) for s in (state, back))
    assert two.metrics["kl_coef"] == 0.05
    assert channel.dump(one.state) == channel.dump(two.state)
    assert channel.dump(state) != channel.dump(replace(state, kl_coef=0.1))


def test_a_fresh_state_keeps_its_coefficient_when_it_gets_its_tensors(policy: LocalPolicy) -> None:
    for channel in (LoraChannel(LORA), FullChannel(FULL)):
        state: Any = replace(channel.init(policy.card, 0), kl_coef=0.3)
        assert channel.started(state, policy).kl_coef == 0.3


def test_without_a_target_the_configured_coefficient_holds(
    policy: LocalPolicy, evidence: Evidence, moved: Mapping[str, Any]
) -> None:
    """Also for a state that was steered in another run: what is written down is what is used."""
    steered = replace(moved["lora"], kl_coef=0.7)
    fixed = offer(policy, evidence, replace(LORA, kl="k1_reward", kl_coef=0.2), steered)
    assert fixed.metrics["kl_coef"] == 0.2
    assert fixed.state.kl_coef == 0.0
    free = offer(policy, evidence, LORA, steered)
    assert (free.metrics["kl_coef"], free.state.kl_coef) == (0.0, 0.0)


def test_a_kl_in_the_loss_counts_groups_that_pay_nothing(policy: LocalPolicy, moved: Mapping[str, Any]) -> None:
    """A policy that has collapsed has dead groups alone, and must still be drawn back to the base."""
    dead = make_evidence(policy, rewards=[(0.5,) * 4])
    config = replace(LORA, **STEERED | {"kl": "k2_loss", "kl_coef": 5.0})
    state, kls = moved["lora"], []
    for _ in range(4):
        proposal = offer(policy, dead, config, state)
        kls.append(proposal.metrics["kl_base"])
        state = proposal.state
    assert "0 groups" in proposal.cause
    assert abs(kls[-1]) < 0.8 * abs(kls[0])
    fresh = LoraChannel(config).init(policy.card, 0)
    declined = LoraChannel(config).propose(bench(policy), fresh, dead, Budget(), 0)
    assert isinstance(declined, Declined), "at the base there is nothing to draw back"


@pytest.mark.parametrize(("target", "bound"), [(50.0, 0.1 / 8), (1e-6, 0.1 * 64)])
def test_the_coefficient_stays_in_its_range(
    policy: LocalPolicy, moved: Mapping[str, Any], here: Mapping[str, Evidence], target: float, bound: float
) -> None:
    config, state = replace(LORA, **STEERED | {"kl_target": target, "learning_rate": 1e-6}), moved["lora"]
    for _ in range(9):
        state = offer(policy, here["lora"], config, state).state
    assert state.kl_coef == pytest.approx(bound)
