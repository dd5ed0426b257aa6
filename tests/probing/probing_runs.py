"""Runs to probe: a tiny random Llama that learned on both clocks, and a scripted one whose skill is known."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from click.testing import CliRunner, Result

from twoclock.build import create_session
from twoclock.cli import main
from twoclock.config import parse_config
from twoclock.models.scripted import ScriptedPolicy
from twoclock.seeding import child_rng
from twoclock.types import Conditioning

VERIFIER = """
def printable(completions):
    return [1.0 if text and " " <= text[0] <= "~" else 0.0 for text in completions]
"""

TASK = """
source = "family"
family = "compare"
verifier = "verify.py:printable"
size = { train = 40, trial = 30, heldout = 12 }
"""

LOCAL = f"""
[run]
seed = 4

[model]
source = "llama"
dtype = "float32"
device = "cpu"
threads = 1

[sampling]
max_new_tokens = 5

[tasks.largest]
{TASK}
config = {{ count = 2, min_value = 10, max_value = 99 }}

[tasks.smallest]
{TASK}
config = {{ count = 2, min_value = 10, max_value = 99, want = "smallest" }}

[tasks.fresh]
{TASK}
config = {{ count = 2, min_value = 100, max_value = 999 }}

[[stream]]
task = "largest"
rounds = 2

[[stream]]
task = "smallest"
rounds = 2

[rollouts]
items = 4
per_item = 4

[channels.prompts]
num_exemplars = [1]
num_new = 2
search_items = 8
first_items = 4

[channels.lora]
rank = 2
learning_rate = 0.05
targets = ["q_proj", "down_proj"]

[allocator]
name = "alternate"
warmstart = 0
slow_steps = 2
drift = 50.0

[gates]
fast = "accept"

[measure]
heldout_items = 8
drift_every = 2
drift_prompts = 2
drift_tokens = 4
gate_prompts = 2
gate_tokens = 3
"""

SUMS = """
[run]
name = "sums"
seed = 1

[sampling]
max_new_tokens = 12

[tasks.add]
source = "family"
family = "sum"
config = { max_value = 99 }
templates = [0]
size = { train = 80, trial = 80, heldout = 40 }

[[stream]]
task = "add"
rounds = 3

[rollouts]
items = 4
per_item = 2

[channels.prompts]
num_exemplars = [2]
num_new = 2
search_items = 8
first_items = 4

[allocator]
name = "fixed"
"""


def local_run(folder: Path, tiny_folder: Path, text: str = LOCAL) -> Path:
    """A whole run of the tiny model."""
    shutil.copytree(tiny_folder, folder / "llama")
    (folder / "verify.py").write_text(VERIFIER)
    session = create_session(parse_config(text, base_dir=folder), folder / "run", config_text=text)
    with session.store:
        loop = session.loop()
        loop.begin()
        loop.run()
    return folder / "run"


def numbers(prompt: str) -> list[int]:
    """Of the problem itself, whatever stands before it."""
    return [int(n) for n in re.findall(r"\d+", prompt.rsplit("\n", 1)[-1])]


def calculates(prompt: str) -> str:
    left_out = re.search(r"leave out the (first|second|third|fourth) number", prompt)
    given = numbers(prompt)
    if left_out:
        given.pop(("first", "second", "third", "fourth").index(left_out[1]))
    return str(sum(given))


def memorises(prompt: str) -> str:
    """Knows the trained words around three numbers, and nothing else."""
    return calculates(prompt) if re.fullmatch(r"What is \d+ \+ \d+ \+ \d+\?", prompt) else "7"


def scripted(skill: Callable[[str], str], base: float = 0.35) -> Callable[..., ScriptedPolicy]:
    """What stands in for ``build_policy``: without exemplars right by luck alone, with them what ``skill`` says."""

    def script(prompt: str, conditioning: Conditioning, seed: int) -> str:
        if conditioning.exemplars:
            return skill(prompt)
        return calculates(prompt) if child_rng("base", seed, prompt).random() < base else "8"

    def build(config: Any, progress: Any = None, **more: Any) -> ScriptedPolicy:
        return ScriptedPolicy(script)

    return build


def call(*words: Any) -> Result:
    result = CliRunner().invoke(main, [*map(str, words)])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def probed(*words: Any) -> Any:
    """The JSON of a probe that must succeed."""
    done = call("probe", *words, "--json")
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)
