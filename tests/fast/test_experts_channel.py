"""The experts channel over a scripted policy whose answers depend on what is mixed in: what it chooses and refuses."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from prompts_bench import FakeBench, evidence_of  # noqa: E402

from twoclock.errors import ConfigError, StoreError, UnsupportedError  # noqa: E402
from twoclock.fast import build_fast  # noqa: E402
from twoclock.fast.experts import ExpertsChannel, ExpertsConfig, ExpertsState  # noqa: E402
from twoclock.fast.experts.asking import asked, classifier_rows, named, winner  # noqa: E402
from twoclock.fast.experts.state import Mixture  # noqa: E402
from twoclock.models.scripted import ScriptedPolicy  # noqa: E402
from twoclock.nn.svf import Factoring, SingularChange  # noqa: E402
from twoclock.seeding import child_rng  # noqa: E402
from twoclock.types import Budget, Completion, Conditioning, Declined, Delta, Item, Proposal  # noqa: E402

BASE = "b" * 64
MODULES = ("layers.0.mlp.up", "layers.0.mlp.down", "layers.10.mlp.up")


class FakeLibrary:
    """Experts whose every vector is one constant, so that a mixture can be read off what was mixed."""

    def __init__(self, sizes: Mapping[str, float] | None = None, base: str = BASE) -> None:
        self.sizes = dict(sizes or {"sums": 1.0, "words": 100.0, "judge": 1e6})
        self.base = base

    @property
    def kinds(self) -> dict[str, str]:
        return {name: f"about {name}" for name in self.sizes}

    def require_base(self, base_hash: str) -> None:
        if base_hash != self.base:
            raise UnsupportedError("trained on other weights")

    def delta(self, name: str) -> Delta:
        offsets = {module: torch.full((2,), self.sizes[name], dtype=torch.float64) for module in MODULES}
        change = SingularChange(offsets, Factoring(), "spectrum")
        return Delta(f"{name}-{self.sizes[name]}", "svf", self.base, change)


def made(**options: Any) -> ExpertsChannel:
    return ExpertsChannel(ExpertsConfig(**{"experts": ("sums", "words"), **options}), FakeLibrary())


def helped(wanted: Mapping[str, float]) -> Any:
    """Right the more often the nearer the first vector's value is to that of the wanted mixture."""
    target = sum(FakeLibrary().sizes[name] * amount for name, amount in wanted.items())

    def answer(item: Item, told: Conditioning, seed: int) -> str:
        value = 0.0 if told.mixture is None else float(told.mixture.payload.offsets[MODULES[0]][0])
        far = abs(value - target) / 100
        right = child_rng("fake", seed).random() < max(0.0, 0.95 - 0.6 * far)
        return str(item.reference) if right else "x"

    return answer


def bench_for(wanted: Mapping[str, float], **options: Any) -> FakeBench:
    bench = FakeBench(helped(wanted), **options)
    bench.card = replace(bench.card, trainable=True)
    return bench


def propose(
    channel: ExpertsChannel, bench: Any, state: ExpertsState | None = None, seed: int = 7, **budget: Any
) -> Any:
    state = channel.init(bench.card, 0) if state is None else state
    return channel.propose(bench, state, evidence_of(bench, round=1), Budget(**budget), seed)


# -------------------------------------------------------------------------------------------------------- the search


def test_the_search_finds_the_expert_that_helps_and_says_so() -> None:
    channel, bench = made(shots=24, check_items=40), bench_for({"words": 1.0})
    offer = propose(channel, bench)
    assert isinstance(offer, Proposal)
    mixture = offer.state.mixture("digits")
    assert dict(mixture.amounts)["words"][0] > 0.7
    assert channel.condition(offer.state, "digits").mixture is not None
    assert channel.condition(offer.state, "another").is_identity
    (write,) = offer.writes
    assert write.text == f"the base → {mixture} on task 'digits'"
    assert (write.kind, write.lesson) == ("mixture", "digits")
    assert offer.metrics["search_gain"] > 0.2
    assert offer.cost.rollouts == bench.spent.rollouts <= 24 * 12 * 4 + 3 * 40
    searched = {i for ids, *_ in bench.calls[:-1] for i in ids}
    checked = set(bench.calls[-1][0])
    assert len(searched) == 24
    assert len(checked) == 40
    assert not searched & checked
    assert all(i.startswith("train-") for i in searched | checked), "a search sees training items alone"


