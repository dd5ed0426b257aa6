"""``twoclock export RUN FOLDER``: what the slow clock learned, as a folder that PEFT or transformers loads."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from twoclock.cli.output import json_option, run_argument, say, show, show_json, table
from twoclock.errors import ConfigError, ModelError, unknown_name

if TYPE_CHECKING:
    from twoclock.store import RunStore
    from twoclock.types import Delta, Snapshot


@click.command("export")
@run_argument
@click.argument("folder", metavar="FOLDER", type=click.Path(path_type=Path))
@click.option("--round", type=click.IntRange(min=0), help="The weights that this round left behind.  [default: live]")
@click.option("--channel", metavar="NAME", help="Which slow channel, where there are several.")
@json_option
def command(run: Path, folder: Path, round: int | None, channel: str | None, as_json: bool) -> None:
    """Write the slow weights of a run into FOLDER, a new one: those of the channel 'lora' as an adapter that PEFT loads
    onto the same base model, those of 'full' as a whole model that transformers loads.

    Only the weights: what the fast clock deploys is no part of them. The run stays as it is.

    \b
    Keys of --json: run, round, channel, kind (lora, full), state, folder,
    files, base {name, source, hash}, load [lines of Python].
    """
    from twoclock.store import RunStore

    _refuse_used(folder)
    with RunStore.open(run) as store:
        snapshot = store.head() if round is None else store.snapshot_at(round)
        name = _slow_channel(store, channel)
        state, delta = _state(store, name, snapshot)
        base = _base(store, delta)
        _write(state, delta.kind, folder, base["source"], store.environment.get("dtype"))
        fast = sorted(e.channel for e in store.entries(action="init") if e.timescale == "fast" and e.channel != "null")
        found: dict[str, Any] = {
            "run": str(run),
            "round": snapshot.round,
            "channel": name,
            "state": snapshot.states[name],
            "folder": str(folder),
            "files": sorted(file.name for file in folder.iterdir()),
            "base": base,
            "kind": delta.kind,
            "load": _load_lines(delta.kind, folder, base["source"], store.environment.get("dtype")),
        }
    if as_json:
        show_json(found)
    else:
        show(_in_words(found))
    if fast:
        say(f"the folder has no part of what {' and '.join(fast)} deploys; see that: twoclock diff {run} 0")


def _refuse_used(folder: Path) -> None:
    """Before anything is read."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigError(f"{folder} is there already and not an empty folder; name a new one")


def _slow_channel(store: RunStore, asked: str | None) -> str:
    """The channel to export. Raises ConfigError where there is none, or none of that name, or a choice to make."""
    clocks = {entry.channel: entry.timescale for entry in store.entries(action="init")}
    slow = sorted(name for name, clock in clocks.items() if clock == "slow")
    if not slow:
        raise ConfigError(
            f"the run {store.path} has no slow channel, so its weights are the base model's and there is nothing to "
            f"export; its channels: {', '.join(sorted(clocks))}"
        )
    if asked is None and len(slow) > 1:
        raise ConfigError(f"the run {store.path} has several slow channels: give --channel {' or '.join(slow)}")
    if asked is None or asked in slow:
        return asked or slow[0]
    if asked in clocks:
        raise ConfigError(f"the channel '{asked}' is fast and changes no weights; slow: {', '.join(slow)}")
    raise ConfigError(unknown_name("channel", asked, slow))


def _state(store: RunStore, name: str, snapshot: Snapshot) -> tuple[Any, Delta]:
    """The channel's state in the snapshot, and the change of weights that it is."""
    from twoclock.build import build_channel

    channel = build_channel(name, store.config["channels"][name], None)
    state = channel.load(store.get_blob(snapshot.states[name]))
    delta = channel.condition(state, str(store.config["stream"][0]["task"])).delta
    if delta is None:
        raise ConfigError(
            f"there is nothing to export: the state of '{name}' after round {snapshot.round} has taken no step, so it "
            f"is the base model itself; which rounds changed it: twoclock log {store.path} --channel {name}"
        )
    if delta.kind not in ("lora", "full"):
        raise ConfigError(
            f"the state of '{name}' is a change of weights of the kind '{delta.kind}', which no folder can hold; only "
            "'lora' and 'full' can be exported"
        )
    return state, delta


def _write(state: Any, kind: str, folder: Path, base: str, dtype: Any) -> None:
    if kind == "full":
        from twoclock.slow.full_export import export_model

        export_model(state, folder, base, dtype)
        return
    from twoclock.slow.lora_export import export_peft

    export_peft(state, folder, base)


# ------------------------------------------------------------------------------------------------------ the base model


def _base(store: RunStore, delta: Delta) -> dict[str, str]:
    """The base model: its name, where transformers finds it, and the hash of its weights.

    Raises ConfigError where the model's folder holds other weights now than the run learned on.
    """
    from twoclock.models.sources import base_hash_of, locate

    section = store.config.get("model", {})
    source = str(section.get("source", "packaged"))
    name = str(store.environment.get("model") or source)
    known = {"name": name, "source": source, "hash": delta.base}
    beside = Path(str(store.config.get("base_dir", "."))) / source
    place = str(beside) if source != "packaged" and beside.exists() else source
    if source != "packaged" and not Path(place).expanduser().exists():
        return known  # a hub id
    try:
        folder, _ = locate(place, progress=say)
    except ModelError as error:
        if delta.kind == "full":
            raise ModelError(
                f"whole weights are the base's with their changes added, and cannot be put together without it: {error}"
            ) from error
        say(f"the base model is not on this machine: {error}")
        return {**known, "source": name}
    if (now := base_hash_of(folder)) != delta.base:
        raise ConfigError(
            f"this run learned on base weights {delta.base[:12]}, but {folder} holds {now[:12]} now; what was learned "
            "means nothing on other weights"
        )
    return {**known, "source": str(folder)}


def _load_lines(kind: str, folder: Path, base: str, dtype: Any) -> list[str]:
    """Python that loads the model as the run had it: the base and the adapter onto it, or the whole model."""
    how = f", dtype={dtype!r}" if dtype else ""
    if kind == "full":
        return [
            "from transformers import AutoModelForCausalLM, AutoTokenizer",
            "",
            f"folder = {str(folder.absolute())!r}",
            f"model = AutoModelForCausalLM.from_pretrained(folder{how})",
            "tokenizer = AutoTokenizer.from_pretrained(folder)",
        ]
    return [
        "from peft import PeftModel",
        "from transformers import AutoModelForCausalLM, AutoTokenizer",
        "",
        f"base = {base!r}",
        f"model = AutoModelForCausalLM.from_pretrained(base{how})",
        f"model = PeftModel.from_pretrained(model, {str(folder.absolute())!r})",
        "tokenizer = AutoTokenizer.from_pretrained(base)",
    ]


def _in_words(found: Mapping[str, Any]) -> str:
    base = found["base"]
    rows = [
        ["adapter" if found["kind"] == "lora" else "model", f"{found['folder']}: {', '.join(found['files'])}"],
        ["state", f"{found['channel']} {found['state'][:12]} of {found['run']} after round {found['round']}"],
        ["base", base["name"] if base["name"] == base["source"] else f"{base['name']}, {base['source']}"],
        ["weights", base["hash"]],
    ]
    return "\n".join([table(rows, indent=""), "", *found["load"]])
