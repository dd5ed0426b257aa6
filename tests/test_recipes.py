"""Recipes: what each arm is filled in to, what a user may change of it, and what is refused."""

from __future__ import annotations

import json
import re
import tomllib
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest

from twoclock.allocate import build_allocator
from twoclock.build import build_parts
from twoclock.config import from_plain, parse_config
from twoclock.errors import ConfigError
from twoclock.recipes import RECIPES, apply_recipe
from twoclock.slow import SLOW_CHANNELS
from twoclock.types import Evidence, Timescale

STREAM = [{"task": "a", "rounds": 16}, {"task": "b", "rounds": 16}]
TASKS = {"a": {"source": "jsonl", "path": "a.jsonl"}, "b": {"source": "jsonl", "path": "b.jsonl"}}
NEEDS = {"rl_kl": {"channels": {"lora": {"kl_target": 0.05}}}}
"""What a user must say himself."""
PARTS = ("channels", "allocator", "gates", "rollouts")
DOCS = Path(__file__).parents[1] / "docs" / "recipes.md"


def applied(recipe: str, **sections: Any) -> dict[str, Any]:
    return apply_recipe({"tasks": TASKS, "stream": STREAM, **NEEDS.get(recipe, {}), "recipe": recipe, **sections})


def problems_of(recipe: Any, **sections: Any) -> tuple[str, ...]:
    with pytest.raises(ConfigError) as caught:
        applied(recipe, **sections)
    return caught.value.problems


# ------------------------------------------------------------------------------------------------------------ the arms

SEARCHING = {"name": "alternate", "slow_steps": 6}
EXPECTED: dict[str, dict[str, Any]] = {
    "base": {"channels": {"null": {}}, "allocator": {"name": "fixed"}, "rollouts": {"prompts_per_item": 1}},
    "prompt_only": {
        "channels": {"prompts": {}},
        "allocator": {**SEARCHING, "warmstart": 0},
        "rollouts": {"prompts_per_item": 1},
    },
    "rl_only": {
        "channels": {"lora": {"objective": "cispo"}},
        "allocator": {"name": "fixed"},
        "rollouts": {"prompts_per_item": 1},
    },
    "rl_kl": {
        "channels": {"lora": {"objective": "cispo", "kl": "k1_reward", "kl_target": 0.05}},
        "allocator": {"name": "fixed"},
        "rollouts": {"prompts_per_item": 1},
    },
    "prompt_then_rl": {
        "channels": {"prompts": {}, "lora": {"objective": "cispo"}},
        "allocator": {"name": "phased", "first": "fast", "rounds": [8, 8]},
        "rollouts": {"prompts_per_item": 1},
    },
    "rl_then_prompt": {
        "channels": {"prompts": {}, "lora": {"objective": "cispo"}},
        "allocator": {"name": "phased", "first": "slow", "rounds": [8, 8]},
        "rollouts": {"prompts_per_item": 1},
    },
    "fst": {
        "channels": {"prompts": {"window": "ahead", "pool_size": 4}, "lora": {"objective": "cispo"}},
        "allocator": {**SEARCHING, "warmstart": 6},
        "rollouts": {"prompts_per_item": 4, "reuse": True},
    },
    "fst_distill": {
        "channels": {"prompts": {"window": "ahead", "pool_size": 4}, "lora": {"objective": "distill"}},
        "allocator": {**SEARCHING, "warmstart": 6},
        "rollouts": {"prompts_per_item": 1, "under": "none", "reuse": False},
    },
    "bandit": {
        "channels": {"prompts": {}, "lora": {"objective": "cispo"}},
        "allocator": {"name": "bandit"},
        "rollouts": {"prompts_per_item": 2},
    },
    "evidence": {
        "channels": {"prompts": {}, "lora": {"objective": "cispo", "grouping": "prompt"}},
        "allocator": {"name": "evidence"},
        "rollouts": {"prompts_per_item": 2},
    },
}


def test_there_are_the_published_arms_and_the_missing_ones() -> None:
    assert list(RECIPES) == list(EXPECTED)
    watched = {name: recipe.watch for name, recipe in RECIPES.items() if recipe.watch}
    assert watched == {"evidence": {"fast": True, "slow": True}}
    assert applied("evidence", watch={"slow": False})["watch"] == {"fast": True, "slow": False}
    assert "watch" not in applied("fst")


