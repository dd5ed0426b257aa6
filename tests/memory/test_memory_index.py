"""The index against slow oracles: BM25 by its equation, cosines one by one, fusion by hand; and what it never tells."""

from __future__ import annotations

import math
import random
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from twoclock.errors import ConfigError
from twoclock.memory.bm25 import K1, B
from twoclock.memory.index import FUSION, Found, Index
from twoclock.memory.nearest import best_by_id, floor_of
from twoclock.memory.records import Entry, Kind, Scope
from twoclock.memory.words import KEY_WEIGHT, counted, words_of
from twoclock.seeding import child_rng

VOCABULARY = [f"w{n}" for n in range(40)]
OPEN = Scope()


def entry_of(rng: random.Random, scopes: list[Scope]) -> Entry:
    def text(most: int) -> str:
        # Rare words and common ones, as language has them.
        return " ".join(VOCABULARY[min(int(rng.expovariate(0.15)), 39)] for _ in range(rng.randint(1, most)))

    kind: Kind = rng.choice(["case", "note", "tool"])
    expires = rng.choice([None, None, 5.0, 15.0])
    return Entry(kind=kind, key=text(6), text=text(12), scope=rng.choice(scopes), expires=expires)


def vector_of(rng: random.Random, dimension: int) -> np.ndarray:
    raw = np.array([rng.gauss(0, 1) for _ in range(dimension)])
    return (raw / np.linalg.norm(raw)).astype(np.float32)


def put(index: Index, entry: Entry, vector: np.ndarray | None = None) -> None:
    index.put(
        entry.id,
        counted(entry.key, entry.text),
        kind=entry.kind,
        scope=entry.scope,
        expires=entry.expires,
        vector=vector,
    )


def naive(
    entries: dict[str, Entry],
    vectors: dict[str, np.ndarray],
    query: str,
    vector: np.ndarray | None,
    *,
    scope: Scope,
    kinds: set[str] | None,
    now: float,
    k: int,
    candidates: int,
) -> list[tuple[str, float, float | None, float | None]]:
    """The definition, entry by entry."""
    seen = {
        i: e
        for i, e in entries.items()
        if scope.may_read(e.scope) and (kinds is None or e.kind in kinds) and e.live(now)
    }
    counts = {i: Counter(words_of(e.text)) + Counter(words_of(e.key) * KEY_WEIGHT) for i, e in seen.items()}
    lexical = {}
    if seen:
        mean = sum(sum(c.values()) for c in counts.values()) / len(seen)
        for i, count in counts.items():
            total = 0.0
            for word in set(words_of(query)):
                with_word = sum(1 for c in counts.values() if c[word])
                if count[word]:
                    idf = math.log(1 + (len(seen) - with_word + 0.5) / (with_word + 0.5))
                    norm = K1 * (1 - B + B * sum(count.values()) / mean)
                    total += idf * count[word] * (K1 + 1) / (count[word] + norm)
            if total:
                lexical[i] = total
    cosines = {i: float(vectors[i].astype(float) @ vector.astype(float)) for i in seen} if vector is not None else {}
    lists = [sorted(lexical, key=lambda i: (-round(lexical[i], 9), i))[: max(k, candidates)]]
    lists.append(sorted((i for i in cosines if cosines[i] > 0), key=lambda i: (-cosines[i], i))[: max(k, candidates)])
    fused: Counter[str] = Counter()
    for ranked in lists:
        for rank, i in enumerate(ranked, 1):
            fused[i] += 1 / (FUSION + rank)  # type: ignore[assignment]
    best = sorted(fused, key=lambda i: (-fused[i], i))[:k]
    return [(i, fused[i], cosines.get(i), lexical.get(i)) for i in best]


