"""``twoclock chat RUN``: talk to the model under what a run has learned."""

from __future__ import annotations

import contextlib
import math
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from twoclock.cli.output import clean, run_argument, say, show
from twoclock.errors import ConfigError, unknown_name

if TYPE_CHECKING:
    from twoclock.build import Session
    from twoclock.types import Conditioning, Sampling, TokenShift

COMMANDS = {
    "/base": "the untouched base model, or what was learned (a switch)",
    "/weights": "the learned weights on or off",
    "/prompt": "the learned prompt on or off",
    "/task NAME": "the prompt learned for another task",
    "/show": "what the model is shown before your message, and what shifts its answers",
    "/why": "which tokens of the last answer were shifted, and by how much",
    "/new": "forget this conversation",
    "/help": "these commands",
    "/quit": "leave (also Ctrl-D)",
}


@click.command("chat")
@run_argument
@click.option("--task", metavar="NAME", help="Whose learned prompt to use.  [default: the task of the last round]")
@click.option("--round", "number", metavar="N", type=int, help="The states of this round.  [default: what is live]")
@click.option("--max-tokens", metavar="N", type=click.IntRange(min=1), default=256, show_default=True)
@click.option("--temperature", type=click.FloatRange(min=0.0), help="0 is greedy.  [default: that of the run]")
@click.option("--seed", type=int, default=0, show_default=True, help="Of the sampling: the same seed, the same talk.")
def command(
    run: Path, task: str | None, number: int | None, max_tokens: int, temperature: float | None, seed: int
) -> None:
    """Talk to the model as it stands: trained weights, and the prompt learned for one task.

    Reads the run and writes nothing. Lines may also be piped in: each is a message, answers go to standard output.
    Type /help for the commands; /base switches to the untouched base model and back.
    """
    from twoclock.build import open_session
    from twoclock.types import Sampling

    session = open_session(run, progress=say)
    with session.store as store:
        snapshot = store.head() if number is None else store.snapshot_at(number)
        channels = session.parts.channels
        states = {name: channel.load(store.get_blob(snapshot.states[name])) for name, channel in channels.items()}
        rounds = store.rounds()
        default = rounds[-1].task if rounds else session.parts.stream.phases[0].task
        if task is not None and task not in session.parts.tasks:
            raise ConfigError(unknown_name("task", task, session.parts.tasks))
        own = session.parts.sampling
        # The run's limit and stops fit its answers, not a conversation.
        sampling = Sampling(
            max_new_tokens=max_tokens,
            temperature=own.temperature if temperature is None else temperature,
            top_p=own.top_p,
            top_k=own.top_k,
        )
        talk = Talk(session, states, task or default, sampling, seed)
        say(f"round {snapshot.round}, {session.policy.card.name}; {talk.standing()}; /help lists the commands")
        for line in _lines():
            if not talk.hear(line):
                break


def _lines() -> Iterator[str]:
    """What is typed, or piped in; ends with the input."""
    if not sys.stdin.isatty():
        for line in sys.stdin:
            if line.strip():
                yield line.strip()
        return
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401  (line editing and history, where there is any)
    while True:
        try:
            line = input("you> ").strip()
        except EOFError:
            say("")
            return
        if line:
            yield line


