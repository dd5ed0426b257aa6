"""Does memory keep its benefit when most of what is written to it is wrong or useless? A stream of 10,000 episodes.

    python experiments/memory_junk/run.py                       # all arms, five seeds: results/*.json, a file each
    python experiments/memory_junk/run.py --arm planted --seed 0
    python experiments/memory_junk/run.py --table               # the table of the results there are

The world is simulated, the memory is not: each episode reads the store with some entries held out at random, its
outcome is credited, and a lesson is written. An item is of one of 12 kinds. A useful lesson of that kind raises the
chance of success while it is shown, one that contradicts it lowers it, a useless one does nothing; of several the
strongest counts. Of the lessons 40 % are useful, 30 % contradict one, 30 % are useless. Useful and contradictory ones
come again and again, as they do where a model writes them; the useless ones are all different.

Arms. ``none``: no memory. ``clean``: the useful lessons of the same stream alone. ``planted``: all of them, forgotten
by measured usefulness. ``age``: the same, forgotten by age. ``keep``: the same, nothing is forgotten. ``plain``: as
``planted``, but whatever is found is shown. ``clean_plain``: as ``clean``, whatever is found is shown. All arms see the
same items, lessons and luck.
"""

from __future__ import annotations

import argparse
import json
import math
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from twoclock.memory.conflicts import find_conflicts
from twoclock.memory.effects import Prior, verdict
from twoclock.memory.eviction import evict
from twoclock.memory.handles import MemoryBudget, Reading
from twoclock.memory.records import Effect, Entry, Hit
from twoclock.memory.showing import Showing
from twoclock.memory.store import MemoryStore
from twoclock.seeding import child_rng, child_seed

HERE = Path(__file__).parent
ARMS = ("none", "clean", "planted", "age", "keep", "plain", "clean_plain")
BASE = 0.3
"""The chance of success without memory."""
USEFUL, WRONG = 0.4, 0.3
"""Shares of the lessons; the rest is useless."""
GAINS, HARMS = (0.15, 0.45), (0.15, 0.45)
SHOWING = Showing(k=3)
FOUND = 20
"""How many entries are searched for; the arms that show whatever is found take the first three."""
EVERY = 25
"""Episodes between two looks at all effects, and between two enforcements of the budget."""
VERBS = ("count", "sort", "copy", "check", "round", "reverse", "merge", "label")
NOUNS = ("columns", "labels", "units", "dates", "signs", "margins", "totals", "headers")
PLACES = ("harbour", "orchard", "quarry", "library", "foundry", "meadow", "station", "bakery", "tunnel", "theatre")


@dataclass(frozen=True)
class Setting:
    episodes: int = 10_000
    topics: int = 12
    rules: int = 6
    """True rules of a topic; each has one lesson that contradicts it."""
    budget: int = 120


class World:
    """What lessons there are and what they do; a function of the seed."""

    def __init__(self, setting: Setting, seed: int) -> None:
        rng = child_rng("junk world", seed)
        self.setting, self.seed = setting, seed
        self.keys = [f"{PLACES[t % 10]} task {'abcdefghij'[t // 10]}{t % 10}" for t in range(setting.topics)]
        self.gains: dict[str, float] = {}
        self.texts: dict[tuple[int, int, bool], str] = {}
        for topic in range(setting.topics):
            pairs = rng.sample([(verb, noun) for verb in VERBS for noun in NOUNS], setting.rules)
            for rule, (verb, noun) in enumerate(pairs):
                where = self.keys[topic]
                for right, bounds, say in ((True, GAINS, "Always"), (False, HARMS, "Never")):
                    text = f"{say} {verb} the {noun} in a {where}."
                    self.texts[topic, rule, right] = text
                    self.gains[text] = rng.uniform(*bounds) * (1 if right else -1)

    def topic(self, episode: int) -> int:
        return child_rng("junk item", self.seed, episode).randrange(self.setting.topics)

    def lesson(self, episode: int) -> Entry:
        """What is written after the episode, about its topic."""
        rng = child_rng("junk lesson", self.seed, episode)
        topic, kind = self.topic(episode), rng.random()
        rule = rng.randrange(self.setting.rules)
        if kind < USEFUL + WRONG:
            text = self.texts[topic, rule, kind < USEFUL]
        else:
            text = f"The {rng.choice(NOUNS)} of episode {episode} looked {rng.choice(('fine', 'blue', 'old', 'odd'))}."
        return Entry(
            kind="reflection",
            key=self.keys[topic],
            text=text,
            provenance=(f"episode-{episode}",),
            trust="self",
            created=float(episode + 1),
        )

    def worth(self, text: str) -> float:
        return self.gains.get(text, 0.0)

    def reward(self, episode: int, shown: Sequence[Entry]) -> float:
        worth = [self.worth(entry.text) for entry in shown]
        chance = BASE + max([0.0, *worth]) + min([0.0, *worth])
        return float(child_rng("junk luck", self.seed, episode).random() < chance)


