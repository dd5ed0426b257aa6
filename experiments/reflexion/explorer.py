"""A scripted player of the two text games: it explores, keeps a map within an attempt, and believes what its notes say.

Nothing is learned between attempts but through the notes, so what an arm gains is what its notes are worth. The same
file has the scripted reflector, which writes down the map that an attempt has found.
"""

from __future__ import annotations

import re
from collections import deque
from dataclasses import dataclass, field

from twoclock.agent.reflectors import Failure
from twoclock.models.scripted import ScriptedPolicy
from twoclock.seeding import child_rng
from twoclock.types import Conditioning

WAYS = ("north", "east", "south", "west")
_ROOM = re.compile(r"You are in the ([a-z ]+)\.")
_SEEN_WAY = re.compile(r"To the (North|South|East|West) you see the ([a-z ]+)\.")
_WAYS_OUT = re.compile(r"Ways out: ([^.\n]+)\.")
_THING = re.compile(r"\b((?:red|blue|green|yellow|black|white) key|coin)\b")
_LED = re.compile(r"From the ([a-z ]+), (north|east|south|west) leads to the ([a-z ]+)\.")
_WAY = re.compile(r"From the ([a-z ]+) a way goes (north|east|south|west)\.")
_EMPTY = re.compile(r"No coin in the ([a-z ]+)\.")
_LIES = re.compile(r"The ([a-z ]+) lies in the ([a-z ]+)\.")
_TRIED = re.compile(r'^At (?:the beginning|"You are in the ([a-z ]+)\.") I did (.*)\.$', re.MULTILINE)
_LAST = "My last attempt at this task:\n"
_ORACLE = "What works, step by step:"


@dataclass
class Knowledge:
    """What is known of a house."""

    led: dict[tuple[str, str], str | None] = field(default_factory=dict)
    """Where a way leads; None where there is one and nobody has seen where to."""
    empty: set[str] = field(default_factory=set)
    """Rooms that were looked at and hold no coin."""
    lies: dict[str, str] = field(default_factory=dict)
    """Things that were seen, and where."""
    held: set[str] = field(default_factory=set)
    shut: dict[tuple[str, str], str] = field(default_factory=dict)
    """Ways that a locked door bars, and its colour."""
    here: str = ""
    visible: tuple[str, ...] = ()
    turns: int = 0

    def sees(self, told: str) -> None:
        """Take in what the game said."""
        if locked := re.search(r"The ([a-z]+) door is locked", told):
            self.shut.setdefault((self.here, self._going), locked[1])
            return
        if taken := re.search(r"You take the ([a-z ]+)\.", told):
            self.held.add(taken[1])
            self.lies.pop(taken[1], None)
            self.visible = tuple(thing for thing in self.visible if thing != taken[1])
            return
        room = _ROOM.search(told)
        if room is None:
            return
        came_from, self.here = self.here, room[1]
        if came_from and self._going and came_from != self.here:
            self.led[came_from, self._going] = self.here
        for way, other in _SEEN_WAY.findall(told):
            self.led[self.here, way.lower()] = other
        if ways := _WAYS_OUT.search(told):
            for part in ways[1].split(","):
                self.led.setdefault((self.here, part.split()[0]), None)
        seen = told[room.start() :].split("Ways out")[0]
        self.visible = tuple(dict.fromkeys(_THING.findall(seen)))
        self.lies |= {thing: self.here for thing in self.visible if thing not in self.held}
        if "coin" not in self.visible:
            self.empty.add(self.here)

    _going: str = ""

    def does(self, action: str) -> None:
        self.turns += 1
        last = action.split()[-1] if action.split() else ""
        self._going = last if last in WAYS else ""


def read_history(text: str, start: str) -> Knowledge:
    """The knowledge that a transcript holds, after what the item's prompt says at the start."""
    known = Knowledge()
    known.sees(start)
    told: list[str] = []
    for line in [*text.split("\n"), "> "]:
        if line.startswith("  "):
            told.append(line[2:])
            continue
        if told:
            known.sees("\n".join(told))
            told = []
        if line.startswith("> ") and line[2:]:
            known.does(line[2:])
    return known


def parts_of(prompt: str) -> tuple[str, str]:
    """(what the item says, the transcript so far) of a turn's prompt."""
    lines = prompt.split("\n")
    first = next((i for i, line in enumerate(lines) if line.startswith(("> ", "? ", "("))), len(lines))
    return "\n".join(lines[:first]), "\n".join(lines[first:])


