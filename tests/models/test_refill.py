"""Continuous batching: few places, many rollouts, ends at random; against one sequence at a time, and by what it costs.

Promises: a rollout is the plain one whatever row it took and whoever had the row before; each prompt is read once, also
where its rows enter at different times; a free place is filled while the others go on; long prompts are kept once for
all their rows.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from tiny_models import SHARED, VOCAB, WINDOW, make_model  # noqa: E402
from twoclock.models import engine as engine_module  # noqa: E402
from twoclock.models.engine import STEM_TOKENS, Draft, Engine, Prompted  # noqa: E402
from twoclock.models.lean import LeanDecoder  # noqa: E402
from twoclock.models.plain import plain_generate  # noqa: E402
from twoclock.models.views import SLOT_STEP, DecodeView, PrefillView, Slots  # noqa: E402
from twoclock.types import Sampling  # noqa: E402

NO_END: frozenset[int] = frozenset()
ENDS = frozenset(range(0, VOCAB, 6))
SAMPLING = Sampling(max_new_tokens=10)
BROKEN = frozenset(range(5, VOCAB, 12))
"""Tokens whose embedding is NaN in the model that fails."""


@cache
def the_model(name: str) -> Any:
    """``broken``: a Llama that fails after every twelfth token."""
    if name != "broken":
        return make_model(name)
    model = make_model("llama")
    with torch.no_grad():
        model.model.embed_tokens.weight[sorted(BROKEN)] = float("nan")
    return model


@cache
def plain(name: str, prompt: tuple[int, ...], seed: int, sampling: Sampling, ends: frozenset[int]) -> Draft:
    out, logprobs = plain_generate(the_model(name), prompt, seed, sampling, ends)
    if logprobs[-1] != logprobs[-1]:
        return Draft(out[:-1], logprobs[:-1], "error")
    return Draft(out, logprobs, "stop" if out[-1] in ends else "length")


def engine_of(name: str, ends: frozenset[int] = ENDS, *, lean: bool = False, **options: Any) -> Engine:
    engine = Engine(the_model(name), ends, **options)
    if lean:
        windows = dict.fromkeys(range(3), WINDOW if name == "mistral" else 0)
        engine.lean = LeanDecoder.of(the_model(name), windows)
        assert engine.lean is not None
    return engine


def tokens(seed: int, count: int) -> tuple[int, ...]:
    rng = random.Random(seed)
    return tuple(rng.choice([t for t in range(3, VOCAB) if t not in BROKEN]) for _ in range(count))


def workload(seed: int, count: int = 9) -> list[Prompted]:
    """Behind one of two prefixes or none; of 1 to 90 own tokens; for one to four seeds."""
    rng = random.Random(seed)
    asked = []
    for n in range(count):
        prefix = rng.choice([(), tokens(1, 13), tokens(2, 5)])
        own = tokens(1000 * seed + n, rng.choice([1, 2, 5, 11, STEM_TOKENS - 1, STEM_TOKENS, 90]))
        seeds = tuple(rng.randrange(10_000) for _ in range(rng.randint(1, 4)))
        asked.append(Prompted((*prefix, *own), len(prefix), seeds))
    return asked


def assert_plain(
    name: str,
    asked: Sequence[Prompted],
    drafts: Sequence[Sequence[Draft]],
    sampling: Sampling = SAMPLING,
    ends: frozenset[int] = ENDS,
) -> None:
    for prompt, row in zip(asked, drafts, strict=True):
        for seed, draft in zip(prompt.seeds, row, strict=True):
            expected = plain(name, prompt.tokens, seed, sampling, ends)
            assert (draft.tokens, draft.finish) == (expected.tokens, expected.finish)
            assert draft.logprobs == pytest.approx(expected.logprobs, abs=2e-4)


@dataclass
class Trace:
    """What an engine did: the tokens of each pass over prompts; the live rows of each draw; of each decoding step the
    rows, how many were alive, how many waited, and the view through which it looked; all forward passes."""

    reads: list[tuple[int, ...]] = field(default_factory=list)
    drawing: list[int] = field(default_factory=list)
    widths: list[int] = field(default_factory=list)
    live: list[int] = field(default_factory=list)
    waiting: list[int] = field(default_factory=list)
    columns: list[int] = field(default_factory=list)
    levels: list[list[list[Any]]] = field(default_factory=list)
    passes: int = 0


@pytest.fixture
def traced(monkeypatch: pytest.MonkeyPatch) -> Callable[[Engine], Trace]:
    def trace_of(engine: Engine) -> Trace:
        trace = Trace()
        read, draw, step = Engine.read, engine_module._Decoding._draw, engine_module._Decoding._step

        def reading(self: Engine, ids: Sequence[int], view: PrefillView) -> torch.Tensor:
            trace.reads.append(tuple(ids))
            return read(self, ids, view)

        def drawing(self: Any, slots: Sequence[int], drawn: torch.Tensor) -> torch.Tensor:
            trace.drawing.append(sum(self.rows[slot].live for slot in slots))
            return draw(self, slots, drawn)

        def stepping(self: Any, drawn: torch.Tensor) -> None:
            trace.widths.append(len(self.rows))
            trace.live.append(sum(row.live for row in self.rows))
            trace.waiting.append(len(self.waiting))
            step(self, drawn)

        class Watched(DecodeView):
            def __init__(self, slots: Slots, levels: Any, positions: torch.Tensor) -> None:
                super().__init__(slots, levels, positions)
                trace.columns.append(slots.columns)
                trace.levels.append([list(level) for level in self.levels])

        def embedded(*_: Any) -> None:
            trace.passes += 1

        monkeypatch.setattr(Engine, "read", reading)
        monkeypatch.setattr(engine_module._Decoding, "_draw", drawing)
        monkeypatch.setattr(engine_module._Decoding, "_step", stepping)
        monkeypatch.setattr(engine_module, "DecodeView", Watched)
        hooks.append(engine.model.model.embed_tokens.register_forward_hook(embedded))
        return trace

    hooks: list[Any] = []
    yield trace_of
    for hook in hooks:
        hook.remove()


# ------------------------------------------------------------------------------------------------------ token for token


@pytest.mark.parametrize("max_rows", [1, 2, 3, 8])
@pytest.mark.parametrize("name", SHARED)
def test_few_places_and_many_rollouts(name: str, max_rows: int) -> None:
    asked = workload(1)
    drafts = engine_of(name, max_rows=max_rows).generate("", asked, SAMPLING)
    assert_plain(name, asked, drafts)
    assert len({len(d.tokens) for row in drafts for d in row}) > 4


@pytest.mark.parametrize("lean", [False, True])
@pytest.mark.parametrize("seed", range(2, 8))
def test_random_workloads(seed: int, lean: bool) -> None:
    """Number of places, ends, and the tokens that one pass reads differ too."""
    rng = random.Random(seed)
    asked = workload(seed, rng.choice([3, 9, 14]))
    options = {"max_rows": rng.choice([1, 2, 3, 5, 8]), "prefill_tokens": rng.choice([1, 30, 100, 2048])}
    ends = frozenset(range(0, VOCAB, rng.choice([3, 6, 40])))
    drafts = engine_of("llama", ends, lean=lean, prefix_tokens=rng.choice([1, 15, 8192]), **options).generate(
        "", asked, SAMPLING
    )
    assert_plain("llama", asked, drafts, ends=ends)


def test_prompts_of_very_different_length() -> None:
    """A long one's place goes to a short one and back: what the long one left behind is not seen."""
    lengths = [300, 1, 200, 2, 1, 250, 3, 1]
    # Prefixes of one token keep them in this order.
    asked = [Prompted((10 + n, *tokens(n, size)), 1, (n, n + 50)) for n, size in enumerate(lengths)]
    for max_rows in (1, 2, 3):
        engine = engine_of("llama", NO_END, max_rows=max_rows)
        assert_plain("llama", asked, engine.generate("", asked, SAMPLING), ends=NO_END)


