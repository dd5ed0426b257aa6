"""``twoclock diff RUN A B``: what is different between the states of two rounds."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import click

from twoclock.cli.output import clean, json_option, one_line, run_argument, show, show_json
from twoclock.contracts import Remembering
from twoclock.errors import ConfigError, MissingExtraError

if TYPE_CHECKING:
    from twoclock.contracts import Channel
    from twoclock.memory.bank import Bank
    from twoclock.store import RunStore
    from twoclock.types import Conditioning, Delta, LedgerEntry, Snapshot

LIVE = "live"
TOP_MODULES = 5


@runtime_checkable
class Stepped(Protocol):
    """A state that counts its optimizer steps."""

    step: int


@click.command("diff")
@run_argument
@click.argument("a", metavar="A")
@click.argument("b", metavar="B", default=LIVE)
@json_option
def command(run: Path, a: str, b: str, as_json: bool) -> None:
    """What is different between the states that rounds A and B left behind; B may be 'live', and is where left out.

    For prompts the text that each task's model is shown, line by line; for memory the entries that came, went, or were
    measured; for weights the steps between and the size of the change; then the ledger's entries in between.

    \b
    Keys of --json: run, a, b, channels.NAME {timescale, before, after,
    changed, prompts {TASK: diff lines}, memory [diff lines], weights {steps,
    norm_a, norm_b, norm_change, largest [[module, norm]]}, note}, entries.
    """
    from twoclock.store import RunStore

    with RunStore.open(run) as store:
        first, second = _snapshot(store, a), _snapshot(store, b)
        found = {
            "run": str(run),
            "a": a,
            "b": b,
            "channels": {name: _channel(store, name, first, second) for name in first.states},
            "entries": [_brief(entry) for entry in _between(store.entries(), a, b)],
        }
    if as_json:
        show_json(found)
    else:
        show("\n".join(_in_words(found)))


def _snapshot(store: RunStore, name: str) -> Snapshot:
    if name == LIVE:
        return store.head()
    if not name.isdigit():
        raise ConfigError(f"a round is a whole number from 0, or '{LIVE}' for what is live now; got '{name}'")
    return store.snapshot_at(int(name))


def _between(entries: Sequence[LedgerEntry], a: str, b: str) -> list[LedgerEntry]:
    """The entries after the earlier of the two and up to the later; a rollback by hand, which bears the number of the
    last round before it, comes after that round."""

    def place(entry: LedgerEntry) -> float:
        return entry.round + (0.5 if entry.is_by_hand else 0.0)

    low, high = sorted(float("inf") if name == LIVE else float(name) for name in (a, b))
    return [entry for entry in entries if low < place(entry) <= high]


def _brief(entry: LedgerEntry) -> dict[str, Any]:
    return {
        "seq": entry.seq,
        "round": entry.round,
        "channel": entry.channel,
        "action": entry.action,
        "reason": entry.reason,
    }


# --------------------------------------------------------------------------------------------------------- one channel


def _channel(store: RunStore, name: str, first: Snapshot, second: Snapshot) -> dict[str, Any]:
    before, after = first.states[name], second.states[name]
    entries = store.entries(channel=name, action="init")
    found: dict[str, Any] = {
        "timescale": entries[0].timescale if entries else None,
        "before": before,
        "after": after,
        "changed": before != after,
        "prompts": {},
        "weights": None,
        "memory": [],
        "note": None,
    }
    if before == after:
        return found
    try:
        channel = _build(store, name)
        states = [channel.load(store.get_blob(digest)) for digest in (before, after)]
    except MissingExtraError as error:
        return {**found, "note": f"only the states' names can be compared: {error}"}
    tasks = list(dict.fromkeys(str(phase["task"]) for phase in store.config["stream"]))
    told = {task: [channel.condition(state, task) for state in states] for task in tasks}
    found["prompts"] = {task: lines for task, (old, new) in told.items() if (lines := _text_diff(old, new))}
    if isinstance(channel, Remembering):
        found["memory"] = _memory(*(channel.bank(state) for state in states))
    old, new = told[tasks[0]]
    if old.delta or new.delta:
        steps = [state.step for state in states if isinstance(state, Stepped)]
        found["weights"] = {"steps": steps if len(steps) == 2 else None, **_weights(old.delta, new.delta)}
    if not found["prompts"] and not found["weights"] and not found["memory"]:
        found["note"] = "the model is shown the same; what changed is behind it, such as candidates in a pool"
    return found


def _memory(old: Bank, new: Bank) -> list[str]:
    """A line for each entry that is gone (``-``), new (``+``), or credited anew (a space), with what it says."""
    lines = [f"- {e.id} {e.kind}: {e.key} → {e.text}" for e in old.entries if new.get(e.id) is None]
    lines += [f"+ {e.id} {e.kind}: {e.key} → {e.text}" for e in new.entries if old.get(e.id) is None]
    for entry in new.entries:
        before, after = old.effect(entry.id), new.effect(entry.id)
        if old.get(entry.id) is not None and before != after:
            worth = "not known yet" if after.difference is None else f"{after.difference:+.3f}"
            reads = f"{before.shown + before.held} → {after.shown + after.held} reads"
            lines.append(f"  {entry.id} {entry.kind}: {reads}, showing it is worth {worth}")
    return lines


def _build(store: RunStore, name: str) -> Channel[Any]:
    from twoclock.build import build_channel

    def nobody(prompt: str) -> str:
        raise AssertionError("a state is read, nothing is proposed")

    return build_channel(name, store.config["channels"][name], nobody, store.config.get("base_dir"))


def _text_diff(old: Conditioning, new: Conditioning) -> list[str]:
    """Lines that begin with ``-``, ``+`` or a space; none where the texts are equal."""
    lines = list(difflib.unified_diff(_lines(old), _lines(new), lineterm="", n=1))[2:]
    return [line for line in lines if not line.startswith("@@")]


def _lines(told: Conditioning) -> list[str]:
    lines = [f"system: {line}" for line in (told.system or "").splitlines()]
    for question, answer in told.exemplars:
        lines += [f"user: {line}" for line in question.splitlines()]
        lines += [f"assistant: {line}" for line in answer.splitlines()]
    return [*lines, *(f"shift: {shift}" for shift in told.shifts)]


def _weights(old: Delta | None, new: Delta | None) -> dict[str, Any]:
    """Frobenius norms of the changes of weights, and of the way from one to the other."""
    if {"full", "svf"} & {old.kind if old else "", new.kind if new else ""}:
        return _dense_weights(old, new)
    a, b = _factors(old), _factors(new)
    way = {name: [*_negative(a.get(name, [])), *b.get(name, [])] for name in {**a, **b}}
    norms = {name: _norm(terms) for name, terms in way.items()}
    largest = sorted(norms.items(), key=lambda pair: -pair[1])[:TOP_MODULES]

    def whole(parts: Mapping[str, list[Any]]) -> float:
        return float(sum(_norm(terms) ** 2 for terms in parts.values()) ** 0.5)

    return {"norm_a": whole(a), "norm_b": whole(b), "norm_change": whole(way), "largest": [list(p) for p in largest]}


def _dense_weights(old: Delta | None, new: Delta | None) -> dict[str, Any]:
    """The same for changes of whole parameters, and of singular values (then of z − 1)."""
    a, b = (dict(delta.payload.tensors) if delta else {} for delta in (old, new))

    def norm(tensor: Any) -> float:
        return float(tensor.double().norm())

    names = list({**a, **b})
    norms = {n: norm(b[n] - a[n]) if n in a and n in b else norm(b[n] if n in b else a[n]) for n in names}
    largest = sorted(norms.items(), key=lambda pair: -pair[1])[:TOP_MODULES]
    whole = [sum(norm(t) ** 2 for t in some.values()) ** 0.5 for some in (a, b)]
    way = sum(value**2 for value in norms.values()) ** 0.5
    of = {"of": "z − 1"} if "svf" in (old.kind if old else "", new.kind if new else "") else {}
    return {**of, "norm_a": whole[0], "norm_b": whole[1], "norm_change": way, "largest": [list(p) for p in largest]}


def _factors(delta: Delta | None) -> dict[str, list[Any]]:
    """For each module the terms of its change, each (B [O, R], A [R, I]) with the scale in B; float64 arrays."""
    if delta is None:
        return {}
    if delta.kind != "lora":
        raise ConfigError(f"changes of weights of the kind '{delta.kind}' cannot be compared; known: lora, svf, full")
    change = delta.payload
    return {name: [(change.scale * b.double().numpy(), a.double().numpy())] for name, (a, b) in change.tensors.items()}


def _negative(terms: Sequence[Any]) -> list[Any]:
    return [(-b, a) for b, a in terms]


def _norm(terms: Sequence[Any]) -> float:
    """‖Σ B A‖ from the thin factors alone: the trace of (BᵀB)(AAᵀ) over all of them side by side."""
    import numpy as np

    b = np.concatenate([term[0] for term in terms], axis=1)
    a = np.concatenate([term[1] for term in terms], axis=0)
    # Rounding may leave the square of a norm of nothing an ulp below 0.
    return float(max(np.sum((b.T @ b) * (a @ a.T)), 0.0) ** 0.5)


# ------------------------------------------------------------------------------------------------------------ in words


def _in_words(found: Mapping[str, Any]) -> list[str]:
    lines = [f"{found['run']}: from round {found['a']} to {found['b']}".replace("to live", "to what is live now")]
    for name, channel in found["channels"].items():
        lines += ["", *_channel_words(name, channel)]
    lines += ["", f"entries in between: {len(found['entries'])}"]
    for e in found["entries"]:
        lines.append(f"  #{e['seq']} round {e['round']} {e['channel']} {e['action']}: {one_line(e['reason'], 90)}")
    return lines


def _channel_words(name: str, channel: Mapping[str, Any]) -> list[str]:
    title = click.style(f"{name} ({channel['timescale']})", bold=True)
    if not channel["changed"]:
        return [f"{title}: unchanged, {channel['after'][:12]}"]
    lines = [f"{title}: {channel['before'][:12]} → {channel['after'][:12]}"]
    if channel["note"]:
        lines.append(f"  {channel['note']}")
    for task, changed in channel["prompts"].items():
        lines.append(f"  the deployed prompt for {clean(task)}:")
        lines += [f"    {_coloured(clean(line))}" for line in changed]
    if channel["memory"]:
        lines.append(f"  memory, {len(channel['memory'])} entries:")
        lines += [f"    {_coloured(clean(one_line(line, 110)))}" for line in channel["memory"]]
    if channel["weights"]:
        lines += _weights_words(channel["weights"])
    return lines


def _coloured(line: str) -> str:
    return click.style(line, fg={"+": "green", "-": "red"}.get(line[:1]))


def _weights_words(weights: Mapping[str, Any]) -> list[str]:
    lines = []
    if weights["steps"]:
        lines.append(f"  optimizer steps {weights['steps'][0]} → {weights['steps'][1]}")
    lines.append(
        f"  change of weights ‖{weights.get('of', 'ΔW')}‖ {weights['norm_a']:.4g} → {weights['norm_b']:.4g}; "
        f"the way between them {weights['norm_change']:.4g}"
    )
    return [*lines, *(f"    {norm:.4g}  {module}" for module, norm in weights["largest"])]
