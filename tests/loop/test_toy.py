"""The two-token world in CI time: what fast and slow learning do together, and the controls that must fail.

The world is lighter than the experiment's, whose table ``experiments/fast_slow_training/toy.py`` prints: a base that
prefers the wrong format less and knows more of the map. All arms run with one setting; claims are on medians over
seeds.
"""

from __future__ import annotations

import math
import sys
from dataclasses import replace
from itertools import product
from pathlib import Path
from statistics import median
from typing import Any

import pytest
import torch

sys.path.append(str(Path(__file__).parents[2] / "experiments" / "fast_slow_training"))

from toy import claims, render
from toy_policy import ToyPolicy
from toy_runs import TARGET, Result, Settings, play
from toy_study import STARTS, ZERO, Study, area_gained, compare, fresh_task, known_answers, null_prompt, plasticity
from toy_world import NUM_ANSWERS, NUM_FORMATS, NUM_INPUTS, TASKS, ToyTask, World, scripted_reflector

from twoclock.contracts import Policy, Task, Trainable
from twoclock.errors import ConfigError, UnsupportedError
from twoclock.nn.lowrank import LowRank
from twoclock.seeding import child_seed
from twoclock.types import Conditioning, Delta, Request, Sampling

LIGHT = World(wrong_logit=4.5, known_logit=2.5)
SETTINGS = replace(Settings(), lora={**Settings().lora, "learning_rate": 0.03})
SEEDS = range(5)
ROUNDS = 200
FRESH = 10
PLAIN = Conditioning()


def prompted(policy: ToyPolicy, task: str = TASKS[0]) -> Conditioning:
    return Conditioning(system=f"Use format {policy.world.right_format(task)}.")


def change(policy: ToyPolicy, seed: int = 0) -> LowRank:
    generator = torch.Generator().manual_seed(seed)
    shapes = policy.linear_shapes(["formats", "answers"])
    draw = {
        n: (torch.randn(3, w, generator=generator), torch.randn(o, 3, generator=generator))
        for n, (o, w) in shapes.items()
    }
    return LowRank({n: (a.requires_grad_(), b.requires_grad_()) for n, (a, b) in draw.items()}, 0.5)


def moved(policy: ToyPolicy, *, system: str | None = None) -> Conditioning:
    held = LowRank({n: (a.detach(), b.detach()) for n, (a, b) in change(policy).tensors.items()}, 0.5)
    return Conditioning(system=system, delta=Delta("moved", "lora", policy.base_hash, held))


# ------------------------------------------------------------------------------------------------------------ the world


def test_the_toy_is_a_policy_and_a_task_like_any_other() -> None:
    policy: Policy = ToyPolicy(World())
    task: Task = ToyTask(World(), TASKS[0])
    assert isinstance(policy, Trainable)
    splits = [task.split(name) for name in ("train", "trial", "heldout")]
    ids = [item.id for split in splits for item in split]
    assert len(set(ids)) == len(ids)
    assert {len({item.reference for item in split}) for split in splits} == {len(set(World().answers))}


@pytest.mark.parametrize("system", [False, True])
def test_accuracy_is_the_product_worked_by_hand(system: bool) -> None:
    world = World(noise=0.0, wrong_logit=2.0, known_logit=1.0, prompt_bias=3.0)
    policy = ToyPolicy(world)
    other = math.exp(2.0) + NUM_FORMATS - 2  # the wrong format and those that nobody wants
    right = math.exp(3.0) if system else 1.0
    known = math.e / (math.e + NUM_ANSWERS - 1)
    want = right / (right + other) * known
    assert policy.accuracy(prompted(policy) if system else PLAIN, TASKS[0]) == pytest.approx(want, rel=1e-6)


def test_sampling_agrees_with_enumeration() -> None:
    policy = ToyPolicy(World(wrong_logit=1.0))
    under, task = moved(policy, system=prompted(policy).system), ToyTask(policy.world, TASKS[0])
    items = task.split("train")[:NUM_INPUTS]
    requests = [
        Request(prompt=i.prompt, conditioning=under, seeds=tuple(child_seed("toy", n) for n in range(500)))
        for i in items
    ]
    texts = [
        (item, c.text)
        for item, row in zip(items, policy.sample(requests, Sampling(max_new_tokens=2)), strict=True)
        for c in row
    ]
    rewards = [g.reward for g in task.grade(*zip(*texts, strict=True))]  # type: ignore[arg-type]
    exact = policy.accuracy(under, TASKS[0])
    assert sum(rewards) / len(rewards) == pytest.approx(exact, abs=4 * math.sqrt(exact * (1 - exact) / len(rewards)))