def test_the_same_prompt_object_twice() -> None:
    one = Prompted(tokens(1, 6), 2, (1, 2, 3))
    for max_rows in (1, 2, 4, 8):
        drafts = engine_of("llama", max_rows=max_rows).generate("", [one, one], SAMPLING)
        assert_plain("llama", [one, one], drafts)


@pytest.mark.parametrize("max_rows", [1, 2, 3, 64])
def test_one_new_token_needs_no_decoding(max_rows: int, traced: Callable[[Engine], Trace]) -> None:
    sampling = Sampling(max_new_tokens=1)
    engine = engine_of("llama", max_rows=max_rows)
    trace = traced(engine)
    asked = workload(1)
    drafts = engine.generate("", asked, sampling)
    assert trace.widths == []
    assert trace.passes == len(trace.reads)
    assert_plain("llama", asked, drafts, sampling)


@pytest.mark.parametrize("max_rows", [1, 3, 64])
def test_where_every_token_ends_nothing_is_decoded(max_rows: int, traced: Callable[[Engine], Trace]) -> None:
    engine = engine_of("llama", frozenset(range(VOCAB)), max_rows=max_rows)
    trace = traced(engine)
    asked = workload(1)
    drafts = engine.generate("", asked, SAMPLING)
    assert trace.widths == []
    assert {(len(d.tokens), d.finish) for row in drafts for d in row} == {(1, "stop")}
    assert_plain("llama", asked, drafts, ends=frozenset(range(VOCAB)))


