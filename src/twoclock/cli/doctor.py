"""``twoclock doctor``: what the machine has, how fast it is, what is missing."""

from __future__ import annotations

from typing import Any

import click

from twoclock.cli.output import json_option, say, show, show_json, table


@click.command("doctor")
@json_option
@click.option("--no-measure", is_flag=True, help="Do not time anything (saves about 3 s).")
def command(as_json: bool, no_measure: bool) -> None:
    """What this machine has, how fast it is, which dtype suits it, and what to install for what is missing.

    Keys of --json are those of twoclock.models.precision.machine_report: python, platform, cpu, cores, flags,
    memory_gb, copy_gb_per_s, cache, extras (what each lacks), versions, torch (null, or version, threads, cuda,
    matmul_tflops, dtype).
    """
    from twoclock.models.precision import machine_report

    if not no_measure:
        say("measuring, about 3 s")
    report = machine_report(measure=not no_measure)
    if as_json:
        show_json(report)
    else:
        show(_in_words(report))


def _in_words(report: dict[str, Any]) -> str:
    cache = report["cache"]
    flags = f", {' '.join(report['flags'])}" if report["flags"] else ""
    rows = [
        ["python", f"{report['python']} on {report['platform']}"],
        ["processor", f"{report['cpu']}, {report['cores']} cores{flags}"],
        ["memory", _or_unknown(report["memory_gb"], "GB") + _speed(report)],
        ["cache", f"{cache['path']}, {_or_unknown(cache['free_gb'], 'GB')} free, {len(cache['models'])} models ready"],
        *_torch_rows(report["torch"]),
        ["versions", ", ".join(f"{name} {version}" for name, version in report["versions"].items() if version)],
    ]
    advice = [
        f"for '{extra}' {', '.join(lacks)} {'is' if len(lacks) == 1 else 'are'} missing; type: "
        f"pip install 'twoclock[{extra}]'"
        for extra, lacks in report["extras"].items()
        if lacks
    ]
    rows.append(["missing", advice[0] if advice else "nothing"])
    rows += [["", line] for line in advice[1:]]
    return table(rows, indent="")


def _torch_rows(torch: dict[str, Any] | None) -> list[list[str]]:
    if torch is None:
        return [["torch", "not installed: local models and the slow clock need it"]]
    devices = ", ".join(torch["cuda"]) or "none, the CPU computes"
    rows = [["torch", f"{torch['version']}, {torch['threads']} threads"], ["gpu", devices]]
    if "matmul_tflops" in torch:
        speeds = ", ".join(f"{name} {value:g}" for name, value in torch["matmul_tflops"].items())
        rows.append(["matmul", f"{speeds} TFLOP/s on the CPU"])
        rows.append(["dtype", f"{torch['dtype']['chosen']}: {torch['dtype']['reason']}"])
    return rows


def _speed(report: dict[str, Any]) -> str:
    return f", copied at {report['copy_gb_per_s']:g} GB/s" if "copy_gb_per_s" in report else ""


def _or_unknown(value: float | None, unit: str) -> str:
    return "unknown" if value is None else f"{value:g} {unit}"