def test_a_rollout_follows_from_prompt_conditioning_and_seed_alone() -> None:
    policy = ToyPolicy(World(wrong_logit=1.0))
    requests = [
        Request(prompt=f"input {n}", conditioning=c, seeds=(n, 7))
        for n, c in enumerate([PLAIN, moved(policy), prompted(policy)])
    ]
    sampling = Sampling(max_new_tokens=2, temperature=0.8)
    together = policy.sample(requests, sampling)
    assert [policy.sample([request], sampling)[0] for request in requests] == together
    for request, row in zip(requests, together, strict=True):
        answers = [c.tokens for c in row]
        (stats,) = policy.sequence_stats([request.prompt], request.conditioning, [answers], temperature=0.8)
        assert stats.logprobs.tolist() == [pytest.approx(c.logprobs, abs=1e-5) for c in row]
        assert policy.sample([request], Sampling(max_new_tokens=1))[0][0].finish == "length"


def test_scores_have_the_gradient_of_the_change() -> None:
    policy, moving = ToyPolicy(World()), change(ToyPolicy(World()))
    answers = [[[3, NUM_FORMATS + 4], [1]], [[0, NUM_FORMATS]]]

    def total() -> torch.Tensor:
        rows = policy.sequence_stats(["input 2", "input 9"], PLAIN, answers, temperature=1.3, change=moving)
        assert [tuple(row.mask.sum(1)) for row in rows] == [(2.0, 1.0), (2.0,)]
        return sum((row.logprobs.sum() for row in rows), torch.zeros(()))

    leaves = [t for pair in moving.tensors.values() for t in pair]
    gradients = torch.autograd.grad(total(), leaves)
    for leaf, gradient in zip(leaves, gradients, strict=True):
        way = torch.sign(gradient)
        with torch.no_grad():
            leaf += 1e-3 * way
            above = total()
            leaf -= 2e-3 * way
            below = total()
            leaf += 1e-3 * way
        assert float(above - below) / 2e-3 == pytest.approx(float(gradient.abs().sum()), rel=2e-2)


def test_kl_is_the_sum_over_all_completions() -> None:
    policy = ToyPolicy(World())
    p, q = moved(policy), prompted(policy)
    every = [(f, NUM_FORMATS + a) for f, a in product(range(NUM_FORMATS), range(NUM_ANSWERS))]
    prompts = [f"input {n}" for n in range(NUM_INPUTS)]
    per_input = []
    for prompt in prompts:
        logs = [
            policy.sequence_stats([prompt], c, [every], temperature=1.0)[0].logprobs.double().sum(1) for c in (p, q)
        ]
        per_input.append(float((logs[0].exp() * (logs[0] - logs[1])).sum()))
    halves = policy.exact_kl(prompts, [every[0]] * NUM_INPUTS, p, q)
    assert [2 * half for half in halves] == pytest.approx(per_input, rel=1e-4)
    assert policy.divergence(p, q) == pytest.approx(sum(per_input) / NUM_INPUTS, rel=1e-4)
    assert policy.divergence(p, replace(p)) == 0.0
    rows = policy.logprobs_under(prompts[:1], every[:1], [p, q])
    assert rows[0][0] == pytest.approx(
        policy.sequence_stats(prompts[:1], p, [every[:1]], temperature=1.0)[0].logprobs[0].tolist()
    )


def test_a_settled_policy_is_the_moved_one() -> None:
    policy = ToyPolicy(World())
    settled = policy.settled(moved(policy).delta)
    assert settled.base_hash != policy.base_hash
    assert settled.accuracy(PLAIN, TASKS[0]) == pytest.approx(policy.accuracy(moved(policy), TASKS[0]), rel=1e-4)
    with pytest.raises(UnsupportedError, match="another base"):
        settled.accuracy(moved(policy), TASKS[0])
    with pytest.raises(UnsupportedError, match="exemplars"):
        policy.accuracy(Conditioning(exemplars=(("a", "b"),)), TASKS[0])
    with pytest.raises(ConfigError, match="q_proj"):
        policy.linear_shapes(["q_proj"])


