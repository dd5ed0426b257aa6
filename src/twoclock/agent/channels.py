"""The fast channels ``subtasks`` and ``tools``: what episodes of planner and executor leave behind, for the next ones.

Both learn from transcripts alone (:class:`~twoclock.agent.planned_episode.PlannedEpisode`), so they need a task that is
played by planner and executor; on any other they decline with the reason. They stand here and not beside the other
channels because they read what an agent did; the table of fast channels names them as it names those of other packages.

``tools`` shows, for an item, the tools that earned most in situations like it (AgentFly / Memento, arXiv:2508.16153,
section 3.2, keeps what tools were called and gave for one subtask; here it is kept across episodes and valued).
``subtasks`` shows results of earlier subtasks, and only those that were part of enough successes and of no failure.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from twoclock.agent.planned_episode import PlannedEpisode, is_transcript
from twoclock.agent.planner_memory import proven_subtasks, subtask_entries
from twoclock.agent.tool_memory import suggest_from, tool_entries
from twoclock.agent.toolbox import Toolbox
from twoclock.contracts import Reflector, Workbench
from twoclock.errors import ConfigError, DataError
from twoclock.fast.memory.channel import Learned, MemoryChannel
from twoclock.fast.memory.config import MemoryConfig
from twoclock.fast.memory.state import MemoryState
from twoclock.fast.spec import FastSpec
from twoclock.memory.bank import Bank
from twoclock.memory.records import Entry, Scope
from twoclock.types import Budget, Evidence, Item, Rollout

__all__ = ["SUBTASKS", "TOOLS", "SubtasksChannel", "SubtasksConfig", "ToolsChannel", "ToolsConfig"]


@dataclass(frozen=True, kw_only=True)
class ToolsConfig(MemoryConfig):
    """``[channels.tools]``; ``k`` counts the tools that are suggested."""

    k: int = 3

    def __post_init__(self) -> None:
        super().__post_init__()
        _only_notes(self, "tools")


@dataclass(frozen=True, kw_only=True)
class SubtasksConfig(MemoryConfig):
    """``[channels.subtasks]``"""

    k: int = 2
    successes: int = 2
    """A result is shown once it was part of so many successful episodes, and of no failed one."""

    def __post_init__(self) -> None:
        super().__post_init__()
        _only_notes(self, "subtasks")
        if self.successes < 1:
            raise ConfigError(f"successes = {self.successes}: expected at least 1")


def _only_notes(config: MemoryConfig, name: str) -> None:
    problems = []
    if config.show != "notes":
        problems.append(f'show = "{config.show}": {name} are no answers; they are shown as notes')
    if config.retrieval != "topk":
        problems.append(f'retrieval = "{config.retrieval}": {name} are chosen by what they earned; leave it at "topk"')
    if problems:
        raise ConfigError(problems)


class EpisodeChannel(MemoryChannel):
    """Learns from the transcripts of a round."""

    def __init__(self, config: MemoryConfig, reflector: Reflector | None = None) -> None:
        super().__init__(config, reflector)

    def may_show(self, entry: Entry, item: Item) -> bool:
        """What came from episodes of the item alone holds its answer; what others left as well is a lesson."""
        return any(f"item {item.id}," not in source for source in entry.provenance) or not entry.provenance

    def _episodes(self, evidence: Evidence, learned: Learned) -> Iterator[tuple[Rollout, PlannedEpisode, str]]:
        """(rollout, its episode, its name) of the round's own transcripts."""
        for rollout in (r for r in evidence.rollouts if r.age == 0 and r.grade.failure is None):
            if not is_transcript(rollout.completion.text):
                learned.refused.append("an answer is no transcript: this channel learns on tasks of source 'planner'")
                continue
            try:
                episode = PlannedEpisode.loads(rollout.completion.text)
            except DataError as error:
                learned.refused.append(str(error))
                continue
            yield rollout, episode, f"round {evidence.round}, item {rollout.item_id}, seed {rollout.seed}"


class ToolsChannel(EpisodeChannel):
    """Learns which tool helps in which situation; see the module."""

    name = "tools"
    kind = "tool"
    config: ToolsConfig

    def __init__(self, config: ToolsConfig | None = None, reflector: Reflector | None = None) -> None:
        super().__init__(config or ToolsConfig(), reflector)

    def learn(self, bench: Workbench, bank: Bank, evidence: Evidence, budget: Budget, seed: int) -> Learned:
        learned = Learned()
        toolbox = getattr(bench.task, "toolbox", None)
        if not isinstance(toolbox, Toolbox):
            learned.refused.append(f"the task '{evidence.task}' has no tools: give it source = 'planner' with tools")
            return learned
        scope = Scope(task=evidence.task if self.config.scope == "task" else "")
        for rollout, episode, name in self._episodes(evidence, learned):
            learned.entries += tool_entries(
                episode, toolbox, rollout.reward, provenance=name, scope=scope, created=float(evidence.round)
            )
        for entry in bank.entries:
            tool = str(entry.body.get("tool"))
            if scope.may_read(entry.scope) and tool in toolbox and toolbox[tool].version != entry.body.get("version"):
                learned.gone[entry.id] = f"the tool {tool} is another version now"
        return learned

    def found(self, state: MemoryState, task: str, item: Item, explore: int | None = None) -> list[Entry]:
        """For each of the ``k`` tools that earned most nearby, the entry that says so best."""
        hits = self._finder.hits(state.bank, item, self._scope(task), lambda entry: self.may_show(entry, item))
        return [one.entry for one in suggest_from(hits, self.config.k)]


class SubtasksChannel(EpisodeChannel):
    """Learns which subtasks have results that hold in other episodes; see the module."""

    name = "subtasks"
    kind = "subtask"
    config: SubtasksConfig

    def __init__(self, config: SubtasksConfig | None = None, reflector: Reflector | None = None) -> None:
        super().__init__(config or SubtasksConfig(), reflector)

    def learn(self, bench: Workbench, bank: Bank, evidence: Evidence, budget: Budget, seed: int) -> Learned:
        learned = Learned()
        scope = Scope(task=evidence.task if self.config.scope == "task" else "")
        for rollout, episode, name in self._episodes(evidence, learned):
            learned.entries += subtask_entries(
                episode, rollout.reward, provenance=name, scope=scope, created=float(evidence.round)
            )
        return learned

    def found(self, state: MemoryState, task: str, item: Item, explore: int | None = None) -> list[Entry]:
        hits = self._finder.hits(state.bank, item, self._scope(task), lambda entry: self.may_show(entry, item))
        return list(proven_subtasks(hits, successes=self.config.successes)[: self.config.k])


SUBTASKS = FastSpec(
    config=SubtasksConfig,
    build=SubtasksChannel,
    summary="shows results of earlier subtasks that held in several successful episodes (planner tasks)",
)
TOOLS = FastSpec(
    config=ToolsConfig,
    build=ToolsChannel,
    summary="suggests the tools that helped in situations like an item's (planner tasks)",
)
