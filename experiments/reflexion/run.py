"""Reflexion's trial curve and its controls: one arm on one environment with one seed is a cell, one small file.

    python experiments/reflexion/run.py --env coin --arm reflexion --reflector scripted --seed 0
    python experiments/reflexion/run.py --env coin --all --seed 0            # every arm of the table
    python experiments/reflexion/run.py --env coin --arm reflexion --reflector self --policy packaged --seed 0
    python experiments/reflexion/tables.py                                   # the tables of the cells there are

Environments: ``coin`` (TextWorldExpress, 11 rooms, 6 actions), ``maze`` (the packaged house, 12 rooms, 1 door, 12
actions), ``code`` (the packaged problems, judged by tests that the policy writes). The scripted policies play by rule
and use what their notes say; ``--policy packaged`` is the packaged small model, ``--policy SOURCE`` any other.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

from twoclock.agent.code_tasks import SelfTestEvaluator, SelfTests  # noqa: E402
from twoclock.agent.evaluators import Evaluator  # noqa: E402
from twoclock.agent.reflectors import OracleWriter, PolicyWriter, ScriptedWriter, TemplatedWriter, Writer  # noqa: E402
from twoclock.agent.token_matched import run_token_matched  # noqa: E402
from twoclock.agent.trial_table import TrialTable  # noqa: E402
from twoclock.agent.trials import Strategy, TrialSettings, run_trials  # noqa: E402
from twoclock.agent.windows import first_words  # noqa: E402
from twoclock.contracts import Policy, Task  # noqa: E402
from twoclock.models.scripted import encode  # noqa: E402
from twoclock.tasks import build_task  # noqa: E402
from twoclock.tasks.splits import SPLITS  # noqa: E402
from twoclock.types import Conditioning, Item, Request, Sampling  # noqa: E402

ARMS: dict[str, dict[str, Any]] = {
    "retries": {"strategy": Strategy.NONE},
    "token-matched": {"strategy": Strategy.NONE},
    "last_attempt": {"strategy": Strategy.LAST_ATTEMPT},
    "reflexion": {},
    "last_attempt_and_reflexion": {"strategy": Strategy.LAST_ATTEMPT_AND_REFLEXION},
    "compressed": {"compress": first_words(12)},
    "shuffled": {"memory": "shuffled"},
    "random": {"memory": "random"},
    "placebo": {},
    **{f"window{size}": {"window": size} for size in (0, 1, 2, 8)},
}
"""What each arm changes; ``placebo`` is Reflexion with a policy that ignores its notes."""

REFLECTORS = ("scripted", "templated", "oracle", "self")
NO_REFLECTOR = ("retries", "token-matched", "last_attempt")

TASKS: dict[str, dict[str, Any]] = {
    "coin": {
        "source": "environment",
        "family": "textworld_express",
        "config": {"game": "coin", "params": {"numLocations": 11, "includeDoors": 0, "numDistractorItems": 0}},
        "episode": {"max_steps": 6},
    },
    "maze": {
        "source": "environment",
        "family": "maze",
        "config": {"rooms": 12, "doors": 1},
        "episode": {"max_steps": 12},
    },
    "code": {"source": "code"},
}
SHOTS = tuple(
    (f"{said}\n\nYou can:\n{listed}\n\nThe number of your next action:", number)
    for said, listed, number in (
        ("You are in the barn. To the West you see the mill.", "1. look around\n2. move west", "2"),
        ("You are in the mill. You also see a coin.", "1. inventory\n2. look around\n3. move east\n4. take coin", "4"),
        ("> move north\n  You are in the loft. Ways out: south.", "1. go south\n2. look", "1"),
    )
)
"""Turns that show a small model the form of an answer; the same in every arm."""

SCRIPTED_ITEMS = {"coin": 400, "maze": 400, "code": 36}
TRIALS, WINDOW = 6, 3


def byte_tokens(text: str) -> int:
    """The scripted policies' unit: a token is a byte."""
    return len(encode(text))