def test_each_iterations_candidates_share_their_items_and_random_numbers() -> None:
    bench = bench_for({"words": 1.0})
    propose(made(), bench)
    calls = bench.calls
    assert len({ids for ids, *_ in calls[:-1]}) == 1
    assert len({seed for *_, seed in calls}) == len(calls), "each iteration has random numbers of its own"
    assert all(bench.paired)
    assert len(calls) == 5
    first = {c.id for c in calls[0][1]}
    alone = {Conditioning(mixture=FakeLibrary().delta(n)).id for n in ("sums", "words")}
    assert {Conditioning().id, *alone} <= first, "the base and each expert alone are among the first candidates"


def test_where_the_base_is_best_nothing_is_offered() -> None:
    offer = propose(made(shots=24, check_items=40), bench_for({}))
    assert isinstance(offer, Declined)
    assert "nothing beat what is deployed" in offer.reason or "came back to what is deployed" in offer.reason


@pytest.mark.parametrize(("grain", "count"), [("expert", 1), ("layer", 2), ("vector", 3)])
def test_the_grain_says_what_has_an_amount_of_its_own(grain: Any, count: int) -> None:
    offer = propose(made(grain=grain, shots=24, check_items=40), bench_for({"words": 1.0}))
    assert isinstance(offer, Proposal)
    mixture = offer.state.mixture("digits")
    assert {len(row) for _, row in mixture.amounts} == {count}
    channel = made(grain=grain)
    assert channel.load(channel.dump(offer.state)) == offer.state
    told = made(grain="expert").condition(offer.state, "digits")
    assert told == channel.condition(offer.state, "digits"), "what is deployed does not hang on what is searched for"


def test_the_same_seed_gives_the_same_proposal() -> None:
    one, other, another = (propose(made(), bench_for({"words": 0.6}), seed=s) for s in (1, 1, 2))
    assert one == other
    assert another.state != one.state or another.cause != one.cause


@pytest.mark.parametrize("limit", [0, 5, 11, 30, 47, 60, 100, 170, 400])
def test_no_more_is_spent_than_there_is(limit: int) -> None:
    bench = bench_for({"words": 1.0}, rollouts=limit)
    offer = propose(made(), bench, rollouts=limit)
    assert bench.spent.rollouts <= limit
    if limit < 30:
        assert isinstance(offer, Declined)
        assert "too small" in offer.reason
    else:
        assert bench.spent.rollouts > 0
    tight = bench_for({"words": 1.0}, tokens=limit)
    assert isinstance(propose(made(), tight), Declined | Proposal)
    assert tight.spent.tokens <= limit


def test_a_deployed_mixture_is_where_the_next_search_begins() -> None:
    channel = made(shots=24, check_items=40)
    state = channel.init(bench_for({}).card, 0)
    state = state.with_mixture("digits", Mixture.of("expert", {"sums": (1.0,)}), {"sums": "sums-1.0"})
    bench = bench_for({"words": 1.0})
    offer = propose(channel, bench, state)
    assert isinstance(offer, Proposal)
    deployed = channel.condition(state, "digits").id
    assert all(deployed in {c.id for c in call[1]} for call in (bench.calls[0], bench.calls[-1]))


# -------------------------------------------------------------------------------------------------------- by asking


class AskedBench(FakeBench):
    """Keeps under what it was asked to write."""

    under: list[Conditioning | None]

    def write(self, prompt: str, *, max_new_tokens: int, seed: int, under: Conditioning | None = None) -> Completion:
        self.under = [*getattr(self, "under", []), under]
        return super().write(prompt, max_new_tokens=max_new_tokens, seed=seed)


