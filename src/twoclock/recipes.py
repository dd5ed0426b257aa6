"""Recipes: the arms that Fast-Slow Training (arXiv:2605.12484) is compared in, each one line of a configuration.

``recipe = "fst"`` fills in channels, allocator, gates, rollouts and the watch; what the user set himself wins, key by
key. Only what makes an arm what it is called cannot be set to something else. What an arm does not use is left out
even where the file configures it, so that one file serves every arm. Filling in again changes nothing: a run records
its configuration filled in, with the recipe's name in it.

Leaves to the components what the options mean, and whether their values are right.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass, field, fields
from typing import Any

from twoclock.allocate import ALLOCATORS
from twoclock.errors import ConfigError, unknown_name
from twoclock.fast import fast_names
from twoclock.slow import SLOW_CHANNELS

__all__ = ["RECIPES", "Recipe", "apply_recipe"]

Options = Mapping[str, Any]

SLOW = "lora"
"""The slow channel where the user configures none."""
SHARE = "share"
"""The option of the phased recipes that becomes the allocator's ``rounds``: an allocator knows no phase's length."""
PENALTIES = ("k1_reward", "k2_loss", "k3_loss")


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """One arm, as the defaults that it fills in."""

    summary: str
    fast: Mapping[str, Options] = field(default_factory=dict)
    """Fast channel → options."""
    slow: Options | None = None
    """Options of the slow channel; None for an arm without one."""
    allocator: Options = field(default_factory=lambda: {"name": "fixed"})
    gates: Options = field(default_factory=dict)
    rollouts: Options = field(default_factory=lambda: {"prompts_per_item": 1})
    watch: Options = field(default_factory=dict)
    only: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    """``slow.KEY`` or ``allocator.KEY`` → the values that leave the arm what it is called; a user may set no other."""


# T = 6, a warm-start of 6 and CISPO are the published settings; the pool of 4 is the smaller of the two published ones.
SEARCH = {"name": "alternate", "slow_steps": 6}
POOL = {"window": "ahead", "pool_size": 4}
CISPO = {"objective": "cispo"}

RECIPES: Mapping[str, Recipe] = {
    "base": Recipe(summary="learns nothing", fast={"null": {}}),
    "prompt_only": Recipe(
        summary="searches prompts every six rounds, from the first on; the weights stay",
        fast={"prompts": {}},
        allocator={**SEARCH, "warmstart": 0},
    ),
    "rl_only": Recipe(summary="reinforcement learning of the weights alone", slow=CISPO),
    "rl_kl": Recipe(
        summary="the same with a KL penalty, held at a drift or weighted as the user says",
        slow={**CISPO, "kl": "k1_reward"},
        only={"slow.kl": PENALTIES},
    ),
    "prompt_then_rl": Recipe(
        summary="first the prompt, then the weights under it",
        fast={"prompts": {}},
        slow=CISPO,
        allocator={"name": "phased", "first": "fast"},
        only={"allocator.first": ("fast",)},
    ),
    "rl_then_prompt": Recipe(
        summary="first the weights, then a prompt for what they became",
        fast={"prompts": {}},
        slow=CISPO,
        allocator={"name": "phased", "first": "slow"},
        only={"allocator.first": ("slow",)},
    ),
    "fst": Recipe(
        summary="Fast-Slow Training: both, interleaved, on the same rollouts",
        fast={"prompts": POOL},
        slow=CISPO,
        allocator={**SEARCH, "warmstart": 6},
        rollouts={"prompts_per_item": 4, "reuse": True},
    ),
    "fst_distill": Recipe(
        summary="the same, with the prompted policy distilled into the weights instead of reinforcement learning",
        fast={"prompts": POOL},
        slow={"objective": "distill"},
        allocator={**SEARCH, "warmstart": 6},
        rollouts={"prompts_per_item": 1, "under": "none", "reuse": False},
        only={"slow.objective": ("distill",)},
    ),
    "bandit": Recipe(
        summary="one clock a round, drawn by what its turns have brought for their cost",
        fast={"prompts": {}},
        slow=CISPO,
        allocator={"name": "bandit"},
        rollouts={"prompts_per_item": 2},
    ),
    # A mean a prompt: what lies between prompts is the fast clock's merit, and no gradient is to learn it.
    "evidence": Recipe(
        summary="each clock while its learning is believed to be worth it; writes are watched and taken back",
        fast={"prompts": {}},
        slow={**CISPO, "grouping": "prompt"},
        allocator={"name": "evidence"},
        rollouts={"prompts_per_item": 2},
        watch={"fast": True, "slow": True},
    ),
}
"""Name → arm."""


def apply_recipe(data: Mapping[str, Any]) -> dict[str, Any]:
    """A plain configuration with what its ``recipe`` stands for filled in; a copy of it where it names none.

    Sections of a wrong type are left as they are, for the configuration's own check to tell. Raises ConfigError with
    every conflict between the recipe and what the user set.
    """
    full = deepcopy(dict(data))
    name = full.get("recipe")
    if name is None:
        return full
    if not isinstance(name, str):
        raise ConfigError(f"recipe = {name!r}: expected a name, one of {', '.join(RECIPES)}")
    if name not in RECIPES:
        raise ConfigError(unknown_name("recipe", name, RECIPES))
    recipe = RECIPES[name]
    problems: list[str] = []
    if isinstance(given := full.get("channels", {}), dict):
        full["channels"] = _channels(name, recipe, given, problems)
    if isinstance(given := full.get("allocator", {}), dict):
        full["allocator"] = _allocator(name, recipe, given, _lengths(full.get("stream")), problems)
    if isinstance(given := full.get("rollouts", {}), dict):
        full["rollouts"] = _rollouts(recipe, given)
    if isinstance(given := full.get("gates", {}), dict):
        full["gates"] = {**recipe.gates, **given}
    if recipe.watch and isinstance(given := full.get("watch", {}), dict):
        full["watch"] = {**recipe.watch, **given}
    if full != data and not problems:  # a filled-in one may be given another stream: its stretches stay as they were
        problems += _stretch_problems(name, full)
    if problems:
        raise ConfigError(problems)
    return full


# ------------------------------------------------------------------------------------------------------------ sections


def _channels(name: str, recipe: Recipe, given: Mapping[str, Any], problems: list[str]) -> dict[str, Any]:
    """The recipe's channels. A name that no channel has is told here, as leaving it out would hide the mistake."""
    known = [*SLOW_CHANNELS, *fast_names()]
    problems += [unknown_name("channel", n, known) for n in given if n not in known]
    used: dict[str, Options] = dict(recipe.fast)
    if recipe.slow is not None:
        there = sorted(n for n in given if n in SLOW_CHANNELS)
        if len(there) > 1:
            both = " and ".join(f"[channels.{n}]" for n in there)
            problems.append(f"recipe '{name}' trains one slow channel, but {both} are both there: leave one out")
        used[slow := there[0] if there else SLOW] = recipe.slow
        options = _merged(recipe.slow, given.get(slow, {}))
        problems += _wrong(name, recipe, "slow", f"[channels.{slow}]", options)
        if name == "rl_kl" and isinstance(options, dict) and not (options.get("kl_target") or options.get("kl_coef")):
            problems.append(
                f"recipe '{name}' needs [channels.{slow}] kl_target, the drift to hold in nats a token (such as that "
                f"of the fst arm), or kl_coef, a fixed weight, above 0; such as --set channels.{slow}.kl_target=0.05"
            )
    return {n: _merged(options, given.get(n, {})) for n, options in used.items()}


