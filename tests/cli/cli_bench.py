"""What the tests of the command line share: two small tasks, a configuration, and a model that follows a script.

The script answers a sum rightly one time in ten, and nine times in ten once it is shown exemplars: so there is
something for the fast clock to learn, and a whole run takes a fraction of a second.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from click.testing import CliRunner, Result

from twoclock.cli import main
from twoclock.models.scripted import ScriptedPolicy
from twoclock.seeding import child_rng
from twoclock.types import Conditioning

CONFIG = """
[run]
name = "sums"
seed = 3

[tasks.double]
source = "jsonl"
path = "double.jsonl"
shares = { train = 0.4, trial = 0.4, heldout = 0.2 }

[tasks.next]
source = "jsonl"
path = "next.jsonl"
shares = { train = 0.4, trial = 0.4, heldout = 0.2 }

[[stream]]
task = "double"
rounds = 3

[[stream]]
task = "next"
rounds = 2

[rollouts]
items = 4
per_item = 2

[channels.prompts]
num_exemplars = [2]
num_new = 2
search_items = 8
first_items = 4

[channels.null]

[allocator]
name = "fixed"

[measure]
heldout_items = 20
"""


def answer(prompt: str) -> str:
    word, number = prompt.split()
    return str(2 * int(number) if word == "Double" else int(number) + 1)


def script(prompt: str, conditioning: Conditioning, seed: int) -> str:
    chance = 0.9 if conditioning.exemplars else 0.1
    right = child_rng("script", seed, prompt).random() < chance
    return answer(prompt) if right else "no idea"


class Model:
    """Stands in for ``twoclock.build.build_policy``; ``before`` is called with the number of each call to sample."""

    def __init__(self) -> None:
        self.before: Callable[[int], None] = lambda call: None
        self.script = script
        self.policies: list[ScriptedPolicy] = []

    def __call__(self, config: Any, progress: Any = None, **more: Any) -> Any:
        policy = ScriptedPolicy(self.script)
        self.policies.append(policy)
        sample, before = policy.sample, self.before

        def watched(requests: Any, sampling: Any) -> Any:
            before(policy.calls)
            return sample(requests, sampling)

        policy.sample = watched  # type: ignore[method-assign]
        return policy


def write_data(folder: Path, text: str = CONFIG) -> Path:
    """The data files and the configuration; returns the configuration's path."""
    for name, word in (("double", "Double"), ("next", "After")):
        rows = [{"prompt": f"{word} {n}", "answer": answer(f"{word} {n}")} for n in range(150)]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    path = folder / "sums.toml"
    path.write_text(text)
    return path


def call(*words: Any, text: str | None = None, debug: bool = False) -> Result:
    """``twoclock WORDS``; an exception that no verb should let out fails the test."""
    result = CliRunner().invoke(main, [*(["--debug"] if debug else []), *map(str, words)], input=text)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def well(*words: Any, text: str | None = None) -> Result:
    """The same for a call that must succeed."""
    result = call(*words, text=text)
    assert result.exit_code == 0, result.output
    return result
