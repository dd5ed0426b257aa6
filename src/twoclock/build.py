"""Names and configs → objects: the only module that imports concrete channels, tasks and policies."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from twoclock.allocate import GateConfig, build_allocator, gate_for
from twoclock.bench import Bench
from twoclock.config import RunConfig, from_plain, overridden
from twoclock.consolidation import Consolidation, ConsolidationSettings
from twoclock.contracts import (
    Allocator,
    Channel,
    Gate,
    LoopObserver,
    Policy,
    Reflector,
    Remembering,
    Task,
    Workbench,
)
from twoclock.errors import ConfigError, MissingExtraError, TwoclockError, unknown_name
from twoclock.evaluation import CELLS, EvaluationSettings, Evaluator, conditioning_of, conditionings_of
from twoclock.fast import build_fast, fast_names
from twoclock.gathering import RolloutSettings
from twoclock.hashing import content_hash
from twoclock.loop import Loop, StoreSettings, sampling_problems
from twoclock.options import read_options
from twoclock.slow import SLOW_CHANNELS, build_slow
from twoclock.store import RunStore
from twoclock.store.folder import LEDGER
from twoclock.tasks import Stream, build_task
from twoclock.types import Conditioning, DriftRecord, Evaluation, Evidence, Sampling, Timescale
from twoclock.watching import WatchSettings

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["Parts", "Session", "build_parts", "build_policy", "create_session", "open_session", "play_run"]

Progress = Callable[[str], None]


class Parts:
    """Everything of a run but its model and its store: cheap to build, and fully checked."""

    def __init__(self, config: RunConfig) -> None:
        problems: list[str] = []

        def attempt(make: Callable[[], Any]) -> Any:
            try:
                return make()
            except ConfigError as error:
                problems.extend(error.problems)
            except MissingExtraError:
                raise
            except TwoclockError as error:
                problems.append(str(error))
            return None

        self.config = config
        self.seed = config.run.seed
        self.sampling = Sampling(**config.sampling.model_dump())
        base = Path(config.base_dir)
        self.tasks: dict[str, Task] = {
            name: task
            for name, spec in config.tasks.items()
            if (task := attempt(partial(_task, name, spec, self.seed, base))) is not None
        }
        problems += _stream_problems(config)
        self.rollouts: RolloutSettings = attempt(lambda: read_options(RolloutSettings, config.rollouts, "[rollouts]"))
        self.evaluation: EvaluationSettings = attempt(
            lambda: read_options(EvaluationSettings, config.measure, "[measure]")
        )
        self.keeping: StoreSettings = attempt(lambda: read_options(StoreSettings, config.store, "[store]"))
        self.watch: WatchSettings = attempt(lambda: read_options(WatchSettings, config.watch, "[watch]"))
        self.consolidation: ConsolidationSettings = attempt(
            lambda: read_options(ConsolidationSettings, config.consolidation, "[consolidation]")
        )
        self.gate_config: GateConfig = attempt(lambda: read_options(GateConfig, config.gates, "[gates]"))
        reflector = attempt(lambda: build_reflector(config))
        # By name: a run that is opened again reads them from canonical JSON, and must join and record them alike.
        self.channels: dict[str, Channel[Any]] = {
            name: channel
            for name, options in sorted(config.channels.items())
            if (channel := attempt(partial(build_channel, name, options, reflector, str(base)))) is not None
        }
        self.allocator: Allocator = attempt(lambda: _allocator(config.allocator))
        slow = [name for name, channel in self.channels.items() if channel.timescale is Timescale.SLOW]
        if slow and config.model.endpoint:
            problems.append(
                f"channel '{slow[0]}' trains weights, but [model] endpoint = '{config.model.endpoint}' is remote: "
                "remove the channel, or set [model] source to a local model"
            )
        elif slow:
            problems += sampling_problems(self.sampling)
        if self.rollouts is not None:
            problems += _group_problems(self.rollouts, self.channels)
            if self.watch is not None and self.watch.fast and self.rollouts.prompts_per_item < 2:
                problems.append(
                    "[watch] fast = true compares what is deployed with what was before, inside a group: set "
                    f"[rollouts] prompts_per_item to 2 or more, it is {self.rollouts.prompts_per_item}"
                )
        if config.model.endpoint and not config.model.name:
            problems.append("[model] endpoint needs [model] name: the model's name on that server")
        if self.allocator is not None and len(self.channels) == len(config.channels):
            attempt(self._try_plan)
        if problems:
            raise ConfigError(list(dict.fromkeys(problems)))
        self.stream = Stream([(p.task, p.rounds) for p in config.stream], self.tasks)
        self.stream.check(self.rollouts.items)

    def _try_plan(self) -> None:
        """Lets the allocator see the channels once: names in its options that are none should not wait for round 1."""
        nothing = Evidence(round=1, phase=0, task="", groups=(), conditionings={})
        self.allocator.plan(nothing, {name: channel.timescale for name, channel in self.channels.items()}, ())


def build_parts(config: RunConfig) -> Parts:
    """The parts of a run. Raises ConfigError with every mistake of the configuration at once."""
    return Parts(config)


def _task(name: str, spec: Mapping[str, Any], seed: int, base: Path) -> Task:
    """A task of any source, also of those that stand above the room of tasks because an agent plays them."""
    if spec.get("source") != "planner":
        return build_task(name, spec, seed, base)
    from twoclock.agent.planner_task import build_planner_task

    return build_planner_task(name, spec, seed, base)


def build_channel(
    name: str, options: Mapping[str, Any], reflector: Reflector | None, base_dir: str | None = None
) -> Channel[Any]:
    """A channel of either clock by name. Raises ConfigError."""
    if name in SLOW_CHANNELS:
        return build_slow(name, options)
    if name in fast_names():
        return build_fast(name, options, reflector=reflector, base_dir=base_dir)
    raise ConfigError(unknown_name("channel", name, [*SLOW_CHANNELS, *fast_names()]))


def build_reflector(config: RunConfig) -> Reflector | None:
    """The reflector that ``[reflector]`` names, or None."""
    section = config.reflector
    if section is None:
        return None
    if section.callable and section.endpoint:
        raise ConfigError("[reflector] has both 'callable' and 'endpoint'; give one")
    if section.callable:
        from twoclock.tasks.loading import load_function

        loaded: Reflector = load_function(section.callable, Path(config.base_dir))
        return loaded
    if section.endpoint and section.name:
        from twoclock.models.remote import EndpointReflector

        return EndpointReflector(section.endpoint, section.name, api_key_env=section.api_key_env)
    raise ConfigError("[reflector] needs 'callable', or 'endpoint' and 'name'")


def build_policy(config: RunConfig, progress: Progress | None = None, *, dtype: str | None = None) -> Policy:
    """The policy that ``[model]`` names; loads a local model. ``dtype`` replaces an automatic choice."""
    section = config.model
    if section.endpoint:
        from twoclock.models.remote import RemotePolicy

        return RemotePolicy(
            section.endpoint,
            section.name or "",
            api_key_env=section.api_key_env,
            timeout_s=section.timeout_s,
            max_concurrency=section.max_concurrency,
            context_tokens=section.context_tokens,
        )
    try:
        from twoclock.models.local import open_local
    except ModuleNotFoundError as missing:
        raise MissingExtraError.of(missing.name or "torch", "local", "a local model") from missing
    beside = Path(config.base_dir) / section.source
    policy = open_local(
        str(beside) if section.source != "packaged" and beside.exists() else section.source,
        dtype=dtype if dtype and section.dtype == "auto" else section.dtype,
        device=section.device,
        chat_template=section.chat_template,
        threads=section.threads,
        max_rows=section.max_rows,
        packed_tokens=section.packed_tokens,
        progress=progress,
    )
    if progress:
        for note in policy.notes:
            progress(note)
    return policy


class Session:
    """A run that is open: its store, its parts, and, once asked for, its policy."""

    def __init__(self, store: RunStore, parts: Parts, progress: Progress | None = None) -> None:
        self.store, self.parts, self._progress = store, parts, progress

    @cached_property
    def policy(self) -> Policy:
        # The dtype that "auto" came to when the run began: another one would not continue to the same numbers.
        policy = build_policy(self.parts.config, self._progress, dtype=self.store.environment.get("dtype"))
        expected = self.store.environment.get("base_hash")
        if expected and expected != policy.card.base_hash:
            raise ConfigError(
                f"this run learned on base weights {str(expected)[:12]}, but the model given now is "
                f"{policy.card.base_hash[:12]}; what was learned means nothing on other weights"
            )
        return policy

    @cached_property
    def evaluator(self) -> Evaluator:
        parts = self.parts
        return Evaluator(self.policy, parts.stream.tasks, parts.evaluation, parts.sampling, parts.seed)

    def loop(self, observer: LoopObserver | None = None) -> Loop:
        """The loop, at the store's head."""
        parts = self.parts
        meter = self._drift_meter()
        gates: dict[str, Gate] = {
            name: gate_for(
                channel.timescale, parts.gate_config, drift_meter=meter, remembers=isinstance(channel, Remembering)
            )
            for name, channel in parts.channels.items()
        }
        return Loop(
            self.store,
            self.policy,
            parts.stream,
            parts.channels,
            parts.allocator,
            gates,
            seed=parts.seed,
            sampling=parts.sampling,
            rollouts=parts.rollouts,
            evaluation=parts.evaluation,
            keeping=parts.keeping,
            watch=parts.watch,
            consolidate=self._consolidate if parts.consolidation.at_phase_ends else None,
            observer=observer,
        )

    def consolidation(
        self, settings: ConsolidationSettings | None = None, progress: Progress | None = None
    ) -> Consolidation:
        """What moves lessons to this run's weights; with the run's own settings where none are given."""
        parts = self.parts
        return Consolidation(
            self.store,
            self.policy,
            parts.stream,
            parts.channels,
            self.evaluator,
            sampling=parts.sampling,
            seed=parts.seed,
            settings=settings or parts.consolidation,
            progress=progress,
        )

    def _consolidate(self, states: Mapping[str, Any]) -> Mapping[str, Any] | None:
        """What a run does between its phases, where ``[consolidation] at_phase_ends`` is on."""
        result = self.consolidation(progress=self._progress).by_itself(states)
        return result.states if result is not None and result.accepted else None

    def _drift_meter(self) -> Callable[[Workbench, Conditioning, int], tuple[float, float]]:
        """What the slow gate holds a budget to is what the report shows: the general prompts, without conditioning."""

        def meter(bench: Workbench, offered: Conditioning, _: int) -> tuple[float, float]:
            forward, backward, cost = self.evaluator.gate_drift(offered)
            if isinstance(bench, Bench):
                bench.charge(cost)
            return forward, backward

        return meter

    def states(self) -> dict[str, Any]:
        """The live state of each channel."""
        head = self.store.head()
        return {n: c.load(self.store.get_blob(head.states[n])) for n, c in self.parts.channels.items()}

    def evaluate(
        self, progress: Progress | None = None, *, tasks: Sequence[str] | None = None, drift: bool = True
    ) -> tuple[list[Evaluation], list[DriftRecord]]:
        """The 2×2 of each task and drift at the head, measured afresh and recorded with purpose ``final``."""
        states, round = self.states(), self.store.head().round
        names = list(tasks or dict.fromkeys(p.task for p in self.parts.stream.phases))
        if unknown := [unknown_name("task", name, self.parts.tasks) for name in names if name not in self.parts.tasks]:
            raise ConfigError(unknown)
        evaluations = self.evaluator.cells(
            round,
            self.parts.channels,
            states,
            tasks=names,
            cells=CELLS,
            purpose="final",
            progress=progress,
        )
        records: list[DriftRecord] = []
        if drift:
            if progress:
                progress("measuring drift")
            weights = conditioning_of(self.parts.channels, states, names[0], ("live", "none"))
            records = self.evaluator.drift(round, weights, names)
        seen = conditionings_of(self.parts.channels, states, names, CELLS)
        self.store.record_evaluations(evaluations, records, conditionings=seen)
        return evaluations, records


