"""The stream that decides: a lasting skill, and a convention that flips between four phases. One cell a call.

    python experiments/allocator/stream/make_items.py
    python experiments/allocator/stream/run.py --arm evidence --seed 0
    python experiments/allocator/stream/tables.py

Arms. ``slow_only``: reinforcement learning every round. ``fast_only``: a prompt search every sixth round.
``fst``: Fast-Slow Training, both. ``bandit``: one clock a round, drawn by what its turns have brought for their cost.
``evidence``: the allocator of this library, with its writes watched. ``oracle``: is shown right examples from each
phase's first round, and trains the weights under them. ``null``: nobody learns. A cell that was killed resumes.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))
ARMS = ("null", "slow_only", "fast_only", "fst", "bandit", "evidence", "oracle")
PROMPTS = "{ num_exemplars = [4, 6], num_new = 6, search_items = 24, gold_items = 24 }"
LORA = "{ rank = 8, learning_rate = 1e-3 }"
LIMITS = "fast_rollouts = 160, drift = 5.0"


def overrides_for(arm: str) -> list[str]:
    """What the arm adds to the shared file."""
    slow = f"lora = {LORA}"
    both = f"channels={{ prompts = {PROMPTS}, {slow} }}"
    two = "rollouts.prompts_per_item=2"
    match arm:
        case "null":
            return ["channels={ null = {} }"]
        case "slow_only":
            return [f"channels={{ {slow} }}", f'allocator={{ name = "fixed", {LIMITS} }}']
        case "fast_only":
            return [f"channels={{ prompts = {PROMPTS} }}", two, _alternate()]
        case "fst":
            return [both, two, _alternate()]
        case "bandit":
            return [both, two, f'allocator={{ name = "bandit", {LIMITS} }}']
        case "evidence":
            each = LORA.replace(" }", ', grouping = "prompt" }')
            return [
                f"channels={{ prompts = {PROMPTS}, lora = {each} }}",
                two,
                f'allocator={{ name = "evidence", {LIMITS} }}',
                "watch={ fast = true, slow = true, sentinel_items = 16, sentinel_every = 4 }",
            ]
        case "oracle":
            return [f"channels={{ oracle = {{}}, {slow} }}", f'allocator={{ name = "fixed", {LIMITS} }}']
    raise ValueError(arm)


def _alternate() -> str:
    """Fast-Slow Training's own schedule, its warm-start cut as in ``experiments/fast_slow_training``; a new phase is
    searched in its first round."""
    return f'allocator={{ name = "alternate", slow_steps = 6, warmstart = 0, search_on_switch = true, {LIMITS} }}'


def run_cell(arm: str, seed: int, runs: Path) -> Path:
    """Runs or resumes one cell and writes its result."""
    from twoclock.build import play_run
    from twoclock.config import load_config
    from twoclock.fast import FAST_CHANNELS

    FAST_CHANNELS.setdefault("oracle", "oracle_channel:SPEC")
    out = HERE / "results" / f"{arm}-seed{seed}.json"
    if out.exists():
        print(f"{out.name} is there already")
        return out
    config, _ = load_config(HERE / "tasks.toml", [f"run.seed={seed}", f'run.name="{arm}-{seed}"', *overrides_for(arm)])
    with play_run(runs / f"{arm}-seed{seed}", config, None, print).store as store:
        rounds, entries = store.rounds(), store.entries()
        result = {
            "arm": arm,
            "seed": seed,
            "command": f"python experiments/allocator/stream/run.py --arm {arm} --seed {seed}",
            "model": store.environment["model"],
            "dtype": store.environment["dtype"],
            "phases": [r.phase for r in rounds],
            "online": [round(r.metrics["signal_deployed"], 4) for r in rounds],
            "rewards": [round(r.metrics["reward"], 4) for r in rounds],
            "rollouts": [int(r.metrics["rollouts"]) for r in rounds],
            "scores": [
                [e.round, e.task, e.weights, e.prompt, round(sum(e.rewards), 4), len(e.rewards)]
                for e in store.evaluations()
            ],
            "drift": [[d.round, d.prompts, round(d.live_base, 5), round(d.base_live, 5)] for d in store.drift()],
            "ledger": [
                [
                    e.round,
                    e.channel,
                    e.action,
                    e.cause[:160],
                    e.reason[:160],
                    e.cost.rollouts,
                    e.cost.tokens,
                    e.cost.trained_tokens,
                ]
                for e in entries
                if e.round
            ],
            "tokens": sum(
                int(r.metrics["prompt_tokens"] + r.metrics["completion_tokens"] + r.metrics.get("watch_tokens", 0))
                for r in rounds
            )
            + sum(e.cost.tokens + 3 * e.cost.trained_tokens for e in entries),
            "seconds": round(sum(r.metrics["round_s"] for r in rounds)),
            "digest": store.digest(),
        }
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(result) + "\n", encoding="utf-8")
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arm", choices=ARMS, required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--runs", type=Path, default=Path("runs/allocator_stream"), help="where run folders go")
    args = parser.parse_args()
    print(run_cell(args.arm, args.seed, args.runs))


if __name__ == "__main__":
    main()
