"""Tool memory in a planted world: which tool answers which kind of question is hidden, and can only be remembered.

    python experiments/planner_tools/run.py --first 10 --json experiments/planner_tools/results/planted.json
    python experiments/planner_tools/run.py --seeds 2 --episodes 60    # a quick look

Every arm plays the same items in the same order with the same random numbers (paired by seed and episode), one after
another, and writes back what its calls came to after each. Differences are over seeds, 95 % t intervals.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

from planted import World, parts, policy

from twoclock.agent.planner import Hints, PlannerConfig, PlannerExecutor, Problem, Role
from twoclock.agent.planner_memory import memory_hints
from twoclock.agent.tool_memory import tool_entries
from twoclock.agent.toolbox import Toolbox
from twoclock.hashing import content_hash
from twoclock.measure.across_seeds import t_interval
from twoclock.measure.intervals import Interval
from twoclock.memory.bank import Bank
from twoclock.seeding import child_rng, child_seed
from twoclock.types import Conditioning

ARMS = {
    "no tools": "the same planner and executor without any tool",
    "none": "tools, no memory",
    "ignored": "memory is shown to an executor that does not read it",
    "shuffled": "memory is asked about another question: notes of like length that are about something else",
    "retries": "no memory, and a second tool call where the first found nothing",
    "memory": "tool memory, asked about the subtask",
    "oracle": "told the right tool",
}
SUGGESTIONS = 3
DECIMALS = 4


def hints_of(arm: str, world: World, box: Toolbox, held: list[Bank]) -> Hints | None:
    """What the executor is told in this arm; ``held`` holds the bank as it is now."""
    if arm == "oracle":

        def oracle(role: Role, situation: str) -> Conditioning:
            kind = situation.removeprefix("what is the ").split(" of ")[0]
            return Conditioning(notes=(f"Calling {world.right(kind)} with it helped",) if role == "executor" else ())

        return oracle
    if arm not in ("memory", "shuffled", "ignored"):
        return None
    ask = memory_hints(lambda: held[0], box, tools=SUGGESTIONS)
    if arm != "shuffled":
        return ask

    def elsewhere(role: Role, situation: str) -> Conditioning:
        """What memory says of a subtask of another item, drawn by the situation alone."""
        other = world.item(child_seed("shuffled", world.seed, situation) % 1_000_000)
        return ask(role, child_rng("part", world.seed, situation).choice(parts(other.prompt)))

    return elsewhere


def play(world: World, arm: str, episodes: int) -> dict[str, Any]:
    """Rewards, tokens and calls of each episode, in order."""
    box = world.toolbox() if arm != "no tools" else Toolbox()
    held = [Bank()]
    runner = PlannerExecutor(
        policy(reads_notes=arm != "ignored"),
        toolbox=box,
        config=PlannerConfig(tool_rounds=2 if arm == "retries" else 1, cycles=1),
        hints=hints_of(arm, world, box, held),
    )
    rewards, tokens, calls = [], 0, 0
    digest = ""
    for number in range(episodes):
        item = world.item(number)
        (episode,) = runner.run([Problem(prompt=item.prompt, seed=child_seed("episode", world.seed, number))])
        reward = world.grade(item, episode.answer).reward
        rewards.append(reward)
        tokens += episode.prompt_tokens + episode.completion_tokens
        calls += len(episode.calls)
        digest = content_hash([digest, episode.dumps()])
        if arm in ("memory", "shuffled", "ignored"):
            held[0] = held[0].add(*tool_entries(episode, box, reward, provenance=item.id))
    return {
        "rewards": rewards,
        "tokens": tokens / episodes,
        "calls": calls / episodes,
        "entries": len(held[0]),
        "transcripts": digest,
    }


def mean(values: list[float]) -> float:
    return sum(values) / len(values)


def plain(interval: Interval) -> dict[str, float]:
    numbers = {"mean": interval.estimate, "low": interval.low, "high": interval.high}
    return {name: round(value, DECIMALS) for name, value in numbers.items()} | {"n": interval.n}


def study(seeds: range, episodes: int) -> dict[str, Any]:
    runs = {arm: [play(World(seed), arm, episodes) for seed in seeds] for arm in ARMS}
    windows = {
        "all": slice(0, episodes),
        "first quarter": slice(0, episodes // 4),
        "last half": slice(episodes // 2, None),
    }
    table: dict[str, Any] = {}
    for arm, played in runs.items():
        row: dict[str, Any] = {
            name: round(mean([mean(run[name]) if name == "rewards" else run[name] for run in played]), 2)
            for name in ("tokens", "calls", "entries")
        }
        for name, window in windows.items():
            scores = [mean(run["rewards"][window]) for run in played]
            row[name] = plain(t_interval(scores, bounds=(0.0, 1.0)))
            for other in ("none", "shuffled", "retries"):
                gaps = [s - mean(run["rewards"][window]) for s, run in zip(scores, runs[other], strict=True)]
                row[f"{name} minus {other}"] = plain(t_interval(gaps, bounds=(-1.0, 1.0)))
        row["transcripts"] = [run["transcripts"][:16] for run in played]
        table[arm] = row
    return table


def cell(row: dict[str, float], sign: str = "") -> str:
    return f"{row['mean']:{sign}.2f} [{row['low']:{sign}.2f}, {row['high']:{sign}.2f}]"


def show(table: dict[str, Any]) -> None:
    gaps = [f"last half − {other}" for other in ("none", "shuffled", "retries")]
    print("| " + " | ".join(["arm", "first quarter", "last half", *gaps, "tokens", "calls"]) + " |")
    print("|---|---|---|---|---|---|---|---|")
    for arm, row in table.items():
        against = [cell(row[f"last half minus {other}"], "+") for other in ("none", "shuffled", "retries")]
        columns = [cell(row["first quarter"]), cell(row["last half"]), *against]
        print(f"| {arm} | {' | '.join(columns)} | {row['tokens']:.0f} | {row['calls']:.2f} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--episodes", type=int, default=240)
    parser.add_argument("--json", type=Path, help="write the numbers to this file")
    given = parser.parse_args()
    if given.seeds < 2 or given.episodes < 8:
        parser.error("at least 2 seeds and 8 episodes are needed for an interval")
    begun = time.monotonic()
    seeds = range(given.first, given.first + given.seeds)
    table = study(seeds, given.episodes)
    show(table)
    print(f"\n{given.seeds} seeds × {given.episodes} episodes an arm, {time.monotonic() - begun:.0f} s")
    if given.json:
        content = {"seeds": list(seeds), "episodes": given.episodes, "arms": ARMS, "table": table}
        given.json.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
