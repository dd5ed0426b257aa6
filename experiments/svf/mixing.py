"""Experts of three cells composed, and chosen for tasks that none was trained on: one result a seed.

    python experiments/svf/mixing.py --seed 0

Takes the runs of the arms ``svf`` and ``lora8`` on all three tasks of that seed (run.py makes them). *Composition*:
every task's held-out score under the base, each expert, the sum of all SVF experts (exact) and their mean, and the LoRA
experts merged with ``cat`` (exact), ``linear`` and ``ties``. *Unseen*: the channel ``experts`` proposes a mixture for
two tasks that no expert was trained on, by its search and by asking the model; held out, beside the base, every single
expert and the best of them chosen on the held-out items themselves (an oracle). The proposals see training items alone.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
TASKS = ("find", "largest", "first")
INSTRUCTION = "Answer with one number and nothing else."
UNSEEN = {
    "smallest": {
        "source": "family",
        "family": "compare",
        "config": {"count": 4, "min_value": 10, "max_value": 99, "want": "smallest"},
        "instruction": INSTRUCTION,
        "extract": "last_number",
    },
    "last": {
        "source": "jsonl",
        "path": "../allocator/stream/last.jsonl",
        "verifier": "number",
        "instruction": INSTRUCTION,
        "size": {"train": 512, "trial": 96, "heldout": 128},
    },
}
ITEMS = 96
SEARCH_ROLLOUTS = 700
DENSITY = 0.5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--runs", type=Path, default=Path("runs/svf"), help="where run.py put its runs")
    args = parser.parse_args()
    out = HERE / "results" / f"mixing-seed{args.seed}.json"
    if out.exists():
        print(f"{out.name} is there already")
        return
    result = Mixing(args.seed, args.runs).result()
    out.write_text(json.dumps(_rounded(result)) + "\n", encoding="utf-8")
    print(out)


class Mixing:
    """One seed's experts, their model and the tasks."""

    def __init__(self, seed: int, runs: Path) -> None:
        from twoclock.build import open_session

        self.seed, self.runs = seed, runs
        session = open_session(runs / f"find-svf-seed{seed}")
        with session.store:
            self.policy: Any = session.policy
        self.parts = session.parts
        self.states = {arm: {task: self._state(task, arm) for task in TASKS} for arm in ("svf", "lora8")}

    def _state(self, task: str, arm: str) -> Any:
        from twoclock.build import open_session

        session = open_session(self.runs / f"{task}-{arm}-seed{self.seed}")
        with session.store:
            (state,) = session.states().values()
        return state

    def result(self) -> dict[str, Any]:
        from twoclock.measure.composition import Composition

        columns, error = self.columns()
        rewards = {task: self.scored(self.parts.tasks[task], columns) for task in TASKS}
        found = {
            kind: Composition(
                {t: {c: r for c, r in row.items() if c == "base" or c.startswith(kind)} for t, row in rewards.items()},
                {t: f"{kind} {t}" for t in TASKS},
            )
            for kind in ("svf", "lora")
        }
        ways = {"svf": ("svf sum", "svf mean"), "lora": ("lora cat", "lora linear", "lora ties")}
        return {
            "seed": self.seed,
            "command": f"python experiments/svf/mixing.py --seed {self.seed}",
            "items": ITEMS,
            "scores": {t: {c: sum(r) / len(r) for c, r in row.items()} for t, row in rewards.items()},
            "matrix": {
                kind: {t: {e: i.as_dict() for e, i in row.items()} for t, row in one.matrix().items()}
                for kind, one in found.items()
            },
            "interference": {
                way: {t: found[kind].interference(t, way).estimate for t in TASKS}
                for kind, some in ways.items()
                for way in some
            },
            "error": error,
            "unseen": {name: self.unseen(name) for name in UNSEEN},
        }

    def columns(self) -> tuple[dict[str, Any], dict[str, float]]:
        """By name a change of weights (None: the base), and how far each merge is from the exact sum."""
        from twoclock.nn.merging import MERGES, merge_error, merged
        from twoclock.nn.mixing import amounts_by_module, mixed
        from twoclock.types import Delta

        base = self.policy.base_hash
        columns: dict[str, Any] = {"base": None}
        error = {}
        for kind, arm in (("svf", "svf"), ("lora", "lora8")):
            columns |= {f"{kind} {task}": state.delta for task, state in self.states[arm].items()}
        changes = [state.delta.payload for state in self.states["svf"].values()]
        for name, amount in (("sum", 1.0), ("mean", 1.0 / len(TASKS))):
            payload = mixed([(c, amounts_by_module(c, "expert", [amount])) for c in changes])
            columns[f"svf {name}"] = Delta(f"svf {name} of seed {self.seed}", "svf", base, payload)
            error[f"svf {name}"] = 0.0
        lows = [state.delta.payload for state in self.states["lora8"].values()]
        for how in MERGES:
            payload = merged(lows, [1.0] * len(lows), how, density=DENSITY)
            columns[f"lora {how}"] = Delta(f"lora {how} of seed {self.seed}", "lora", base, payload)
            error[f"lora {how}"] = merge_error(lows, [1.0] * len(lows), payload)
        return columns, error

    def scored(self, task: Any, columns: Mapping[str, Any]) -> dict[str, list[float]]:
        """Held-out rewards by column, item by item, all of them under the same random numbers."""
        from twoclock.bench import grade_rollouts
        from twoclock.seeding import child_rng, child_seed
        from twoclock.types import Conditioning, Request

        pool = task.split("heldout")
        items = child_rng("mixing", self.seed, task.name).sample(pool, min(ITEMS, len(pool)))
        found = {}
        for name, delta in columns.items():
            print(f"{task.name} under {name}")
            seeds = [(child_seed("mixing", self.seed, task.name, item.id),) for item in items]
            told = Conditioning(mixture=delta)
            requests = [Request(prompt=i.prompt, conditioning=told, seeds=s) for i, s in zip(items, seeds, strict=True)]
            groups = grade_rollouts(task, items, requests, self.policy.sample(requests, self.parts.sampling))
            found[name] = [group.mean_reward for group in groups]
        return found

    def unseen(self, name: str) -> dict[str, Any]:
        """Each way of choosing on a task that no expert was trained on."""
        from twoclock.tasks import build_task
        from twoclock.types import Conditioning, Proposal

        task = build_task(name, UNSEEN[name], self.seed, HERE)
        singles = {f"expert {t}": state.delta for t, state in self.states["svf"].items()}
        chosen: dict[str, Any] = {}
        told = {}
        for way, options in (
            ("cem", {}),
            ("cem by layer", {"grain": "layer"}),
            ("prompt", {"strategy": "prompt"}),
        ):
            channel, offer = self.proposed(task, options)
            state = offer.state if isinstance(offer, Proposal) else channel.init(self.policy.card, self.seed)
            chosen[way] = channel.condition(state, name).mixture
            told[way] = offer.cause if isinstance(offer, Proposal) else offer.reason
            assert isinstance(channel.condition(state, name), Conditioning)
        scores = self.scored(task, {"base": None, **singles, **chosen})
        means = {column: sum(r) / len(r) for column, r in scores.items()}
        return {"scores": means, "oracle": max(means[c] for c in ("base", *singles)), "told": told}

    def proposed(self, task: Any, options: Mapping[str, Any]) -> tuple[Any, Any]:
        """What the channel ``experts`` offers for a task, on a budget of rollouts."""
        from twoclock.bench import Bench, grade_rollouts
        from twoclock.fast.experts import ExpertsChannel, ExpertsConfig
        from twoclock.seeding import child_seed
        from twoclock.types import Budget, Conditioning, Evidence, Request

        channel = ExpertsChannel(ExpertsConfig(**options), _Held(self.states["svf"]))
        budget = Budget(rollouts=SEARCH_ROLLOUTS)
        bench = Bench(self.policy, task, others=Conditioning(), sampling=self.parts.sampling, budget=budget)
        items = bench.items("train", 8, child_seed("mixing-evidence", self.seed))
        requests = [Request(prompt=i.prompt, conditioning=Conditioning(), seeds=(1, 2)) for i in items]
        groups = grade_rollouts(task, items, requests, self.policy.sample(requests, self.parts.sampling))
        evidence = Evidence(
            round=1, phase=0, task=task.name, groups=groups, conditionings={Conditioning().id: Conditioning()}
        )
        seed = child_seed("mixing-propose", self.seed, task.name)
        return channel, channel.propose(bench, channel.init(self.policy.card, self.seed), evidence, budget, seed)


class _Held:
    """The cells' experts as a library."""

    def __init__(self, states: Mapping[str, Any]) -> None:
        self.states = states

    @property
    def kinds(self) -> dict[str, str]:
        return {
            "find": "which number stands among some words",
            "largest": "which of some numbers is the largest",
            "first": "which of two numbers among some words comes first",
        }

    def require_base(self, base_hash: str) -> None:
        assert all(state.base == base_hash for state in self.states.values())

    def delta(self, name: str) -> Any:
        return self.states[name].delta


def _rounded(value: Any) -> Any:
    """Floats to six significant digits: these files are read by people and kept in the repository."""
    if isinstance(value, float):
        return float(f"{value:.6g}")
    if isinstance(value, Mapping):
        return {key: _rounded(v) for key, v in value.items()}
    return [_rounded(v) for v in value] if isinstance(value, Sequence) and not isinstance(value, str) else value


if __name__ == "__main__":
    main()
