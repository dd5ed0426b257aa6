"""What fast and slow learning do together, in the two-token world, over several seeds, with controls that must fail.

    python experiments/fast_slow_training/toy.py --seeds 5

prints the page that is kept as ``toy-results.md``. The world is ``toy_world.py`` and ``toy_policy.py``, a run of it
``toy_runs.py``, all runs of the page ``toy_study.py``. Every arm runs with one setting; nothing is sampled but the
training itself.
"""

from __future__ import annotations

import argparse
import datetime
import platform
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import median

from toy_runs import TARGET
from toy_study import SHORT, STARTS, WORLD, Study, area_gained, compare, plasticity, study

__all__ = ["claims", "render"]


# ------------------------------------------------------------------------------------------------------------ the table


def _spread(values: Sequence[float], form: str = ".3g") -> str:
    """Median and range."""
    return f"{median(values):{form}} ({min(values):{form}} – {max(values):{form}})"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _arms(done: Study) -> str:
    rows = []
    for name, results in {**done.arms, "fst past its target": done.past}.items():
        last = [r.curve.points[-1] for r in results]
        rows.append(
            [
                name,
                f"{sum(r.reached is not None for r in results)} of {len(results)}",
                _spread([len(r.curve.points) - 1 for r in results], ".0f"),
                _spread([r.steps for r in results], ".0f"),
                _spread([p.problems for p in last], ",.0f"),
                _spread([p.rollouts for p in last], ",.0f"),
                _spread([p.tokens for p in last], ",.0f"),
                _spread([p.score for p in last], ".3f"),
                _spread([r.cells["live", "none"] for r in results], ".3f"),
                _spread([r.kl for r in results], ".2f"),
                _spread([r.kl_deployed for r in results], ".2f"),
            ]
        )
    head = ["arm", f"met {TARGET}", "rounds", "optimizer steps", "problems", "rollouts", "tokens", "accuracy",
            "without prompt", "KL without prompt", "KL under the prompt"]  # fmt: skip
    return _table(head, rows)


def _speed(done: Study) -> str:
    rows = []
    base = done.arms["rl_only"]
    for name in ("rl_only", "fst", "fst_random"):
        arm = done.arms[name]
        found = compare(arm, base).running_max
        steps = [b.steps / max(a.steps, 1) for a, b in zip(arm, base, strict=True)]
        cells = [f"{found[axis].ratio.estimate:.2f} [{found[axis].ratio.low:.2f}, {found[axis].ratio.high:.2f}]"
                 for axis in ("problems", "rollouts", "tokens")]  # fmt: skip
        rounds = [(b.reached or done.rounds) / (a.reached or done.rounds) for a, b in zip(arm, base, strict=True)]
        rows.append([name, *cells, _spread(rounds, ".2f"), _spread(steps, ".2f")])
    head = ["arm", "problems", "rollouts", "tokens", "rounds: median (range)", "optimizer steps: median (range)"]
    return _table(head, rows)


def _splits(done: Study) -> str:
    rows = []
    longer = len(done.known_past[0].curve.points) - 1
    groups = {
        "fst": done.arms["fst"],
        "prompt without effect": done.null_prompt,
        "answers known": done.known_answers,
        f"answers known, {longer} rounds": done.known_past,
    }
    for name, results in groups.items():
        cells = [_spread([r.cells[cell] for r in results], ".3f") for cell in results[0].cells]
        splits = [r.split for r in results]
        shares = [
            _spread([getattr(s, part) / s.total for s in splits], ".2f") for part in ("slow", "fast", "interaction")
        ]
        exact = all(s.slow + s.fast + s.interaction == s.total for s in splits)
        rows.append([name, *cells, *shares, "yes" if exact else "NO", _spread([r.kl for r in results], ".3f")])
    head = ["world", "base, none", "base, prompt", "weights, none", "weights, prompt", "slow share", "fast share",
            "interaction", "sums exactly", "KL"]  # fmt: skip
    return _table(head, rows)


def _fresh(done: Study) -> str:
    rows = []
    for start, results in done.fresh.items():
        found, gained = plasticity(results, done.fresh["base"]), area_gained(results, done.fresh["base"])
        ends = [r.curve.points[-1].score for r in results]
        rows.append(
            [
                start,
                _spread([r.curve.points[0].score for r in results], ".4f"),
                _spread(ends, ".3f"),
                f"{sum(r.reached is not None for r in results)} of {len(results)}",
                f"{found.ratio.estimate:.2f}",
                "" if start == "base" else f"{gained.estimate:+.3f} [{gained.low:+.3f}, {gained.high:+.3f}]",
                _spread([r.curve.dead_groups or 0.0 for r in results], ".2f"),
            ]
        )
    head = ["from", "before", f"after {done.fresh_rounds} rounds", f"met {TARGET}",
            "area under the curve ÷ that from base", "less that from base", "dead groups"]  # fmt: skip
    return _table(head, rows)


def _zero(done: Study) -> str:
    rows = []
    for name, results in done.zero.items():
        first = [
            min((e.round for e in r.entries if e.channel == "lora" and e.action == "commit"), default=0)
            for r in results
        ]
        rows.append(
            [
                name,
                f"{median(r.cells['base', 'none'] for r in results):.1e}",
                _spread([r.steps for r in results], ".0f"),
                "never" if not any(first) else _spread(first, ".0f"),
                _spread([r.curve.points[-1].score for r in results], ".3g"),
                _spread([len(r.curve.points) - 1 for r in results], ".0f"),
            ]
        )
    return _table(
        ["arm", "base accuracy", "optimizer steps", "first step in round", "accuracy at the end", "rounds"], rows
    )