def create_session(
    config: RunConfig, path: Path, *, config_text: str = "", command: str = "", progress: Progress | None = None
) -> Session:
    """A new run in ``path``: checked, its model loaded. ``command`` is what a user would type to have it again."""
    parts = build_parts(config)
    # The model before the folder: a model that cannot be loaded must not leave a run behind.
    policy = build_policy(config, progress)
    environment = {
        "base_hash": policy.card.base_hash,
        "model": policy.card.name,
        "dtype": getattr(policy, "dtype", None),
        **({"command": command} if command else {}),
    }
    store = RunStore.create(path, config=config.plain(), config_text=config_text, environment=environment)
    session = Session(store, parts, progress)
    session.__dict__["policy"] = policy
    return session


def open_session(
    path: Path, *, write: bool = False, progress: Progress | None = None, overrides: Sequence[str] = ()
) -> Session:
    """A run that exists. ``overrides`` change the configuration of this session alone, never the run's own."""
    store = RunStore.open(path, write=write)
    try:
        config = from_plain(overridden(store.config, overrides), f"the configuration of run '{path}'")
        return Session(store, build_parts(config), progress)
    except BaseException:
        store.close()
        raise


def play_run(
    path: Path, config: RunConfig, states: Mapping[str, Any] | None = None, progress: Progress | None = None
) -> Session:
    """Plays a run to its end: begun in ``path`` with ``config`` where there is none, and otherwise taken up after its
    last committed round, to the numbers that it would have had. ``states``, by channel, are what a new run begins
    from. Returns the session, whose store is open for writing: close it. A finished run loads no model.

    Raises ConfigError where the run in ``path`` has another configuration (``base_dir`` apart) or began from other
    states, and whatever :func:`create_session` and :func:`open_session` raise; the store is then closed.
    """
    path = Path(path)
    if (path / LEDGER).is_file():
        session = open_session(path, write=True, progress=progress)
    else:
        session = create_session(config, path, progress=progress)
    store = session.store
    try:
        begun = bool(store.entries(round=0))
        if problems := _other_run(session, config, states or {}, begun):
            raise ConfigError(problems)
        if not begun or store.head().next_round <= session.parts.stream.num_rounds:
            loop = session.loop()
            if begun:
                loop.restore()
            else:
                loop.begin(states)
            loop.run()
    except BaseException:
        store.close()
        raise
    return session


