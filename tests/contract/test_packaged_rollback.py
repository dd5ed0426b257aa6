"""The law of rollback on the packaged model itself: a LoRA step, a commit, a rollback, the same bits."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from contract_world import answers, logits, model_bits, same_bits

from tiny_world import make_channel
from twoclock.bench import Bench
from twoclock.evaluation import conditioning_of
from twoclock.store import RunStore
from twoclock.types import (
    Budget,
    Completion,
    Conditioning,
    Cost,
    Evidence,
    Grade,
    Group,
    Item,
    LedgerEntry,
    Proposal,
    Rollout,
    RoundRecord,
    Sampling,
    Snapshot,
)


def planted(policy: Any) -> Evidence:
    """One group with a right and a wrong answer, as the policy would have written them."""
    item = Item(id="sum", prompt="What is 2 + 2?", reference="4")
    texts = ("The answer is 4.", "I do not know.")
    rollouts = []
    for seed, (text, reward) in enumerate(zip(texts, (1.0, 0.0), strict=True)):
        tokens = tuple(policy.tokenizer(text, add_special_tokens=False)["input_ids"])
        (stats,) = policy.sequence_stats([item.prompt], Conditioning(), [[tokens]], temperature=1.0)
        completion = Completion(
            tokens=tokens,
            logprobs=tuple(stats.logprobs[0].tolist()),
            text=text,
            finish="stop",
            prompt_tokens=policy.prompt_tokens(item.prompt, Conditioning()),
        )
        rollouts.append(
            Rollout(
                item_id=item.id,
                conditioning_id=Conditioning().id,
                seed=seed,
                completion=completion,
                grade=Grade(reward=reward),
            )
        )
    return Evidence(
        round=1,
        phase=0,
        task="sums",
        groups=(Group(item=item, rollouts=tuple(rollouts)),),
        conditionings={Conditioning().id: Conditioning()},
        sampling=Sampling(),
    )


@pytest.mark.model
def test_a_step_and_its_rollback_leave_no_bit_behind(tmp_path: Path) -> None:
    from twoclock.models.local import open_local

    policy = open_local("packaged")
    channel = make_channel("lora", targets=["q_proj", "v_proj"], learning_rate=1e-2)
    state = channel.init(policy.card, 3)
    base = logits(policy, Conditioning()), answers(policy, Conditioning()), model_bits_of(policy)

    with RunStore.create(tmp_path / "run", config={}) as store:

        def entry(round: int, action: Any, before: str, after: str) -> LedgerEntry:
            return LedgerEntry(
                round=round,
                channel="lora",
                timescale="slow",
                action=action,
                before=before,
                after=after,
                cause="test",
                reason="test",
                cost=Cost(),
            )

        def live() -> Conditioning:
            states: Mapping[str, Any] = {"lora": channel.load(store.get_blob(store.head().states["lora"]))}
            return conditioning_of({"lora": channel}, states, "sums")

        start = store.put_blob(channel.dump(state))
        store.begin(Snapshot(round=0, states={"lora": start}, next_round=1), [entry(0, "init", "", start)])
        bench = Bench(policy, None, others=Conditioning(), sampling=Sampling())  # type: ignore[arg-type]
        offer = channel.propose(bench, state, planted(policy), Budget(), 1)
        assert isinstance(offer, Proposal)
        moved = store.put_blob(channel.dump(offer.state))
        store.commit_round(
            RoundRecord(
                round=1,
                phase=0,
                task="sums",
                snapshot=Snapshot(round=1, states={"lora": moved}, next_round=2),
                entries=(entry(1, "commit", start, moved),),
                evidence=None,
                metrics={},
            )
        )
        learned = logits(policy, live())
        assert not same_bits(learned, base[0])
        store.append_rollback(0, reason="test")
        assert live().is_identity
        assert same_bits(logits(policy, live()), base[0])
        assert answers(policy, live()) == base[1]
        assert model_bits_of(policy) == base[2]
        store.append_rollback(1, reason="after all")
        assert same_bits(logits(policy, live()), learned)


def model_bits_of(policy: Any) -> str:
    """As ``model_bits``; bfloat16 has no numpy form, so its bits are read as integers."""
    if policy.model.dtype == torch.float32:
        return model_bits(policy)
    total = [
        (n, int(p.detach().view(torch.int16).to(torch.int64).mul(torch.arange(p.numel()).view_as(p) % 9973).sum()))
        for n, p in policy.model.named_parameters()
    ]
    return str(total)