def test_feedback_names_what_was_wrong_and_the_reflector_reads_it() -> None:
    world = World()
    task = ToyTask(world, TASKS[1])
    item = task.split("trial")[5]
    want, right = world.right_format(TASKS[1]), world.answers[5]
    texts = [f"f{want} a{right}", f"f{want} a{right + 1}", f"f{want + 1} a{right}", "", f"f{want}"]
    grades = task.grade([item] * len(texts), texts)
    assert [g.reward for g in grades] == [1.0, 0.0, 0.0, 0.0, 0.0]
    assert grades[1].feedback == "the answer is wrong"
    assert grades[2].feedback == f"the format is wrong: use format {want}"
    always, never = scripted_reflector(1.0, 0), scripted_reflector(0.0, 0)
    assert f"Use format {want}." in always(grades[2].feedback)
    assert always(grades[2].feedback) == always(grades[2].feedback)
    assert "format" not in never(grades[2].feedback) + always(grades[1].feedback)


# ------------------------------------------------------------------------------------------------------------- the arms


@pytest.fixture(scope="module")
def arms() -> dict[str, list[Result]]:
    return {
        name: [play(name, seed, ROUNDS, settings=SETTINGS, world=LIGHT) for seed in SEEDS]
        for name in ("rl_only", "fst", "fst_random")
    }


@pytest.fixture(scope="module")
def fresh(arms: dict[str, list[Result]]) -> dict[str, list[Result]]:
    begun = {"base": arms["rl_only"], "rl_only": arms["rl_only"], "fst": arms["fst"]}
    return {s: [fresh_task(r, s, FRESH, SETTINGS) for r in runs[:2]] for s, runs in begun.items()}


@pytest.fixture(scope="module")
def controls() -> dict[str, Any]:
    two = range(2)
    return {
        "null_prompt": [null_prompt(s, ROUNDS, SETTINGS, replace(LIGHT, wrong_logit=3.0)) for s in two],
        "known_answers": [known_answers(s, ROUNDS, SETTINGS, LIGHT) for s in two],
        "known_past": [known_answers(s, 18, SETTINGS, LIGHT, on=True) for s in two],
        "zero": {
            name: [play(name, s, 36, settings=SETTINGS, world=replace(ZERO, known_logit=2.5)) for s in two]
            for name in ("rl_only", "fst")
        },
    }


def test_fst_meets_the_target_three_times_sooner_with_half_the_drift(arms: dict[str, list[Result]]) -> None:
    rl, fst = arms["rl_only"], arms["fst"]
    assert all(r.reached and r.curve.points[-1].score >= TARGET for r in (*rl, *fst))
    assert median(a.curve.points[-1].problems / b.curve.points[-1].problems for a, b in zip(rl, fst, strict=True)) >= 3
    found = compare(fst, rl).running_max
    print({axis: str(found[axis].ratio) for axis in found})
    assert found["problems"].ratio.low > 1.5
    assert 1 < found["rollouts"].ratio.estimate < found["problems"].ratio.estimate  # searches and trials are charged
    assert median(b.kl / a.kl for a, b in zip(rl, fst, strict=True)) <= 0.5
    assert all(r.conditioning.system == prompted(r.policy).system for r in fst)


def test_a_random_reflector_brings_no_speed_up(arms: dict[str, list[Result]]) -> None:
    ratio = compare(arms["fst_random"], arms["rl_only"]).running_max["problems"].ratio
    print(ratio)
    assert ratio.low <= 1 or ratio.estimate < 1.3
    assert median(r.reached or ROUNDS for r in arms["fst_random"]) > 2 * median(
        r.reached or ROUNDS for r in arms["fst"]
    )
    assert all("format" not in (r.conditioning.system or "") for r in arms["fst_random"])


