"""Entries that contradict each other: which, why, and which one the evidence favours. Shown, never settled silently.

Compared are entries that can stand in one prompt (their scopes overlap) and that are about the same:

- *cases* of one question: two answers that both claim reward, or one answer that was rewarded once and failed once. A
  rewarded answer beside another one that failed is no contradiction, but what a memory of both is for. Answers of
  many words are plans, of which several may work: they are not compared.
- *tools* with the same arguments and *subtasks* with the same plan: results that differ.
- *lessons* (reflections, notes, skills) near in key or text: rules of form (``twoclock.memory.clauses``), and a judge
  where one is given.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from statistics import NormalDist
from typing import TYPE_CHECKING, Literal

from twoclock.hashing import canonical_json
from twoclock.memory.clauses import clauses_of, contradiction, numbers_of
from twoclock.memory.effects import estimate, fit_prior
from twoclock.memory.records import Effect, Entry, Scope
from twoclock.memory.words import words_of

if TYPE_CHECKING:
    from twoclock.memory.encoders import Encoder

__all__ = ["Conflict", "Judge", "find_conflicts", "overlapping"]

Judge = Callable[[Entry, Entry], str | None]
"""Says why two entries contradict, or None: a model, or a person."""

NEAR_WORDS = 0.5
"""Shared words (Jaccard) from which on two keys, or two texts, are near."""
NEAR_COSINE = 0.7
"""The cosine from which on two keys are near, where an encoder tells it."""
SAME_COSINE = 0.95
"""The cosine from which on two questions are one, where their numbers are the same too."""
LONGEST_ANSWER = 20
"""Words; what is longer is a plan."""
COMMON = 200
"""A word that more different texts than this share brings no two of them together: it is a form's, not a subject's."""
NEIGHBOURS = 50
"""Each entry is compared with so many others at most, the nearest ones."""
SUCCESS = 0.5
SURE = 0.9
"""The probability from which on measured effects favour one of two entries."""
LESSONS = ("reflection", "note", "skill")


@dataclass(frozen=True, kw_only=True)
class Conflict:
    """Two entries that contradict; ``first`` has the smaller id."""

    first: Entry
    second: Entry
    kind: Literal["answers", "outcome", "results", "rule", "judged"]
    why: str
    favoured: str | None
    """The id of the one that the evidence favours; None where it does not decide."""
    evidence: str
    """What decides, or that nothing does."""


def overlapping(one: Scope, other: Scope) -> bool:
    """Whether some reader sees entries of both scopes."""
    return all(
        not getattr(one, f.name) or not getattr(other, f.name) or getattr(one, f.name) == getattr(other, f.name)
        for f in fields(Scope)
    )


def find_conflicts(
    entries: Iterable[Entry],
    effects: Mapping[str, Effect] | None = None,
    *,
    encoder: Encoder | None = None,
    judge: Judge | None = None,
    most_judged: int = 100,
    now: float | None = None,
    about: str | None = None,
) -> tuple[Conflict, ...]:
    """All contradictions among the entries, in the order of their ids; with ``about``, an id, those of that entry.

    With ``encoder`` keys are near by cosine as well as by shared words. ``judge`` is asked about near lessons in which
    the rules see no contradiction, the nearest first, ``most_judged`` times at most. With ``now`` entries that have
    expired are left out; the quarantined always are. Raises ValueError for a judge that answers with no text.
    """
    kept = sorted({e.id: e for e in entries if e.live(-math.inf if now is None else now)}.values(), key=lambda e: e.id)
    effects = effects or {}
    prior = fit_prior(effects.get(entry.id, Effect()) for entry in kept)
    if about is not None:
        kept = _around(about, kept, encoder is not None)

    def made(kind: Literal["answers", "outcome", "results", "rule", "judged"], pair: Pair, why: str) -> Conflict:
        first, second = sorted(pair, key=lambda e: e.id)
        values = [estimate(effects.get(e.id, Effect()), prior) for e in (first, second)]
        measured = any(effects.get(e.id, Effect()).difference is not None for e in (first, second))
        spread = math.hypot(values[0].spread, values[1].spread)
        sure = NormalDist().cdf((values[0].value - values[1].value) / spread) if measured else 0.5
        favoured, evidence = _favour(first, second, sure)
        return Conflict(first=first, second=second, kind=kind, why=why, favoured=favoured, evidence=evidence)

    found = [made("answers" if both else "outcome", pair, why) for pair, why, both in _cases(kept, encoder)]
    found += [made("results", pair, why) for pair, why in _results(kept)]
    asked = 0
    for pair in _near_lessons(kept, encoder):
        if why := _rule(*pair):
            found.append(made("rule", pair, why))
        elif judge is not None and asked < most_judged:
            asked += 1
            if (said := _judged(judge, *pair)) is not None:
                found.append(made("judged", pair, said))
    told = (c for c in found if about is None or about in (c.first.id, c.second.id))
    return tuple(sorted(told, key=lambda c: (c.first.id, c.second.id, c.kind)))


def _around(about: str, entries: Sequence[Entry], by_vectors: bool) -> list[Entry]:
    """The entry and what could be near it, so that asking about one need not compare all with all."""
    one = next((entry for entry in entries if entry.id == about), None)
    if one is None:
        return []
    if one.kind not in LESSONS or by_vectors:
        return [entry for entry in entries if (entry.kind in LESSONS) == (one.kind in LESSONS)]
    key, text = frozenset(words_of(one.key)), frozenset(words_of(one.text))
    return [
        entry
        for entry in entries
        if entry.kind in LESSONS
        and (_jaccard(key, words_of(entry.key)) >= NEAR_WORDS or _jaccard(text, words_of(entry.text)) >= NEAR_WORDS)
    ] + ([] if key or text else [one])


def _jaccard(one: frozenset[str], words: Sequence[str]) -> float:
    other = frozenset(words)
    return len(one & other) / len(one | other) if one and other else 0.0


Pair = tuple[Entry, Entry]


def _judged(judge: Judge, one: Entry, other: Entry) -> str | None:
    said = judge(one, other)
    if said is not None and not isinstance(said, str):
        raise ValueError(f"a judge answers with the reason as text, or None; got {said!r:.60}")
    return said


# ------------------------------------------------------------------------------------------- cases, tools, subtasks


def _part(entry: Entry, name: str, otherwise: str) -> str:
    value = entry.body.get(name, otherwise)
    return value if isinstance(value, str) else canonical_json(value)


def _cases(entries: Sequence[Entry], encoder: Encoder | None) -> Iterator[tuple[Pair, str, bool]]:
    """Contradicting pairs of cases with the reason; True where both answers claim reward."""
    cases = [e for e in entries if e.kind == "case" and e.reward is not None]
    questions = [_part(e, "question", e.key) for e in cases]
    groups: dict[tuple[str, ...], list[int]] = defaultdict(list)
    for index, question in enumerate(questions):
        groups[tuple(words_of(question))].append(index)
    pairs = {(i, j) for group in groups.values() for n, i in enumerate(group) for j in group[n + 1 : n + NEIGHBOURS]}
    if encoder is not None:
        for i, j, _ in _near_vectors(questions, encoder, SAME_COSINE):
            if numbers_of(questions[i]) == numbers_of(questions[j]):
                pairs.add((i, j))
    for i, j in sorted(pairs):
        one, other = cases[i], cases[j]
        if not overlapping(one.scope, other.scope) or one.id in (other.replaces,) or other.id in (one.replaces,):
            continue
        yield from _answers(one, other)


def _answers(one: Entry, other: Entry) -> Iterator[tuple[Pair, str, bool]]:
    answers = [_part(e, "answer", e.text) for e in (one, other)]
    worked = [(e.reward or 0.0) >= SUCCESS for e in (one, other)]
    forms = [tuple(words_of(answer)) for answer in answers]
    same = forms[0] == forms[1] or (
        _as_number(answers[0]) is not None and _as_number(answers[0]) == _as_number(answers[1])
    )
    shown = [" ".join(answer.split())[:60] for answer in answers]
    if same and worked[0] != worked[1]:
        yield (one, other), f"the same answer '{shown[0]}' was rewarded once and failed once", False
    elif not same and all(worked) and max(map(len, forms)) <= LONGEST_ANSWER:
        yield (one, other), f"two answers to one question, '{shown[0]}' and '{shown[1]}', both claim reward", True


def _as_number(text: str) -> float | None:
    try:
        return float(text.strip().rstrip(".").replace(",", ""))
    except ValueError:
        return None


def _results(entries: Sequence[Entry]) -> Iterator[tuple[Pair, str]]:
    """Tools and subtasks that gave another result the second time."""
    groups: dict[str, list[Entry]] = defaultdict(list)
    for entry in entries:
        names = {"tool": ("tool", "arguments"), "subtask": ("plan",)}.get(entry.kind, ())
        if names and "result" in entry.body and all(name in entry.body for name in names):
            key = "" if entry.kind == "tool" else entry.key
            groups[canonical_json([entry.kind, key, *(entry.body[name] for name in names)])].append(entry)
    for group in groups.values():
        for n, one in enumerate(group):
            for other in group[n + 1 : n + NEIGHBOURS]:
                if one.body["result"] != other.body["result"] and overlapping(one.scope, other.scope):
                    shown = [_part(e, "result", "")[:60] for e in (one, other)]
                    yield (one, other), f"the same {one.kind} gave '{shown[0]}' and '{shown[1]}'"


# ------------------------------------------------------------------------------------------------------------ lessons


def _rule(one: Entry, other: Entry) -> str | None:
    same = numbers_of(one.key) == numbers_of(other.key)
    for clause in clauses_of(one.text):
        for against in clauses_of(other.text):
            if why := contradiction(clause, against, same_numbers=same):
                return why
    return None


def _near_lessons(entries: Sequence[Entry], encoder: Encoder | None) -> Iterator[Pair]:
    """Pairs of lessons that are about the same, the nearest first; each with :data:`NEIGHBOURS` others at most."""
    lessons = [e for e in entries if e.kind in LESSONS]
    near: dict[tuple[int, int], float] = {}
    for i, j, score in [
        *_near_words([e.key for e in lessons]),
        *_near_words([e.text for e in lessons]),
        *(_near_vectors([e.key or e.text for e in lessons], encoder, NEAR_COSINE) if encoder is not None else ()),
    ]:
        near[i, j] = max(score, near.get((i, j), 0.0))
    compared = [0] * len(lessons)
    for (i, j), _ in sorted(near.items(), key=lambda item: (-item[1], item[0])):
        one, other = lessons[i], lessons[j]
        if not overlapping(one.scope, other.scope) or one.replaces == other.id or other.replaces == one.id:
            continue
        if max(compared[i], compared[j]) < NEIGHBOURS:
            compared[i] += 1
            compared[j] += 1
            yield one, other


def _near_words(texts: Sequence[str]) -> Iterator[tuple[int, int, float]]:
    """All pairs of texts whose sets of words overlap by :data:`NEAR_WORDS` (Jaccard), without comparing all with all;
    exactly, but for :data:`COMMON` words.

    Two sets that overlap so share one of their rarest words: of n words one of the n - ⌈t n⌉ + 1 rarest (prefix
    filtering, Chaudhuri et al. 2006). Texts of the same words are one set, whose pairs stop at :data:`NEIGHBOURS`.
    """
    groups: dict[frozenset[str], list[int]] = defaultdict(list)
    counts: dict[str, int] = defaultdict(int)
    for index, text in enumerate(texts):
        if words := frozenset(words_of(text)):
            groups[words].append(index)
    for words in groups:
        for word in words:
            counts[word] += 1
    by_word: dict[str, list[frozenset[str]]] = defaultdict(list)
    for words, members in sorted(groups.items(), key=lambda item: (len(item[0]), item[1])):
        for n, i in enumerate(members):
            yield from ((i, j, 1.0) for j in members[n + 1 : n + NEIGHBOURS])
        rare = sorted(words, key=lambda word: (counts[word], word))
        rare = [w for w in rare[: len(words) - math.ceil(NEAR_WORDS * len(words)) + 1] if counts[w] <= COMMON]
        seen = {id(other): other for word in rare for other in by_word[word]}
        for other in seen.values():
            score = len(words & other) / len(words | other)
            if score >= NEAR_WORDS:
                theirs = groups[other]
                for i in members[:NEIGHBOURS]:
                    yield from ((min(i, j), max(i, j), score) for j in theirs[:NEIGHBOURS])
        for word in rare:
            by_word[word].append(words)


def _near_vectors(texts: Sequence[str], encoder: Encoder, least: float) -> Iterator[tuple[int, int, float]]:
    """All pairs of texts with a cosine of at least ``least``."""
    import numpy as np

    if len(texts) < 2:
        return
    vectors = encoder.encode(texts)
    for start in range(0, len(texts), 512):
        cosines = vectors[start : start + 512] @ vectors.T
        for row, column in np.argwhere(cosines >= least):
            if start + row < column:
                yield int(start + row), int(column), float(cosines[row, column])


# ------------------------------------------------------------------------------------------------------- the evidence

TRUST = {"verified": 2, "user": 2, "imported": 1, "self": 0, "quarantined": -1}


def _favour(first: Entry, second: Entry, sure: float) -> tuple[str | None, str]:
    """Which of two entries the evidence favours, and what that is. ``sure`` is the probability that showing the first
    is worth more. Never the newer for being newer."""
    if max(sure, 1 - sure) >= SURE:
        better = first if sure > 0.5 else second
        return (
            better.id,
            f"showing it was measured to be worth more (probability {min(max(sure, 1 - sure), 0.999):.3g})",
        )
    rewards = [e.reward for e in (first, second)]
    if rewards[0] is not None and rewards[1] is not None and abs(rewards[0] - rewards[1]) >= 0.25:
        better, worse = (first, second) if rewards[0] > rewards[1] else (second, first)
        return better.id, f"its episode earned {better.reward:.2f}, the other's {worse.reward:.2f}"
    if TRUST[first.trust] != TRUST[second.trust]:
        better, worse = (first, second) if TRUST[first.trust] > TRUST[second.trust] else (second, first)
        return better.id, f"it is {better.trust}, the other {worse.trust}"
    counts = [len(set(e.provenance)) for e in (first, second)]
    if abs(counts[0] - counts[1]) >= 2:
        better = first if counts[0] > counts[1] else second
        return better.id, f"it comes from {max(counts)} episodes, the other from {min(counts)}"
    return None, "nothing that was measured decides between them"
