"""Where a lesson stands, in one sentence, and what would change it.

The sentence quotes who decides: of a live lesson the rule of consolidation and the watch that holds it, of one that is
not live the last entry of the ledger about it. Only the numbers of what would change it are worked out here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from twoclock.consolidation import choose
from twoclock.explain.changes import (
    Case,
    against_harm,
    counted,
    decides,
    decides_harm,
    forgets,
    harms,
    held_back,
    moves,
    watched,
    would_tell,
)
from twoclock.explain.forecast import items_needed
from twoclock.explain.history import Event

__all__ = ["Kind", "Standing", "stand"]

Kind = Literal[
    "candidate", "fast", "unproven", "harmful", "weights", "taken back", "rolled back", "replaced", "beside", "retired",
    "refused",
]  # fmt: skip

HARMFUL = "measured harmful"
"""How the reason begins that a memory retires a harmful entry with."""


@dataclass(frozen=True, kw_only=True)
class Standing:
    """The decision that holds now."""

    kind: Kind
    """``candidate`` for the weights; ``fast``: stays fast; ``unproven``; ``harmful`` and live; ``weights``: it is in
    them; ``taken back`` by evidence, ``rolled back`` by hand; ``replaced`` or kept ``beside`` what is deployed;
    ``retired``; ``refused``."""
    sentence: str
    changes: tuple[str, ...] = ()
    """What would change it, a sentence each."""

    def as_dict(self) -> dict[str, Any]:
        return {"kind": self.kind, "sentence": self.sentence, "changes": list(self.changes)}


def stand(case: Case) -> Standing:
    """The decision that holds now, and what would change it."""
    return _live(case) if case.lesson.live else _idle(case)


# ------------------------------------------------------------------------------------------------------ live lessons


def _live(case: Case) -> Standing:
    choice = choose([case.lesson], {case.lesson.id: case.evidence}, case.rules.consolidation)[0]
    about = [*watched(case), *forgets(case)]
    if choice.accepted and case.slow:
        sentence = f"candidate for the weights: {choice.reason}; 'twoclock consolidate' tries to move it"
        return Standing(kind="candidate", sentence=sentence, changes=(*held_back(case), *about))
    trial = _won_trial(case)
    kind: Kind = "fast" if trial else "unproven"
    start = f"stays fast: {trial}; since then" if trial else "stays fast, unproven:"
    if not case.count.record.steps:
        changes = (*would_tell(case), *about)
        return Standing(kind=kind, sentence=f"{start} {_nothing_compares(case)}", changes=changes)
    effect, told = case.effect, _told(case)
    changes = (*decides(case), *moves(case), *about, *would_tell(case))
    if effect.low > 0:
        return Standing(kind="fast", sentence=f"stays fast: {told}", changes=changes)
    if effect.high >= 0:
        return Standing(kind=kind, sentence=f"{start} {told}, which does not tell it from nothing", changes=changes)
    if not case.is_own:
        better = "a search deploys the best of what stood in its place, where that wins a trial"
        return Standing(kind=kind, sentence=f"{start} {told}", changes=(better, *changes))
    if case.remembered or not harms(case):
        sentence = f"{start} {told}: it looks harmful, and too few groups say so to one who looks after each round"
        return Standing(kind=kind, sentence=sentence, changes=(*decides_harm(case), *changes))
    return Standing(kind="harmful", sentence=f"does harm, and is live: {told}", changes=(*against_harm(case), *about))


def _won_trial(case: Case) -> str:
    """The trial that it was deployed by; empty where there was none."""
    last = next((event for event in reversed(case.events) if event.what in ("deployed", "came back", *OVER)), None)
    if last is None or last.what != "deployed" or "trial_p" not in last.numbers:
        return ""
    return f"it won its trial in round {last.round} ({last.reason})"


def _told(case: Case) -> str:
    effect = case.effect
    return (
        f"{effect.estimate:+.2f} [{effect.low:+.2f}, {effect.high:+.2f}] ({effect.level:.0%}) of reward against "
        f"{case.count.compared_with}, in {counted(case.count.record.outcomes.groups, 'group')}"
    )


def _nothing_compares(case: Case) -> str:
    applied = case.count.beside.applied
    if not applied:
        return "no rollout in the ledger has it yet"
    return f"it was in {counted(applied, 'group')}, and none of them has rollouts without it"


# ------------------------------------------------------------------------------------------------- lessons not live


OVER: Mapping[str, Kind] = {
    "taken back": "taken back", "rolled back": "rolled back", "replaced": "replaced", "kept beside": "beside",
    "retired": "retired", "refused": "refused", "consolidated": "retired",
}  # fmt: skip


def _idle(case: Case) -> Standing:
    last = next((event for event in reversed(case.events) if event.what in OVER), None)
    if last is None:
        return Standing(kind="beside", sentence="is kept and not deployed", changes=(_search(case),))
    kind = OVER[last.what]
    when = f"in round {last.round}"
    if last.what == "consolidated":
        return _consolidated(case, last)
    if kind == "retired" and last.reason.startswith(HARMFUL):
        kind = "taken back"
    sentence = {
        "taken back": f"taken back by its evidence {when}: {last.reason}",
        "rolled back": f"rolled back by hand {when}: {last.reason}",
        "replaced": f"no longer deployed since round {last.round}: {last.reason}",
        "beside": f"kept beside what is deployed since round {last.round}: {last.reason}",
        "retired": f"retired {when}: {last.reason}",
        "refused": f"refused {when}: {last.reason}",
    }[kind]
    return Standing(kind=kind, sentence=sentence, changes=tuple(_comes_back(case, kind, last)))


def _consolidated(case: Case, last: Event) -> Standing:
    if case.moved is None:
        return Standing(
            kind="retired",
            sentence=f"retired in round {last.round} when the weights had taken it in, which are no longer live",
            changes=(_search(case),),
        )
    return Standing(
        kind="weights",
        sentence=f"in the weights of '{case.moved.channel}' since round {last.round}: {case.moved.reason}",
        changes=(f"'twoclock rollback' to a round up to {last.round} brings it back and takes it out of the weights",),
    )


def _comes_back(case: Case, kind: Kind, last: Event) -> list[str]:
    if case.remembered:
        return ["the same text learned again would be a new entry of memory, with nothing held against it"]
    found = []
    gain, p, items = (last.numbers.get(name) for name in ("trial_gain", "trial_p", "trial_items"))
    if kind == "refused" and gain is not None and p is not None and items is not None:
        needed = items_needed(gain, p, items, case.rules.alpha)
        if gain <= 0:
            found.append(
                "its trial was lost outright: only on other weights or beside other lessons would it be another"
            )
        elif needed is not None and needed > items:
            found.append(f"at the gain of its trial, about {needed} trial items would decide; it had {items:.0f}")
    if kind == "refused":
        found.append("unchanged it is not tried again; where weights or other channels have moved it has a new trial")
    else:
        found.append(_search(case))
    return found


def _search(case: Case) -> str:
    if case.remembered:
        return "the same text learned again would be a new entry of memory, with nothing held against it"
    return "a search that scores it best offers it again, and it must win a trial to be deployed"


# ----------------------------------------------------------------------------------------------------------- words