def test_the_parts_of_the_gain_sum_to_it_exactly(arms: dict[str, list[Result]], controls: dict[str, Any]) -> None:
    for result in [r for runs in arms.values() for r in runs] + controls["known_answers"]:
        split = result.split
        assert split.slow + split.fast + split.interaction == split.total
        assert split.total == pytest.approx(result.cells["live", "learned"] - result.cells["base", "none"], abs=1e-12)
    assert all(r.split.fast == r.split.interaction == 0.0 for r in arms["rl_only"])
    assert all(r.split.fast > 0.1 and r.split.interaction > 0.1 for r in arms["fst"])


def test_a_prompt_without_effect_has_no_fast_share(controls: dict[str, Any]) -> None:
    for result in controls["null_prompt"]:
        assert result.reached
        assert abs(result.split.fast) < 0.02 * result.split.total


def test_where_answers_are_known_the_prompt_is_all_of_the_gain(controls: dict[str, Any]) -> None:
    for result in controls["known_answers"]:
        assert result.reached
        assert abs(result.split.slow) < 0.05 * result.split.total
        assert result.kl < 0.1


def test_without_reward_weights_alone_never_move_and_a_prompt_starts_them(controls: dict[str, Any]) -> None:
    for alone, both in zip(controls["zero"]["rl_only"], controls["zero"]["fst"], strict=True):
        assert alone.cells["base", "none"] < 1e-3
        slow = [e for e in alone.entries if e.channel == "lora" and e.action != "init"]
        assert len(slow) == 36
        assert {e.action for e in slow} == {"decline"}
        assert all("dead" in e.reason for e in slow)
        assert alone.kl == 0.0
        first = {
            c: min(e.round for e in both.entries if e.channel == c and e.action == "commit")
            for c in ("prompts", "lora")
        }
        assert first["prompts"] < first["lora"]
        assert both.curve.points[-1].score > 0.1


def test_plasticity_is_read_off_fresh_runs_from_each_start(fresh: dict[str, list[Result]]) -> None:
    for start, runs in fresh.items():
        assert [r.curve.start for r in runs] == [start] * 2
        assert all(len(r.curve.points) == FRESH + 1 and r.curve.task == TASKS[1] for r in runs)
    found = plasticity(fresh["fst"], fresh["base"])
    gained = {start: area_gained(runs, fresh["base"]) for start, runs in fresh.items()}
    print(found.ratio, found.dead_groups, {start: str(interval) for start, interval in gained.items()})
    assert (gained["base"].low, gained["base"].high) == (0.0, 0.0)
    assert gained["rl_only"].estimate < 0 < gained["fst"].estimate
    assert found.dead_groups.is_known
    # Both kept the map; only the weights that learned the format stand further from the other one.
    assert all(
        a.cells["base", "none"] < b.cells["base", "none"] for a, b in zip(fresh["rl_only"], fresh["fst"], strict=True)
    )


def test_null_stays_where_it_is_and_a_run_repeats_to_the_bit() -> None:
    null = play("null", 0, 3, settings=SETTINGS, world=LIGHT)
    assert null.conditioning.is_identity
    assert set(null.curve.scores) == {null.cells["base", "none"]}
    one, two = (play("fst", 1, 8, settings=SETTINGS, world=LIGHT, until=None) for _ in range(2))
    assert one.digest == two.digest
    assert one.digest != play("fst", 2, 8, settings=SETTINGS, world=LIGHT, until=None).digest


def test_the_page_has_every_table_and_tells_what_does_not_hold(
    arms: dict[str, list[Result]], fresh: dict[str, list[Result]], controls: dict[str, Any]
) -> None:
    two = {name: runs[:2] for name, runs in arms.items()}
    past = two["fst"]
    done = Study(
        settings=SETTINGS, rounds=ROUNDS, fresh_rounds=FRESH, arms=two, past=past,
        fresh={**fresh, STARTS[-1]: fresh["fst"]}, **controls,
    )  # fmt: skip
    page = render(done, "toy.py --seeds 2")
    print(page)
    assert page.count("\n## ") == 6
    assert all(f"| {name} |" in page for name in (*arms, *STARTS, "prompt without effect"))
    assert "nan" not in page
    swapped = replace(done, arms={**two, "fst": two["rl_only"], "rl_only": two["fst"]})
    verdicts = [holds for what, _, holds in claims(swapped) if "sooner" in what or "lower" in what]
    assert verdicts == [False, False]