# -------------------------------------------------------------------------------------------------- each prompt once


def test_a_group_that_enters_in_parts_reads_its_prompt_once(traced: Callable[[Engine], Trace]) -> None:
    asked = [Prompted((*tokens(1, 13), *tokens(3, 7)), 13, tuple(range(8)))]
    engine = engine_of("llama", max_rows=3)
    trace = traced(engine)
    drafts = engine.generate("", asked, SAMPLING)
    assert sorted(trace.reads, key=len) == [asked[0].tokens[13:], asked[0].tokens[:13]]
    assert trace.passes == 2 + len(trace.widths)
    assert_plain("llama", asked, drafts)


@pytest.mark.parametrize("max_rows", [1, 2, 3, 8, 64])
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_each_prompt_and_each_prefix_is_read_once(seed: int, max_rows: int, traced: Callable[[Engine], Trace]) -> None:
    asked = workload(seed)
    engine = engine_of("llama", max_rows=max_rows)
    trace = traced(engine)
    engine.generate("", asked, SAMPLING)
    prefixes = {p.tokens[: p.prefix] for p in asked if p.prefix}
    wanted = sum(map(len, prefixes)) + sum(len(p.tokens) - p.prefix for p in asked)
    assert sum(map(len, trace.reads)) == wanted
    assert [r for r in trace.reads if r in prefixes] == sorted(prefixes)


@pytest.mark.parametrize("max_rows", [1, 4, 64])
@pytest.mark.parametrize("bound", [1, 20, 100])
def test_a_pass_over_prompts_is_bounded(bound: int, max_rows: int, traced: Callable[[Engine], Trace]) -> None:
    """By ``prefill_tokens``, but for a prompt that is larger alone; and no pass is split that would fit."""
    asked = [Prompted(tokens(n, size), 0, (n,)) for n, size in enumerate([3, 5, 9, 4, 30, 1, 2, 18, 5])]
    engine = engine_of("llama", max_rows=max_rows, prefill_tokens=bound)
    trace = traced(engine)
    drafts = engine.generate("", asked, SAMPLING)
    alone = {p.tokens for p in asked}
    assert all(len(read) <= bound or read in alone for read in trace.reads)
    assert sorted(t for read in trace.reads for t in read) == sorted(t for p in asked for t in p.tokens)
    if max_rows == 64:
        # Short ones first; the six shortest fill a pass of 20 to the last token.
        fits = {1: [1, 2, 3, 4, 5, 5, 9, 18, 30], 20: [20, 9, 18, 30], 100: [77]}
        assert [len(read) for read in trace.reads] == fits[bound]
    assert_plain("llama", asked, drafts)


# ---------------------------------------------------------------------------------------------------------- occupancy


