"""What goes wrong inside a run: verifiers, channels and numbers that break. A text's or a channel's fault is recorded
and the run goes on; a broken contract stops it with a clear error, at the last committed round."""

from __future__ import annotations

import math
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from loop_world import World, has_begun, solver

from tiny_world import SAMPLING, make_channel, tiny_task
from twoclock.bench import Bench
from twoclock.errors import BudgetError, ConfigError, NumericsError, StoreError, UnsupportedError, VerifierError
from twoclock.models.remote import RemotePolicy
from twoclock.models.scripted import ScriptedPolicy
from twoclock.store import RunStore
from twoclock.types import Budget, Conditioning, Cost, Evidence, Proposal, Timescale

Scores = list[Any]


def coin() -> ScriptedPolicy:
    return solver(lambda c: 0.5)


def world(verifier: Callable[..., Any], *, timeout_s: float = 5.0, **more: Any) -> World:
    task = tiny_task(verifier=verifier, timeout_s=timeout_s)
    settings: dict[str, Any] = {"policy": coin(), "channels": {"null": {}}, "phases": (("largest", 4),), **more}
    return World(tasks={"largest": task}, **settings)


def score(text: str) -> float:
    return 1.0 if text == "7" else 0.0


# ------------------------------------------------------------------------------------------------------- verifiers


def test_a_verifier_that_raises_is_recorded_and_the_run_goes_on(tmp_path: Path) -> None:
    def verifier(completions: Sequence[str]) -> Scores:
        if "\x00" in completions:
            raise ZeroDivisionError("odd text")
        return [score(text) for text in completions]

    world(verifier).play(tmp_path / "run")
    with RunStore.open(tmp_path / "run") as store:
        rows = list(store.rollouts())
        failed = [r for r in rows if r.failure]
        assert store.head().round == 4
        assert 0 < len(failed) < len(rows)
        assert all(r.reward == 0.0 and "ZeroDivisionError: odd text" in (r.failure or "") for r in failed)
        assert all(r.reward == 1.0 for r in rows if not r.failure)
        assert sum(r.metrics["failed_grades"] for r in store.rounds()) == len(failed)
        assert store.verify() == []


@pytest.mark.parametrize("value", [math.nan, math.inf, None])
def test_scores_that_are_none_are_recorded_and_the_run_goes_on(value: Any, tmp_path: Path) -> None:
    def verifier(completions: Sequence[str]) -> Scores:
        return [1.0 if text == "7" else value for text in completions]

    world(verifier).play(tmp_path / "run")
    with RunStore.open(tmp_path / "run") as store:
        failed = [r for r in store.rollouts() if r.failure]
        assert failed
        assert all(r.reward == 0.0 and f"verifier returned {value}" == r.failure for r in failed)
        assert store.head().round == 4


def test_a_verifier_that_hangs_on_a_text_is_recorded_and_the_run_goes_on(tmp_path: Path) -> None:
    seen: list[str] = []

    def verifier(completions: Sequence[str]) -> Scores:
        seen.extend(completions)
        if "hang" in completions:
            time.sleep(1.0)
        return [score(text) for text in completions]

    def script(prompt: str, conditioning: Conditioning, seed: int) -> str:
        return "hang" if seed % 19 == 0 else "7"

    policy = ScriptedPolicy(script)
    world(verifier, timeout_s=0.1, policy=policy).play(tmp_path / "run")
    with RunStore.open(tmp_path / "run") as store:
        failed = [r for r in store.rollouts() if r.failure]
        assert failed
        assert {(r.text, r.reward, r.failure) for r in failed} == {
            ("hang", 0.0, "verifier gave no answer within 0.1 s")
        }
        assert store.head().round == 4


BROKEN: dict[str, tuple[Callable[[Sequence[str]], Any], str]] = {
    "too few": (lambda texts: [1.0] * (len(texts) - 1), "returned 15 scores for 16 completions"),
    "no list": (lambda texts: 1.0, "expected a list with one score a completion"),
    "no number": (lambda texts: ["good"] * len(texts), "'good' of type str"),
    "out of range": (lambda texts: [7.0] * len(texts), "scores lie between 0 and 1"),
}


@pytest.mark.parametrize("fault", BROKEN)
def test_a_broken_contract_stops_the_run_and_loses_nothing(fault: str, tmp_path: Path) -> None:
    """The verifier keeps its contract until round 3, breaks it there, and is mended afterwards."""
    broken, message = BROKEN[fault]

    class Watch:
        round = 0

        def step(self, round: int, step: str) -> None:
            self.round = round

        def committed(self, *_: Any) -> None:
            return None

    watch = Watch()
    mended = False

    def verifier(completions: Sequence[str]) -> Any:
        good = mended or watch.round < 3
        return [score(text) for text in completions] if good else broken(completions)

    path = tmp_path / "run"
    with pytest.raises(VerifierError, match=message):
        world(verifier).play(path, watch)
    with RunStore.open(path) as store:
        assert (store.head().round, store.head().next_round) == (2, 3)
        assert store.verify() == []
    mended = True
    world(verifier).play(path)
    world(lambda completions: [score(text) for text in completions]).play(tmp_path / "whole")
    with RunStore.open(path) as store, RunStore.open(tmp_path / "whole") as whole:
        assert store.digest() == whole.digest()