def asking(says: str, **options: Any) -> AskedBench:
    policy = ScriptedPolicy(lambda prompt, told, seed: says)
    bench = AskedBench(lambda item, told, seed: "x", policy=policy, **options)
    bench.card = replace(bench.card, trainable=True)
    return bench


def test_the_model_is_asked_which_expert_a_question_is_for() -> None:
    bench = asking("It is Words.")
    offer = propose(made(strategy="prompt", ask_items=3), bench)
    assert isinstance(offer, Proposal)
    assert str(offer.state.mixture("digits")) == "1 words"
    assert channel_mixture(offer) == FakeLibrary().delta("words")
    assert offer.cause == "the model says of 3 questions: 3 words"
    assert offer.metrics["share"] == 1.0
    assert len(bench.written) == 3
    assert "- sums: about sums" in bench.written[0]
    assert "judge" not in bench.written[0]
    again = propose(made(strategy="prompt"), asking("words"), offer.state)
    assert isinstance(again, Declined)
    assert "is deployed already" in again.reason
    nobody = propose(made(strategy="prompt"), asking("other"))
    assert isinstance(nobody, Declined)
    assert "no kind is named most often" in nobody.reason
    assert isinstance(propose(made(strategy="prompt"), asking("words", rollouts=0), rollouts=0), Declined)


def channel_mixture(offer: Any) -> Delta | None:
    return made().condition(offer.state, "digits").mixture


def test_the_classifier_is_asked_under_its_own_weights() -> None:
    bench = asking("sums")
    offer = propose(made(strategy="classifier", classifier="judge"), bench)
    assert isinstance(offer, Proposal)
    assert {c.mixture for c in bench.under if c} == {FakeLibrary().delta("judge")}
    assert offer.cause.startswith("the classifier 'judge' says of")


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("words", "words"), ("  WORDS!", "words"), ("It is sums, not words", "sums"), ("swords", None), ("", None),
        ("none: other", "other"), ("word-sums", None), ("sums-of-words", None), ("42", None),
    ],
)  # fmt: skip
def test_what_an_answer_names(answer: str, expected: str | None) -> None:
    assert named(answer, ["sums", "words"]) == expected


def test_names_within_names_and_names_with_dots() -> None:
    assert named("add.two of them", ["add", "add.two"]) == "add.two"
    assert named("add then", ["add", "add.two"]) == "add"


def test_votes() -> None:
    assert winner(["a", "b", "a", None])[0] == "a"
    assert winner(["a", "b"])[0] is None
    assert winner([None, "other", "a"])[0] is None
    assert winner([])[0] is None


def test_the_rows_a_classifier_is_trained_on() -> None:
    kinds = {"sums": "adding", "words": ""}
    rows = classifier_rows({"sums": ["1+1?", "2+2?"], "words": ["who?"]}, kinds, 3, others=["why?"])
    assert sorted(row["answer"] for row in rows) == ["other", "sums", "sums", "words"]
    assert {row["prompt"] for row in rows} == {asked(q, kinds) for q in ("1+1?", "2+2?", "who?", "why?")}
    assert rows == classifier_rows({"sums": ["1+1?", "2+2?"], "words": ["who?"]}, kinds, 3, others=["why?"])


# ------------------------------------------------------------------------------------------- state, lessons, refusals


def test_lessons_are_mixtures_by_task() -> None:
    channel = made()
    offer = propose(made(strategy="prompt"), asking("words"))
    (lesson,) = channel.lessons(offer.state)
    assert (lesson.id, lesson.text, lesson.tasks) == ("digits", "experts in the weights: 1 words", ("digits",))
    assert lesson.says == channel.condition(offer.state, "digits")
    gone = channel.without(offer.state, ["digits"])
    assert gone == channel.init(bench_for({}).card, 0)
    with pytest.raises(ConfigError, match="unknown lesson 'digit'"):
        channel.without(offer.state, ["digit"])


