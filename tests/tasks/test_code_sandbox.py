"""Programs in their process: what they may do, what they may not, and what becomes of those that misbehave."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from twoclock.errors import ConfigError
from twoclock.tasks.code_sandbox import Limits, TestRun, run_tests

QUICK = Limits(seconds=1.5)
SLOW = Limits(seconds=20.0)
"""For programs that end by themselves: a busy machine must not fail them."""
TESTS = ("assert f(1) == 2", "assert f(2) == 3")


def run(program: str, *tests: str, limits: Limits = SLOW) -> TestRun:
    return run_tests(program, tests or TESTS, limits)


def test_right_and_wrong() -> None:
    right = run("def f(x):\n    return x + 1")
    assert right == TestRun(passed=(True, True), said=("", ""))
    assert right.all_passed
    half = run("def f(x):\n    return 2")
    assert half.passed == (True, False)
    assert half.said == ("", "f(2) gave 2; expected 3")
    assert half.share == 0.5


def test_no_tests_is_no_pass() -> None:
    assert not run_tests("def f(x): return x", []).all_passed


@pytest.mark.parametrize(
    ("program", "said"),
    [
        ("def f(x:", "SyntaxError"),
        ("", "NameError: name 'f' is not defined"),
        ("def f(x):\n    return 1 / 0", "ZeroDivisionError"),
        ("raise SystemExit(0)", "SystemExit"),
        ("import nothing_like_this", "ModuleNotFoundError"),
        ("def f(x):\n    return f(x)", "RecursionError"),
        ("import os\nos._exit(0)", "ended itself before its tests were through"),
        ("def f(x):\n    import os\n    os._exit(0)", "ended itself"),
        ("x = '\\ud800'\nraise ValueError(x)", "ValueError"),
        ("def f(x):\n    return [0] * 10**11", "MemoryError"),
        ("while True: pass", "its time was up: 1.5 s"),
        ("import time\ntime.sleep(99)", "its time was up"),
        ("import signal, os\nsignal.raise_signal(signal.SIGKILL)", "SIGKILL"),
        ("def f(x):\n    raise KeyboardInterrupt", "KeyboardInterrupt"),
        ("class A:\n    def __repr__(self): raise ValueError\ndef f(x): return A()", "<no repr: ValueError>"),
        ("f = lambda x: True if x == 1 else 3", "f(1) gave True; expected 2"),
        ("def f(x):\n    return 'y' * 10**6", "…; expected 2"),
        ("print('x' * 10**7)\ndef f(x): return 0", "f(1) gave 0; expected 2"),
    ],
)
def test_what_fails_is_said(program: str, said: str) -> None:
    hangs = "while True" in program or "sleep" in program
    result = run(program, limits=QUICK if hangs else SLOW)
    assert not result.passed[0]
    assert said in result.said[0]
    assert len(result.said[0]) < 700


def test_a_text_that_cannot_be_encoded_or_is_too_long() -> None:
    assert "is no text" in run("x = '\ud800'").problem
    assert "source code string cannot contain null bytes" in run("x = 1\x00").problem
    assert "100000 are allowed" in run("#" * 200_000).problem


def test_a_test_that_hangs_costs_those_after_it_alone() -> None:
    result = run("def f(x):\n    while x == 2: pass\n    return x + 1", *TESTS, "assert f(3) == 4", limits=QUICK)
    assert result.passed == (True, False, False)
    assert "f(2) == 3: not reached, its time was up: 1.5 s" in result.said[1]


@pytest.mark.parametrize(
    "does",
    [
        "open('OUTSIDE', 'w').write('x')",
        "__import__('os').open('OUTSIDE', 0o101)",
        "__import__('os').mkdir('OUTSIDE')",
        "__import__('os').system('true')",
        "__import__('subprocess').run(['true'])",
        "__import__('os').fork()",
        "__import__('socket').socket().connect(('127.0.0.1', 80))",
        "__import__('os').kill(__import__('os').getppid(), 9)",
        "__import__('ctypes').CDLL(None)",
        "__import__('shutil').rmtree('OUTSIDE')",
        "__import__('os').remove('OUTSIDE')",
        "__import__('resource').setrlimit(0, (1, 1))",
    ],
)
def test_what_a_program_may_not_do(does: str, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    result = run(f"def f(x):\n    {does.replace('OUTSIDE', str(outside))}\n    return 2")
    assert "PermissionError: a program may" in result.said[0]
    assert not outside.exists()


def test_a_program_may_write_a_little_in_its_own_folder() -> None:
    assert run("open('mine', 'w').write('x')\ndef f(x): return x + 1").all_passed
    flood = run("def f(x):\n    open('mine', 'w').write('x' * 10**8)\n    return 2")
    assert not flood.all_passed


def test_results_cannot_be_written_from_outside_and_tests_do_not_touch_each_other() -> None:
    line = 'b\'{"test": 0, "said": ""}\\n\''
    forged = f"import os\nfor fd in range(3, 20):\n    try: os.write(fd, {line})\n    except OSError: pass\n"
    assert run(forged + "def f(x): return 0").passed == (False, False)
    assert run("def f(x): return x + 1", "assert (f := lambda x: 9)(1) == 9", "assert f(1) == 2").passed == (True, True)


def test_nothing_of_the_library_is_there() -> None:
    assert "ModuleNotFoundError" in run("import twoclock").problem


def test_raises_can_be_asked_for() -> None:
    program = "def f(x):\n    if x < 0: raise ValueError\n    return x"
    assert run(program, "assert raises(ValueError, f, -1)", "assert not raises(ValueError, f, 1)").all_passed


def test_a_process_that_was_begun_does_not_outlive_the_run() -> None:
    begun = time.monotonic()
    run("import threading, time\nthreading.Thread(target=time.sleep, args=(60,)).start()\ndef f(x): return x + 1")
    assert time.monotonic() - begun < 10


def test_limits_that_are_none() -> None:
    with pytest.raises(ConfigError) as caught:
        Limits(seconds=float("nan"), memory_bytes=1, file_bytes=0)
    assert len(caught.value.problems) == 3
