"""Fast-Slow Training and the arms it is compared with: a grid of cells, one small result file each.

    python experiments/fast_slow_training/run.py --study single --task largest --arm fst --seed 0
    python experiments/fast_slow_training/run.py --study plasticity --task largest --arm fst --seed 0
    python experiments/fast_slow_training/run.py --study stream --arm fst --seed 0
    python experiments/fast_slow_training/figures.py          # tables and figures of the cells there are

Studies. ``single``: one task, 24 rounds, the deployed score every third round against problems, rollouts and tokens,
and the drift of the weights beside it. ``early``: its first 8 rounds, evaluated after each. ``plasticity``: from where
``single`` ended, plain reinforcement learning on another task. ``stream``: three phases, all tasks evaluated
throughout. A cell that was killed resumes; one that is there stays.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
ARMS = ("base", "prompt_only", "rl_only", "rl_kl", "prompt_then_rl", "rl_then_prompt", "fst", "fst_distill")
TASKS = ("find", "zero", "flow", "largest")
NEXT = {"find": "largest", "largest": "flow", "flow": "largest", "zero": "flow"}
"""What is learned after a task, in the plasticity study."""
ROUNDS = {"single": 24, "early": 8, "plasticity": 12, "stream": 12}
STREAM = ("find", "zero", "flow")
KL_TARGET = 0.3
"""Nats a token, for ``rl_kl``: about where ``fst`` ends on the rollouts' own prompts."""


def config_for(study: str, arm: str, task: str, seed: int, rounds: int | None = None) -> Any:
    """The shared file with the arm's recipe and the study's stream."""
    from twoclock.config import load_config

    phases = STREAM if study == "stream" else (task,)
    length = rounds or ROUNDS[study]
    # A stream changes its task every two cycles: a search is due in the first round of a new one as well.
    stream = ", ".join(f'{{ task = "{name}", rounds = {length} }}' for name in phases)
    overrides = [f"run.seed={seed}", f'run.name="{study}-{arm}-{task}-{seed}"', f'recipe="{arm}"', f"stream=[{stream}]"]
    if study == "early":
        overrides.append("measure.every=1")
    if arm == "rl_kl":
        # As a loss: a policy with one answer in each group feels nothing of a KL that is centred there.
        overrides += [f"channels.lora.kl_target={KL_TARGET}", 'channels.lora.kl="k2_loss"']
    if study == "stream" and arm.startswith(("fst", "prompt_only")):
        overrides.append("allocator.search_on_switch=true")
    config, _ = load_config(HERE / "tasks.toml", overrides)
    return config


def points_of(store: Any, tasks: tuple[str, ...]) -> list[dict[str, Any]]:
    """One record an evaluated round: what learning had spent, scores in both cells, drift on each prompt set."""
    from twoclock.probing.curves import spent_by_round

    spent = spent_by_round(store)
    entries = store.entries()
    drift = store.drift()
    found: dict[int, dict[str, Any]] = {}
    for e in store.evaluations():
        if e.task not in tasks or e.purpose == "final":
            continue
        point = found.setdefault(e.round, {"round": e.round, "scores": {}, "drift": {}})
        cell = "base" if e.weights == "base" else e.prompt
        right = sum(e.rewards)
        point["scores"].setdefault(e.task, {})[cell] = [round(right, 4), len(e.rewards)]
    for number, point in found.items():
        until = [s for s in spent if s.round <= number]
        point["problems"] = sum(s.problems for s in until)
        point["rollouts"] = sum(s.rollouts for s in until)
        point["tokens"] = sum(s.tokens for s in until)
        point["steps"] = sum(e.cost.optimizer_steps for e in entries if e.round <= number)
        for d in drift:
            if d.round == number:
                point["drift"][d.prompts] = [round(d.live_base, 5), round(d.base_live, 5)]
    return [found[n] for n in sorted(found)]


def run_cell(study: str, arm: str, task: str, seed: int, runs: Path) -> Path:
    """Runs or resumes one cell and writes its result."""
    from twoclock.build import play_run

    named = arm if study == "stream" else f"{task}-{arm}"
    out = HERE / "results" / study / f"{named}-seed{seed}.json"
    if out.exists():
        print(f"{out.name} is there already")
        return out
    path = runs / study / f"{named}-seed{seed}"
    states, tasks = None, STREAM if study == "stream" else (task,)
    config = config_for(study, arm, task, seed)
    if study == "plasticity":
        # Fresh plain reinforcement learning on the next task, from the arm's slow state; the fast state stays behind.
        config = config_for("plasticity", "rl_only", NEXT[task], seed)
        states, tasks = slow_states(arm, task, seed, runs), (NEXT[task],)
    with play_run(path, config, states, print).store as store:
        rounds = store.rounds()
        result = {
            "study": study,
            "arm": arm,
            "task": None if study == "stream" else task,
            "seed": seed,
            "command": f"python experiments/fast_slow_training/run.py --study {study} --arm {arm} --seed {seed}"
            + ("" if study == "stream" else f" --task {task}"),
            "model": store.environment["model"],
            "dtype": store.environment["dtype"],
            "points": points_of(store, tasks),
            "dead_groups": [round(r.metrics["dead_groups"], 4) for r in rounds],
            "rewards": [round(r.metrics["reward"], 4) for r in rounds],
            "reused": int(sum(r.metrics["reused"] for r in rounds)),
            "entropy": [round(e.metrics["entropy"], 4) for e in store.entries() if "entropy" in e.metrics],
            "searches": [
                {"round": e.round, "action": e.action, "reason": e.reason}
                for e in store.entries(channel="prompts")
                if e.action in ("commit", "reject")
            ],
            "seconds": round(sum(r.metrics["round_s"] for r in rounds)),
            "digest": store.digest(),
        }
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(result) + "\n", encoding="utf-8")
    return out


def slow_states(arm: str, task: str, seed: int, runs: Path) -> dict[str, Any]:
    """Where the arm's weights ended on the task; empty for an arm that trains none: it begins from the base."""
    from twoclock.build import play_run
    from twoclock.types import Timescale

    if arm in ("base", "prompt_only"):
        return {}
    session = play_run(runs / "single" / f"{task}-{arm}-seed{seed}", config_for("single", arm, task, seed), None, print)
    with session.store:
        states = session.states()
        slow = [n for n, c in session.parts.channels.items() if c.timescale is Timescale.SLOW]
        return {name: states[name] for name in slow}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--study", choices=tuple(ROUNDS), default="single")
    parser.add_argument("--arm", choices=ARMS, required=True)
    parser.add_argument("--task", choices=TASKS, default="largest")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--runs", type=Path, default=Path("runs/fast_slow_training"), help="where run folders go")
    args = parser.parse_args()
    print(run_cell(args.study, args.arm, args.task, args.seed, args.runs))


if __name__ == "__main__":
    main()
