"""The channel ``lora``: its step against the equation and torch's AdamW, its state as a value, what it declines."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from lora_world import REWARDS, TEXTS, Oracle, bench, make_evidence, with_completion  # noqa: E402

from tiny_models import make_policy  # noqa: E402
from twoclock.errors import ConfigError, StoreError, UnsupportedError  # noqa: E402
from twoclock.models.local import LocalPolicy  # noqa: E402
from twoclock.slow.lora import LoraChannel, LoraConfig, LoraState  # noqa: E402
from twoclock.types import Budget, Conditioning, Declined, Evidence, Proposal, Request, Sampling  # noqa: E402

CONFIG = LoraConfig(rank=3, alpha=6.0, targets=("q_proj", "v_proj", "down_proj"), learning_rate=0.01)


@pytest.fixture(scope="module")
def policy() -> LocalPolicy:
    return make_policy("llama")


@pytest.fixture(scope="module")
def evidence(policy: LocalPolicy) -> Evidence:
    return make_evidence(policy)


def offer(
    policy: LocalPolicy, evidence: Evidence, config: LoraConfig = CONFIG, state: LoraState | None = None, seed: int = 4
) -> Proposal[LoraState]:
    channel = LoraChannel(config)
    state = channel.init(policy.card, 0) if state is None else state
    result = channel.propose(bench(policy), state, evidence, Budget(), seed)
    assert isinstance(result, Proposal), result
    return result


def declined(policy: LocalPolicy, evidence: Evidence, config: LoraConfig = CONFIG) -> Declined:
    channel = LoraChannel(config)
    result = channel.propose(bench(policy), channel.init(policy.card, 0), evidence, Budget(), 4)
    assert isinstance(result, Declined)
    return result


def tensors_of(state: LoraState) -> Iterator[torch.Tensor]:
    for name, pair in state.tensors.items():
        yield from pair
        yield from state.moments[name]


# ----------------------------------------------------------------------------------------------------------- the step


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"max_grad_norm": 1e-3, "weight_decay": 0.3},
        {"objective": "dr_grpo", "kl": "k2_loss", "kl_coef": 0.5},
        {"objective": "cispo", "kl": "k3_loss", "kl_coef": 0.5},
        {"objective": "dapo", "kl": "k1_reward", "kl_coef": 0.5},
        {"kl": "k1_reward", "kl_coef": 0.2, "steps_per_round": 2},
        {"steps_per_round": 2},
        {"steps_per_round": 8, "clip_low": 0.02, "clip_high": 0.04},
        {"objective": "dapo", "steps_per_round": 4, "clip_low": 0.02, "clip_high": 0.04},
        {"objective": "cispo", "steps_per_round": 4, "clip_low": 0.99, "clip_high": 1.01},
        {"objective": "gspo", "steps_per_round": 2},
        {"objective": "gspo", "steps_per_round": 2, "clip_low": 0.1, "clip_high": 0.1},
        {"objective": "rloo"},
        {"objective": "reinforce"},
    ],
    ids=str,
)
def test_rounds_are_those_of_the_equation_and_of_torch(policy: LocalPolicy, changes: dict[str, Any]) -> None:
    config = replace(CONFIG, **changes)
    channel = LoraChannel(config)
    # The oracle begins where the channel does: at its own draw of A.
    state = channel.started(channel.init(policy.card, 0), policy)
    oracle = Oracle(policy, config, state)
    for round_seed in range(3):
        evidence = make_evidence(policy, seed=round_seed)
        proposal = offer(policy, evidence, config, state, seed=round_seed)
        norms = oracle.round(evidence, round_seed)
        assert proposal.metrics["grad_norm"] == pytest.approx(sum(norms) / len(norms), rel=1e-4)
        state = proposal.state
        assert state.step == (round_seed + 1) * len(norms)
        for name, (a, b) in state.tensors.items():
            mean_a, _, mean_b, _ = state.moments[name]
            for ours, mean, leaf in ((a, mean_a, oracle.factors[name][0]), (b, mean_b, oracle.factors[name][1])):
                expected = oracle.optimizer.state[leaf].get("exp_avg", torch.zeros_like(leaf))
                size = max(float(expected.abs().max()), 1e-12)
                torch.testing.assert_close(mean / size, expected / size, atol=2e-4, rtol=1e-3)
                # Adam divides by the gradient's own size, so where that is all rounding the step is too.
                clear = expected.abs() > 0.02 * size
                torch.testing.assert_close(ours[clear], leaf.detach()[clear], atol=0.01 * config.learning_rate, rtol=0)
    moved = [float(b.abs().max()) for _, b in state.tensors.values()]
    assert min(moved) > 0.5 * config.learning_rate


def test_only_b_moves_in_the_first_step(policy: LocalPolicy, evidence: Evidence) -> None:
    """With B = 0 the gradient of A is 0, and AdamW without decay leaves it where it is."""
    channel = LoraChannel(CONFIG)
    start = channel.started(channel.init(policy.card, 0), policy)
    after = offer(policy, evidence, state=start).state
    for name, (a, b) in start.tensors.items():
        assert torch.equal(after.tensors[name][0], a)
        assert not bool(b.any())
        # The first step of Adam is the learning rate, in the gradient's direction.
        assert float(after.tensors[name][1].abs().max()) == pytest.approx(CONFIG.learning_rate, rel=1e-2)


def test_rewarded_answers_become_likelier(policy: LocalPolicy, evidence: Evidence) -> None:
    state = LoraChannel(CONFIG).init(policy.card, 0)
    for _ in range(6):
        state = offer(policy, evidence, state=state).state
    good, bad = [], []
    for group in evidence.groups:
        for rollout in group.rollouts:
            text = evidence.conditionings[rollout.conditioning_id]
            before, after = (
                policy.sequence_stats([group.item.prompt], c, [[rollout.completion.tokens]], temperature=0.9)[0]
                for c in (text, replace(text, delta=state.delta))
            )
            gain = float((after.logprobs - before.logprobs).sum().detach())
            if rollout.reward > group.mean_reward + 0.3:
                good.append(gain)
            elif rollout.reward < group.mean_reward - 0.1:
                bad.append(gain)
    assert min(good) > max(bad)
    assert sum(good) > 0 > sum(bad)


def test_several_texts_in_a_group_share_one_mean_and_deviation(policy: LocalPolicy) -> None:
    """All of one text succeed and all of the other fail: alone each half is dead, together they are a lesson."""
    split = make_evidence(policy, rewards=[(1.0, 1.0, 0.0, 0.0)])
    assert offer(policy, split).metrics["grad_norm"] > 0
    for text in range(2):
        (group,) = split.groups
        half = replace(split, groups=(replace(group, rollouts=group.rollouts[2 * text : 2 * text + 2]),))
        assert "dead" in declined(policy, half).reason


def test_groups_are_by_item_and_not_by_prompt(policy: LocalPolicy, evidence: Evidence) -> None:
    """Two items with the same prompt text stay two groups, with a mean of their own."""
    same = [replace(g, item=replace(g.item, prompt="What is it?")) for g in evidence.groups]
    state = LoraChannel(CONFIG).started(LoraChannel(CONFIG).init(policy.card, 0), policy)
    oracle, twins = Oracle(policy, CONFIG, state), replace(evidence, groups=tuple(same))
    norms = oracle.round(twins, 4)
    assert offer(policy, twins, state=state).metrics["grad_norm"] == pytest.approx(norms[0], rel=1e-3)


def test_dead_groups_count_in_the_mean_only(policy: LocalPolicy, evidence: Evidence) -> None:
    """They have no gradient, but the rollouts that the loss is divided by include theirs."""
    alive = replace(evidence, groups=tuple(g for g in evidence.groups if not g.is_dead))
    with_dead, without = offer(policy, evidence).metrics, offer(policy, alive).metrics
    assert with_dead["dead_groups"] == 0.25
    assert without["dead_groups"] == 0.0
    assert with_dead["grad_norm"] == pytest.approx(0.75 * without["grad_norm"], rel=1e-4)
    assert with_dead["entropy"] == pytest.approx(without["entropy"])


def test_chunks_change_nothing(policy: LocalPolicy, evidence: Evidence) -> None:
    small = make_policy("llama", packed_tokens=1)
    one, other = offer(policy, evidence), offer(small, evidence)
    assert one.metrics == pytest.approx(other.metrics, rel=1e-3, abs=1e-6)
    assert one.cost == other.cost


def test_the_slow_path_learns_the_same(evidence: Evidence, policy: LocalPolicy) -> None:
    slow = make_policy("llama")
    slow.shared = False
    assert offer(slow, evidence).metrics == pytest.approx(offer(policy, evidence).metrics, rel=1e-3, abs=1e-6)


def test_empty_completions_count_in_the_group_and_carry_no_loss(policy: LocalPolicy, evidence: Evidence) -> None:
    emptied = with_completion(evidence, 0, 1, tokens=(), logprobs=(), text="", finish="error")
    state = LoraChannel(CONFIG).started(LoraChannel(CONFIG).init(policy.card, 0), policy)
    norms = Oracle(policy, CONFIG, state).round(emptied, 4)
    assert offer(policy, emptied, state=state).metrics["grad_norm"] == pytest.approx(norms[0], rel=1e-3)
    nothing = evidence
    for group, row in enumerate(REWARDS):
        for rollout in range(len(row)):
            nothing = with_completion(nothing, group, rollout, tokens=(), logprobs=())
    assert "has a token to learn from" in declined(policy, nothing).reason


def test_costs_and_metrics(policy: LocalPolicy, evidence: Evidence) -> None:
    proposal = offer(policy, evidence)
    alive = [g for g in evidence.groups if not g.is_dead]
    read = sum(policy.prompt_tokens(g.item.prompt, text) for g in alive for text in TEXTS)
    written = sum(len(r.completion.tokens) for g in alive for r in g.rollouts)
    assert proposal.cost.trained_tokens == read + written
    assert proposal.cost.optimizer_steps == 1
    assert proposal.cost.rollouts == 0
    assert proposal.metrics["sampler_mismatch"] < 1e-4
    assert 0 < proposal.metrics["entropy"] < 5.8
    assert proposal.writes[0].kind == "step"
    assert "3 of 4 groups" in proposal.writes[0].text


def test_the_mismatch_tells_what_the_filter_cut(policy: LocalPolicy) -> None:
    """With top-p the sampler's probabilities are larger than the trainer's: reported, and the ratio still starts at 1,
    so several steps a round learn as much as without it."""
    sampling = Sampling(max_new_tokens=6, top_p=0.5)
    narrow = make_evidence(policy, sampling=sampling)
    metrics = offer(policy, narrow, replace(CONFIG, steps_per_round=3, learning_rate=1e-5)).metrics
    assert metrics["sampler_mismatch"] > 0.3
    # Steps of next to no size: each has the gradient of its share, none of it clipped away.
    without = offer(
        policy,
        replace(narrow, sampling=Sampling(max_new_tokens=6)),
        replace(CONFIG, steps_per_round=3, learning_rate=1e-5),
    ).metrics
    assert metrics["grad_norm"] == pytest.approx(without["grad_norm"], rel=1e-4)
    assert metrics["grad_norm"] > 0.01


def test_a_policy_that_tells_no_log_probabilities(policy: LocalPolicy, evidence: Evidence) -> None:
    silent = evidence
    for group, row in enumerate(REWARDS):
        for rollout in range(len(row)):
            silent = with_completion(silent, group, rollout, logprobs=())
    told, untold = offer(policy, evidence), offer(policy, silent)
    assert untold.metrics["sampler_mismatch"] == 0.0
    assert untold.metrics["grad_norm"] == told.metrics["grad_norm"]


def test_greedy_evidence_is_learned_from_at_temperature_one(policy: LocalPolicy) -> None:
    greedy = make_evidence(policy, sampling=Sampling(max_new_tokens=5, temperature=0.0))
    metrics = offer(policy, greedy).metrics
    assert metrics["sampler_mismatch"] < 1e-4
    assert metrics["grad_norm"] > 0


# ------------------------------------------------------------------------------------------------- the state, a value


def test_a_fresh_state_is_the_identity(policy: LocalPolicy) -> None:
    channel = LoraChannel(CONFIG)
    state = channel.init(policy.card, 3)
    assert state.delta is None
    assert channel.condition(state, "any").is_identity
    started = channel.started(state, policy)
    assert started.delta is None


def test_proposing_touches_nothing_and_repeats_itself(policy: LocalPolicy, evidence: Evidence) -> None:
    live = offer(policy, evidence).state
    before = [t.clone() for t in tensors_of(live)]
    weights = copy.deepcopy(policy.model.state_dict())
    random_state = torch.random.get_rng_state()
    one, two = offer(policy, evidence, state=live), offer(policy, evidence, state=live)
    assert all(torch.equal(a, b) for a, b in zip(before, tensors_of(live), strict=True))
    assert all(torch.equal(t, weights[n]) for n, t in policy.model.state_dict().items())
    assert all(p.grad is None for p in policy.model.parameters())
    assert torch.equal(random_state, torch.random.get_rng_state())
    channel = LoraChannel(CONFIG)
    assert channel.dump(one.state) == channel.dump(two.state)
    assert one.state.delta == two.state.delta
    assert one.metrics == two.metrics
    assert one.state.delta != live.delta
    assert not any(t.requires_grad for t in tensors_of(one.state))


def test_dumped_and_loaded_it_is_the_same_and_learns_the_same(policy: LocalPolicy, evidence: Evidence) -> None:
    channel = LoraChannel(CONFIG)
    for state in (
        channel.init(policy.card, 5),
        channel.started(channel.init(policy.card, 5), policy),
        offer(policy, evidence).state,
    ):
        blob = channel.dump(state)
        back = channel.load(blob)
        assert channel.dump(back) == blob
        assert (back.seed, back.step, back.base, back.scale) == (state.seed, state.step, state.base, state.scale)
        assert list(back.tensors) == list(state.tensors)
        assert all(torch.equal(a, b) for a, b in zip(tensors_of(state), tensors_of(back), strict=True))
        assert back.delta == state.delta
        further, again = (offer(policy, evidence, state=s).state for s in (state, back))
        assert channel.dump(further) == channel.dump(again)


def test_rolled_back_the_logits_are_the_same_bits(policy: LocalPolicy, evidence: Evidence) -> None:
    def answers(state: LoraState) -> Any:
        conditioning = LoraChannel(CONFIG).condition(state, "sums")
        return policy.sample([Request(prompt="hi", conditioning=conditioning, seeds=(1, 2, 3))], Sampling())

    start = LoraChannel(CONFIG).init(policy.card, 0)
    before = answers(start)
    first = offer(policy, evidence).state
    learned = answers(first)
    second = offer(policy, evidence, state=first).state
    assert learned != before
    assert answers(second) != learned
    assert answers(first) == learned
    assert answers(start) == before


def test_seeds_draw_different_factors(policy: LocalPolicy) -> None:
    channel = LoraChannel(CONFIG)
    one, two = (channel.started(channel.init(policy.card, seed), policy) for seed in (0, 1))
    for name, (a, _) in one.tensors.items():
        assert not torch.equal(a, two.tensors[name][0])
        # Kaiming uniform with a = √5: bounded by 1 / √fan-in, and spread over the whole of it.
        bound = a.shape[1] ** -0.5
        assert 0.9 * bound < float(a.abs().max()) <= bound
    layers = [pair[0] for name, pair in one.tensors.items() if name.endswith("q_proj")]
    assert not torch.equal(layers[0], layers[1])


@pytest.mark.parametrize("damage", [lambda b: b"", lambda b: b[:40], lambda b: b[:-5], lambda b: b"x" * 100])
def test_a_damaged_dump_is_refused(policy: LocalPolicy, evidence: Evidence, damage: Any) -> None:
    channel = LoraChannel(CONFIG, name="mine")
    with pytest.raises(StoreError, match="not a dumped state of the channel 'mine'"):
        channel.load(damage(channel.dump(offer(policy, evidence).state)))


def test_a_dump_of_a_later_format_is_refused(policy: LocalPolicy) -> None:
    channel = LoraChannel(CONFIG)
    blob = channel.dump(channel.init(policy.card, 0))
    with pytest.raises(StoreError, match="its format is 3, and this version reads 1, 2"):
        channel.load(blob.replace(b'\\"format\\":2', b'\\"format\\":3'))
    with pytest.raises(StoreError, match="KeyError"):
        channel.load(blob.replace(b'\\"modules\\"', b'\\"modulez\\"'))


def test_a_state_of_another_base_is_refused(policy: LocalPolicy, evidence: Evidence) -> None:
    state = offer(policy, evidence).state
    other = make_policy("llama", seed=1)
    with pytest.raises(UnsupportedError, match="trained on base weights base-llama-0, but the model is base-llama-1"):
        LoraChannel(CONFIG).propose(bench(other), state, evidence, Budget(), 0)


# ------------------------------------------------------------------------------------------------- what it declines


def test_no_evidence_and_dead_evidence_are_declined(policy: LocalPolicy, evidence: Evidence) -> None:
    assert "no evidence" in declined(policy, replace(evidence, groups=())).reason
    dead = make_evidence(policy, rewards=[(0.5,) * 4, (1.0,) * 4])
    result = declined(policy, dead)
    assert "all 2 groups are dead" in result.reason
    assert result.metrics["dead_groups"] == 1.0
    assert result.cost.optimizer_steps == 0


def test_numbers_that_are_none_are_refused_before_the_step(policy: LocalPolicy, evidence: Evidence) -> None:
    broken = make_policy("llama")
    with torch.no_grad():
        broken.model.model.norm.weight[3] = float("nan")
    result = declined(broken, evidence)
    assert "loss is nan" in result.reason
    assert "the state kept" in result.reason
    (logprob, *rest) = evidence.groups[0].rollouts[0].completion.logprobs
    assert logprob < 0
    odd = with_completion(evidence, 0, 0, logprobs=(float("nan"), *rest))
    assert "sampler_mismatch is nan" in declined(policy, odd).reason


def test_a_gradient_that_overflows_is_refused(policy: LocalPolicy, evidence: Evidence) -> None:
    """The loss is finite and its gradient is not."""
    channel = LoraChannel(CONFIG)
    started = channel.started(channel.init(policy.card, 0), policy)
    huge = replace(started, tensors={n: (a * 1e30, b) for n, (a, b) in started.tensors.items()})
    before = channel.dump(huge)
    result = channel.propose(bench(policy), huge, evidence, Budget(), 4)
    assert isinstance(result, Declined)
    assert "gradient norm is" in result.reason
    assert channel.dump(huge) == before


def test_a_token_budget_is_never_passed(policy: LocalPolicy, evidence: Evidence) -> None:
    channel = LoraChannel(CONFIG)
    whole = offer(policy, evidence).cost.trained_tokens
    state = channel.init(policy.card, 0)
    for tokens in (whole, whole - 1, whole // 2, 10):
        result = channel.propose(bench(policy), state, evidence, Budget(tokens=tokens), 4)
        assert result.cost.trained_tokens <= tokens
        assert isinstance(result, Declined) == (tokens == 10)


def test_a_config_tells_all_its_mistakes() -> None:
    with pytest.raises(ConfigError) as problem:
        LoraConfig(rank=0, learning_rate=-1.0, targets=(), kl_coef=-0.1)
    assert len(problem.value.problems) == 4


def test_a_layer_that_is_not_there(policy: LocalPolicy, evidence: Evidence) -> None:
    channel = LoraChannel(replace(CONFIG, targets=("q_proj", "nose")))
    state = channel.init(policy.card, 0)
    with pytest.raises(ConfigError, match="no linear layer is called 'nose'"):
        channel.propose(bench(policy), state, evidence, Budget(), 0)


def test_conditioning_of_a_trained_state(policy: LocalPolicy, evidence: Evidence) -> None:
    state = offer(policy, evidence).state
    conditioning = LoraChannel(CONFIG).condition(state, "sums")
    assert conditioning == Conditioning(delta=state.delta)
    assert conditioning.delta is not None
    assert conditioning.delta.base == policy.base_hash
    # Content, not history, names a delta: other moments, the same id.
    other = replace(state, moments={n: tuple(m * 2 for m in ms) for n, ms in state.moments.items()})
    assert other.delta == state.delta
