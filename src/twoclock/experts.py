"""Where experts come from: the weights that a run has trained, an adapter, another model; and the channel that deploys
them. It stands here and not beside the other fast channels because it opens what the rooms of models, slow channels and
the store keep; the table of fast channels names it as it names those of other packages."""

from __future__ import annotations

from pathlib import Path

from twoclock.errors import ConfigError, MissingExtraError
from twoclock.fast.proxy import OpenSides, ProxyChannel, ProxyConfig, ShiftConfig
from twoclock.fast.spec import FastSpec
from twoclock.slow import SLOW_CHANNELS, build_slow
from twoclock.store import RunStore
from twoclock.store.folder import LEDGER
from twoclock.types import Delta, Side, SideModel

__all__ = ["PROXY", "expert_opener", "open_expert"]


def expert_opener(base_dir: str | Path) -> OpenSides:
    """Opens the sides of configured shifts; paths are relative to ``base_dir``."""

    def open_sides(shift: ShiftConfig, base_hash: str) -> tuple[Side, Side]:
        return (
            open_expert(shift.expert, base_hash, on=shift.on, base_dir=base_dir),
            open_expert(shift.anti, base_hash, on=shift.on, base_dir=base_dir),
        )

    return open_sides


def open_expert(source: str, base_hash: str, *, on: str = "", base_dir: str | Path = ".") -> Side:
    """One side of a shift. ``source`` is a run's folder, an adapter's folder, or a model; empty: the model ``on``, or
    the policy's own base, whose content hash is ``base_hash``.

    Raises ConfigError for a source that is not there or does not fit, ModelError and StoreError for one that cannot be
    read.
    """
    try:
        from twoclock.models.adapters import read_adapter
        from twoclock.models.hf import read_config
        from twoclock.models.sources import base_hash_of, locate
    except ModuleNotFoundError as missing:
        raise MissingExtraError.of(missing.name or "torch", "local", "an expert") from missing

    def weights_at(where: str) -> str:
        folder = locate(where)[0]
        read_config(folder)  # a folder without a model has a hash too
        return base_hash_of(folder)

    weights, where = base_hash, ""
    if on:
        where = str(_path(on, base_dir) or on)
        weights = weights_at(where)
    if not source:
        return SideModel(weights=weights, source=where) if on else None
    path = _path(source, base_dir)
    kind = kind_of(source, base_dir)
    if kind == "model":
        if on:
            raise ConfigError(f"the expert {source!r} is a whole model, so it is no change of {on!r}: leave out 'on'")
        where = str(path or source)
        return SideModel(weights=weights_at(where), source=where)
    assert path is not None
    delta = read_adapter(path, weights) if kind == "adapter" else _trained(path, weights, on)
    return SideModel(weights=weights, source=where, delta=delta) if on else delta


def kind_of(source: str, base_dir: str | Path) -> str:
    """``run``, ``adapter`` or ``model``. Raises ConfigError for a path that leads nowhere."""
    path = _path(source, base_dir)
    if path is None:
        looks_like_one = source.startswith((".", "/", "~")) or source.count("/") > 1
        if looks_like_one:
            raise ConfigError(f"there is no expert at {source!r} (looked in {Path(base_dir).resolve()})")
        return "model"  # a hub's, which is asked when it is needed
    if (path / LEDGER).is_file():
        return "run"
    return "adapter" if (path / "adapter_config.json").is_file() else "model"


def _path(source: str, base_dir: str | Path) -> Path | None:
    """The path that a source names, where there is something."""
    path = Path(base_dir) / Path(source).expanduser()
    return path.resolve() if source and path.exists() else None


def _trained(run: Path, weights: str, on: str) -> Delta:
    """The trained weights of a run, as they stand at its head."""
    with RunStore.open(run) as store:
        channels = {n: o for n, o in store.config.get("channels", {}).items() if n in SLOW_CHANNELS}
        states = store.head().states
        found = []
        for name, options in channels.items():
            channel = build_slow(name, options)
            delta = channel.condition(channel.load(store.get_blob(states[name])), "").delta
            if delta is not None:
                found.append(delta)
    if not found:
        what = "has no slow channel" if not channels else "has taken no step yet"
        raise ConfigError(f"the run {run} {what}, so its weights are the base's: it is no expert")
    if found[0].base != weights:
        raise ConfigError(
            f"the run {run} trained a change of the weights {found[0].base[:12]}, but {on or 'this policy'} is "
            f'{weights[:12]}; name the model that it is a change of: on = "..."'
        )
    return found[0]


def _build(config: ProxyConfig) -> ProxyChannel:
    """Experts that are not there are told at once, all of them; they are opened when they are first used."""
    problems: list[str] = []
    for shift in config.shifts:
        for source in (shift.expert, shift.anti, shift.on):
            try:
                if source:
                    kind_of(source, config.base_dir)
            except ConfigError as error:
                problems += [f"shift '{shift.name}': {text}" for text in error.problems]
    if problems:
        raise ConfigError(problems)
    return ProxyChannel(config, expert_opener(config.base_dir))


PROXY = FastSpec(
    config=ProxyConfig,
    build=lambda config, reflector: _build(config),
    summary="shifts the logits by what experts and anti-experts disagree about; learns how much, by task",
)
