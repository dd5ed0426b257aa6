"""``twoclock probe RUN``: drift, retention, plasticity, out of distribution, decomposition; never changes the run."""

from __future__ import annotations

from pathlib import Path

import click

from twoclock.cli.output import json_option, run_argument, say, show, show_json

NAMES = ("drift", "retention", "plasticity", "ood", "decomposition")


@click.command("probe")
@run_argument
@click.option("--drift", is_flag=True, help="KL to the base, exact and by k1, k2, k3, with and without the prompt.")
@click.option("--retention", is_flag=True, help="The task × phase matrix; items lost beyond the noise.")
@click.option("--plasticity", is_flag=True, help="Train a task from the live weights and from the base.")
@click.option("--ood", is_flag=True, help="Variants of each task: was the procedure learned, or a template?")
@click.option("--decomposition", is_flag=True, help="The 2×2 of weights and prompt on each task.")
@click.option("--task", "tasks", multiple=True, metavar="NAME", help="Only this task; may be repeated.")
@click.option("--items", type=int, metavar="N", help="Items a task.  [default: the run's own; for --ood 360]")
@click.option(
    "--samples",
    type=int,
    default=1,
    show_default=True,
    help="Rollouts an item, for --ood and suites; the rest take the run's own.",
)
@click.option("--prompts", type=int, default=32, show_default=True, help="Prompts of each set, for --drift.")
@click.option("--tokens", type=int, default=32, show_default=True, help="Tokens of each continuation, for --drift.")
@click.option(
    "--seeds",
    default="0,1,2",
    show_default=True,
    metavar="A,B",
    help="Training seeds of --plasticity; the first seeds all sampling.",
)
@click.option("--rounds", type=int, metavar="N", help="Rounds of training, for --plasticity.  [default: up to 12]")
@click.option("--budget", type=int, metavar="ROLLOUTS", help="The most rollouts to sample; 0: what is recorded.")
@click.option("--variant-file", "files", multiple=True, metavar="VARIANT=FILE", help="JSON lines of a variant (--ood).")
@click.option("--rewording", "rewordings", multiple=True, metavar="TEXT", help="Other words around {question} (--ood).")
@click.option("--n-parameter", "n_parameter", multiple=True, metavar="OPTION", help="The option that is N (--ood).")
@click.option("--set", "overrides", multiple=True, metavar="tasks.NAME.OPTION=VALUE", help="Add a task to probe with.")
@click.option("--out", type=click.Path(path_type=Path), help="The file of results.  [default: in RUN-probes/]")
@click.option("--html", type=click.Path(path_type=Path), help="Write the run's report with these results to this file.")
@json_option
def command(
    run: Path,
    tasks: tuple[str, ...],
    items: int | None,
    samples: int,
    prompts: int,
    tokens: int,
    seeds: str,
    rounds: int | None,
    budget: int | None,
    files: tuple[str, ...],
    rewordings: tuple[str, ...],
    n_parameter: tuple[str, ...],
    overrides: tuple[str, ...],
    out: Path | None,
    html: Path | None,
    as_json: bool,
    **asked: bool,
) -> None:
    """Measure what a run's learning did to the model, with intervals and controls. The run itself is only read.

    With none of the first five options: all that the run allows, and the reason for each that it does not. The cost is
    printed first, from the speeds that the run recorded; --budget stops before the rollouts run out, with what was
    measured until then, and says so. The results go to a file beside the run, RUN-probes/, where 'twoclock report'
    finds them; 'twoclock check --probe-file' holds limits against them. What each figure means: docs/probes.md.

    \b
    Keys of --json, and of the file (an INTERVAL is {estimate, low, high, n,
    level, method, seeds}; unknown numbers are null):
      format, version       twoclock-probe, 1
      run, name, model      the folder; the run's name; the base model
      round, rounds_run, rounds_planned
      states, digest, at    what was live; the ledger's hash; when
      settings, estimate    as asked; rollouts, tokens, seconds by probe
      budget, cost          the most rollouts; what was sampled, read, trained
      stopped, not_probed   reasons by probe
      run_unchanged         whether the folder is as it was before
      results.drift         records: {prompts, prompting, under, identical,
                            live_base, base_live: {per_token, per_sequence:
                            INTERVAL, tokens, sequences, estimates.k1|k2|k3}}
      results.retention     matrix, phases, summary, worst_case, items,
                            base_forgetting, suites, unmeasured_suites
      results.plasticity    task, ratio, area, area_against, first,
                            first_against, dead_groups, dead_groups_against:
                            INTERVAL, ratio_note (why it has no bounds),
                            too_hard, curves, proposed, rejected
      results.ood           tasks.NAME.report: verdict, findings, cautions,
                            splits.VARIANT.figures: INTERVAL
      results.decomposition tasks.NAME: cells, effects, shares: INTERVAL
    """
    from twoclock.cli.probe_words import in_words
    from twoclock.errors import ConfigError
    from twoclock.probe_file import check_place, default_path, write_probe
    from twoclock.probing import ProbeSettings, probe_run

    settings = ProbeSettings(
        probes=tuple(name for name in NAMES if asked[name]),
        tasks=tuple(dict.fromkeys(tasks)),
        items=items,
        samples=samples,
        prompts=prompts,
        tokens=tokens,
        seeds=_seeds(seeds),
        rounds=rounds,
        budget=budget,
        n_parameter=n_parameter,
        rewordings=rewordings,
        files=dict(_pair(text) for text in files),
        overrides=overrides,
    )
    for name, place in (("--out", out), ("--html", html)):
        if place is not None and place.resolve().is_relative_to(run.resolve()):
            raise ConfigError(
                f"{name} {place} lies in the run's folder, which a probe leaves alone; name another place"
            )
        if place is not None:
            check_place(place)
    found = probe_run(run, settings, say)
    if as_json:
        show_json(found)
    else:
        show(in_words(found))
    # After they were shown: what took hours is not lost with a full disk.
    target = write_probe(found, out or default_path(run, found["results"], found["round"]))
    if not as_json:
        show(f"\nresults: {target}")
    if html is not None:
        from twoclock.cli.lessons import explained
        from twoclock.report import write_report

        say(f"page: {write_report(run, html, probes=[target], explain=explained)}")


def _seeds(text: str) -> tuple[int, ...]:
    from twoclock.errors import ConfigError

    try:
        return tuple(int(part) for part in text.split(",") if part.strip())
    except ValueError:
        raise ConfigError(f"--seeds takes whole numbers, such as 0,1,2; got '{text}'") from None


def _pair(text: str) -> tuple[str, str]:
    from twoclock.errors import ConfigError

    variant, sign, file = text.partition("=")
    if not (variant and sign and file):
        raise ConfigError(f"--variant-file takes VARIANT=FILE, such as n-1=shorter.jsonl; got '{text}'")
    return variant, file