def _merged(defaults: Options, given: Any) -> Any:
    """What the user set wins; what is no table stays, to be refused."""
    return {**defaults, **given} if isinstance(given, dict) else given


def _allocator(
    name: str, recipe: Recipe, given: Mapping[str, Any], lengths: list[int] | None, problems: list[str]
) -> dict[str, Any]:
    mine = recipe.allocator["name"]
    if given.get("name", mine) != mine:
        problems.append(
            f"recipe '{name}' has the allocator '{mine}', but [allocator] name = {given['name']!r}: leave the name "
            "out, or the recipe"
        )
    known = {n: {f.name for f in fields(config)} for n, (config, _) in ALLOCATORS.items()}
    phased = mine == "phased"
    others = {SHARE}.union(*known.values()) - known[mine] - ({SHARE} if phased else set())
    options = {**recipe.allocator, **{k: v for k, v in given.items() if k not in others}}
    problems += _wrong(name, recipe, "allocator", "[allocator]", options)
    if phased:
        share = options.pop(SHARE, None)
        if "rounds" not in options:
            share = 0.5 if share is None else share
            if lengths is not None and (rounds := _stretches(name, options, share, lengths, problems)):
                options["rounds"] = rounds
        elif share is not None:
            problems.append("[allocator] has both 'rounds' and 'share'; give one")
    return options


