"""``objective = "distill"``: each token's advantage is the prompted policy's log-probability less the policy's own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from credit_table import BRIEF, PLAIN, table, told  # noqa: E402
from lora_world import (  # noqa: E402
    SAMPLING,
    assert_same_gradient,
    bench,
    learned_gradient,
    make_evidence,
    merged,
    plain_logprobs,
    weighed_gradient,
    with_completion,
    with_rollout,
)

from tiny_models import make_policy  # noqa: E402
from twoclock.models.local import LocalPolicy  # noqa: E402
from twoclock.slow.config import TrainingConfig  # noqa: E402
from twoclock.slow.credit import credit_distilled  # noqa: E402
from twoclock.slow.lora import LoraChannel, LoraConfig, LoraState  # noqa: E402
from twoclock.types import (  # noqa: E402
    Budget,
    Conditioning,
    Declined,
    Delta,
    Evidence,
    Group,
    Item,
    Proposal,
    Recall,
    Rollout,
)

CONFIG = LoraConfig(
    objective="distill", rank=3, alpha=6.0, targets=("q_proj", "v_proj", "down_proj"), learning_rate=0.01,
    beta1=0.0, max_grad_norm=1e9,
)  # fmt: skip
PLAIN_CREDIT = TrainingConfig(objective="distill")
TEACHER = Conditioning(system="Say seven.", exemplars=(("1 + 1", "2"),))


def remember(item: Item) -> Conditioning:
    return Conditioning(notes=(f"of {item.id}",), recalled=(f"entry of {item.id}",))


MEMORY = Recall("memory", remember)


class Scores:
    """A scorer from a table: −(place + 1) a token for the rollout's own text, that divided by ten for any other."""

    def __init__(self) -> None:
        self.asked: list[list[tuple[str, Conditioning]]] = []

    def __call__(self, pairs: Sequence[tuple[Group, Rollout]], ways: Sequence[Any]) -> list[list[list[float]]]:
        own = Conditioning(system="as the rollout had it")
        self.asked = [[(g.item.id, way(own, g.item)) for g, _ in pairs] for way in ways]
        return [
            [
                [-(t + 1) / (1 if way(own, g.item) == own else 10) for t in range(len(r.completion.tokens))]
                for g, r in pairs
            ]
            for way in ways
        ]


# ------------------------------------------------------------------------------------------------------------- by hand


def test_each_token_is_credited_with_what_the_prompt_makes_of_it() -> None:
    evidence = table([told(PLAIN, 0.0, 3), told(BRIEF, 1.0, 2)], [told(PLAIN, 1.0, 1)])
    credited = credit_distilled(PLAIN_CREDIT, evidence, TEACHER, Scores())
    found = [[c.advantage for c in row] for row in credited]
    # −t/10 − (−t) = 0.9 t, whatever the rewards.
    assert [[pytest.approx(a) for a in row] for row in found] == [[(0.9, 1.8, 2.7), (0.9, 1.8)], [(0.9,)]]
    assert [[c.rollout for c in row] for row in credited] == [list(g.rollouts) for g in evidence.groups]


def test_under_the_teachers_own_text_there_is_exactly_nothing() -> None:
    """Whatever weights it was sampled with: its delta is no part of the text."""
    own = replace(TEACHER, delta=Delta("then", "lora", "base", None))
    evidence = table([told(TEACHER, 0.0, 3), told(own, 1.0, 2), told(PLAIN, 1.0, 2), told(PLAIN, 0.0, 0)])
    scores = Scores()
    (row,) = credit_distilled(PLAIN_CREDIT, evidence, TEACHER, scores)
    assert [c.advantage for c in row[:2]] == [0.0, 0.0]
    assert [c.teaches for c in row] == [False, False, True, False]
    assert [len(asked) for asked in scores.asked] == [1, 1]  # neither those nor the empty one are scored


