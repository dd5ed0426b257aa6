"""``twoclock experts``: a library of experts: what runs have trained, to be mixed into the weights."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from twoclock.cli.output import interval_words, json_option, run_argument, show, show_json, table

if TYPE_CHECKING:
    from twoclock.library import ExpertCard

library_argument = click.argument("folder", metavar="DIR", type=click.Path(path_type=Path))


@click.group("experts")
def command() -> None:
    """A library of experts: singular values that runs have trained, with cards. The channel 'experts' mixes them into
    the weights ([channels.experts] library = "DIR")."""


@command.command("add")
@run_argument
@click.option("--to", "folder", metavar="DIR", required=True, type=click.Path(path_type=Path), help="The library.")
@click.option("--name", help="What to call it.  [default: the task's name]")
@click.option("--task", help="Which task it is an expert for, where the run has several.")
@click.option("--about", default="", help="What kind of question it is for, in words, for a model that chooses.")
@click.option("--round", type=click.IntRange(min=0), help="The weights that this round left behind.  [default: live]")
@json_option
def add(
    run: Path, folder: Path, name: str | None, task: str | None, about: str, round: int | None, as_json: bool
) -> None:
    """Add what the channel 'svf' of RUN has trained to the library DIR, made if need be. The run stays as it is.

    \b
    Keys of --json: those of 'show'.
    """
    from twoclock.library import add_expert

    card = add_expert(run, folder, name=name, task=task, about=about, round=round)
    if as_json:
        show_json(asdict(card))
    else:
        show(f"added to {folder}:\n{_in_full(card)}")


@command.command("list")
@library_argument
@json_option
def list_experts(folder: Path, as_json: bool) -> None:
    """The experts of the library DIR.

    \b
    Keys of --json: library, experts [those of 'show'].
    """
    from twoclock.library import ExpertLibrary

    cards = ExpertLibrary(folder).cards
    if as_json:
        show_json({"library": str(folder), "experts": [asdict(card) for card in cards.values()]})
    elif not cards:
        show(f"no experts in {folder} yet; twoclock experts add RUN --to {folder}")
    else:
        head = ["expert", "task", "score", "base", "drift", "numbers", "weights"]
        show(table([head, *(_row(card) for card in cards.values())], indent=""))


@command.command("show")
@library_argument
@click.argument("name")
@json_option
def show_expert(folder: Path, name: str, as_json: bool) -> None:
    """The card of one expert of the library DIR; its vectors are read, and held to the card.

    \b
    Keys of --json: name, task, about, delta, base, base_name, targets, rank,
    precision, num_parameters, scores {task: {estimate, low, high, n, level,
    method, seeds, base, round}}, drift {live_base, base_live, round}, run,
    round, step.
    """
    from twoclock.library import ExpertLibrary

    library = ExpertLibrary(folder)
    card = library.card(name)
    library.delta(name)
    if as_json:
        show_json(asdict(card))
    else:
        show(_in_full(card))


def _row(card: ExpertCard) -> list[str]:
    score = card.score
    return [
        card.name,
        card.task,
        interval_words(dict(score) if score else None),
        _number(score["base"] if score else None),
        _number(card.drift.get("live_base"), 4),
        f"{card.num_parameters:,}",
        f"{card.base_name} ({card.base[:12]})",
    ]


def _in_full(card: ExpertCard) -> str:
    which = f"the {card.rank} largest" if card.rank else "all"
    rows = [
        ["expert", card.name],
        ["for", f"{card.task}: {card.about}" if card.about else card.task],
        ["weights", f"{card.base_name} ({card.base[:12]})"],
        ["scales", f"{which} singular values of {', '.join(card.targets)}: {card.num_parameters:,} numbers"],
        ["from", f"run {card.run}, round {card.round}, {card.step} steps"],
    ]
    for task, score in card.scores.items():
        rows.append([f"score, {task}", _score_words(score)])
    if card.drift:
        told = (
            f"{card.drift['live_base']:.4f} nats a token (KL to the base), measured after round {card.drift['round']}"
        )
        rows.append(["drift", told])
    return table(rows, indent="")


def _score_words(score: Any) -> str:
    base = "" if score["base"] is None else f", the base {score['base']:.2f}"
    return f"{interval_words(dict(score))} of {score['n']} items after round {score['round']}{base}"


def _number(value: float | None, digits: int = 2) -> str:
    return "–" if value is None else f"{value:.{digits}f}"
