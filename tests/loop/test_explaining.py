"""What a run's ledger says of its lessons: evidence, decisions in order, the standing one, what would change it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from loop_world import World, solver
from teaching import CHANCES, Teacher

from tiny_world import make_channel
from twoclock.allocate import GateConfig
from twoclock.consolidation import ConsolidationSettings, lesson_evidence
from twoclock.errors import ConfigError, StoreError
from twoclock.explain import Explanation, Settings, explain, explain_all
from twoclock.gathering import RolloutSettings
from twoclock.store import RunStore
from twoclock.watching import WatchSettings

BOTH = RolloutSettings(items=8, per_item=8, prompts_per_item=2)


def play(path: Path, moves: Mapping[int, str], rounds: int, *, until: int | None = None, **more: Any) -> Any:
    settings: dict[str, Any] = {
        "policy": solver(lambda c: CHANCES[c.system]),
        "channels": {},
        "made": {"teacher": Teacher(moves)},
        "allocator": "fixed",
        "options": {},
        "rollouts": BOTH,
        "phases": (("largest", rounds),),
    }
    return World(**{**settings, **more}).play(path, until=until)


def asked(path: Path, lesson: str, channel: Any = None, **settings: Any) -> Explanation:
    with RunStore.open(path) as store:
        rules = Settings(**{"rollouts": BOTH, **settings})
        return explain(store, {"teacher": channel or Teacher()}, lesson, settings=rules)


def told(one: Explanation) -> list[tuple[int, str]]:
    return [(event.round, event.what) for event in one.events]


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("watched") / "run"
    play(path, {3: "good", 8: "poison"}, 14, watch=WatchSettings(fast=True))
    return path


# ---------------------------------------------------------------------------------------------------------- decisions


def test_a_poisoned_lesson_is_told_from_its_write_to_its_end(watched: Path) -> None:
    one = asked(watched, "poison", watch=WatchSettings(fast=True))
    with RunStore.open(watched) as store:
        back = store.entries(action="rollback")[0]
    assert told(one) == [(8, "deployed"), (8, "watched"), (back.round, "taken back")]
    assert one.standing.kind == "taken back"
    assert back.reason in one.standing.sentence
    assert one.events[-1].seq == back.seq
    assert one.events[-1].numbers["watch_mean"] == back.metrics["watch_mean"] < -0.4
    assert not one.lesson.live
    assert one.origin is not None
    assert (one.origin.round, one.origin.cause) == (8, "each round; it is time")
    assert one.count.record.contradicted > one.count.record.helped
    assert one.effect is not None
    assert one.effect.high < 0


def test_what_it_replaced_comes_back_and_stays(watched: Path) -> None:
    one = asked(watched, "good", watch=WatchSettings(fast=True))
    whats = [what for _, what in told(one)]
    assert whats == ["deployed", "watched", "proven", "replaced", "came back"]
    assert "poison stands in its place" in one.events[3].reason
    assert one.lesson.live
    assert one.standing.kind == "fast"
    assert one.effect is not None
    assert one.effect.low > 0
    assert one.count.against["going without it"] == one.count.record.outcomes.groups
    assert any("slow channel" in change for change in one.standing.changes)


def test_a_watch_under_way_says_how_far_it_is(tmp_path: Path) -> None:
    play(tmp_path / "run", {3: "idle"}, 6, watch=WatchSettings(fast=True))
    one = asked(tmp_path / "run", "idle", watch=WatchSettings(fast=True))
    assert told(one) == [(3, "deployed"), (3, "watched")]
    (change,) = [c for c in one.standing.changes if c.startswith("watched since round 3")]
    with RunStore.open(tmp_path / "run") as store:
        count = store.rounds()[-1].metrics["watch:teacher:largest:count"]
    assert f"{count:.0f} comparisons" in change
    assert "taken back when the upper end is below 0" in change
    assert one.standing.kind == "unproven"
    assert "it looks harmful, and too few groups say so" in one.standing.sentence  # chance: it does nothing
    assert any("would be proof of harm" in change for change in one.standing.changes)


def test_a_lost_trial_is_told_by_its_numbers(tmp_path: Path) -> None:
    gates = GateConfig(fast="paired", trial_items=24)
    play(tmp_path / "run", {2: "good", 5: "poison", 6: "poison"}, 7, gates=gates)
    poison, good = asked(tmp_path / "run", "poison"), asked(tmp_path / "run", "good")
    assert told(poison) == [(5, "refused"), (6, "refused")]
    assert poison.standing.kind == "refused"
    assert poison.events[0].numbers["trial_gain"] < 0
    assert poison.events[1].numbers["refused_in"] == 5
    assert any("not tried again" in change for change in poison.standing.changes)
    assert told(good) == [(2, "deployed"), (5, "challenged"), (6, "challenged")]
    assert "poison was to take its place: trial on 24 fresh items" in good.events[1].reason


def test_a_won_trial_speaks_for_a_lesson_that_nothing_compares(tmp_path: Path) -> None:
    alone = RolloutSettings(items=4, per_item=4)
    play(tmp_path / "run", {2: "good"}, 4, gates=GateConfig(trial_items=32), rollouts=alone)
    one = asked(tmp_path / "run", "good", rollouts=alone)
    assert one.standing.kind == "fast"
    assert "it won its trial in round 2 (trial on 32 fresh items" in one.standing.sentence


def test_where_the_ledger_cannot_tell_it_names_the_settings(tmp_path: Path) -> None:
    alone = RolloutSettings(items=4, per_item=4)
    play(tmp_path / "run", {1: "good"}, 4, rollouts=alone)
    one = asked(tmp_path / "run", "good", rollouts=alone)
    assert (one.standing.kind, one.effect, one.lasts, one.generality) == ("unproven", None, None, None)
    assert "it was in 12 groups, and none of them has rollouts without it" in one.standing.sentence
    changes = "\n".join(one.standing.changes)
    assert "[rollouts] prompts_per_item is 1: with 2 or more" in changes
    assert "[watch] fast is false: with true" in changes


def test_a_rollback_by_hand_is_one(tmp_path: Path) -> None:
    play(tmp_path / "run", {1: "good", 3: "idle"}, 4)
    with RunStore.open(tmp_path / "run", write=True) as store:
        store.append_rollback(2, reason="I liked it better")
    idle, good = asked(tmp_path / "run", "idle"), asked(tmp_path / "run", "good")
    assert told(idle) == [(3, "deployed"), (4, "rolled back")]
    assert idle.standing.sentence == "rolled back by hand in round 4: I liked it better"
    assert told(good)[-2:] == [(3, "replaced"), (4, "came back")]
    assert good.lesson.live


def test_a_rollback_by_hand_ends_the_watch_too(tmp_path: Path) -> None:
    watch = WatchSettings(fast=True)
    play(tmp_path / "run", {3: "idle"}, 7, watch=watch, until=4)
    with RunStore.open(tmp_path / "run", write=True) as store:
        store.append_rollback(2, reason="no")
    one = asked(tmp_path / "run", "idle", watch=watch)  # before any round says that the watch is over
    assert told(one) == [(3, "deployed"), (3, "watched"), (4, "rolled back"), (4, "unwatched")]
    play(tmp_path / "run", {3: "idle"}, 7, watch=watch)
    one = asked(tmp_path / "run", "idle", watch=watch)
    assert told(one) == [(3, "deployed"), (3, "watched"), (4, "rolled back"), (5, "unwatched")]
    assert one.standing.kind == "rolled back"


def test_harm_that_nobody_watches_is_said(tmp_path: Path) -> None:
    play(tmp_path / "run", {1: "poison"}, 6)
    one = asked(tmp_path / "run", "poison")
    assert one.standing.kind == "harmful"
    assert any("[watch] fast is false" in change for change in one.standing.changes)


# ------------------------------------------------------------------------------------- as consolidation would decide


def candidates(path: Path, **settings: Any) -> Explanation:
    rules = ConsolidationSettings(**settings)
    with RunStore.open(path) as store:
        entries = store.entries
        patched: Any = lambda **asked: [replace(e, timescale="slow") if e.round == 0 else e for e in entries(**asked)]  # noqa: E731
        store.entries = patched  # type: ignore[method-assign]
        return explain(store, {"teacher": Teacher()}, "good", settings=Settings(consolidation=rules, rollouts=BOTH))


def test_the_rule_of_consolidation_is_quoted_and_forecast(tmp_path: Path) -> None:
    play(tmp_path / "run", {1: "good"}, 4)
    young = candidates(tmp_path / "run", min_age=6, lasting=0.2, horizon=1)
    assert young.standing.kind == "fast"
    assert "too young: 3 of 6 rounds; 3 more rounds like those measured would make it a candidate" in str(
        young.standing.changes
    )
    ripe = candidates(tmp_path / "run", min_age=2, lasting=0.2, horizon=1)
    assert ripe.standing.kind == "candidate"
    assert ripe.standing.sentence.startswith("candidate for the weights: +0.")
    assert any("would hold it back" in change for change in ripe.standing.changes)


def test_evidence_of_a_prompt_is_what_consolidation_goes_by(watched: Path) -> None:
    channel = Teacher()
    with RunStore.open(watched) as store:
        state = channel.load(store.get_blob(store.head().states["teacher"]))
        theirs = lesson_evidence(store, "teacher", channel, state, channel.lessons(state), ["largest"])["good"]
        ours = explain(store, {"teacher": channel}, "good")
    assert ours.own.steps == theirs.record.steps
    assert ours.own.items == theirs.record.items
    assert (ours.own.helped, ours.own.contradicted) == (theirs.record.helped, theirs.record.contradicted)


def test_evidence_of_memory_is_what_consolidation_goes_by(tmp_path: Path) -> None:
    play(
        tmp_path / "run", {}, 6, made={}, channels={"cases": {"k": 2, "max_entries": 6}},
        policy=solver(lambda c: 0.9 if c.recalled else 0.3),
    )  # fmt: skip
    channel: Any = make_channel("cases", k=2, max_entries=6)
    with RunStore.open(tmp_path / "run") as store:
        state = channel.load(store.get_blob(store.head().states["cases"]))
        theirs = lesson_evidence(store, "cases", channel, state, channel.lessons(state), ["largest"])
        found = explain_all(store, {"cases": channel}, settings=Settings(rollouts=BOTH))
        writes = [write for entry in store.entries() for write in entry.writes]
    written = {write.lesson for write in writes if write.kind != "retire"}
    gone = {w.lesson: w.text for w in writes if w.kind == "retire" and w.lesson in written - theirs.keys()}
    ours = {one.lesson.id: one for one in found.lessons}
    assert ours.keys() == written  # what came and went in one round was never a lesson
    assert theirs
    assert gone
    for key, evidence in theirs.items():
        assert ours[key].own.steps == evidence.record.steps
        assert ours[key].lesson.live
    assert any(one.own.steps for one in ours.values())
    for key, reason in gone.items():
        assert ours[key].standing.kind == "retired"
        assert reason in ours[key].standing.sentence
        assert [what for _, what in told(ours[key])][-2:] == ["written", "retired"]
    origins = [one.origin for one in ours.values() if one.lesson.live]
    assert all(origin is not None and origin.rollouts[0].startswith("round ") for origin in origins)
    alone = [one for one in ours.values() if one.count.alone.steps]
    assert alone
    assert all(one.count.tokens is not None for one in alone)


# ------------------------------------------------------------------------------------------------------ what is asked


def test_names_are_found_by_their_beginning_their_channel_and_their_entry(watched: Path) -> None:
    with RunStore.open(watched) as store:
        found = explain_all(store, {"teacher": Teacher()})
        seq = next(e.seq for e in store.entries() if e.writes)
    assert [one.lesson.id for one in found.lessons] == ["good", "poison"]
    for name in ("good", "go", "teacher/g", f"#{seq}"):
        assert found.find(name).lesson.id == "good"
    for name, message in (
        ("goof", "unknown lesson 'goof'; did you mean 'good'"),
        ("", "2 lessons begin with ''|unknown lesson ''"),
        ("other/good", "unknown lesson"),
        ("#1", "no ledger entry #1"),
        ("#x", "no ledger entry #x"),
    ):
        with pytest.raises(ConfigError, match=message):
            found.find(name)


def test_an_ambiguous_beginning_names_what_it_could_be(tmp_path: Path) -> None:
    play(
        tmp_path / "run", {1: "good"}, 2, policy=solver(lambda c: 0.5), made={"teacher": Teacher({1: "good", 2: "go"})}
    )
    with RunStore.open(tmp_path / "run") as store:
        found = explain_all(store, {"teacher": Teacher()})
    assert found.find("go").lesson.id == "go"  # a whole id is what it says
    with pytest.raises(ConfigError, match="2 lessons begin with 'g': teacher/"):
        found.find("g")


def test_a_run_that_has_only_begun_has_nothing_to_explain(tmp_path: Path) -> None:
    play(tmp_path / "run", {1: "good"}, 3, until=0)
    with RunStore.open(tmp_path / "run") as store:
        found = explain_all(store, {"teacher": Teacher()})
    assert (found.lessons, found.problem, found.round) == ((), "", 0)
    with RunStore.create(tmp_path / "never", config={}) as store, pytest.raises(StoreError, match="interrupted before"):
        explain_all(store, {"teacher": Teacher()})


def test_a_run_whose_channels_teach_nothing_says_so(tmp_path: Path) -> None:
    play(tmp_path / "run", {}, 2, made={}, channels={"null": {}})
    with RunStore.open(tmp_path / "run") as store:
        found = explain_all(store, {"null": make_channel("null")})
    assert "has lessons; its channels: null" in found.problem
    with pytest.raises(ConfigError, match="has lessons; its channels: null"):
        found.find("good")


def test_a_state_that_was_thinned_leaves_the_ledger_s_words(watched: Path, tmp_path: Path) -> None:
    class Forgetful(Teacher):
        def load(self, blob: bytes) -> Any:
            state = super().load(blob)
            if state[0] == "poison":
                raise StoreError("thinned")
            return state

    one = asked(watched, "poison", Forgetful())
    assert (one.lesson.text, one.lesson.live) == ("poison", False)
    assert (8, "written") in told(one)


def test_an_explanation_is_plain_json(watched: Path) -> None:
    with RunStore.open(watched) as store:
        found = explain_all(store, {"teacher": Teacher()}).as_dict()
    again = json.loads(json.dumps(found, allow_nan=False))
    assert again == found
    good = again["lessons"][0]
    assert (good["lesson"], good["live"], good["compared_with"]) == ("good", True, "going without it")
    assert good["groups"] == sum(part["groups"] for part in good["rounds"]) == sum(p["groups"] for p in good["phases"])


def test_reading_changes_nothing(watched: Path) -> None:
    with RunStore.open(watched) as store:
        before = store.digest()
        explain_all(store, {"teacher": Teacher()})
        assert store.digest() == before
        assert store.verify() == []


def test_what_was_consolidated_is_in_the_weights_until_they_are_rolled_back(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    from two_token_world import SETTINGS, TwoTokenWorld, consolidation
    from twoclock.consolidation import plan_consolidation

    world = TwoTokenWorld()
    with world.run(tmp_path / "run", 2) as loop:

        def why() -> Explanation:
            return explain(loop.store, loop.channels, world.lesson(), settings=Settings(consolidation=SETTINGS))

        before = why()
        assert told(before) == [(0, "begun with")]
        assert before.count.alone.outcomes.groups == 16
        assert before.count.tokens == 3.0  # the words of "Use format 3."
        plan = plan_consolidation(
            loop.store, loop.stream, loop.channels, loop.states, SETTINGS, seed=loop.seed, lessons=[world.lesson()]
        )
        assert consolidation(loop, SETTINGS).carry_out(plan, loop.states).accepted
        after = why()
        assert told(after) == [(0, "begun with"), (2, "consolidated")]
        assert after.standing.kind == "weights"
        assert after.standing.sentence.startswith("in the weights of 'lora' since round 2: first: ")
        assert not after.lesson.live
        loop.store.append_rollback(2, channels=["lora"], reason="no")
        gone = why()
        assert gone.standing.kind == "retired"
        assert "which are no longer live" in gone.standing.sentence
        loop.store.append_rollback(2, channels=["prompts"], reason="no")
        back = why()
        assert (back.lesson.live, told(back)[-1]) == (True, (2, "came back"))


def test_a_consolidation_that_was_refused_is_one_of_the_decisions(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    from two_token_world import FALSE_LESSON, SETTINGS, TwoTokenWorld, consolidation
    from twoclock.consolidation import plan_consolidation

    world = TwoTokenWorld(told={"first": FALSE_LESSON})
    with world.run(tmp_path / "run", 2) as loop:
        plan = plan_consolidation(
            loop.store, loop.stream, loop.channels, loop.states, SETTINGS, seed=loop.seed, lessons=[world.lesson()]
        )
        assert not consolidation(loop, SETTINGS).carry_out(plan, loop.states).accepted
        one = explain(loop.store, loop.channels, world.lesson(), settings=Settings(consolidation=SETTINGS))
        assert told(one) == [(0, "begun with"), (2, "not consolidated")]
        assert "not shown that the lesson raises the score" in one.events[-1].reason
        assert one.lesson.live
        loop.run(4)  # lessons are still told, and told once, as the run goes on
        assert len(explain_all(loop.store, loop.channels).lessons) == 1
