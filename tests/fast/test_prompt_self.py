"""The policy's own reflection: what a small model writes that is no prompt is refused, and what it costs is counted."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from instructed import GOOD, SHARED, TASK, helped
from prompts_bench import FakeBench, evidence_of

from twoclock.bench import Bench
from twoclock.fast.prompts import Candidate, Pool, PromptsChannel, PromptsConfig, PromptsState
from twoclock.fast.prompts.state import EMPTY
from twoclock.models.scripted import ScriptedPolicy
from twoclock.types import Budget, Conditioning, Declined, Proposal, Sampling

pytest.importorskip("gepa")


def search(
    writes: Callable[[str], str],
    *,
    state: PromptsState | None = None,
    rollouts: int | None = None,
    context: int = 4096,
    **config: object,
) -> tuple[Proposal[PromptsState] | Declined, FakeBench]:
    policy = ScriptedPolicy(lambda prompt, conditioning, seed: writes(prompt), context_tokens=context)
    options = {"proposers": ("self",), **config}
    channel = PromptsChannel(PromptsConfig(**options))  # type: ignore[arg-type]
    bench = FakeBench(helped, task=SHARED, policy=policy)
    bench.card = policy.card
    offer = channel.propose(bench, state or PromptsState(), evidence_of(bench), Budget(rollouts=rollouts), 1)
    return offer, bench


def test_a_good_reflection_is_deployed_and_its_cost_is_the_benchs() -> None:
    offer, bench = search(lambda prompt: f"Here it is:\n```\n{GOOD}\n```", rollouts=100)
    assert isinstance(offer, Proposal)
    now = offer.state.pool(TASK).deployed_candidate
    assert (now.system, now.origin) == (GOOD, "self")
    assert len(bench.written) == 2
    assert "I think it is seven." in bench.written[0]
    assert "expected " in bench.written[0]
    assert offer.cost.reflector_calls == 0
    rolled = sum(len(call[0]) * len(call[1]) * call[2] for call in bench.calls)
    assert offer.cost.rollouts == bench.spent.rollouts == rolled + 2 <= 100
    assert "self: the instruction is known already" in offer.cause  # the second call wrote the same


def test_plain_prose_without_a_block_is_read_too() -> None:
    offer, _ = search(lambda prompt: f"  {GOOD}\n")
    assert isinstance(offer, Proposal)
    assert offer.state.pool(TASK).deployed_candidate.system == GOOD


def test_a_block_that_the_policy_left_open_when_it_ended_is_read_too() -> None:
    offer, _ = search(lambda prompt: f"Here it is:\n```\n{GOOD}")
    assert isinstance(offer, Proposal)
    assert offer.state.pool(TASK).deployed_candidate.system == GOOD


def failing(prompt: str) -> str:
    raise RuntimeError("out of memory")


def echo(prompt: str) -> str:
    return prompt


def tail(prompt: str) -> str:
    return "Your task is to write a new instruction for the assistant."


@pytest.mark.parametrize(
    ("writes", "reason"),
    [
        (lambda prompt: "very long words " * 40, "the reply was cut off after 160 tokens: raise self_tokens"),
        (failing, "the policy gave no reply: RuntimeError: out of memory"),
        (lambda prompt: "", "the reply is empty"),
        (lambda prompt: "```\n\n```", "the instruction is empty"),
        (lambda prompt: "Here it is:\n```", "the instruction is empty"),
        (lambda prompt: "7", "no word in it"),
        (lambda prompt: "I think it is seven.", "an answer to an item"),
        (lambda prompt: '{"question": "What is 2 + 2?", "answer": "4"}', "JSON"),
        (lambda prompt: '[{"question": "What is 2 +', "JSON"),
        (lambda prompt: "# Example 1\n## Inputs\nsay it", "repeats the records"),
        (tail, "echoes the reflection prompt: 'a new instruction for the assistant .'"),
        (lambda prompt: "Be brief.\nThink.\nBe brief.\nThink.\nBe brief.", "one line stands 3 times"),
        (lambda prompt: "Answer the question the question the question the question", "again and again"),
        (lambda prompt: "no no no no", "again and again"),
    ],
)
def test_nonsense_is_refused_with_its_reason_and_costs_its_own_call_only(
    writes: Callable[[str], str], reason: str
) -> None:
    offer, bench = search(writes)
    assert isinstance(offer, Declined)
    assert "self: " in offer.reason
    assert reason in offer.reason
    assert bench.calls == []
    assert offer.cost.rollouts == 2


def test_an_echo_of_the_whole_question_is_refused() -> None:
    offer, _ = search(echo, self_tokens=4000)
    assert isinstance(offer, Declined)
    assert "self: " in offer.reason


def test_a_copied_item_is_refused() -> None:
    def copied(prompt: str) -> str:
        return "Note: " + next(line for line in prompt.splitlines() if line.startswith("What is the last digit"))

    offer, _ = search(copied)
    assert isinstance(offer, Declined)
    assert "copies an item" in offer.reason


def test_nonsense_does_not_stop_the_other_proposers() -> None:
    offer, bench = search(failing, proposers=("exemplars", "self", "edits"))
    assert isinstance(offer, Proposal)
    assert "self: the policy gave no reply" in offer.cause
    assert offer.metrics["reflections_refused"] == 2
    assert any(c.exemplars for call in bench.calls for c in call[1])
    assert any(c.system for call in bench.calls for c in call[1])


@pytest.mark.parametrize(("rollouts", "written"), [(16, 0), (17, 1), (18, 2)])
def test_a_reflection_never_takes_the_last_rollouts_of_a_search(rollouts: int, written: int) -> None:
    texts = iter(("Be brief, please.", "Be kind, please."))
    offer, bench = search(lambda prompt: next(texts), rollouts=rollouts)
    assert len(bench.written) == written
    assert bench.spent.rollouts <= rollouts
    if written < 2:
        said = offer.reason if isinstance(offer, Declined) else offer.cause
        assert "the budget leaves no rollout for a reflection beside the search" in said
    if written:
        assert bench.calls  # what was written was scored


def test_a_bench_that_has_no_tokens_left_is_a_reason() -> None:
    policy = ScriptedPolicy(lambda prompt, conditioning, seed: GOOD)
    bench = Bench(policy, SHARED, others=Conditioning(), sampling=Sampling(), budget=Budget(tokens=100))
    channel = PromptsChannel(PromptsConfig(proposers=("self",)))
    offer = channel.propose(bench, PromptsState(), evidence_of(FakeBench(helped, task=SHARED)), Budget(tokens=100), 1)
    assert isinstance(offer, Declined)
    assert "the budget leaves nothing for a reflection: up to" in offer.reason
    assert bench.spent.rollouts == policy.calls == 0


def test_the_question_fits_into_the_context() -> None:
    _, roomy = search(lambda prompt: GOOD, context=4096)
    _, tight = search(lambda prompt: GOOD, context=160 + 650)
    assert roomy.written[0].count("## Inputs") == 4
    assert 1 <= tight.written[0].count("## Inputs") < 4
    assert max(map(len, tight.written)) <= 2 * 650
    offer, none = search(lambda prompt: GOOD, context=200)
    assert none.written == []
    assert isinstance(offer, Declined)
    assert "does not fit into 80 characters" in offer.reason


def test_parents_are_the_deployed_prompt_and_then_the_others() -> None:
    turns = (("last digit of 15?", "5"), ("last digit of 27?", "7"))
    parent = Candidate(system="Be brief.", exemplars=turns)
    state = PromptsState().with_pool(TASK, Pool(candidates=(parent, EMPTY), deployed=parent.id))
    offer, bench = search(lambda prompt: GOOD, state=state)
    assert "Be brief." in bench.written[0]
    assert "Be brief." not in bench.written[1]
    tried = {(c.system, c.exemplars) for call in bench.calls for c in call[1]}
    assert {(GOOD, turns), (GOOD, ())} <= tried
    assert isinstance(offer, Proposal)


def test_the_same_arguments_give_the_same_questions_and_proposal() -> None:
    first, one = search(lambda prompt: GOOD)
    second, two = search(lambda prompt: GOOD)
    assert one.written == two.written
    assert first == second
