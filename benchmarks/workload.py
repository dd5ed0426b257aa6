"""The work that every side of a benchmark does: the same texts, the same numbers of rollouts and tokens."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from twoclock.models.engine import Engine, Prompted
from twoclock.models.local import LocalPolicy
from twoclock.seeding import child_seed
from twoclock.types import Budget, Completion, Conditioning, Evidence, Grade, Group, Item, Request, Rollout, Sampling

ITEMS, SAMPLES, NEW_TOKENS = 8, 8, 24
SAMPLING = Sampling(max_new_tokens=NEW_TOKENS, temperature=1.0)


@dataclass(frozen=True)
class Work:
    """Items whose rendered prompts begin alike."""

    conditioning: Conditioning
    items: tuple[Item, ...]
    prompts: tuple[tuple[int, ...], ...]
    """The rendered prompts as tokens."""
    texts: tuple[str, ...]
    """The same as text, for peers that tokenize for themselves."""
    shared: int
    """Tokens that all prompts begin with."""


def shared_work(policy: LocalPolicy, shared_tokens: int, *, items: int = ITEMS) -> Work:
    """Questions under one system prompt with worked exemplars, ``shared_tokens`` of them shared, give or take a few."""
    rng = random.Random(child_seed("round-speed", shared_tokens))
    exemplars: list[tuple[str, str]] = []
    system = "Answer with a number only."
    while True:
        longer = Conditioning(system=system, exemplars=(*exemplars, _exemplar(rng)))
        if len(policy.shared_prefix(longer)) > shared_tokens:
            break
        exemplars.append(longer.exemplars[-1])
    while len(policy.shared_prefix(Conditioning(system=system, exemplars=tuple(exemplars)))) < shared_tokens:
        system += " Think first." if len(system) % 2 else " Be sure."
    conditioning = Conditioning(system=system, exemplars=tuple(exemplars))
    questions = [_exemplar(rng)[0] for _ in range(items)]
    return _work(policy, conditioning, questions, len(policy.shared_prefix(conditioning)))


def long_work(policy: LocalPolicy, tokens: int) -> Work:
    """One item whose prompt has about ``tokens`` tokens, nearly all of them its own."""
    rng = random.Random(child_seed("round-speed-long", tokens))
    question = "Add up all of these numbers:"
    while len(policy.render(question, Conditioning())) < tokens:
        question += f" {rng.randrange(10, 99)},"
    return _work(policy, Conditioning(), [question], len(policy.shared_prefix(Conditioning())))


def unshared_prompts(policy: LocalPolicy, rows: int, tokens: int) -> list[tuple[int, ...]]:
    """``rows`` texts of exactly ``tokens`` tokens that begin differently."""
    rng = random.Random(child_seed("round-speed-unshared", rows, tokens))
    prompts = []
    for row in range(rows):
        text = f"{row} "
        while len(ids := policy.tokenizer(text, add_special_tokens=False)["input_ids"]) < tokens:
            text += f"{_exemplar(rng)[0]} "
        prompts.append(tuple(ids[:tokens]))
    return prompts


def _exemplar(rng: random.Random) -> tuple[str, str]:
    numbers = [rng.randrange(10, 99) for _ in range(4)]
    return f"Which of these numbers is the largest: {', '.join(map(str, numbers))}?", str(max(numbers))


def _work(policy: LocalPolicy, conditioning: Conditioning, questions: Sequence[str], shared: int) -> Work:
    items = tuple(Item(id=f"item-{n}", prompt=q) for n, q in enumerate(questions))
    prompts = tuple(policy.render(i.prompt, conditioning) for i in items)
    texts = tuple(policy.tokenizer.decode(p) for p in prompts)
    for text, tokens in zip(texts, prompts, strict=True):
        if tuple(policy.tokenizer(text, add_special_tokens=False)["input_ids"]) != tokens:
            raise RuntimeError("a prompt does not survive decoding; the peers would read other tokens")
    return Work(conditioning, items, prompts, texts, shared)


def endless(policy: LocalPolicy) -> LocalPolicy:
    """The policy with no token that ends an answer, so that every rollout has its length on every side."""
    policy._ends = frozenset()
    policy._engine.ends = frozenset()
    return policy


def forget_prefixes(engine: Engine) -> None:
    """As after an update: what was read under other weights is no longer valid."""
    engine._prefixes.clear()


def prompted(work: Work, samples: int = SAMPLES) -> list[Prompted]:
    return [
        Prompted(p, work.shared, tuple(child_seed("round-speed", i, j) for j in range(samples)))
        for i, p in enumerate(work.prompts)
    ]


def reward(index: int) -> float:
    """Of the rollout at this place of its group: every group has variance, on every side."""
    return float(index % 2)


def evidence_of(work: Work, completions: Sequence[Sequence[Completion]]) -> Evidence:
    groups = []
    for item, row in zip(work.items, completions, strict=True):
        rollouts = tuple(
            Rollout(
                item_id=item.id,
                conditioning_id=work.conditioning.id,
                seed=n,
                completion=completion,
                grade=Grade(reward=reward(n)),
            )
            for n, completion in enumerate(row)
        )
        groups.append(Group(item=item, rollouts=rollouts))
    return Evidence(
        round=1,
        phase=0,
        task="bench",
        groups=tuple(groups),
        conditionings={work.conditioning.id: work.conditioning},
        sampling=SAMPLING,
    )


class TrainBench:
    """The part of a workbench that a slow channel uses."""

    def __init__(self, policy: LocalPolicy) -> None:
        self._policy = policy

    def trainable(self) -> LocalPolicy:
        return self._policy


def our_round(policy: LocalPolicy, work: Work, channel: Any, state: Any, turn: int, samples: int = SAMPLES) -> Any:
    """Rollouts of the weights as they are, and one optimizer step on them: the next state."""
    conditioning = channel.condition(state, "bench")
    joined = replace(work.conditioning, delta=conditioning.delta)
    requests = [
        Request(
            prompt=item.prompt,
            conditioning=joined,
            seeds=tuple(child_seed("round-speed", turn, item.id, n) for n in range(samples)),
        )
        for item in work.items
    ]
    completions = policy.sample(requests, SAMPLING)
    under = replace(work, conditioning=joined)
    proposal = channel.propose(TrainBench(policy), state, evidence_of(under, completions), Budget(), turn)
    if not hasattr(proposal, "state"):
        raise RuntimeError(f"no step was taken: {proposal}")
    return proposal.state
