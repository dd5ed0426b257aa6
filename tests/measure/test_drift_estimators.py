"""Sampled divergences against exact ones; samples that cannot tell them are refused, and wrong labels noticed."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy import special

from twoclock.measure import SampledLogprobs, categorical_kl, estimate_drift, estimate_drifts
from twoclock.types import Sampling

SIZE = 50


class Chain:
    """Two Markov chains over a 50-way softmax: the exact divergence along any sampled prefix is known."""

    def __init__(self, shift: float, seed: int = 0) -> None:
        rng = np.random.default_rng(seed)
        logits = rng.normal(0, 1, (SIZE, SIZE))
        self.live = special.log_softmax(logits, axis=-1)
        self.base = special.log_softmax(logits + shift * rng.normal(0, 1, (SIZE, SIZE)), axis=-1)

    def record(self, sampler: str, sequences: int, length: int, seed: int = 1, **more: Any) -> SampledLogprobs:
        rng = np.random.default_rng(seed)
        states, who = rng.integers(0, SIZE, sequences), getattr(self, sampler)
        rows, exact = {"live": [], "base": []}, np.zeros(sequences)
        p, q = (self.live, self.base) if sampler == "live" else (self.base, self.live)
        by_state = categorical_kl(p, q)
        for _ in range(length):
            draws = (np.cumsum(np.exp(who[states]), axis=-1) > rng.random((sequences, 1))).argmax(axis=-1)
            for name in ("live", "base"):
                rows[name].append(getattr(self, name)[states, draws])
            exact += by_state[states]
            states = draws
        self.exact = exact
        live, base = (np.array(rows[name]).T.tolist() for name in ("live", "base"))
        return SampledLogprobs(**{"sampler": sampler, "live": live, "base": base, "prompts": "general", **more})


@pytest.mark.parametrize(("sampler", "direction"), [("live", "live‖base"), ("base", "base‖live")])
@pytest.mark.parametrize("estimator", ["k1", "k3"])
def test_unbiased_estimators_meet_the_exact_divergence(sampler: str, direction: str, estimator: str) -> None:
    chain = Chain(0.4)
    record = chain.record(sampler, 2000, 12)
    found = estimate_drift(record, direction, estimator)  # type: ignore[arg-type]
    error = (found.per_sequence.high - found.per_sequence.low) / (2 * 1.96)
    assert abs(found.per_sequence.estimate - chain.exact.mean()) < 3 * error
    assert found.per_token.estimate == pytest.approx(found.per_sequence.estimate / 12)
    assert found.is_unbiased
    assert (found.direction, found.sampler, found.estimator) == (direction, sampler, estimator)
    assert (found.sequences, found.tokens, found.per_token.n) == (2000, 24_000, 2000)
    assert found.suspect == ""


def test_k3_is_calmer_than_k1_and_k2_is_off() -> None:
    chain = Chain(0.8)
    k1, k2, k3 = estimate_drifts(chain.record("live", 3000, 10))
    assert [e.estimator for e in (k1, k2, k3)] == ["k1", "k2", "k3"]
    exact = chain.exact.mean()
    assert k3.per_sequence.high - k3.per_sequence.low < 0.8 * (k1.per_sequence.high - k1.per_sequence.low)
    assert not k2.is_unbiased
    assert k2.per_sequence.low > exact  # +23 % at such divergences
    assert k3.per_sequence.low < exact < k3.per_sequence.high


def test_the_two_directions_differ_and_are_told_apart() -> None:
    rng = np.random.default_rng(3)
    chain = Chain(0.0)
    sharp = special.log_softmax(rng.normal(0, 3, (SIZE, SIZE)), axis=-1)
    chain.live = sharp
    one = estimate_drift(chain.record("live", 800, 8), "live‖base")
    two = estimate_drift(chain.record("base", 800, 8), "base‖live")
    assert one.per_token.high < two.per_token.low


def test_a_model_does_not_drift_from_itself() -> None:
    chain = Chain(0.0)
    for found in estimate_drifts(chain.record("live", 20, 6)):
        for interval in (found.per_token, found.per_sequence):
            assert (interval.estimate, interval.low, interval.high) == (0.0, 0.0, 0.0)
        assert found.suspect == ""


def test_by_hand() -> None:
    half, quarter = float(np.log(0.5)), float(np.log(0.25))
    record = SampledLogprobs(
        sampler="live", live=[[half, half], [half]], base=[[quarter, half], [quarter]], prompts="task:sums",
        prompting="both", sampling=Sampling(temperature=0.7), round=5,
    )  # fmt: skip
    k1, k2, k3 = estimate_drifts(record)
    assert k1.per_token.estimate == pytest.approx(2 * np.log(2) / 3)
    assert k1.per_sequence.estimate == pytest.approx(np.log(2))
    assert k2.per_token.estimate == pytest.approx(np.log(2) ** 2 / 3)
    assert k3.per_token.estimate == pytest.approx(2 * (0.5 - 1 + np.log(2)) / 3)
    assert (k1.temperature, k1.prompting, k1.prompts, k1.round) == (0.7, "both", "task:sums", 5)


# ----------------------------------------------------------------------------------------------------- who has sampled


@pytest.mark.parametrize(
    ("sampler", "asked", "can"), [("base", "live‖base", "base‖live"), ("live", "base‖live", "live")]
)
def test_the_wrong_policys_samples_are_refused(sampler: str, asked: str, can: str) -> None:
    record = Chain(0.3).record(sampler, 5, 4)
    with pytest.raises(ValueError, match=rf"drawn by {sampler}: ask for KL\({can}"):
        estimate_drift(record, asked)  # type: ignore[arg-type]


@pytest.mark.parametrize("shift", [0.3, 0.8])
def test_samples_under_a_wrong_label_are_flagged(shift: float) -> None:
    chain = Chain(shift)
    honest = chain.record("base", 400, 12)
    wrong = SampledLogprobs(sampler="live", live=honest.live, base=honest.base, prompts="general")
    found = estimate_drift(wrong, "live‖base")
    assert "likelier under base than under live" in found.suspect
    assert abs(found.per_sequence.estimate - chain.exact.mean()) > 0.05 * chain.exact.mean()
    assert estimate_drift(honest, "base‖live").suspect == ""


def test_honest_samples_are_hardly_ever_flagged() -> None:
    for shift in (0.05, 0.5, 1.2):
        chain = Chain(shift)
        flagged = [bool(estimate_drift(chain.record("live", 60, 6, seed=s), "live‖base").suspect) for s in range(60)]
        assert not any(flagged)


def test_rounding_is_no_wrong_label() -> None:
    honest = Chain(0.0).record("live", 200, 8)
    rounded = [[value - 2e-4 for value in row] for row in honest.live]  # another kernel, always a little lower
    record = SampledLogprobs(sampler="live", live=rounded, base=honest.base, prompts="general")
    assert estimate_drift(record, "live‖base").suspect == ""


def test_answers_to_one_prompt_are_resampled_together() -> None:
    record = Chain(0.5).record("live", 80, 5)
    tied = SampledLogprobs(
        sampler="live",
        live=[row for row in record.live for _ in range(4)],
        base=[row for row in record.base for _ in range(4)],
        prompts="general",
        prompt_ids=[f"p{i}" for i in range(80) for _ in range(4)],
    )
    one, four = estimate_drift(record, "live‖base"), estimate_drift(tied, "live‖base")
    assert (four.sequences, four.per_token.n) == (320, 80)
    width = one.per_token.high - one.per_token.low
    assert four.per_token.high - four.per_token.low == pytest.approx(width, rel=0.1)  # copies are no new evidence


# ------------------------------------------------------------------------------------------------------------ bad input


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"live": [[-1.0]], "base": []}, "got 1 by live and 0 by base"),
        ({"live": [[-1.0, -2.0]], "base": [[-1.0]]}, "sequence 0 has 2 log-probabilities by live and 1 by base"),
        ({"live": [[]], "base": [[]]}, "sequence 0 has no tokens; leave failed completions out"),
        ({"base": [[-1.0, float("-inf")]]}, "base gives -inf for token 1 of sequence 0"),
        ({"live": [[0.3, -1.0]]}, r"at most 0; live gives 0\.3 for token 0"),
        ({"live": [[-1.0, float("nan")]]}, "live gives nan for token 1"),
        ({"sampling": Sampling(temperature=0.0)}, "whole distribution"),
        ({"sampling": Sampling(top_p=0.9)}, r"top_p 0\.9"),
        ({"sampling": Sampling(top_k=5)}, "top_k 5"),
        ({"sampler": "reference"}, "sampler is one of live, base; got 'reference'"),
        ({"prompting": "learned"}, "prompting is one of"),
        ({"prompt_ids": ["a", "b"]}, "1 sequences and 2 prompt ids"),
    ],
)
def test_records_that_cannot_be_are_refused(wrong: dict[str, Any], message: str) -> None:
    good = {"sampler": "live", "live": [[-1.0, -0.5]], "base": [[-1.1, -0.4]], "prompts": "general"}
    with pytest.raises(ValueError, match=message):
        SampledLogprobs(**{**good, **wrong})


def test_unknown_words_are_refused() -> None:
    record = Chain(0.1).record("live", 3, 2)
    with pytest.raises(ValueError, match="direction is one of live‖base, base‖live"):
        estimate_drift(record, "forward")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="estimator is one of k1, k2, k3"):
        estimate_drift(record, "live‖base", "k4")  # type: ignore[arg-type]


def test_no_samples_and_one_sample_claim_nothing() -> None:
    none = estimate_drift(SampledLogprobs(sampler="live", live=[], base=[], prompts="general"), "live‖base")
    assert not none.per_token.is_known
    assert none.per_token.n == none.tokens == 0
    one = estimate_drift(SampledLogprobs(sampler="live", live=[[-1.0]], base=[[-2.0]], prompts="general"), "live‖base")
    assert one.per_token.estimate == pytest.approx(np.expm1(-1.0) + 1.0)
    assert np.isnan(one.per_token.low)
