"""Contradictions: what is found among planted ones, what is not, and what the evidence favours."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
from planted_lessons import AGREE, CONTRADICT, LATER_AGREE, LATER_CONTRADICT, MEANING

from twoclock.memory.clauses import clauses_of, numbers_of, opposite
from twoclock.memory.conflicts import NEIGHBOURS, Conflict, find_conflicts, overlapping
from twoclock.memory.encoders import CallableEncoder
from twoclock.memory.records import Effect, Entry, Scope
from twoclock.seeding import child_rng


def lesson(text: str, **more: Any) -> Entry:
    return replace(Entry(kind="reflection", key="the task", text=text, reward=1.0), **more)


def case(question: str, answer: str, reward: float | None = 1.0, **more: Any) -> Entry:
    return replace(Entry(kind="case", key=question, text=answer, reward=reward), **more)


def found(pairs: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
    return [pair for pair in pairs if find_conflicts([lesson(text) for text in pair])]


def coins(shown: int, rights: int, held: int, held_rights: int) -> Effect:
    return Effect(
        shown=shown, shown_sum=rights, shown_squares=rights, held=held, held_sum=held_rights, held_squares=held_rights
    )


# --------------------------------------------------------------------------------------------------- planted lessons


def test_precision_and_recall_on_planted_pairs() -> None:
    right, wrong = found(CONTRADICT), found(AGREE)
    assert len(right) / len(CONTRADICT) >= 0.95
    assert len(right) / (len(right) + len(wrong)) >= 0.95


def test_and_on_pairs_that_the_rules_were_not_fitted_to() -> None:
    right, wrong = found(LATER_CONTRADICT), found(LATER_AGREE)
    assert len(right) >= 14
    assert len(wrong) == 0


def test_contradictions_of_meaning_are_not_seen() -> None:
    """Stated where users read it; a judge is for them."""
    assert found(MEANING) == []


def test_no_lesson_contradicts_itself() -> None:
    for one, other in (*CONTRADICT, *AGREE, *MEANING):
        for text in (one, other):
            same = [lesson(text), lesson(text, scope=Scope(agent="a"))]
            assert find_conflicts(same) == (), text


def test_all_planted_pairs_in_one_memory() -> None:
    """Each pair under a key of its own, among the others: no pair is found across keys that is not of one subject."""
    entries = [
        lesson(text, key=f"subject {word} {word}x")
        for word, pair in zip((f"w{n}" for n in range(99)), CONTRADICT, strict=False)
        for text in pair
    ]
    conflicts = find_conflicts(entries)
    keys = [(c.first.key, c.second.key) for c in conflicts]
    assert sum(a == b for a, b in keys) >= 34
    # "open the fridge" and others may be near by their text under another key; none is here but for the kitchen door.
    assert {tuple(sorted((c.first.text, c.second.text))) for c in conflicts if c.first.key != c.second.key} <= {
        ("The door in the kitchen is locked.", "The door in the kitchen is unlocked."),
        ("The door in the kitchen is locked.", "The door in the kitchen isn't locked."),
    }


def test_the_reason_quotes_both() -> None:
    (conflict,) = find_conflicts([lesson("Turn left."), lesson("Turn right at once. Turn right.")])
    assert conflict.kind == "rule"
    assert "“Turn left”" in conflict.why
    assert "Turn right" in conflict.why


@pytest.mark.parametrize(
    ("one", "other"),
    [("increas", "decreas"), ("open", "clos"), ("lock", "unlock"), ("odd", "even"), ("valid", "invalid")],
)
def test_opposites(one: str, other: str) -> None:
    assert opposite(one, other)
    assert opposite(other, one)
    assert not opposite(one, one)


def test_numbers_in_one_form() -> None:
    assert numbers_of("1,000 and 4.0 and 3,5 and 007 and 1.2.3 and 0.50") == ("1000", "4", "3.5", "7", "1.2.3", "0.5")
    assert numbers_of("none") == ()


def test_a_clause_by_hand() -> None:
    (clause,) = clauses_of("You should never check the units twice.")
    assert (clause.words, clause.numbers, clause.negated) == (frozenset({"check", "unit", "twic"}), (), True)
    assert not clauses_of("Never do it without that.")


# ----------------------------------------------------------------------------------------------- cases, tools, subtasks


def test_two_answers_that_both_claim_reward() -> None:
    (conflict,) = find_conflicts([case("What is 2 + 2?", "4"), case("what is  2 + 2", "5"), case("3 + 3", "6")])
    assert conflict.kind == "answers"
    assert "'4'" in conflict.why
    assert "'5'" in conflict.why


def test_an_answer_that_was_rewarded_and_failed() -> None:
    (conflict,) = find_conflicts(
        [case("Is it?", "yes", scope=Scope(agent="a")), case("Is it?", "Yes.", 0.0, scope=Scope())]
    )
    assert conflict.kind == "outcome"
    assert conflict.favoured == case("Is it?", "yes", scope=Scope(agent="a")).id
    assert conflict.evidence == "its episode earned 1.00, the other's 0.00"


def test_what_is_no_contradiction_of_cases() -> None:
    question = "How much is it?"
    for pair in (
        [case(question, "4"), case(question, "5", 0.0)],  # one worked, another did not: that is what memory is for
        [case(question, "4", 0.0), case(question, "5", 0.0)],
        [case(question, "4"), case(question, "4.0", trust="self")],
        [case(question, "1,000"), case(question, "1000")],
        [case(question, "4"), case(question, "5", None)],
        [case(question, "4"), case("How much is that?", "5")],
        [case(question, "go north " * 15), case(question, "take coin " * 15)],  # plans
        [case(question, "4"), case(question, "5", trust="quarantined")],
    ):
        assert find_conflicts(pair) == (), pair


def test_question_and_answer_of_the_body() -> None:
    pair = [
        Entry(kind="case", key=f"k{n}", text=f"t{n}", reward=1.0, body={"question": "q", "answer": answer})
        for n, answer in enumerate(("yes", "no"))
    ]
    assert len(find_conflicts(pair)) == 1
    odd = [replace(e, body={"question": ["q"], "answer": {"x": n}}) for n, e in enumerate(pair)]
    assert len(find_conflicts(odd)) == 1


def test_tools_and_subtasks_whose_results_differ() -> None:
    def tool(result: Any, **more: Any) -> Entry:
        body = {"tool": "add", "arguments": {"a": 1}, "result": result}
        return Entry(kind="tool", key="add(1)", text=str(result), body={**body, **more})

    (conflict,) = find_conflicts([tool(2), tool(3), tool(3, arguments={"a": 2})])
    assert conflict.kind == "results"
    assert conflict.why in ("the same tool gave '2' and '3'", "the same tool gave '3' and '2'")
    steps = [Entry(kind="subtask", key="k", text=r, body={"plan": "p", "result": r}) for r in ("x", "y")]
    assert len(find_conflicts(steps)) == 1
    assert find_conflicts([replace(steps[0], key="other"), steps[1]]) == ()
    assert find_conflicts([Entry(kind="tool", key="k", text=t) for t in ("a", "b")]) == ()


# -------------------------------------------------------------------------------------- who can stand beside whom


def test_only_what_one_reader_can_see_together_is_compared() -> None:
    pair = CONTRADICT[0]
    for one, other, expected in (
        (Scope(user="a"), Scope(user="b"), 0),
        (Scope(user="a"), Scope(user="a"), 1),
        (Scope(user="a"), Scope(), 1),
        (Scope(user="a"), Scope(agent="x"), 1),
        (Scope(user="a", agent="x"), Scope(user="a", agent="y"), 0),
    ):
        assert len(find_conflicts([lesson(pair[0], scope=one), lesson(pair[1], scope=other)])) == expected
        assert overlapping(one, other) == overlapping(other, one) == bool(expected)


def test_versions_expired_and_quarantined_are_left_out() -> None:
    old = lesson("Turn left at the gate.")
    assert find_conflicts([old, lesson("Turn right at the gate.", replaces=old.id)]) == ()
    gone = lesson("Turn right at the gate.", expires=5.0)
    assert len(find_conflicts([old, gone])) == 1
    assert len(find_conflicts([old, gone], now=4.0)) == 1
    assert find_conflicts([old, gone], now=5.0) == ()
    assert find_conflicts([old, replace(gone, trust="quarantined")]) == ()


def test_lessons_far_apart_are_not_compared() -> None:
    one, other = lesson("Wait long.", key="baking bread"), lesson("Do not wait so very long.", key="selling cars")
    other = replace(other, text=other.text + " Talk about anything else for a while, as one does.")
    assert find_conflicts([one, other]) == ()
    assert len(find_conflicts([one, replace(other, key="bread baking")])) == 1


def test_sentences_without_content_are_not_compared() -> None:
    assert find_conflicts([lesson("Do it."), lesson("Do not do it.")]) == ()


def directions(texts: Sequence[str]) -> list[list[float]]:
    """Two meanings: what speaks of doors, and the rest."""
    return [[1.0, 0.0] if "door" in t or "gate" in t else [0.0, 1.0] for t in texts]


def test_an_encoder_finds_what_shares_no_word() -> None:
    encoder = CallableEncoder(directions, id="doors")
    one = lesson("Press the blue button firmly.", key="an old gate")
    other = lesson("Never press it: the blue button. Do not press the blue button.", key="entering by doors")
    assert find_conflicts([one, other], encoder=encoder) != ()
    assert find_conflicts([one, replace(other, key="cats")], encoder=encoder) == find_conflicts(
        [one, replace(other, key="cats")]
    )
    asked = [case("the door code?", "12"), case("code of that door?", "13"), case("code of door 2?", "14")]
    assert [c.kind for c in find_conflicts(asked, encoder=encoder)] == ["answers"]
    assert find_conflicts(asked) == ()


# ------------------------------------------------------------------------------------------------------------ the judge


def test_a_judge_sees_what_the_rules_do_not() -> None:
    pair = [lesson(text) for text in MEANING[0]]
    seen: list[tuple[str, str]] = []

    def judge(one: Entry, other: Entry) -> str | None:
        seen.append((one.text, other.text))
        return "one wants it short, the other long"

    (conflict,) = find_conflicts(pair, judge=judge)
    assert (conflict.kind, conflict.why) == ("judged", "one wants it short, the other long")
    assert len(seen) == 1
    assert find_conflicts(pair, judge=lambda one, other: None) == ()
    assert find_conflicts(pair, judge=judge, most_judged=0) == ()


def test_a_judge_is_not_asked_what_the_rules_know_nor_more_often_than_allowed() -> None:
    asked: list[Entry] = []

    def judge(one: Entry, other: Entry) -> str | None:
        asked.append(one)
        return None

    assert len(find_conflicts([lesson(t) for t in CONTRADICT[0]], judge=judge)) == 1
    assert not asked
    find_conflicts([lesson(f"Lesson about {letter * 3}.") for letter in "abcdefghijklmnop"], judge=judge, most_judged=7)
    assert len(asked) == 7


def test_a_judge_that_answers_with_no_text_is_an_error() -> None:
    with pytest.raises(ValueError, match="reason as text, or None; got True"):
        find_conflicts([lesson(t) for t in MEANING[0]], judge=lambda one, other: True)  # type: ignore[arg-type,return-value]


# --------------------------------------------------------------------------------------------------------- the evidence


def decided(one: Entry, other: Entry, effects: dict[str, Effect] | None = None) -> Conflict:
    (conflict,) = find_conflicts([one, other], effects)
    return conflict


def test_what_was_measured_decides_first() -> None:
    one, other = lesson("Turn left at the gate."), lesson("Turn right at the gate.", trust="self", reward=0.0)
    effects = {one.id: coins(40, 8, 20, 10), other.id: coins(40, 36, 20, 10)}
    conflict = decided(one, other, effects)
    assert conflict.favoured == other.id
    assert "measured to be worth more" in conflict.evidence


def test_then_the_reward_then_trust_then_how_many_episodes_and_never_age() -> None:
    one, other = lesson("Turn left at the gate."), lesson("Turn right at the gate.")
    assert decided(one, replace(other, reward=0.2)).favoured == one.id
    assert decided(replace(one, trust="self"), other).favoured == other.id
    assert decided(replace(one, trust="self"), other).evidence == "it is verified, the other self"
    many = decided(one, replace(other, provenance=("a", "b", "c")))
    assert (many.favoured, many.evidence) == (other.id, "it comes from 3 episodes, the other from 0")
    none = decided(replace(one, created=1.0), replace(other, created=99.0))
    assert (none.favoured, none.evidence) == (None, "nothing that was measured decides between them")
    few = decided(one, other, {one.id: coins(2, 1, 1, 0)})
    assert few.favoured is None


# ---------------------------------------------------------------------------------------------------------- the search


def test_the_order_of_the_entries_does_not_matter() -> None:
    entries = [lesson(text) for pair in CONTRADICT for text in pair]
    expected = find_conflicts(entries)
    child_rng("order", 0).shuffle(entries)
    assert find_conflicts(entries) == expected
    assert all(c.first.id < c.second.id for c in expected)
    assert find_conflicts([]) == find_conflicts(entries[:1]) == ()


def test_prefix_filtering_misses_no_near_pair() -> None:
    """Against the slow way: all pairs."""
    from twoclock.memory.conflicts import NEAR_WORDS, _near_words

    rng = child_rng("near", 1)
    texts = [" ".join(rng.choices("abcdefghij", k=rng.randint(1, 7))) for _ in range(120)]
    sets = [set(text.split()) for text in texts]
    slow = {
        (i, j)
        for i in range(120)
        for j in range(i + 1, 120)
        if len(sets[i] & sets[j]) / len(sets[i] | sets[j]) >= NEAR_WORDS
    }
    assert {(i, j) for i, j, _ in _near_words(texts)} == slow


def test_asking_about_one_entry_gives_its_part_of_all() -> None:
    entries = [lesson(text, key=f"key {n % 5}") for n, pair in enumerate(CONTRADICT) for text in pair]
    entries += [case("q", "1"), case("q", "2"), lesson("", key="alone")]
    all_of_them = find_conflicts(entries)
    for entry in entries:
        own = tuple(c for c in all_of_them if entry.id in (c.first.id, c.second.id))
        assert find_conflicts(entries, about=entry.id) == own
    assert find_conflicts(entries, about="gone") == ()


def test_a_form_that_thousands_share_costs_no_square_of_them() -> None:
    """Keys and texts of one template: their common words say nothing about their subject."""
    entries = [lesson(f"Item {n} is about w{n % 97}.", key=f"task number {n}") for n in range(3000)]
    start = time.process_time()
    find_conflicts(entries)
    assert time.process_time() - start < 10


def test_thousands_of_entries_and_a_crowd_at_one_key() -> None:
    rng = child_rng("crowd", 0)
    words = [f"word{n}" for n in range(400)]
    entries = [lesson(" ".join(rng.sample(words, 6)), key=" ".join(rng.sample(words, 5))) for _ in range(2000)]
    entries += [lesson(f"Note {n} about {words[n % 400]}.", key="one key for all") for n in range(400)]
    start = time.process_time()
    find_conflicts(entries)
    assert time.process_time() - start < 10
    assert NEIGHBOURS == 50
