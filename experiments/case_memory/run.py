"""Case memory with a frozen 135M model: which dock serves a depot, learned from reward alone. One cell a call.

    python experiments/case_memory/run.py --study clean --arm topk4 --seed 0
    python experiments/case_memory/tables.py

Studies. ``clean``: the bank begins empty. ``stale``: it begins with one imported case a depot that names the wrong dock
and claims to have worked, in the words that the questions use: much of what a search finds misleads. ``loud``: the
questions are long and the name is short, so that what lies nearest is mostly another depot; every entry is a candidate
of the learned arms. Arms: ``none``
(the null channel), ``topkN`` / ``randomN`` / ``kernelN`` / ``parametricN`` show N cases; ``unmeasured4`` is ``topk4``
without hold-outs, so that nothing is ever measured or retired for harm; ``oracle4`` shows cases of the right depot with
the right dock, which no channel can know. A cell that was killed resumes; one that is there stays.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))
ROUNDS = 12
ARMS = (
    "none", "topk1", "topk2", "topk4", "topk8", "random1", "random4", "kernel1", "kernel4", "parametric1",
    "parametric4", "unmeasured4", "oracle4",
)  # fmt: skip


def config_for(study: str, arm: str, seed: int) -> Any:
    """The shared file with the arm's channel. The one round on ``reworded`` comes after the last evaluation that is
    reported: it is there so that both tasks are evaluated throughout."""
    from twoclock.config import load_config

    task = "loud" if study == "loud" else "docks"
    stream = f'[{{ task = "{task}", rounds = {ROUNDS} }}, {{ task = "reworded", rounds = 1 }}]'
    overrides = [f"run.seed={seed}", f'run.name="{study}-{arm}-{seed}"', f"stream={stream}"]
    name, k = re.fullmatch(r"([a-z]+)(\d*)", arm).groups()  # type: ignore[union-attr]
    if name in ("none", "oracle"):
        overrides += ["channels={ null = {} }", "rollouts.prompts_per_item=1"]
    else:
        retrieval = "topk" if name == "unmeasured" else name
        candidates = 512 if study == "loud" else 64
        overrides += [
            f"channels.cases.k={k}",
            f"channels.cases.candidates={candidates}",
            f'channels.cases.retrieval="{retrieval}"',
        ]
    if name == "unmeasured":
        overrides.append("rollouts.prompts_per_item=1")
    config, _ = load_config(HERE / "tasks.toml", overrides)
    return config


def stale_bank() -> Any:
    """One case a depot that names another dock than its own, as if it had worked."""
    from make_items import DOCKS, NAMES, SIDES, WORDINGS, dock

    from twoclock.memory.bank import Bank
    from twoclock.memory.records import Entry
    from twoclock.seeding import child_rng

    entries = []
    for depot in (f"{name} {side}" for name in NAMES for side in SIDES):
        rng = child_rng("stale", depot)
        wrong = str(rng.choice([n for n in range(1, DOCKS + 1) if n != dock(depot)]))
        question = rng.choice(WORDINGS).format(depot=depot) + "\nAnswer with one number and nothing else."
        body = {"question": question, "answer": wrong, "item": "", "success": True}
        entries.append(Entry(kind="case", key=question, text=wrong, reward=1.0, trust="imported", body=body))
    return Bank().add(*entries)


def run_cell(study: str, arm: str, seed: int, runs: Path) -> Path:
    """Runs or resumes one cell and writes its result."""
    from twoclock.build import play_run
    from twoclock.fast.memory.state import MemoryState

    out = HERE / "results" / study / f"{arm}-seed{seed}.json"
    if out.exists():
        print(f"{out.name} is there already")
        return out
    states = {"cases": MemoryState(stale_bank())} if study == "stale" and arm not in ("none", "oracle4") else None
    session = play_run(runs / study / f"{arm}-seed{seed}", config_for(study, arm, seed), states, progress=print)
    with session.store as store:
        rounds = store.rounds()
        commits = {e.round: e for e in store.entries(channel="cases") if e.round}
        points: dict[int, dict[str, Any]] = {}
        for e in store.evaluations():
            if e.weights == "live" and e.prompt == "learned" and e.round <= ROUNDS and e.purpose != "final":
                point = points.setdefault(e.round, {"round": e.round, "scores": {}})
                point["scores"][e.task] = [round(sum(e.rewards), 4), len(e.rewards)]
        for number, point in points.items():
            past = [r for r in rounds if r.round <= number]
            point["rollouts"] = int(sum(r.metrics["rollouts"] for r in past))
            point["tokens"] = int(sum(r.metrics["prompt_tokens"] + r.metrics["completion_tokens"] for r in past))
            known = [e for e in commits.values() if e.round <= number and "entries" in e.metrics]
            point["entries"] = int(max(known, key=lambda e: e.round).metrics["entries"]) if known else 0
        result = {
            "study": study,
            "arm": arm,
            "seed": seed,
            "command": f"python experiments/case_memory/run.py --study {study} --arm {arm} --seed {seed}",
            "model": store.environment["model"],
            "dtype": store.environment["dtype"],
            "points": [points[n] for n in sorted(points)],
            "rewards": [round(r.metrics["reward"], 4) for r in rounds if r.round <= ROUNDS],
            "memory_gain": {
                n: [round(e.metrics["memory_gain"], 4), int(e.metrics["memory_gain_groups"])]
                for n, e in commits.items()
                if "memory_gain" in e.metrics and n <= ROUNDS
            },
            "retired": {n: int(e.metrics["retired"]) for n, e in commits.items() if e.metrics.get("retired")},
            "stale_left": stale_left(session) if study == "stale" and states else None,
            "seconds": round(sum(r.metrics["round_s"] for r in rounds)),
            "digest": store.digest(),
        }
        if arm == "oracle4":
            result["oracle"] = {task: oracle(session, task) for task in ("docks", "reworded")}
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(result) + "\n", encoding="utf-8")
    return out


def stale_left(session: Any) -> int:
    """How many of the imported cases are still in the bank."""
    return sum(entry.trust == "imported" for entry in session.states()["cases"].bank.entries)


def oracle(session: Any, task: str) -> list[float]:
    """[right, items]: the held-out items with four cases of the right depot and the right dock."""
    from make_items import NAMES, SIDES, WORDINGS, dock

    from twoclock.bench import grade_rollouts
    from twoclock.seeding import child_rng, child_seed
    from twoclock.types import Conditioning, Request

    items = session.evaluator.heldout(task)
    depots = [f"{name} {side}" for name in NAMES for side in SIDES]
    requests = []
    for item in items:
        depot = next(d for d in depots if d in item.prompt)
        told = [w.format(depot=depot) + "\nAnswer with one number and nothing else." for w in WORDINGS]
        others = child_rng("oracle", 0, item.id).sample([q for q in told if q != item.prompt], 4)
        shown = Conditioning(exemplars=tuple((question, str(dock(depot))) for question in others))
        seeds = (child_seed("evaluate", session.parts.seed, task, item.id, 0),)
        requests.append(Request(prompt=item.prompt, conditioning=shown, seeds=seeds))
    completions = session.policy.sample(requests, session.parts.sampling)
    groups = grade_rollouts(session.parts.tasks[task], items, requests, completions)
    return [sum(g.mean_reward for g in groups), len(groups)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--study", choices=("clean", "stale", "loud"), default="clean")
    parser.add_argument("--arm", choices=ARMS, required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--runs", type=Path, default=Path("runs/case_memory"), help="where run folders go")
    args = parser.parse_args()
    print(run_cell(args.study, args.arm, args.seed, args.runs))


if __name__ == "__main__":
    main()
