"""A task whose items are played by a planner and an executor with tools, so that a run can learn from such episodes.

Items and verifier are another task's. What is graded is the episode's answer; a completion's text is the whole
transcript, from which the grade, and whatever memory learns, follows. In a run's configuration::

    [tasks.shop]
    source = "planner"
    tools = ["shop.tools:price", "tools.py:convert"]     # functions, or tools made with twoclock.agent.tools.tool
    planner = { cycles = 3, tool_rounds = 4 }            # the bounds: PlannerConfig
    of = { source = "jsonl", path = "questions.jsonl" }  # any other source's table
    servers = [{ command = ["python", "server.py"] }]    # MCP servers: command or url, pure, prefix, only, timeout_s
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from twoclock.agent.mcp import McpServer
from twoclock.agent.planned_episode import PlannedEpisode, is_transcript
from twoclock.agent.planner import Hints, PlannerConfig, PlannerExecutor, Problem
from twoclock.agent.result_cache import ResultCache
from twoclock.agent.toolbox import Toolbox
from twoclock.agent.tools import Tool, as_tool
from twoclock.contracts import Policy, Task
from twoclock.errors import ConfigError, DataError
from twoclock.hashing import canonical_json
from twoclock.options import read_options
from twoclock.tasks.loading import load_function
from twoclock.tasks.sources import build_task
from twoclock.types import Completion, Grade, Item, Request, Sampling, SplitName

__all__ = ["PlannerTask", "build_planner_task", "completion_of", "load_tools"]


class PlannerTask:
    """A :class:`~twoclock.contracts.Task` that is :class:`~twoclock.contracts.Interactive`: see the module."""

    def __init__(
        self,
        task: Task,
        toolbox: Toolbox | None = None,
        *,
        config: PlannerConfig | None = None,
        executor: Policy | None = None,
        hints: Hints | None = None,
        servers: Sequence[McpServer] = (),
    ) -> None:
        """``executor`` is by default the policy that plans. ``servers`` are closed with the task."""
        self.of = task
        self.toolbox = toolbox if toolbox is not None else Toolbox()
        self.config = config or PlannerConfig()
        self._executor, self._hints, self._servers = executor, hints, tuple(servers)
        self.notes: tuple[str, ...] = tuple(getattr(task, "notes", ()))

    @property
    def name(self) -> str:
        return self.of.name

    @property
    def description(self) -> str:
        tools = ", ".join(t.name for t in self.toolbox.tools) or "no tools"
        return f"{self.of.description} Played by a planner and an executor with {tools}."

    def split(self, name: SplitName) -> tuple[Item, ...]:
        return self.of.split(name)

    def play(
        self, policy: Policy, items: Sequence[Item], requests: Sequence[Request], sampling: Sampling
    ) -> list[tuple[Completion, ...]]:
        """See :class:`~twoclock.contracts.Interactive`. ``sampling`` gives how tokens are drawn; the lengths of replies
        are the config's. An episode's name, for provenance, is ``task/item/seed``."""
        if len(items) != len(requests):
            raise ValueError(f"each request is about one item; got {len(items)} items and {len(requests)} requests")
        problems = [
            Problem(
                prompt=request.prompt,
                conditioning=request.conditioning.for_item(item),
                seed=seed,
                name=f"{self.name}/{item.id}/{seed}",
            )
            for item, request in zip(items, requests, strict=True)
            for seed in request.seeds
        ]
        player = PlannerExecutor(policy, self._executor, toolbox=self.toolbox, config=self.config, hints=self._hints)
        played = iter(player.run(problems, sampling))
        return [tuple(completion_of(next(played)) for _ in request.seeds) for request in requests]

    def grade(self, items: Sequence[Item], texts: Sequence[str]) -> list[Grade]:
        """The inner task's grades of the answers. An episode without one scores 0 and its feedback says why; a text
        that is no transcript is graded as the answer itself, so that a policy can be compared that answers at once."""
        answers = [_answer(text) for text in texts]
        asked = [(item, a) for item, a in zip(items, answers, strict=True) if isinstance(a, str)]
        graded = iter(self.of.grade([item for item, _ in asked], [a for _, a in asked]) if asked else [])
        return [next(graded) if isinstance(a, str) else a for a in answers]

    def answer_of(self, text: str) -> str:
        """The last plan as the planner writes it, or its answer where it needed none; a text that is no transcript is
        its own."""
        if not is_transcript(text):
            return text
        episode = PlannedEpisode.loads(text)
        plan = [{"task": task} for task in episode.plans[-1]] if episode.plans else []
        return canonical_json({"plan": plan} if plan else {"answer": episode.answer or ""})

    def close(self) -> None:
        """Ends the servers, and what the inner task holds."""
        for server in self._servers:
            server.close()
        if hasattr(self.of, "close"):
            self.of.close()


def completion_of(episode: PlannedEpisode) -> Completion:
    """An episode as a completion: its transcript, its tokens, its turns."""
    return Completion(
        tokens=episode.tokens,
        logprobs=(),
        text=episode.dumps(),
        finish="error" if episode.error else "stop",
        prompt_tokens=episode.prompt_tokens,
        error=episode.error or None,
        turns=max(1, len(episode.turns)),
    )


def _answer(text: str) -> str | Grade:
    if not is_transcript(text):
        return text
    try:
        episode = PlannedEpisode.loads(text)
    except DataError as error:
        return Grade(reward=0.0, failure=str(error))
    if episode.answer is not None:
        return episode.answer
    return Grade(reward=0.0, feedback=f"There is no answer: {episode.failure or episode.error}.")


# ---------------------------------------------------------------------------------------------------- from a config


@dataclass(frozen=True, kw_only=True)
class ServerSettings:
    """One MCP server: ``command`` starts it, or it is at ``url``."""

    command: tuple[str, ...] = ()
    url: str = ""
    env: Mapping[str, str] = field(default_factory=dict)
    pure: tuple[str, ...] = ()
    """Tools whose results may be remembered."""
    only: tuple[str, ...] = ()
    """The tools to take; none named is all."""
    prefix: str = ""
    timeout_s: float = 30.0

    def __post_init__(self) -> None:
        if bool(self.command) == bool(self.url):
            raise ConfigError("a server has either 'command', such as [\"python\", \"server.py\"], or 'url'")

    def open(self, base_dir: Path) -> McpServer:
        if self.url:
            return McpServer.http(self.url, timeout_s=self.timeout_s)
        return McpServer.stdio(self.command, env=self.env, cwd=base_dir.resolve(), timeout_s=self.timeout_s)


@dataclass(frozen=True, kw_only=True)
class ToolSettings:
    """The tools of a ``[tasks.NAME]`` table."""

    tools: tuple[str, ...] = ()
    """Functions by name: ``package.module:function`` or ``path/to/file.py:function``."""
    timeout_s: float = 10.0
    """The longest that one call may take."""
    max_result_chars: int = 4000
    """What the executor sees of one result."""
    cache: bool = True
    """Whether results of pure calls are remembered within the run's process."""
    servers: tuple[ServerSettings, ...] = ()
    """MCP servers."""