@pytest.mark.parametrize("recipe", RECIPES)
def test_an_arm_is_filled_in(recipe: str) -> None:
    full = applied(recipe)
    assert {part: full[part] for part in PARTS} == {**EXPECTED[recipe], "gates": {}}
    assert (full["recipe"], full["tasks"], full["stream"]) == (recipe, TASKS, STREAM)


@pytest.mark.parametrize("recipe", RECIPES)
def test_filling_in_again_changes_nothing_and_nothing_is_shared(recipe: str) -> None:
    data = {"tasks": TASKS, "stream": STREAM, **NEEDS.get(recipe, {}), "recipe": recipe}
    before = deepcopy(data)
    full = apply_recipe(data)
    assert data == before, "what was given must not change"
    assert apply_recipe(full) == full
    assert apply_recipe(json.loads(json.dumps(full))) == full
    for channel in full["channels"].values():
        channel["rank"] = 99
    full["allocator"]["name"] = "another"
    assert {p: v for p, v in applied(recipe).items() if p in PARTS} == {**EXPECTED[recipe], "gates": {}}


def test_without_a_recipe_nothing_is_filled_in() -> None:
    data = {"stream": STREAM, "channels": {"lora": {"rank": 2}}}
    assert apply_recipe(data) == data
    assert apply_recipe(data)["channels"] is not data["channels"]