def test_alternatives_are_the_base_and_each_expert() -> None:
    channel = made()
    state = channel.init(bench_for({}).card, 0)
    found = channel.alternatives(state, "digits", 9, 0)
    assert [c.mixture for c in found] == [None, FakeLibrary().delta("sums"), FakeLibrary().delta("words")]
    assert channel.alternatives(state, "digits", 2, 0) == found[:2]


def test_one_mixture_for_every_task() -> None:
    offer = propose(made(strategy="prompt", scope="stream"), asking("words"))
    channel = made(scope="stream")
    assert channel.condition(offer.state, "another").mixture == FakeLibrary().delta("words")
    assert offer.writes[0].text.endswith("on every task")


def test_an_expert_that_was_replaced_is_refused() -> None:
    offer = propose(made(strategy="prompt"), asking("words"))
    changed = ExpertsChannel(ExpertsConfig(), FakeLibrary({"sums": 1.0, "words": 5.0}))
    with pytest.raises(StoreError, match="another than the one that was deployed"):
        changed.condition(offer.state, "digits")
    gone = ExpertsChannel(ExpertsConfig(), FakeLibrary({"sums": 1.0}))
    with pytest.raises(StoreError, match="unknown expert 'words'"):
        gone.load(made().dump(offer.state))


def test_other_weights_and_endpoints() -> None:
    bench = bench_for({})
    with pytest.raises(UnsupportedError, match="other weights"):
        made().init(replace(bench.card, base_hash="c" * 64), 0)
    remote = FakeBench(helped({}))
    offer = propose(made(), remote, made().init(remote.card, 0))
    assert isinstance(offer, Declined)
    assert "behind an endpoint" in offer.reason
    with pytest.raises(UnsupportedError, match="start a run of its own"):
        propose(made(), bench, ExpertsState("c" * 64))
    bare = ExpertsChannel()
    offer = propose(bare, bench)
    assert isinstance(offer, Declined)
    assert "twoclock experts add" in offer.reason


@pytest.mark.parametrize(
    "change",
    [
        {"format": 9}, {"channel": "proxy"}, {"mixtures": 3},
        {"mixtures": {"t": {"grain": "x", "amounts": {"a": [1]}}}},
        {"mixtures": {"t": {"grain": "expert", "amounts": {"a": [0.0]}}}, "known": {"a": "1"}},
        {"mixtures": {"t": {"grain": "expert", "amounts": {"a": [1.0]}}}},
        {"mixtures": {"t": {"grain": "expert", "amounts": {"a": [float("nan")]}}}, "known": {"a": "1"}},
    ],
)  # fmt: skip
def test_states_that_are_none(change: dict[str, Any]) -> None:
    channel = made()
    good = json.loads(channel.dump(channel.init(bench_for({}).card, 0)))
    with pytest.raises(StoreError, match="not a state of the channel 'experts'"):
        channel.load(json.dumps({**good, **change}).encode())


def test_every_mistake_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        build_fast("experts", {"strategy": "prompt", "low": 0.5, "shots": 1, "elite": 1.0, "libary": "x"})
    text = str(caught.value)
    assert all(word in text for word in ("low = 0.5", "shots = 1", "elite = 1.0", "did you mean 'library'"))
    for options, told in (
        ({"strategy": "classifier"}, "needs classifier"),
        ({"high": float("nan")}, "finite"),
        ({"experts": ["a", "a"]}, "named twice"),
        ({"experts": ["a"]}, "no library"),
        ({"library": "nowhere"}, "there is no library of experts"),
        ({"strategy": "gradient"}, "strategy"),
    ):
        with pytest.raises(ConfigError, match=told):
            build_fast("experts", options)
    with pytest.raises(ConfigError, match="did you mean 'words'"):
        made(experts=("word",))
