"""Worlds whose right answer is known: does the allocator put its budget on the right clock?

The two-token world of ``experiments/fast_slow_training`` (a completion is a format and an answer; a prompt can carry
the format, weights alone the answers) in five versions, played through the library's own loop, channels and store:

    prompt   the base knows every answer and prefers a wrong format: only a prompt is needed
    weights  no prompt has any effect
    both     a prompt brings the format, weights the answers
    nothing  no completion is ever right
    noise    the reward is a coin that does not look at the answer

One cell is (world, allocator, seed); a line of ``results/planted/<world>-<allocator>.jsonl``.

    python experiments/allocator/planted.py --world prompt --allocator evidence --seeds 0:100
    python experiments/allocator/planted.py --table
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "fast_slow_training"))
from toy_policy import ToyPolicy, base_weights  # noqa: E402
from toy_runs import SAMPLING, Settings, scratch  # noqa: E402
from toy_world import TASKS, ToyTask, World, scripted_reflector  # noqa: E402

from twoclock.allocate import build_allocator, gate_for  # noqa: E402
from twoclock.evaluation import conditioning_of  # noqa: E402
from twoclock.fast import build_fast  # noqa: E402
from twoclock.hashing import content_hash  # noqa: E402
from twoclock.loop import Loop  # noqa: E402
from twoclock.seeding import child_seed  # noqa: E402
from twoclock.slow import build_slow  # noqa: E402
from twoclock.store import RunStore  # noqa: E402
from twoclock.tasks import Stream  # noqa: E402
from twoclock.types import Grade, Item  # noqa: E402
from twoclock.watching import WatchSettings  # noqa: E402

ROUNDS = 60
TRAINED = 3.0
"""A trained token costs a forward and a backward pass, which is about two forward ones."""

WORLDS: dict[str, World] = {
    "prompt": World(known_logit=14.0, prompt_bias=14.0),
    "weights": World(prompt_bias=0.0, other_bias=0.0),
    "both": World(),
    "nothing": World(),
    "noise": World(),
}
ALLOCATORS: dict[str, dict[str, Any]] = {
    "evidence": {},
    "bandit": {},
    "alternate": {"slow_steps": 6, "warmstart": 0},
    "fixed": {},
}
WATCH = WatchSettings(fast=True, slow=True, probation=24)
"""The same for every allocator: what is compared is who is asked."""


class NoiseTask(ToyTask):
    """The reward is a fair coin that looks at the draw and at how often it was asked, and never at the answer."""

    def __init__(self, world: World, name: str) -> None:
        super().__init__(world, name)
        self._asked: dict[str, int] = {}

    def grade(self, items: Sequence[Item], texts: Sequence[str]) -> list[Grade]:
        grades = []
        for item in items:
            count = self._asked[item.id] = self._asked.get(item.id, 0) + 1
            coin = int(content_hash([self.world.seed, item.id, count]), 16) % 2
            grades.append(Grade(reward=float(coin), feedback="the format is wrong: use format 3"))
        return grades


class HopelessTask(ToyTask):
    """Nothing is ever right."""

    def grade(self, items: Sequence[Item], texts: Sequence[str]) -> list[Grade]:
        return [replace(g, reward=0.0) for g in super().grade(items, texts)]


TASK_OF: dict[str, type[ToyTask]] = {"noise": NoiseTask, "nothing": HopelessTask}


def play(world: str, allocator: str, seed: int, rounds: int = ROUNDS) -> dict[str, Any]:
    """One run; what each clock cost, what was kept, and the exact accuracy at the end (a coin's in ``noise``)."""
    planted = replace(WORLDS[world], seed=child_seed("planted", seed, world))
    task, settings = TASKS[0], Settings()
    weights = base_weights(planted)
    if world == "weights":  # it knows the format, so that what is missing is the answers
        weights["formats.weight"][planted.right_format(task)] += 9.0
    policy = ToyPolicy(planted, weights)
    channels = {
        "lora": build_slow("lora", settings.lora),
        "prompts": build_fast("prompts", settings.prompts, reflector=scripted_reflector(0.5, seed)),
    }
    with scratch() as folder, RunStore.create(Path(folder) / "run", config={}) as store:
        loop = Loop(
            store,
            policy,
            Stream([(task, rounds)], {task: TASK_OF.get(world, ToyTask)(planted, task)}),
            channels,
            build_allocator(allocator, {**ALLOCATORS[allocator], "fast_rollouts": 256}),
            {name: gate_for(channel.timescale, settings.gates) for name, channel in channels.items()},
            seed=child_seed("planted-run", seed),
            sampling=SAMPLING,
            rollouts=settings.rollouts,
            evaluation=settings.evaluation,
            watch=WATCH,
        )
        loop.begin()
        loop.run()
        entries = store.entries()
        cost = dict.fromkeys(channels, 0.0)
        kept = dict.fromkeys(channels, 0)
        for entry in entries:
            if entry.channel in cost:
                cost[entry.channel] += entry.cost.tokens + TRAINED * entry.cost.trained_tokens
        for name in channels:
            moves = [e for e in entries if e.channel == name and e.before != e.after]
            speaks = [e for e in moves if e.action == "rollback" or e.metrics.get("changes_deployed", 0) > 0]
            last = max((n for n, e in enumerate(speaks) if e.action == "rollback"), default=-1)
            # A write that is still being watched is not yet kept: it may go back without anybody's doing.
            watched = [w.since for (its, _), w in loop.watcher.open.items() if its == name]
            proven = [e for e in speaks[last + 1 :] if not watched or e.round < min(watched)]
            kept[name] = len(proven)
            if name == "prompts" and watched:  # its gate has judged it once: what stands at the end is kept
                kept[name] = len(speaks) - 1 - last
        seen = loop.store.rounds()
        deployed = conditioning_of(loop.channels, loop.states, task)
        base = conditioning_of(loop.channels, loop.states, task, ("base", "none"))
        gathered = sum(row.metrics["rollouts"] for row in seen)
        reached = [row.round for row in seen if row.metrics.get("signal_deployed", 0.0) >= 0.9]
        return {
            "world": world,
            "allocator": allocator,
            "seed": seed,
            "rounds": rounds,
            "fast_cost": cost["prompts"],
            "slow_cost": cost["lora"],
            "gathered": gathered,
            "kept_fast": kept["prompts"],
            "kept_slow": kept["lora"],
            "taken_back": sum(e.action == "rollback" for e in entries),
            "accuracy": None if world in TASK_OF else policy.accuracy(deployed, task),
            "accuracy_base": None if world in TASK_OF else policy.accuracy(base, task),
            "solved_round": reached[0] if reached else None,
        }


def file_of(world: str, allocator: str) -> Path:
    return HERE / "results" / "planted" / f"{world}-{allocator}.jsonl"


def read(world: str, allocator: str) -> list[dict[str, Any]]:
    path = file_of(world, allocator)
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def right(row: dict[str, Any]) -> bool:
    """Whether the budget went where it belongs, as the README states it beforehand."""
    fast, slow = row["fast_cost"], row["slow_cost"]
    share = fast / (fast + slow) if fast + slow else 0.5
    match row["world"]:
        case "prompt":
            return share >= 0.75 and row["kept_fast"] > 0
        case "weights":
            return share <= 0.25 and row["kept_slow"] > 0
        case "both":
            return row["kept_fast"] > 0 and row["kept_slow"] > 0
        case _:
            return not row["kept_fast"] and not row["kept_slow"]


def table() -> str:
    from twoclock.measure.statistics import wilson

    lines = [
        "| world | allocator | seeds | right | fast share | tokens of both clocks | kept fast | kept slow | accuracy |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for world in WORLDS:
        for allocator in ALLOCATORS:
            rows = read(world, allocator)
            if not rows:
                continue
            good = wilson(sum(map(right, rows)), len(rows))
            shares = [r["fast_cost"] / max(r["fast_cost"] + r["slow_cost"], 1) for r in rows]
            costs = [r["fast_cost"] + r["slow_cost"] for r in rows]
            ends = [r["accuracy"] for r in rows if r["accuracy"] is not None]
            told = f"{math.fsum(ends) / len(ends):.2f}" if ends else "–"
            lines.append(
                f"| {world} | {allocator} | {len(rows)} | {good.estimate:.2f} [{good.low:.2f}, {good.high:.2f}] | "
                f"{math.fsum(shares) / len(rows):.2f} | {math.fsum(costs) / len(rows):,.0f} | "
                f"{sum(r['kept_fast'] > 0 for r in rows) / len(rows):.2f} | "
                f"{sum(r['kept_slow'] > 0 for r in rows) / len(rows):.2f} | {told} |"
            )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--world", choices=tuple(WORLDS))
    parser.add_argument("--allocator", choices=tuple(ALLOCATORS), default="evidence")
    parser.add_argument("--seeds", default="0:100", help="first:last, the last one not included")
    parser.add_argument("--table", action="store_true")
    args = parser.parse_args()
    if args.table or not args.world:
        print(table())
        return
    first, last = (int(n) for n in args.seeds.split(":"))
    path = file_of(args.world, args.allocator)
    path.parent.mkdir(parents=True, exist_ok=True)
    have = {row["seed"] for row in read(args.world, args.allocator)}
    for seed in range(first, last):
        if seed not in have:
            row = play(args.world, args.allocator, seed)
            with path.open("a", encoding="utf-8") as out:
                out.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    main()