class Memory:
    """One arm: a store, how it is read, and what it forgets."""

    def __init__(self, arm: str, setting: Setting, seed: int, path: Path) -> None:
        self.arm, self.setting, self.seed = arm, setting, seed
        self.episode = 0
        bounded = arm in ("clean", "planted", "plain", "clean_plain")
        budget = MemoryBudget(entries=setting.budget, slack=0.1) if bounded else None
        self.store = MemoryStore.open(path, budget=budget, clock=lambda: float(self.episode + 1))
        # A simulation need not survive a power cut, and waiting for the disk is most of what its writes would take.
        self.store._connection().execute("PRAGMA synchronous = OFF")
        self.effects: dict[str, Effect] = {}
        self.priors: dict[str, Prior] = {}
        self.written: dict[str, int] = {}
        """When each entry was last written: a lesson that comes again is young again."""
        self.read_s: list[float] = []
        self.most = 0

    def read(self, query: str) -> Reading:
        start = time.perf_counter()
        seed = child_seed("junk read", self.seed, self.episode)
        if self.arm.endswith("plain"):
            reading = self.store.read(query, k=SHOWING.k, hold_out=SHOWING.hold_out, seed=seed)
        else:
            reading = self.store.read(query, k=FOUND, choose=partial(self._choose, seed=seed), seed=seed)
        self.read_s.append(time.perf_counter() - start)
        return reading

    def _choose(self, hits: Sequence[Hit], seed: int) -> Mapping[str, float]:
        return SHOWING.hold_outs([hit.entry.id for hit in hits], self.effects, self.priors, seed=seed)

    def outcome(self, reading: Reading, reward: float, baseline: float) -> None:
        if not (reading.shown or reading.held):
            return
        self.store.outcome(reading, reward, baseline=baseline)
        for hits, shown in ((reading.shown, True), (reading.held, False)):
            for hit in hits:
                own = self.effects.get(hit.entry.id, Effect())
                self.effects[hit.entry.id] = own.add(reward - baseline, shown=shown)

    def write(self, lesson: Entry) -> None:
        self.store.add(lesson, actor="stream")
        self.written[lesson.id] = self.episode
        if self.arm == "age":
            self.store.enforce(self._oldest, actor="age")
        elif self.arm != "keep" and self.episode % EVERY == 0:
            policy = partial(evict, budget=self.setting.budget, priors=self.store.priors())
            self.store.enforce(policy, actor="usefulness")
        if self.episode % EVERY == 0:
            self.effects = self.store.effects()
            self.priors = self.store.priors()
            self.most = max(self.most, len(self.store.entries()))

    def _oldest(self, entries: Sequence[Entry], effects: Mapping[str, Effect], now: float) -> list[str]:
        by_age = sorted(entries, key=lambda entry: (self.written[entry.id], entry.id))
        return [entry.id for entry in by_age[: max(0, len(entries) - self.setting.budget)]]


