"""Runs for the report's tests, made through the store: small, complete and plausible, the same in every process."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from twoclock.seeding import child_rng
from twoclock.store import RunStore
from twoclock.types import (
    Completion,
    Conditioning,
    Cost,
    Delta,
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

TASKS = ("largest", "lookup")
SKILL = {("base", "none"): 0.04, ("base", "learned"): 0.34, ("live", "none"): 0.16, ("live", "learned"): 0.68}
CHANNELS = {"prompts": "fast", "lora": "slow"}


def conditioning(task: str, weights: str = "base") -> Conditioning:
    return Conditioning(
        delta=None if weights == "base" else Delta(id="d" * 64, kind="lora", base="b" * 64, payload=None),
        system=f"Answer in the form that the examples of {task} show.",
        exemplars=(("Which is the largest: 4 or 7?", "=> 7"), ("Which is the largest: 31 or 13?", "=> 31")),
    )


def evaluation(
    number: int, task: str, cell: tuple[Any, Any], skill: float, purpose: str = "phase", items: int = 120
) -> Evaluation:
    right = [child_rng("test.item", 0, task, i).random() < skill for i in range(items)]  # paired across the cells
    return Evaluation(
        round=number,
        task=task,
        weights=cell[0],
        prompt=cell[1],
        item_ids=tuple(f"{task}-held-{i}" for i in range(items)),
        rewards=tuple(float(r) for r in right),
        samples=1,
        conditioning_id=_spoken(task, cell).id,
        cost=Cost(rollouts=items, prompt_tokens=30 * items, completion_tokens=6 * items, seconds=4.0),
        purpose=purpose,
    )


def _spoken(task: str, cell: tuple[Any, Any]) -> Conditioning:
    spoken = conditioning(task, cell[0])
    return spoken if cell[1] == "learned" else replace(spoken, system=None, exemplars=())


def drift(number: int, prompts: str, size: float, count: int = 12) -> DriftRecord:
    rng = child_rng("test.drift", number, prompts)
    live = tuple(size * math.exp(rng.gauss(0, 0.6)) for _ in range(count))
    base = tuple(1.2 * value for value in live)
    return DriftRecord(
        round=number,
        prompts=prompts,
        live_base=math.fsum(live) / count,
        base_live=math.fsum(base) / count,
        per_prompt_live_base=live,
        per_prompt_base_live=base,
        tokens=24 * 2 * count,
    )


def evidence(number: int, phase: int, task: str, skill: float, items: int = 8, samples: int = 8) -> Evidence:
    spoken = conditioning(task)
    groups = []
    for i in range(items):
        rng = child_rng("test.rollout", number, task, i)
        item = Item(id=f"{task}-{number}-{i}", prompt=f"Which is the largest: {10 + i} or {20 + number}?", reference="")
        groups.append(Group(item=item, rollouts=tuple(_rollout(item, spoken, rng, skill, s) for s in range(samples))))
    return Evidence(round=number, phase=phase, task=task, groups=tuple(groups), conditionings={spoken.id: spoken})


def _rollout(item: Item, spoken: Conditioning, rng: random.Random, skill: float, seed: int) -> Rollout:
    right = rng.random() < skill
    return Rollout(
        item_id=item.id,
        conditioning_id=spoken.id,
        seed=seed,
        completion=Completion(
            tokens=(5, 6, 7, 8),
            logprobs=(-0.2, -0.4, -0.1, -0.3),
            text=f"=> {20 + seed}" if right else f"The answer is {seed}.",
            finish="stop",
            prompt_tokens=40,
        ),
        grade=Grade(reward=float(right), feedback="" if right else "expected the form '=> 27'"),
    )


def entry(number: int, phase: int, task: str, channel: str, action: Any, states: dict[str, str], **more: Any) -> Any:
    fields: dict[str, Any] = {
        "round": number, "phase": phase, "task": task, "channel": channel, "timescale": CHANNELS[channel],
        "action": action, "before": states[channel], "after": states[channel],
        "cause": "every 5 slow steps one fast search", "reason": "trial on 24 fresh items: +0.250, p = 0.004 ≤ α = 0.1",
        "cost": Cost(rollouts=160, prompt_tokens=6400, completion_tokens=900, seconds=11.5),
    }  # fmt: skip
    return LedgerEntry(**{**fields, **more})


def fast_writes(task: str) -> tuple[Write, ...]:
    spoken = conditioning(task)
    system = Write(kind="system", text=spoken.system or "", lesson=spoken.id)
    return (
        system,
        *(Write(kind="exemplar", text=f"user: {q}\nassistant: {a}", lesson=spoken.id) for q, a in spoken.exemplars),
    )


def config(tasks: Sequence[str] = TASKS, rounds: int = 10, name: str = "two tasks") -> dict[str, Any]:
    return {
        "run": {"name": name, "seed": 7},
        "model": {"source": "packaged"},
        "tasks": {task: {"source": "family"} for task in tasks},
        "stream": [{"task": task, "rounds": rounds} for task in tasks],
        "allocator": {"name": "alternate", "drift": 0.5},
    }


def begun(path: Path, settings: dict[str, Any] | None = None, *, evaluated: bool = True) -> RunStore:
    """A run that has begun: round 0 and nothing more."""
    settings = config() if settings is None else settings
    environment = {"base_hash": "b" * 64, "model": "SmolLM2-135M-Instruct"}
    store = RunStore.create(path, config=settings, config_text="[run]\nseed = 3\n", environment=environment)
    states = {name: store.put_blob(f"{name} 0".encode()) for name in CHANNELS}
    start = [
        entry(0, 0, "", name, "init", states, before="", cause="the run begins", reason="changes nothing", cost=Cost())
        for name in CHANNELS
    ]
    stream = settings.get("stream")
    tasks = list(dict.fromkeys(row["task"] for row in stream)) if isinstance(stream, list) else []
    base = [
        evaluation(0, task, cell, SKILL["base", "none"])
        for task in tasks
        for cell in (("base", "none"), ("live", "none"), ("live", "learned"))
    ]
    zeros = [drift(0, prompts, 0.0) for prompts in ("general", *(f"task:{task}" for task in tasks))]
    head = Snapshot(round=0, states=states, next_round=1, cause="init")
    store.begin(head, start, base if evaluated else [], zeros if evaluated else [])
    return store


def add_round(
    store: RunStore, *, phase_rounds: int = 10, tasks: Sequence[str] = TASKS, rejected_only: bool = False,
    bare: bool = False,
) -> None:  # fmt: skip
    """The next round. ``bare`` leaves out metrics and evaluations."""
    head = store.head()
    number = head.next_round
    phase = (number - 1) // phase_rounds
    task, place = tasks[phase], (number - 1) % phase_rounds
    states = dict(head.states)
    entries = []
    if place % 5 == 1:
        after = states["prompts"] if rejected_only else store.put_blob(f"prompts {number}".encode())
        action = "reject" if rejected_only or place > 5 else "commit"
        after = after if action == "commit" else states["prompts"]
        entries.append(
            entry(number, phase, task, "prompts", action, states, after=after, writes=fast_writes(task),
                  metrics={"trial_gain": 0.25, "trial_p": 0.004, "trial_items": 24.0})
        )  # fmt: skip
        states["prompts"] = after
    slow = "decline" if place == 7 else "reject" if rejected_only else "commit"
    after = store.put_blob(f"lora {number}".encode()) if slow == "commit" else states["lora"]
    entries.append(
        entry(number, phase, task, "lora", slow, states, after=after, reason=f"drift 0.0{number} ≤ 0.5 nats a token",
              cause=f"7 groups of {task} in round {number} had reward variance",
              cost=Cost(rollouts=16, trained_tokens=512, optimizer_steps=1, seconds=3.0),
              writes=(Write(kind="step", text=f"step {number}: 7 of 8 groups with a gradient"),),
              metrics={"grad_norm": 0.5, "entropy": 1.25})
    )  # fmt: skip
    states["lora"] = after
    grown = 0.05 if rejected_only else 0.05 + 0.65 * (place / phase_rounds) ** 0.6
    ends = place == phase_rounds - 1
    evaluations = []
    if ends and not bare:
        for other in dict.fromkeys(tasks):
            met = other in tasks[: phase + 1]
            forgot = 0.12 if met and other != task else 0.0
            for cell in (("live", "none"), ("live", "learned")):
                skill = (SKILL[cell] if met else SKILL["base", "none"]) - forgot  # type: ignore[index]
                evaluations.append(evaluation(number, other, cell, skill))
    measured = ends or number % 4 == 0
    sets = ("general", *(f"task:{name}" for name in dict.fromkeys(tasks)))
    store.commit_round(
        RoundRecord(
            round=number,
            phase=phase,
            task=task,
            snapshot=Snapshot(round=number, states=states, next_round=number + 1),
            entries=tuple(entries),
            evidence=evidence(number, phase, task, grown),
            metrics={} if bare else {
                "reward": grown, "rollouts": 64.0, "prompt_tokens": 320.0, "completion_tokens": 256.0,
                "rollout_s": 6.0, "grade_s": 0.1, "measure_s": 20.0 if ends else 3.0 if measured else 0.0,
            },
            evaluations=tuple(evaluations),
            drift=() if bare or not measured else tuple(drift(number, s, 0.004 * number) for s in sets),
        )
    )  # fmt: skip


def finished(path: Path, *, final: bool = True) -> RunStore:
    """Two tasks, ten rounds each; ``final`` adds what ``twoclock eval`` measures."""
    store = begun(path)
    for _ in range(20):
        add_round(store)
    if final:
        cells = [
            evaluation(
                20, task, cell, skill - (0.12 if task == TASKS[0] and cell == ("live", "learned") else 0), "final"
            )
            for task in TASKS
            for cell, skill in SKILL.items()
        ]
        store.record_evaluations(
            cells, [drift(20, "general", 0.08)], {c.id: c for t in TASKS for c in [conditioning(t, "live")]}
        )
    return store
