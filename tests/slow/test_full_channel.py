"""The channel ``full``: its steps against torch's AdamW on the model's own parameters, and its state as a value."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from lora_world import bench, make_evidence, oracle_advantages, oracle_share, oracle_term, plain_logprobs  # noqa: E402

from tiny_models import make_policy  # noqa: E402
from twoclock.errors import ConfigError, StoreError, UnsupportedError  # noqa: E402
from twoclock.models.local import LocalPolicy  # noqa: E402
from twoclock.slow.full import FullChannel, FullConfig, FullState  # noqa: E402
from twoclock.types import Budget, Conditioning, Evidence, Proposal, Request, Sampling  # noqa: E402

CONFIG = FullConfig(learning_rate=0.003)


@pytest.fixture(scope="module")
def policy() -> LocalPolicy:
    return make_policy("llama")


@pytest.fixture(scope="module")
def evidence(policy: LocalPolicy) -> Evidence:
    return make_evidence(policy)


def offer(policy: LocalPolicy, evidence: Evidence, config: FullConfig = CONFIG, state: FullState | None = None) -> Any:
    channel = FullChannel(config)
    state = channel.init(policy.card, 0) if state is None else state
    found = channel.propose(bench(policy), state, evidence, Budget(), 4)
    assert isinstance(found, Proposal), found
    return found


@pytest.mark.parametrize("name", ["llama", "qwen3", "gemma2"])
@pytest.mark.parametrize("targets", [(), ("down_proj", "input_layernorm", "embed_tokens")], ids=["all", "some"])
def test_steps_are_those_of_the_models_own_parameters(name: str, targets: tuple[str, ...]) -> None:
    """All kinds of parameters: norms, embeddings and head included. The oracle walks one sequence at a time through
    the model's own modules, and edits copies of its weights."""
    policy = make_policy(name)
    config = replace(CONFIG, targets=targets)
    state = FullChannel(config).init(policy.card, 0)
    own = dict(policy.model.named_parameters())
    names = list(policy.parameter_shapes(targets))
    leaves = {n: own[n].detach().clone().requires_grad_() for n in names}
    optimizer = torch.optim.AdamW(leaves.values(), lr=config.learning_rate, betas=(0.9, 0.99), weight_decay=0.0)
    for round_seed in range(2):
        evidence = make_evidence(policy, seed=round_seed)
        state = offer(policy, evidence, config, state).state
        advantages = oracle_advantages("grpo", evidence)
        optimizer.zero_grad()
        loss = torch.zeros(())
        for group in evidence.groups:
            for rollout in group.rollouts:
                if advantages[id(rollout)] and rollout.completion.tokens:
                    new = plain_logprobs(policy, leaves, rollout, group.item.prompt, evidence)
                    loss = loss + oracle_term("grpo", new, new.detach(), advantages[id(rollout)], 0.2, 0.2)
        (loss / oracle_share("grpo", evidence, 1)).backward()
        torch.nn.utils.clip_grad_norm_(leaves.values(), config.max_grad_norm)
        optimizer.step()
        for n in names:
            moved = state.tensors[n]
            assert float(moved.abs().max()) > 0, n
            torch.testing.assert_close(own[n].detach() + moved, leaves[n].detach(), atol=2e-4, rtol=0)


def test_rolled_back_the_answers_are_the_same(policy: LocalPolicy, evidence: Evidence) -> None:
    channel = FullChannel(CONFIG)

    def answers(state: FullState) -> Any:
        conditioning = channel.condition(state, "sums")
        return policy.sample([Request(prompt="hi", conditioning=conditioning, seeds=(1, 2, 3))], Sampling())

    start = channel.init(policy.card, 0)
    assert channel.condition(start, "sums") == Conditioning()
    before = answers(start)
    first = offer(policy, evidence, replace(CONFIG, learning_rate=0.05)).state
    learned = answers(first)
    assert learned != before
    assert answers(start) == before
    assert answers(first) == learned


def test_drift_of_whole_parameters_is_seen(policy: LocalPolicy, evidence: Evidence) -> None:
    state = offer(policy, evidence, replace(CONFIG, learning_rate=0.05)).state
    live = Conditioning(delta=state.delta)
    (forward,) = policy.exact_kl(["hi"], [[5, 6, 7]], live, Conditioning())
    assert forward > 0
    (((one,), (other,))) = policy.logprobs_under(["hi"], [[5, 6, 7]], [live, Conditioning()])
    assert one != other
    stats = policy.sequence_stats(["hi"], live, [[[5, 6, 7]]], temperature=1.0)
    torch.testing.assert_close(torch.tensor(one), stats[0].logprobs[0], atol=1e-4, rtol=0)


def test_dumped_and_loaded_it_is_the_same_and_learns_the_same(policy: LocalPolicy, evidence: Evidence) -> None:
    channel = FullChannel(CONFIG)
    for state in (channel.init(policy.card, 5), offer(policy, evidence).state):
        blob = channel.dump(state)
        back = channel.load(blob)
        assert channel.dump(back) == blob
        assert back.delta == state.delta
        further, again = (offer(policy, evidence, state=s).state for s in (state, back))
        assert channel.dump(further) == channel.dump(again)


def test_what_is_refused(policy: LocalPolicy, evidence: Evidence) -> None:
    channel = FullChannel(replace(CONFIG, targets=("nose",)))
    with pytest.raises(ConfigError, match="no module with parameters is called 'nose'"):
        channel.propose(bench(policy), channel.init(policy.card, 0), evidence, Budget(), 0)
    state = offer(policy, evidence).state
    with pytest.raises(UnsupportedError, match="trained on base weights"):
        FullChannel(CONFIG).propose(bench(make_policy("llama", seed=1)), state, evidence, Budget(), 0)
    with pytest.raises(StoreError, match="not a dumped state of the channel 'full'"):
        FullChannel(CONFIG).load(b"nonsense")
