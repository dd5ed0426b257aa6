"""What the probes say of models whose skill is known: a template is found, a calculator passes, nothing is nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from probing_runs import SUMS, calculates, call, memorises, probed, scripted

import twoclock.build
from twoclock.probing import ProbeSettings
from twoclock.probing.context import ProbeContext
from twoclock.report.probes import read_probes
from twoclock.store import RunStore


def learned(folder: Path, patch: pytest.MonkeyPatch, skill: Any) -> Path:
    patch.setattr(twoclock.build, "build_policy", scripted(skill))
    (folder / "sums.toml").write_text(SUMS)
    done = call("run", folder / "sums.toml", "--out", folder / "run", "--no-eval")
    assert done.exit_code == 0, done.output
    return folder / "run"


def ood(run: Path, *words: Any) -> Any:
    return probed(run, "--ood", "--items", 120, *words)["results"]["ood"]


def test_a_template_memoriser_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    task = ood(learned(tmp_path, monkeypatch, memorises))["tasks"]["add"]
    splits = task["report"]["splits"]
    assert splits["id"]["figures"]["live"]["estimate"] == 1.0
    assert splits["n-1"]["figures"]["live"]["estimate"] < 0.2
    assert splits["template"]["figures"]["did"]["low"] > 0.5
    assert "specialised" in task["report"]["verdict"]
    text = call("probe", tmp_path / "run", "--ood", "--items", 60).stdout
    assert task["report"]["verdict"] in text
    assert "a template was learned, not the procedure" in text


def test_a_calculator_passes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    task = ood(learned(tmp_path, monkeypatch, calculates))["tasks"]["add"]
    assert task["report"]["verdict"] == "generalises"
    for variant in ("n-1", "n+1", "template", "distractor"):
        figures = task["report"]["splits"][variant]["figures"]
        assert figures["live"]["estimate"] == 1.0
        assert figures["did"]["low"] <= 0 <= figures["did"]["high"]


def test_a_system_that_learned_nothing_has_no_difference_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = learned(tmp_path, monkeypatch, calculates)
    assert call("rollback", run, 0).exit_code == 0
    task = ood(run)["tasks"]["add"]
    assert task["same_system"] is True
    for split in task["report"]["splits"].values():
        assert split["figures"]["change"]["estimate"] == 0.0
    assert task["report"]["verdict"] == "no_gain"


def test_what_is_seen_is_what_was_rolled_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = learned(tmp_path, monkeypatch, calculates)
    with RunStore.open(run) as store:
        rolled = {row.item_id for row in store.rollouts()}
    task = ood(run)["tasks"]["add"]
    assert task["report"]["splits"]["seen"]["items"] == len(rolled) == 12


def test_a_budget_leaves_variants_out_and_says_which(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = learned(tmp_path, monkeypatch, memorises)
    found = probed(run, "--ood", "--items", 60, "--budget", 400)
    task = found["results"]["ood"]["tasks"]["add"]
    assert found["cost"]["rollouts"] == 360  # id, n-1 and template, 60 items each, base and live
    assert task["measured"] == ["id", "n-1", "template"]
    assert set(task["left_out"]) == {"distractor", "n+1", "rule", "seen"}
    assert "3 of 7 variants" in found["stopped"]["ood"]
    assert "specialised" in task["report"]["verdict"]
    nothing = call("probe", run, "--ood", "--items", 60, "--budget", 100, "--json")
    assert json.loads(nothing.stdout)["not_probed"]["ood"].startswith("the budget was spent before it began")


def test_two_probes_give_the_same_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = learned(tmp_path, monkeypatch, memorises)
    assert ood(run) == ood(run)


def test_the_task_trained_on_last_is_the_one_of_the_last_live_round(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a stream add, more, add the prompt that is live on other texts is that of add, not of the task met last."""
    monkeypatch.setattr(twoclock.build, "build_policy", scripted(calculates))
    more = SUMS[SUMS.index("[tasks.add]") : SUMS.index("[[stream]]")].replace("tasks.add", "tasks.more")
    phases = "".join(f'[[stream]]\ntask = "{task}"\nrounds = 1\n' for task in ("add", "more", "add"))
    text = SUMS.replace('[[stream]]\ntask = "add"\nrounds = 3\n', more + phases)
    (tmp_path / "sums.toml").write_text(text)
    assert call("run", tmp_path / "sums.toml", "--out", tmp_path / "run", "--no-eval").exit_code == 0

    def begun() -> list[str]:
        session = twoclock.build.open_session(tmp_path / "run")
        with session.store:
            return ProbeContext(session, ProbeSettings(), lambda text: None).begun

    assert begun() == ["add", "more", "add"]
    assert call("rollback", tmp_path / "run", 0).exit_code == 0
    assert begun() == []


