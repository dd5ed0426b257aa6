"""Singular values against low rank against all weights, at equal rollouts: one cell a call (task × arm × seed).

    python experiments/svf/run.py --task find --arm svf --seed 0    # one cell; resumes a run that was killed
    python experiments/svf/run.py --task find --arm svf --seed 9 --learning-rate 0.02 --tune   # not reported
    python experiments/svf/tables.py                                # the tables of the cells there are
    python experiments/svf/mixing.py --seed 0                       # experts of three svf cells, mixed and merged

A cell trains 10 rounds of 8 items × 8 rollouts on one task, then measures the held-out score of that task and of the
two that it never saw (retention), drift from the base, and, where the task has variants, how much of what was gained
carries over to them (OOD). Rates were chosen per arm on seed 9 of ``find``, which is in no table.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
TASKS = ("find", "largest", "first")
MLP = '["gate_proj", "up_proj", "down_proj"]'
ALL = '["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]'
ARMS: dict[str, str] = {
    "svf": f"svf = {{ targets = {MLP}, learning_rate = RATE }}",
    "svf_all": f"svf = {{ targets = {ALL}, learning_rate = RATE }}",
    "lora1": "lora = { rank = 1, learning_rate = RATE }",
    "lora8": "lora = { rank = 8, learning_rate = RATE }",
    "lora16": "lora = { rank = 16, learning_rate = RATE }",
    "full": "full = { learning_rate = RATE }",
}
RATES = {"svf": 2e-2, "svf_all": 2e-2, "lora1": 1e-3, "lora8": 1e-3, "lora16": 1e-3, "full": 1e-5}
OOD_ITEMS = 96


def config_for(task: str, arm: str, seed: int, rate: float) -> Any:
    """The cell's configuration."""
    from twoclock.config import load_config

    channel = ARMS[arm].replace("RATE", repr(rate))
    config, _ = load_config(
        HERE / "tasks.toml",
        [
            f"run.seed={seed}",
            f'run.name="{task}-{arm}-{seed}"',
            f'stream=[{{ task = "{task}", rounds = 10 }}]',
            f"channels={{ {channel} }}",
        ],
    )
    return config


def cell_name(task: str, arm: str, seed: int, rate: float) -> str:
    return f"{task}-{arm}-seed{seed}" + ("" if rate == RATES[arm] else f"-rate{rate:g}")


def run_cell(task: str, arm: str, seed: int, rate: float, runs: Path, *, tune: bool) -> Path:
    """Trains and measures one cell, and writes its result. What tunes a rate is trained and scored alone."""
    from twoclock.build import open_session, play_run

    name = cell_name(task, arm, seed, rate)
    out = HERE / ("tuning" if tune else "results") / f"{name}.json"
    if out.exists():
        print(f"{out.name} is there already")
        return out
    path = runs / name
    with play_run(path, config_for(task, arm, seed, rate), progress=print).store as store:
        trained = _trained(store)
    session = open_session(path, write=True)
    with session.store as store:
        if not any(e.purpose == "final" for e in store.evaluations()):
            session.evaluate(print, tasks=[task] if tune else list(TASKS), drift=not tune)
        measured = {
            "parameters": _parameters(session.states()),
            "scores": {
                f"{e.task}/{e.weights}": [round(sum(e.rewards), 4), len(e.rewards)]
                for e in store.evaluations("final")
                if e.prompt == "none"
            },
            "paired": {t: _paired(store, t) for t in ([task] if tune else TASKS)},
            "drift": _drift(store),
            "digest": store.digest(),
        }
    result = {
        "task": task,
        "arm": arm,
        "seed": seed,
        "learning_rate": rate,
        "command": f"python experiments/svf/run.py --task {task} --arm {arm} --seed {seed}",
        **trained,
        **measured,
        **({} if tune else {"ood": _ood(path, task)}),
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(_rounded(result)) + "\n", encoding="utf-8")
    return out


def _trained(store: Any) -> dict[str, Any]:
    rounds = store.rounds()
    return {
        "model": store.environment["model"],
        "dtype": store.environment["dtype"],
        "rewards": [r.metrics["reward"] for r in rounds],
        "rollouts": int(sum(r.metrics["rollouts"] for r in rounds)),
        "commits": sum(e.action == "commit" for e in store.entries()),
        "refused": sum(e.action == "reject" for e in store.entries()),
        "seconds": round(sum(r.metrics["round_s"] for r in rounds)),
    }


def _parameters(states: Mapping[str, Any]) -> int:
    """How many numbers the slow channel trains."""
    (state,) = states.values()
    return sum(tensor.numel() for tensor in state.moving.values())


def _paired(store: Any, task: str) -> dict[str, Any]:
    """Held-out score after minus before, item by item, with its interval over items."""
    from twoclock.measure import paired_difference

    cells = {e.weights: e for e in store.evaluations("final") if e.task == task and e.prompt == "none"}
    after, before = (dict(zip(cells[w].item_ids, cells[w].rewards, strict=True)) for w in ("live", "base"))
    return dict(paired_difference([after[i] for i in after], [before[i] for i in after]).as_dict())


def _drift(store: Any) -> dict[str, list[float]]:
    """By prompt set, KL(live‖base) and KL(base‖live) at the end, nats a token."""
    return {record.prompts: [record.live_base, record.base_live] for record in store.drift()}


def _ood(path: Path, task: str) -> dict[str, Any] | None:
    """By variant, the base's score, the live one, and the difference in differences to the task itself."""
    from twoclock.errors import ConfigError
    from twoclock.probing import ProbeSettings, probe_run

    try:
        found = probe_run(path, ProbeSettings(probes=("ood",), tasks=(task,), items=OOD_ITEMS), print)
    except ConfigError as error:
        print(f"no variants: {error}")
        return None
    report = found["results"]["ood"]["tasks"].get(task, {}).get("report")
    if report is None:
        return None
    figures = ("base", "live", "change", "did", "transfer")
    splits = {name: {f: split["figures"].get(f) for f in figures} for name, split in report["splits"].items()}
    return {"verdict": report["verdict"], "splits": splits}


def _rounded(value: Any) -> Any:
    """Floats to six significant digits: these files are read by people and kept in the repository."""
    if isinstance(value, float):
        return float(f"{value:.6g}") if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _rounded(v) for key, v in value.items()}
    return [_rounded(v) for v in value] if isinstance(value, Sequence) and not isinstance(value, str) else value


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", choices=TASKS, required=True)
    parser.add_argument("--arm", choices=tuple(ARMS), required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--learning-rate", type=float, help="another than the arm's own")
    parser.add_argument("--tune", action="store_true", help="train and score alone; the result goes into tuning/")
    parser.add_argument("--runs", type=Path, default=Path("runs/svf"), help="where run folders go")
    args = parser.parse_args()
    rate = RATES[args.arm] if args.learning_rate is None else args.learning_rate
    print(run_cell(args.task, args.arm, args.seed, rate, args.runs, tune=args.tune))


if __name__ == "__main__":
    main()