def _rollouts(recipe: Recipe, given: Mapping[str, Any]) -> dict[str, Any]:
    """As many prompts an item as the recipe has, or the most below that a group can be shared among evenly."""
    options = {**recipe.rollouts, **given}
    each, prompts = options.get("per_item"), options["prompts_per_item"]
    if "prompts_per_item" not in given and isinstance(each, int) and each > 0:
        options["prompts_per_item"] = next(n for n in range(prompts, 0, -1) if each % n == 0)
    return options


def _wrong(name: str, recipe: Recipe, part: str, table: str, options: Any) -> list[str]:
    """Settings that would make the arm another one."""
    problems = []
    for place, allowed in recipe.only.items():
        whose, _, key = place.partition(".")
        if whose == part and isinstance(options, dict) and options[key] not in allowed:
            wanted = " or ".join(repr(value) for value in allowed)
            problems.append(
                f"recipe '{name}' is {key} = {wanted}, but {table} {key} = {options[key]!r}: leave it out, or take "
                "another recipe"
            )
    return problems


# ----------------------------------------------------------------------------------------------------------- stretches


def _lengths(stream: Any) -> list[int] | None:
    """Rounds of each phase; None where the stream is not what it must be, which is told elsewhere."""
    try:
        lengths = [int(phase["rounds"]) for phase in stream]
    except (TypeError, ValueError, KeyError):
        return None
    return lengths if lengths and min(lengths) >= 1 else None


def _stretches(
    name: str, options: Mapping[str, Any], share: Any, lengths: list[int], problems: list[str]
) -> list[int] | None:
    """Rounds of the first clock: of each phase, or of the whole run as one number. Each clock gets at least one."""
    if not isinstance(share, int | float) or not 0 < share < 1:
        problems.append(
            f"[allocator] share = {share!r}: expected the part of the rounds that the first clock has, above 0 and "
            "below 1, such as 0.5"
        )
        return None
    whole = [sum(lengths)] if options.get("per_phase") is False else lengths
    if short := [place for place, length in enumerate(whole, 1) if length < 2]:
        problems.append(
            f"recipe '{name}' gives each clock its own rounds, and phase {short[0]} of the stream has only one: "
            "expected at least 2"
        )
        return None
    return [max(1, min(length - 1, math.floor(share * length + 0.5))) for length in whole]


def _stretch_problems(name: str, full: Mapping[str, Any]) -> list[str]:
    """Whether rounds that the user counted out fit the stream."""
    options, lengths = full["allocator"], _lengths(full.get("stream"))
    rounds = options.get("rounds") if isinstance(options, dict) and options.get("name") == "phased" else None
    if lengths is None or rounds is None:
        return []
    numbers = rounds if isinstance(rounds, list) else [rounds]
    if not all(isinstance(number, int) for number in numbers):
        return []  # the allocator says what is wrong
    whole = [sum(lengths)] if options.get("per_phase") is False else lengths
    if len(numbers) not in (1, len(whole)):
        return [
            f"[allocator] rounds = {rounds} has {len(numbers)} numbers, and the stream has {len(lengths)} phases: "
            "expected one number a phase, or one for all"
        ]
    numbers = numbers * len(whole) if len(numbers) == 1 else numbers
    short = [place for place, (n, length) in enumerate(zip(numbers, whole, strict=True)) if n >= length]
    if not short:
        return []
    second = "slow" if options["first"] == "fast" else "fast"
    where = "the run" if whole is not lengths else f"phase {short[0] + 1}"
    return [
        f"[allocator] rounds = {rounds} leaves the {second} clock none of the {whole[short[0]]} rounds of {where}: "
        f"recipe '{name}' needs both clocks"
    ]
