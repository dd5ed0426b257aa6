"""The slow clock alone on two tasks, then every probe: one cell a seed and arm, one small result file a cell.

    python experiments/slow_clock_probed/run.py --arm slow --seed 0     # one cell; resumes a run that was killed
    python experiments/slow_clock_probed/run.py --table                 # the tables of the cells there are

Arms: ``slow`` trains LoRA on ``stream.toml``; ``null`` rolls out the same items and learns nothing: whatever a probe
finds there is the probe's own noise.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
ARMS = ("slow", "null")
OOD_ITEMS = 240
FIGURES = ("base", "live", "change", "did", "transfer")
TRAINING_SEEDS = (0, 1)
"""Seeds of the plasticity probe's own training runs, in each cell."""


def config_for(arm: str, seed: int) -> Any:
    """The stream of this folder with the arm's channel."""
    from twoclock.config import load_config

    config, _ = load_config(HERE / "stream.toml", [f"run.seed={seed}", f'run.name="{arm}-seed{seed}"'])
    return config if arm == "slow" else config.model_copy(update={"channels": {"null": {}}})


def train(arm: str, seed: int, path: Path) -> dict[str, Any]:
    """Runs or resumes the training, and says what it cost."""
    from twoclock.build import play_run

    with play_run(path, config_for(arm, seed), progress=print).store as store:
        rounds = store.rounds()
        return {
            "rollouts": int(sum(r.metrics["rollouts"] for r in rounds)),
            "optimizer_steps": sum(e.cost.optimizer_steps for e in store.entries()),
            "seconds": round(sum(r.metrics["round_s"] for r in rounds)),
            "rewards": [round(r.metrics["reward"], 4) for r in rounds],
            "dtype": store.environment["dtype"],
            "model": store.environment["model"],
        }


def run_cell(arm: str, seed: int, runs: Path) -> Path:
    """Trains and probes one cell, and writes its result."""
    from twoclock.probe_file import write_probe
    from twoclock.probing import ProbeSettings, probe_run
    from twoclock.report import write_report

    out = HERE / "results" / f"{arm}-seed{seed}.json"
    if out.exists():
        print(f"{out.name} is there already")
        return out
    path = runs / f"{arm}-seed{seed}"
    trained = train(arm, seed, path)
    probed: dict[str, Any] = {}
    files = []
    for probe in ("drift", "retention", "decomposition", "ood", "plasticity"):
        # A file a probe, so that a cell that is killed while it is probed does not begin again.
        file = path.with_name(f"{path.name}-{probe}.json")
        if not file.exists():
            if arm == "null" and probe == "plasticity":
                continue  # both arms of that probe would be the same run
            settings = ProbeSettings(
                probes=(probe,),
                items=OOD_ITEMS if probe == "ood" else None,
                seeds=TRAINING_SEEDS,
                prompts=24,
            )
            write_probe(probe_run(path, settings, print), file)
        probed[probe] = json.loads(file.read_text(encoding="utf-8"))
        files.append(file)
    if arm == "slow":
        write_report(path, path.with_name(f"{path.name}.html"), probes=files)
    result = {
        "arm": arm,
        "seed": seed,
        "command": f"python experiments/slow_clock_probed/run.py --arm {arm} --seed {seed}",
        "training": trained,
        "probing": {name: {"rollouts": f["cost"]["rollouts"], "seconds": round(f["cost"]["seconds"])}
                    for name, f in probed.items()},
        "run_unchanged": all(f["run_unchanged"] for f in probed.values()),
        "results": {name: f["results"][name] for name, f in probed.items()},
    }  # fmt: skip
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(_rounded(result)) + "\n", encoding="utf-8")
    return out


def _rounded(value: Any) -> Any:
    """Floats to six significant digits: these files are read by people and kept in the repository."""
    if isinstance(value, float):
        return float(f"{value:.6g}")
    if isinstance(value, Mapping):
        return {key: _rounded(v) for key, v in value.items()}
    return [_rounded(v) for v in value] if isinstance(value, list) else value


# --------------------------------------------------------------------------------------------------------------- tables


def _interval(found: Mapping[str, Any] | None, signed: bool = False) -> str:
    if not found or found["estimate"] is None:
        return "–"
    shape = "+.2f" if signed else ".2f"
    low, high = (("?" if v is None else format(v, shape)) for v in (found["low"], found["high"]))
    return f"{found['estimate']:{shape}} [{low}, {high}]"


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    print("| " + " | ".join(heads) + " |")
    print("|" + "---|" * len(heads))
    for row in rows:
        print("| " + " | ".join(row) + " |")
    print()


