"""A library of experts: a folder with one folder an expert, its vectors (safetensors) and its card (JSON).

An expert is what a run's channel ``svf`` has trained, with what is known of it: on which weights, for which task, how
well it does and by how much it has moved. Its vectors mean something on those weights alone, so an expert of others is
refused. Experts are written aside and renamed into place: who reads a library sees an expert whole or not at all.

It stands here and not beside the other fast channels because it opens what the rooms of slow channels and the store
keep; the table of fast channels names it.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from twoclock.errors import ConfigError, DataError, MissingExtraError, UnsupportedError, unknown_name
from twoclock.fast.experts import ExpertsChannel, ExpertsConfig
from twoclock.fast.spec import FastSpec
from twoclock.hashing import short
from twoclock.measure import mean_interval
from twoclock.store import RunStore

if TYPE_CHECKING:
    from twoclock.slow.svf import SvfState
    from twoclock.types import Delta, Evaluation, Snapshot

__all__ = ["EXPERTS", "ExpertCard", "ExpertLibrary", "add_expert", "keep_expert"]

CARD_FILE = "card.json"
FORMAT = 1
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")


@dataclass(frozen=True, kw_only=True)
class ExpertCard:
    """What is known of an expert; plain JSON."""

    name: str
    task: str
    """What it was trained for."""
    about: str = ""
    """What kind of question it is for, in words: what a model that chooses an expert is told."""
    delta: str
    """The id of the change of weights: the hash of its content."""
    base: str
    """Content hash of the weights that it is a change of."""
    base_name: str
    targets: tuple[str, ...]
    """Last name parts of the layers whose singular values it scales."""
    rank: int
    precision: str
    num_parameters: int
    scores: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """By task: the held-out score of these weights without any prompt, as an interval, the base's beside it
    (``base``), and the round after which it was measured (``round``)."""
    drift: Mapping[str, Any] = field(default_factory=dict)
    """KL in nats a token on the general prompts: ``live_base``, ``base_live`` and the ``round`` of the measurement."""
    run: str = ""
    """The name of the folder of the run that it came from."""
    round: int = 0
    step: int = 0

    @property
    def score(self) -> Mapping[str, Any] | None:
        """That of its own task, where it was measured."""
        return self.scores.get(self.task)


class ExpertLibrary:
    """The experts in a folder. Cards are read when first asked for; vectors when an expert is opened."""

    def __init__(self, folder: str | Path) -> None:
        """Raises ConfigError where there is no such folder."""
        self.folder = Path(folder)
        if not self.folder.is_dir():
            raise ConfigError(
                f"there is no library of experts at {self.folder}; make one: "
                f"twoclock experts add RUN --to {self.folder}"
            )

    @cached_property
    def cards(self) -> dict[str, ExpertCard]:
        """By name, in order. Raises DataError for a card that cannot be read."""
        found = sorted(
            path.parent for path in self.folder.glob(f"*/{CARD_FILE}") if not path.parent.name.startswith(".")
        )
        return {folder.name: _read_card(folder) for folder in found}

    @property
    def kinds(self) -> dict[str, str]:
        """By name, what each expert is for, in words."""
        return {name: card.about or card.task for name, card in self.cards.items()}

    def card(self, name: str) -> ExpertCard:
        """Raises ConfigError for a name that the library does not have."""
        if name not in self.cards:
            if not self.cards:
                raise ConfigError(f"the library {self.folder} is empty; twoclock experts add RUN --to {self.folder}")
            raise ConfigError(unknown_name("expert", name, self.cards))
        return self.cards[name]

    def require_base(self, base_hash: str) -> None:
        """Raises UnsupportedError where an expert was trained on other weights."""
        wrong = [card for card in self.cards.values() if card.base != base_hash]
        if wrong:
            named = ", ".join(f"'{card.name}' ({card.base_name}, {short(card.base)})" for card in wrong[:4])
            raise UnsupportedError(
                f"experts of the library {self.folder} were trained on other weights than this model's "
                f"({short(base_hash)}): {named}; what scales one matrix's singular values means nothing on another. "
                "Train them on this model, or use the model that they are for"
            )

    def delta(self, name: str) -> Delta:
        """The change of weights of one expert. Raises DataError where its file is damaged or not the card's."""
        card = self.card(name)
        delta: Delta = _reader()(self.folder / name)
        if delta.id != card.delta or delta.base != card.base:
            raise DataError(
                f"the vectors in {self.folder / name} are {short(delta.id)}, but its card says {short(card.delta)}: "
                "one of the two files was replaced; add the expert again from its run"
            )
        return delta