def test_nobody_is_asked_where_nothing_can_be_learned() -> None:
    scores = Scores()
    (row,) = credit_distilled(PLAIN_CREDIT, table([told(TEACHER, 0.0), told(TEACHER, 1.0)]), TEACHER, scores)
    assert [c.advantage for c in row] == [0.0, 0.0]
    assert scores.asked == []


def test_the_teacher_is_told_what_memory_says_of_each_item() -> None:
    evidence = table([told(PLAIN, 0.0)], [told(PLAIN, 1.0)])
    scores = Scores()
    credit_distilled(PLAIN_CREDIT, evidence, replace(TEACHER, recall=(MEMORY,)), scores)
    students, teachers = scores.asked
    assert {c for _, c in students} == {Conditioning(system="as the rollout had it")}
    expected = [replace(TEACHER, notes=(f"of item-{n}",), recalled=(f"entry of item-{n}",)) for n in range(2)]
    assert teachers == [("item-0", expected[0]), ("item-1", expected[1])]


def test_a_rollout_that_was_shown_its_items_memory_has_nothing_to_learn() -> None:
    mine, other = (remember(Item(id=name, prompt="")) for name in ("item-0", "item-1"))
    evidence = table([told(mine, 0.0), told(other, 0.0), told(PLAIN, 0.0)])
    (row,) = credit_distilled(PLAIN_CREDIT, evidence, Conditioning(recall=(MEMORY,)), Scores())
    assert [c.teaches for c in row] == [False, True, True]


def test_an_answer_that_was_cut_off_is_left_out_where_that_is_asked_for() -> None:
    evidence = table([told(PLAIN, 0.0, 6), told(PLAIN, 1.0, 5)])
    for overlong, teaches in (("keep", [True, True]), ("mask", [False, True])):
        config = replace(PLAIN_CREDIT, overlong=overlong)
        (row,) = credit_distilled(config, evidence, TEACHER, Scores())
        assert [c.teaches for c in row] == teaches


# ------------------------------------------------------------------------------------------------------ on a real model


@pytest.fixture(scope="module")
def policy() -> LocalPolicy:
    return make_policy("llama")


def plain_evidence(policy: LocalPolicy, seed: int = 0) -> Evidence:
    return make_evidence(policy, texts=(PLAIN,), seed=seed)


def offer(policy: LocalPolicy, evidence: Evidence, state: LoraState, others: Conditioning) -> Any:
    return LoraChannel(CONFIG).propose(bench(policy, others), state, evidence, Budget(), 4)


def advantages(
    policy: LocalPolicy, state: LoraState, evidence: Evidence, teacher: Conditioning
) -> dict[int, tuple[float, ...]]:
    """log π(y_t | teacher) − log π(y_t | own), one forward pass a rollout and side."""
    weights = merged(policy, state.tensors, state.scale)
    found = {}
    for group in evidence.groups:
        told = evidence.conditionings | {"teacher": teacher.for_item(group.item)}
        for rollout in group.rollouts:
            sides = [
                plain_logprobs(
                    policy,
                    weights,
                    replace(rollout, conditioning_id=name),
                    group.item.prompt,
                    replace(evidence, conditionings=told),
                ).detach()
                for name in ("teacher", rollout.conditioning_id)
            ]
            found[id(rollout)] = tuple((sides[0] - sides[1]).tolist())
    return found