@pytest.mark.parametrize("max_rows", [1, 2, 3, 8, 16])
def test_while_rows_wait_the_places_are_taken(max_rows: int, traced: Callable[[Engine], Trace]) -> None:
    """At each step with rows waiting, more than 7/8 of the places hold a live row: new ones draw as they enter."""
    asked = [Prompted(tokens(n, 1 + n % 7), 0, (n, 100 + n)) for n in range(24)]
    engine = engine_of("llama", max_rows=max_rows)
    trace = traced(engine)
    drafts = engine.generate("", asked, Sampling(max_new_tokens=20))
    busy = [live for live, waiting in zip(trace.live, trace.waiting, strict=True) if waiting]
    assert len(busy) > 5
    assert all(8 * live > 7 * max_rows for live in busy)
    assert max(trace.widths) == max_rows
    lengths = [len(d.tokens) for row in drafts for d in row]
    assert sum(trace.drawing) == sum(lengths)
    assert sum(trace.live) == sum(lengths) - len(lengths)
    # Waves that wait for their longest row would take as many steps as these maxima say.
    waves = sum(max(lengths[i : i + max_rows]) - 1 for i in range(0, len(lengths), max_rows))
    assert len(trace.widths) == waves if max_rows == 1 else len(trace.widths) < 0.8 * waves


def test_a_row_enters_before_the_others_have_ended() -> None:
    """As ``stopped`` sees it: one row goes on to the end, while three others follow each other in the other place."""
    asked = [Prompted((*tokens(1, 4), n), 0, (n,)) for n in range(50, 54)]
    seen: list[tuple[int, ...]] = []

    def stopped(so_far: list[int]) -> bool:
        seen.append(tuple(so_far))
        return len(so_far) == 2 and tuple(so_far) != longest

    longest = tuple(plain("llama", asked[0].tokens, 50, SAMPLING, NO_END).tokens[:2])
    drafts = engine_of("llama", NO_END, max_rows=2).generate("", asked, SAMPLING, stopped)
    assert [len(row[0].tokens) for row in drafts] == [10, 2, 2, 2]
    whole = tuple(drafts[0][0].tokens)
    last = seen.index(whole)
    for row in drafts[1:]:
        assert seen.index(tuple(row[0].tokens)) < last


def test_the_last_rows_are_not_dragged_along(traced: Callable[[Engine], Trace]) -> None:
    """With nobody waiting, ended rows leave once they are a quarter of the rows."""
    engine = engine_of("llama", max_rows=16)
    trace = traced(engine)
    engine.generate("", [Prompted(tokens(1, 5), 0, tuple(range(40)))], Sampling(max_new_tokens=20))
    after = [(w, n) for w, n, waiting in zip(trace.widths, trace.live, trace.waiting, strict=True) if not waiting]
    assert len(after) > 5
    assert all(4 * live > 3 * width for width, live in after)


# -------------------------------------------------------------------------------------------------------------- stems


def stems_of(trace: Trace) -> list[list[int]]:
    """At each step, the lengths of what rows share: prefixes of conditionings, and stems."""
    return [[s.prefix.length for level in levels for s in level] for levels in trace.levels]


@pytest.mark.parametrize(
    ("own", "seeds", "kept"), [(STEM_TOKENS, 4, True), (STEM_TOKENS - 1, 4, False), (STEM_TOKENS + 9, 1, False)]
)
def test_a_long_prompt_is_kept_once(own: int, seeds: int, kept: bool, traced: Callable[[Engine], Trace]) -> None:
    engine = engine_of("llama", NO_END)
    trace = traced(engine)
    asked = [Prompted(tokens(1, own), 0, tuple(range(seeds)))]
    drafts = engine.generate("", asked, SAMPLING)
    assert stems_of(trace) == [[own] if kept else []] * 9
    assert (max(trace.columns) == SLOT_STEP) == kept
    assert_plain("llama", asked, drafts, ends=NO_END)


