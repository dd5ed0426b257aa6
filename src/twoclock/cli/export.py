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


FORMS = ("adapter", "vectors", "model")
FORMS_OF = {"lora": ("adapter",), "svf": ("vectors", "adapter", "model"), "full": ("model",)}
"""By kind of change, the default first."""


@click.command("export")
@run_argument
@click.argument("folder", metavar="FOLDER", type=click.Path(path_type=Path))
@click.option("--round", type=click.IntRange(min=0), help="The weights that this round left behind.  [default: live]")
@click.option("--channel", metavar="NAME", help="Which slow channel, where there are several.")
@click.option("--as", "form", type=click.Choice(FORMS), help="The form.  [default: the first that the kind has]")
@click.option("--rank", type=click.IntRange(min=1), help="Of 'svf' as an adapter: the rank to cut it to.")
@json_option
def command(
    run: Path, folder: Path, round: int | None, channel: str | None, form: str | None, rank: int | None, as_json: bool
) -> None:
    """Write the slow weights of a run into FOLDER, a new one: those of the channel 'lora' as an adapter that PEFT loads
    onto the same base model, those of 'full' as a whole model that transformers loads; those of 'svf' as vectors that
    twoclock reads, as an adapter of --rank (the error is printed), or as a whole model.

    Only the weights: what the fast clock deploys is no part of them. The run stays as it is.

    \b
    Keys of --json: run, round, channel, kind (lora, svf, full), form (adapter,
    vectors, model), state, folder, files, base {name, source, hash},
    truncation_error (of an adapter of 'svf'), load [lines of Python].
    """
    from twoclock.store import RunStore

    _refuse_used(folder)
    with RunStore.open(run) as store:
        snapshot = store.head() if round is None else store.snapshot_at(round)
        name = _slow_channel(store, channel)
        state, delta = _state(store, name, snapshot)
        form = _form(delta.kind, form, rank)
        base = _base(store, delta, form)
        dtype = store.environment.get("dtype")
        error = _write(state, delta, form, rank, folder, base["source"], dtype)
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
            "form": form,
            **({} if error is None else {"truncation_error": error}),
            "load": _load_lines(form, folder, base["source"], dtype),
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

    channel = build_channel(name, store.config["channels"][name], None, store.config.get("base_dir"))
    state = channel.load(store.get_blob(snapshot.states[name]))
    delta = channel.condition(state, str(store.config["stream"][0]["task"])).delta
    if delta is None:
        raise ConfigError(
            f"there is nothing to export: the state of '{name}' after round {snapshot.round} has taken no step, so it "
            f"is the base model itself; which rounds changed it: twoclock log {store.path} --channel {name}"
        )
    if delta.kind not in FORMS_OF:
        raise ConfigError(
            f"the state of '{name}' is a change of weights of the kind '{delta.kind}', which no folder can hold; only "
            f"{', '.join(repr(kind) for kind in FORMS_OF)} can be exported"
        )
    return state, delta


def _form(kind: str, asked: str | None, rank: int | None) -> str:
    """Raises ConfigError for a form that the kind has not, and for a rank that is missing or has no meaning."""
    form = asked or FORMS_OF[kind][0]
    if form not in FORMS_OF[kind]:
        known = " or ".join(f"--as {name}" for name in FORMS_OF[kind])
        raise ConfigError(f"a change of weights of the kind '{kind}' cannot be written as '{form}'; type {known}")
    cut = kind == "svf" and form == "adapter"
    if cut and rank is None:
        raise ConfigError("an adapter has a rank, and scaled singular values have none: type --rank 64, say")
    if rank is not None and not cut:
        raise ConfigError(f"--rank is for 'svf' as an adapter; this is '{kind}' as {form}: leave it out")
    return form


def _write(state: Any, delta: Delta, form: str, rank: int | None, folder: Path, base: str, dtype: Any) -> float | None:
    """Returns what was cut off, relative to the change, where something may have been."""
    if delta.kind == "svf":
        return _write_singular(state, delta, form, rank, folder, base, dtype)
    if delta.kind == "full":
        from twoclock.slow.full_export import export_model

        export_model(state, folder, base, dtype)
    else:
        from twoclock.slow.lora_export import export_peft

        export_peft(state, folder, base)
    return None


def _write_singular(
    state: Any, delta: Delta, form: str, rank: int | None, folder: Path, base: str, dtype: Any
) -> float | None:
    from twoclock.slow.svf_export import export_adapter, export_merged, export_vectors

    if form == "vectors":
        export_vectors(state, folder, base)
        return None
    from twoclock.models.local import open_local

    # In the dtype of the run: the vectors belong to the matrices as they were rounded there.
    policy = open_local(base, dtype=str(dtype or "auto"), progress=say)
    factors = policy.spectra.of(delta.payload, as_kept=True)
    if form == "adapter":
        return export_adapter(state, folder, base, factors, rank or 0)
    export_merged(state, folder, base, factors, dtype)
    return None


# ------------------------------------------------------------------------------------------------------ the base model


def _base(store: RunStore, delta: Delta, form: str) -> dict[str, str]:
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
        if form == "model" or (delta.kind == "svf" and form == "adapter"):
            raise ModelError(
                f"whole weights are the base's with their changes added, and cannot be put together without it: {error}"
                if form == "model"
                else f"an adapter is made of the base's singular vectors, and the base cannot be read: {error}"
            ) from error
        say(f"the base model is not on this machine: {error}")
        return {**known, "source": name}
    if (now := base_hash_of(folder)) != delta.base:
        raise ConfigError(
            f"this run learned on base weights {delta.base[:12]}, but {folder} holds {now[:12]} now; what was learned "
            "means nothing on other weights"
        )
    return {**known, "source": str(folder)}


def _load_lines(form: str, folder: Path, base: str, dtype: Any) -> list[str]:
    """Python that loads the model as the run had it: the base and the adapter onto it, or the whole model."""
    how = f", dtype={dtype!r}" if dtype else ""
    if form == "vectors":
        return [
            "from twoclock.models.local import open_local",
            "from twoclock.slow.svf_export import read_vectors",
            "from twoclock.types import Conditioning",
            "",
            f"policy = open_local({base!r}{how})",
            f"learned = Conditioning(delta=read_vectors({str(folder.absolute())!r}, policy.base_hash))",
        ]
    if form == "model":
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
        [found["form"], f"{found['folder']}: {', '.join(found['files'])}"],
        ["state", f"{found['channel']} {found['state'][:12]} of {found['run']} after round {found['round']}"],
        ["base", base["name"] if base["name"] == base["source"] else f"{base['name']}, {base['source']}"],
        ["weights", base["hash"]],
    ]
    if "truncation_error" in found:
        rows.append(["left out", f"{found['truncation_error']:.2%} of the change (relative Frobenius norm)"])
    return "\n".join([table(rows, indent=""), "", *found["load"]])
