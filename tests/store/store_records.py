"""Small but complete records for the store's tests, the same for the same round in every process."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest

from twoclock.store import RunStore, schema
from twoclock.types import (
    Completion,
    Conditioning,
    Cost,
    DriftRecord,
    Evaluation,
    Evidence,
    Grade,
    Group,
    Item,
    LedgerEntry,
    Rollout,
    RoundRecord,
    Snapshot,
    Write,
)


@pytest.fixture
def unsynced(monkeypatch: pytest.MonkeyPatch) -> None:
    """Long histories quickly: nothing waits for the disk. That commits do is tested where they are killed."""
    real = schema.connect

    def connect(path: Path, *, write: bool) -> sqlite3.Connection:
        db = real(path, write=write)
        db.execute("PRAGMA synchronous = OFF")
        return db

    monkeypatch.setattr("os.fsync", lambda fd: None)
    monkeypatch.setattr(schema, "connect", connect)


CHANNELS = {"prompts": "fast", "lora": "slow"}


def state(channel: str, number: int, size: int = 64) -> bytes:
    return (f"{channel} {number} ".encode() * size)[:size]


def conditioning(number: int) -> Conditioning:
    return Conditioning(system=f"system {number}", exemplars=(("1+1", "2"),))


def rollout(item: str, seed: int, number: int, **changes: object) -> Rollout:
    fields: dict[str, object] = {
        "tokens": (1, 2, 3),
        "logprobs": (-0.5, -1.0, -0.25),
        "text": f"ä {item} {seed}",
        "finish": "stop",
        "prompt_tokens": 11,
    }
    return Rollout(
        item_id=item,
        conditioning_id=conditioning(number).id,
        seed=seed,
        completion=Completion(**{**fields, **changes}),  # type: ignore[arg-type]
        grade=Grade(reward=(seed % 2) / 2, feedback="so so", failure="verifier raised" if seed == 3 else None),
    )


def evidence(number: int, items: int = 2, samples: int = 4) -> Evidence:
    groups = tuple(
        Group(
            item=Item(id=f"i{number}-{i}", prompt=f"question {number}-{i}", reference="2"),
            rollouts=tuple(rollout(f"i{number}-{i}", seed, number) for seed in range(samples)),
        )
        for i in range(items)
    )
    spoken = conditioning(number)
    return Evidence(round=number, phase=0, task="sums", groups=groups, conditionings={spoken.id: spoken})


def searched(number: int, *rollouts: Rollout, task: str = "sums") -> Evidence:
    """What a search in round ``number`` sampled: one group an item, under :func:`conditioning` of any of 0 to 9."""
    by_item: dict[str, list[Rollout]] = {}
    for one in rollouts:
        by_item.setdefault(one.item_id, []).append(one)
    groups = tuple(Group(item=Item(id=i, prompt=f"later {i}"), rollouts=tuple(rows)) for i, rows in by_item.items())
    spoken = {c.id: c for c in map(conditioning, range(10))}
    return Evidence(round=number, phase=0, task=task, groups=groups, conditionings=spoken)


def evaluation(number: int, **changes: object) -> Evaluation:
    fields: dict[str, object] = {
        "round": number,
        "task": "sums",
        "weights": "live",
        "prompt": "learned",
        "item_ids": ("a", "b"),
        "rewards": (0.25, 1.0),
        "samples": 4,
        "conditioning_id": conditioning(number).id,
        "cost": Cost(rollouts=8, seconds=1.5),
    }
    return Evaluation(**{**fields, **changes})  # type: ignore[arg-type]


def drift(number: int) -> DriftRecord:
    return DriftRecord(
        round=number,
        prompts="general",
        live_base=0.25,
        base_live=0.5,
        per_prompt_live_base=(0.125, 0.375),
        per_prompt_base_live=(0.5, 0.5),
        tokens=64,
    )


def begin(store: RunStore, size: int = 64) -> Snapshot:
    states = {channel: store.put_blob(state(channel, 0, size)) for channel in CHANNELS}
    entries = [
        LedgerEntry(
            round=0,
            channel=channel,
            timescale=clock,
            action="init",
            before="",
            after=states[channel],
            cause="start",
            reason="the first state",
            cost=Cost(),
        )
        for channel, clock in CHANNELS.items()
    ]
    snapshot = Snapshot(round=0, states=states, next_round=1, cause="init")
    store.begin(snapshot, entries, [evaluation(0, weights="base", prompt="none")])
    return snapshot


def round_record(store: RunStore, size: int = 64, seconds: float = 0.5) -> RoundRecord:
    """The next round: odd rounds commit the fast channel and reject the slow one, even rounds the other way round."""
    head = store.head()
    number = head.next_round
    winner, loser = ("prompts", "lora") if number % 2 else ("lora", "prompts")
    offers = {channel: store.put_blob(state(channel, number, size)) for channel in CHANNELS}
    entries = tuple(
        LedgerEntry(
            round=number,
            channel=channel,
            timescale=CHANNELS[channel],
            action="commit" if channel == winner else "reject",
            before=head.states[channel],
            after=offers[channel] if channel == winner else head.states[channel],
            offered=offers[channel],
            cause=f"reward moved in round {number}",
            reason="better on the trial" if channel == winner else "no better",
            cost=Cost(rollouts=8, prompt_tokens=88, seconds=seconds),
            task="sums",
            writes=(Write(text="say it shorter", kind="system", lesson="l1"),) if channel == "prompts" else (),
            metrics={"gain": 0.125, "judge_s": seconds},
        )
        for channel in (winner, loser)
    )
    return RoundRecord(
        round=number,
        phase=0,
        task="sums",
        snapshot=Snapshot(round=number, states={**head.states, winner: offers[winner]}, next_round=number + 1),
        entries=entries,
        evidence=evidence(number),
        metrics={"reward": 0.25, "dead_groups": 0, "rollout_s": seconds, "tokens_per_s": 10 / seconds},
        evaluations=(evaluation(number),) if number % 3 == 0 else (),
        drift=(drift(number),),
    )


def make_run(path: Path, rounds: int = 0, seconds: float = 0.5) -> RunStore:
    """A run of that many rounds, open for writing."""
    store = RunStore.create(path, config={"seed": 1}, config_text="seed = 1\n")
    begin(store)
    for _ in range(rounds):
        store.commit_round(round_record(store, seconds=seconds))
    return store