def play(arm: str, seed: int, setting: Setting, path: Path) -> dict[str, Any]:
    """One arm over the whole stream; a plain record of what came of it."""
    world = World(setting, seed)
    memory = None if arm == "none" else Memory(arm, setting, seed, path)
    rewards: list[float] = []
    means: dict[int, float] = {}
    shown = junk_shown = 0
    start = time.perf_counter()
    for episode in range(setting.episodes):
        topic = world.topic(episode)
        reading = None
        if memory is not None:
            memory.episode = episode
            reading = memory.read(world.keys[topic])
        entries = [hit.entry for hit in reading.shown] if reading else []
        reward = world.reward(episode, entries)
        rewards.append(reward)
        shown += len(entries)
        junk_shown += sum(world.worth(entry.text) <= 0 for entry in entries)
        baseline = means.get(topic, BASE)
        means[topic] = baseline + 0.05 * (reward - baseline)
        if memory is not None and reading is not None:
            memory.outcome(reading, reward, baseline)
            lesson = world.lesson(episode)
            if world.worth(lesson.text) > 0 or not arm.startswith("clean"):
                memory.write(lesson)
    record: dict[str, Any] = {
        "arm": arm,
        "seed": seed,
        "setting": asdict(setting),
        "success": _mean(rewards),
        "success_last_quarter": _mean(rewards[-setting.episodes // 4 :]),
        "curve": [_mean(rewards[i : i + setting.episodes // 20]) for i in _steps(setting.episodes)],
        "junk_of_shown": junk_shown / shown if shown else 0.0,
        "seconds": round(time.perf_counter() - start, 1),
    }
    return record if memory is None else {**record, **_store_record(memory, world)}


def _steps(episodes: int) -> range:
    return range(0, episodes, episodes // 20)


def _mean(values: Sequence[float]) -> float:
    return round(math.fsum(values) / len(values), 4)


def _store_record(memory: Memory, world: World) -> dict[str, Any]:
    with memory.store as store:
        entries, effects, priors, stats = store.entries(), store.effects(), store.priors(), store.stats()
        wrong = store.check()
    said = {entry.id: verdict(effects.get(entry.id, Effect()), prior=priors[entry.id]) for entry in entries}
    worth = {entry.id: world.worth(entry.text) for entry in entries}
    harmful = [name for name, verdict_ in said.items() if verdict_ == "harms"]
    return {
        "entries": len(entries),
        "most_entries": max(memory.most, len(entries)),
        "junk_of_entries": sum(w <= 0 for w in worth.values()) / max(1, len(entries)),
        "contradictory_of_entries": sum(w < 0 for w in worth.values()) / max(1, len(entries)),
        "rules_known": sum(w > 0 for w in worth.values()),
        "verdicts": {v: sum(s == v for s in said.values()) for v in sorted(set(said.values()))},
        "false_harms": sum(worth[name] > 0 for name in harmful),
        "conflicts_found": len(find_conflicts(entries, effects)),
        "duplicates": stats["duplicates"]["adds"],
        "events": stats["rows"]["events"],
        "bytes": stats["bytes"],
        "read_p50_ms": round(sorted(memory.read_s)[len(memory.read_s) // 2] * 1000, 2),
        "problems": wrong,
    }


# ---------------------------------------------------------------------------------------------------------- the table


def results() -> list[dict[str, Any]]:
    return [json.loads(path.read_text()) for path in sorted((HERE / "results").glob("*.json"))]


def table(records: Sequence[Mapping[str, Any]]) -> str:
    """The arms beside each other: means over seeds, the benefit kept with its 95 % t interval over paired seeds."""
    by = {(r["arm"], r["seed"]): r for r in records}
    seeds = sorted({seed for arm, seed in by if arm == "clean"})
    lines = [
        "| arm | success | last quarter | benefit kept, all | benefit kept, last quarter | entries (most) "
        "| junk of entries | junk of shown | seeds |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for arm in ARMS:
        own = [by[arm, seed] for seed in seeds if (arm, seed) in by]
        if not own:
            continue
        cells = [arm, *(f"{_mean([r[n] for r in own]):.3f}" for n in ("success", "success_last_quarter"))]
        for name in ("success", "success_last_quarter"):
            shares = [
                (by[arm, s][name] - by["none", s][name]) / (by["clean", s][name] - by["none", s][name])
                for s in seeds
                if {(arm, s), ("none", s)} <= by.keys()
            ]
            cells.append(_interval(shares) if arm not in ("none", "clean") else "–")
        if arm == "none":
            cells += ["–"] * 3
        else:
            cells.append(f"{_mean([r['entries'] for r in own]):.0f} ({max(r['most_entries'] for r in own)})")
            cells += [f"{_mean([r[n] for r in own]):.0%}" for n in ("junk_of_entries", "junk_of_shown")]
        lines.append("| " + " | ".join([*cells, str(len(own))]) + " |")
    return "\n".join(lines)


def _interval(values: Sequence[float]) -> str:
    from twoclock.measure import t_interval

    if len(values) < 2:
        return ", ".join(f"{value:.2f}" for value in values) or "–"
    found = t_interval(values)
    return f"{found.estimate:.2f} [{found.low:.2f}, {found.high:.2f}]"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--arm", choices=ARMS, action="append", help="default: all")
    parser.add_argument("--seed", type=int, action="append", help="default: 0 to 4")
    parser.add_argument("--episodes", type=int, default=Setting.episodes, help="default: %(default)s")
    parser.add_argument("--out", type=Path, default=HERE / "results", help="default: results beside this file")
    parser.add_argument("--table", action="store_true", help="only print the table of the results there are")
    given = parser.parse_args()
    if given.table:
        print(table(results()))
        return
    given.out.mkdir(parents=True, exist_ok=True)
    for seed in given.seed or range(5):
        for arm in given.arm or ARMS:
            out = given.out / f"{arm}-seed{seed}.json"
            if out.exists():
                print(f"{out.name} is there already")
                continue
            with tempfile.TemporaryDirectory() as folder:
                record = play(arm, seed, Setting(episodes=given.episodes), Path(folder) / "memory.sqlite")
            out.write_text(json.dumps(record) + "\n", encoding="utf-8")
            print(f"{out.name}: success {record['success']:.3f} in {record['seconds']:.0f} s", flush=True)


if __name__ == "__main__":
    main()