# ------------------------------------------------------------------------------------------------------------- adding


def add_expert(
    run: str | Path,
    to: str | Path,
    *,
    name: str | None = None,
    task: str | None = None,
    about: str = "",
    round: int | None = None,
    channel: str | None = None,
) -> ExpertCard:
    """The weights that the channel ``svf`` of a run has trained, as an expert of the library ``to``, made if need be.

    ``name`` is the task's where none is given, ``task`` the run's only one, ``round`` the head. Raises ConfigError for
    a run without such weights, for a task to choose, for a name that is taken or is none; UnsupportedError where the
    library's experts are of other weights. The run stays as it is.
    """
    with RunStore.open(Path(run)) as store:
        snapshot = store.head() if round is None else store.snapshot_at(round)
        state = _svf_state(store, snapshot, channel)
        task = _task(store, task)
        environment = store.environment
        return keep_expert(
            state,
            to,
            name=name or task,
            task=task,
            about=about,
            base_name=str(environment.get("model", "")),
            scores=_scores(store, snapshot.round),
            drift=_drift(store, snapshot.round),
            run=Path(run).resolve().name,
            round=snapshot.round,
        )


def keep_expert(
    state: SvfState,
    to: str | Path,
    *,
    name: str,
    task: str,
    about: str = "",
    base_name: str = "",
    scores: Mapping[str, Mapping[str, Any]] | None = None,
    drift: Mapping[str, Any] | None = None,
    run: str = "",
    round: int = 0,
) -> ExpertCard:
    """Write one expert; see :func:`add_expert`. Raises ConfigError also for a state that has taken no step."""
    from twoclock.slow.svf_export import export_vectors

    folder = Path(to)
    if not NAME.fullmatch(name):
        raise ConfigError(f"'{name}' is no name for an expert: use letters, digits, '_', '-' and '.'; give --name")
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"{folder} is no folder, so it can be no library of experts")
    if state.delta is None:
        raise ConfigError("these weights have taken no step yet, so they are the base's: that is no expert")
    if folder.is_dir():
        ExpertLibrary(folder).require_base(state.base)
    folder.mkdir(parents=True, exist_ok=True)
    card = ExpertCard(
        name=name,
        task=task,
        about=about,
        delta=state.delta.id,
        base=state.base,
        base_name=base_name,
        targets=tuple(sorted({module.rsplit(".", 1)[-1] for module in state.offsets})),
        rank=state.factoring.rank,
        precision=state.factoring.precision,
        num_parameters=sum(offset.numel() for offset in state.offsets.values()),
        scores=scores or {},
        drift=drift or {},
        run=run,
        round=round,
        step=state.step,
    )
    aside = Path(tempfile.mkdtemp(prefix=f".{name}-", dir=folder))
    try:
        export_vectors(state, aside, base_name)
        text = json.dumps({"format": FORMAT, **asdict(card)}, indent=2, allow_nan=False)
        (aside / CARD_FILE).write_text(text + "\n", encoding="utf-8")
        _on_the_disk(aside)
        aside.chmod(0o755)
        if (folder / name).exists():
            raise FileExistsError
        os.rename(aside, folder / name)
    except OSError as problem:
        shutil.rmtree(aside, ignore_errors=True)
        if (folder / name).exists():
            raise ConfigError(
                f"the library {folder} has an expert '{name}' already; give --name, or delete {folder / name} first"
            ) from problem
        raise
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise
    return card


def _on_the_disk(folder: Path) -> None:
    for path in folder.iterdir():
        with open(path, "rb+") as file:
            os.fsync(file.fileno())


