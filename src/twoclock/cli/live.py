"""Watching a run: a live panel on a terminal, one plain line a round elsewhere. Both listen to the loop, on stderr."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Protocol

from twoclock.cli.output import duration, say
from twoclock.cli.progress import ASCII_BLOCKS, BLOCKS, Standing, sparkline

if TYPE_CHECKING:
    from collections.abc import Callable

    from rich.console import Console, ConsoleOptions, RenderResult
    from rich.live import Live
    from rich.table import Table
    from rich.text import Text

    from twoclock.build import Session
    from twoclock.types import Snapshot

__all__ = ["LivePanel", "PlainLines", "View", "watch"]

LABEL = 7
"""Width of the panel's left column."""


class View(Protocol):
    """A loop observer with a beginning and an end."""

    standing: Standing

    def step(self, round: int, step: str) -> None: ...

    def committed(self, round: int, metrics: Mapping[str, float], snapshot: Snapshot) -> None: ...

    def note(self, text: str) -> None:
        """What goes on outside the rounds."""
        ...

    def __enter__(self) -> View: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


def watch(session: Session) -> View:
    """The view that fits where standard error goes."""
    clocks = frozenset(str(channel.timescale) for channel in session.parts.channels.values())
    standing = Standing(session.store, session.parts.stream.phases, clocks)
    name = str(session.store.path)
    return LivePanel(standing, name) if sys.stderr.isatty() else PlainLines(standing)


class PlainLines:
    """One line a round, for logs."""

    def __init__(self, standing: Standing, write: Callable[[str], None] = say) -> None:
        self.standing, self._write = standing, write

    def step(self, round: int, step: str) -> None:
        self.standing.enter(round, step)

    def committed(self, round: int, metrics: Mapping[str, float], snapshot: Snapshot) -> None:
        standing = self.standing
        standing.advance(round, metrics)
        phase = standing.phase
        parts = [
            f"round {round:>{len(str(standing.total))}}/{standing.total}",
            f"{phase.task if phase else ''} reward {metrics.get('reward', 0.0):.2f}",
        ]
        if standing.fast and standing.fast.round == round:
            parts.append(f"fast {standing.fast_words(60).removeprefix(f'round {round}: ')}")
        if standing.slow and standing.slow.round == round:
            parts.append(f"slow {standing.slow_words(60)}")
        if standing.drift and standing.drift.round == round:
            parts.append(f"drift {standing.drift.live_base:.4f}")
        parts.append(f"{metrics.get('decode_per_s', 0.0):,.0f} tokens/s in {duration(metrics.get('round_s', 0.0))}")
        left = standing.left_s
        parts.append(f"left about {duration(left)}" if left else "last round done")
        self._write(" | ".join(parts))

    def note(self, text: str) -> None:
        self._write(text)

    def __enter__(self) -> PlainLines:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return None


class LivePanel:
    """A panel that redraws itself four times a second."""

    def __init__(self, standing: Standing, name: str, console: Console | None = None) -> None:
        from rich.console import Console

        self.standing, self._name = standing, name
        self.console = console or Console(stderr=True)
        self._live: Live | None = None
        self._over = False

    def step(self, round: int, step: str) -> None:
        self.standing.enter(round, step)

    def committed(self, round: int, metrics: Mapping[str, float], snapshot: Snapshot) -> None:
        self.standing.advance(round, metrics)

    def note(self, text: str) -> None:
        self.standing.enter(self.standing.round, text)

    def __enter__(self) -> LivePanel:
        from rich.live import Live

        self._live = Live(self, console=self.console, refresh_per_second=4)
        self._live.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live:
            self._over = True
            self._live.__exit__(kind, error, trace)

    # -------------------------------------------------------------------------------------------------------- drawing

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        from rich.panel import Panel
        from rich.text import Text

        # Not the whole line: the terminal's echo of Ctrl-C would wrap, and leave a line of the panel behind.
        width = options.max_width - len("^C") - 1
        title = Text(f"twoclock {self._name}", style="bold")
        title.truncate(width - 6, overflow="ellipsis")  # a longer one would widen the panel
        # Two for the border, two for the padding.
        yield Panel(self._grid(width - 4, options.ascii_only), title=title, title_align="left", width=width)

    def _grid(self, width: int, ascii_only: bool) -> Table:
        from rich.table import Table
        from rich.text import Text

        grid = Table.grid(padding=(0, 1), expand=True)
        grid.add_column(width=LABEL, style="bold")
        grid.add_column(ratio=1, no_wrap=True, overflow="ellipsis")
        for label, words in self._rows(width - LABEL - 1, BLOCKS if not ascii_only else ASCII_BLOCKS):
            grid.add_row(label, words if isinstance(words, Text) else Text(words, overflow="ellipsis", no_wrap=True))
        return grid

    def _rows(self, width: int, blocks: str) -> Iterator[tuple[str, str | Text]]:
        standing = self.standing
        yield "now", self._now()
        yield "", self._bar(width, blocks)
        longest = max((len(task) for task in standing.rewards), default=0)
        for place, (task, rewards) in enumerate(standing.rewards.items()):
            yield "reward" if place == 0 else "", self._reward(task[: width // 2], rewards, width, longest, blocks)
        yield "fast", standing.fast_words(width)
        yield "slow", standing.slow_words(width)
        yield "drift", standing.drift_words()
        yield "speed", standing.speed_words()
        yield "left", standing.left_words()

    def _now(self) -> str:
        standing = self.standing
        phase = standing.phase
        place = f"round {standing.round} of {standing.total}"
        if phase:
            place += f", {phase.task} (phase {phase.index + 1} of {len(standing.phases)})"
        if self._over or not standing.step:
            return place
        return f"{place}: {standing.step} {duration(time.monotonic() - standing.step_began)}"

    def _bar(self, width: int, blocks: str) -> Text:
        from rich.text import Text

        done = sum(len(rewards) for rewards in self.standing.rewards.values())
        full = round(width * done / max(self.standing.total, 1))
        line = ("━", "─") if blocks == BLOCKS else ("#", "-")
        return Text.assemble((line[0] * full, "green"), (line[1] * (width - full), "dim"))

    def _reward(self, task: str, rewards: list[float], width: int, longest: int, blocks: str) -> Text:
        from rich.text import Text

        name = task.ljust(min(longest, width // 2))
        if not rewards:
            return Text(f"{name}  not begun", style="dim")
        numbers = f" {rewards[0]:.2f} to {rewards[-1]:.2f}"
        return Text.assemble(
            f"{name}  ", (sparkline(rewards, width - len(name) - 2 - len(numbers), blocks), "cyan"), numbers
        )