@pytest.mark.parametrize("teacher", [TEACHER, replace(BRIEF, recall=(MEMORY,))], ids=["prompt", "memory"])
def test_the_gradient_is_that_of_the_tokens_advantages(policy: LocalPolicy, teacher: Conditioning) -> None:
    """−Σ_t A_t ∇ log π(y_t), divided by all tokens; in the second round teacher and student have moved alike."""
    channel = LoraChannel(CONFIG)
    state = channel.started(channel.init(policy.card, 0), policy)
    for seed in range(2):
        evidence = plain_evidence(policy, seed)
        tokens = sum(len(r.completion.tokens) for r in evidence.rollouts)
        credit = advantages(policy, state, evidence, teacher)
        weights = {key: [a / tokens for a in row] for key, row in credit.items()}
        proposal = offer(policy, evidence, state, teacher)
        assert isinstance(proposal, Proposal), proposal
        assert_same_gradient(
            learned_gradient(state, proposal.state), weighed_gradient(policy, state, evidence, weights)
        )
        assert proposal.metrics["clipped"] == 0.0
        assert "had a gradient" in proposal.cause
        state = replace(
            proposal.state, moments={n: tuple(0 * m for m in ms) for n, ms in proposal.state.moments.items()}
        )


def test_the_teachers_weights_are_the_students_own(policy: LocalPolicy) -> None:
    """What the other channels deploy comes without weights; those of the state that learns are put under it."""
    channel, evidence = LoraChannel(CONFIG), plain_evidence(policy)
    moved = offer(policy, evidence, channel.init(policy.card, 0), TEACHER).state
    weighed = replace(TEACHER, delta=moved.delta)
    one, two = (offer(policy, evidence, moved, told) for told in (TEACHER, weighed))
    assert channel.dump(one.state) == channel.dump(two.state)


def test_the_policy_comes_to_answer_as_if_it_were_prompted(policy: LocalPolicy) -> None:
    channel = LoraChannel(replace(CONFIG, beta1=0.9))
    state = channel.init(policy.card, 0)
    evidence = make_evidence(policy, texts=(PLAIN,), rewards=[(0.0,) * 4] * 8)

    def apart(state: LoraState) -> float:
        """KL(π ‖ π under the prompt of the base) on the rollouts, exact over the vocabulary."""
        prompts = [g.item.prompt for g in evidence.groups for _ in g.rollouts]
        answers = [r.completion.tokens for r in evidence.rollouts]
        found = policy.exact_kl(prompts, answers, Conditioning(delta=state.delta), TEACHER)
        return sum(found) / len(found)

    before = apart(state)
    for seed in range(8):
        proposal = channel.propose(bench(policy, TEACHER), state, evidence, Budget(), seed)
        assert isinstance(proposal, Proposal)  # though every reward is 0
        state = proposal.state
    assert apart(state) < 0.95 * before


def test_what_cannot_be_distilled_is_declined(policy: LocalPolicy) -> None:
    evidence, channel = plain_evidence(policy), LoraChannel(CONFIG)
    start = channel.init(policy.card, 0)
    nothing = offer(policy, evidence, start, Conditioning())
    assert isinstance(nothing, Declined)
    assert "no prompt is learned yet" in nothing.reason
    assert 'under = "none"' in nothing.reason
    stale = offer(policy, with_rollout(evidence, 0, 1, age=1), start, TEACHER)
    assert isinstance(stale, Declined)
    assert 'objective = "distill" learns from the rollouts of its own round alone' in stale.reason
    assert channel.on_policy_only


def test_cut_off_answers_are_left_out_of_the_step(policy: LocalPolicy) -> None:
    evidence = plain_evidence(policy)
    for group, rows in enumerate(evidence.groups):
        for n in range(len(rows.rollouts)):
            evidence = with_completion(evidence, group, n, finish="length" if n else "stop")
    channel = LoraChannel(replace(CONFIG, overlong="mask"))
    state = channel.started(channel.init(policy.card, 0), policy)
    proposal = channel.propose(bench(policy, TEACHER), state, evidence, Budget(), 4)
    assert isinstance(proposal, Proposal)
    trained = [g.rollouts[0] for g in evidence.groups]
    read = sum(policy.prompt_tokens(g.item.prompt, PLAIN) for g in evidence.groups)
    assert proposal.cost.trained_tokens == read + sum(len(r.completion.tokens) for r in trained)
    assert SAMPLING.max_new_tokens >= max(len(r.completion.tokens) for r in trained)