def _svf_state(store: RunStore, snapshot: Snapshot, asked: str | None) -> SvfState:
    try:
        from twoclock.slow import SLOW_CHANNELS, build_slow
    except ModuleNotFoundError as missing:  # pragma: no cover
        raise MissingExtraError.of(missing.name or "torch", "local", "an expert") from missing
    options = {n: o for n, o in store.config.get("channels", {}).items() if n in SLOW_CHANNELS}
    if asked is not None and asked not in options:
        raise ConfigError(unknown_name("slow channel", asked, options))
    if "svf" not in (options if asked is None else [asked]):
        has = f"its slow channel is '{next(iter(options))}'" if options else "it has no slow channel"
        raise ConfigError(
            f"the run {store.path} has trained no singular values ({has}): an expert is what the channel 'svf' trains, "
            "because only such changes mix exactly; other changes can be deployed by the channel 'proxy'"
        )
    channel = build_slow("svf", options["svf"])
    state: SvfState = channel.load(store.get_blob(snapshot.states["svf"]))
    return state


def _task(store: RunStore, asked: str | None) -> str:
    names = list(dict.fromkeys(str(phase["task"]) for phase in store.config.get("stream", [])))
    if asked is not None:
        if asked not in names:
            raise ConfigError(unknown_name("task", asked, names))
        return asked
    if len(names) != 1:
        raise ConfigError(f"the run {store.path} has learned several tasks; say which it is an expert for: --task NAME "
                          f"with one of {', '.join(names)}")  # fmt: skip
    return names[0]


def _scores(store: RunStore, round: int) -> dict[str, dict[str, Any]]:
    """By task the last held-out score of the weights alone that was measured until the round, and the base's."""
    bare = all(entry.timescale == "slow" for entry in store.entries(action="init") if entry.channel != "null")
    found: dict[str, dict[str, Evaluation]] = {}
    for one in store.evaluations():
        if one.round <= round and (one.prompt == "none" or bare):
            found.setdefault(one.task, {})[one.weights] = one
    return {
        task: {
            **mean_interval(cells["live"].rewards, bounds=(0.0, 1.0)).as_dict(),
            "base": _mean(cells["base"].rewards) if "base" in cells else None,
            "round": cells["live"].round,
        }
        for task, cells in found.items()
        if "live" in cells and cells["live"].rewards
    }


def _mean(values: tuple[float, ...]) -> float | None:
    return sum(values) / len(values) if values else None


def _drift(store: RunStore, round: int) -> dict[str, Any]:
    records = [record for record in store.drift() if record.prompts == "general" and record.round <= round]
    if not records:
        return {}
    last = records[-1]
    return {"live_base": last.live_base, "base_live": last.base_live, "round": last.round}


# ------------------------------------------------------------------------------------------------------------ reading


def _reader() -> Any:
    try:
        from twoclock.slow.svf_export import read_vectors
    except ModuleNotFoundError as missing:
        raise MissingExtraError.of(missing.name or "torch", "local", "an expert") from missing
    return read_vectors


def _read_card(folder: Path) -> ExpertCard:
    path = folder / CARD_FILE
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        if found.pop("format") != FORMAT:
            raise ValueError(f"its format is not {FORMAT}, which is what this version reads")
        card = ExpertCard(**{**found, "targets": tuple(found["targets"])})
        texts = (card.task, card.about, card.delta, card.base, card.base_name, card.precision, card.run)
        if not all(isinstance(text, str) for text in texts):
            raise ValueError("a name in it is no text")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as problem:
        raise DataError(
            f"{path} is no card of an expert: {problem!r}; delete the folder or add the expert again"
        ) from (problem)
    if card.name != folder.name:
        raise DataError(
            f"{path} is the card of '{card.name}', but its folder is called '{folder.name}': rename it back"
        )
    return card


def _build(config: ExpertsConfig) -> ExpertsChannel:
    library = ExpertLibrary(Path(config.base_dir) / Path(config.library).expanduser()) if config.library else None
    return ExpertsChannel(config, library)


EXPERTS = FastSpec(
    config=ExpertsConfig,
    build=lambda config, reflector: _build(config),
    summary="mixes trained experts into the weights, task by task: by asking, by a classifier, or by a search",
)
