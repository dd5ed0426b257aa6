"""A planner that divides a task and an executor that runs the parts with tools (Memento, arXiv:2508.16153, section 4).

One episode: the planner reads the cases that memory offers and writes a plan of subtasks; the executor runs each, with
tool calls; the planner reads the results and plans on or answers. Three memories meet here: *cases* come in through the
conditioning's notes, the *subtask* memory is the list of results that both read, the *tool* memory is what the executor
is told about calls that helped before (``hints``). Everything is bounded and counted.

Episodes run side by side: each is a generator that asks for one reply at a time, and the replies that all of them wait
for are sampled in one call. A reply follows from (prompt, conditioning, seed), so an episode is the same alone, among
others and after a restart, as far as its tools are.

Departures from the published code: the subtask memory is its own record, not a shared chat; replies are read by a
parser that takes lists as well as JSON, and asks once more where it understands nothing; bounds are checked before a
call, not after.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from twoclock.agent.planned_episode import CallRecord, PlannedEpisode, SubtaskRecord, Turn
from twoclock.agent.planner_prompts import executor_prompt, planner_prompt, repair_prompt
from twoclock.agent.plans import PlanRead, parse_plan
from twoclock.agent.quoting import bounded
from twoclock.agent.tool_calls import parse_calls
from twoclock.agent.toolbox import Toolbox
from twoclock.contracts import Policy
from twoclock.errors import ConfigError
from twoclock.seeding import child_seed
from twoclock.tasks.environments import ToolCall
from twoclock.types import Completion, Conditioning, Request, Sampling

__all__ = ["Hints", "PlannerConfig", "PlannerExecutor", "Problem"]

Role = Literal["planner", "executor"]
Hints = Callable[[Role, str], Conditioning]
"""(role, situation) → what memory says about it: of a conditioning, ``notes`` and ``recalled`` alone. Must be a
function of its arguments. The planner's situation is the task, the executor's its subtask."""

MAX_REPLY_CHARS = 20_000
"""What is kept of one reply."""
UNREAD = 3
"""What of one reply looks like a call and is none is told so often."""


@dataclass(frozen=True, kw_only=True)
class PlannerConfig:
    """The bounds of one episode."""

    cycles: int = 3
    """Plans that may be run; after the last the planner is asked for its answer."""
    max_subtasks: int = 8
    """Subtasks of one plan."""
    tool_rounds: int = 4
    """Replies with tool calls that the executor may give on one subtask. 0 leaves it without tools."""
    calls_per_subtask: int = 6
    """Tool calls that are run for one subtask, over all its rounds."""
    plan_tokens: int = 256
    """The longest reply of the planner."""
    executor_tokens: int = 256
    """The longest reply of the executor."""
    max_tokens: int = 175_000
    """Tokens of an episode, read and written; the episode ends when they are spent."""
    result_chars: int = 1000
    """What planner and executor see of an earlier subtask's result."""
    notes_to: Literal["planner", "executor", "both"] = "both"
    """Who is shown the notes of the conditioning. The executor never gets its exemplars: they answer whole tasks."""

    def __post_init__(self) -> None:
        least = {"tool_rounds": 0, "calls_per_subtask": 0}
        problems = [
            f"'{name}' must be a whole number of at least {least.get(name, 1)}; got {value!r}"
            for name, value in vars(self).items()
            if name != "notes_to" and (type(value) is not int or value < least.get(name, 1))
        ]
        if self.notes_to not in ("planner", "executor", "both"):
            problems.append(f"'notes_to' must be 'planner', 'executor' or 'both'; got {self.notes_to!r}")
        if problems:
            raise ConfigError(problems)


@dataclass(frozen=True, kw_only=True)
class Problem:
    """One episode to play."""

    prompt: str
    conditioning: Conditioning = field(default_factory=Conditioning)
    """Asked already: its ``recall`` is empty (:meth:`~twoclock.types.Conditioning.for_item`)."""
    seed: int = 0
    name: str = ""
    """The episode's name: what is remembered of it names it as its provenance."""


@dataclass(frozen=True)
class _Ask:
    role: Role
    prompt: str
    conditioning: Conditioning
    seed: int
    max_new_tokens: int


class _StoppedError(Exception):
    """Ends an episode from within, with the reason that stands in its record."""

    def __init__(self, failure: str = "", error: str = "") -> None:
        super().__init__(failure or error)
        self.failure, self.error = failure, error


Asking = Generator[_Ask, Completion, str]


