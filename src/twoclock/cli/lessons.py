"""The lessons of a run explained, from its folder alone: what ``twoclock why`` and the report show. Builds the channels
that teach, and neither tasks nor a model, so a run whose data have moved can still be asked."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from twoclock.contracts import Channel
    from twoclock.explain import Explanations, Settings
    from twoclock.store import RunStore

__all__ = ["explained"]


def explained(store: RunStore) -> Explanations:
    """Every lesson of the run. ConfigError where its configuration no longer fits this version, MissingExtraError where
    a channel needs a package that is not there, StoreError for a run that never began."""
    from twoclock.explain import explain_all

    return explain_all(store, _channels(store), settings=_settings(store.config))


def _channels(store: RunStore) -> dict[str, Channel[Any]]:
    """The run's fast channels: slow ones have no lessons, and some need packages to be built."""
    from twoclock.build import build_channel
    from twoclock.fast import fast_names

    def nobody(prompt: str) -> str:
        raise AssertionError("a state is read, nothing is proposed")

    known, given = set(fast_names()), store.config.get("channels", {})
    base = store.config.get("base_dir")
    return {name: build_channel(name, options, nobody, base) for name, options in given.items() if name in known}


def _settings(config: dict[str, Any]) -> Settings:
    from twoclock.allocate import GateConfig
    from twoclock.consolidation import ConsolidationSettings
    from twoclock.explain import Settings
    from twoclock.gathering import RolloutSettings
    from twoclock.options import read_options
    from twoclock.watching import WatchSettings

    def read(kind: type[Any], name: str) -> Any:
        return read_options(kind, config.get(name) or {}, f"[{name}]")

    return Settings(
        consolidation=read(ConsolidationSettings, "consolidation"),
        watch=read(WatchSettings, "watch"),
        rollouts=read(RolloutSettings, "rollouts"),
        alpha=read(GateConfig, "gates").alpha,
    )