def build_planner_task(name: str, spec: Mapping[str, Any], seed: int, base_dir: Path = Path()) -> PlannerTask:
    """The task of a ``[tasks.NAME]`` table with ``source = "planner"``. Paths are taken from ``base_dir``.

    Raises ConfigError with every mistake of the table and of the one in it, each under ``tasks.NAME``. MCP servers are
    started last, so that a mistake elsewhere leaves none behind.
    """
    where = f"tasks.{name}"
    own = {key: value for key, value in spec.items() if key not in ("source", "of", "planner")}
    problems: list[str] = []
    settings = config = inner = None
    tools: list[Tool] = []
    try:
        settings = read_options(ToolSettings, own, where)
    except ConfigError as error:
        problems += error.problems
    try:
        config = _planner_config(spec.get("planner", {}), where)
    except ConfigError as error:
        problems += error.problems
    try:
        inner = _inner(name, spec.get("of"), seed, base_dir)
    except ConfigError as error:
        problems += error.problems
    try:
        named = spec.get("tools", ())  # read as it stands: another key's mistake must not hide a tool's
        tools += load_tools(
            [n for n in named if isinstance(n, str)] if isinstance(named, list | tuple) else [], base_dir
        )
    except ConfigError as error:
        problems += [f"{where}: {text}" for text in error.problems]
    if settings is None or config is None or inner is None or problems:
        raise ConfigError(problems)
    with ExitStack() as opened:
        try:
            servers = [_opened(s, base_dir, tools, opened) for s in settings.servers]
            toolbox = Toolbox(
                tools,
                timeout_s=settings.timeout_s,
                max_result_chars=settings.max_result_chars,
                cache=ResultCache() if settings.cache else None,
            )
        except ConfigError as error:
            raise ConfigError([f"{where}: {text}" for text in error.problems]) from error
        opened.pop_all()
    return PlannerTask(inner, toolbox, config=config, servers=servers)


def load_tools(names: Sequence[str], base_dir: Path = Path()) -> list[Tool]:
    """The tools that ``package.module:function`` or ``path/to/file.py:function`` name. Those of one file share what it
    defines: it is run once. Raises ConfigError with every mistake."""
    problems: list[str] = []
    tools: list[Tool] = []
    modules: dict[str, Any] = {}
    for named in names:
        source, _, function = named.rpartition(":")
        try:
            known = getattr(modules.get(source), function, None)
            tools.append(as_tool(known if callable(known) else load_function(named, base_dir, kind="tool")))
            modules.setdefault(source, sys.modules.get(getattr(tools[-1].function, "__module__", "")))
        except ConfigError as error:
            problems += error.problems
    if problems:
        raise ConfigError(problems)
    return tools


def _planner_config(options: Any, where: str) -> PlannerConfig:
    if not isinstance(options, Mapping):
        raise ConfigError(f"{where}: 'planner' must be a table such as {{ cycles = 3 }}; got {options!r}")
    return read_options(PlannerConfig, options, f"{where}.planner")


def _inner(name: str, spec: Any, seed: int, base_dir: Path) -> Task:
    if not isinstance(spec, Mapping):
        raise ConfigError(
            f'tasks.{name}: \'of\' must be the table of another source, such as {{ source = "jsonl", path = "..." }}; '
            f"got {spec!r}"
        )
    if spec.get("source") == "planner":
        raise ConfigError(f"tasks.{name}: 'of' is itself a planner's table; give the table of what it plays")
    return build_task(name, spec, seed, base_dir)


def _opened(settings: ServerSettings, base_dir: Path, tools: list[Tool], opened: ExitStack) -> McpServer:
    """Starts a server and adds its tools; it is closed again where anything after it goes wrong."""
    server = opened.enter_context(settings.open(base_dir))
    tools += server.tools(pure=settings.pure, only=settings.only or None, prefix=settings.prefix)
    return server
