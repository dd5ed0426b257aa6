"""What every call pays and promises: light imports, help for each verb, exit codes, no traceback."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from cli_bench import call, well

from twoclock import __version__
from twoclock.cli.app import VERBS
from twoclock.errors import TwoclockError

HEAVY = ("torch", "transformers", "numpy", "scipy", "pydantic", "plotly", "rich")
PROBE = """
import json, sys
from twoclock.cli import main
try:
    main(sys.argv[1:], prog_name="twoclock")
except SystemExit as end:
    print(json.dumps({"code": end.code, "modules": sorted(sys.modules)}), file=sys.stderr)
"""


def probe(*words: str) -> tuple[str, int, set[str]]:
    """(standard output, exit code, modules imported) of a fresh process."""
    done = subprocess.run([sys.executable, "-c", PROBE, *words], capture_output=True, text=True, timeout=60)
    found = json.loads(done.stderr.splitlines()[-1])
    return done.stdout, found["code"], set(found["modules"])


def test_help_imports_no_verb_and_nothing_heavy() -> None:
    text, code, modules = probe("--help")
    assert code == 0
    assert not modules & set(HEAVY)
    assert not {f"twoclock.cli.{verb}" for verb in VERBS} & modules
    assert all(f"\n  {verb} " in text for verb in VERBS)
    assert "Exit codes:" in text


@pytest.mark.parametrize("verb", VERBS)
def test_help_of_a_verb_imports_that_verb_alone(verb: str) -> None:
    text, code, modules = probe(verb, "--help")
    assert code == 0
    assert not modules & set(HEAVY)
    assert {f"twoclock.cli.{other}" for other in VERBS} & modules == {f"twoclock.cli.{verb}"}
    assert f"Usage: twoclock {verb}" in text


def test_reading_a_run_needs_no_torch(finished: Path) -> None:
    for words in (("status", str(finished)), ("log", str(finished)), ("log", str(finished), "--json")):
        _, code, modules = probe(*words)
        assert code == 0
        assert not modules & {"torch", "transformers"}


def test_version() -> None:
    assert well("--version").stdout == f"twoclock {__version__}\n"


def test_the_epilog_lists_every_exit_code_of_the_tree() -> None:
    def codes(kind: type[TwoclockError]) -> set[int]:
        return {kind.exit_code}.union(*(codes(child) for child in kind.__subclasses__()))

    listed = well("--help").stdout.split("Exit codes:")[1]
    assert all(f"\n    {code} " in listed for code in codes(TwoclockError) | {0, 130})


def test_an_unknown_verb_names_the_nearest() -> None:
    done = call("evaluate")
    assert done.exit_code == 2
    assert "unknown command 'evaluate'; did you mean eval?" in done.stderr
    assert "known: demo, run, resume" in call("zzzzz").stderr


def test_an_error_has_no_traceback_unless_asked_for(tmp_path: Path) -> None:
    missing = tmp_path / "none"
    plain = call("status", missing)
    assert plain.exit_code == 4
    assert plain.stdout == ""
    assert plain.stderr.startswith("error: there is no run at ")
    assert "Traceback" not in plain.stderr
    loud = call("status", missing, debug=True)
    assert loud.exit_code == 4
    assert "Traceback" in loud.stderr
    assert "StoreError" in loud.stderr


def test_the_environment_asks_for_the_traceback_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TWOCLOCK_DEBUG", "1")
    assert "Traceback" in call("status", tmp_path / "none").stderr


def test_a_broken_pipe_is_quiet(finished: Path) -> None:
    command = f"{sys.executable} -m twoclock.cli log {finished} --full | head -n 1"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=60)
    assert done.stdout.startswith("#1 round 0: init")
    assert done.stderr == ""