# -------------------------------------------------------------------------------------------------- planted forgetting


@pytest.fixture
def summed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return learned(tmp_path, monkeypatch, calculates)


def test_forgetting_beyond_the_noise_is_found(summed: Path) -> None:
    assert call("rollback", summed, 0).exit_code == 0  # what was live after the phase could do it; what is live cannot
    (row,) = probed(summed, "--retention")["results"]["retention"]["items"]
    assert row["same_state"] is False
    assert row["null_lost"]["estimate"] == 0.0
    assert row["lost"]["estimate"] == pytest.approx(0.65, abs=0.2)
    assert row["excess"]["low"] > 0.3


def test_the_same_state_shows_no_forgetting(summed: Path) -> None:
    (row,) = probed(summed, "--retention")["results"]["retention"]["items"]
    assert row["same_state"] is True
    assert row["excess"]["low"] <= 0 <= row["excess"]["high"]


def test_a_page_has_a_section_for_what_was_probed(summed: Path, tmp_path: Path) -> None:
    done = call(
        "probe", summed, "--ood", "--retention", "--decomposition", "--items", 40, "--html", tmp_path / "p.html"
    )
    assert done.exit_code == 0, done.output
    html = (tmp_path / "p.html").read_text(encoding="utf-8")
    for name in ("ood", "retention", "decomposition"):
        assert f'id="probe-{name}"' in html
    for name in (
        "probe_matrix",
        "probe_items",
        "probe_ood_scores_0",
        "probe_ood_gaps_0",
        "probe_cells",
        "probe_effects",
    ):
        assert f'data-figure="{name}"' in html
    assert 'id="probe-drift"' not in html
    assert call("report", summed).exit_code == 0  # found beside the run
    assert 'id="probe-ood"' in (summed / "report.html").read_text(encoding="utf-8")


def test_the_newest_results_of_each_probe_are_shown(summed: Path, tmp_path: Path) -> None:
    for name, items in (("a", 30), ("b", 40)):
        assert (
            call("probe", summed, "--decomposition", "--items", items, "--out", tmp_path / f"{name}.json").exit_code
            == 0
        )
    assert call("probe", summed, "--retention", "--out", tmp_path / "c.json").exit_code == 0
    with RunStore.open(summed) as store:
        head = store.head()
    pages = read_probes(summed, head, [tmp_path / f"{name}.json" for name in "abc"])
    assert pages.files["decomposition"]["path"].endswith("b.json")
    assert list(pages.results) == ["retention", "decomposition"]


def test_a_page_says_when_other_states_were_probed(summed: Path, tmp_path: Path) -> None:
    assert call("probe", summed, "--retention").exit_code == 0
    assert call("rollback", summed, 0).exit_code == 0
    assert call("report", summed, "--out", tmp_path / "p.html").exit_code == 0
    assert "are others than those that were probed" in (tmp_path / "p.html").read_text(encoding="utf-8")


def test_a_file_that_lacks_what_the_page_shows_is_refused(summed: Path, tmp_path: Path) -> None:
    file = tmp_path / "probe.json"
    assert call("probe", summed, "--decomposition", "--out", file).exit_code == 0
    found = json.loads(file.read_text())
    for name in ("cells", "shares"):
        broken = json.loads(json.dumps(found))
        del broken["results"]["decomposition"]["tasks"]["add"][name]
        file.write_text(json.dumps(broken))
        done = call("report", summed, "--probe-file", file, "--out", tmp_path / "p.html")
        assert done.exit_code == 2, done.output
        assert "lacks what the page shows" in done.stderr


def test_names_in_a_probe_file_cannot_leave_their_place(summed: Path, tmp_path: Path) -> None:
    file = tmp_path / "probe.json"
    assert call("probe", summed, "--decomposition", "--out", file).exit_code == 0
    attack = "</script><script>stolen()</script>"
    file.write_text(file.read_text().replace('"add"', json.dumps(attack)))
    assert call("report", summed, "--probe-file", file, "--out", tmp_path / "p.html").exit_code == 0
    assert "<script>stolen()" not in (tmp_path / "p.html").read_text(encoding="utf-8")