class PlannerExecutor:
    """Plays episodes. Holds nothing between them but the toolbox and what that remembers."""

    def __init__(
        self,
        planner: Policy,
        executor: Policy | None = None,
        *,
        toolbox: Toolbox | None = None,
        config: PlannerConfig | None = None,
        hints: Hints | None = None,
    ) -> None:
        """``executor`` is by default the planner itself."""
        self._policies: dict[Role, Policy] = {"planner": planner, "executor": executor or planner}
        self.toolbox = toolbox if toolbox is not None else Toolbox()
        self.config = config or PlannerConfig()
        self.hints = hints

    def run(self, problems: Sequence[Problem], sampling: Sampling | None = None) -> list[PlannedEpisode]:
        """One episode a problem, in order. ``sampling`` gives temperature, top-p and top-k; the lengths of replies are
        the config's, and stop strings are not used: they would cut plans. A policy that fails on a reply ends that
        episode with its ``error``; what a policy raises is raised."""
        sampling = sampling or Sampling()
        done: dict[int, PlannedEpisode] = {}
        waiting: list[tuple[int, Generator[_Ask, Completion, PlannedEpisode], _Ask]] = []
        for index, problem in enumerate(problems):
            episode = _Episode(self, problem).play()
            waiting.append((index, episode, next(episode)))
        while waiting:
            replies = self._sample([ask for _, _, ask in waiting], sampling)
            still = []
            for (index, episode, _), reply in zip(waiting, replies, strict=True):
                try:
                    still.append((index, episode, episode.send(reply)))
                except StopIteration as end:
                    done[index] = end.value
            waiting = still
        return [done[index] for index in range(len(problems))]

    def _sample(self, asks: Sequence[_Ask], sampling: Sampling) -> list[Completion]:
        """One completion an ask. Asks that differ in the seed alone are one request: their prompt is read once."""
        replies: dict[int, Completion] = {}
        batches: dict[tuple[int, int], list[int]] = {}
        for index, ask in enumerate(asks):
            batches.setdefault((id(self._policies[ask.role]), ask.max_new_tokens), []).append(index)
        for (_, longest), members in batches.items():
            rows: dict[tuple[str, Conditioning], list[int]] = {}
            for index in members:
                rows.setdefault((asks[index].prompt, asks[index].conditioning), []).append(index)
            requests = [
                Request(prompt=prompt, conditioning=conditioning, seeds=tuple(asks[i].seed for i in row))
                for (prompt, conditioning), row in rows.items()
            ]
            policy = self._policies[asks[members[0]].role]
            sampled = policy.sample(requests, replace(sampling, max_new_tokens=longest, stop=()))
            for row, completions in zip(rows.values(), sampled, strict=True):
                replies.update(zip(row, completions, strict=True))
        return [replies[index] for index in range(len(asks))]


