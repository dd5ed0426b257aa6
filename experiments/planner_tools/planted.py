"""What is planted: kinds of questions, four tools, and hidden from everybody which tool answers which kind.

An item has one part or two; a part is of one of twelve kinds, told by its words (places and numbers differ from item to
item, and come up with every kind; all else is the same). A tool gives the part's answer if it is the right one for the
kind, and otherwise a text that says that nothing was found. Planner and executor are scripts: the planner gives each
part as a subtask and answers with the results, the executor calls one tool (the first that a note says helped, else one
that no note says did not help, else any; one time in ten any at all) and gives what it gave. So a tool by chance is
right one time in four, and everything beyond is memory.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass

from twoclock.agent.toolbox import Toolbox
from twoclock.agent.tools import as_tool
from twoclock.models.scripted import ScriptedPolicy
from twoclock.seeding import child_rng, child_seed
from twoclock.types import Conditioning, Grade, Item

KINDS = (
    "glacier depth", "tram timetable", "opera cast", "harbour dues", "orchid bloom", "bridge load", "violin maker",
    "census count", "comet orbit", "cheese ripening", "stamp print run", "tunnel length",
)  # fmt: skip
TOOLS = ("archive", "gauge", "ledger", "survey")
PLACES = ("Aldby", "Brenn", "Corvik", "Dunmar", "Elsfjord", "Farnholt", "Grimsey", "Hollen", "Iskar", "Jorvin")
NOTHING_FOUND = "nothing found"
EXPLORE = 0.1

_PART = re.compile(r"what is the ([a-z ]+) of (\w+ \d+)", re.IGNORECASE)
_CALLED = re.compile(r"You called \w+ with .*:\n> (.*)")
_SAID = re.compile(r"Calling (\w+) with .*?(did not help|helped)")


@dataclass(frozen=True)
class World:
    """One drawing of everything that is hidden."""

    seed: int

    def right(self, kind: str) -> str:
        """The tool that answers a kind."""
        return child_rng("right-tool", self.seed, kind).choice(TOOLS)

    def answer(self, kind: str, place: str) -> str:
        return str(child_seed("answer", self.seed, kind, place) % 10_000)

    def item(self, number: int) -> Item:
        """The item of an episode; even ones have one part, odd ones two of different kinds."""
        rng = child_rng("item", self.seed, number)
        parts = [(kind, f"{rng.choice(PLACES)} {rng.randrange(1000)}") for kind in rng.sample(KINDS, 1 + number % 2)]
        prompt = " and ".join(f"what is the {kind} of {place}" for kind, place in parts)
        gold = ", ".join(self.answer(*part) for part in parts)
        return Item(id=f"q{number}", prompt=f"Please find out: {prompt}?", reference=gold)

    def grade(self, item: Item, answer: str | None) -> Grade:
        return Grade(reward=float(answer == item.reference))

    def toolbox(self) -> Toolbox:
        return Toolbox([as_tool(self._tool(name), name=name, pure=True, version="1") for name in TOOLS])

    def _tool(self, name: str) -> Callable[[str], str]:
        def look(question: str) -> str:
            """Looks a question up in one place among several."""
            found = _PART.search(question)
            known = found is not None and self.right(found[1].strip()) == name
            return self.answer(found[1].strip(), found[2]) if known and found else NOTHING_FOUND

        return look


def parts(prompt: str) -> list[str]:
    return [found[0] for found in _PART.finditer(prompt)]


def policy(*, reads_notes: bool = True) -> ScriptedPolicy:
    """Both roles. ``reads_notes=False`` is an executor that never looks at what memory says."""

    def script(prompt: str, conditioning: Conditioning, seed: int) -> str:
        if "Write JSON only" in prompt:
            results = re.findall(r"^> result: (.*)$", prompt, re.MULTILINE)
            if results:
                return json.dumps({"answer": ", ".join(results)})
            return json.dumps({"plan": [{"task": part} for part in parts(prompt.split("\n\n")[0])]})
        gave = _CALLED.findall(prompt)
        if gave and (gave[-1] != NOTHING_FOUND or "Write a tool call" not in prompt):
            return gave[-1]
        if "Write a tool call" not in prompt:
            return "I do not know."
        subtask = prompt.split("Your subtask:\n> ", 1)[1].splitlines()[0]
        tried = re.findall(r"You called (\w+) with", prompt)
        tool = choose("\n".join(conditioning.notes) if reads_notes else "", tried, seed)
        return f"<tool_call>{json.dumps({'name': tool, 'arguments': {'question': subtask}})}</tool_call>"

    return ScriptedPolicy(script, context_tokens=1 << 20)


def choose(notes: str, tried: list[str], seed: int) -> str:
    """The tool that the executor calls; every branch draws from the same random numbers, so that arms are paired."""
    rng = child_rng("executor", seed, *tried)
    explores, order = rng.random() < EXPLORE, [t for t in rng.sample(TOOLS, len(TOOLS)) if t not in tried]
    said = [] if explores else _SAID.findall(notes)
    helped = [tool for tool, verdict in said if verdict == "helped" and tool in order]
    useless = {tool for tool, verdict in said if verdict != "helped"}
    return (helped or [t for t in order if t not in useless] or order)[0]
