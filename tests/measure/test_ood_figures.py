"""The probe's figures against cases worked by hand, its table row by row, and what bad input is told."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest

from twoclock.measure.intervals import wilson
from twoclock.measure.ood import holm, over_seeds, probe
from twoclock.measure.ood_cautions import OUT
from twoclock.measure.ood_figures import figures_of
from twoclock.measure.ood_records import Answer, Settings, answers_of
from twoclock.measure.ood_verdict import DECISIONS
from twoclock.measure.pairs import difference_of

FAST = Settings(resamples=300)


def answer(variant: str, i: int, right: float, **more: Any) -> Answer:
    partner = more.pop("partner", f"id{i}")
    return Answer(variant=variant, item=f"{variant}{i}", partner=partner, right=right, **more)


def system(**splits: str) -> list[Answer]:
    """``id='1101'`` are four answers; keys spell n-1 as n_minus."""
    return [
        answer(name.replace("_minus", "-1").replace("_plus", "+1"), i, float(c))
        for name, rights in splits.items()
        for i, c in enumerate(rights)
    ]


def test_the_figures_by_hand() -> None:
    base = system(id="1000000000", n_minus="1111000000")
    live = system(id="1111111100", n_minus="1111010001")
    f = figures_of("n-1", answers_of(base), answers_of(live), FAST)
    assert (f.items, f.judged, f.paired) == (10, 10, True)
    assert f.base.estimate == pytest.approx(0.4)
    assert f.live.estimate == pytest.approx(0.6)
    assert f.change.estimate == pytest.approx(0.2)
    assert f.gap_base.estimate == pytest.approx(0.1 - 0.4)  # n-1 is easier for the base
    assert f.gap_live.estimate == pytest.approx(0.8 - 0.6)
    assert f.did.estimate == pytest.approx(0.5)  # Δ_ID - Δ_v = .7 - .2
    assert f.transfer.estimate == pytest.approx(0.2 / 0.7)
    assert f.transfer.low < 0.2 / 0.7 < f.transfer.high
    assert f.consistency_base.estimate == 1.0
    assert f.consistency_live.estimate == pytest.approx(5 / 8)  # partners right: 0-7; of these n-1: 0,1,2,3,5
    assert f.consistency_live.n == 8
    assert f.limem_live.estimate == pytest.approx(0.8 * (1 - 5 / 8))
    assert f.limem_excess.estimate == pytest.approx(0.8 * 0.6 - 0.5)
    assert f.headroom.estimate == pytest.approx(0.2 / 0.6)
    assert figures_of("n-1", answers_of(live), answers_of(base), FAST).headroom.estimate == pytest.approx(-0.2 / 0.6)


def test_pairs_are_resampled_together() -> None:
    """With v = partner the gap is exactly 0 however the pairs are drawn; as two samples it is not certain."""
    rights = "1100110101" * 20
    paired = figures_of("n-1", *[answers_of(system(id=rights, n_minus=rights))] * 2, FAST)
    assert abs(paired.gap_live.high) < 0.03
    loose = [a if a.variant == "id" else answer("n-1", i, a.right, partner=None) for i, a in
             enumerate(system(id=rights, n_minus=rights))]  # fmt: skip
    unpaired = figures_of("n-1", *[answers_of(loose)] * 2, FAST)
    assert not unpaired.paired
    assert unpaired.gap_live.high > 0.08
    assert unpaired.consistency_live.method == "no partners"


def test_variants_of_one_base_item_are_resampled_together() -> None:
    """Forty base items with one variant each, or with the same one five times: as much is known, no more."""
    rng = np.random.default_rng(2)
    rights = ["".join(map(str, rng.integers(0, 2, 40))) for _ in range(4)]
    once = [system(id=i, n_minus=v) for i, v in (rights[:2], rights[2:])]
    five = [
        [*(a for a in side if a.variant == "id")]
        + [Answer(variant="n-1", item=f"{a.item}.{k}", partner=a.partner, right=a.right, tokens=a.right)
           for a in side if a.variant == "n-1" for k in range(5)]
        for side in once
    ]  # fmt: skip
    one, many = (figures_of("n-1", *map(answers_of, sides), FAST) for sides in (once, five))
    assert (many.items, many.judged) == (200, 200)
    for name in ("base", "live", "change", "gap_live", "did", "consistency_live", "limem_live", "unparsed_live"):
        assert getattr(many, name) == getattr(one, name), name
        assert getattr(many, name).n <= 40
    assert many.p == one.p
    # Unequal numbers: each base item weighs the same.
    rows = [answer("id", 0, 1.0), answer("id", 1, 1.0), answer("n-1", 0, 1.0), answer("n-1", 1, 0.0)]
    rows.append(Answer(variant="n-1", item="again", partner="id1", right=1.0))
    assert figures_of("n-1", answers_of(rows), answers_of(rows), FAST).live.estimate == pytest.approx((1 + 0.5) / 2)


def test_many_variants_of_few_base_items_raise_no_more_false_alarms() -> None:
    """200 probes of a live system that is the base sampled again, 30 base items with 8 variants each."""
    flagged = 0
    for trial in range(200):
        rng = np.random.default_rng([11, trial])
        skill = rng.beta(0.5, 0.5, 30)
        sides = []
        for _side in range(2):
            rows = [answer("id", i, float(rng.random() < p)) for i, p in enumerate(skill)]
            # Whether this system has the knack of a base item's variants is one draw for all eight.
            knack = [float(rng.random() < p) for p in skill]
            rows += [
                Answer(variant="n-1", item=f"n-1{i}.{k}", partner=f"id{i}", right=knack[i])
                for i in range(30) for k in range(8)
            ]  # fmt: skip
            sides.append(answers_of(rows))
        flagged += figures_of("n-1", *sides, Settings(resamples=400)).change.excludes_zero
    assert flagged / 200 <= 0.09


def test_lengths_are_no_shares() -> None:
    rows = [answer("id", i, 1.0, tokens=1.0) for i in range(20)]
    tokens = figures_of("id", answers_of(rows), answers_of(rows), FAST).tokens_live
    assert (tokens.estimate, tokens.high, tokens.method) == (1.0, 1.0, "constant")


def test_a_split_without_a_telling_item_is_paired_all_the_same() -> None:
    rows = [*system(id="1101"), *(answer("n-1", i, 1.0, telling=False) for i in range(4))]
    f = figures_of("n-1", answers_of(rows), answers_of(rows), FAST)
    assert (f.items, f.judged, f.paired) == (4, 0, True)
    assert not f.live.is_known
    assert f.unparsed_live.n == 4


def test_items_that_tell_nothing_are_left_out_of_the_skill_and_kept_in_the_format() -> None:
    rows = system(id="1111")
    for i in range(4):
        telling = i < 2
        rows.append(
            answer("n-1", i, float(not telling), telling=telling, stale=1.0 if telling else None, parsed=float(i != 3))
        )
    f = figures_of("n-1", answers_of(rows), answers_of(rows), FAST)
    assert (f.items, f.judged) == (4, 2)
    assert f.live.estimate == 0.0
    assert (f.stale_live.estimate, f.stale_live.n) == (1.0, 2)
    assert (f.unparsed_live.estimate, f.unparsed_live.n) == (0.25, 4)


def test_transfer_is_undefined_where_nothing_changed_and_bounded_where_all_did() -> None:
    same = system(id="10" * 50, n_minus="01" * 50)
    none = figures_of("n-1", answers_of(same), answers_of(same), FAST).transfer
    assert not none.is_known
    assert "may be 0" in none.method
    zero, one = system(id="0" * 100, n_minus="0" * 100), system(id="1" * 100, n_minus="1" * 100)
    full = figures_of("n-1", answers_of(zero), answers_of(one), FAST).transfer
    assert full.estimate == 1.0
    assert 0.8 < full.low < 1.0 < full.high < 1.2  # a hundred equal pairs do not prove all pairs equal


def test_consistency_of_several_samples_is_a_ratio_of_means() -> None:
    rows = [answer("id", 0, 0.5), answer("id", 1, 1.0), answer("n-1", 0, 1.0), answer("n-1", 1, 0.25)]
    f = figures_of("n-1", answers_of(rows), answers_of(rows), FAST)
    assert f.consistency_live.estimate == pytest.approx((0.5 * 1 + 1 * 0.25) / 1.5)


def test_square_and_add_gives_newcombes_published_interval() -> None:
    """56/70 - 48/80 = .2 [.0524, .3339]: Newcombe 1998, table II, method 10."""
    found = difference_of(wilson(56, 70), wilson(48, 80))
    assert (found.low, found.high) == (pytest.approx(0.0524, abs=1e-4), pytest.approx(0.3339, abs=1e-4))


def test_holm_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, 0.9]) == [1.0, 1.0]
    assert holm([]) == []


def test_values_of_another_size_are_seen_and_said() -> None:
    rng = np.random.default_rng(0)

    def rows(shift: int) -> list[Answer]:
        drawn = [answer("id", i, float(i % 2), values=rng.integers(0, 100, 3).tolist()) for i in range(200)]
        more = [answer("n-1", i, float(i % 2), values=(rng.integers(0, 100, 2) + shift).tolist()) for i in range(200)]
        return drawn + more

    same, moved = (probe(r, r, resamples=100) for r in (rows(0), rows(40)))
    assert same.splits["n-1"].values is not None
    assert moved.splits["n-1"].values is not None
    assert same.splits["n-1"].values.p > 0.01 > moved.splits["n-1"].values.p
    assert not any("distributed differently" in text for text in same.cautions)
    assert any("distributed differently" in text and "'n-1'" in text for text in moved.cautions)


# ---------------------------------------------------------------------------------------------------------- the report


def test_every_figure_carries_n_seeds_and_interval() -> None:
    base, live = system(id="01" * 60, n_minus="01" * 60, seen="01" * 60), system(
        id="11" * 60, n_minus="01" * 60, seen="11" * 60
    )  # fmt: skip
    report = probe(base, live, resamples=200)
    plain = json.loads(json.dumps(report.as_dict(), allow_nan=False))
    assert plain["verdict"] == "specialised"
    figures = [f for split in plain["splits"].values() for f in split["figures"].values()]
    figures += [f for finding in plain["findings"] for f in finding["numbers"].values()]
    assert len(figures) > 70
    assert all({"estimate", "low", "high", "n", "seeds", "level", "method"} <= set(f) for f in figures)
    assert report.tests == 1  # of the declared splits only n-1 was measured
    assert report.splits["n-1"].p_holm == report.splits["n-1"].p
    again = probe(base, live, resamples=200)
    assert again.as_dict() == report.as_dict()


def test_the_table_is_data() -> None:
    assert [row.verdict for row in DECISIONS] == [
        "unreadable",
        "memorised",
        "specialised",
        "override_lost",
        "no_gain",
        "generalises",
        "partial",
        "undecided",
    ]
    assert all(row.pattern and row.action for row in DECISIONS)
    assert OUT == ("n-1", "n+1", "template", "distractor")


def test_there_is_always_a_verdict() -> None:
    """Any mixture of answers gets a headline with a reason and numbers."""
    rng = np.random.default_rng(1)
    for _ in range(30):
        names = [name for name in ("seen", "n-1", "n+1", "template", "distractor", "rule") if rng.random() < 0.6]
        sides = []
        for _side in range(2):
            rows = []
            for name in ("id", *names):
                p, q, s = rng.random(3)
                for i in range(25):
                    more = {"stale": float(rng.random() < s)} if name == "rule" else {}
                    right, read = float(rng.random() < p), float(rng.random() < max(q, 0.4))
                    rows.append(answer(name, i, right * read, parsed=read, chance=0.1, **more))
            sides.append(rows)
        report = probe(*sides, resamples=60)
        assert report.findings[0].reason
        assert report.findings[0].numbers
        assert report.verdict in [row.verdict for row in DECISIONS]
        json.dumps(report.as_dict(), allow_nan=False)


def test_a_rule_that_was_never_followed_is_not_lost() -> None:
    def rows(id_: float, rule: float, stale: float) -> list[Answer]:
        n = 200
        first = [answer("id", i, float(i < id_ * n)) for i in range(n)]
        return first + [
            answer("rule", i, float(i < rule * n), stale=float(i >= (1 - stale) * n), chance=0.1) for i in range(n)
        ]

    followed = probe(rows(0.5, 0.5, 0.1), rows(0.9, 0.2, 0.7), resamples=200)
    assert "override_lost" in [f.verdict for f in followed.findings]
    never = probe(rows(0.5, 0.1, 0.1), rows(0.9, 0.1, 0.7), resamples=200)
    assert "override_lost" not in [f.verdict for f in never.findings]


def test_n_plus_one_out_of_reach_is_no_failure_of_the_skill() -> None:
    def rows(of_id: float, n_minus: float, n_plus: float) -> list[Answer]:
        rates = {"id": of_id, "n-1": n_minus, "n+1": n_plus}
        return [answer(v, i, float((i * 7) % 100 < p * 100), chance=0.1) for v, p in rates.items() for i in range(200)]

    report = probe(rows(0.4, 0.6, 0.1), rows(0.7, 0.88, 0.1), resamples=200)
    assert report.verdict == "generalises"
    assert "not judged: n+1" in report.findings[0].reason
    assert "out of reach" in report.findings[1].reason


def test_cautions_are_one_line_each_and_speak_of_what_there_is() -> None:
    rows = [answer(v, i, float(i % 2), truncated=0.5 if v == "id" else 0.0) for v in ("id", "n-1", "template")
            for i in range(40)]  # fmt: skip
    rows += [answer("n+1", i, 1.0, telling=False) for i in range(40)]
    report = probe(rows, rows, resamples=50)
    assert report.cautions == (
        "few items: 'n-1' 40, 'template' 40; 314 show a change of the gap of 10 points",
        "answers cut off at the token limit, of base or live system: 'id' 50%; raise it",
    )  # 'n+1' has partners, and no item to judge: that is said of the split itself
    assert [f.reason for f in report.findings if "'n+1'" in f.reason] == [
        "'n+1' has no item on which overlooking the change gives another answer"
    ]


# ------------------------------------------------------------------------------------------------------------ mistakes


def test_mistakes_are_told() -> None:
    good = system(id="01", n_minus="01")
    with pytest.raises(ValueError, match="needs answers on 'id'"):
        probe(system(n_minus="01"), system(n_minus="01"))
    with pytest.raises(ValueError, match="none"):
        probe([], [])
    with pytest.raises(ValueError, match="same variants"):
        probe(good, system(id="01"))
    with pytest.raises(ValueError, match="stand on one side only"):
        probe(good, system(id="01", n_minus="011"))
    with pytest.raises(ValueError, match="twice"):
        probe(good + good[:1], good)
    with pytest.raises(ValueError, match="partners that are not among"):
        probe([*good, answer("n-1", 7, 1.0)], [*good, answer("n-1", 7, 1.0)])
    with pytest.raises(ValueError, match="pair all of a variant or none"):
        probe([*good, answer("n-1", 7, 1.0, partner=None)], [*good, answer("n-1", 7, 1.0, partner=None)])
    with pytest.raises(ValueError, match="share of the samples"):
        answer("id", 0, 1.5)
    with pytest.raises(ValueError, match="confidence level"):
        probe(good, good, level=95)
    with pytest.raises(ValueError, match="at least one"):
        over_seeds([])
    with pytest.raises(ValueError, match="same splits"):
        over_seeds([probe(good, good, resamples=20), probe(system(id="01"), system(id="01"), resamples=20)])


def test_one_seed_alone_gives_no_bounds_over_seeds() -> None:
    report = probe(system(id="01" * 50, n_minus="01" * 50), system(id="11" * 50, n_minus="11" * 50), resamples=100)
    alone = over_seeds([report])
    assert math.isnan(alone.splits["n-1"].change.low)
    assert alone.verdict == "no_gain"  # one run supports no claim about the method
    assert report.verdict == "generalises"


def test_tiny_probes_do_not_break() -> None:
    for count in (1, 2, 3):
        report = probe(system(id="0" * count, n_minus="0" * count), system(id="1" * count, n_minus="0" * count))
        json.dumps(report.as_dict(), allow_nan=False)
        assert report.cautions
