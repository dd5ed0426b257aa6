"""``grouping = "prompt"``: one mean a prompt of an item; and how much of the reward lies between prompts."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from credit_table import BRIEF, PLAIN, table, told  # noqa: E402
from lora_world import (  # noqa: E402
    assert_same_gradient,
    bench,
    learned_gradient,
    make_evidence,
    weighed_gradient,
)

from tiny_models import make_policy  # noqa: E402
from twoclock.errors import ConfigError  # noqa: E402
from twoclock.models.local import LocalPolicy  # noqa: E402
from twoclock.nn.objective_table import OBJECTIVES  # noqa: E402
from twoclock.slow.config import TrainingConfig  # noqa: E402
from twoclock.slow.credit import between_prompts, credit_rewards  # noqa: E402
from twoclock.slow.lora import LoraChannel, LoraConfig  # noqa: E402
from twoclock.types import Budget, Conditioning, Declined, Delta, Evidence, Proposal  # noqa: E402

HALF = math.sqrt(0.5)
"""What either of two different rewards earns: ± (a − b)/2 over a deviation of |a − b|/√2."""


def values(evidence: Evidence, objective: str = "grpo", **config: Any) -> list[Any]:
    chosen = TrainingConfig(objective=objective, grouping="prompt", **config)
    rows = credit_rewards(chosen, OBJECTIVES[objective], evidence, 0.0, None)
    return [c.advantage for row in rows for c in row]


# ------------------------------------------------------------------------------------------------------------- by hand


def test_each_prompt_of_an_item_has_a_mean_and_deviation_of_its_own() -> None:
    evidence = table(
        [told(PLAIN, 1.0), told(BRIEF, 0.2), told(PLAIN, 0.0), told(BRIEF, 0.4)],
        [told(PLAIN, 1.0), told(PLAIN, 1.0), told(BRIEF, 0.0), told(BRIEF, 0.0)],
    )
    assert values(evidence) == pytest.approx([HALF, -HALF, -HALF, HALF, 0, 0, 0, 0], abs=1e-5)
    assert values(evidence, "dr_grpo") == pytest.approx([0.5, -0.1, -0.5, 0.1, 0, 0, 0, 0])
    assert values(evidence, "rloo") == pytest.approx([1.0, -0.2, -1.0, 0.2, 0, 0, 0, 0])


def test_across_prompts_the_same_group_has_one_mean() -> None:
    evidence = table([told(PLAIN, 1.0), told(PLAIN, 1.0), told(BRIEF, 0.0), told(BRIEF, 0.0)])
    (row,) = credit_rewards(TrainingConfig(), OBJECTIVES["grpo"], evidence, 0.0, None)
    std = math.sqrt(4 * 0.25 / 3)
    assert [c.advantage for c in row] == pytest.approx([0.5 / std] * 2 + [-0.5 / std] * 2, rel=1e-5)


def test_a_prompt_is_its_text_whatever_weights_it_was_sampled_with() -> None:
    before = replace(BRIEF, delta=Delta("then", "lora", "base", None))
    noted = replace(BRIEF, notes=("remember",))
    evidence = table([told(BRIEF, 1.0), told(before, 0.0)])
    assert values(evidence, "dr_grpo") == [0.5, -0.5]
    evidence = table([told(BRIEF, 1.0), told(BRIEF, 0.0), told(noted, 0.0), told(noted, 0.5)])
    assert values(evidence, "dr_grpo") == [0.5, -0.5, -0.25, 0.25]


def test_the_kl_of_a_reward_is_centred_within_the_prompt_too() -> None:
    evidence = table([told(PLAIN, 1.0), told(PLAIN, 0.0), told(BRIEF, 0.0), told(BRIEF, 0.0)])
    kl = {id(r): value for r, value in zip(evidence.rollouts, (3.0, 1.0, 10.0, 10.5), strict=True)}
    config = TrainingConfig(objective="dr_grpo", grouping="prompt", kl="k1_reward", kl_coef=0.2)
    (row,) = credit_rewards(config, OBJECTIVES["dr_grpo"], evidence, 0.2, kl)
    assert [c.advantage for c in row] == pytest.approx([0.5 - 0.2, -0.5 + 0.2, 0.05, -0.05])


@pytest.mark.parametrize(
    ("cells", "counts"),
    [
        ([told(PLAIN, 1.0), told(BRIEF, 0.0)], "1, 1"),
        ([told(PLAIN, 1.0), told(PLAIN, 0.0), told(BRIEF, 0.5)], "2, 1"),
    ],
)
def test_where_a_prompt_has_one_rollout_it_is_refused(cells: Any, counts: str) -> None:
    with pytest.raises(ConfigError) as caught:
        values(table([told(PLAIN, 1.0), told(PLAIN, 0.0)], cells))
    assert f"item 'item-1' has {counts}: raise [rollouts] per_item" in str(caught.value)
    assert "at least two rollouts of an item under each prompt" in str(caught.value)


@pytest.mark.parametrize(
    ("cells", "share"),
    [
        ([told(PLAIN, 1.0), told(PLAIN, 1.0), told(BRIEF, 0.0), told(BRIEF, 0.0)], 1.0),
        ([told(PLAIN, 1.0), told(PLAIN, 0.0), told(BRIEF, 0.0), told(BRIEF, 1.0)], 0.0),
        # Mean 1/4: the whole is 9/16 + 3/16 = 3/4, the prompts' means lie 1/4 off: 4/16.
        ([told(PLAIN, 1.0), told(PLAIN, 0.0), told(BRIEF, 0.0), told(BRIEF, 0.0)], 1 / 3),
        # Of different sizes: mean 1/4; means 1/3 and 0: 3/144 + 1/16 of 3/4.
        ([told(PLAIN, 1.0), told(PLAIN, 0.0), told(PLAIN, 0.0), told(BRIEF, 0.0)], 1 / 9),
        ([told(PLAIN, 0.5), told(BRIEF, 0.5)], 0.0),
        ([told(PLAIN, 1.0), told(PLAIN, 0.0)], 0.0),
        ([], 0.0),
    ],
)
def test_the_share_that_lies_between_prompts(cells: Any, share: float) -> None:
    assert between_prompts(table(cells)) == pytest.approx(share)


def test_the_share_is_of_the_sums_over_all_items() -> None:
    """1 of 1 and 0 of 1/2: two thirds; what lies between items is no part of it, nor is what weights differ in."""
    one = [told(PLAIN, 1.0), told(PLAIN, 1.0), told(BRIEF, 0.0), told(BRIEF, 0.0)]
    two = [told(PLAIN, 1.0), told(PLAIN, 0.0)]
    dead = [told(PLAIN, 1.0), told(BRIEF, 1.0)]
    assert between_prompts(table(one, two, dead)) == pytest.approx(1 / 1.5)
    then = replace(PLAIN, delta=Delta("then", "lora", "base", None))
    assert between_prompts(table([told(PLAIN, 1.0), told(then, 0.0)])) == 0.0


# ------------------------------------------------------------------------------------------------------ on a real model


@pytest.fixture(scope="module")
def policy() -> LocalPolicy:
    return make_policy("llama")


CONFIG = LoraConfig(
    grouping="prompt", rank=3, alpha=6.0, targets=("q_proj", "v_proj", "down_proj"), beta1=0.0, max_grad_norm=1e9
)


def offer(policy: LocalPolicy, evidence: Evidence, config: LoraConfig = CONFIG) -> Any:
    channel = LoraChannel(config)
    state = channel.started(channel.init(policy.card, 0), policy)
    return state, channel.propose(bench(policy), state, evidence, Budget(), 4)


def test_the_step_is_that_of_the_advantages_by_hand(policy: LocalPolicy) -> None:
    """The first prompt of the first item ranks its two answers, the second prompt ranks none."""
    evidence = make_evidence(policy, rewards=[(1.0, 0.0, 1.0, 1.0), (0.0, 0.0, 1.0, 1.0), (0.1, 0.3, 0.9, 0.2)])
    state, proposal = offer(policy, evidence)
    assert isinstance(proposal, Proposal), proposal
    advantages = [HALF, -HALF, 0, 0, 0, 0, 0, 0, -HALF, HALF, HALF, -HALF]
    weights = {
        id(r): [a / 12 / len(r.completion.tokens)] * len(r.completion.tokens)
        for r, a in zip(evidence.rollouts, advantages, strict=True)
    }
    assert_same_gradient(learned_gradient(state, proposal.state), weighed_gradient(policy, state, evidence, weights))
    assert "2 of 3 groups" in proposal.writes[0].text
    # Means 3/4, 1/2 and 3/8; between: 1/4, 1 and 0.1225; whole: 3/4, 1 and 0.3875.
    assert proposal.metrics["between_prompts"] == pytest.approx((0.25 + 1.0 + 0.1225) / (0.75 + 1.0 + 0.3875))
    _, shared = offer(policy, evidence, replace(CONFIG, grouping="item"))
    assert shared.metrics["grad_norm"] != pytest.approx(proposal.metrics["grad_norm"], rel=0.05)


def test_a_prompt_with_one_rollout_is_declined_with_what_to_type(policy: LocalPolicy) -> None:
    _, result = offer(policy, make_evidence(policy, rewards=[(1.0, 0.0)]))
    assert isinstance(result, Declined)
    assert 'grouping = "prompt" needs at least two rollouts' in result.reason
    assert result.metrics["between_prompts"] == 1.0
    assert result.cost.optimizer_steps == 0


def test_where_only_prompts_differ_the_reason_says_so(policy: LocalPolicy) -> None:
    _, result = offer(policy, make_evidence(policy, rewards=[(1.0, 1.0, 0.0, 0.0)]))
    assert isinstance(result, Declined)
    assert 'no reward varies within a prompt of an item, and grouping = "prompt" compares no others' in result.reason
    assert result.metrics["between_prompts"] == 1.0


def test_a_prompt_of_memory_is_a_prompt_an_item(policy: LocalPolicy) -> None:
    """Two rollouts of an item under its own notes are two under one prompt, though no other item has that prompt."""
    texts = (Conditioning(notes=("first",)), Conditioning(notes=("second",)))
    evidence = make_evidence(policy, rewards=[(1.0, 0.0, 0.0, 1.0)], texts=texts)
    _, proposal = offer(policy, evidence)
    assert isinstance(proposal, Proposal)
    assert proposal.metrics["between_prompts"] == 0.0
