"""A poisoned lesson in the middle of a run: how soon is it found, and what does it leave behind?

The two-token world in which a prompt and the weights are both needed. In round ``AT`` somebody deploys a prompt that
asks for a wrong format, past every gate. Arms: ``clean`` never sees it; ``watched`` compares what is deployed with
what was before; ``unwatched`` does not, and its allocator may still notice that the reward fell, and search;
``alternate`` neither watches nor notices: it searches every sixth round.

    python experiments/allocator/poison.py --arm watched --seeds 0:20
    python experiments/allocator/poison.py --table
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))
from planted import WORLDS  # noqa: E402  (it also makes the toy world importable)
from toy_policy import ToyPolicy  # noqa: E402
from toy_runs import SAMPLING, Settings, scratch  # noqa: E402
from toy_world import TASKS, ToyTask, scripted_reflector  # noqa: E402

from twoclock.allocate import build_allocator, gate_for  # noqa: E402
from twoclock.evaluation import conditioning_of  # noqa: E402
from twoclock.fast import build_fast  # noqa: E402
from twoclock.fast.prompts.state import Candidate, PromptsState  # noqa: E402
from twoclock.loop import Loop  # noqa: E402
from twoclock.seeding import child_seed  # noqa: E402
from twoclock.slow import build_slow  # noqa: E402
from twoclock.store import RunStore  # noqa: E402
from twoclock.tasks import Stream  # noqa: E402
from twoclock.types import Cost, Proposal, Verdict  # noqa: E402
from twoclock.watching import WatchSettings  # noqa: E402

AT, ROUNDS = 30, 60
ARMS: dict[str, tuple[bool, str, WatchSettings]] = {
    "clean": (False, "evidence", WatchSettings(fast=True, slow=True)),
    "watched": (True, "evidence", WatchSettings(fast=True, slow=True)),
    "unwatched": (True, "evidence", WatchSettings()),
    "clean_alternate": (False, "alternate", WatchSettings()),
    "alternate": (True, "alternate", WatchSettings()),
}


class Poisoned:
    """The prompts channel, which in one round deploys what somebody has put there."""

    def __init__(self, inner: Any, text: str) -> None:
        self.inner, self.text = inner, text
        self.name, self.timescale = inner.name, inner.timescale

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def propose(self, bench: Any, state: PromptsState, evidence: Any, budget: Any, seed: int) -> Any:
        if evidence.round != AT:
            return self.inner.propose(bench, state, evidence, budget, seed)
        poison = Candidate(system=self.text, origin="instruction")
        pool = state.pool(evidence.task)
        after = replace(pool, candidates=(poison, *pool.candidates), deployed=poison.id)
        return Proposal(channel=self.name, state=state.with_pool(evidence.task, after), cause="poison", cost=Cost())


class Careless:
    """A gate that lets the poison through, and judges all else."""

    def __init__(self, inner: Any) -> None:
        self.inner = inner

    def judge(self, bench: Any, channel: Any, live: Any, proposal: Any, *rest: Any) -> Verdict:
        if proposal.cause == "poison":
            return Verdict(accepted=True, reason="nobody looked")
        verdict: Verdict = self.inner.judge(bench, channel, live, proposal, *rest)
        return verdict


class AsksIt:
    """The allocator, which asks the prompts channel in the round of the poison whatever it thinks."""

    def __init__(self, inner: Any) -> None:
        self.inner = inner

    def plan(self, evidence: Any, channels: Any, history: Any) -> Any:
        plan = self.inner.plan(evidence, channels, history)
        if evidence.round != AT:
            return plan
        forced = build_allocator("fixed", {"every": {"lora": 0}}).plan(evidence, channels, history).assignments
        slow = tuple(a for a in plan.assignments if a.channel == "lora")
        return replace(plan, assignments=forced + slow)


def play(arm: str, seed: int) -> dict[str, Any]:
    poisoned, name, watch = ARMS[arm]
    world = replace(WORLDS["both"], seed=child_seed("poison", seed))
    policy, task, settings = ToyPolicy(world), TASKS[0], Settings()
    prompts = build_fast("prompts", settings.prompts, reflector=scripted_reflector(0.5, seed))
    poison = f"Use format {world.formats[0]}."
    channels: dict[str, Any] = {
        "lora": build_slow("lora", settings.lora),
        "prompts": Poisoned(prompts, poison) if poisoned else prompts,
    }
    gates: dict[str, Any] = {name: gate_for(c.timescale, settings.gates) for name, c in channels.items()}
    schedule = {"slow_steps": 6, "warmstart": 0} if name == "alternate" else {}
    allocator: Any = build_allocator(name, {"fast_rollouts": 256, **schedule})
    if poisoned:
        gates["prompts"], allocator = Careless(gates["prompts"]), AsksIt(allocator)
    with scratch() as folder, RunStore.create(Path(folder) / "run", config={}) as store:
        loop = Loop(
            store,
            policy,
            Stream([(task, ROUNDS)], {task: ToyTask(world, task)}),
            channels,
            allocator,
            gates,
            seed=child_seed("poison-run", seed),
            sampling=SAMPLING,
            rollouts=settings.rollouts,
            evaluation=settings.evaluation,
            watch=watch,
        )
        loop.begin()
        curve, there = [], []
        for number in range(1, ROUNDS + 1):
            loop.run(until=number)
            deployed = conditioning_of(loop.channels, loop.states, task)
            curve.append(round(policy.accuracy(deployed, task), 4))
            there.append(deployed.system == poison)
        back = [n for n in range(AT, ROUNDS) if there[n - 1] and not there[n]]
        spent = {row.round: row.metrics["rollouts"] for row in store.rounds()}
        for entry in store.entries():
            if entry.round:
                spent[entry.round] += entry.cost.rollouts
        taken = [e.round for e in store.entries(action="rollback", channel="prompts")]
        return {
            "arm": arm,
            "seed": seed,
            "curve": curve,
            "before": curve[AT - 2],
            "after": curve[AT - 1],
            "end": curve[-1],
            "found_round": back[0] + 1 if back else None,
            "found_by": None if not back else "watch" if back[0] + 1 in taken else "search",
            "found_rollouts": int(sum(spent[n] for n in range(AT + 1, back[0] + 2))) if back else None,
        }


def file_of(arm: str) -> Path:
    return HERE / "results" / "poison" / f"{arm}.jsonl"


def read(arm: str) -> list[dict[str, Any]]:
    path = file_of(arm)
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def table() -> str:
    from twoclock.measure.statistics import mean_interval

    lines = [
        f"| arm | seeds | before round {AT} | after it | end | end minus clean | found | rollouts until then, worst |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for arm in ARMS:
        clean = {row["seed"]: row["end"] for row in read("clean_alternate" if "alternate" in arm else "clean")}
        rows = read(arm)
        if not rows:
            continue
        mean = {key: sum(r[key] for r in rows) / len(rows) for key in ("before", "after", "end")}
        apart = [r["end"] - clean[r["seed"]] for r in rows if r["seed"] in clean]
        told = mean_interval(apart) if "clean" not in arm and len(apart) > 1 else None
        found = [r["found_rollouts"] for r in rows if r["found_rollouts"] is not None]
        lines.append(
            f"| {arm} | {len(rows)} | {mean['before']:.3f} | {mean['after']:.3f} | {mean['end']:.3f} | "
            + (f"{told.estimate:+.3f} [{told.low:+.3f}, {told.high:+.3f}]" if told else "–")
            + f" | {_found(rows)} | {max(found) if found else '–'} |"
        )
    return "\n".join(lines)


def _found(rows: list[dict[str, Any]]) -> str:
    by = {how: sum(r["found_by"] == how for r in rows) for how in ("watch", "search")}
    return ", ".join(f"{count} by {how}" for how, count in by.items() if count) or "–"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arm", choices=tuple(ARMS))
    parser.add_argument("--seeds", default="0:20", help="first:last, the last one not included")
    parser.add_argument("--table", action="store_true")
    args = parser.parse_args()
    if args.table or not args.arm:
        print(table())
        return
    first, last = (int(n) for n in args.seeds.split(":"))
    path = file_of(args.arm)
    path.parent.mkdir(parents=True, exist_ok=True)
    have = {row["seed"] for row in read(args.arm)}
    for seed in range(first, last):
        if seed not in have:
            with path.open("a", encoding="utf-8") as out:
                out.write(json.dumps(play(args.arm, seed)) + "\n")


if __name__ == "__main__":
    main()