@pytest.mark.parametrize("recipe", RECIPES)
def test_every_arm_s_allocator_can_be_built_and_every_channel_learns(recipe: str) -> None:
    full = applied(recipe)
    options = full["allocator"]
    allocator = build_allocator(options["name"], {k: v for k, v in options.items() if k != "name"})
    clocks = {n: Timescale.SLOW if n in SLOW_CHANNELS else Timescale.FAST for n in full["channels"]}
    history: list[dict[str, Any]] = []
    for number in range(1, 33):
        evidence = Evidence(round=number, phase=(number - 1) // 16, task="a", groups=(), conditionings={})
        plan = allocator.plan(evidence, clocks, history)
        names = [a.channel for a in plan.assignments]
        history.append({"round": number, "phase": evidence.phase, "proposed": names})
    assert {n for row in history for n in row["proposed"]} == set(clocks)
    if recipe in ("prompt_then_rl", "rl_then_prompt"):
        slow = [row["round"] for row in history if "lora" in row["proposed"]]
        half = range(9, 17) if recipe == "prompt_then_rl" else range(1, 9)
        assert slow == [*half, *(n + 16 for n in half)]


# -------------------------------------------------------------------------------------------------- what a user changes


def test_what_the_user_set_wins_key_by_key() -> None:
    full = applied(
        "fst",
        channels={"lora": {"objective": "gspo", "rank": 4}, "prompts": {"pool_size": 8}},
        allocator={"slow_steps": 3, "drift": 0.5},
        rollouts={"items": 2, "reuse": False},
        gates={"fast": "accept"},
    )
    assert full["channels"] == {
        "prompts": {"window": "ahead", "pool_size": 8},
        "lora": {"objective": "gspo", "rank": 4},
    }
    assert full["allocator"] == {"name": "alternate", "slow_steps": 3, "warmstart": 6, "drift": 0.5}
    assert full["rollouts"] == {"items": 2, "prompts_per_item": 4, "reuse": False}
    assert full["gates"] == {"fast": "accept"}


SHARED = {
    "channels": {"lora": {"rank": 2}, "prompts": {"num_new": 3}, "null": {}},
    "allocator": {"drift": 0.5, "fast_rollouts": 99, "slow_steps": 4, "warmstart": 2, "share": 0.25},
    "rollouts": {"items": 4, "per_item": 6},
}


@pytest.mark.parametrize("recipe", [r for r in RECIPES if r != "rl_kl"])
def test_one_file_serves_every_arm(recipe: str) -> None:
    full = applied(recipe, **SHARED)
    assert set(full["channels"]) == set(EXPECTED[recipe]["channels"])
    if "lora" in full["channels"]:
        assert full["channels"]["lora"]["rank"] == 2
    allocator = full["allocator"]
    assert (allocator["drift"], allocator["fast_rollouts"]) == (0.5, 99)
    build_allocator(allocator["name"], {k: v for k, v in allocator.items() if k != "name"})
    assert ("slow_steps" in allocator) is (allocator["name"] == "alternate")
    assert allocator.get("rounds") == ([4, 4] if allocator["name"] == "phased" else None)
    assert "share" not in allocator


def test_an_option_that_no_allocator_has_is_kept_to_be_refused() -> None:
    assert applied("rl_only", allocator={"slow_tokns": 3})["allocator"]["slow_tokns"] == 3


@pytest.mark.parametrize(("each", "prompts"), [(8, 4), (4, 4), (6, 3), (9, 3), (2, 2), (7, 1), (1, 1), (12, 4)])
def test_a_group_is_shared_evenly_among_prompts(each: int, prompts: int) -> None:
    assert applied("fst", rollouts={"per_item": each})["rollouts"]["prompts_per_item"] == prompts
    given = applied("fst", rollouts={"per_item": each, "prompts_per_item": 5})["rollouts"]
    assert given["prompts_per_item"] == 5, "what the user set is not repaired"


def test_another_slow_channel_takes_lora_s_place() -> None:
    full = applied("rl_only", channels={"full": {"learning_rate": 1e-5}})
    assert full["channels"] == {"full": {"objective": "cispo", "learning_rate": 1e-5}}
    assert apply_recipe(full) == full
    both = {"full": {}, "lora": {}}
    assert problems_of("fst", channels=both) == (
        "recipe 'fst' trains one slow channel, but [channels.full] and [channels.lora] are both there: leave one out",
    )
    assert applied("prompt_only", channels=both)["channels"] == {"prompts": {}}
    assert "--set channels.full.kl_target=0.05" in problems_of("rl_kl", channels={"full": {}})[0]


# ------------------------------------------------------------------------------------------------------------ stretches


@pytest.mark.parametrize(
    ("allocator", "rounds"),
    [
        ({}, [8, 8]),
        ({"share": 0.25}, [4, 4]),
        ({"share": 0.99}, [15, 15]),
        ({"share": 0.01}, [1, 1]),
        ({"per_phase": False}, [16]),
        ({"rounds": 3}, 3),
        ({"rounds": [3, 15]}, [3, 15]),
        ({"rounds": 31, "per_phase": False}, 31),
    ],
)
def test_the_first_clock_s_rounds_follow_from_the_stream(allocator: dict[str, Any], rounds: Any) -> None:
    assert applied("prompt_then_rl", allocator=allocator)["allocator"]["rounds"] == rounds


def test_odd_phases_round_half_up_and_leave_each_clock_a_round() -> None:
    stream = [{"task": "a", "rounds": n} for n in (2, 3, 5, 10)]
    assert applied("rl_then_prompt", stream=stream)["allocator"]["rounds"] == [1, 2, 3, 5]


def test_a_run_that_is_filled_in_may_be_given_another_stream() -> None:
    full = applied("prompt_then_rl")
    probed = {**full, "stream": [{"task": "b", "rounds": 4}]}
    assert apply_recipe(probed) == probed


@pytest.mark.parametrize(
    ("allocator", "said"),
    [
        ({"share": 0}, "share = 0: expected the part of the rounds"),
        ({"share": 1.0}, "share = 1.0: expected"),
        ({"share": "half"}, "share = 'half'"),
        ({"share": 0.5, "rounds": 4}, "has both 'rounds' and 'share'"),
        ({"rounds": 16}, "none of the 16 rounds of phase 1: recipe 'prompt_then_rl' needs both clocks"),
        ({"rounds": [4, 20]}, "none of the 16 rounds of phase 2"),
        ({"rounds": [4, 4, 4]}, "has 3 numbers, and the stream has 2 phases"),
        ({"rounds": 40, "per_phase": False}, "leaves the slow clock none of the 32 rounds of the run"),
        ({"first": "slow"}, "recipe 'prompt_then_rl' is first = 'fast', but [allocator] first = 'slow'"),
        ({"name": "fixed"}, "recipe 'prompt_then_rl' has the allocator 'phased', but [allocator] name = 'fixed'"),
    ],
)
def test_stretches_that_make_no_such_arm(allocator: dict[str, Any], said: str) -> None:
    (problem,) = problems_of("prompt_then_rl", allocator=allocator)
    assert said in problem


def test_a_phase_of_one_round_cannot_hold_two_clocks() -> None:
    stream = [{"task": "a", "rounds": 4}, {"task": "b", "rounds": 1}]
    (problem,) = problems_of("rl_then_prompt", stream=stream)
    assert "phase 2 of the stream has only one: expected at least 2" in problem
    assert applied("rl_then_prompt", stream=stream, allocator={"per_phase": False})["allocator"]["rounds"] == [3]


# ------------------------------------------------------------------------------------------------------------- mistakes


def test_an_unknown_recipe_names_the_nearest_or_all() -> None:
    assert problems_of("fts") == ("unknown recipe 'fts'; did you mean 'fst'?",)
    (listed,) = problems_of("zzzzzz")
    assert all(name in listed for name in RECIPES)
    assert "expected a name, one of base, prompt_only" in problems_of(3)[0]


def test_another_allocator_than_the_recipe_s_is_refused() -> None:
    (problem,) = problems_of("rl_only", allocator={"name": "alternate", "slow_steps": 4})
    assert problem == (
        "recipe 'rl_only' has the allocator 'fixed', but [allocator] name = 'alternate': leave the name out, or the "
        "recipe"
    )
    assert applied("rl_only", allocator={"name": "fixed"})["allocator"] == {"name": "fixed"}


@pytest.mark.parametrize("options", [{}, {"kl_coef": 0.0}, {"kl_target": 0.0}])
def test_rl_kl_needs_to_know_how_much(options: dict[str, float]) -> None:
    (problem,) = problems_of("rl_kl", channels={"lora": options})
    assert "needs [channels.lora] kl_target, the drift to hold in nats a token" in problem
    assert "--set channels.lora.kl_target=0.05" in problem


def test_rl_kl_with_a_weight_or_another_penalty() -> None:
    full = applied("rl_kl", channels={"lora": {"kl_coef": 0.01, "kl": "k2_loss"}})
    assert full["channels"]["lora"] == {"objective": "cispo", "kl": "k2_loss", "kl_coef": 0.01}


def test_what_makes_an_arm_cannot_be_set_to_something_else() -> None:
    (problem,) = problems_of("fst_distill", channels={"lora": {"objective": "grpo"}})
    assert problem == (
        "recipe 'fst_distill' is objective = 'distill', but [channels.lora] objective = 'grpo': leave it out, or take "
        "another recipe"
    )
    (problem,) = problems_of("rl_kl", channels={"lora": {"kl": "none", "kl_target": 0.1}})
    assert "is kl = 'k1_reward' or 'k2_loss' or 'k3_loss', but [channels.lora] kl = 'none'" in problem


def test_a_channel_that_nobody_has_is_told_where_it_would_be_left_out() -> None:
    (problem,) = problems_of("rl_only", channels={"promts": {"num_new": 3}})
    assert problem == "unknown channel 'promts'; did you mean 'prompts'?"


def test_every_conflict_is_told_at_once() -> None:
    problems = problems_of("rl_kl", channels={"lora": {"kl": "none"}, "promts": {}}, allocator={"name": "phased"})
    assert len(problems) == 4


# --------------------------------------------------------------------------------------------------- the configuration

TEXT = """
recipe = "fst"

[tasks.a]
source = "jsonl"
path = "a.jsonl"

[[stream]]
task = "a"
rounds = 12

[channels.prompts]
num_new = 3

[channels.lora]
rank = 2
"""


def test_a_configuration_keeps_the_recipe_and_is_the_same_when_it_is_read_again() -> None:
    config = parse_config(TEXT)
    assert config.recipe == "fst"
    assert config.channels["lora"] == {"objective": "cispo", "rank": 2}
    assert config.rollouts == {"prompts_per_item": 4, "reuse": True}
    assert from_plain(json.loads(json.dumps(config.plain()))) == config


@pytest.mark.parametrize("recipe", RECIPES)
def test_the_command_line_chooses_the_arm(recipe: str) -> None:
    needs = ["channels.lora.kl_target=0.05"] if recipe == "rl_kl" else []
    config = parse_config(TEXT, [f"recipe={recipe}", *needs])
    assert config.recipe == recipe
    assert set(config.channels) == set(EXPECTED[recipe]["channels"])
    assert from_plain(config.plain()) == config


def test_a_configuration_without_a_recipe_is_as_it_was() -> None:
    config = parse_config(TEXT.replace('recipe = "fst"', ""))
    assert config.recipe is None
    assert config.channels == {"prompts": {"num_new": 3}, "lora": {"rank": 2}}
    assert config.allocator == {"name": "fixed"}


def test_conflicts_are_told_beside_the_other_mistakes() -> None:
    asked: list[Any] = []

    def check(config: Any) -> list[str]:
        asked.append(config)
        return ["a mistake elsewhere"]

    with pytest.raises(ConfigError) as caught:
        parse_config(TEXT, ["recipe=fts", "stream.0.rounds=0"], check=check)
    assert [p.partition(": ")[2].split(":")[0].split(";")[0] for p in caught.value.problems] == [
        "unknown recipe 'fts'",
        "stream.0.rounds = 0",
        "",
    ]
    with pytest.raises(ConfigError) as caught:
        parse_config(TEXT, ["recipe=fst", "allocator.name=fixed"], check=check)
    assert caught.value.problems[1:] == ("a mistake elsewhere",)
    assert all(config.channels == {"null": {}} for config in asked), "what a broken recipe leaves open is not judged"


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("channels=3", "channels = 3"),
        ("channels.lora=3", "channels.lora = 3"),
        ("allocator=3", "allocator = 3"),
        ("rollouts=3", "rollouts = 3"),
        ("gates=3", "gates = 3"),
        ("stream=3", "stream = 3"),
        ("stream.0.rounds=many", "stream.0.rounds = 'many'"),
    ],
)
@pytest.mark.parametrize("recipe", ["fst", "prompt_then_rl"])
def test_sections_of_a_wrong_type_are_told_as_ever(recipe: str, override: str, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_config(TEXT, [f"recipe={recipe}", override])
    (problem,) = caught.value.problems
    assert said in problem


BUILT = """
[sampling]
max_new_tokens = 4

[tasks.a]
source = "family"
family = "compare"
config = { count = 2, min_value = 10, max_value = 99 }
size = { train = 40, trial = 30, heldout = 10 }

[[stream]]
task = "a"
rounds = 12

[rollouts]
items = 4
"""


@pytest.mark.parametrize("recipe", list(RECIPES))
@pytest.mark.parametrize("slow", ["lora", "full"])
def test_every_arm_s_options_are_known_to_their_components(recipe: str, slow: str) -> None:
    pytest.importorskip("torch")
    needs = [f"channels.{slow}.kl_target=0.05"] if recipe == "rl_kl" else [f"channels.{slow}.learning_rate=1e-4"]
    parts = build_parts(parse_config(BUILT, [f"recipe={recipe}", *needs]))
    assert set(parts.channels) == {slow if name == "lora" else name for name in EXPECTED[recipe]["channels"]}


# ---------------------------------------------------------------------------------------------------------------- docs


@pytest.mark.parametrize("recipe", RECIPES)
def test_the_docs_show_what_each_arm_is_filled_in_to(recipe: str) -> None:
    sections = re.split(r"^### ", DOCS.read_text(encoding="utf-8"), flags=re.MULTILINE)[1:]
    texts = {name.strip("` "): body for name, _, body in (section.partition("\n") for section in sections)}
    assert list(texts) == list(RECIPES)
    shown = tomllib.loads(re.findall(r"```toml\n(.*?)```", texts[recipe], flags=re.DOTALL)[0])
    full = applied(recipe)
    assert {part: shown.get(part, {}) for part in PARTS} == {part: full[part] for part in PARTS}
