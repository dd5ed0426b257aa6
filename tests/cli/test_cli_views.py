"""The live panel, the plain lines, and the small words they are made of."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console

from twoclock.cli.live import LivePanel, PlainLines
from twoclock.cli.output import clean, cost_words, duration, interval_words, one_line, table
from twoclock.cli.progress import Standing, sparkline
from twoclock.store import RunStore
from twoclock.types import (
    Cost,
    DriftRecord,
    LedgerEntry,
    Phase,
    RoundRecord,
    Snapshot,
)

PHASES = (Phase(index=0, task="first", rounds=3), Phase(index=1, task="second", rounds=2))
METRICS = {"reward": 0.5, "round_s": 4.0, "rollout_s": 1.5, "fast_s": 2.0, "slow_s": 0.5, "decode_per_s": 1234.0}


@pytest.fixture
def store(tmp_path: Path) -> RunStore:
    config = {"stream": [{"task": p.task, "rounds": p.rounds} for p in PHASES]}
    store = RunStore.create(tmp_path / "run", config=config)
    blob = store.put_blob(b"state")
    store.begin(Snapshot(round=0, states={"prompts": blob, "lora": blob}, next_round=1), [])
    return store


def commit(store: RunStore, number: int, *, reward: float = 0.5, fast: str = "", slow: str = "", kl: float = 0) -> None:
    """A round with one entry for each clock that has an action."""
    states = store.head().states

    def entry(channel: str, clock: str, action: str) -> LedgerEntry:
        steps = int(clock == "slow" and action == "commit")
        return LedgerEntry(
            round=number,
            channel=channel,
            timescale=clock,
            action=action,  # type: ignore[arg-type]
            before=states[channel],
            after=states[channel],
            cause="c",
            reason=f"because of [{channel}]",
            cost=Cost(optimizer_steps=steps),
            metrics={"grad_norm": 0.25, "dead_groups": 0.5} if clock == "slow" else {},
        )

    entries = [entry("prompts", "fast", fast)] if fast else []
    entries += [entry("lora", "slow", slow)] if slow else []
    drift = DriftRecord(
        round=number,
        prompts="general",
        live_base=kl,
        base_live=2 * kl,
        per_prompt_live_base=(kl,),
        per_prompt_base_live=(2 * kl,),
        tokens=9,
    )
    phase = PHASES[0] if number <= 3 else PHASES[1]
    store.commit_round(
        RoundRecord(
            round=number,
            phase=phase.index,
            task=phase.task,
            snapshot=Snapshot(round=number, states=states, next_round=number + 1),
            entries=tuple(entries),
            evidence=None,
            metrics={**METRICS, "reward": reward},
            drift=(drift,) if kl else (),
        )
    )


def drawn(panel: LivePanel, width: int, encoding: str = "utf-8") -> list[str]:
    raw = io.BytesIO()
    out = io.TextIOWrapper(raw, encoding=encoding, errors="replace")
    Console(file=out, width=width, force_terminal=True, color_system=None, legacy_windows=False).print(panel)
    out.flush()
    return raw.getvalue().decode(encoding).splitlines()


# ------------------------------------------------------------------------------------------------------------ the words


def test_sparkline_has_a_fixed_scale_and_averages_neighbours() -> None:
    assert sparkline([0.0, 0.5, 1.0], 10) == "▁▅█"
    assert sparkline([0.2, 0.2], 10) == "▂▂"  # the scale is not stretched to the data
    assert sparkline([0.0, 1.0] * 4, 4) == "▅▅▅▅"
    assert len(sparkline([0.1] * 101, 40)) == 40
    assert sparkline([], 5) == sparkline([1.0], 0) == ""


def test_durations() -> None:
    assert [duration(s) for s in (0.04, 9.9, 9.96, 59.6, 61, 3599, 3661)] == [
        "0.0 s",
        "9.9 s",
        "10 s",
        "1 min 00 s",
        "1 min 01 s",
        "59 min 59 s",
        "1 h 01 min",
    ]


def test_costs_in_words() -> None:
    cost = Cost(rollouts=1, prompt_tokens=1500, completion_tokens=500, optimizer_steps=2, seconds=3.0)
    assert cost_words(cost) == "1 rollout, 2,000 tokens, 2 optimizer steps, 3.0 s"
    assert cost_words(Cost()) == "nothing"


def test_intervals_in_words() -> None:
    plain = {"estimate": 0.5, "low": 0.4, "high": None, "method": "m"}
    assert interval_words(plain) == "0.50 [0.40, –]"
    assert interval_words(plain, signed=True) == "+0.50 [+0.40, –]"
    assert interval_words({**plain, "estimate": -0.001, "low": -0.2}, signed=True) == "0.00 [-0.20, –]"
    assert interval_words(None) == interval_words({**plain, "estimate": None}) == "–"
    assert interval_words({**plain, "method": "identical"}, signed=True) == "none"


def test_what_a_terminal_would_obey_is_shown_instead() -> None:
    assert clean("a\x1b[2Jb\x07\r\n\tc\u202e") == "a\\x1b[2Jb\\x07\\x0d\n\tc\\x202e"
    assert clean("\x1b[31mred\x1b[0m") == "\x1b[31mred\x1b[0m"
    assert one_line("a\n\n b " * 50, 9) == "a b a b …"


def test_tables_line_up() -> None:
    assert table([["a", "bb"], ["ccc"], []], indent="") == "a    bb\nccc\n"


# --------------------------------------------------------------------------------------------------------- the standing


def test_a_standing_read_from_the_store_equals_one_that_was_kept_up(store: RunStore) -> None:
    kept = Standing(store, PHASES)
    for number, (fast, slow) in enumerate([("commit", "commit"), ("", "decline"), ("reject", "commit")], 1):
        commit(store, number, reward=number / 10, fast=fast, slow=slow, kl=0.01 * (number == 2))
        kept.advance(number, store.rounds()[-1].metrics)
    read = Standing(store, PHASES)
    for one in (kept, read):
        assert one.round == 3
        assert one.rewards == {"first": [0.1, 0.2, 0.3], "second": []}
        assert one.steps == 2
        assert one.fast is not None
        assert (one.fast.round, one.fast.action) == (3, "reject")
        assert one.drift is not None
        assert (one.drift.round, one.drift.live_base) == (2, 0.01)
        assert one.left_s == 8.0  # two rounds at four seconds each
    assert read.slow_words() == "2 steps, gradient norm 0.25, dead groups 50%"
    assert read.fast_words() == "round 3: prompts rejected: because of [prompts]"


def test_of_one_round_s_channels_the_one_that_wrote_is_shown(store: RunStore) -> None:
    commit(store, 1, fast="commit")
    standing = Standing(store, PHASES)
    (entry,) = store.entries(round=1)
    from dataclasses import replace

    standing._count_entries([replace(entry, channel="null", action="decline")])
    assert standing.fast is not None
    assert standing.fast.channel == "prompts"
    standing._count_entries([replace(entry, channel="null", action="decline", round=2)])
    assert standing.fast.channel == "null"


# ------------------------------------------------------------------------------------------------------------ the views


def test_plain_lines(store: RunStore) -> None:
    lines: list[str] = []
    with PlainLines(Standing(store, PHASES), lines.append) as view:
        view.note("measuring")
        for number in range(1, 6):
            view.step(number, "roll out")
            commit(store, number, reward=0.25, fast="reject" if number == 1 else "", slow="commit", kl=0.5)
            view.committed(number, store.rounds()[-1].metrics, store.head())
    assert lines[0] == "measuring"
    assert lines[1] == (
        "round 1/5 | first reward 0.25 | fast prompts rejected: because of [prompts] | "
        "slow 1 step, gradient norm 0.25, dead groups 50% | drift 0.5000 | 1,234 tokens/s in 4.0 s | left about 16 s"
    )
    assert lines[4].startswith("round 4/5 | second reward 0.25 | slow 4 steps")
    assert lines[5].endswith("last round done")
    assert len(lines) == 6


@pytest.mark.parametrize("width", [60, 80, 120])
def test_the_panel_fits_the_terminal(store: RunStore, width: int) -> None:
    for number in range(1, 5):
        commit(store, number, reward=number / 5, fast="commit", slow="commit", kl=0.001)
    panel = LivePanel(Standing(store, PHASES), "runs/" + "x" * 100)
    panel.step(5, "propose")
    lines = drawn(panel, width)
    assert len(lines) == 11
    assert {len(line.rstrip()) for line in lines} == {width - 3}  # room for the echo of Ctrl-C
    text = "\n".join(lines)
    assert "round 5 of 5, second (phase 2 of 2): propose" in text
    assert "▂▄▅ 0.20 to 0.60" in text
    assert "round 4: prompts committed: because" in text
    assert "4 steps, gradient norm 0.25, dead groups 50%" in text
    assert "0.0010 live‖base, 0.0020 base‖live" in text
    assert "1,234 tokens/s, rollouts 1.5 s" in text
    assert "about 4.0 s, " in text


def test_the_panel_before_the_first_round(store: RunStore) -> None:
    panel = LivePanel(Standing(store, PHASES, frozenset({"fast"})), "run")
    panel.note("measuring the untouched base")
    text = "\n".join(drawn(panel, 80))
    assert "round 0 of 5: measuring the untouched base" in text
    assert "no channel of this run is slow" in text
    assert "nothing proposed yet" in text
    assert "first   not begun" in text


def test_the_panel_on_a_terminal_without_unicode(store: RunStore) -> None:
    commit(store, 1, reward=0.99)
    text = "\n".join(drawn(LivePanel(Standing(store, PHASES), "run"), 80, "ascii"))
    assert "first   % 0.99 to 0.99" in text
    assert "####" in text
    assert text.startswith("+-")


def test_the_live_panel_ends_with_its_last_state(store: RunStore) -> None:
    out = io.StringIO()
    console = Console(file=out, width=80, force_terminal=True, color_system=None)
    with LivePanel(Standing(store, PHASES), "run", console) as view:
        view.step(1, "roll out")
        commit(store, 1, fast="commit")
        view.committed(1, store.rounds()[-1].metrics, store.head())
    last = out.getvalue().split("╭")[-1]
    assert "round 1 of 5, first (phase 1 of 2) " in last
    assert "round 1: prompts committed" in last
