"""Lessons move to the weights, or everything is as it was: in the two-token world, where scores can be enumerated."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from consolidation_kill import PLACES  # noqa: E402

from two_token_world import (  # noqa: E402
    FALSE_LESSON,
    IDLE_LESSON,
    LESSON,
    SETTINGS,
    SampledPolicy,
    TwoTokenPolicy,
    TwoTokenWorld,
    consolidation,
)
from twoclock.consolidation import Consolidated, ConsolidationPlan, plan_consolidation  # noqa: E402
from twoclock.errors import ConfigError, NumericsError, StoreError, UnsupportedError  # noqa: E402
from twoclock.evaluation import conditioning_of  # noqa: E402
from twoclock.loop import Loop  # noqa: E402
from twoclock.models.scripted import ScriptedPolicy  # noqa: E402
from twoclock.store import RunStore  # noqa: E402
from twoclock.types import Conditioning  # noqa: E402


def planned(loop: Loop, world: TwoTokenWorld, **more: Any) -> ConsolidationPlan:
    settings = more.pop("settings", SETTINGS)
    asked = more.pop("lessons", [world.lesson()])
    return plan_consolidation(
        loop.store, loop.stream, loop.channels, loop.states, settings, seed=loop.seed, lessons=asked, **more
    )


def carried_out(loop: Loop, world: TwoTokenWorld, **more: Any) -> Consolidated:
    again = more.pop("again", False)
    plan = planned(loop, world, **more)
    return consolidation(loop, plan.settings).carry_out(plan, loop.states, again=again)


def logits(loop: Loop, states: Mapping[str, Any], task: str = "first") -> list[bytes]:
    policy: Any = loop.policy
    return [t.numpy().tobytes() for t in policy.logits(conditioning_of(loop.channels, states, task))]


def restored(loop: Loop) -> Mapping[str, Any]:
    loop.restore()
    return loop.states


@pytest.fixture
def world() -> TwoTokenWorld:
    return TwoTokenWorld()


@pytest.fixture
def loop(world: TwoTokenWorld, tmp_path: Path) -> Iterator[Loop]:
    with world.run(tmp_path / "run", 2) as made:
        yield made


# --------------------------------------------------------------------------------------------------- what it is about


@pytest.mark.parametrize("slow", ["lora", "full"])
def test_a_lesson_moves_to_the_weights(tmp_path: Path, slow: str) -> None:
    world = TwoTokenWorld(slow=slow)
    with world.run(tmp_path / "run", 1) as loop:
        before = loop.states
        assert world.accuracy(loop, before) > 0.9
        assert world.accuracy(loop, {**before, "prompts": loop.channels["prompts"].init(loop.policy.card, 0)}) < 0.02
        result = carried_out(loop, world)
        assert result.accepted, result.reason
        after = restored(loop)
        deployed = conditioning_of(loop.channels, after, "first")
        assert deployed == Conditioning(delta=deployed.delta)  # the prompt is gone,
        assert deployed.delta is not None
        assert world.accuracy(loop, after) > world.accuracy(loop, before) - 0.05  # the score is not,
        assert world.accuracy(loop, after, "second") > world.accuracy(loop, before, "second") - 0.05
        assert [c.name for c in result.checks] == ["worth", "drift", "score", "retention"]
        score = result.checks[2]
        assert score.interval is not None
        assert score.interval.low > -SETTINGS.margin
        assert result.saved is not None
        assert result.saved.tokens == 3  # and neither are the words of the lesson
        assert loop.store.verify() == []
        assert before is not after
        assert {name: loop.channels[name].dump(s) for name, s in result.states.items()} == {
            name: loop.channels[name].dump(s) for name, s in after.items()
        }


def test_an_entry_of_a_memory_moves_and_its_neighbour_stays(tmp_path: Path) -> None:
    """What a memory says differs from item to item; the entry is retired, and what else it holds speaks as before."""
    world = TwoTokenWorld(fast="reflections", told={"first": LESSON, "second": IDLE_LESSON})
    with world.run(tmp_path / "run", 4) as loop:
        before = loop.states
        plan = planned(loop, world, lessons=None)
        first, second = plan.choices
        assert (first.lesson.id, first.accepted, second.accepted) == (world.lesson(), True, False)
        assert first.evidence is not None
        assert first.evidence.record.effect().mean > 0.5  # from the rollouts that held it out
        result = consolidation(loop).carry_out(plan, loop.states)
        assert result.accepted, result.reason
        after = restored(loop)
        told = {task: conditioning_of(loop.channels, after, task) for task in ("first", "second")}
        assert not told["first"].recall
        assert told["second"].for_item(world.tasks["second"].split("trial")[0]).notes != ()
        policy: Any = loop.policy
        assert policy.accuracy(told["first"], world.tasks["first"]) > 0.9
        assert loop.channels["reflections"].bank(after["reflections"]).get(world.lesson()) is None  # type: ignore[attr-defined]
        assert loop.store.append_rollback(4, reason="no").states == plan.head.states
        assert loop.channels["reflections"].dump(restored(loop)["reflections"]) == loop.channels["reflections"].dump(
            before["reflections"]
        )
        assert loop.store.verify() == []


def test_the_ledger_tells_it(world: TwoTokenWorld, loop: Loop) -> None:
    head = loop.store.head()
    result = carried_out(loop, world)
    slow, fast = loop.store.entries(action="consolidate")
    assert (slow.channel, fast.channel, slow.round, fast.round) == ("lora", "prompts", 2, 2)
    assert [(w.kind, w.lesson, w.text) for w in slow.writes] == [("consolidate", world.lesson(), LESSON)]
    assert [(w.kind, w.lesson) for w in fast.writes] == [("retire", world.lesson())]
    assert (slow.before, fast.before) == (head.states["lora"], head.states["prompts"])
    assert dict(loop.store.head().states) == {"lora": slow.after, "prompts": fast.after}
    assert slow.cost.rollouts == result.cost.rollouts <= result.plan.rollouts
    assert slow.cost.optimizer_steps == result.distilled.steps if result.distilled else False
    assert slow.cost.trained_tokens > 0
    assert slow.metrics["kl_best"] < 0.1 * slow.metrics["kl_first"]
    assert slow.metrics["score.first.low"] > -SETTINGS.margin
    assert slow.cause.startswith(f"consolidation {result.plan.key}: {world.lesson()} of 'prompts' into 'lora'")
    lessons = loop.channels["prompts"].lessons(result.states["prompts"])  # type: ignore[attr-defined]
    assert [(lesson.id, lesson.live) for lesson in lessons] == [(world.lesson(), False)]  # retired, not deleted


def test_a_rollback_restores_the_same_logits(world: TwoTokenWorld, loop: Loop) -> None:
    before, old = loop.states, loop.store.head()
    kept = logits(loop, before)
    result = carried_out(loop, world)
    assert logits(loop, result.states) != kept
    assert loop.store.append_rollback(2, reason="no").states == old.states
    assert logits(loop, restored(loop)) == kept
    assert loop.store.verify() == []


def test_the_run_goes_on_with_it(world: TwoTokenWorld, loop: Loop) -> None:
    result = carried_out(loop, world)
    loop.states = dict(result.states)
    loop.run(5)
    assert loop.store.head().states["lora"] == loop.store.entries(action="consolidate")[0].after
    assert loop.store.verify() == []


def test_the_same_plan_on_the_same_states_gives_the_same(world: TwoTokenWorld, tmp_path: Path) -> None:
    heads = []
    for name in ("one", "two"):
        with world.run(tmp_path / name) as loop:
            carried_out(loop, world)
            heads.append(dict(loop.store.head().states))
    assert heads[0] == heads[1]


def test_by_the_sampled_tokens_where_that_is_all_the_policy_can_tell(tmp_path: Path) -> None:
    world = TwoTokenWorld(policy=SampledPolicy())
    settings = replace(SETTINGS, samples=8, patience=10, learning_rate=0.05)
    with world.run(tmp_path / "run") as loop:
        result = carried_out(loop, world, settings=settings)
        assert result.accepted, result.reason
        assert world.accuracy(loop, result.states) > 0.9


def test_the_reward_s_optimizer_is_where_it_was(world: TwoTokenWorld, loop: Loop) -> None:
    """Distillation has moments of its own, which no later step on rewards sees."""
    state = carried_out(loop, world).states["lora"]
    assert state.step == 1
    assert all(not bool(t.any()) for moments in state.moments.values() for t in moments)


# -------------------------------------------------------------------------------------------------- what is refused


def unchanged(loop: Loop, head: Any, kept: list[bytes], result: Consolidated) -> None:
    assert not result.accepted
    assert loop.store.head() == head
    assert logits(loop, restored(loop)) == kept
    assert loop.store.verify() == []
    assert loop.store.entries(action="consolidate") == []


@pytest.mark.parametrize("text", [FALSE_LESSON, IDLE_LESSON])
def test_a_lesson_that_does_not_help_is_refused_before_anything_is_trained(tmp_path: Path, text: str) -> None:
    world = TwoTokenWorld(told={"first": text})
    with world.run(tmp_path / "run", 1) as loop:
        head, kept = loop.store.head(), logits(loop, loop.states)
        result = carried_out(loop, world)
        unchanged(loop, head, kept, result)
        assert "not shown that the lesson raises the score" in result.reason
        assert result.distilled is None
        (entry,) = loop.store.entries(action="refuse")
        assert entry.cost.optimizer_steps == 0
        assert entry.cost.rollouts == result.cost.rollouts > 0
        assert entry.offered == ""
        assert entry.writes[0].lesson == world.lesson()


def test_a_lesson_whose_absorption_breaks_another_task_is_refused(tmp_path: Path) -> None:
    """Both tasks ask the same questions: what the weights say to one they say to the other."""
    world = TwoTokenWorld(apart=False)
    settings = replace(SETTINGS, anchors=0, margin=0.15)
    with world.run(tmp_path / "run", 1) as loop:
        head, kept = loop.store.head(), logits(loop, loop.states)
        result = carried_out(loop, world, settings=settings)
        unchanged(loop, head, kept, result)
        assert [(c.name, c.passed) for c in result.checks[2:]] == [("score", True), ("retention", False)]
        assert "retention of second" in result.reason
        (entry,) = loop.store.entries(action="refuse")
        assert entry.reason == result.reason
        assert entry.cost.optimizer_steps > 0
        refused = loop.channels["lora"].load(loop.store.get_blob(entry.offered))
        assert world.accuracy(loop, {**loop.states, "lora": refused}, "second") < 0.5  # it would have


def test_anchors_keep_the_weights_from_breaking_it_but_not_the_score(tmp_path: Path) -> None:
    world = TwoTokenWorld(apart=False)
    with world.run(tmp_path / "run") as loop:
        head, kept = loop.store.head(), logits(loop, loop.states)
        result = carried_out(loop, world)
        unchanged(loop, head, kept, result)
        assert result.checks[-1].name == "score"


def test_general_prompts_hold_the_weights(tmp_path: Path) -> None:
    """The world's general prompts fall on the same inputs as the task's, so where they hold, less is learned."""
    drifts = []
    for count in (0, 16):
        world = TwoTokenWorld()
        settings = replace(SETTINGS, general_anchors=count, rounds=10, samples=1)
        with world.run(tmp_path / str(count)) as loop:
            result = carried_out(loop, world, settings=settings)
            drifts.append(next(check for check in result.checks if check.name == "drift").numbers["base_live"])
            assert result.cost.rollouts <= result.plan.rollouts
    assert drifts[1] < 0.8 * drifts[0]


def test_a_drift_budget_that_is_too_small(world: TwoTokenWorld, loop: Loop) -> None:
    head, kept = loop.store.head(), logits(loop, loop.states)
    result = carried_out(loop, world, settings=replace(SETTINGS, drift=0.01))
    unchanged(loop, head, kept, result)
    assert "drift of general" in result.reason
    assert "> 0.01 nats a token" in result.reason


def test_nothing_is_tried_again_unchanged(world: TwoTokenWorld, loop: Loop) -> None:
    settings = replace(SETTINGS, drift=0.01)
    first = carried_out(loop, world, settings=settings)
    plan = planned(loop, world, settings=settings)
    assert plan.tried is not None
    assert plan.tried.reason == first.reason
    with pytest.raises(ConfigError, match=r"were refused after round 2: drift of general.*--again"):
        carried_out(loop, world, settings=settings)
    assert len(loop.store.entries(action="refuse")) == 1
    assert carried_out(loop, world, settings=settings, again=True).reason == first.reason
    # Which lessons are chosen automatically is no part of what is tried; another budget is.
    assert planned(loop, world, settings=replace(settings, min_age=9)).tried is not None
    assert carried_out(loop, world).accepted


def test_a_kl_that_never_falls_is_refused(world: TwoTokenWorld, loop: Loop) -> None:
    head, kept = loop.store.head(), logits(loop, loop.states)
    result = carried_out(loop, world, settings=replace(SETTINGS, learning_rate=1e-9, patience=2))
    unchanged(loop, head, kept, result)
    assert "KL to the teacher" in result.reason


def test_numbers_that_are_none_are_a_refusal(world: TwoTokenWorld, loop: Loop, monkeypatch: pytest.MonkeyPatch) -> None:
    head, kept = loop.store.head(), logits(loop, loop.states)

    def nan(*_: Any, **__: Any) -> Any:
        raise NumericsError("the loss is nan")

    monkeypatch.setattr(type(loop.policy), "exact_kl", nan)
    result = carried_out(loop, world)
    unchanged(loop, head, kept, result)
    assert result.reason == "NumericsError: the loss is nan"
    (entry,) = loop.store.entries(action="refuse")
    assert entry.reason == result.reason


def test_of_two_lessons_the_false_one_stays(tmp_path: Path) -> None:
    """They are told on two tasks; each is judged by itself."""
    world = TwoTokenWorld(told={"first": LESSON, "second": IDLE_LESSON})
    with world.run(tmp_path / "run", 1) as loop:
        both = [world.lesson("first"), world.lesson("second")]
        result = carried_out(loop, world, lessons=both)
        assert result.accepted, result.reason
        assert [lesson.id for lesson in result.lessons] == both[:1]
        assert [lesson.id for lesson, _ in result.dropped] == both[1:]
        told = {task: conditioning_of(loop.channels, restored(loop), task).system for task in ("first", "second")}
        assert told == {"first": None, "second": IDLE_LESSON}
        (entry,) = loop.store.entries(action="refuse")
        assert [w.lesson for w in entry.writes] == both[1:]
        assert loop.store.verify() == []


# ----------------------------------------------------------------------------------------------------- what is wrong


def test_no_slow_channel(tmp_path: Path) -> None:
    world = TwoTokenWorld(slow=None)
    with world.run(tmp_path / "run") as loop, pytest.raises(ConfigError, match=r"no slow channel.*channels\.lora"):
        planned(loop, world)


def test_a_policy_behind_an_endpoint(loop: Loop) -> None:
    loop.policy = ScriptedPolicy(lambda prompt, conditioning, seed: "f0 a0", name="far away")
    with pytest.raises(UnsupportedError, match="'far away' is behind an endpoint"):
        consolidation(loop)


def test_nothing_learned_yet(tmp_path: Path) -> None:
    world = TwoTokenWorld(told={})
    with world.run(tmp_path / "run") as loop:
        for asked in (None, ["nothing"]):
            with pytest.raises(ConfigError, match=r"nothing to consolidate|unknown lesson"):
                planned(loop, world, lessons=asked)


def test_names_that_are_none(world: TwoTokenWorld, loop: Loop) -> None:
    near = world.lesson()[:-1] + "?"
    with pytest.raises(ConfigError, match=f"did you mean '{world.lesson()}'"):
        planned(loop, world, lessons=[near])
    with pytest.raises(ConfigError, match="unknown channel 'promts'; did you mean 'prompts'"):
        planned(loop, world, channel="promts")
    with pytest.raises(ConfigError, match="channel 'lora' has no lessons"):
        planned(loop, world, channel="lora")


def test_a_lesson_that_is_not_live(tmp_path: Path) -> None:
    world = TwoTokenWorld()
    with world.run(tmp_path / "run") as loop:
        idle = carried_out(loop, world)
        assert idle.accepted
        loop.restore()
        with pytest.raises(ConfigError, match=r"no live lesson|nothing to consolidate"):
            planned(loop, world)


def test_a_plan_without_lessons_is_not_carried_out(world: TwoTokenWorld, loop: Loop) -> None:
    young = replace(SETTINGS, min_age=9)
    with pytest.raises(ConfigError, match=r"no lesson is to be moved .*too young: 2 of 9 rounds.*--lesson"):
        carried_out(loop, world, lessons=None, settings=young)
    assert consolidation(loop, young).by_itself(loop.states) is None
    # Once it is old enough the run moves it without being asked.
    result = consolidation(loop).by_itself(loop.states)
    assert result is not None
    assert result.accepted, result.reason
    assert consolidation(loop).by_itself(restored(loop)) is None


def test_states_that_changed_meanwhile(world: TwoTokenWorld, loop: Loop) -> None:
    plan = planned(loop, world)
    loop.store.append_rollback(0, reason="meanwhile")
    loop.run(3)
    first = consolidation(loop).carry_out(plan, loop.states)
    assert first.accepted  # nobody learned: the states are the same ones
    with pytest.raises(StoreError, match="have changed since"):
        consolidation(loop).carry_out(plan, loop.states)


def test_killed_in_the_middle_the_old_head_is_there(tmp_path: Path) -> None:
    world = TwoTokenWorld()
    with world.run(tmp_path / "step", 1) as loop:
        head, kept = loop.store.head(), logits(loop, loop.states)
    for place in PLACES[1:]:
        shutil.copytree(tmp_path / "step", tmp_path / place)
    program = Path(__file__).parent / "consolidation_kill.py"
    done = subprocess.run([sys.executable, program, tmp_path], capture_output=True, text=True, timeout=120)
    assert done.stdout.split() == [word for place in PLACES for word in (place, "9")], done.stderr
    for place in PLACES:
        with RunStore.open(tmp_path / place, write=True) as store:
            again = world.loop(store)
            assert store.head() == head
            assert logits(again, restored(again)) == kept
            assert store.verify() == []
            assert store.entries(action="consolidate") == store.entries(action="refuse") == []
            if place == "commit":
                assert carried_out(again, world).accepted


def test_the_world_is_as_it_says() -> None:
    """The fixture's own facts, by hand: e⁹ against e⁵ and four ones, times the answer's e⁵ against three."""
    world, policy = TwoTokenWorld(), TwoTokenPolicy()
    e = 2.718281828459045
    told = policy.accuracy(Conditioning(system=LESSON), world.tasks["first"])
    assert told == pytest.approx(e**9 / (e**9 + e**5 + 4) * e**5 / (e**5 + 3), rel=1e-5)
    bare = policy.accuracy(Conditioning(), world.tasks["second"])
    assert bare == pytest.approx(e**5 / (e**5 + 5) * e**5 / (e**5 + 3), rel=1e-5)