class Cell:
    """Everything that one environment, policy and seed need."""

    def __init__(self, env: str, policy: str, seed: int, count: int, tokens: int, temperature: float) -> None:
        self.env, self.seed, self.scripted = env, seed, policy == "scripted"
        spec = dict(TASKS[env])
        if env != "code":
            spec["size"] = {"train": count, "trial": 1, "heldout": 1}
            if not self.scripted:
                spec["episode"] = {"max_steps": 2 * spec["episode"]["max_steps"], "answers": "numbers"}
        self.task: Task = build_task(env, spec, seed)
        everything = [item for split in SPLITS for item in self.task.split(split)]
        self.items: list[Item] = (everything if env == "code" else list(self.task.split("train")))[:count]
        self.tokens = byte_tokens if self.scripted else None
        self.policy, self.ignoring = self._policies(policy)
        self.base = Conditioning() if self.scripted or env == "code" else Conditioning(exemplars=SHOTS)
        self.sampling = Sampling(max_new_tokens=tokens if not self.scripted else 4000, temperature=temperature)

    def _policies(self, source: str) -> tuple[Policy, Policy | None]:
        if self.scripted and self.env == "code":
            from programmer import programmer

            return programmer(self.items), programmer(self.items, reads_notes=False, name="placebo")
        if self.scripted:
            from explorer import explorer

            return explorer(), explorer(reads_notes=False, name="placebo")
        from twoclock.models.local import open_local

        return open_local(source), None

    def writer(self, reflector: str) -> Writer:
        more: dict[str, Any] = {"count": self.tokens} if self.tokens else {}
        if reflector == "self":
            if self.scripted:
                sys.exit("--reflector self needs a model that can write: give --policy packaged, or another reflector")
            return PolicyWriter(self.policy)
        if reflector == "templated":
            return TemplatedWriter(**more)
        if reflector == "oracle":
            return OracleWriter(self._gold, **more)
        if self.env == "code":
            from programmer import lesson_of
        else:
            from explorer import lesson_of
        return ScriptedWriter(lesson_of, **more)

    def _gold(self, item: Item) -> list[str] | None:
        if self.env == "code":
            return [item.reference or ""]
        task: Any = self.task
        return [str(action) for action in task.gold(item) or ()]

    def evaluator(self) -> Evaluator | None:
        """The environment's own, but for code, where it is the policy's own tests."""
        if self.env != "code":
            return None
        more: dict[str, Any] = {"count": self.tokens} if self.tokens else {}
        if self.scripted:
            from programmer import write_tests

            ask: Any = write_tests(self.items, self.seed)
        else:
            ask = self._ask
        return SelfTestEvaluator(SelfTests(ask, **more))

    def _ask(self, prompt: str) -> str:
        request = Request(prompt=prompt, conditioning=Conditioning(), seeds=(self.seed,))
        return self.policy.sample([request], Sampling(max_new_tokens=256, temperature=0.7))[0][0].text

    def settings(self, arm: str) -> TrialSettings:
        wanted: dict[str, Any] = {"trials": TRIALS, "window": WINDOW, "seed": self.seed, "sampling": self.sampling}
        return TrialSettings(**(wanted | ARMS[arm]))

    def run(self, arm: str, reflector: str, like: TrialTable | None = None) -> TrialTable:
        name = arm if arm in NO_REFLECTOR or reflector == "scripted" else f"{arm}, {reflector}"
        settings = self.settings(arm)
        if arm == "token-matched":
            assert like is not None
            return run_token_matched(
                self.policy,
                self.task,
                self.items,
                like,
                settings,
                evaluator=self.evaluator(),
                base=self.base,
                arm=name,
            )
        policy = self.ignoring if arm == "placebo" else self.policy
        if policy is None:
            sys.exit("the placebo is a policy that ignores its notes: there is one only among the scripted policies")
        writer = None if arm in NO_REFLECTOR else self.writer(reflector)
        run = run_trials(
            policy,
            self.task,
            self.items,
            settings,
            writer=writer,
            evaluator=self.evaluator(),
            arm=name,
            base=self.base,
        )
        return run.table


def path_of(env: str, policy: str, arm: str, reflector: str, seed: int) -> Path:
    parts = [env, *([] if policy == "scripted" else [Path(policy).name]), arm]
    parts += [] if arm in NO_REFLECTOR else [reflector]
    return HERE / "results" / f"{'-'.join(parts)}-seed{seed}.json"


def run_cell(cell: Cell, policy: str, arm: str, reflector: str, command: str) -> TrialTable:
    """One cell, or what its file holds."""
    path = path_of(cell.env, policy, arm, reflector, cell.seed)
    if path.exists():
        return TrialTable.from_dict(json.loads(path.read_text(encoding="utf-8"))["table"])
    like = run_cell(cell, policy, "reflexion", reflector, command) if arm == "token-matched" else None
    begun = time.monotonic()
    table = cell.run(arm, reflector, like)
    result = {"command": command, "seconds": round(time.monotonic() - begun, 1), "table": table.as_dict()}
    path.parent.mkdir(exist_ok=True)
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(result, ensure_ascii=False), encoding="utf-8")
    partial.replace(path)
    print(f"{path.name}: {result['seconds']} s", flush=True)
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--env", choices=sorted(TASKS), required=True)
    parser.add_argument("--arm", choices=sorted(ARMS), default="reflexion")
    parser.add_argument("--reflector", choices=REFLECTORS, default="scripted")
    parser.add_argument("--all", action="store_true", help="every arm, with the templated and the oracle reflector too")
    parser.add_argument("--policy", default="scripted", help="scripted, packaged, or a model source")
    parser.add_argument("--items", type=int, help="how many items; 400 (code: all 36), with a model 60")
    parser.add_argument("--tokens", type=int, help="new tokens a turn, with a model; 16 (code: 256)")
    parser.add_argument("--temperature", type=float, default=1.0, help="of the actor; 1")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    count = options.items or (SCRIPTED_ITEMS[options.env] if options.policy == "scripted" else 60)
    tokens = options.tokens or (256 if options.env == "code" else 16)
    if options.env == "code":
        count = min(count, SCRIPTED_ITEMS["code"])
    if count < 2 or tokens < 1 or options.temperature <= 0:
        parser.error("--items takes 2 or more, --tokens 1 or more, --temperature a number above 0: retries must differ")
    cell = Cell(options.env, options.policy, options.seed, count, tokens, options.temperature)
    wanted = [(options.arm, options.reflector)]
    if options.all:
        wanted = [(arm, options.reflector) for arm in ARMS if cell.ignoring is not None or arm != "placebo"]
        wanted += [("reflexion", other) for other in ("templated", "oracle") if other != options.reflector]
    for arm, reflector in wanted:
        more = (
            ""
            if options.policy == "scripted"
            else f" --policy {options.policy} --items {count} --tokens {tokens} --temperature {options.temperature:g}"
        )
        told = "" if arm in NO_REFLECTOR and reflector == "scripted" else f" --reflector {reflector}"
        command = f"python experiments/reflexion/run.py --env {cell.env} --arm {arm}{told}{more} --seed {cell.seed}"
        run_cell(cell, options.policy, arm, reflector, command)


if __name__ == "__main__":
    main()