def _other_run(session: Session, config: RunConfig, states: Mapping[str, Any], begun: bool) -> list[str]:
    """Why the run that is open is not the one that is asked for; empty where it is."""
    instead = "name another folder, or ask for what the run was made with"
    there, here = (dict(_settings(c.plain())) for c in (session.parts.config, config))
    places = sorted(p for p in there.keys() | here.keys() if there.get(p) != here.get(p) and p != "base_dir")
    problems = []
    if places:
        told = ", ".join(f"{p} ({there.get(p, 'none')!r} there, {here.get(p, 'none')!r} here)" for p in places[:4])
        more = f" and {len(places) - 4} more" if len(places) > 4 else ""
        problems.append(f"the run in {session.store.path} has another configuration: {told}{more}; {instead}")
    if begun:
        first = session.store.snapshot_at(0).states
        channels = session.parts.channels
        problems += [
            f"the run in {session.store.path} began from another state of channel '{name}' than is given; {instead}"
            for name, state in states.items()
            if name in first and content_hash(channels[name].dump(state)) != first[name]
        ]
    return problems


def _settings(value: Any, place: str = "") -> Iterator[tuple[str, Any]]:
    """Every setting of a plain configuration with its place, such as ``run.seed``."""
    if isinstance(value, Mapping) and (value or not place):
        for name, part in value.items():
            yield from _settings(part, f"{place}.{name}" if place else str(name))
    else:
        yield place, value