@pytest.mark.parametrize("lean", [False, True])
@pytest.mark.parametrize("name", ["llama", "mistral"])
def test_stems_behind_prefixes_and_beside_rows_without(
    name: str, lean: bool, traced: Callable[[Engine], Trace]
) -> None:
    prefix = tokens(1, 13)
    asked = [
        Prompted((*prefix, *tokens(2, STEM_TOKENS)), 13, (1, 2, 3)),
        Prompted((*prefix, *tokens(3, STEM_TOKENS + 5)), 13, (4, 5)),
        Prompted((*prefix, *tokens(4, 3)), 13, (6, 7)),
        Prompted(tokens(5, STEM_TOKENS + 20), 0, (8, 9)),
        Prompted(tokens(6, 2), 0, (10,)),
    ]
    engine = engine_of(name, lean=lean)
    trace = traced(engine)
    drafts = engine.generate("", asked, SAMPLING)
    assert sorted(stems_of(trace)[0]) == [13, STEM_TOKENS, STEM_TOKENS + 5, STEM_TOKENS + 20]
    assert [len(level) for level in trace.levels[0]] == [1, 3]
    assert_plain(name, asked, drafts)
    for max_rows in (1, 2, 3, 5):
        assert_plain(name, asked, engine_of(name, lean=lean, max_rows=max_rows).generate("", asked, SAMPLING))


def test_a_stem_is_kept_once_for_rows_that_enter_later(traced: Callable[[Engine], Trace]) -> None:
    """However many times a group's rows enter, its steps look at one stem."""
    engine = engine_of("llama", max_rows=4)
    trace = traced(engine)
    asked = [Prompted(tokens(1, STEM_TOKENS), 0, tuple(range(12)))]
    drafts = engine.generate("", asked, SAMPLING)
    assert_plain("llama", asked, drafts)
    assert stems_of(trace) == [[STEM_TOKENS]] * len(trace.widths)


# -------------------------------------------------------------------------------------------------------------- slots