@dataclass
class Talk:
    """One conversation: its turns, and what is switched on."""

    session: Session
    states: dict[str, Any]
    task: str
    sampling: Sampling
    seed: int
    weights: bool = True
    prompt: bool = True
    turns: tuple[tuple[str, str], ...] = ()
    count: int = 0
    last: tuple[str, Conditioning, tuple[int, ...]] | None = None
    """The last message, what it was answered under, and the answer's tokens."""

    def hear(self, line: str) -> bool:
        """Obeys a command or answers a message; False to end."""
        word, _, rest = line.partition(" ")
        if not word.startswith("/"):
            self._answer(line)
            return True
        if word in ("/quit", "/exit"):
            return False
        if word == "/base":
            self.weights = self.prompt = not (self.weights or self.prompt)
        elif word == "/weights":
            self.weights = not self.weights
        elif word == "/prompt":
            self.prompt = not self.prompt
        elif word == "/task":
            self._change_task(rest.strip())
        elif word == "/new":
            self.turns = ()
            say("a new conversation")
        elif word == "/show":
            say(_shown(self._learned()))
        elif word == "/why":
            self._explain()
        elif word == "/help":
            say("\n".join(f"{name:<11} {what}" for name, what in COMMANDS.items()))
        else:
            say(unknown_name("command", word, [name.split()[0] for name in COMMANDS]))
        if word in ("/base", "/weights", "/prompt", "/task"):
            say(self.standing())
        return True

    def standing(self) -> str:
        """What is talking, in words."""
        learned = self._learned()
        if learned.is_identity:
            return f"talking: the base model, untouched (task {self.task})"
        weights = "trained weights" if learned.delta else "base weights"
        told = learned.system is not None or learned.exemplars
        prompt = f"the prompt learned for {self.task}" if told else "no learned prompt"
        memory = ", with what memory finds" if learned.recall or learned.notes else ""
        shifts = f", shifted by {', '.join(map(str, learned.shifts))}" if learned.shifts else ""
        return f"talking: {weights}, {prompt}{memory}{shifts}"

    def _change_task(self, name: str) -> None:
        known = self.session.parts.tasks
        if name in known:
            self.task = name
        else:
            say(unknown_name("task", name, known))

    def _learned(self) -> Conditioning:
        from twoclock.evaluation import conditioning_of

        cell = ("live" if self.weights else "base", "learned" if self.prompt else "none")
        return conditioning_of(self.session.parts.channels, self.states, self.task, cell)  # type: ignore[arg-type]

    def _answer(self, message: str) -> None:
        from twoclock.seeding import child_seed
        from twoclock.types import Conditioning, Item, Request

        learned = self._learned().for_item(Item(id="chat", prompt=message))
        self._make_room(message, learned)
        told = learned.join(Conditioning(exemplars=self.turns))
        seeds = (child_seed("chat", self.seed, self.count),)
        completion = self.session.policy.sample(
            [Request(prompt=message, conditioning=told, seeds=seeds)], self.sampling
        )[0][0]
        self.count += 1
        self.last = (message, told, completion.tokens)
        if completion.finish == "error":
            say(f"no answer: {completion.error or 'unknown error'}; /new forgets the conversation so far")
            return
        text = clean(completion.text.strip())
        show(f"model> {text}" if sys.stdin.isatty() else text)
        if completion.finish == "length":
            say(f"(cut after {self.sampling.max_new_tokens} tokens; --max-tokens allows more)")
        self.turns = (*self.turns, (message, completion.text))

    def _explain(self) -> None:
        """What the shifts did to the last answer."""
        from twoclock.contracts import Shifting

        policy = self.session.policy
        if self.last is None or not self.last[2]:
            say("there is no answer yet: say something first")
        elif not self.last[1].shifts:
            say("nothing shifted that answer")
        elif not isinstance(policy, Shifting):
            say(f"{policy.card.name} cannot say what shifted its answers")
        else:
            say("\n".join(shift_lines(policy.token_shifts(*self.last))))

    def _make_room(self, message: str, learned: Conditioning) -> None:
        """Drops the oldest turns while message and answer do not fit the model's context."""
        from twoclock.contracts import Trainable

        policy = self.session.policy
        if not isinstance(policy, Trainable):
            return
        dropped = 0
        room = policy.card.context_tokens - self.sampling.max_new_tokens
        while (
            self.turns
            and policy.prompt_tokens(message, replace(learned, exemplars=learned.exemplars + self.turns)) > room
        ):
            self.turns, dropped = self.turns[1:], dropped + 1
        if dropped:
            say(f"(the {dropped} oldest turns no longer fit the model's context and are forgotten)")


def shift_lines(found: Sequence[TokenShift], *, most: int = 20, least: float = 0.1) -> list[str]:
    """The tokens that were moved by at least ``least`` nats, in the order of the answer, no more than the ``most``
    moved ones, under a line that sums up."""
    moved = [(i, one) for i, one in enumerate(found) if abs(one.moved) >= least or one.changed]
    changed = sum(one.changed for one in found)
    lines = [
        f"{len(moved)} of {len(found)} tokens were moved by {least:g} nats or more; {changed} would have been others"
    ]
    kept = sorted(sorted(moved, key=lambda pair: -abs(pair[1].moved))[:most])
    for i, one in kept:
        chance = f"{math.exp(one.before):.3f} → {math.exp(one.after):.3f}"
        instead = f", instead of {clean(one.instead)!r}" if one.changed and one.instead != one.text else ""
        lines.append(f"{i + 1:>4}  {clean(one.text)!r:<16} {chance} ({one.moved:+.1f}){instead}")
    if len(kept) < len(moved):
        lines.append(f"      … and {len(moved) - len(kept)} that moved less")
    if (unknown := max((one.uncovered for one in found), default=0.0)) > 0.001:
        lines.append(f"      up to {unknown:.1%} of the probability lay on tokens that an expert does not know")
    return lines


def _shown(told: Conditioning) -> str:
    lines = [] if told.system is None else [f"system: {told.system}"]
    for question, answer in told.exemplars:
        lines += [f"user: {question}", f"assistant: {answer}"]
    lines += [f"shift: {shift}" for shift in told.shifts]
    return "\n".join(lines) or "nothing but your message"