def _group_problems(rollouts: RolloutSettings, channels: Mapping[str, Channel[Any]]) -> list[str]:
    """What keeps a slow channel from learning from groups that are rolled out so."""
    each = rollouts.per_item // rollouts.prompts_per_item
    shared = f"[rollouts] per_item = {rollouts.per_item} over prompts_per_item = {rollouts.prompts_per_item} is {each}"
    problems = [
        f"channel '{name}' has grouping = \"prompt\", which needs two rollouts of an item under each prompt, and "
        f'{shared}: raise per_item, lower prompts_per_item, or set grouping = "item"'
        for name, channel in channels.items()
        if getattr(getattr(channel, "config", None), "grouping", "item") == "prompt" and each < 2
    ]
    if not rollouts.reuse:
        return problems
    return problems + [
        f"[rollouts] reuse = true hands rollouts of earlier rounds to channel '{name}', whose objective has no "
        'importance weights for them: set reuse = false, or objective = "cispo" (or grpo, dr_grpo, dapo, gspo)'
        for name, channel in channels.items()
        if getattr(channel, "on_policy_only", False)
    ]


def _stream_problems(config: RunConfig) -> list[str]:
    problems = [] if config.stream else ["[[stream]] is empty: name at least one phase, a task and its rounds"]
    for index, phase in enumerate(config.stream, 1):
        if phase.task not in config.tasks:
            problems.append(f"[[stream]] phase {index}: {unknown_name('task', phase.task, config.tasks)}")
    return problems


def _allocator(section: Mapping[str, Any]) -> Allocator:
    options = {k: v for k, v in section.items() if k != "name"}
    return build_allocator(str(section.get("name", "fixed")), options)
