"""The trial loop: what is shown, when it ends, what is written, and that arms differ in nothing but what they show."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from trial_world import Guessing, guesser, noted, rule_out, writer

from twoclock.agent.episodes import run_attempts
from twoclock.agent.evaluators import ClassifierEvaluator, EnvironmentEvaluator, NoisyEvaluator
from twoclock.agent.reflectors import Failure, OracleWriter, ScriptedWriter, TemplatedWriter, Writer, Written
from twoclock.agent.token_matched import run_token_matched
from twoclock.agent.trial_report import compare
from twoclock.agent.trial_table import auc, cumulative, forgetting, recovery, standing, verdicts
from twoclock.agent.trials import Strategy, TrialRun, TrialSettings, run_trials
from twoclock.agent.windows import Lesson, first_words, notes_of, shown_lessons
from twoclock.errors import ConfigError, ModelError
from twoclock.models.scripted import ScriptedPolicy
from twoclock.tasks.env_maze import MazeWorld
from twoclock.tasks.env_task import EpisodeTask
from twoclock.tasks.splits import SplitSizes
from twoclock.types import Conditioning, Sampling

TASK = Guessing()
ITEMS = TASK.split("train")


def run(policy: ScriptedPolicy | None = None, *, writes: Writer | None = None, **changes: Any) -> TrialRun:
    evaluator = changes.pop("evaluator", None)
    settings = TrialSettings(**({"trials": 5, "seed": 1} | changes))
    given = writes or (writer() if settings.strategy.reflects else None)
    return run_trials(policy or guesser(), TASK, ITEMS, settings, writer=given, evaluator=evaluator)


def plain(**changes: Any) -> TrialRun:
    return run(strategy=Strategy.NONE, **changes)


# -------------------------------------------------------------------------------------------------------- the laws


def test_lessons_help_and_by_how_much_is_what_chance_says() -> None:
    """Retries draw one of 8 anew each time; with wrong numbers ruled out, k trials solve k of 8."""
    many = Guessing(200)
    items = many.split("train")
    settings = TrialSettings(trials=5, window=8, seed=0)
    memory = run_trials(guesser(), many, items, settings, writer=writer()).table
    retries = run_trials(guesser(), many, items, replace(settings, strategy=Strategy.NONE)).table
    for t in range(1, 6):
        assert cumulative(memory)[t - 1] / 200 == pytest.approx(t / 8, abs=0.1)
        assert cumulative(retries)[t - 1] / 200 == pytest.approx(1 - (7 / 8) ** t, abs=0.1)
    assert compare(memory, retries).auc.low > 0


def test_the_first_trial_is_the_same_in_every_arm() -> None:
    first = [row[0] for row in plain().table.solved]
    arms = [
        run(),
        run(memory="shuffled"),
        run(memory="random"),
        run(compress=first_words(3)),
        run(strategy=Strategy.LAST_ATTEMPT),
        run(strategy=Strategy.LAST_ATTEMPT_AND_REFLEXION),
        run(guesser(reads=False)),
    ]
    for arm in arms:
        assert [row[0] for row in arm.table.solved] == first


def test_a_window_of_nothing_is_no_memory_exactly() -> None:
    none, zero = plain(), run(window=0)
    assert zero.attempts == none.attempts
    assert zero.table.tokens == none.table.tokens
    assert zero.table.other_tokens == none.table.other_tokens == (0,) * 5
    assert zero.table.kept == 0


def test_a_policy_that_ignores_its_notes_gains_nothing_at_all() -> None:
    deaf = guesser(reads=False)
    gained = compare(run(deaf, window=8).table, run(deaf, strategy=Strategy.NONE).table)
    assert gained.wins == gained.losses == (0,) * 5
    assert gained.auc.low <= 0.0 <= gained.auc.high


def test_the_same_run_twice_is_the_same() -> None:
    assert run(memory="random").table == run(memory="random").table
    assert run(seed=2).table != run(seed=3).table


# -------------------------------------------------------------------------------------------------- what is shown


def test_the_window_holds_the_last_lessons_verbatim_oldest_first() -> None:
    policy = guesser(reads=False)
    result = run(policy, window=2, trials=5)
    item = next(item for item in ITEMS if len(result.lessons[item.id]) == 4)
    texts = [lesson.text for lesson in result.lessons[item.id]]
    shown = noted(policy, item.prompt)
    assert shown[0] == ()
    assert len(shown) == 5
    for trial in range(2, 6):
        (block,) = shown[trial - 1]
        expected = texts[max(0, trial - 3) : trial - 1]
        places = [block.index(text) for text in expected]
        assert places == sorted(places)
        assert not any(text in block for text in texts if text not in expected)


def test_the_last_attempt_is_shown_with_its_outcome() -> None:
    policy = guesser(reads=False)
    result = run(policy, strategy=Strategy.LAST_ATTEMPT)
    attempt = next(a for a in result.attempts if a.reward < 1)
    told = noted(policy, next(i.prompt for i in ITEMS if i.id == attempt.item_id))[1][0]
    assert f"> {attempt.text}\n" in told
    assert f"Outcome: {attempt.feedback}" in told
    assert result.table.kept == 0
    both = guesser(reads=False)
    run(both, strategy=Strategy.LAST_ATTEMPT_AND_REFLEXION)
    told = noted(both, next(i.prompt for i in ITEMS if i.id == attempt.item_id))[1][0]
    assert "My last attempt" in told
    assert "not number" in told


def test_shuffled_lessons_are_another_items_and_of_like_length() -> None:
    policy = guesser(reads=False)
    result = run(policy, memory="shuffled")
    seen = 0
    for item in ITEMS:
        for notes in noted(policy, item.prompt)[1:]:
            (block,) = notes
            assert f"at {item.id}:" not in block
            assert "at item" in block
            seen += 1
    assert seen > 20
    assert result.table.notes == ()


def test_lessons_of_others_by_hand() -> None:
    def lesson(item: str, length: int) -> Lesson:
        return Lesson(item_id=item, trial=1, text=item * length)

    bank = {
        "a": [lesson("a", 5), lesson("a", 9)],
        "b": [lesson("b", 4), lesson("b", 20)],
        "c": [lesson("c", 10)],
        "d": [],
    }
    assert shown_lessons(bank, "a", ["b", "c", "d"], "own", 1, 0) == [lesson("a", 9)]
    assert shown_lessons(bank, "a", ["b", "c", "d"], "own", 0, 0) == []
    assert shown_lessons(bank, "a", ["b", "c", "d"], "shuffled", 3, 0) == [lesson("b", 4), lesson("c", 10)]
    assert shown_lessons(bank, "d", ["a", "b", "c"], "shuffled", 3, 0) == []
    drawn = {tuple(shown_lessons(bank, "a", ["b", "c", "d"], "random", 3, seed)) for seed in range(30)}
    assert len(drawn) > 3
    assert all(len(each) == 2 and all(x.item_id != "a" for x in each) for each in drawn)
    twins = {"a": [lesson("x", 5)], "b": [lesson("x", 5)], "c": [lesson("c", 99)]}
    assert shown_lessons(twins, "a", ["b", "c"], "shuffled", 1, 0) == [lesson("c", 99)]


def test_compression_shows_less() -> None:
    lessons = [
        Lesson(item_id="a", trial=1, text="one two three four"),
        Lesson(item_id="a", trial=2, text="five six seven"),
    ]
    told = notes_of(lessons, compress=first_words(2)).notes[0]
    assert "one two\n> five six\n" in told
    assert "three" not in told
    assert notes_of(lessons, compress=lambda texts: "  ").notes == ()
    assert notes_of([]) == Conditioning()


def test_a_base_conditioning_is_under_everything() -> None:
    policy = guesser()
    settings = TrialSettings(trials=2)
    run_trials(policy, TASK, ITEMS, settings, writer=writer(), base=Conditioning(system="Be good."))
    assert {conditioning.system for _, conditioning, _ in policy.asked} == {"Be good."}


# ------------------------------------------------------------------------------------------------------- when it ends


def test_what_has_passed_is_left_alone_unless_it_is_to_be_run_again() -> None:
    result = run()
    for row in result.table.solved:
        assert row.rstrip("-").find("1") in (-1, len(row.rstrip("-")) - 1)
    again = run(guesser(reads=False), rerun_solved=True).table
    assert not any("-" in row for row in again.solved)
    lost, n = forgetting(again, 5)
    assert 0 < lost < n
    assert cumulative(again)[-1] >= sum(row[-1] == "1" for row in again.solved)


def test_patience() -> None:
    table = run(patience=2).table
    assert all(row in ("1----", "01---", "00---") for row in table.solved)


def test_no_lesson_is_written_after_the_last_trial_or_about_what_passed() -> None:
    asked: list[Failure] = []

    def remember(failure: Failure) -> str:
        asked.append(failure)
        return rule_out(failure)

    result = run(writes=ScriptedWriter(remember), trials=3)
    assert {f.trial for f in asked} == {1, 2}
    right = {(a.item_id, a.trial) for a in result.attempts if a.reward == 1.0}
    assert not {(f.item.id, f.trial) for f in asked} & right


def test_a_false_pass_ends_the_trials_and_is_counted() -> None:
    noisy = NoisyEvaluator(EnvironmentEvaluator(), false_pass=0.5, seed=4)
    table = run(evaluator=noisy, trials=4).table
    judged = verdicts(table)
    assert judged["false_fail"] == 0
    assert judged["false_pass"] == judged["ended_wrong"] > 5
    for said, truth in zip(table.passed, table.solved, strict=True):
        if "1" in said:
            assert set(said[said.index("1") + 1 :]) <= {"-"}
            assert set(truth[said.index("1") + 1 :]) <= {"-"}
    assert standing(table)[-1] == judged["true_pass"]


def test_a_false_fail_goes_on_and_loses_what_was_right() -> None:
    noisy = NoisyEvaluator(EnvironmentEvaluator(), false_fail=1.0)
    table = run(guesser(reads=False), evaluator=noisy, trials=4).table
    assert verdicts(table)["true_pass"] == 0
    assert standing(table)[-1] < cumulative(table)[-1]


def test_the_classifier_never_sees_the_grade() -> None:
    asked: list[str] = []

    def ask(prompt: str) -> str:
        asked.append(prompt)
        return ["yes, it did", "NO.", "who knows"][len(asked) % 3]

    table = run(evaluator=ClassifierEvaluator(ask), trials=2).table
    assert not any("Right." in prompt or "is wrong" in prompt for prompt in asked)
    assert any("no verdict" in note for note in table.notes)
    assert sum(table.calls) >= len(asked)
    assert sum(table.other_tokens) > 0


def test_the_classifier_does_not_see_how_the_environment_says_it_ended() -> None:
    task = EpisodeTask(MazeWorld({"rooms": 3, "doors": 0}), sizes=SplitSizes(train=2, trial=1, heldout=1))
    items = task.split("train")
    asked: list[str] = []

    def ask(prompt: str) -> str:
        asked.append(prompt)
        return "no"

    policy = ScriptedPolicy(lambda prompt, conditioning, seed: "look")
    settings = TrialSettings(trials=1, strategy=Strategy.NONE)
    run_trials(policy, task, items, settings, evaluator=ClassifierEvaluator(ask))
    assert len(asked) == 2
    assert all("> look" in prompt and "= failure" not in prompt for prompt in asked)


# --------------------------------------------------------------------------------------------------- what is no lesson


def test_texts_that_are_no_lessons_are_asked_for_again_and_then_left_out() -> None:
    class Stubborn(ScriptedWriter):
        def write(self, failures: Any, again: int) -> list[Written]:
            return [Written(text="" if again == 0 else rule_out(f), calls=1) for f in failures]

    result = run(writes=Stubborn(rule_out), trials=2)
    failed = sum(row[0] == "0" for row in result.table.solved)
    assert result.table.refused == {"empty": failed}
    assert result.table.kept == failed
    assert result.table.calls == (0, 2 * failed)
    given_up = run(writes=ScriptedWriter(lambda failure: f"The answer is {failure.item.reference}."), trials=2)
    assert given_up.table.kept == 0
    assert given_up.table.refused == {"answer": 2 * failed}


def test_no_lesson_is_kept_twice() -> None:
    result = run(writes=ScriptedWriter(lambda failure: "I must think harder and not guess at random."), trials=4)
    assert all(len(lessons) <= 1 for lessons in result.lessons.values())
    assert result.table.refused["copy"] > 0


def test_a_lesson_that_fails_costs_no_other() -> None:
    class Half(ScriptedWriter):
        def write(self, failures: Any, again: int) -> list[Written]:
            return [
                Written(text="", error="it hung") if f.item.id == "item0" else Written(text=rule_out(f))
                for f in failures
            ]

    result = run(writes=Half(rule_out), trials=3)
    assert result.lessons["item0"] == ()
    assert result.table.refused["error"] > 0
    assert result.table.kept > 20


def test_a_writer_that_breaks_its_contract() -> None:
    class Lost(ScriptedWriter):
        def write(self, failures: Any, again: int) -> list[Written]:
            return []

    with pytest.raises(ConfigError, match=r"was asked for .* lessons and gave 0"):
        run(writes=Lost(rule_out))


def test_an_endpoint_that_is_gone_ends_the_run_with_its_reason() -> None:
    from twoclock.agent.reflectors import PromptedWriter

    def gone(prompt: str) -> str:
        raise ModelError("there is no endpoint")

    with pytest.raises(ModelError, match="there is no endpoint"):
        run(writes=PromptedWriter(gone))


def test_an_oracle_may_give_answers() -> None:
    oracle = OracleWriter(lambda item: [f"take number {item.reference}"])
    table = run(writes=oracle, trials=2).table
    assert cumulative(table)[-1] == len(ITEMS)


# ----------------------------------------------------------------------------------------------- policies that break


def test_a_policy_that_fails_is_a_failed_attempt_and_is_said() -> None:
    def script(prompt: str, conditioning: Conditioning, seed: int) -> str:
        if "item 3." in prompt:
            raise RuntimeError("out of memory")
        return "0"

    table = run(ScriptedPolicy(script), writes=TemplatedWriter(), trials=2).table
    assert table.solved[3] == "00"
    assert "2 of" in table.notes[0]


def test_all_pass_and_all_fail() -> None:
    sure = ScriptedPolicy(lambda prompt, conditioning, seed: "x")
    fails = run(sure, trials=3).table
    assert auc(fails) == 0.0
    assert recovery(fails, 2) == (0, len(ITEMS))
    references = {item.prompt: item.reference for item in ITEMS}
    right = ScriptedPolicy(lambda prompt, conditioning, seed: references[prompt] or "")
    passes = run(right, trials=3).table
    assert auc(passes) == 1.0
    assert recovery(passes, 2) == (0, 0)
    assert passes.attempts == len(ITEMS)
    assert passes.calls == (0, 0, 0)


def test_mistakes_are_said() -> None:
    with pytest.raises(ConfigError) as caught:
        TrialSettings(trials=0, window=-1, patience=0, memory="other", signal="loud", success_at=2.0)  # type: ignore[arg-type]
    assert len(caught.value.problems) == 6
    with pytest.raises(ConfigError, match="which strategy 'none' does not write"):
        TrialSettings(strategy=Strategy.NONE, memory="shuffled")
    with pytest.raises(ConfigError, match="needs a writer of lessons"):
        run_trials(guesser(), TASK, ITEMS, TrialSettings())
    with pytest.raises(ConfigError, match="got 1 item"):
        run_trials(guesser(), TASK, ITEMS[:1], TrialSettings(memory="shuffled"), writer=writer())
    with pytest.raises(ConfigError, match="items is empty"):
        run_trials(guesser(), TASK, [], TrialSettings(strategy=Strategy.NONE))
    with pytest.raises(ValueError, match="stands twice"):
        run_attempts(guesser(), TASK, [ITEMS[0], ITEMS[0]], Sampling(), seed=0, trial=1)
    with pytest.raises(ConfigError, match="false_pass must lie"):
        NoisyEvaluator(EnvironmentEvaluator(), false_pass=2)


# -------------------------------------------------------------------------------------------------------- token-matched


def test_token_matched_retries_never_spend_more() -> None:
    memory = run(window=8, trials=3).table
    settings = TrialSettings(strategy=Strategy.NONE, trials=3, seed=1)
    unlucky = ScriptedPolicy(lambda prompt, conditioning, seed: "9")
    assert run_token_matched(unlucky, TASK, ITEMS, memory, settings).total_tokens > 0.95 * memory.total_tokens
    matched = run_token_matched(guesser(), TASK, ITEMS, memory, settings)
    spent = allowed = 0
    for t in range(3):
        spent += matched.tokens[t] + matched.other_tokens[t]
        allowed += memory.tokens[t] + memory.other_tokens[t]
        assert spent <= allowed
    assert matched.attempts > memory.attempts
    assert [row[0] for row in matched.solved] == [row[0] for row in memory.solved]


def test_token_matched_is_plain_retries_where_the_arm_cost_no_more() -> None:
    settings = TrialSettings(strategy=Strategy.NONE, trials=5, seed=1)
    none = plain().table
    matched = run_token_matched(guesser(), TASK, ITEMS, none, settings)
    assert matched.solved == none.solved
    assert matched.tokens == none.tokens


def test_token_matched_ends_where_nothing_is_spent() -> None:
    silent = ScriptedPolicy(lambda prompt, conditioning, seed: "x")
    memory = run(silent, window=8, trials=3).table
    settings = TrialSettings(strategy=Strategy.NONE, trials=3, seed=1)
    assert run_token_matched(silent, TASK, ITEMS, memory, settings).attempts > len(ITEMS)
    with pytest.raises(ConfigError, match="need the items of the arm"):
        run_token_matched(silent, TASK, ITEMS[:3], memory, settings)


# ---------------------------------------------------------------------------------------------------- whole episodes


def test_an_oracle_solves_houses_at_the_second_trial() -> None:
    task = EpisodeTask(MazeWorld({"rooms": 8, "doors": 1}), sizes=SplitSizes(train=12, trial=1, heldout=1))
    items = task.split("train")

    def script(prompt: str, conditioning: Conditioning, seed: int) -> str:
        steps = [
            line[2:] for note in conditioning.notes for line in note.split("\n") if line.startswith(("> go", "> take"))
        ]
        done = prompt.count("\n> ")
        return steps[done] if done < len(steps) else "look"

    oracle = OracleWriter(lambda item: [str(action) for action in task.gold(item) or ()])
    table = run_trials(ScriptedPolicy(script), task, items, TrialSettings(trials=2), writer=oracle).table
    assert table.solved == ("01",) * 12