def lesson_of(failure: Failure) -> str:
    """The scripted reflection: the map that the attempt found, in sentences."""
    known = read_history(failure.text, failure.item.prompt)
    before = "\n".join(failure.earlier)
    lines = [f"From the {a}, {way} leads to the {b}." for (a, way), b in known.led.items() if b]
    lines += [f"From the {a} a way goes {way}." for (a, way), b in known.led.items() if not b]
    lines += [f"The {thing} lies in the {room}." for thing, room in known.lies.items()]
    lines += [f"No coin in the {room}." for room in sorted(known.empty)]
    return "\n".join(line for line in lines if line not in before)


def explorer(*, reads_notes: bool = True, name: str = "explorer") -> ScriptedPolicy:
    """The player; with ``reads_notes=False`` it ignores its notes: the placebo."""

    def script(prompt: str, conditioning: Conditioning, seed: int) -> str:
        start, history = parts_of(prompt)
        known = read_history(history, start)
        notes = "\n".join(conditioning.notes).replace("\n> ", "\n") if reads_notes else ""
        return choose(known, notes, start, seed)

    return ScriptedPolicy(script, name=name, context_tokens=1 << 20)


def choose(known: Knowledge, notes: str, start: str, seed: int) -> str:
    """The next action: take what is useful, follow a solution, go where the coin is known to lie, else to the nearest
    room that nobody has looked at."""
    if _ORACLE in notes:
        steps = [line for line in notes.split(_ORACLE)[-1].split("\n") if line.startswith(("move ", "go ", "take "))]
        if known.turns < len(steps):
            return steps[known.turns]
    for thing in known.visible:
        if thing not in known.held:
            return f"take {thing}"
    told = Knowledge(led=dict(known.led), empty=set(known.empty), lies=dict(known.lies))
    if _LAST in notes:  # the attempt before, as it was: the same map can be read off it
        last = read_history(notes.split(_LAST)[1].split("\n\nOutcome:")[0], start)
        told.led |= {edge: room for edge, room in last.led.items() if told.led.get(edge) is None}
        told.empty |= last.empty
        told.lies |= {t: room for t, room in last.lies.items() if t not in known.held and room not in known.empty}
    for a, way, b in _LED.findall(notes):
        if told.led.get((a, way)) is None:
            told.led[a, way] = b
    for a, way in _WAY.findall(notes):
        told.led.setdefault((a, way), None)
    told.empty |= set(_EMPTY.findall(notes))
    for thing, room in _LIES.findall(notes):
        if thing not in known.held and room not in known.empty:
            told.lies.setdefault(thing, room)
    tried = {
        (room or known.here, act.split()[-1])
        for room, did in _TRIED.findall(notes)
        for act in re.findall("'([^']+)'", did)
    }
    way = next_way(known, told, tried, seed)
    return f"{'go' if 'Ways out' in start else 'move'} {way}"


def next_way(known: Knowledge, told: Knowledge, tried: set[tuple[str, str]], seed: int) -> str:
    rng = child_rng("explorer", seed)
    barred = {edge for edge, colour in known.shut.items() if f"{colour} key" not in known.held}
    goals = {room for thing, room in told.lies.items() if thing == "coin"} or {
        room for thing, room in told.lies.items() if thing not in known.held
    }
    first: dict[str, str] = {known.here: ""}
    queue = deque([known.here])
    frontier: list[tuple[bool, str]] = []
    while queue:
        room = queue.popleft()
        ways = [way for way in WAYS if (room, way) in told.led and (room, way) not in barred]
        rng.shuffle(ways)
        for way in ways:
            other, step = told.led[room, way], first[room] or way
            if other is None or (other not in told.empty and other not in known.empty and not goals):
                frontier.append(((room, way) in tried, step))
            if other is not None and other not in first:
                first[other] = step
                queue.append(other)
        reached = [first[goal] for goal in goals if first.get(goal)]
        if reached:
            return reached[0]
        fresh = [step for was_tried, step in frontier if not was_tried]
        if fresh and not goals:
            return rng.choice(fresh)
    if frontier:
        return rng.choice([step for _, step in frontier])
    known_ways = [way for way in WAYS if (known.here, way) in told.led] or list(WAYS)
    return rng.choice(known_ways)