def test_a_verifier_that_always_hangs_stops_the_run(tmp_path: Path) -> None:
    def verifier(completions: Sequence[str]) -> Scores:
        time.sleep(2.0)
        return [0.0] * len(completions)

    with pytest.raises(VerifierError, match=r"no answer within 0\.05 s, 3 times in a row"):
        world(verifier, timeout_s=0.05).play(tmp_path / "run")
    with RunStore.open(tmp_path / "run") as store:
        assert not has_begun(store)
    world(lambda completions: [1.0] * len(completions)).play(tmp_path / "run")  # the folder is not spoilt


# -------------------------------------------------------------------------------------------------------- channels


class Faulty:
    """A fast channel of somebody else's, whose proposals go wrong as ``fault`` says."""

    name = "faulty"
    timescale = Timescale.FAST

    def __init__(self, fault: Callable[[Any], Proposal[int] | None]) -> None:
        self.fault = fault

    def init(self, card: Any, seed: int) -> int:
        return 0

    def condition(self, state: int, task: str) -> Conditioning:
        return Conditioning(system=f"version {state}") if state else Conditioning()

    def dump(self, state: int) -> bytes:
        return str(state).encode()

    def load(self, blob: bytes) -> int:
        return int(blob)

    def propose(self, bench: Any, state: int, evidence: Evidence, budget: Budget, seed: int) -> Any:
        own = self.fault(bench)
        return own or Proposal(channel=self.name, state=state + 1, cause="a step", cost=Cost())


def overspend(bench: Any) -> None:
    items = bench.items("train", 10, 1)
    bench.roll_out(items, [Conditioning()], 3, 1)
    bench.roll_out(items, [Conditioning()], 3, 2)


def blow_up(bench: Any) -> None:
    raise NumericsError("the loss is nan")


@pytest.mark.parametrize(
    ("fault", "reason", "spent"),
    [
        (overspend, "BudgetError: 30 rollouts were asked for and 10 are left of 40", 30),
        (blow_up, "NumericsError: the loss is nan", 0),
    ],
)
def test_a_channel_that_is_refused_has_declined(fault: Any, reason: str, spent: int, tmp_path: Path) -> None:
    made = {"faulty": Faulty(fault)}
    world(score_all, made=made, allocator="fixed", options={"fast_rollouts": 40}).play(tmp_path / "run")
    with RunStore.open(tmp_path / "run") as store:
        entries = store.entries(channel="faulty", action="decline")
        assert [(e.reason, e.cost.rollouts) for e in entries] == [(reason, spent)] * 4
        assert store.verify() == []


def test_a_proposal_whose_numbers_are_none_is_rejected_and_kept(tmp_path: Path) -> None:
    bad = Proposal(channel="faulty", state=9, cause="x", cost=Cost(), metrics={"loss": math.nan, "fine": 2.0})
    world(score_all, made={"faulty": Faulty(lambda bench: bad)}, allocator="fixed", options={}).play(tmp_path / "run")
    with RunStore.open(tmp_path / "run") as store:
        entries = store.entries(channel="faulty", action="reject")
        assert len(entries) == 4
        assert {e.reason for e in entries} == {"not finite: loss = nan"}
        assert {tuple(e.metrics.items()) for e in entries} == {(("fine", 2.0),)}
        assert store.get_blob(entries[0].offered) == b"9", "what was rejected can be looked at"


def test_what_a_channel_says_of_its_cost_does_not_count(tmp_path: Path) -> None:
    """The bench counts: a channel cannot claim to have been cheap."""

    def lying(bench: Any) -> Proposal[int]:
        bench.roll_out(bench.items("train", 5, 1), [Conditioning()], 2, 1)
        return Proposal(channel="faulty", state=1, cause="x", cost=Cost(rollouts=-100, reflector_calls=3))

    made = {"faulty": Faulty(lying)}
    world(score_all, made=made, allocator="fixed", options={}, phases=(("largest", 1),)).play(tmp_path / "run")
    with RunStore.open(tmp_path / "run") as store:
        (entry,) = store.entries(channel="faulty", round=1)
        assert (entry.cost.rollouts, entry.cost.reflector_calls) == (10, 3)


def score_all(completions: Sequence[str]) -> Scores:
    return [score(text) for text in completions]


