"""Every run that the two-token world's table is made of, and how two arms of it are compared."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from toy_runs import TARGET, Result, Settings, play
from toy_world import TASKS, World

from twoclock.measure import (
    Efficiency,
    Interval,
    Plasticity,
    area_under,
    plasticity_ratio,
    sample_efficiency,
    t_interval,
)

__all__ = [
    "STARTS",
    "ZERO",
    "Study",
    "area_gained",
    "compare",
    "fresh_task",
    "known_answers",
    "null_prompt",
    "plasticity",
    "study",
]

WORLD = World()
ZERO = World(wrong_logit=14.0, prompt_bias=16.0)
"""The right format has a chance of about one in a million until a prompt asks for it."""
SHORT = 60
"""Rounds of the runs that need no more."""
STARTS = ("base", "rl_only", "fst", "fst past its target")


@dataclass(frozen=True, kw_only=True)
class Study:
    """Every run, one a seed, by what it shows."""

    settings: Settings
    rounds: int
    """The most rounds of a run to the target."""
    fresh_rounds: int
    """Rounds of training on the second task."""
    arms: dict[str, list[Result]]
    past: list[Result]
    """``fst`` trained on for as many rounds as ``rl_only`` took in the same seed."""
    fresh: dict[str, list[Result]]
    null_prompt: list[Result]
    known_answers: list[Result]
    known_past: list[Result]
    """The same for a few cycles more."""
    zero: dict[str, list[Result]]


def null_prompt(seed: int, rounds: int, settings: Settings, world: World = WORLD) -> Result:
    """``fst`` where the instruction does nothing: what there is to gain lies in the weights alone."""
    return play("fst", seed, rounds, settings=settings, world=replace(world, prompt_bias=0.0))


def known_answers(seed: int, rounds: int, settings: Settings, world: World = WORLD, *, on: bool = False) -> Result:
    """``fst`` where the base knows the map: what there is to gain lies in the prompt alone. ``on`` does not stop at the
    target."""
    world = replace(world, known_logit=8.0)
    return play("fst", seed, rounds, settings=settings, world=world, until=None if on else TARGET)


def fresh_task(result: Result, start: str, rounds: int, settings: Settings) -> Result:
    """Plain RL on the second task, from the weights that ``result`` has come to, with a new optimizer."""
    policy = result.policy if start == "base" else result.policy.settled(result.conditioning.delta)
    return play(
        "rl_only", result.seed, rounds, settings=settings, policy=policy, task=TASKS[1], until=None, start=start
    )


def compare(arm: Sequence[Result], than: Sequence[Result]) -> Efficiency:
    """How much sooner ``arm`` meets the target, in problems, rollouts and tokens; searches and trials are counted."""
    return sample_efficiency([r.curve for r in arm], [r.curve for r in than], TARGET)


def plasticity(runs: Sequence[Result], base: Sequence[Result]) -> Plasticity:
    """The ratio of areas under the curves, and the dead groups on the way. Its interval is unknown where the base
    itself learned next to nothing in some seed; :func:`area_gained` then says more."""
    return plasticity_ratio([r.curve for r in runs], [r.curve for r in base], axis="problems")


def area_gained(runs: Sequence[Result], base: Sequence[Result]) -> Interval:
    """The area under the curve less that from the base, paired by seed: below 0 with its whole interval is loss."""
    pairs = zip(runs, base, strict=True)
    return t_interval([area_under(a.curve, "problems") - area_under(b.curve, "problems") for a, b in pairs])


def study(seeds: int, rounds: int, fresh_rounds: int, say: Callable[[str], None]) -> Study:
    """All runs of the table, one after the other."""
    settings = Settings()
    every = range(seeds)

    def arm(name: str, most: int) -> list[Result]:
        say(f"{name}: {seeds} seeds of at most {most} rounds")
        return [play(name, seed, most, settings=settings) for seed in every]

    arms = {
        "null": arm("null", SHORT),
        "prompt_only": arm("prompt_only", SHORT),
        "rl_only": arm("rl_only", rounds),
        "fst": arm("fst", rounds),
        "fst_random": arm("fst_random", rounds),
    }
    say("fst past its target")
    ends = [r.reached or rounds for r in arms["rl_only"]]
    past = [play("fst", seed, ends[seed], settings=settings, until=None) for seed in every]
    begun = dict(zip(STARTS, (arms["rl_only"], arms["rl_only"], arms["fst"], past), strict=True))
    fresh = {}
    for start, results in begun.items():
        say(f"the second task from {start}")
        fresh[start] = [fresh_task(result, start, fresh_rounds, settings) for result in results]
    say("controls")
    return Study(
        settings=settings,
        rounds=rounds,
        fresh_rounds=fresh_rounds,
        arms=arms,
        past=past,
        fresh=fresh,
        null_prompt=[null_prompt(seed, rounds, settings) for seed in every],
        known_answers=[known_answers(seed, rounds, settings) for seed in every],
        known_past=[known_answers(seed, 5 * 6, settings, on=True) for seed in every],
        zero={
            name: [play(name, seed, SHORT, settings=settings, world=ZERO) for seed in every]
            for name in ("rl_only", "fst")
        },
    )
