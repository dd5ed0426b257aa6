"""``twoclock status RUN``: where a run stands, from its folder alone."""

from __future__ import annotations

import json
import os
import socket
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from twoclock.cli.output import duration, json_option, run_argument, show, show_json, table
from twoclock.errors import StoreError

if TYPE_CHECKING:
    from twoclock.store import RunStore


@click.command("status")
@run_argument
@json_option
@click.option("--verify", is_flag=True, help="Also read every state and check the ledger's chain; exit 4 if damaged.")
def command(run: Path, as_json: bool, verify: bool) -> None:
    """Where a run stands: rounds, reward, states, drift, and what to type next.

    Reads only, and works while another process learns.

    \b
    Keys of --json: run, name, model, state (not begun | unfinished | running |
    finished), round, next_round, rounds, phase, task, reward, seconds,
    channels {NAME: timescale, state, commits, rejects, declines, rollbacks},
    drift, writer, problems.
    """
    from twoclock.store import RunStore

    with RunStore.open(run) as store:
        found = standing(store)
        if verify:
            found["problems"] = store.verify()
    if as_json:
        show_json(found)
    else:
        show(_in_words(found))
    if found["problems"]:
        raise StoreError(f"the run {run} is damaged:\n" + "\n".join(f"  {problem}" for problem in found["problems"]))


def standing(store: RunStore) -> dict[str, Any]:
    """Plain JSON; its keys are documented above."""
    from twoclock.cli.runner import has_begun

    phases = [(str(phase["task"]), int(phase["rounds"])) for phase in store.config.get("stream", [])]
    total = sum(rounds for _, rounds in phases)
    begun = has_begun(store)
    head = store.head() if begun else None
    rounds = store.rounds()
    last = rounds[-1] if rounds else None
    writer = _writer(store.path)
    return {
        "run": str(store.path),
        "name": store.config.get("run", {}).get("name"),
        "model": store.environment.get("model"),
        "state": _state(head.next_round if head else 0, total, writer is not None),
        "round": head.round if head else None,
        "next_round": head.next_round if head else None,
        "rounds": total,
        "phase": last.phase + 1 if last else None,
        "task": last.task if last else None,
        "reward": last.metrics.get("reward") if last else None,
        "seconds": sum(row.metrics.get("round_s", 0.0) for row in rounds),
        "channels": _channels(store, dict(head.states) if head else {}),
        "drift": _drift(store),
        "writer": writer,
        "problems": [],
    }


def _state(next_round: int, total: int, busy: bool) -> str:
    if busy:
        return "running"
    if next_round == 0:
        return "not begun"
    return "finished" if next_round > total else "unfinished"


def _channels(store: RunStore, states: dict[str, str]) -> dict[str, Any]:
    entries = store.entries()
    result: dict[str, Any] = {}
    for name, state in states.items():
        mine = [entry for entry in entries if entry.channel == name]
        counts = {
            f"{action}s": sum(entry.action == action for entry in mine)
            for action in ("commit", "reject", "decline", "rollback")
        }
        result[name] = {"timescale": mine[0].timescale if mine else None, "state": state, **counts}
    return result


def _drift(store: RunStore) -> dict[str, Any] | None:
    general = [record for record in store.drift() if record.prompts == "general"]
    if not general:
        return None
    last = general[-1]
    return {"round": last.round, "live_base": last.live_base, "base_live": last.base_live}


def _writer(path: Path) -> dict[str, Any] | None:
    """Who is at work on the run, as its lock file says. A process of this machine that is gone has left only its name
    there: the kernel took its lock back."""
    try:
        holder = json.loads((path / "run.lock").read_text(encoding="utf-8"))
        pid = int(holder["pid"])
        known = {"pid": pid, "host": str(holder["host"]), "since": float(holder["since"])}
    except (OSError, ValueError, KeyError, TypeError):
        return None
    if known["host"] != socket.gethostname() or os.name == "nt":  # there os.kill would end it
        return known
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return None
    except OSError:
        return known
    return known


def _in_words(found: dict[str, Any]) -> str:
    run = found["run"]
    writer = found["writer"]
    rows = [
        ["run", f"{run} ({found['name']}), model {found['model'] or 'unknown'}"],
        ["state", found["state"] + (f", by process {writer['pid']} on {writer['host']}" if writer else "")],
    ]
    if found["next_round"] is not None:
        done = f"{found['next_round'] - 1} of {found['rounds']} committed, in {duration(found['seconds'])}"
        back = found["round"] < found["next_round"] - 1
        rows.append(["rounds", done + (f"; live are the states of round {found['round']}" if back else "")])
    if found["reward"] is not None:
        rows.append(["reward", f"{found['reward']:.2f} on {found['task']} (phase {found['phase']}), last round"])
    for name, channel in found["channels"].items():
        counts = ", ".join(f"{channel[key]} {key}" for key in ("commits", "rejects", "declines", "rollbacks"))
        rows.append([name, f"{channel['timescale']}, {counts}, state {channel['state'][:12]}"])
    if found["drift"]:
        drift = found["drift"]
        numbers = f"{drift['live_base']:.4f} live‖base, {drift['base_live']:.4f} base‖live nats a token"
        rows.append(["drift", f"{numbers}, round {drift['round']}"])
    advice = {
        "not begun": f"twoclock resume {run}",
        "unfinished": f"twoclock resume {run}",
        "finished": f"twoclock eval {run} | twoclock report {run}",
    }.get(found["state"])
    if advice:
        rows.append(["next", advice])
    return table(rows, indent="")