def tables() -> None:
    """Cells in rows; each interval is one seed's, over items or prompts; from three seeds on a row over seeds."""
    from twoclock.measure import t_interval

    cells = [json.loads(p.read_text(encoding="utf-8")) for p in sorted((HERE / "results").glob("*.json"))]
    cells.sort(key=lambda c: (ARMS.index(c["arm"]), c["seed"]))
    slow = [c for c in cells if c["arm"] == "slow"]
    tasks = list(cells[0]["results"]["decomposition"]["tasks"])

    print("### Gain and retention\n")
    rows = []
    for c in cells:
        retention, decomposition = c["results"]["retention"], c["results"]["decomposition"]["tasks"]
        ends = [_interval(decomposition[t]["effects"]["total"], True) for t in tasks]
        summary = retention["summary"]
        rows.append(
            [
                c["arm"],
                str(c["seed"]),
                *ends,
                _interval(summary["forgetting"], True),
                _interval(summary["backward_transfer"], True),
                _interval(summary["forward_transfer"], True),
                str(c["training"]["rollouts"]),
                str(c["training"]["optimizer_steps"]),
            ]
        )
    if len(slow) >= 3:

        def over(get: Any) -> str:
            return str(t_interval([get(c) for c in slow]))

        rows.append(
            ["slow", f"all {len(slow)}"]
            + [over(lambda c, t=t: c["results"]["decomposition"]["tasks"][t]["effects"]["total"]["estimate"])
               for t in tasks]
            + [over(lambda c, k=k: c["results"]["retention"]["summary"][k]["estimate"])
               for k in ("forgetting", "backward_transfer", "forward_transfer")]
            + ["–", "–"]
        )  # fmt: skip
    _table(["arm", "seed", *(f"gain on {t} at the end" for t in tasks), "forgetting", "backward transfer",
            "forward transfer", "rollouts", "steps"], rows)  # fmt: skip

    print("### Drift of the weights, exact, nats a token\n")
    rows = []
    for c in cells:
        for r in c["results"]["drift"]["records"]:
            if r["prompting"] == "none":
                rows.append([c["arm"], str(c["seed"]), r["prompts"],
                             *(_interval(r[d]["per_token"]) for d in ("live_base", "base_live"))])  # fmt: skip
    _table(["arm", "seed", "prompts", "KL(live‖base)", "KL(base‖live)"], rows)

    print("### Out of distribution\n")
    rows = []
    for c in cells:
        for task, found in c["results"]["ood"]["tasks"].items():
            report = found["report"]
            for variant, split in report["splits"].items():
                figures = split["figures"]
                rows.append(
                    [c["arm"], str(c["seed"]), task, variant]
                    + [_interval(figures.get(k), k in ("change", "did")) for k in FIGURES]
                )  # fmt: skip
            rows.append([c["arm"], str(c["seed"]), task, f"**{report['verdict']}**", *["" for _ in range(5)]])
    _table(["arm", "seed", "task", "variant", "base", "live", "change", "DiD", "transfer"], rows)

    print("### Plasticity: a third task from the trained weights and from the base\n")
    rows = []
    for c in slow:
        p = c["results"].get("plasticity")
        if p and p["ratio"]:
            named = ("ratio", "area", "area_against", "first", "first_against", "dead_groups", "dead_groups_against")
            rows.append([str(c["seed"]), p["task"], *(_interval(p[name]) for name in named)])
    if len(rows) >= 3:
        ratios = [c["results"]["plasticity"]["ratio"]["estimate"] for c in slow if c["results"].get("plasticity")]
        rows.append([f"all {len(ratios)}", "", str(t_interval(ratios)), *["–" for _ in range(6)]])
    _table(["seed", "task", "ratio", "mean score, trained", "mean score, base", "first score, trained",
            "first score, base", "dead groups, trained", "dead groups, base"], rows)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arm", choices=ARMS, default="slow")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--runs", type=Path, default=Path("runs/slow_clock_probed"), help="where run folders go")
    parser.add_argument("--table", action="store_true")
    args = parser.parse_args()
    if args.table:
        tables()
    else:
        print(run_cell(args.arm, args.seed, args.runs))


if __name__ == "__main__":
    main()