class _Episode:
    """One episode in progress; :meth:`play` is the recipe, the rest its steps."""

    def __init__(self, owner: PlannerExecutor, problem: Problem) -> None:
        self.config, self.toolbox, self.hints = owner.config, owner.toolbox, owner.hints
        self.problem = problem
        self.tools = self.toolbox.describe() if self.config.tool_rounds else ""
        self.record = PlannedEpisode()

    def play(self) -> Generator[_Ask, Completion, PlannedEpisode]:
        try:
            yield from self._cycles()
        except _StoppedError as stop:
            self.record = replace(self.record, failure=stop.failure, error=stop.error)
        return self.record

    def _cycles(self) -> Generator[_Ask, Completion, None]:
        told = self._told("planner", self.problem.prompt)
        self.record = replace(self.record, recalled=told.recalled)
        for cycle in range(self.config.cycles + 1):
            last = cycle == self.config.cycles
            read = yield from self._plan(told, last)
            if read.answer is not None:
                self.record = replace(self.record, answer=read.answer)
                return
            self.record = replace(self.record, plans=(*self.record.plans, read.subtasks))
            for subtask in read.subtasks:
                yield from self._subtask(subtask)

    def _plan(self, told: Conditioning, last: bool) -> Generator[_Ask, Completion, PlanRead]:
        """The planner's plan or answer; asked a second time where the first reply is neither."""
        prompt = planner_prompt(
            self.problem.prompt,
            self.tools,
            self.record.subtasks,
            last=last,
            max_subtasks=self.config.max_subtasks,
            result_chars=self.config.result_chars,
        )
        asked = prompt
        for attempt in range(2):
            reply, cut = yield from self._reply("planner", asked, told)
            read = parse_plan(reply, max_subtasks=self.config.max_subtasks)
            problem = read.problem
            if last and read.subtasks:
                problem = "it is a plan, and only an answer can be used now"
            if not problem:
                return read
            problem += f" (the reply was cut after {self.config.plan_tokens} tokens)" if cut else ""
            if attempt == 0:
                self.record = replace(self.record, repairs=self.record.repairs + 1)
                asked = repair_prompt(prompt, reply, problem)
        where = f"no answer after {self.config.cycles} plans" if last else "no plan"
        raise _StoppedError(f"{where}: the planner's reply cannot be used, asked twice: {problem}")

    def _subtask(self, task: str) -> Generator[_Ask, Completion, None]:
        told = self._told("executor", task)
        calls: list[CallRecord] = []
        rounds = self.config.tool_rounds if self.tools else 0
        result, done = f"(no result within {rounds} rounds of tool calls)", False
        try:
            for number in range(rounds + 1):
                last = number == rounds or len(calls) >= self.config.calls_per_subtask
                prompt = self._executor_prompt(task, calls, last)
                reply, _ = yield from self._reply("executor", prompt, told)
                made = self._calls(reply, self.config.calls_per_subtask - len(calls))
                if not made:
                    result, done = (reply.strip(), True) if reply.strip() else ("(an empty reply)", False)
                    break
                if last:
                    break
                calls += made
        except _StoppedError as stop:
            result = f"(not finished: {stop})"
            raise
        finally:
            # What was called stands in the record also where the episode ends in the middle of the subtask.
            subtask = SubtaskRecord(task=task, result=result, done=done, calls=tuple(calls), recalled=told.recalled)
            self.record = replace(self.record, subtasks=(*self.record.subtasks, subtask))

    def _executor_prompt(self, task: str, calls: Sequence[CallRecord], last: bool) -> str:
        return executor_prompt(
            self.problem.prompt,
            task,
            self.tools,
            self.record.subtasks,
            calls,
            last=last,
            result_chars=self.config.result_chars,
        )

    def _calls(self, reply: str, left: int) -> list[CallRecord]:
        """What became of the calls in a reply: none where it holds no call. At most ``left`` are run."""
        read, left = parse_calls(reply), max(0, left)
        records = [self._called(call) for call in read.calls[:left]]
        if len(read.calls) > left:
            name, text = read.calls[left].name, f"at most {self.config.calls_per_subtask} tool calls for a subtask"
            records.append(CallRecord(name=name, arguments={}, result=f"not run: {text}", problem="busy"))
        unread = [
            CallRecord(name="(unreadable)", arguments={}, result=p, problem="arguments") for p in read.problems[:UNREAD]
        ]
        return records + unread

    def _called(self, call: ToolCall) -> CallRecord:
        result = self.toolbox.call(call, provenance=self.problem.name)
        arguments = call.arguments if result.arguments is None else result.arguments
        return CallRecord(name=call.name, arguments=arguments, result=result.text, problem=result.problem)

    def _reply(self, role: Role, prompt: str, told: Conditioning) -> Generator[_Ask, Completion, tuple[str, bool]]:
        """(the reply, whether it was cut by its length); counts it, and ends the episode where it may not be asked."""
        record = self.record
        spent = record.prompt_tokens + record.completion_tokens
        if spent >= self.config.max_tokens:
            raise _StoppedError(f"{spent} tokens were spent of {self.config.max_tokens}")
        longest = self.config.plan_tokens if role == "planner" else self.config.executor_tokens
        seed = child_seed("planner-episode", self.problem.seed, len(record.turns))
        reply: Completion = yield _Ask(role, prompt, told, seed, longest)
        text = reply.text.encode("utf-8", "replace").decode("utf-8")
        self.record = replace(
            self.record,
            turns=(*self.record.turns, Turn(role=role, text=bounded(text, MAX_REPLY_CHARS))),
            prompt_tokens=self.record.prompt_tokens + reply.prompt_tokens,
            completion_tokens=self.record.completion_tokens + len(reply.tokens),
            tokens=self.record.tokens + tuple(reply.tokens),
        )
        if reply.finish == "error":
            raise _StoppedError(error=f"the {role} failed: {reply.error}")
        return text, reply.finish == "length"

    def _told(self, role: Role, situation: str) -> Conditioning:
        """The conditioning of one role: what the episode came with, as far as it is for it, and what memory adds."""
        told = self.problem.conditioning
        if role == "executor":
            told = replace(told, exemplars=())
        if self.config.notes_to not in (role, "both"):
            told = replace(told, notes=(), recalled=())
        if self.hints is not None:
            hint = self.hints(role, situation)
            told = replace(told, notes=told.notes + hint.notes, recalled=told.recalled + hint.recalled)
        return told
