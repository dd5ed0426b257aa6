"""Episodes as a task: items of a world, played over several turns, graded by replaying what was done."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from functools import cached_property

from twoclock.contracts import Policy
from twoclock.errors import DataError
from twoclock.tasks.env_play import Episode, EpisodeRules, Pool, Seat, play_episodes, replay
from twoclock.tasks.env_stuck import StuckRule
from twoclock.tasks.env_transcript import parse_transcript
from twoclock.tasks.environments import Action, Guide, World, action_text
from twoclock.tasks.splits import SPLITS, SplitSizes, draw_splits
from twoclock.tasks.text import clip
from twoclock.tasks.wording import instruct
from twoclock.types import Completion, Grade, Item, Request, Sampling, SplitName

__all__ = ["EPISODE_SIZES", "EpisodeTask"]

EPISODE_SIZES = SplitSizes(train=128, trial=32, heldout=64)
"""Episodes cost many calls of the policy, so fewer than of questions."""

_NO_LIMIT = StuckRule(repeats=None, max_steps=None)

KNOWN_GRADES = 4096
"""Grades of episodes that were just played are kept, so that grading them need not play them once more."""


class EpisodeTask:
    """A :class:`~twoclock.contracts.Task` that is :class:`~twoclock.contracts.Interactive`.

    A completion is a whole episode; its text is the canonical transcript (:mod:`twoclock.tasks.env_transcript`), and
    its grade follows from the item and that text alone, by replay. An environment that breaks costs its episode: the
    grade has ``failure`` set. A text without actions is an episode in which nothing was done.
    """

    def __init__(
        self,
        world: World,
        *,
        name: str = "",
        rules: EpisodeRules | None = None,
        sizes: SplitSizes | None = None,
        seed: int = 0,
        instruction: str = "",
        instruction_at: str = "end",
    ) -> None:
        self.name = name or world.name
        self.notes: tuple[str, ...] = ()
        self.world = world
        self.rules = rules or EpisodeRules()
        self._sizes = sizes or EPISODE_SIZES
        self._seed = seed
        self._instruction = (instruction, instruction_at)
        self._pool = Pool(world)
        self._known: OrderedDict[tuple[str, str], Grade] = OrderedDict()

    @property
    def description(self) -> str:
        return self.world.description

    def split(self, name: SplitName) -> tuple[Item, ...]:
        return self._splits[name]

    @cached_property
    def _splits(self) -> Mapping[SplitName, tuple[Item, ...]]:
        drawn = draw_splits(
            f"world '{self.world.name}'",
            self._sizes,
            lambda split, index: self.world.draw(split, index, self._seed),
            lambda item: str(item.metadata.get("content", item.id)),
        )
        return {split: tuple(self._worded(item) for item in drawn[split]) for split in SPLITS}

    def _worded(self, item: Item) -> Item:
        prompt = instruct(item.prompt, *self._instruction)
        return Item(id=item.id, prompt=prompt, reference=item.reference, metadata=item.metadata)

    def play(
        self, policy: Policy, items: Sequence[Item], requests: Sequence[Request], sampling: Sampling
    ) -> list[tuple[Completion, ...]]:
        """See :class:`~twoclock.contracts.Interactive`."""
        rows = play_episodes(self._pool, policy, items, requests, sampling, self.rules)
        return [tuple(self._finished(seat) for seat in row) for row in rows]

    def answer_of(self, text: str) -> str:
        """The actions of a transcript, one a line, as the policy writes them: the same plan can be followed again."""
        return "\n".join(action_text(action) for action in parse_transcript(text).actions if action is not None)

    def _finished(self, seat: Seat) -> Completion:
        completion = seat.completion()
        if completion.finish != "error":
            self._known[seat.episode.item.id, completion.text] = _grade(seat.episode)
            while len(self._known) > KNOWN_GRADES:
                self._known.popitem(last=False)
        return completion

    def grade(self, items: Sequence[Item], texts: Sequence[str]) -> list[Grade]:
        return [
            self._known.get((item.id, text)) or self.grade_by_replay(item, text)
            for item, text in zip(items, texts, strict=True)
        ]

    def grade_by_replay(self, item: Item, text: str) -> Grade:
        """The grade of a transcript, whoever wrote it: its actions are played again from the item's start."""
        return _grade(self.replayed(item, text))

    def replayed(self, item: Item, text: str) -> Episode:
        """The episode that the actions of a transcript make."""
        transcript = parse_transcript(text)
        episode = replay(self._pool, item, transcript, self.rules)
        if transcript.fault is not None and episode.fault is None:
            episode.fault = transcript.fault  # it broke then, and nobody knows what it would have come to
        return episode

    def gold(self, item: Item) -> tuple[Action, ...] | None:
        """Actions that solve the item; None where the world does not know. Raises DataError where it claims to and
        they do not solve it."""
        if not isinstance(self.world, Guide):
            return None
        actions = self.world.gold(item)
        if actions is None:
            return None
        free = EpisodeRules(stuck=_NO_LIMIT)
        episode = Episode(self._pool, item, free)
        try:
            for action in actions:
                if episode.done:
                    break
                episode.act(action)
        finally:
            episode.release()
        if not episode.success:
            raise DataError(f"world '{self.world.name}': the gold actions of item {item.id} do not solve it")
        return actions

    def close(self) -> None:
        self._pool.close()
        self.world.close()


def _grade(episode: Episode) -> Grade:
    if episode.fault is not None:
        return Grade(reward=0.0, failure=f"the environment failed: {clip(episode.fault, 300)}")
    count = f"{len(episode.turns)} step{'' if len(episode.turns) == 1 else 's'}"
    if episode.success:
        return Grade(reward=episode.reward, feedback=f"Solved in {count}.")
    why = f" ({episode.reason})" if episode.reason else ""
    said = episode.turns[-1].observation if episode.turns else None
    last = f' The last response was: "{clip(said, 200)}"' if said else ""
    return Grade(reward=episode.reward, feedback=f"Not solved after {count}{why}.{last}")