def same(found: list[Found], expected: list[tuple[str, float, float | None, float | None]]) -> None:
    assert [f.id for f in found] == [e[0] for e in expected]
    for one, (_, score, similarity, lexical) in zip(found, expected, strict=True):
        assert one.score == pytest.approx(score, abs=1e-12)
        assert one.similarity == (None if similarity is None else pytest.approx(similarity, abs=1e-6))
        assert one.lexical == (None if lexical is None else pytest.approx(lexical, rel=1e-9))


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("dimension", [0, 8])
def test_equals_the_definition(seed: int, dimension: int) -> None:
    rng = child_rng("index oracle", seed, dimension)
    scopes = [OPEN, Scope(user="a"), Scope(user="b"), Scope(user="a", task="t"), Scope(session="s")]
    index, entries, vectors = Index(dimension), {}, {}
    for _ in range(rng.choice([1, 5, 120, 120])):
        entry = entry_of(rng, scopes)
        vectors[entry.id] = vector_of(rng, dimension) if dimension else np.zeros(0, np.float32)
        entries[entry.id] = entry
        put(index, entry, vectors[entry.id])
    for gone in rng.sample(sorted(entries), len(entries) // 5):
        del entries[gone]
        index.drop(gone)
    assert len(index) == len(entries)
    for _ in range(8):
        query = " ".join(rng.choices([*VOCABULARY, "unknown"], k=rng.randint(1, 12)))
        vector = vector_of(rng, dimension) if dimension else None
        asked = {
            "scope": rng.choice([*scopes, Scope(user="nobody")]),
            "kinds": rng.choice([None, {"case"}, {"note", "tool"}]),
            "now": rng.choice([0.0, 5.0, 20.0]),
            "k": rng.choice([1, 5, 50]),
            "candidates": rng.choice([1, 10, 100]),
        }
        found = index.search(query, vector=vector, **asked)
        same(found, naive(entries, vectors, query, vector, **asked))


def test_a_case_worked_by_hand() -> None:
    """Two notes; 'red' stands in one of them, three times for the key; |d| = 3 + 1 and 3, so the mean is 3.5."""
    index = Index()
    red = Entry(kind="note", key="red", text="fox")
    dog = Entry(kind="note", key="dog", text="")
    put(index, red)
    put(index, dog)
    (found,) = index.search("Red!", scope=OPEN, k=5, now=0.0)
    norm = 1.2 * (0.25 + 0.75 * 4 / 3.5)
    assert found.lexical == pytest.approx(math.log(1 + 1.5 / 1.5) * 3 * 2.2 / (3 + norm))
    assert (found.id, found.score, found.similarity) == (red.id, pytest.approx(1 / 61), None)


def test_no_trace_of_what_the_reader_may_not_see_nor_of_what_is_gone() -> None:
    """Order and every score are bit for bit those of an index that never held the rest."""
    rng = child_rng("index trace", 0)
    mine, theirs = Scope(user="me"), Scope(user="them")
    own = [entry_of(rng, [mine, OPEN]) for _ in range(120)]
    own = list({e.id: e for e in own}.values())
    others = [entry_of(rng, [theirs, Scope(user="me", session="x")]) for _ in range(400)]
    vectors = {e.id: vector_of(rng, 24) for e in [*own, *others]}
    alone, crowded = Index(24), Index(24)
    for entry in own:
        put(alone, entry, vectors[entry.id])
    mixed = [*own, *others]
    rng.shuffle(mixed)
    for entry in mixed:
        put(crowded, entry, vectors[entry.id])
    passing = [e for e in (entry_of(rng, [OPEN]) for _ in range(50)) if e.id not in vectors]
    for entry in passing:
        put(crowded, entry, vector_of(rng, 24))
        crowded.drop(entry.id)
    for n in range(30):
        query, vector = " ".join(rng.choices(VOCABULARY, k=1 + n % 9)), vector_of(rng, 24)
        for k in (1, 7, 200):
            wanted = alone.search(query, scope=mine, k=k, now=1.0, vector=vector, candidates=20)
            assert crowded.search(query, scope=mine, k=k, now=1.0, vector=vector, candidates=20) == wanted
            assert alone.search(query, scope=mine, k=k, now=1.0) == crowded.search(query, scope=mine, k=k, now=1.0)


@pytest.mark.parametrize("share", [0.02, 1.0])
def test_the_nearest_are_exact_at_size(share: float) -> None:
    """Against all cosines in float64, with and without a scope that leaves few; near-duplicates sit on the edge."""
    maker = np.random.default_rng(7)
    n, d = 4000, 48
    matrix = maker.standard_normal((n, d))
    matrix[: n // 2] = matrix[0] + 1e-4 * maker.standard_normal((n // 2, d))
    matrix = (matrix / np.linalg.norm(matrix, axis=1, keepdims=True)).astype(np.float32)
    index, visible = Index(d), []
    for row in range(n):
        mine = maker.random() < share
        scope = Scope(user="me") if mine else Scope(user="them")
        index.put(f"{row:05}", {}, kind="note", scope=scope, vector=matrix[row])
        visible += [row] if mine else []
    for query in (matrix[0], matrix[n - 1], -matrix[0]):
        exact = (matrix[visible].astype(float) * query.astype(float)).sum(axis=1)
        order = sorted(range(len(visible)), key=lambda i: (-exact[i], visible[i]))
        wanted = [f"{visible[i]:05}" for i in order if exact[i] > 0][:25]
        found = index.search("", scope=Scope(user="me"), k=25, now=0.0, vector=query, candidates=25)
        assert [f.id for f in found] == wanted


@pytest.mark.parametrize("levels", [2, 1000, 10**9])
def test_the_floor_is_the_score_that_so_many_reach(levels: int) -> None:
    maker = np.random.default_rng(5)
    for n in (0, 1, 50, 51, 5_000, 40_000):
        scores = maker.integers(-levels, levels, n).astype(float)
        for depth in (1, 50, 100):
            wanted = np.sort(scores)[-depth] if n > depth else 0.0
            assert floor_of(scores, depth) == wanted


@pytest.mark.parametrize("levels", [1, 2, 300])
def test_the_best_are_those_of_a_full_sort(levels: int) -> None:
    maker = np.random.default_rng(6)
    ids = [f"{n:04x}" for n in maker.permutation(3000)]
    rows = np.sort(maker.choice(3000, 1500, replace=False))
    scores = maker.integers(1, levels + 1, 1500).astype(float)
    wanted = sorted(range(1500), key=lambda n: (-scores[n], ids[rows[n]]))
    for depth in (1, 20, 1499, 1500, 9000):
        assert best_by_id(rows, scores, ids, depth).tolist() == rows[wanted[:depth]].tolist()


@given(st.text(max_size=200), st.text(max_size=50))
@settings(max_examples=150, deadline=None)
def test_no_text_breaks_a_search(query: str, key: str) -> None:
    index = Index()
    index.put("one", counted(key, 'AND OR NOT "*" NEAR('), kind="note", scope=OPEN)
    found = index.search(query, scope=OPEN, k=3, now=0.0)
    assert bool(found) == bool(set(words_of(query)) & set(counted(key, 'AND OR NOT "*" NEAR(')))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("How MANY apples?", ["how", "many", "apples"]),
        ("getUserName(x)", ["getusername", "get", "user", "name", "x"]),
        ("get_user_name HTTPServer2", ["get_user_name", "get", "user", "name", "httpserver2", "http", "server", "2"]),
        ("naïve ﬁle ＡＢ", ["naive", "file", "ab"]),
        ("記憶を探す", ["記憶", "憶を", "を探", "探す"]),
        ("हिन्दी में", ["हिन्दी", "में"]),
        ("한국어", ["한국", "국어"]),
        ("…—!? 🙂", []),
        ("x" * 1000, ["x" * 64]),
    ],
)
def test_words(text: str, words: list[str]) -> None:
    assert words_of(text) == words


