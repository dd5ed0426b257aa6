"""The channel ``svf``: its steps against torch's AdamW on z, through dense matrices; its state as a value."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from lora_world import bench, make_evidence, oracle_advantages, oracle_share, oracle_term, plain_logprobs  # noqa: E402

from tiny_models import make_policy  # noqa: E402
from twoclock.errors import ConfigError, StoreError, UnsupportedError  # noqa: E402
from twoclock.models.local import LocalPolicy  # noqa: E402
from twoclock.nn.objective_table import OBJECTIVES  # noqa: E402
from twoclock.slow.svf import SvfChannel, SvfConfig, SvfState  # noqa: E402
from twoclock.types import Budget, Conditioning, Declined, Evidence, Proposal, Request, Sampling  # noqa: E402

CONFIG = SvfConfig(learning_rate=0.02)


@pytest.fixture(scope="module")
def policy() -> LocalPolicy:
    return make_policy("llama")


@pytest.fixture(scope="module")
def evidence(policy: LocalPolicy) -> Evidence:
    return make_evidence(policy)


def offer(policy: LocalPolicy, evidence: Evidence, config: SvfConfig = CONFIG, state: SvfState | None = None) -> Any:
    channel = SvfChannel(config)
    state = channel.init(policy.card, 0) if state is None else state
    found = channel.propose(bench(policy), state, evidence, Budget(), 4)
    assert isinstance(found, Proposal), found
    return found


@pytest.mark.parametrize("name", ["llama", "qwen2", "gemma2"])
def test_steps_are_those_of_dense_matrices_put_together_from_z(name: str) -> None:
    """The oracle decomposes with numpy's conventions of its own, multiplies the singular values by z, and walks one
    sequence at a time through the model with the dense result in place of W; torch.optim.AdamW moves z itself."""
    policy = make_policy(name)
    config = replace(CONFIG, targets=("q_proj", "down_proj"))
    state = SvfChannel(config).init(policy.card, 0)
    names = list(policy.linear_shapes(config.targets))
    parts = {n: torch.linalg.svd(policy.model.get_submodule(n).weight.detach(), full_matrices=False) for n in names}
    zs = {n: torch.ones(len(s)).requires_grad_() for n, (_, s, _) in parts.items()}
    optimizer = torch.optim.AdamW(zs.values(), lr=config.learning_rate, betas=(0.9, 0.99), weight_decay=0.0)
    for round_seed in range(2):
        evidence = make_evidence(policy, seed=round_seed)
        state = offer(policy, evidence, config, state).state
        advantages = oracle_advantages("grpo", evidence)
        optimizer.zero_grad()
        loss = torch.zeros(())
        for group in evidence.groups:
            for rollout in group.rollouts:
                if advantages[id(rollout)] and rollout.completion.tokens:
                    weights = {f"{n}.weight": (u * (s * zs[n])) @ vh for n, (u, s, vh) in parts.items()}
                    new = plain_logprobs(policy, weights, rollout, group.item.prompt, evidence)
                    loss = loss + oracle_term("grpo", new, new.detach(), advantages[id(rollout)], 0.2, 0.2)
        (loss / oracle_share("grpo", evidence, 1)).backward()
        torch.nn.utils.clip_grad_norm_(zs.values(), config.max_grad_norm)
        optimizer.step()
        for n in names:
            moved = state.offsets[n]
            assert float(moved.abs().max()) > 0.01, n
            # Adam divides by the gradient's size: where that is next to nothing its sign is rounding.
            sure = (zs[n].detach() - 1 - moved).abs() < 1e-3
            assert float(sure.float().mean()) > 0.97


@pytest.mark.parametrize("objective", [*OBJECTIVES, "distill"])
def test_every_objective_of_the_slow_clock_trains_it(policy: LocalPolicy, evidence: Evidence, objective: str) -> None:
    channel = SvfChannel(SvfConfig(objective=objective))
    found = channel.propose(bench(policy), channel.init(policy.card, 0), evidence, Budget(), 4)
    assert isinstance(found, Proposal)
    moved = torch.cat([*found.state.offsets.values()])
    assert bool(torch.isfinite(moved).all())
    # The first step of Adam moves each number by the learning rate at most.
    assert 0 < float(moved.abs().max()) <= 2e-3 * 1.01


def test_z_begins_at_exactly_1_and_the_base_is_untouched(policy: LocalPolicy, evidence: Evidence) -> None:
    channel = SvfChannel(CONFIG)

    def answers(state: SvfState) -> Any:
        conditioning = channel.condition(state, "sums")
        return policy.sample([Request(prompt="hi", conditioning=conditioning, seeds=(1, 2, 3))], Sampling())

    start = channel.init(policy.card, 0)
    assert channel.condition(start, "sums") == Conditioning()
    begun = channel.started(start, policy)
    assert all(not bool(t.any()) for t in begun.offsets.values())
    assert channel.condition(begun, "sums") == Conditioning()
    before = answers(start)
    first = offer(policy, evidence, replace(CONFIG, learning_rate=0.3)).state
    learned = answers(first)
    assert learned != before
    assert answers(start) == before
    assert answers(first) == learned


def test_what_is_sampled_scored_and_measured_agrees(policy: LocalPolicy, evidence: Evidence) -> None:
    state = offer(policy, evidence, replace(CONFIG, learning_rate=0.3)).state
    live = Conditioning(delta=state.delta)
    ((completion,),) = policy.sample([Request(prompt="hi", conditioning=live, seeds=(1,))], Sampling(max_new_tokens=9))
    ((mine,), (base,)) = policy.logprobs_under(["hi"], [completion.tokens], [live, Conditioning()])
    assert mine == pytest.approx(completion.logprobs, abs=2e-4)
    assert mine != pytest.approx(base, abs=1e-2)
    stats = policy.sequence_stats(["hi"], live, [[completion.tokens]], temperature=1.0)
    torch.testing.assert_close(torch.tensor(mine), stats[0].logprobs[0], atol=1e-4, rtol=0)
    (forward,) = policy.exact_kl(["hi"], [completion.tokens], live, Conditioning())
    assert forward > 0
    assert policy.exact_kl(["hi"], [completion.tokens], live, live) == [0.0]


def test_z_is_a_vector_a_matrix_and_nothing_more(policy: LocalPolicy, evidence: Evidence) -> None:
    state = offer(policy, evidence).state
    shapes = policy.linear_shapes(CONFIG.targets)
    assert {n: tuple(t.shape) for n, t in state.offsets.items()} == {n: (min(s),) for n, s in shapes.items()}
    assert len(SvfChannel().dump(state)) < 4 * 3 * sum(min(s) for s in shapes.values()) + 12_000
    part = offer(policy, evidence, replace(CONFIG, rank=5)).state
    assert {tuple(t.shape) for t in part.offsets.values()} == {(5,)}


def test_dumped_and_loaded_it_is_the_same_and_learns_the_same(policy: LocalPolicy, evidence: Evidence) -> None:
    for config in (CONFIG, replace(CONFIG, rank=4, precision="bfloat16")):
        channel = SvfChannel(config)
        for state in (channel.init(policy.card, 5), offer(policy, evidence, config).state):
            blob = channel.dump(state)
            back = channel.load(blob)
            assert channel.dump(back) == blob
            assert back.delta == state.delta
            further, again = (offer(policy, evidence, config, state=s).state for s in (state, back))
            assert channel.dump(further) == channel.dump(again)


def test_what_is_refused(policy: LocalPolicy, evidence: Evidence, tmp_path: Path) -> None:
    channel = SvfChannel(replace(CONFIG, targets=("nose",)))
    with pytest.raises(ConfigError, match="no linear layer is called 'nose'"):
        channel.propose(bench(policy), channel.init(policy.card, 0), evidence, Budget(), 0)
    state = offer(policy, evidence).state
    other = make_policy("llama", seed=1)
    with pytest.raises(UnsupportedError, match="trained on base weights"):
        SvfChannel(CONFIG).propose(bench(other), state, evidence, Budget(), 0)
    # The same name for other weights: the matrices themselves are known too.
    with pytest.raises(UnsupportedError, match=r"belongs to the matrices .* means nothing on another"):
        other.sequence_stats(["hi"], Conditioning(), [[[5, 6]]], temperature=1.0, change=state.payload(state.offsets))
    for changed in (replace(CONFIG, rank=3), replace(CONFIG, targets=("q_proj",))):
        with pytest.raises(ConfigError, match="set targets, rank and precision as they were"):
            SvfChannel(changed).propose(bench(policy), state, evidence, Budget(), 0)
    for wrong in (b"nonsense", b""):
        with pytest.raises(StoreError, match="not a dumped state of the channel 'svf'"):
            SvfChannel(CONFIG).load(wrong)
    with pytest.raises(ConfigError) as caught:
        SvfConfig(rank=-1, precision="float8", targets=())
    assert len(caught.value.problems) == 3


def test_a_gradient_that_is_no_number_leaves_the_state(policy: LocalPolicy, evidence: Evidence) -> None:
    state = offer(policy, evidence).state
    broken = replace(state, offsets={n: t + float("nan") for n, t in state.offsets.items()})
    found = SvfChannel(CONFIG).propose(bench(policy), broken, evidence, Budget(), 0)
    assert isinstance(found, Declined)
    assert "nan" in found.reason


def test_a_policy_whose_layers_cannot_be_taken_apart(policy: LocalPolicy, evidence: Evidence) -> None:
    class Closed:
        base_hash = policy.base_hash

    with pytest.raises(UnsupportedError, match="use a local model, or the channel 'lora'"):
        SvfChannel(CONFIG).started(SvfChannel(CONFIG).init(policy.card, 0), Closed())  # type: ignore[arg-type]
