"""A shift as a value: its id is what it does, whatever it is called and wherever its models lie."""

from __future__ import annotations

import math
import pickle

import pytest

from twoclock.errors import UnsupportedError
from twoclock.models.remote import RemotePolicy
from twoclock.models.scripted import ScriptedPolicy
from twoclock.types import Conditioning, Delta, Request, Sampling, Shift, SideModel

ONE, TWO = (Delta(f"delta-{n}", "lora", "base", None) for n in (1, 2))
SMALL = SideModel(weights="small", source="/here")
SHIFT = Shift(expert=ONE, anti=None)


def test_equal_effects_have_equal_ids() -> None:
    same = [
        Shift(expert=ONE, anti=None, alpha=(1.0,)),
        Shift(expert=ONE, anti=None, alpha=(1, 1.0, 1)),
        Shift(expert=ONE, anti=None, name="another name"),
        Shift(expert=Delta("delta-1", "lora", "base", object()), anti=None),
    ]
    for shift in same:
        assert (shift, shift.id, hash(shift)) == (SHIFT, SHIFT.id, hash(SHIFT))
    assert Shift(expert=SMALL, anti=None) == Shift(expert=SideModel(weights="small", source="/there"), anti=None)
    assert Shift(expert=ONE, anti=None, alpha=-0.0).id == Shift(expert=ONE, anti=None, alpha=0.0).id


def test_other_effects_have_other_ids() -> None:
    others = [
        SHIFT,
        Shift(expert=None, anti=ONE),
        Shift(expert=TWO, anti=None),
        Shift(expert=ONE, anti=TWO),
        Shift(expert=ONE, anti=None, alpha=0.5),
        Shift(expert=ONE, anti=None, alpha=(1.0, 0.5)),
        Shift(expert=ONE, anti=None, alpha=(1.0, 0.5, 1.0)),
        Shift(expert=ONE, anti=None, plausible=0.1),
        Shift(expert=ONE, anti=None, mapped=True),
        Shift(expert=SMALL, anti=None),
        Shift(expert=SideModel(weights="small", delta=ONE), anti=None),
        Shift(expert=SideModel(weights="other"), anti=None),
    ]
    assert len({shift.id for shift in others}) == len(others)
    assert len({Conditioning(shifts=(shift,)).id for shift in others}) == len(others)


def test_a_conditioning_without_shifts_keeps_the_id_that_it_had() -> None:
    assert Conditioning().id == Conditioning(shifts=()).id == "78a0c9091184b6a2"
    assert Conditioning(shifts=(SHIFT,)).id != Conditioning().id
    assert not Conditioning(shifts=(SHIFT,)).is_identity
    assert Conditioning(shifts=(SHIFT,), delta=TWO).text_id == Conditioning(shifts=(SHIFT,)).id


def test_joining_adds_shifts_in_order() -> None:
    other = Shift(expert=TWO, anti=None)
    joined = Conditioning(system="a", shifts=(SHIFT,)).join(Conditioning(shifts=(other,)))
    assert joined == Conditioning(system="a", shifts=(SHIFT, other))
    assert Conditioning(shifts=(SHIFT,)).join(Conditioning()) == Conditioning(shifts=(SHIFT,))


def test_what_shifts_nothing_is_inert() -> None:
    assert Shift(expert=ONE, anti=None, alpha=0.0).is_inert
    assert Shift(expert=ONE, anti=None, alpha=(0.0, -0.0)).is_inert
    assert Shift(expert=ONE, anti=Delta("delta-1", "svf", "x", 3)).is_inert
    assert Shift(expert=SMALL, anti=SideModel(weights="small", source="/there")).is_inert
    assert not SHIFT.is_inert
    assert not Shift(expert=ONE, anti=None, alpha=(0.0, 0.1)).is_inert


@pytest.mark.parametrize("alpha", [math.nan, math.inf, (), (1.0, -math.inf)])
def test_amounts_that_are_none_are_refused(alpha: float) -> None:
    with pytest.raises(ValueError, match="expected a finite number"):
        Shift(expert=ONE, anti=None, alpha=alpha)


@pytest.mark.parametrize("level", [-0.1, 1.1, math.nan])
def test_shares_that_are_none_are_refused(level: float) -> None:
    with pytest.raises(ValueError, match="expected a share from 0 to 1"):
        Shift(expert=ONE, anti=None, plausible=level)


def test_a_shift_survives_pickling() -> None:
    again = pickle.loads(pickle.dumps(Conditioning(shifts=(SHIFT,))))
    assert again == Conditioning(shifts=(SHIFT,))


def test_a_policy_that_cannot_shift_refuses() -> None:
    request = [Request(prompt="a", conditioning=Conditioning(shifts=(SHIFT,)), seeds=(1,))]
    with RemotePolicy("http://localhost:9/v1", "m") as remote, pytest.raises(UnsupportedError, match="shift"):
        remote.sample(request, Sampling())
    with pytest.raises(UnsupportedError, match="shift"):
        ScriptedPolicy(lambda *_: "x", accepts_delta=False).sample(request, Sampling())
