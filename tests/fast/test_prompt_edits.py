"""Templated edits: what they say, what they are made from, and that a policy which needs a form finds it."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace

import pytest
from prompts_bench import Answer, FakeBench, FakeTask, chance, evidence_of

from twoclock.fast.prompts import Candidate, Pool, PromptsChannel, PromptsConfig, PromptsState
from twoclock.fast.prompts.edits import (
    EXAMPLES,
    MAX_LINES,
    Known,
    change,
    compose,
    form_lines,
    hints_of,
    lines_of,
    new_edits,
    shown_answers,
)
from twoclock.fast.prompts.frames import Shape, shape_of
from twoclock.fast.prompts.guards import item_ngrams
from twoclock.fast.prompts.state import EMPTY
from twoclock.types import Budget, Conditioning, Declined, Evidence, Item, Proposal

TASK = "digits"


class FormTask(FakeTask):
    """Digits that are to be written in a form, of which the prompts say nothing."""

    def __init__(self, form: str, answers: int = 10) -> None:
        super().__init__(answers=answers)
        self.splits = {
            name: tuple(replace(i, reference=form.format(i.reference)) for i in items)
            for name, items in self.splits.items()
        }


def shape(*answers: str) -> Shape:
    found = shape_of(answers)
    assert found is not None
    return found


def follower(form: str, asked: str) -> Answer:
    """A policy that knows the digit and writes the form only where the system prompt names it."""

    def answer(item: Item, conditioning: Conditioning, seed: int) -> str:
        digit = str(item.reference).removeprefix(form.split("{}")[0]).removesuffix(form.split("{}")[1])
        told = asked in (conditioning.system or "")
        return str(item.reference) if told and chance(0.9, seed) else f"It is {digit}"

    return answer


# ------------------------------------------------------------------------------------------------------------- lines


def test_what_is_said_of_a_form() -> None:
    brackets = form_lines(shape("[[12]]", "[[7]]"))
    assert "Answer in the form [[...]]." in brackets
    assert "Answer with [[...]] and nothing else." in brackets
    assert "Reply with one number in the form [[...]]." in brackets
    assert "Write [[ then the answer then ]]." in brackets
    assert "Write only ANSWER: and then the answer" in form_lines(shape("ANSWER: 1", "ANSWER: 2"))
    assert form_lines(shape("12", "7")) == ["Reply with one number.", "Answer with one number and nothing else."]
    assert form_lines(shape("cat", "dog"))[0] == "Reply with one word."
    assert form_lines(shape("Sum: 1\nAnswer: 2", "Sum: 2\nAnswer: 5")) == [
        "Answer in this form:\nSum: ...\nAnswer: ...",
        "Answer with 2 lines and nothing else.",
    ]
    assert form_lines(shape("yes", "no", "no", "yes"))[0] == "Answer with one of: no, yes."


def test_examples_differ_and_long_ones_are_left_out() -> None:
    known = Known(examples=("[[1]]", "[[2]]", "[[3]]", "x" * 41, "two\nlines"))
    for seed in range(20):
        for line in lines_of(known, random.Random(seed))["examples"]:
            shown = line.removeprefix(EXAMPLES).removesuffix(".").split(", ")
            assert 2 <= len(shown) <= 3
            assert len(set(shown)) == len(shown)
            assert set(shown) <= {"[[1]]", "[[2]]", "[[3]]"}
            assert shown_answers(f"Be brief.\n{line}") == line
    assert "examples" not in lines_of(Known(examples=("one",)), random.Random(0))
    listed = lines_of(Known(examples=("1, 2", "3, 4")), random.Random(0))["examples"][0]
    assert " | " in listed
    ended = lines_of(Known(examples=("=> 1;", "=> 2;")), random.Random(0))["examples"]
    assert set(ended) <= {f"{EXAMPLES}=> 1; => 2;", f"{EXAMPLES}=> 2; => 1;"}


def test_a_prompt_is_about_the_form_where_that_is_known() -> None:
    known = Known(description="Name it. It is scored.", shape=shape("[[1]]", "[[2]]"), examples=("[[1]]", "[[2]]"))
    for seed in range(40):
        rng = random.Random(seed)
        lines = lines_of(known, rng)
        for size in (1, 2, 3):
            text = compose(lines, size, rng) or ""
            assert "[[" in text
            assert len(text.splitlines()) <= size
    assert compose({}, 2, random.Random(0)) is None
    assert compose(lines_of(Known(description="Name it."), random.Random(0)), 3, random.Random(0)) == "Name it."


def evidence_with(feedback: Sequence[str]) -> Evidence:
    bench = FakeBench(lambda item, c, seed: "?")
    evidence = evidence_of(bench, items=len(feedback), samples=2)
    return replace(
        evidence,
        groups=tuple(
            replace(g, rollouts=tuple(replace(r, grade=replace(r.grade, feedback=said)) for r in g.rollouts))
            for g, said in zip(evidence.groups, feedback, strict=True)
        ),
    )


def test_hints_are_what_feedback_says_of_several_items_without_their_answers() -> None:
    said = [f'The format is wrong: you wrote "{n}"; the answer is {n}. Begin with a capital letter.' for n in range(4)]
    assert hints_of(evidence_with(said)) == ("Begin with a capital letter",)
    assert hints_of(evidence_with(["Only this item is odd.", "", "", ""])) == ()
    assert hints_of(evidence_with(["the answer is 5"] * 4)) == ()
    assert hints_of(evidence_with(["The form is wrong", "the value is INCORRECT"] * 2)) == ()  # says nothing to do
    said = ["use capitals; no JSON was found", "no JSON was found. be brief", "no JSON was found", "use capitals"]
    assert hints_of(evidence_with(said)) == ("no JSON was found", "use capitals")
    assert hints_of(evidence_with(["wrong"] * 4)) == ()  # one word says nothing
    named = evidence_with(["The answer is Paris"] * 3)
    groups = tuple(replace(g, item=replace(g.item, reference="Paris")) for g in named.groups)
    assert hints_of(replace(named, groups=groups)) == ()


# --------------------------------------------------------------------------------------------------------- operators


def test_operators_on_the_deployed_prompt() -> None:
    lines = {"form": ["Answer in the form [[...]]."]}
    closing = "Answer with [[...]] and nothing else."
    system = "Be brief. Be kind.\nThink."
    made = {change(system, lines, closing, random.Random(seed)) for seed in range(60)}
    assert made == {
        "Be brief.",
        "Be brief. Be kind.",
        "Think.",
        f"{system}\nAnswer in the form [[...]].",
        f"{system} {closing}",
    }
    assert change("Think.", {}, None, random.Random(0)) is None
    assert change("Think.", {"form": ["Think."]}, "Think.", random.Random(0)) is None


def test_a_prompt_stops_growing() -> None:
    known = Known(description="A. B.", shape=shape("[[1]]", "[[2]]"), examples=("[[1]]", "[[2]]"), hints=("be kind",))
    system: str = "Think."
    for seed in range(300):
        rng = random.Random(seed)
        changed = change(system, lines_of(known, rng), None, rng)
        if changed and len(changed) > len(system):
            system = changed
    assert len(system.splitlines()) == MAX_LINES


# -------------------------------------------------------------------------------------------------------- candidates


def make(known: Known, **more: object) -> tuple[list[Candidate], tuple[str, ...]]:
    settings = {
        "deployed": EMPTY,
        "count": 8,
        "max_chars": 500,
        "own": frozenset(),
        "ngram": 5,
        "seen": (),
        "rng": random.Random(3),
    }
    made = new_edits(known, **{**settings, **more})  # type: ignore[arg-type]
    return list(made.candidates), made.problems


KNOWN = Known(description="Name the last digit.", shape=shape("[[1]]", "[[2]]"), examples=("[[1]]", "[[2]]", "[[3]]"))


def test_candidates_are_distinct_unknown_and_follow_from_the_seed() -> None:
    made, problems = make(KNOWN)
    assert len({c.id for c in made}) == len(made) == 8
    assert problems == ()
    assert {c.origin for c in made} == {"edit"}
    assert make(KNOWN)[0] == made
    assert make(KNOWN, rng=random.Random(4))[0] != made
    again, _ = make(KNOWN, seen={c.id for c in made})
    assert not {c.id for c in again} & {c.id for c in made}
    assert make(Known())[0] == []


def test_instructions_come_first_and_long_ones_are_refused() -> None:
    made, problems = make(replace(KNOWN, instructions=("Be brief.", "x " * 400)))
    assert made[0].system == "Be brief."
    assert made[0].origin == "instruction"
    assert problems == ("the instruction has 799 characters, 500 are allowed",)


def test_the_deployed_prompt_is_changed_and_its_exemplars_are_kept() -> None:
    turns = (("1 + 1?", "[[2]]"), ("1 + 3?", "[[4]]"))
    deployed = Candidate(system="Be brief. Be kind.", exemplars=turns)
    made, _ = make(KNOWN, deployed=deployed)
    changed = [c for c in made if (c.system or "").startswith("Be brief.")]
    assert changed
    assert {c.exemplars for c in changed} == {turns}
    assert {c.exemplars for c in made if c not in changed} == {turns, ()}
    assert {c.parent for c in made} == {deployed.id}
    small = make(KNOWN, deployed=deployed, max_chars=60)[0]
    assert small
    assert max(c.chars for c in small) <= 60


def test_what_copies_an_item_is_refused_but_the_examples_chosen() -> None:
    items = [Item(id="0", prompt="Say the long and winding oath now", reference="[[1]]")]
    own = item_ngrams(items, 5)
    made, problems = make(replace(KNOWN, description="Say the long and winding oath now"), own=own)
    assert any(problem.startswith("the instruction copies an item: ") for problem in problems)
    assert all("winding" not in (c.system or "") for c in made)
    assert any(EXAMPLES in (c.system or "") for c in made)  # "[[1]]" is five tokens of the item's, shown on purpose


# -------------------------------------------------------------------------------------------------------- in a search


def search(
    bench: FakeBench, state: PromptsState, seed: int, **config: object
) -> tuple[Proposal[PromptsState] | Declined, PromptsChannel]:
    options = {"proposers": ("edits",), **config}
    channel = PromptsChannel(PromptsConfig(**options))  # type: ignore[arg-type]
    return channel.propose(bench, state, evidence_of(bench, seed=seed), Budget(rollouts=256), seed), channel


@pytest.mark.parametrize(
    ("form", "asked"), [("[[{}]]", "[["), ("=> {};", "=>"), ("Digit\nAnswer: {}", "Answer: ..."), ("{}", "one number")]
)
def test_a_policy_that_needs_the_form_finds_it(form: str, asked: str) -> None:
    found = 0
    for seed in range(20):
        bench = FakeBench(follower(form, asked), task=FormTask(form))
        offer, _ = search(bench, PromptsState(), seed)
        if isinstance(offer, Proposal):
            now = offer.state.pool(TASK).deployed_candidate
            found += asked in (now.system or "")
            assert now.is_empty or now.origin == "edit"
            assert not now.exemplars
    assert found >= 18, f"{found} of 20 searches deployed a prompt with the form {form!r}"


def test_no_answer_that_is_scored_stands_among_the_examples() -> None:
    task = FormTask("[[{}]]", answers=9000)
    by_id = {i.id: i for i in task.split("train")}
    state, shown = PromptsState(), 0
    for seed in range(12):
        bench = FakeBench(follower("[[{}]]", "[["), task=task)
        offer, _ = search(bench, state, seed)
        for ids, conditionings, _, _ in bench.calls:
            for conditioning in conditionings:
                examples = shown_answers(conditioning.system)
                shown += bool(examples)
                assert not [i for i in ids if str(by_id[i].reference) in examples]
        state = offer.state if isinstance(offer, Proposal) else state
    assert shown > 20


@pytest.mark.parametrize("asked", ["maybe", "never"])
def test_labels_are_named_where_they_give_no_item_away(asked: str) -> None:
    """Two of 24 gold answers say "maybe"; where one of the items ahead asks for it, it is not named."""
    task = FakeTask()
    items = [replace(item, reference=f"w{n}") for n, item in enumerate(task.split("train")[:64])]
    coming = (replace(items[0], reference=asked), *items[1:40])
    gold = tuple(replace(item, reference="maybe" if n < 2 else "yes") for n, item in enumerate(items[40:]))
    task.splits["train"] = (*coming, *gold)
    bench = FakeBench(lambda item, c, seed: "?", task=task, ahead=coming)
    search(bench, PromptsState(), 1, window="ahead")
    systems = {c.system or "" for call in bench.calls for c in call[1]}
    assert any("Answer with one of: maybe, yes." in system for system in systems) == (asked == "never")
    assert any("maybe" in system for system in systems) == (asked == "never")


def test_a_task_without_gold_answers_still_has_edits() -> None:
    class Bare(FakeTask):
        def __init__(self) -> None:
            super().__init__()
            self.answers = {i.id: i.reference for items in self.splits.values() for i in items}
            self.splits = {n: tuple(replace(i, reference=None) for i in s) for n, s in self.splits.items()}

        def grade(self, items: Sequence[Item], texts: Sequence[str]) -> list:  # type: ignore[type-arg]
            return super().grade([replace(i, reference=self.answers[i.id]) for i in items], texts)

    bench = FakeBench(lambda item, c, seed: "?", task=Bare())
    offer, _ = search(bench, PromptsState(), 1)
    tried = {c.system for call in bench.calls for c in call[1]}
    assert "Name the last digit of a number." in tried
    assert not any(EXAMPLES in (system or "") for system in tried)
    assert isinstance(offer, Proposal)  # the pool learns what it tried


def test_instructions_are_tried_by_edits_alone_too() -> None:
    bench = FakeBench(lambda item, c, seed: "?", task=FakeTask())
    search(bench, PromptsState(), 1, instructions=("Sing.",))
    assert "Sing." in {c.system for call in bench.calls for c in call[1]}


# ------------------------------------------------------------------------------------------------------------ mixing


def tried(bench: FakeBench) -> set[tuple[bool, bool]]:
    """(has a system prompt, has exemplars) of everything that was rolled out."""
    return {(c.system is not None, bool(c.exemplars)) for call in bench.calls for c in call[1]}


def test_each_proposer_has_its_share_in_any_order() -> None:
    blobs = set()
    for proposers in (("exemplars", "edits"), ("edits", "exemplars")):
        bench = FakeBench(lambda item, c, seed: "?", task=FormTask("[[{}]]"))
        offer, channel = search(bench, PromptsState(), 1, proposers=proposers, num_new=8)
        first = bench.calls[0][1]
        assert sum(c.system is not None and not c.exemplars for c in first) == 4
        assert sum(bool(c.exemplars) for c in first) == 4
        assert isinstance(offer, Proposal)
        blobs.add(channel.dump(offer.state))
    assert len(blobs) == 1


def test_a_small_budget_cuts_both_alike() -> None:
    channel = PromptsChannel(PromptsConfig(proposers=("exemplars", "edits")))
    bench = FakeBench(lambda item, c, seed: "?", task=FormTask("[[{}]]"))
    channel.propose(bench, PromptsState(), evidence_of(bench), Budget(rollouts=40), 1)
    first = bench.calls[0][1]
    assert len(first) == 5
    assert sum(c.system is not None for c in first) == 2
    assert sum(bool(c.exemplars) for c in first) == 2


def test_a_system_prompt_and_exemplars_are_crossed() -> None:
    edit = Candidate(system="Answer in the form [[...]].", origin="edit")
    shots = Candidate(exemplars=(("1 + 1?", "[[2]]"), ("1 + 3?", "[[4]]")), origin="exemplars")
    both = Candidate(system=edit.system, exemplars=shots.exemplars)
    state = PromptsState().with_pool(TASK, Pool(candidates=(edit, shots, EMPTY), deployed=edit.id))

    def needs_both(item: Item, conditioning: Conditioning, seed: int) -> str:
        return str(item.reference) if conditioning.system and conditioning.exemplars else "?"

    for proposers in (("edits",), ("exemplars",)):
        bench = FakeBench(needs_both, task=FormTask("[[{}]]"))
        offer, _ = search(bench, state, 1, proposers=proposers)
        assert both.conditioning in {c for call in bench.calls for c in call[1]}
        assert isinstance(offer, Proposal)
        now = offer.state.pool(TASK).deployed_candidate
        assert now.system is not None
        assert now.exemplars
    lost = state.with_pool(TASK, replace(state.pool(TASK), losers=((both.id, "base"),)))
    bench = FakeBench(needs_both, task=FormTask("[[{}]]"))
    search(bench, lost, 1, proposers=("exemplars",))
    assert both.conditioning not in {c for call in bench.calls for c in call[1]}  # it was tried on these weights


def test_without_both_kinds_there_is_nothing_to_cross() -> None:
    edit = Candidate(system="Answer in the form [[...]].", origin="edit")
    state = PromptsState().with_pool(TASK, Pool(candidates=(edit, EMPTY), deployed=edit.id))
    bench = FakeBench(lambda item, c, seed: "?", task=FormTask("[[{}]]"))
    search(bench, state, 1)
    assert tried(bench) == {(True, False), (False, False)}
