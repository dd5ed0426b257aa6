"""The reflective proposer: GEPA's own machinery, guarded, and no single failure ends a search."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import pytest
from instructed import GOOD, SHARED, TASK, helped
from prompts_bench import FakeBench, FakeTask, evidence_of

from twoclock.errors import MissingExtraError
from twoclock.fast.prompts import Candidate, Pool, PromptsChannel, PromptsConfig, PromptsState
from twoclock.types import Budget, Declined, Proposal

pytest.importorskip("gepa")


def search(
    reflector: Callable[[str], Any], state: PromptsState | None = None, **config: Any
) -> tuple[Proposal[PromptsState] | Declined, FakeBench, PromptsChannel]:
    channel = PromptsChannel(PromptsConfig(proposers=("reflective",), **config), reflector)
    bench = FakeBench(helped, task=SHARED)
    evidence = evidence_of(bench)
    return channel.propose(bench, state or PromptsState(), evidence, Budget(rollouts=100), 1), bench, channel


def test_a_good_reflection_is_deployed_and_the_reflector_sees_failures_with_feedback() -> None:
    prompts = []

    def reflector(prompt: str) -> str:
        prompts.append(prompt)
        return f"Here is the new instruction:\n```\n{GOOD}\n```"

    offer, _, channel = search(reflector)
    assert isinstance(offer, Proposal)
    assert channel.condition(offer.state, TASK).system == GOOD
    assert offer.state.pool(TASK).deployed_candidate.origin == "reflective"
    assert offer.cost.reflector_calls == 2
    assert "I think it is seven." in prompts[0]
    assert "expected " in prompts[0]
    assert "last digit of" in prompts[0]


def test_a_child_keeps_the_exemplars_of_its_parent() -> None:
    turns = (("last digit of 15?", "5"), ("last digit of 27?", "7"))
    parent = Candidate(exemplars=turns, origin="exemplars")
    state = PromptsState().with_pool(TASK, Pool(candidates=(parent, Candidate()), deployed=parent.id))
    offer, bench, _ = search(lambda prompt: f"```\n{GOOD}\n```", state)
    tried = {(c.system, c.exemplars) for call in bench.calls for c in call[1]}
    assert (GOOD, turns) in tried
    assert (GOOD, ()) in tried  # the second call's parent is the empty prompt
    assert isinstance(offer, Proposal)


def boom(prompt: str) -> str:
    raise TimeoutError("no answer in 30 s")


def copied(prompt: str) -> str:
    item = SHARED.split("train")[0]
    return f"```\nRemember this: {item.prompt} {item.reference}\n```"


@pytest.mark.parametrize(
    ("reflector", "reason"),
    [
        (boom, "raised TimeoutError: no answer in 30 s"),
        (lambda prompt: "", "the reply is empty"),
        (lambda prompt: "```\n\n```", "the instruction is empty"),
        (lambda prompt: None, "returned NoneType; expected str"),
        (lambda prompt: "```\nReply with the digi", "not closed"),
        (lambda prompt: "<think>hm, perhaps", "inside its thinking"),
        (lambda prompt: "```\n" + "very long " * 900 + "\n```", "characters, 6000 are allowed"),
        (lambda prompt: "```\n[1, 2, 3]\n```", "no word in it"),
    ],
)
def test_a_bad_reply_is_a_reason_and_costs_no_rollout(reflector: Callable[[str], Any], reason: str) -> None:
    offer, bench, _ = search(reflector)
    assert isinstance(offer, Declined)
    assert reason in offer.reason
    assert offer.cost.reflector_calls == 2
    assert bench.spent.rollouts == 0


def test_copies_are_refused() -> None:
    big = FakeTask(train=20)  # all of it is drawn, so the copied item is among those that are known
    channel = PromptsChannel(
        PromptsConfig(proposers=("reflective",)), lambda p: f"```\n{big.split('train')[0].prompt}\n```"
    )
    bench = FakeBench(helped, task=big)
    offer = channel.propose(bench, PromptsState(), evidence_of(bench), Budget(rollouts=100), 1)
    assert isinstance(offer, Declined)
    assert "copies an item" in offer.reason


def test_a_failing_reflector_does_not_stop_the_exemplars() -> None:
    channel = PromptsChannel(PromptsConfig(proposers=("exemplars", "reflective")), boom)
    bench = FakeBench(lambda i, c, s: str(i.reference) if c.exemplars else "?", task=SHARED)
    offer = channel.propose(bench, PromptsState(), evidence_of(bench), Budget(rollouts=100), 1)
    assert isinstance(offer, Proposal)
    assert channel.condition(offer.state, TASK).exemplars
    assert "raised TimeoutError" in offer.cause
    assert offer.metrics["reflections_refused"] == 2


def test_what_is_known_or_was_dropped_is_not_tried_again() -> None:
    state = PromptsState().with_pool(TASK, Pool(losers=((Candidate(system=GOOD).id, "base"),)))
    offer, bench, _ = search(lambda prompt: f"```\n{GOOD}\n```", state)
    assert isinstance(offer, Declined)
    assert "known already" in offer.reason
    assert bench.spent.rollouts == 0
    deployed = Candidate(system=GOOD, origin="reflective")
    state = PromptsState().with_pool(TASK, Pool(candidates=(deployed, Candidate()), deployed=deployed.id))
    _, bench, _ = search(lambda prompt: f"```\n{GOOD}\n```", state)
    assert {c.system for call in bench.calls for c in call[1]} == {GOOD, None}


def test_closed_thinking_before_the_block_is_dropped() -> None:
    offer, _, channel = search(lambda prompt: f"<think>maybe ```this```</think>```\n{GOOD}\n```")
    assert isinstance(offer, Proposal)
    assert channel.condition(offer.state, TASK).system == GOOD


def test_an_interrupt_is_not_swallowed() -> None:
    def stop(prompt: str) -> str:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        search(stop)


def test_without_the_package_the_message_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gepa.strategies.instruction_proposal", None)
    with pytest.raises(MissingExtraError, match=r"twoclock\[gepa\]"):
        PromptsChannel(PromptsConfig(proposers=("reflective",)), lambda prompt: "")
