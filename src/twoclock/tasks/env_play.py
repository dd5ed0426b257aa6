"""Playing episodes: one at a time by replay, many at once by a policy that is called once a turn.

An episode is a function of its item and its actions: :class:`Episode` holds one that is under way, :func:`replay`
plays one from a transcript, :func:`play_episodes` lets a policy play many. Environments are leased from a pool.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from twoclock.contracts import Policy
from twoclock.errors import ConfigError
from twoclock.seeding import child_seed
from twoclock.tasks.env_stuck import StuckRule
from twoclock.tasks.env_transcript import Ending, Transcript, Turn, shown
from twoclock.tasks.environments import Action, Environment, Observation, World, read_action
from twoclock.tasks.text import clip
from twoclock.types import Completion, Item, Request, Sampling

__all__ = ["Episode", "EpisodeRules", "Pool", "Seat", "play_episodes", "replay"]

MOST_LISTED = 60
"""Actions listed in one prompt; the rest are counted."""


@dataclass(frozen=True, kw_only=True)
class EpisodeRules:
    """How episodes are played and paid. Raises ConfigError for values that make no rule."""

    stuck: StuckRule = field(default_factory=StuckRule)
    reward: Literal["success", "score"] = "success"
    """``success`` pays 1 for the goal and 0 for anything else, ``score`` what the environment says."""
    list_actions: bool = True
    """Whether a prompt lists what can be done, where the environment tells."""
    answers: Literal["words", "numbers"] = "words"
    """``numbers``: a prompt numbers what can be done and asks for a number, which models that are too small to keep to
    the words of a game still answer; where nothing can be listed it asks for words."""
    history_chars: int = 6000
    """The most of the transcript that a prompt shows; see :func:`~twoclock.tasks.env_transcript.shown`."""
    max_live: int = 64
    """Episodes played at the same time."""

    def __post_init__(self) -> None:
        problems = []
        if self.reward not in ("success", "score"):
            problems.append(f"reward must be 'success' or 'score'; got {self.reward!r}")
        if self.answers not in ("words", "numbers"):
            problems.append(f"answers must be 'words' or 'numbers'; got {self.answers!r}")
        if self.answers == "numbers" and self.list_actions is False:
            problems.append("answers = 'numbers' needs list_actions = true: a number names an action of the list")
        for name, least in (("history_chars", 200), ("max_live", 1)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                problems.append(f"{name} must be a whole number of at least {least}; got {value!r}")
        listing: Any = self.list_actions
        if not isinstance(listing, bool):
            problems.append(f"list_actions must be true or false; got {listing!r}")
        if problems:
            raise ConfigError(problems)


class Pool:
    """The environments of a world that are free; more are made when more are asked for."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._free: list[Environment] = []
        self._lock = threading.Lock()

    def lease(self) -> Environment:
        with self._lock:
            if self._free:
                return self._free.pop()
        return self._world.make()

    def give_back(self, environment: Environment) -> None:
        with self._lock:
            self._free.append(environment)

    def close(self) -> None:
        with self._lock:
            free, self._free = self._free, []
        for environment in free:
            environment.close()


class Episode:
    """One episode under way. What an environment raises ends it with a fault; nothing is raised to the caller."""

    def __init__(self, pool: Pool, item: Item, rules: EpisodeRules) -> None:
        self.item = item
        self.turns: list[Turn] = []
        self.fault: str | None = None
        self.reason = ""
        self.done = False
        self._pool = pool
        self._rules = rules
        self._level = 0.0
        self._success: bool | None = None
        self._environment: Environment | None = None
        self.observation = Observation(text="")
        try:
            self._environment = pool.lease()
            self.observation = self._environment.reset(item)
        except Exception as error:
            self._fail(error)

    def act(self, action: Action | None, said: str = "") -> None:
        """One turn. ``None`` is a completion without an action, which the environment never sees."""
        assert not self.done, "the episode has ended"
        if action is None:
            self.turns.append(Turn(action=None, said=clip(said, 200), observation=self._no_action()))
        else:
            try:
                assert self._environment is not None
                step = self._environment.step(action)
            except Exception as error:
                self.turns.append(Turn(action=action))
                self._fail(error)
                return
            self.observation = step.observation
            self.turns.append(Turn(action=action, observation=step.observation.text))
            self._level, self._success, self.done = float(step.reward), step.success, step.done
        if not self.done:
            self.reason = self._rules.stuck.verdict(self.turns) or ""
            self.done = bool(self.reason)
        if self.done:
            self.release()

    @property
    def success(self) -> bool:
        return self.fault is None and (self._level >= 1.0 if self._success is None else self._success)

    @property
    def reward(self) -> float:
        if self.fault is not None:
            return 0.0
        return float(self.success) if self._rules.reward == "success" else self._level

    @property
    def transcript(self) -> Transcript:
        ending = None
        if self.done and self.fault is None:
            ending = Ending(
                success=self.success, reward=self.reward, steps=len(self.turns), reason=self.reason
            ).line.removeprefix("= ")
        return Transcript(turns=tuple(self.turns), fault=self.fault, ending=ending)

    def prompt(self, told: str) -> str:
        """What the policy is asked: ``told``, what happened so far, what can be done."""
        parts = [told]
        if self.turns:
            parts.append(shown(self.turns, self._rules.history_chars))
        if self._rules.list_actions and self.observation.actions:
            parts.append(self._listed())
        cue = "The number of your next action:" if self._numbered else "Your next action:"
        return "\n\n".join([*parts, cue])

    def read(self, text: str) -> Action | None:
        """The action in a completion."""
        actions = self.observation.actions
        number = re.search(r"\d+", text) if self._numbered else None
        if number is not None and actions and len(number[0]) < 4 and 1 <= int(number[0]) <= len(actions):
            return actions[int(number[0]) - 1]
        return read_action(text, actions)

    @property
    def _numbered(self) -> bool:
        return self._rules.answers == "numbers" and bool(self.observation.actions)

    def release(self) -> None:
        """Give the environment back; one that broke is closed instead."""
        environment, self._environment = self._environment, None
        if environment is None:
            return
        if self.fault is None:
            self._pool.give_back(environment)
            return
        try:
            environment.close()
        except Exception:  # it is broken already, and what it broke with is on record
            return

    def _listed(self) -> str:
        actions = self.observation.actions or ()
        if self._numbered:
            return "\n".join(["You can:", *(f"{n}. {action}" for n, action in enumerate(actions[:MOST_LISTED], 1))])
        more = f", … ({len(actions)} in all)" if len(actions) > MOST_LISTED else ""
        return f"You can: {', '.join(actions[:MOST_LISTED])}{more}"

    def _no_action(self) -> str:
        return f"That is no action. {self._listed()}" if self.observation.actions else "That is no action."

    def _fail(self, error: Exception) -> None:
        self.fault = f"{type(error).__name__}: {error}"
        self.done = True
        self.release()


