"""The table of fast channels: names, options, entry points, and the null channel."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import fields
from importlib.metadata import EntryPoint, EntryPoints
from pathlib import Path
from typing import Any

import pytest
from prompts_bench import FakeBench, coin_flip, evidence_of

from twoclock.errors import ConfigError, StoreError
from twoclock.fast import FAST_CHANNELS, FastSpec, build_fast, fast_names, fast_spec
from twoclock.fast.null import NullChannel, NullConfig, NullState
from twoclock.fast.prompts import PromptsChannel, PromptsConfig
from twoclock.fast.prompts.config import PROPOSERS
from twoclock.types import Budget, Declined, Timescale


@pytest.mark.parametrize("name", sorted(FAST_CHANNELS))
def test_every_row_builds_a_fast_channel_of_its_name(name: str) -> None:
    channel = build_fast(name, {})
    assert channel.name == name
    assert channel.timescale is Timescale.FAST
    assert fast_spec(name).summary


def test_an_unknown_name_tells_the_nearest() -> None:
    with pytest.raises(ConfigError, match="unknown fast channel 'promts'; did you mean 'prompts'"):
        build_fast("promts", {})


def test_all_mistakes_in_the_options_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        build_fast("prompts", {"pool_sise": 3, "num_new": "many", "scope": "tasks", "flavour": 1})
    text = str(caught.value)
    assert len(caught.value.problems) == 4
    assert "channel 'prompts'" in text
    assert "did you mean 'pool_size'" in text
    assert "num_new = 'many'" in text
    assert "scope = 'tasks'" in text
    with pytest.raises(ConfigError) as caught:
        build_fast("prompts", {"pool_size": 1, "memory": -1})
    assert len(caught.value.problems) == 2
    with pytest.raises(ConfigError, match="unknown option 'size'"):
        build_fast("null", {"size": 3})


def test_plain_values_become_a_config() -> None:
    channel = build_fast("prompts", {"num_exemplars": [2, 3], "instructions": ["Be brief."]})
    assert isinstance(channel, PromptsChannel)
    assert channel.config.num_exemplars == (2, 3)
    assert channel.config.instructions == ("Be brief.",)


def test_the_page_of_the_prompts_channel_names_every_setting_with_its_default() -> None:
    page = (Path(__file__).parents[2] / "docs" / "channels" / "prompts.md").read_text(encoding="utf-8")
    table = page.partition("## Settings")[2].partition("\n**")[0]
    rows = [
        [cell.strip(" `") for cell in line.split("|")[1:3]] for line in table.splitlines() if line.startswith("| `")
    ]
    assert rows == [[f.name, json.dumps(f.default)] for f in fields(PromptsConfig)]
    assert all(f"| `{name}` |" in page for name in PROPOSERS)


def outside(config: Any, reflector: Any) -> NullChannel:
    return NullChannel()


OUTSIDE = FastSpec(config=NullConfig, build=outside, summary="from elsewhere")


def test_a_channel_of_another_package(monkeypatch: pytest.MonkeyPatch) -> None:
    points = EntryPoints(
        [
            EntryPoint(name="outside", value="test_fast_table:OUTSIDE", group="twoclock.channels"),
            EntryPoint(name="wrong", value="test_fast_table:outside", group="twoclock.channels"),
        ]
    )
    monkeypatch.setattr("importlib.metadata.entry_points", lambda group: points.select(group=group))
    assert fast_names() == sorted([*FAST_CHANNELS, "outside", "wrong"])
    assert isinstance(build_fast("outside", {}), NullChannel)
    with pytest.raises(ConfigError, match="names no FastSpec"):
        build_fast("wrong", {})


def test_null_changes_nothing() -> None:
    channel = NullChannel()
    bench = FakeBench(coin_flip)
    state = channel.init(bench.card, 0)
    assert state == NullState()
    offer = channel.propose(bench, state, evidence_of(bench), Budget(rollouts=100), 1)
    assert isinstance(offer, Declined)
    assert "learns nothing" in offer.reason
    assert bench.spent.rollouts == 0
    assert channel.condition(state, "digits").is_identity
    assert channel.load(channel.dump(state)) == state
    with pytest.raises(StoreError, match="'null'"):
        channel.load(b"{}")


def test_listing_the_channels_imports_nothing_heavy() -> None:
    code = (
        "import sys, twoclock.fast, twoclock.allocate; twoclock.fast.fast_names(); "
        "print(sorted({'torch', 'numpy', 'gepa', 'pydantic', 'scipy'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
