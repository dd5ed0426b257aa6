"""The report names the shifts that are deployed, beside the learned prompt."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from twoclock.report.page import _environment, _learned_prompts
from twoclock.store.shifts import plain_shifts
from twoclock.types import Delta, Shift

SHIFT = Shift(expert=Delta("d", "lora", "b", None), anti=None, alpha=0.5, name="terse & <curt>", plausible=0.1)
NOTHING: dict[str, Any] = {"system": None, "exemplars": [], "notes": [], "recall": [], "recalled": [], "delta": None}


def learned(conditioning: dict[str, Any]) -> Any:
    data: Any = SimpleNamespace(conditionings={"c": conditioning})
    table = SimpleNamespace(evaluations={("live", "learned"): SimpleNamespace(conditioning_id="c")})
    split: Any = SimpleNamespace(task="sums", table=table)
    return _learned_prompts(data, [split])


def test_a_shift_alone_is_shown() -> None:
    found = learned({**NOTHING, "shifts": plain_shifts([SHIFT])})
    assert found["sums"]["shifts"] == ["terse & <curt> × 0.5 within 0.1 of the expert's best"]
    assert learned({**NOTHING, "shifts": []}) == {}
    assert learned(NOTHING) == {}


def test_its_name_is_text_on_the_page() -> None:
    source, _, _ = _environment().loader.get_source(_environment(), "report.html")  # type: ignore[union-attr]
    (line,) = [line for line in source.splitlines() if "prompt.shifts" in line]
    html = _environment().from_string(line).render(prompt=learned({**NOTHING, "shifts": plain_shifts([SHIFT])})["sums"])
    assert "terse &amp; &lt;curt&gt; × 0.5" in html