def replay(pool: Pool, item: Item, transcript: Transcript, rules: EpisodeRules) -> Episode:
    """The episode that a transcript's actions make. Actions after its end are passed over; where what the environment
    says now differs from what the transcript tells, that is a fault: then nothing follows from the text."""
    episode = Episode(pool, item, rules)
    try:
        for index, turn in enumerate(transcript.turns, 1):
            if episode.done:
                break
            episode.act(turn.action, turn.said)
            told, said = turn.observation, episode.turns[-1].observation
            if told is not None and said is not None and told != said and episode.fault is None:
                episode.fault = (
                    f"the replay differs from the transcript at step {index}: it says {clip(said)!r}, "
                    f"the transcript {clip(told)!r}"
                )
                episode.done = True
    finally:
        episode.release()
    return episode


@dataclass(kw_only=True)
class Seat:
    """One policy at one episode: what it was asked and what it has spent."""

    episode: Episode
    request: Request
    seed: int
    prompt_tokens: int = 0
    tokens: tuple[int, ...] = ()
    turns: int = 0
    error: str | None = None

    def ask(self) -> Request:
        seed = child_seed("episode-turn", self.seed, self.turns)
        prompt = self.episode.prompt(self.request.prompt)
        return Request(prompt=prompt, conditioning=self.request.conditioning, seeds=(seed,))

    def take(self, completion: Completion) -> None:
        self.turns += 1
        self.prompt_tokens += completion.prompt_tokens
        self.tokens += completion.tokens
        if completion.finish == "error":
            self.error = completion.error or "the policy gave no reason"
            self.episode.release()
            return
        self.episode.act(self.episode.read(completion.text), completion.text)

    @property
    def live(self) -> bool:
        return self.error is None and not self.episode.done

    def completion(self) -> Completion:
        out_of_steps = self.episode.reason.startswith("out of steps")
        return Completion(
            tokens=self.tokens,
            logprobs=(),
            text=self.episode.transcript.text(),
            finish="error" if self.error is not None else "length" if out_of_steps else "stop",
            prompt_tokens=self.prompt_tokens,
            error=self.error,
            turns=max(1, self.turns),
        )


def play_episodes(
    pool: Pool,
    policy: Policy,
    items: Sequence[Item],
    requests: Sequence[Request],
    sampling: Sampling,
    rules: EpisodeRules,
) -> list[list[Seat]]:
    """Play one episode for each seed of each request, about the item at its place: every turn is one call of the policy
    with a request for each episode that is under way. The seed of a turn is that of the episode and the turn's number,
    so an episode does not depend on what it was played beside."""
    if len(items) != len(requests):
        raise ValueError(f"each request is about one item; got {len(items)} items and {len(requests)} requests")
    rows: list[list[Seat]] = [[] for _ in requests]
    waiting = [(index, seed) for index, request in enumerate(requests) for seed in request.seeds]
    for start in range(0, len(waiting), rules.max_live):
        seats = []
        try:
            for index, seed in waiting[start : start + rules.max_live]:
                request = requests[index]
                asked = Request(
                    prompt=request.prompt, conditioning=request.conditioning.for_item(items[index]), seeds=(seed,)
                )
                seats.append(Seat(episode=Episode(pool, items[index], rules), request=asked, seed=seed))
                rows[index].append(seats[-1])
            while live := [seat for seat in seats if seat.live]:
                answers = policy.sample([seat.ask() for seat in live], sampling)
                for seat, answer in zip(live, answers, strict=True):
                    seat.take(answer[0])
        finally:
            for seat in seats:
                seat.episode.release()
    return rows
