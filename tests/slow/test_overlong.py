"""``overlong``: answers that reach the token limit are learned from, left out of the loss, or paid less."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from credit_table import PLAIN, table, told  # noqa: E402
from lora_world import (  # noqa: E402
    TEXTS,
    assert_same_gradient,
    bench,
    learned_gradient,
    make_evidence,
    weighed_gradient,
    with_lengths,
)

from tiny_models import make_policy  # noqa: E402
from twoclock.models.local import LocalPolicy  # noqa: E402
from twoclock.nn.objective_table import OBJECTIVES  # noqa: E402
from twoclock.slow.config import TrainingConfig  # noqa: E402
from twoclock.slow.credit import Credited, credit_rewards  # noqa: E402
from twoclock.slow.lora import LoraChannel, LoraConfig  # noqa: E402
from twoclock.types import Budget, Declined, Evidence, Proposal  # noqa: E402

CONFIG = LoraConfig(
    objective="dr_grpo", rank=3, alpha=6.0, targets=("q_proj", "v_proj", "down_proj"), beta1=0.0, max_grad_norm=1e9
)
LIMIT = 6


def credit(evidence: Evidence, objective: str = "dr_grpo", **config: Any) -> list[list[Credited]]:
    chosen = TrainingConfig(objective=objective, **config)
    return credit_rewards(chosen, OBJECTIVES[objective], evidence, 0.0, None)


def values(evidence: Evidence, objective: str = "dr_grpo", **config: Any) -> list[Any]:
    return [c.advantage for row in credit(evidence, objective, **config) for c in row]


# ------------------------------------------------------------------------------------------------------------- by hand


@pytest.mark.parametrize(
    ("buffer", "penalties"),
    [
        (1, (0, 0, 0, 0, 0, 0, -1)),
        (2, (0, 0, 0, 0, 0, -0.5, -1)),
        (4, (0, 0, 0, -0.25, -0.5, -0.75, -1)),
        (6, (0, -1 / 6, -2 / 6, -3 / 6, -4 / 6, -5 / 6, -1)),
        (60, (0, -1 / 6, -2 / 6, -3 / 6, -4 / 6, -5 / 6, -1)),  # no longer than the limit itself
    ],
)
def test_the_soft_penalty_at_each_length(buffer: int, penalties: tuple[float, ...]) -> None:
    """All earn the same, so the advantages are the penalties less their mean."""
    evidence = table([told(PLAIN, 1.0, length) for length in range(LIMIT + 1)])
    mean = sum(penalties) / len(penalties)
    assert values(evidence, overlong="soft", overlong_buffer=buffer) == pytest.approx([p - mean for p in penalties])


def test_a_right_answer_that_is_too_long_may_earn_less_than_a_wrong_one() -> None:
    evidence = table([told(PLAIN, 1.0, 6), told(PLAIN, 0.25, 2)])
    assert values(evidence) == pytest.approx([0.375, -0.375])
    assert values(evidence, overlong="soft") == pytest.approx([-0.125, 0.125])


def test_without_an_option_length_is_nothing() -> None:
    evidence = table([told(PLAIN, 1.0, 6), told(PLAIN, 0.0, 2)])
    assert values(evidence) == values(evidence, overlong_buffer=6) == [0.5, -0.5]


@pytest.mark.parametrize(("objective", "expected"), [("dr_grpo", -1 / 3), ("rloo", -1 / 2), ("reinforce", -1 / 2)])
def test_what_is_masked_still_counts_in_the_mean(objective: str, expected: float) -> None:
    """It is left out of the loss, not out of what the others are held against."""
    evidence = table([told(PLAIN, 1.0, 6), told(PLAIN, 0.0, 5), told(PLAIN, 0.0, 2)])
    (row,) = credit(evidence, objective, overlong="mask")
    assert [c.teaches for c in row] == [False, True, True]
    assert [c.advantage for c in row] == pytest.approx([0.0, expected, expected])


def test_the_mask_goes_by_the_cut_and_not_by_the_length() -> None:
    """An answer that ended with the last token that was allowed was not cut off."""
    evidence = table([told(PLAIN, 1.0, 6), told(PLAIN, 0.0, 2)], limit=7)
    assert values(evidence, overlong="mask") == [0.5, -0.5]
    (ended, _) = table([told(PLAIN, 1.0, 6), told(PLAIN, 0.0, 2)]).groups[0].rollouts
    assert ended.completion.finish == "length"


def test_a_mask_takes_the_kl_along() -> None:
    evidence = table([told(PLAIN, 1.0, 6), told(PLAIN, 0.0, 2)])
    kl = {id(r): value for r, value in zip(evidence.rollouts, (3.0, 1.0), strict=True)}
    config = TrainingConfig(objective="dr_grpo", overlong="mask", kl="k1_reward", kl_coef=0.1)
    ((one, two),) = credit_rewards(config, OBJECTIVES["dr_grpo"], evidence, 0.1, kl)
    assert one.advantage == 0.0
    assert two.advantage == pytest.approx(-0.5 + 0.1 * 1.0)  # its KL is one below the mean of both


# ------------------------------------------------------------------------------------------------------ on a real model


@pytest.fixture(scope="module")
def policy() -> LocalPolicy:
    return make_policy("llama")


def offer(policy: LocalPolicy, evidence: Evidence, config: LoraConfig) -> Any:
    channel = LoraChannel(config)
    state = channel.started(channel.init(policy.card, 0), policy)
    return state, channel.propose(bench(policy), state, evidence, Budget(), 4)


@pytest.fixture(scope="module")
def lengths(policy: LocalPolicy) -> Evidence:
    """Two groups; the first earns all the same."""
    evidence = make_evidence(policy, rewards=[(1.0,) * 4, (1.0, 0.0, 0.0, 1.0)], texts=TEXTS[:1])
    return with_lengths(with_lengths(evidence, 0, (3, 4, 5, 6)), 1, (6, 2, 6, 4))


@pytest.mark.parametrize(
    ("overlong", "advantages"),
    [
        ("keep", (0, 0, 0, 0, 0.5, -0.5, -0.5, 0.5)),
        ("mask", (0, 0, 0, 0, 0, -0.5, 0, 0.5)),
        # Paid 1, 1, 0.5, 0 and 0, 0, −1, 1; means 0.625 and 0.
        ("soft", (0.375, 0.375, -0.125, -0.625, 0, 0, -1, 1)),
    ],
)
def test_the_step_is_that_of_the_advantages_by_hand(
    policy: LocalPolicy, lengths: Evidence, overlong: Any, advantages: tuple[float, ...]
) -> None:
    """Divided by rollouts × limit, those that are left out included."""
    state, proposal = offer(policy, lengths, replace(CONFIG, overlong=overlong, overlong_buffer=2))
    assert isinstance(proposal, Proposal), proposal
    weights = {
        id(r): [a / (8 * LIMIT)] * len(r.completion.tokens) for r, a in zip(lengths.rollouts, advantages, strict=True)
    }
    assert_same_gradient(learned_gradient(state, proposal.state), weighed_gradient(policy, state, lengths, weights))
    taught = [r for r, a in zip(lengths.rollouts, advantages, strict=True) if a]
    read = sum(policy.prompt_tokens(g.item.prompt, TEXTS[0]) for g in lengths.groups if set(taught) & set(g.rollouts))
    assert proposal.cost.trained_tokens == read + sum(len(r.completion.tokens) for r in taught)


def test_a_group_may_live_by_its_lengths_alone(policy: LocalPolicy, lengths: Evidence) -> None:
    alike = replace(lengths, groups=lengths.groups[:1])
    _, kept = offer(policy, alike, CONFIG)
    assert isinstance(kept, Declined)
    assert "all 1 groups are dead" in kept.reason
    _, paid = offer(policy, alike, replace(CONFIG, overlong="soft"))
    assert isinstance(paid, Proposal)


def test_where_everything_was_cut_off_the_reason_says_so(policy: LocalPolicy, lengths: Evidence) -> None:
    cut = with_lengths(lengths, 1, (6, 6, 6, 6))
    _, result = offer(policy, cut, replace(CONFIG, overlong="mask"))
    assert isinstance(result, Declined)
    assert 'cut off at the token limit, and overlong = "mask" leaves those out' in result.reason
    assert "raise [sampling] max_new_tokens" in result.reason
