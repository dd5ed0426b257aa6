"""Learned retrieval in a bank of which half misleads: kernel and network against top-K, random, none and the oracle.

    python experiments/case_retrieval/run.py --json experiments/case_retrieval/results/bandit.json   # 5 seeds
    python experiments/case_retrieval/run.py --seeds 2 --episodes 200                                 # a quick look

Every arm reads the same situations with the same luck (paired by seed and episode); the learned arms explore by softmax
while they learn, and are then frozen and measured greedily on held-out situations, in expectation. Differences are over
seeds, 95 % t intervals. ``bandit.py`` beside this says what is planted.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from bandit import FOUND, MISLEADING, USEFUL, World, generator
from scipy.stats import t as student

from twoclock.memory.calibration import auc, brier, calibration_error
from twoclock.memory.retrieval import Retriever, Selection, build_retriever, candidates_of

ARMS = ("none", "random", "topk", "kernel", "additive", "parametric", "oracle")
LEARNED = ("kernel", "additive", "parametric")
KS = (0, 1, 2, 4, 8, 16)
HELDOUT = 200
EARLY = 50


def retriever(arm: str, world: World, **options: Any) -> Retriever[Any]:
    own: dict[str, Any] = {"encoder": "planted", "dimension": world.dimension} if arm in LEARNED else {}
    if arm == "additive":
        return build_retriever("kernel", credit="additive", **own, **options)
    return build_retriever(arm, **own, **options)


def episode(world: World, arm: str, rule: Retriever[Any] | None, state: Any, k: int, index: int, split: str) -> Any:
    """(expected reward, what was chosen) of one episode; nothing chosen for the arms that are no retrievers."""
    topic, query = world.situation(index, split)
    places, hits = world.search(query)
    if rule is None:
        shown = [] if arm == "none" else world.oracle(places.tolist(), topic, k)
        return world.success(shown, topic), None
    chosen = rule.choose(state, query, hits, k, index, vectors=world.contents[places])
    by_id = {hit.entry.id: int(p) for p, hit in zip(places, hits, strict=True)}
    return world.success([by_id[e.id] for e in chosen.entries], topic), chosen


def play(world: World, arm: str, k: int, episodes: int, *, shuffled: bool = False, **options: Any) -> dict[str, Any]:
    """Learn over ``episodes``, then measure frozen and greedy; ``shuffled`` draws rewards that nothing caused."""
    rule = None if arm in ("none", "oracle") else retriever(arm, world, **options)
    state = rule.init(world.seed) if rule else None
    expected = []
    begun = time.process_time()
    for index in range(episodes):
        chance, chosen = episode(world, arm, rule, state, k, index, "learn")
        expected.append(chance)
        if rule and chosen:
            luck = float(generator("luck", world.seed, index).random())
            state = rule.learn(state, [chosen.outcome(float(luck < (0.5 if shuffled else chance)))])
    seconds = time.process_time() - begun
    final = rule and retriever(
        arm, world, **(options | {"selection": Selection(rule="greedy")} if arm in LEARNED else {})
    )
    heldout = [episode(world, arm, final, state, k, n, "heldout")[0] for n in range(HELDOUT)]
    result: dict[str, Any] = {
        "online": float(np.mean(expected)) if expected else math.nan,
        "early": float(np.mean(expected[:EARLY])) if expected else math.nan,
        "heldout": float(np.mean(heldout)),
        "ms_per_episode": 1e3 * seconds / max(episodes, 1),
    }
    if rule and arm in LEARNED and k:
        result |= quality(world, rule, state)
        result["state_bytes"] = len(rule.dump(state))
    return result


def quality(world: World, rule: Any, state: Any) -> dict[str, float]:
    """AUC over held-out pairs of a situation and a case of its own topic, useful or misleading, and how well the values
    are calibrated to whether the reader, shown that case alone, succeeds."""
    values, labels, rewards = [], [], []
    for n in range(HELDOUT):
        topic, query = world.situation(n, "heldout")
        places, hits = world.search(query)
        candidates = candidates_of(hits, 1, world.contents[places])
        found = rule.values(state, query, candidates)
        scores = found[0] if isinstance(found, tuple) else found
        luck = generator("judge", world.seed, n).random(FOUND)
        for place, score, u in zip(places, scores, luck, strict=True):
            if world.topic[place] == topic:
                values.append(float(score))
                labels.append(bool(world.useful[place]))
                rewards.append(float(u < (USEFUL if labels[-1] else MISLEADING)))
    return {
        "auc": auc(values, labels) or 0.0,
        "brier": brier(values, rewards),
        "calibration_error": calibration_error(values, rewards),
    }


def interval(values: Sequence[float]) -> dict[str, Any]:
    """Mean and 95 % t interval over seeds."""
    n, mean = len(values), float(np.mean(values))
    half = float(student.ppf(0.975, n - 1) * np.std(values, ddof=1) / math.sqrt(n)) if n > 1 else math.nan
    return {"mean": round(mean, 4), "low": round(mean - half, 4), "high": round(mean + half, 4), "n": n}


def study(seeds: int, episodes: int, ks: Sequence[int], marked: bool) -> dict[str, Any]:
    cells: dict[str, list[dict[str, Any]]] = {}
    for seed in range(seeds):
        world = World(seed, marked)
        for k in ks:
            for arm in ARMS:
                cells.setdefault(f"{arm}/{k}", []).append(play(world, arm, k, episodes if k else 0))
        for arm in LEARNED:
            cells.setdefault(f"{arm} shuffled/1", []).append(play(world, arm, 1, episodes, shuffled=True))
    table: dict[str, Any] = {}
    for name, runs in cells.items():
        k = name.split("/")[1]
        row = {m: interval([r[m] for r in runs]) for m in runs[0] if not math.isnan(runs[0][m])}
        for other in ("topk", "oracle"):
            against = cells[f"{other}/{k}"]
            for metric in ("heldout", "early"):
                if metric in row and int(k):
                    gaps = [r[metric] - o[metric] for r, o in zip(runs, against, strict=True)]
                    row[f"{metric} minus {other}"] = interval(gaps)
        table[name] = row
    return table


def show(table: dict[str, Any]) -> None:
    def cell(row: dict[str, Any], name: str) -> str:
        x = row.get(name)
        return f"{x['mean']:+.2f} [{x['low']:+.2f}, {x['high']:+.2f}]" if x else "–"

    print(f"{'arm/K':22}{'held out':24}{'minus top-K':24}{'first 50 − top-K':24}{'AUC':24}{'ECE':>6}{'ms':>7}")
    for name, row in table.items():
        columns = [cell(row, c) for c in ("heldout", "heldout minus topk", "early minus topk", "auc")]
        error = f"{row['calibration_error']['mean']:.2f}" if "calibration_error" in row else "–"
        print(f"{name:22}" + "".join(f"{c:24}" for c in columns) + f"{error:>6}{row['ms_per_episode']['mean']:7.1f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--episodes", type=int, default=800)
    parser.add_argument("--ks", type=int, nargs="+", default=list(KS))
    parser.add_argument("--worlds", nargs="+", default=["unmarked", "marked"], choices=["unmarked", "marked"])
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    results = {}
    for name in options.worlds:
        print(f"\n{name}: {options.seeds} seeds, {options.episodes} episodes")
        results[name] = study(options.seeds, options.episodes, options.ks, name == "marked")
        show(results[name])
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        settings = {"seeds": options.seeds, "episodes": options.episodes, "ks": options.ks, "heldout": HELDOUT}
        options.json.write_text(json.dumps({"settings": settings, **results}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