def test_a_trial_judges_the_prompt_that_would_be_deployed(tmp_path: Path) -> None:
    """Two channels that both show exemplars: a candidate stands where it will stand, not behind the others."""

    class Shows(Faulty):
        def __init__(self, name: str) -> None:
            super().__init__(lambda bench: None)
            self.name = name

        def condition(self, state: int, task: str) -> Conditioning:
            return Conditioning(exemplars=((f"{self.name} {state}?", "7"),))

        def propose(self, bench: Any, state: int, evidence: Evidence, budget: Budget, seed: int) -> Any:
            bench.roll_out(bench.items("train", 1, seed), [self.condition(state, "largest")], 1, seed)
            return super().propose(bench, state, evidence, budget, seed)

    policy = coin()
    made = {name: Shows(name) for name in ("a", "z")}
    one = world(score_all, made=made, policy=policy, allocator="fixed", options={}, phases=(("largest", 2),))
    one.play(tmp_path / "run")
    shown = {tuple(q.split()[0] for q, _ in c.exemplars) for _, c, _ in policy.asked}
    assert shown <= {(), ("a", "z"), ("a",), ("z",)}
    assert ("a", "z") in shown


def test_a_bench_refuses_what_it_must(tmp_path: Path) -> None:
    policy, task = coin(), tiny_task()
    bench = Bench(policy, task, others=Conditioning(), sampling=SAMPLING, budget=Budget(tokens=400))
    with pytest.raises(ConfigError, match="held-out split is only measured on"):
        bench.items("heldout", 3, 1)
    item = task.split("train")[0]
    with pytest.raises(ValueError, match="stands twice"):
        bench.roll_out([item, item], [Conditioning()], 1, 1)
    many = bench.items("train", 20, 1)
    with pytest.raises(BudgetError, match=r"up to \d+ tokens were asked for and 400 are left of 400"):
        bench.roll_out(many, [Conditioning()], 1, 1)
    assert policy.calls == 0
    bench.roll_out(many[:4], [Conditioning()], 1, 1)
    assert 0 < bench.spent.tokens <= 400
    with pytest.raises(UnsupportedError, match="behind an endpoint"):
        bench.trainable()
    taken = Bench(policy, task, others=Conditioning(system="others"), sampling=SAMPLING)
    with pytest.raises(ValueError, match="both set the conditioning's 'system'"):
        taken.roll_out(many[:1], [Conditioning(system="mine")], 1, 1)


# ------------------------------------------------------------------------------------------------- policies and locks


def test_a_slow_channel_is_refused_on_a_remote_policy(tmp_path: Path) -> None:
    with (
        RemotePolicy("http://127.0.0.1:9/v1", "m") as remote,
        RunStore.create(tmp_path / "run", config={}) as store,
        pytest.raises(UnsupportedError, match=r"slow channel 'lora' trains weights.*local model"),
    ):
        World(policy=remote).loop(store)


def test_a_policy_that_fails_every_request_is_recorded(tmp_path: Path) -> None:
    def script(prompt: str, conditioning: Conditioning, seed: int) -> str:
        raise RuntimeError("the model is gone")

    world(score_all, policy=ScriptedPolicy(script), phases=(("largest", 1),)).play(tmp_path / "run")
    with RunStore.open(tmp_path / "run") as store:
        rows = list(store.rollouts())
        assert all(r.reward == 0.0 and "the model is gone" in (r.failure or "") for r in rows)
        assert store.rounds()[0].metrics["failed_grades"] == len(rows)


def test_a_second_process_is_refused_while_the_first_is_at_work(tmp_path: Path) -> None:
    path = tmp_path / "run"
    code = (
        f"from pathlib import Path; from twoclock.store import RunStore; RunStore.open(Path({str(path)!r}), write=True)"
    )

    class Second:
        found = ""

        def step(self, round: int, step: str) -> None:
            if (round, step) == (2, "propose"):
                done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
                self.found = done.stderr

        def committed(self, *_: Any) -> None:
            return None

    second = Second()
    world(score_all).play(path, second)
    assert "RunLockedError: process" in second.found
    assert "is at work on the run" in second.found
    with RunStore.open(path, write=True) as store:
        assert (store.head().round, store.verify()) == (4, [])


def test_states_of_another_make_are_refused_and_nothing_is_lost(tmp_path: Path) -> None:
    """A run taken up with a channel that cannot read its state: an error that names the channel, the run intact."""
    world(score_all, channels={"prompts": {}}).play(tmp_path / "run", until=1)

    class Foreign(type(make_channel("prompts"))):  # type: ignore[misc]
        def load(self, blob: bytes) -> Any:
            return super().load(b"\xff" + blob)

    swapped = replace(world(score_all, channels={}), made={"prompts": Foreign()})
    with pytest.raises(StoreError, match="prompts"):
        swapped.play(tmp_path / "run")
    with RunStore.open(tmp_path / "run") as store:
        assert (store.head().round, store.verify()) == (1, [])
