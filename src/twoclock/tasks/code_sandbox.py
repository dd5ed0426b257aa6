"""Running a program that a model wrote against tests, in a process of its own with limits on time, memory and files.

A verifier is the user's own code and runs in ``runners``; a program is a stranger's. It gets a fresh Python without the
library (nothing of ours to reach), an empty folder, no standard streams, limits that it cannot raise, and an audit hook
that refuses sockets, processes, signals and writing elsewhere. What comes back is JSON, never a pickle. That stops
accidents and ordinary mischief. It is no boundary against an attacker: for hostile code use a virtual machine.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from twoclock.errors import ConfigError
from twoclock.tasks import code_child
from twoclock.tasks.text import clip

__all__ = ["Limits", "TestRun", "run_tests"]

MAX_PROGRAM_CHARS = 100_000


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What one run may take. Raises ConfigError for what is no limit."""

    seconds: float = 5.0
    """Wall clock, for the program and all tests together; processor time is held to about the same."""
    memory_bytes: int = 512 * 1024 * 1024
    file_bytes: int = 1024 * 1024
    """The largest file that may be written."""

    def __post_init__(self) -> None:
        problems = []
        if not 0.1 <= self.seconds <= 600:
            problems.append(f"seconds must lie in [0.1, 600]; got {self.seconds!r}")
        if self.memory_bytes < 64 * 1024 * 1024:
            problems.append(f"memory_bytes must be at least 64 MiB, which Python takes; got {self.memory_bytes!r}")
        if self.file_bytes < 4096:
            problems.append(f"file_bytes must be at least 4096; got {self.file_bytes!r}")
        if problems:
            raise ConfigError(problems)


@dataclass(frozen=True, kw_only=True)
class TestRun:
    """What a run came to, one entry a test."""

    __test__ = False  # no test case, whatever its name

    passed: tuple[bool, ...]
    said: tuple[str, ...]
    """Why each test failed; empty where it passed."""
    problem: str = ""
    """Why the program itself did not get through: a syntax error, an exception, its time was up, it ended itself."""

    @property
    def all_passed(self) -> bool:
        """Whether there were tests and every one passed."""
        return bool(self.passed) and all(self.passed)

    @property
    def share(self) -> float:
        return sum(self.passed) / len(self.passed) if self.passed else 0.0


def run_tests(program: str, tests: Sequence[str], limits: Limits | None = None) -> TestRun:
    """Run a program, then each test (an ``assert`` statement) in a copy of its names. Never raises on what a program
    does. Raises ConfigError where the platform has no resource limits."""
    if os.name != "posix":
        raise ConfigError("code tasks need a POSIX system: programs are held to limits that other systems lack")
    limits = limits or Limits()
    if len(program) > MAX_PROGRAM_CHARS:
        return _nothing(tests, f"the program has {len(program)} characters; {MAX_PROGRAM_CHARS} are allowed")
    try:
        program.encode("utf-8")
    except UnicodeEncodeError as error:
        return _nothing(tests, f"the program is no text: {clip(str(error))}")
    with tempfile.TemporaryDirectory(prefix="twoclock-code-", ignore_cleanup_errors=True) as folder:
        word = secrets.token_hex(16)
        lines, ended = _run(Path(folder), word, program, tests, limits)
    return _read(lines, tests, ended)


def _run(
    folder: Path, word: str, program: str, tests: Sequence[str], limits: Limits
) -> tuple[list[dict[str, Any]], str]:
    """(what the child told, how it ended where it did not end by itself)."""
    work = folder / "work"
    work.mkdir()
    told, asked = folder / "told", folder / "asked"
    told.touch()
    task = {"word": word, "program": program, "tests": list(tests), "seconds": limits.seconds}
    task |= {"memory_bytes": limits.memory_bytes, "file_bytes": limits.file_bytes}
    asked.write_text(json.dumps(task), encoding="utf-8")
    process = subprocess.Popen(
        [sys.executable, "-I", "-S", str(Path(code_child.__file__)), str(asked), str(told)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        cwd=work,
        env={"LC_ALL": "C.UTF-8", "HOME": str(work), "TMPDIR": str(work)},
        start_new_session=True,
    )
    ended = ""
    try:
        status = process.wait(timeout=limits.seconds)
        if status:
            name = signal.Signals(-status).name if -status in set(signal.Signals) else str(status)
            ended = f"its process ended with {name}"
    except subprocess.TimeoutExpired:
        ended = f"its time was up: {limits.seconds:g} s"
    finally:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    lines = []
    with told.open("rb") as handle:
        for raw in handle.read(limits.file_bytes).split(b"\n"):
            with contextlib.suppress(ValueError):
                line = json.loads(raw)
                if isinstance(line, dict) and line.get("word") == word:
                    lines.append(line)
    return lines, ended


def _read(lines: Sequence[dict[str, Any]], tests: Sequence[str], ended: str) -> TestRun:
    for line in lines:
        if "problem" in line:
            return _nothing(tests, str(line["problem"]))
    said = {int(line["test"]): str(line["said"]) for line in lines if "test" in line}
    if len(said) < len(tests):
        ended = ended or "it ended itself before its tests were through"
    else:
        ended = ""
    told = tuple(said.get(index, f"{_bare(test)}: not reached, {ended}") for index, test in enumerate(tests))
    return TestRun(passed=tuple(not text for text in told), said=told, problem=ended)


def _nothing(tests: Sequence[str], problem: str) -> TestRun:
    return TestRun(passed=(False,) * len(tests), said=tuple(f"{_bare(t)}: {problem}" for t in tests), problem=problem)


def _bare(test: str) -> str:
    return clip(test.removeprefix("assert "))
