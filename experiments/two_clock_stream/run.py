"""What each clock does on the demo's stream: arms × seeds, one small result file a cell.

    python experiments/two_clock_stream/run.py --arm two_clocks --seed 0     # one cell; resumes a run that was killed
    python experiments/two_clock_stream/run.py --table                       # the table of the cells there are

Arms: ``null`` learns nothing; ``fast_only`` searches prompts; ``slow_only`` trains LoRA without a prompt;
``two_clocks`` is the demo as packaged. All see the same items with the same seeds.
"""

from __future__ import annotations

import argparse
import json
import os
from importlib import resources
from pathlib import Path
from typing import Any

os.environ.setdefault("PYTHONHASHSEED", "0")

HERE = Path(__file__).parent
ARMS = ("null", "fast_only", "slow_only", "two_clocks")


def config_for(arm: str, seed: int) -> Any:
    """The demo's configuration, with the channels of the arm."""
    import tomllib

    from twoclock.config import from_plain

    data = tomllib.loads(resources.files("twoclock").joinpath("data/demo.toml").read_text(encoding="utf-8"))
    data["run"] = {"name": f"{arm}-{seed}", "seed": seed}
    channels = data["channels"]
    keep = {"null": {}, "fast_only": {"prompts"}, "slow_only": {"lora"}, "two_clocks": {"prompts", "lora"}}[arm]
    data["channels"] = {name: options for name, options in channels.items() if name in keep} or {"null": {}}
    return from_plain(data)


def run_cell(arm: str, seed: int, runs: Path) -> Path:
    """Runs or resumes one cell and writes its result."""
    from twoclock.build import play_run

    out = HERE / "results" / f"{arm}-seed{seed}.json"
    if out.exists():
        print(f"{out.name} is there already")
        return out
    session = play_run(runs / f"{arm}-seed{seed}", config_for(arm, seed), progress=print)
    evaluations, drift = session.evaluate()
    store = session.store
    phase = [e for e in store.evaluations("phase") if (e.weights, e.prompt) == ("live", "learned")]
    rounds = store.rounds()
    result = {
        "arm": arm,
        "seed": seed,
        "command": f"python experiments/two_clock_stream/run.py --arm {arm} --seed {seed}",
        "model": store.environment["model"],
        "dtype": store.environment["dtype"],
        "cells": {
            task: {
                f"{e.weights}/{e.prompt}": {"correct": round(sum(e.rewards)), "n": len(e.rewards)}
                for e in evaluations
                if e.task == task
            }
            for task in dict.fromkeys(e.task for e in evaluations)
        },
        "phase_ends": [
            {"round": e.round, "task": e.task, "correct": round(sum(e.rewards)), "n": len(e.rewards)} for e in phase
        ],
        "drift": {d.prompts: {"live_base": round(d.live_base, 5), "base_live": round(d.base_live, 5)} for d in drift},
        "train_reward": round(sum(r.metrics["reward"] for r in rounds) / len(rounds), 4),
        "rollouts": int(sum(r.metrics["rollouts"] for r in rounds)) + sum(e.cost.rollouts for e in store.entries()),
        "optimizer_steps": sum(e.cost.optimizer_steps for e in store.entries()),
        "seconds": round(sum(r.metrics["round_s"] for r in rounds)),
        "digest": store.digest(),
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    return out


def table() -> None:
    """A row a cell, with Wilson intervals over items; from three seeds on, means with t intervals over seeds."""
    from twoclock.measure import t_interval, wilson

    cells = [json.loads(p.read_text(encoding="utf-8")) for p in sorted((HERE / "results").glob("*.json"))]
    tasks = list(dict.fromkeys(task for c in cells for task in c["cells"]))
    heads = [
        f"{tasks[0]} after its phase",
        *(f"{t} at the end" for t in tasks),
        "drift live‖base",
        "rollouts",
        "seconds",
    ]
    print("| arm | seed | " + " | ".join(heads) + " |")
    print("|---|---|" + "---|" * len(heads))
    for arm in ARMS:
        mine = [c for c in cells if c["arm"] == arm]
        for cell in mine:
            ends = [e for e in cell["phase_ends"] if e["task"] == tasks[0] and e["round"] > 0]
            scores = [min(ends, key=lambda e: e["round"]), *(cell["cells"][t]["live/learned"] for t in tasks)]
            drift = cell["drift"].get("general", {}).get("live_base", 0.0)
            columns = [*(str(wilson(x["correct"], x["n"])) for x in scores), f"{drift:.3f}"]
            print(
                f"| {arm} | {cell['seed']} | "
                + " | ".join([*columns, str(cell["rollouts"]), str(cell["seconds"])])
                + " |"
            )
        if len(mine) >= 3:
            means = [
                t_interval(
                    [c["cells"][t]["live/learned"]["correct"] / c["cells"][t]["live/learned"]["n"] for c in mine]
                )
                for t in tasks
            ]
            print(f"| {arm} | all {len(mine)} | – | " + " | ".join(map(str, means)) + " | – | – | – |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arm", choices=ARMS)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--runs", type=Path, default=Path("runs/two_clock_stream"), help="where run folders go")
    parser.add_argument("--table", action="store_true")
    args = parser.parse_args()
    if args.table:
        table()
    elif args.arm:
        print(run_cell(args.arm, args.seed, args.runs))
    else:
        parser.error("give --arm (and --seed), or --table")


if __name__ == "__main__":
    main()