def test_capacity_grows_in_steps(traced: Callable[[Engine], Trace]) -> None:
    """Over several borders, in the prompt, in the answer, and at the borders themselves."""
    sampling = Sampling(max_new_tokens=2 * SLOT_STEP + 5)
    for size in (1, SLOT_STEP - 1, SLOT_STEP, SLOT_STEP + 1, 3 * SLOT_STEP):
        engine = engine_of("llama", NO_END)
        trace = traced(engine)
        asked = [Prompted(tokens(size, size), 0, (1, 2))]
        drafts = engine.generate("", asked, sampling)
        # Before the n-th step the slot holds the prompt and n tokens, and takes one more.
        needed = [size + n + 1 for n in range(sampling.max_new_tokens - 1)]
        assert trace.columns == [-(-n // SLOT_STEP) * SLOT_STEP for n in needed]
        assert_plain("llama", asked, drafts, sampling, NO_END)


def filled(lengths: Sequence[int]) -> PrefillView:
    """A view as after a pass: two layers; the key of prompt p at column c is 100 p + c."""
    view = PrefillView(lengths, [0] * len(lengths), (), torch.device("cpu"))
    longest = max(lengths)
    keys = torch.arange(len(lengths))[:, None, None, None] * 100.0 + torch.arange(longest)[None, None, :, None]
    view.keys = [keys.expand(-1, 2, -1, 3) + layer * 1000 for layer in range(2)]
    view.values = [-k for k in view.keys]
    return view


def test_slots_by_hand() -> None:
    view = filled([3, 5, 20])
    slots = Slots(4, view)
    assert slots.columns == 0
    slots.put(torch.tensor([2, 0]), view, torch.tensor([1, 0]), torch.tensor([5, 3]))
    assert slots.columns == SLOT_STEP
    assert slots.lengths.tolist() == [3, 0, 5, 0]
    assert slots.keys[0].shape == (4, 2, SLOT_STEP, 3)
    assert slots.keys[0][2, 0, :5, 0].tolist() == [100, 101, 102, 103, 104]
    assert slots.keys[1][0, 1, :3, 2].tolist() == [1000, 1001, 1002]
    assert slots.values[0][2, 1, :5, 1].tolist() == [-100, -101, -102, -103, -104]
    assert bool((slots.keys[0][[1, 3]] == 0).all())
    slots.reserve(SLOT_STEP)
    assert slots.columns == SLOT_STEP
    # A longer one: the buffer grows, what was there stays, and what is new is 0 and no NaN.
    slots.put(torch.tensor([1]), view, torch.tensor([2]), torch.tensor([20]))
    assert slots.columns == 2 * SLOT_STEP
    assert slots.lengths.tolist() == [3, 20, 5, 0]
    assert slots.keys[0][1, 0, :20, 0].tolist() == [200.0 + c for c in range(20)]
    assert slots.keys[0][2, 0, :5, 0].tolist() == [100, 101, 102, 103, 104]
    assert all(bool((b[:, :, 20:] == 0).all()) for b in (*slots.keys, *slots.values))
    slots.keep(torch.tensor([2, 1]))
    assert slots.lengths.tolist() == [5, 20]
    assert slots.keys[0][0, 0, :5, 0].tolist() == [100, 101, 102, 103, 104]
    assert slots.values[1][1, 0, 0, 0].item() == -1200.0


def test_a_full_slot_has_room_for_the_next_token() -> None:
    """A prompt of exactly one step's columns: the first drawn token needs a column of its own."""
    view = filled([SLOT_STEP])
    slots = Slots(1, view)
    slots.put(torch.tensor([0]), view, torch.tensor([0]), torch.tensor([SLOT_STEP]))
    assert slots.columns == 2 * SLOT_STEP
    slots = Slots(1, view)
    slots.put(torch.tensor([0]), view, torch.tensor([0]), torch.tensor([SLOT_STEP - 1]))
    assert slots.columns == SLOT_STEP
    slots.lengths += 1
    DecodeView(slots, [], torch.tensor([SLOT_STEP]))
    assert slots.columns == 2 * SLOT_STEP


# ------------------------------------------------------------------------------------------------------------ failures


@pytest.mark.parametrize("lean", [False, True])
@pytest.mark.parametrize("max_rows", [1, 2, 3, 8, 64])
def test_a_row_that_fails_disturbs_no_other_and_its_place_is_taken(max_rows: int, lean: bool) -> None:
    """A twelfth of the tokens has an embedding of NaN: the row that draws one fails at the next token, the rows beside
    it and the one that gets its place are the plain ones."""
    asked = workload(1)
    drafts = engine_of("broken", NO_END, lean=lean, max_rows=max_rows).generate("", asked, SAMPLING)
    assert_plain("broken", asked, drafts, ends=NO_END)
    finishes = [d.finish for row in drafts for d in row]
    assert finishes.count("error") > 5
    assert finishes.count("length") > 5


@pytest.mark.parametrize("at", [0, 4, -1])
@pytest.mark.parametrize("prefix", [0, 3])
def test_a_prompt_that_fails_disturbs_no_other(at: int, prefix: int) -> None:
    """First, in the middle and last in the pass, at its first token and its last; shorter and longer than the rest."""
    bad = min(BROKEN)
    for sizes in ([6, 2, 9], [9, 6, 2], [2, 9, 6]):
        for which in range(3):
            own = [list(tokens(n, size)) for n, size in enumerate(sizes)]
            own[which][min(at, sizes[which] - 1)] = bad
            asked = [Prompted((*tokens(9, prefix), *o), prefix, (n, n + 10)) for n, o in enumerate(own)]
            drafts = engine_of("broken", NO_END).generate("", asked, SAMPLING)
            assert_plain("broken", asked, drafts, ends=NO_END)
            assert [d.finish for d in drafts[which]] == ["error", "error"]


def test_where_all_rows_fail_the_call_ends() -> None:
    asked = [Prompted((*tokens(n, 3), min(BROKEN)), 0, (1, 2)) for n in range(5)]
    for max_rows in (1, 3, 64):
        drafts = engine_of("broken", max_rows=max_rows).generate("", asked, SAMPLING)
        assert {(d.finish, len(d.tokens), len(d.logprobs)) for row in drafts for d in row} == {("error", 0, 0)}
