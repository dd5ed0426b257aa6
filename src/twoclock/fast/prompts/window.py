"""Which training items a search scores on, and which may lend their answers to a prompt. No item does both.

With the window ``random`` items are drawn by seed. With ``ahead`` candidates are scored on what the next rounds will
read, in that order, as Fast-Slow Training does (arXiv:2605.12484); random items fill up what is missing at a phase's
end. An item that comes up must not find its own answer in a prompt: gold answers come from items that the rounds ahead
do not read, or read last.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from twoclock.contracts import Workbench
from twoclock.fast.prompts.config import PromptsConfig
from twoclock.fast.prompts.edits import shown_answers
from twoclock.fast.prompts.exemplars import proven_turns
from twoclock.fast.prompts.frames import common_answers
from twoclock.fast.prompts.state import Pool
from twoclock.seeding import child_seed
from twoclock.types import Evidence, Item

__all__ = ["Drawn", "draw", "showable"]


@dataclass(frozen=True)
class Drawn:
    """The items of one search."""

    gold: tuple[Item, ...]
    """Items whose gold answers may be shown."""
    search: tuple[Item, ...]
    """Items to score on, in this order, each with a prompt of its own; none stands in a candidate."""
    proven: tuple[tuple[str, str], ...]
    """Right answers of the policy's own to items of this round that are not scored on."""
    upcoming: frozenset[str]
    """The ids of those items in ``search`` that the next rounds read."""
    others: tuple[Item, ...]
    """Further items whose text is not to be copied either."""

    @property
    def items(self) -> tuple[Item, ...]:
        return tuple({i.id: i for i in (*self.gold, *self.search, *self.others)}.values())


def draw(bench: Workbench, pool: Pool, evidence: Evidence, config: PromptsConfig, seed: int) -> Drawn:
    """The items of one search; a pure function of its arguments."""
    return (_draw_ahead if config.window == "ahead" else _draw_random)(bench, pool, evidence, config, seed)


def showable(gold: Iterable[str], items: Sequence[Item]) -> tuple[str, ...]:
    """Those right answers that give none of ``items`` away: an answer that many items share does not."""
    gold = tuple(gold)
    asked = [(i.reference or "").strip() for i in items]
    common = common_answers(gold) | common_answers(asked)
    return tuple(dict.fromkeys(g for g in gold if g in common or g not in asked))


def _draw_random(bench: Workbench, pool: Pool, evidence: Evidence, config: PromptsConfig, seed: int) -> Drawn:
    proven = tuple(proven_turns(evidence))
    shown = _questions(pool) | {question for question, _ in proven}
    drawn = bench.items(
        "train", config.search_items + config.gold_items + len(shown), child_seed("prompts.items", seed)
    )
    given_away = _given_away(pool, drawn)
    clear = [item for item in drawn if item.prompt not in shown]
    num_gold = min(config.gold_items, len(clear) // 2)
    search = _distinct(item for item in clear[num_gold:] if not given_away(item))
    return Drawn(tuple(clear[:num_gold]), tuple(search), proven, frozenset(), drawn)


def _draw_ahead(bench: Workbench, pool: Pool, evidence: Evidence, config: PromptsConfig, seed: int) -> Drawn:
    size = len(bench.task.split("train"))
    ahead = _distinct(bench.upcoming(size))
    order = {item.prompt: at for at, item in enumerate(ahead)}
    shown = _questions(pool)
    drawn = _distinct(bench.items("train", size, child_seed("prompts.items", seed)))
    given_away = _given_away(pool, drawn)
    clear = [item for item in drawn if item.prompt not in shown]
    num_gold = min(config.gold_items, len(clear) // 2)
    fit = [item for item in ahead if item.prompt not in shown and not given_away(item)]
    window = fit[: min(config.search_items, len(clear) - num_gold)]
    scored = {item.prompt for item in window}
    proven = tuple(turn for turn in proven_turns(evidence) if turn[0] not in scored)
    taken = scored | {question for question, _ in proven}
    rest = [item for item in clear if item.prompt not in taken]
    # What is never read comes first, in random order; then what is read last.
    rest.sort(key=lambda item: -order.get(item.prompt, size))
    gold, rest = rest[:num_gold], rest[num_gold:]
    more = [item for item in rest if not given_away(item)]
    search = [*window, *more[: config.search_items - len(window)]]
    upcoming = frozenset(item.id for item in window)
    return Drawn(tuple(gold), tuple(search), proven, upcoming, tuple(drawn[: config.search_items]))


def _questions(pool: Pool) -> set[str]:
    return {question for candidate in pool.candidates for question, _ in candidate.exemplars}


def _given_away(pool: Pool, items: Sequence[Item]) -> Callable[[Item], bool]:
    """Whether a prompt of the pool shows an item's answer as an example, and the answer is not one that many share."""
    text = "\n".join(shown_answers(candidate.system) for candidate in pool.candidates)
    common = common_answers([(i.reference or "") for i in items]) if text.strip() else frozenset()

    def stands(item: Item) -> bool:
        answer = (item.reference or "").strip()
        if not answer or answer in common or not text.strip():
            return False
        return re.search(rf"(?<!\w){re.escape(answer)}(?!\w)", text) is not None

    return stands


def _distinct(items: Iterable[Item]) -> list[Item]:
    """The first item of each prompt."""
    found: dict[str, Item] = {}
    for item in items:
        found.setdefault(item.prompt, item)
    return list(found.values())