def claims(done: Study) -> list[tuple[str, str, bool]]:
    """(what is claimed, what was measured, whether it holds); medians over seeds."""
    arms, rl = done.arms, done.arms["rl_only"]
    fst, control = (compare(arms[name], rl).running_max for name in ("fst", "fst_random"))
    rounds = median(
        (b.reached or done.rounds) / (a.reached or done.rounds) for a, b in zip(arms["fst"], rl, strict=True)
    )
    less = median(1 - a.kl / b.kl for a, b in zip(arms["fst"], rl, strict=True))
    known, shifted = done.known_answers, done.null_prompt
    fast, slow = (
        max(abs(getattr(r.split, part) / r.split.total) for r in results)
        for part, results in (("fast", shifted), ("slow", known))
    )
    held = all(
        r.split.slow + r.split.fast + r.split.interaction == r.split.total for r in [*arms["fst"], *shifted, *known]
    )
    ratio = control["problems"].ratio
    plain, mixed = done.zero["rl_only"], done.zero["fst"]
    areas = {s: area_gained(done.fresh[s], done.fresh["base"]) for s in STARTS[1:]}
    kl, later = (median(r.kl for r in runs) for runs in (known, done.known_past))
    taken, longer = sum(r.steps for r in plain), len(done.known_past[0].curve.points) - 1
    rollouts = fst["rollouts"].ratio
    return [
        ("fst meets the target at least 3 times sooner in problems", f"median {rounds:.1f}", rounds >= 3),
        ("at least 1.8 times in rollouts, searches and trials counted", f"{rollouts}", rollouts.estimate >= 1.8),
        ("KL(weights‖base) at the target is at least 50 % lower", f"median {100 * less:.0f} % lower", less >= 0.5),
        ("a random reflector brings no speed-up", f"{ratio}", ratio.low <= 1 or ratio.estimate < 1.3),
        ("a prompt without effect has a fast share of about 0", f"at most {fast:.3f}", fast < 0.05),
        ("where answers are known the slow share is about 0", f"at most {slow:.3f}", slow < 0.05),
        ("and so is the KL", f"median {kl:.3f} nats", kl < 0.1),
        (f"and stays so over {longer} rounds", f"median {later:.3f} nats", later < 0.1),
        ("without reward rl_only never takes a step", f"{taken} steps", not taken),
        ("and fst does", f"{min(r.steps for r in mixed)} steps at least", all(r.steps for r in mixed)),
        ("the parts of the 2×2 sum to the total exactly", "all runs" if held else "not all", held),
        *(
            (f"from {start} the second task is learned no worse than from base", f"area {area}", area.high >= 0)
            for start, area in areas.items()
        ),
    ]


def _setting(done: Study, command: str) -> str:
    """How the numbers were made, and how they are to be read."""
    given = done.settings
    batch, lora = given.rollouts, given.lora
    return f"""`{command}`, {datetime.date.today()}, Python {platform.python_version()}, {len(done.past)} seeds.

One setting for all arms: {batch.items} problems a round, {batch.per_item} rollouts a problem over up to \
{batch.prompts_per_item} prompts, a pool of {given.prompts["pool_size"]}, a search every \
{given.allocator["slow_steps"]} rounds after a warm-start of {given.allocator["warmstart"]}, LoRA of rank \
{lora["rank"]} at a rate of {lora["learning_rate"]}, a reflector that says what the feedback names with probability \
{given.reflector} (0 in fst_random), paired trials before a prompt is deployed. {WORLD}.

Each run ends where the deployed accuracy meets {TARGET}, or after {done.rounds} rounds, null and prompt_only after \
{SHORT}. Numbers are medians with their range over seeds; ratios in brackets are of geometric means with a 95 % \
interval over paired seeds. Accuracy and KL are exact sums; KL is KL(weights‖base) in nats a completion, which has two \
tokens. Rollouts and tokens count searches and trials; problems are those of the rounds. A round without reward \
variance is no optimizer step, so rl_only has fewer steps than rounds. The second task asks for the same map in \
another format: weights that know the map have a start in it."""


def render(done: Study, command: str) -> str:
    """The page."""
    verdicts = [[what, measured, "holds" if holds else "**does not hold**"] for what, measured, holds in claims(done)]
    parts = {
        "What was to be shown": _table(["claim", "measured", ""], verdicts),
        f"To an accuracy of {TARGET}": _arms(done),
        "Speed-up over rl_only": _speed(done),
        "What is learned where": _splits(done),
        f"A second task, by plain RL, for {done.fresh_rounds} rounds": _fresh(done),
        "Off the floor: no reward to begin with": _zero(done),
    }
    sections = [f"## {title}\n\n{table}" for title, table in parts.items()]
    return "\n\n".join(["# Fast and slow in the two-token world", _setting(done, command), *sections])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5, help="seeds of every arm (5)")
    parser.add_argument("--rounds", type=int, default=600, help="the most rounds of a run to the target (600)")
    parser.add_argument("--fresh-rounds", type=int, default=400, help="rounds on the second task (400)")
    parser.add_argument("--out", type=Path, help="also write the page to this file")
    given = parser.parse_args()
    if given.seeds < 2 or min(given.rounds, given.fresh_rounds) < 2:
        parser.error("--seeds, --rounds and --fresh-rounds are at least 2: an interval needs two runs")
    import torch

    torch.set_num_threads(1)  # the tensors are tiny: more threads only wait for each other
    done = study(given.seeds, given.rounds, given.fresh_rounds, lambda text: print(text, file=sys.stderr, flush=True))
    page = render(done, " ".join(["python experiments/fast_slow_training/toy.py", *sys.argv[1:]]))
    print(page)
    if given.out:
        given.out.write_text(page + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
