"""A run as a configuration file: both clocks, two tasks, five rounds, on a tiny model in a folder beside it."""

from __future__ import annotations

import shutil
from pathlib import Path

from twoclock.config import RunConfig, parse_config

VERIFIER = """
def printable(completions):
    return [1.0 if text and " " <= text[0] <= "~" else (0.0, "begin with something printable") for text in completions]
"""

TEXT = """
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
source = "family"
family = "compare"
config = { count = 2, min_value = 10, max_value = 99 }
verifier = "verify.py:printable"
size = { train = 40, trial = 30, heldout = 10 }

[tasks.smallest]
source = "family"
family = "compare"
config = { count = 2, min_value = 10, max_value = 99, want = "smallest" }
verifier = "verify.py:printable"
size = { train = 40, trial = 30, heldout = 10 }

[[stream]]
task = "largest"
rounds = 3

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
drift = 5.0

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


def lay_beside(folder: Path, model: Path) -> Path:
    """The folder, with what the configuration names in it."""
    shutil.copytree(model, folder / "llama")
    (folder / "verify.py").write_text(VERIFIER)
    return folder


def parsed(folder: Path, *overrides: str, text: str = TEXT) -> RunConfig:
    return parse_config(text, overrides, base_dir=folder)