def test_a_text_is_found_by_its_own_words_in_any_case() -> None:
    for text in ("straße", "STRASSE", "Ｆｕｌｌ", "İstanbul", "größte_Zahl"):
        assert set(words_of(text.upper().lower())) & set(words_of(text))


def test_an_entry_that_comes_back_and_its_expiry() -> None:
    index = Index()
    entry = Entry(kind="note", key="red", text="")
    put(index, entry)
    index.drop(entry.id)
    index.drop(entry.id)
    assert (len(index), entry.id in index) == (0, False)
    assert index.search("red", scope=OPEN, k=1, now=0.0) == []
    index.put(entry.id, {"red": 3}, kind="note", scope=OPEN, expires=10.0)
    assert [len(index.search("red", scope=OPEN, k=1, now=now)) for now in (9.9, 10.0)] == [1, 0]


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"k": -1}, "k counts entries, 0 or more; got -1"),
        ({"k": 2.5}, "k counts entries"),
        ({"candidates": 0}, "candidates counts entries, 1 or more"),
        ({"now": math.nan}, "now must be a finite time"),
        ({"kinds": ["casse"]}, "unknown kind of entry 'casse'"),
        ({"kinds": "case"}, "write kinds=['case']"),
        ({"query": None}, "a query is a text; got None"),
        ({"scope": "me"}, "a reader is a Scope; got 'me'"),
    ],
)
def test_bad_questions_are_refused_with_what_was_expected(given: dict[str, object], told: str) -> None:
    asked = {"query": "red", "scope": OPEN, "k": 1, "now": 0.0, **given}
    with pytest.raises(ConfigError, match=told.replace("[", r"\[").replace("]", r"\]")):
        Index().search(asked.pop("query"), **asked)
