"""Really kills consolidations: a program for ``test_consolidation.py``, in a process of its own so that it may fork.

For each place a forked child consolidates a run of its own until it kills itself there with SIGKILL. Nothing is done
with tensors before a fork, as a fork does not carry threads.

    python consolidation_kill.py FOLDER        the runs FOLDER/step, FOLDER/score and FOLDER/commit must be there
"""

from __future__ import annotations

import os
import signal
import sys
import traceback
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).parent.parent)]

from two_token_world import SETTINGS, TwoTokenWorld, consolidation  # noqa: E402
from twoclock.consolidation import driver, plan_consolidation  # noqa: E402
from twoclock.slow import training  # noqa: E402
from twoclock.store import RunStore  # noqa: E402

PLACES = ("step", "score", "commit")
"""Inside the first optimizer step; when all is distilled and drift is measured; when the blobs are put."""


def _die(*_: Any, **__: Any) -> Any:
    os.kill(os.getpid(), signal.SIGKILL)


def _consolidate(path: Path, place: str) -> None:
    owner, name = {
        "step": (training, "adamw"),
        "score": (driver._Attempt, "_score"),
        "commit": (RunStore, "append_consolidation"),
    }[place]
    setattr(owner, name, _die)
    world = TwoTokenWorld()
    with RunStore.open(path, write=True) as store:
        loop = world.loop(store)
        loop.restore()
        plan = plan_consolidation(
            store, loop.stream, loop.channels, loop.states, SETTINGS, seed=0, lessons=[world.lesson()]
        )
        consolidation(loop).carry_out(plan, loop.states)


def main() -> None:
    for place in PLACES:
        child = os.fork()
        if child == 0:
            try:
                _consolidate(Path(sys.argv[1]) / place, place)
            except BaseException:
                traceback.print_exc()
            os._exit(1)
        print(place, os.waitpid(child, 0)[1])


if __name__ == "__main__":
    main()
