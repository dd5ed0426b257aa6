"""Really kills runs: a program for ``test_kill_and_resume.py``, in a process of its own so that it may fork freely.

It loads the model once. For each point a forked child runs until it kills itself with SIGKILL, and another one, which
has nothing of the first, takes the run up. Nothing but loading happens in the parent: a fork does not carry threads.

    python kill_driver.py points MODEL FOLDER            every point, each in a run of its own, and all in one run
    python kill_driver.py play MODEL RUN [ROUND STEP]    one run, killed at a step where one is given
"""

from __future__ import annotations

import json
import os
import signal
import sys
import traceback
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parent.parent)]

from loop_world import ROLLOUTS, Killer, World  # noqa: E402

from tiny_world import open_tiny  # noqa: E402
from twoclock.errors import StoreError  # noqa: E402
from twoclock.loop import STEPS  # noqa: E402
from twoclock.store import RunStore  # noqa: E402

Point = tuple[int, str]
"""(round, where): a step of the loop, or a place inside one; see ``_arm``."""

IN_STEPS: list[Point] = [(n % 6 + 1, step) for n, step in enumerate(STEPS)]
INSIDE: list[Point] = [
    (0, "begin: measuring"),
    (0, "begin: transaction"),
    (2, "roll out: in the middle"),
    (3, "propose: optimizer"),
    (3, "judge: drift"),
    (4, "commit: half a blob"),
    (4, "commit: blobs put"),
    (5, "commit: transaction"),
    (5, "committed"),
]


def _die(*_: Any, **__: Any) -> Any:
    os.kill(os.getpid(), signal.SIGKILL)


def _before(owner: Any, name: str, when: Callable[..., bool]) -> None:
    """Dies in a call of ``owner.name``, before it does anything, when ``when(its arguments)``."""
    real = getattr(owner, name)

    def watched(*args: Any, **kwargs: Any) -> Any:
        if when(*args, **kwargs):
            _die()
        return real(*args, **kwargs)

    setattr(owner, name, watched)


class At(Killer):
    """Tells in which round and step the loop stands, and dies at ``point`` when it is a step."""

    def __init__(self, point: Point) -> None:
        super().__init__(*point)
        self.now: Point = (0, "begin")

    def strike(self, round: int, step: str) -> None:
        self.now = (round, step)
        super().strike(round, step)


def _arm(point: Point) -> At:
    """An observer that dies at ``point``; for a place inside a step, something of the library is made to die there."""
    from twoclock.evaluation import Evaluator
    from twoclock.models.engine import _Decoding
    from twoclock.slow import training
    from twoclock.store import blobs
    from twoclock.store.ledger import Ledger

    round, where = point
    here = At(point)
    step, _, place = where.partition(": ")

    def reached(*_: Any, **__: Any) -> bool:
        return here.now == (round, step)

    places: dict[str, tuple[Any, str]] = {
        "measuring": (Evaluator, "drift"),
        "transaction": (Ledger, "_add_snapshot"),
        "in the middle": (_Decoding, "_step"),
        "optimizer": (training, "adamw"),
        "drift": (Evaluator, "gate_drift"),
        "half a blob": (blobs.os, "replace"),
        "blobs put": (Evaluator, "drift"),
    }
    if place:
        _before(*places[place], reached)
    return here


def _in_child(work: Callable[[], None]) -> int:
    """Runs ``work`` in a forked child; the signal that ended it, or 0."""
    child = os.fork()
    if child == 0:
        try:
            work()
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    if os.WIFEXITED(status) and os.WEXITSTATUS(status):
        raise SystemExit("a run failed; see its traceback above")
    return os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0


def _committed(path: Path) -> int:
    """The last committed round, -1 before the run has begun; the run must be readable as it was left."""
    try:
        with RunStore.open(path) as store:
            return store.head().round
    except StoreError as error:
        if "no snapshot" in str(error):
            return -1
        raise


def _facts(path: Path) -> dict[str, Any]:
    with RunStore.open(path) as store:
        rounds = store.rounds()
        return {
            "digest": store.digest(),
            "problems": store.verify(),
            "round": store.head().round,
            "reused": sum(row.metrics["reused"] for row in rounds),
            "replaced": sum(row.metrics["groups"] for row in rounds) - ROLLOUTS.items * len(rounds),
        }


def world_of(model: Any) -> World:
    """Whole cycles of Fast-Slow Training: a search on the items to come, its rollouts taken up again by the slow clock
    in the rounds after, dead groups replaced; so a kill falls into every phase of a cycle."""
    return World(
        policy=model,
        channels={"lora": {"objective": "cispo"}, "prompts": {"window": "ahead"}},
        rollouts=replace(ROLLOUTS, reuse=True, dynamic=1),
    )


def points(model: Any, folder: Path) -> list[dict[str, Any]]:
    world = world_of(model)
    _in_child(lambda: world.play(folder / "whole"))  # type: ignore[arg-type, return-value]
    results: list[dict[str, Any]] = [{"point": "none", **_facts(folder / "whole")}]
    for number, point in enumerate([*IN_STEPS, *INSIDE]):
        path = folder / f"run-{number}"
        ended = _in_child(lambda path=path, point=point: world.play(path, _arm(point)))  # type: ignore[misc]
        left = _committed(path)
        _in_child(lambda path=path: world.play(path))  # type: ignore[misc]
        results.append({"point": list(point), "signal": ended, "committed": left, **_facts(path)})
    often = folder / "often"
    ends = [_in_child(lambda point=point: world.play(often, _arm(point))) for point in _in_order()]  # type: ignore[misc]
    _in_child(lambda: world.play(often))  # type: ignore[arg-type, return-value]
    results.append({"point": "all in one run", "signals": ends, **_facts(often)})
    return results


def _in_order() -> list[Point]:
    """Every point in the order in which one run meets them."""
    steps = ["begin", *STEPS, "committed"]
    inside = [p for p in INSIDE if p[1] != "begin: transaction"]  # it comes in the same try as the one before
    return sorted(
        [*IN_STEPS, *inside, (0, "begin: transaction")], key=lambda p: (p[0], steps.index(p[1].split(":")[0]))
    )


def main() -> None:
    verb, folder, path, *point = sys.argv[1:]
    model = open_tiny(Path(folder))
    if verb == "points":
        print(json.dumps(points(model, Path(path))))
        return
    world_of(model).play(Path(path), Killer(int(point[0]), point[1]) if point else None)


if __name__ == "__main__":
    main()
