"""Episodes played by a policy: prompts, seeds, sums, what ends an episode, what a broken environment costs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
from env_bench import counter, counter_reset, counter_step

from twoclock.bench import grade_rollouts, sample_items
from twoclock.errors import ConfigError, DataError
from twoclock.models.scripted import ScriptedPolicy
from twoclock.seeding import child_seed
from twoclock.tasks.env_maze import MazeWorld
from twoclock.tasks.env_play import EpisodeRules
from twoclock.tasks.env_python import PythonWorld
from twoclock.tasks.env_stuck import PAPER, RELEASED, StuckRule
from twoclock.tasks.env_task import EpisodeTask
from twoclock.tasks.env_transcript import Turn, parse_transcript
from twoclock.tasks.splits import SplitSizes
from twoclock.types import Conditioning, Item, Recall, Request, Sampling

SIZES = SplitSizes(train=4, trial=1, heldout=1)
SAMPLING = Sampling(max_new_tokens=60)


def always(text: str) -> ScriptedPolicy:
    return ScriptedPolicy(lambda prompt, conditioning, seed: text, context_tokens=1 << 20)


def ask(item: Item, *seeds: int, told: Conditioning | None = None) -> Request:
    return Request(prompt=item.prompt, conditioning=told or Conditioning(), seeds=seeds)


def turns(*pairs: tuple[str, str]) -> list[Turn]:
    return [Turn(action=action, observation=said) for action, said in pairs]


# ------------------------------------------------------------------------------------------------------- stuck rules


def test_the_papers_rule_ends_at_the_fourth_same_answer() -> None:
    same = ("push", "Nothing happens.")
    assert PAPER.verdict(turns(*[same] * 3)) is None
    assert PAPER.verdict(turns(*[same] * 4)) == "stuck: 'push' 4 times in a row with the same response"
    assert PAPER.verdict(turns(same, same, ("push", "It moves."), same, same)) is None
    assert PAPER.verdict(turns(*[("push", f"{i}") for i in range(29)])) is None
    assert PAPER.verdict(turns(*[("push", f"{i}") for i in range(30)])) == "out of steps: 30 are allowed"


def test_the_released_codes_rule_ends_at_the_second_whatever_is_said() -> None:
    assert RELEASED.verdict(turns(("a", "1"), ("b", "2"))) is None
    assert RELEASED.verdict(turns(("a", "1"), ("a", "2"))) == "stuck: 'a' 2 times in a row"
    assert RELEASED.max_steps == 49


def test_going_to_and_fro_is_found_with_a_period_of_two() -> None:
    there_and_back = turns(*[("east", "hall"), ("west", "yard")] * 4)
    assert PAPER.verdict(there_and_back) is None
    wide = StuckRule(period=2)
    assert wide.verdict(there_and_back[:-1]) is None
    assert wide.verdict(there_and_back) == "stuck: 'east', 'west' 4 times in a row with the same response"


@pytest.mark.parametrize("bad", [{"repeats": 0}, {"max_steps": -1}, {"period": None}, {"repeats": True}])
def test_numbers_that_make_no_rule(bad: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="must be a whole number of at least 1"):
        StuckRule(**bad)


def test_rules_say_all_their_mistakes() -> None:
    with pytest.raises(ConfigError) as caught:
        EpisodeRules(reward="best", max_live=0, history_chars=3, list_actions="yes")  # type: ignore[arg-type]
    assert len(caught.value.problems) == 4
    with pytest.raises(ConfigError, match="needs list_actions"):
        EpisodeRules(answers="numbers", list_actions=False)


# ------------------------------------------------------------------------------------------------------------ playing


def test_one_call_a_turn_with_one_request_for_each_live_episode() -> None:
    task = EpisodeTask(counter(), sizes=SIZES)
    items = task.split("train")[:2]

    def script(prompt: str, conditioning: Conditioning, seed: int) -> str:
        return "two" if conditioning.system == "fast" else "one"

    policy = ScriptedPolicy(script, context_tokens=1 << 20)
    told = [Conditioning(system="fast"), Conditioning()]
    requests = [ask(i, 5, 6, told=t) for i, t in zip(items, told, strict=True)]
    rows = task.play(policy, items, requests, SAMPLING)
    assert [[c.turns for c in row] for row in rows] == [[4, 4], [7, 7]]
    assert policy.calls == 7
    assert len(policy.asked) == 22
    assert policy.asked[0][2] == child_seed("episode-turn", 5, 0)
    assert policy.asked[4][2] == child_seed("episode-turn", 5, 1)
    first = policy.asked[0][0]
    assert first == f"{items[0].prompt}\n\nYou can: one, two\n\nYour next action:"
    second = policy.asked[4][0]
    assert second == f"{items[0].prompt}\n\n> two\n  You are at 2.\n\nYou can: one, two\n\nYour next action:"


def test_tokens_are_those_of_all_turns() -> None:
    task = EpisodeTask(counter(), sizes=SIZES)
    item = task.split("train")[0]
    policy = always("two")
    ((completion,),) = task.play(policy, [item], [ask(item, 1)], SAMPLING)
    assert len(completion.tokens) == 3 * 4
    assert completion.prompt_tokens == sum(len(prompt.encode()) for prompt, _, _ in policy.asked)
    assert completion.logprobs == ()


def test_notes_stand_before_the_prompt_and_memory_is_asked_about_the_item() -> None:
    task = EpisodeTask(counter(), sizes=SIZES)
    items = task.split("train")[:2]
    recall = Recall("r", lambda item: Conditioning(notes=(f"about {item.id}",)))
    policy = always("two")
    told = Conditioning(notes=("first",), recall=(recall,))
    task.play(policy, items, [ask(i, 1, told=told) for i in items], SAMPLING)
    assert policy.asked[0][1].notes == ("first", f"about {items[0].id}")
    assert policy.asked[1][1].notes == ("first", f"about {items[1].id}")


def test_a_completion_without_an_action_costs_a_step_and_says_so() -> None:
    task = EpisodeTask(counter(), sizes=SIZES)
    item = task.split("train")[0]
    ((completion,),) = task.play(always("..."), [item], [ask(item, 1)], SAMPLING)
    transcript = parse_transcript(completion.text)
    assert [t.line for t in transcript.turns] == ["? ..."] * 4
    assert transcript.turns[0].observation == "That is no action. You can: one, two"
    assert (
        transcript.ending
        == "failure, reward 0, 4 steps: stuck: no action at all 4 times in a row with the same response"
    )
    (grade,) = task.grade([item], [completion.text])
    assert grade.reward == 0.0
    assert "stuck" in grade.feedback


def test_running_out_of_steps_is_a_length() -> None:
    rules = EpisodeRules(stuck=StuckRule(max_steps=2))
    task = EpisodeTask(counter(), rules=rules, sizes=SIZES)
    item = task.split("train")[0]
    ((completion,),) = task.play(always("one"), [item], [ask(item, 1)], SAMPLING)
    assert (completion.finish, completion.turns) == ("length", 2)


def test_answers_by_number() -> None:
    task = EpisodeTask(counter(), rules=EpisodeRules(answers="numbers"), sizes=SIZES)
    item = task.split("train")[0]
    said = iter(["2", "I take 1.", "two", "7", "99999999999", "no"])
    policy = ScriptedPolicy(lambda prompt, conditioning, seed: next(said), context_tokens=1 << 20)
    ((completion,),) = task.play(policy, [item], [ask(item, 1)], SAMPLING)
    assert policy.asked[0][0].endswith("You can:\n1. one\n2. two\n\nThe number of your next action:")
    lines = [turn.line for turn in parse_transcript(completion.text).turns]
    assert lines[:4] == ["> two", "> one", "> two", "> 7"]
    assert task.grade_by_replay(item, completion.text) == task.grade([item], [completion.text])[0]


def test_a_case_keeps_the_actions() -> None:
    task = EpisodeTask(counter(), sizes=SIZES)
    text = '> two\n  You are at 2.\n? hm\n  That is no action.\n> {"tool": "t"}\n= failure, reward 0, 3 steps'
    assert task.answer_of(text) == 'two\n{"arguments":{},"tool":"t"}'
    assert task.answer_of("") == ""


def test_success_or_score() -> None:
    """The counter ends at 7 of 9 without ever saying that it was won."""
    for reward, expected in (("success", 0.0), ("score", 7 / 9)):
        task = EpisodeTask(counter(), rules=EpisodeRules(reward=reward), sizes=SIZES)  # type: ignore[arg-type]
        item = task.split("train")[0]
        assert task.grade([item], ["> two\n> two\n> two\n> one"])[0].reward == expected
        assert task.grade([item], ["> two\n> two\n> two\n> one\n> one\n> two"])[0].reward == expected


def test_a_policy_that_fails_costs_its_episode_alone() -> None:
    task = EpisodeTask(counter(), sizes=SIZES)
    items = task.split("train")[:2]

    def script(prompt: str, conditioning: Conditioning, seed: int) -> str:
        if conditioning.system == "broken" and "> two" in prompt:
            raise RuntimeError("no answer")
        return "two"

    policy = ScriptedPolicy(script, context_tokens=1 << 20)
    told = (Conditioning(system="broken"), Conditioning())
    requests = [ask(i, 1, told=t) for i, t in zip(items, told, strict=True)]
    completions = sample_items(policy, task, items, requests, SAMPLING)
    assert completions[0][0].finish == "error"
    assert completions[0][0].turns == 2
    assert completions[1][0].finish == "stop"
    groups = grade_rollouts(task, items, requests, completions)
    assert groups[0].rollouts[0].grade.failure == "no completion: RuntimeError: no answer"
    assert groups[1].rollouts[0].grade.failure is None


# -------------------------------------------------------------------------------------------------- broken environments


def broken(step: Any) -> EpisodeTask:
    specs = [{"goal": n} for n in range(12)]
    return EpisodeTask(PythonWorld("broken", counter_reset, step, specs=specs), sizes=SIZES)


def raising(state: int, action: Any) -> Any:
    raise ZeroDivisionError("oh")


@pytest.mark.parametrize(
    ("step", "said"),
    [
        (raising, "ZeroDivisionError: oh"),
        (lambda state, action: "fine", "step returned 'fine'; expected (state, text, reward, done)"),
        (lambda state, action: (0, "x", float("nan"), False), "step gave the reward nan; expected a number in [0, 1]"),
        (lambda state, action: (0, "x", 7, False), "step gave the reward 7"),
        (lambda state, action: (0, 3, 0.0, False), "an observation must be text; got 3 of type int"),
        (lambda state, action: (0, "x", 0.0, "no"), "done and success must be true or false; got 'no'"),
    ],
)
def test_an_environment_that_breaks_fails_its_grade(step: Any, said: str) -> None:
    task = broken(step)
    item = task.split("train")[0]
    ((completion,),) = task.play(always("one"), [item], [ask(item, 1)], SAMPLING)
    assert completion.text.split("\n")[0] == "> one"
    assert said in completion.text.split("\n")[1]
    (known,) = task.grade([item], [completion.text])
    assert known.failure is not None
    assert said in known.failure
    assert task.grade_by_replay(item, completion.text).failure is not None


def test_a_fault_that_does_not_come_again_is_still_a_failure() -> None:
    task = EpisodeTask(counter(), sizes=SIZES)
    item = task.split("train")[0]
    (grade,) = task.grade([item], ["> two\n! RuntimeError: the power was cut"])
    assert grade.failure == "the environment failed: RuntimeError: the power was cut"


def test_an_environment_that_is_not_deterministic_is_caught_when_it_is_replayed() -> None:
    calls = {"n": 0}

    def step(state: int, action: Any) -> Any:
        calls["n"] += 1
        return state, f"call {calls['n']}", 0.0, False

    task = broken(step)
    item = task.split("train")[0]
    ((completion,),) = task.play(always("one"), [item], [ask(item, 1)], SAMPLING)
    grade = task.grade_by_replay(item, completion.text)
    assert grade.failure is not None
    assert "the replay differs from the transcript at step 1" in grade.failure


def test_a_gold_path_that_does_not_lead_there_is_said() -> None:
    specs = [{"goal": n} for n in range(12)]
    world = PythonWorld("liar", counter_reset, counter_step, specs=specs, gold=lambda spec: ["one"])
    task = EpisodeTask(world, sizes=SIZES)
    with pytest.raises(DataError, match=r"the gold actions of item .* do not solve it"):
        task.gold(task.split("train")[0])


def test_specs_that_are_none() -> None:
    def world(specs: list[Mapping[str, Any]]) -> PythonWorld:
        return PythonWorld("x", counter_reset, counter_step, specs=specs)

    with pytest.raises(ConfigError, match="specs is empty"):
        world([])
    with pytest.raises(ConfigError, match=r"specs\[1\] equals specs\[0\]"):
        world([{"goal": 1}, {"goal": 1}])
    with pytest.raises(ConfigError, match="is no plain JSON"):
        world([{"goal": float("nan")}])
    with pytest.raises(ConfigError, match="split must be one of heldout, trial, train; got 'dev'"):
        world([{"goal": 1, "split": "dev"}])


def test_too_few_items_are_said() -> None:
    with pytest.raises(ConfigError, match=r"world 'maze' gave only .* distinct items"):
        EpisodeTask(MazeWorld({"rooms": 2, "doors": 0}), sizes=SplitSizes(train=2000)).split("train")
