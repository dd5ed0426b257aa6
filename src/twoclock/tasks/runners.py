"""Calling a verifier's function so that nothing it does ends or blocks the run: raising, hanging, dying.

A function given as an object runs in a daemon thread, which is abandoned when it hangs (threads cannot be killed). One
named by a string runs in a child process of its own, which can be. What a call gives is an :class:`Outcome`, a value.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import os
import pickle
import queue
import struct
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import IO, Any, Literal, Protocol

from twoclock.errors import VerifierError
from twoclock.tasks.text import clip

__all__ = [
    "Element",
    "InlineRunner",
    "Outcome",
    "ProcessRunner",
    "Runner",
    "ThreadRunner",
    "perform",
    "read_frame",
    "write_frame",
]

LOAD_TIMEOUT_S = 120.0
"""How long a child may take to import a verifier's module; it may well import a large framework."""

_HEADER = struct.Struct("!Q")


@dataclass(frozen=True)
class Element:
    """One score as the verifier gave it: a number or None, its feedback, and what breaks the contract, if anything."""

    score: float | None
    feedback: str = ""
    problem: str = ""


@dataclass(frozen=True)
class Outcome:
    """What one call came to. ``contract`` is a result that is no list of scores at all."""

    kind: Literal["ok", "raised", "hung", "died", "contract"]
    elements: tuple[Element, ...] = ()
    reason: str = ""


class Runner(Protocol):
    """Calls one function with keyword arguments."""

    def call(self, arguments: Mapping[str, Any], timeout_s: float) -> Outcome: ...

    def close(self) -> None: ...


def perform(function: Callable[..., Any], arguments: Mapping[str, Any], timeout_s: float) -> Outcome:
    """Call, await where the result asks for it, and turn whatever happens into an outcome."""
    try:
        result = function(**arguments)
        if inspect.isawaitable(result):
            result = asyncio.run(_within(result, timeout_s))
            if result is _TIMED_OUT:
                return Outcome("hung")
        return _outcome(result)
    except Exception as error:
        return Outcome("raised", reason=f"{type(error).__name__}: {clip(str(error), 300)}")
    except SystemExit as error:
        return Outcome("raised", reason=f"SystemExit: {clip(str(error))}")


_TIMED_OUT = object()


async def _within(awaitable: Any, timeout_s: float) -> Any:
    try:
        async with asyncio.timeout(timeout_s) as scope:
            return await awaitable
    except TimeoutError:
        if scope.expired():
            return _TIMED_OUT
        raise


def _outcome(result: Any) -> Outcome:
    if result is None or isinstance(result, str | bytes | Mapping) or not isinstance(result, Iterable):
        return Outcome("contract", reason=f"returned {clip(repr(result))}; expected a list with one score a completion")
    return Outcome("ok", tuple(_element(value) for value in result))


def _element(value: Any) -> Element:
    score, feedback = value, ""
    if isinstance(value, tuple | list):
        if len(value) != 2 or not isinstance(value[1], str | None):
            return Element(None, problem=f"{clip(repr(value))}; expected a number, None or (score, feedback text)")
        score, feedback = value[0], value[1] or ""
    if score is None:
        return Element(None, feedback)
    try:
        if isinstance(score, str | bytes):
            raise TypeError("text is no score")
        return Element(float(score), feedback)
    except (TypeError, ValueError, OverflowError, RuntimeError):
        return Element(None, problem=f"{clip(repr(score))} of type {type(score).__name__}; expected a number or None")


class InlineRunner:
    """Runs in the caller's own thread: for functions of ours that neither hang nor block."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function

    def call(self, arguments: Mapping[str, Any], timeout_s: float) -> Outcome:
        return perform(self._function, arguments, timeout_s)

    def close(self) -> None:
        pass


class ThreadRunner:
    """Runs in a daemon thread a call; a thread that hangs is left behind and ends with the process."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function

    def call(self, arguments: Mapping[str, Any], timeout_s: float) -> Outcome:
        results: queue.SimpleQueue[Outcome] = queue.SimpleQueue()

        def work() -> None:
            results.put(perform(self._function, arguments, timeout_s))

        threading.Thread(target=work, name="twoclock-verifier", daemon=True).start()
        try:
            return results.get(timeout=timeout_s)
        except queue.Empty:
            return Outcome("hung")

    def close(self) -> None:
        pass


class ProcessRunner:
    """Runs a function named by a string in a child process, started on first use and again after it was killed.

    The child is a plain ``python -m``, not a fork and not multiprocessing's spawn: it neither copies the model nor runs
    the caller's main script again. It ends when its standard input closes, so it does not outlive a killed parent.
    """

    def __init__(self, spec: str, base_dir: str) -> None:
        self._spec = spec
        self._base_dir = base_dir
        self._stop: Callable[[], Any] | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._replies: queue.SimpleQueue[Any] = queue.SimpleQueue()

    def call(self, arguments: Mapping[str, Any], timeout_s: float) -> Outcome:
        try:
            if self._process is None:
                self._start()
            write_frame(_pipe(self._process), ("call", dict(arguments), timeout_s))
            reply = self._replies.get(timeout=timeout_s)
        except queue.Empty:
            self.close()
            return Outcome("hung")
        except (BrokenPipeError, OSError):
            reply = None
        if not isinstance(reply, Outcome):
            return Outcome("died", reason=f"the verifier's process ended with exit status {self._exit_status()}")
        return reply

    def _start(self) -> None:
        process = subprocess.Popen(
            [sys.executable, "-m", "twoclock.tasks.child"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(entry for entry in sys.path if entry)},
            start_new_session=True,  # an interrupt at the keyboard is the parent's to handle
        )
        assert process.stdout is not None, process
        self._process = process
        self._replies = queue.SimpleQueue()
        reader = threading.Thread(target=_read_replies, args=(process.stdout, self._replies), daemon=True)
        reader.start()
        self._stop = weakref.finalize(self, _stop_process, process, reader)
        write_frame(_pipe(process), ("load", self._spec, self._base_dir))
        try:
            reply = self._replies.get(timeout=LOAD_TIMEOUT_S)
        except queue.Empty:
            reply = f"importing it took more than {LOAD_TIMEOUT_S:g} s"
        if reply != "ready":
            status = f"its process ended with exit status {self._exit_status()}" if reply is None else str(reply)
            self.close()
            raise VerifierError(f"verifier '{self._spec}' could not be started in its own process: {status}")

    def _exit_status(self) -> int | None:
        process = self._process
        self.close()
        return process.returncode if process else None

    def close(self) -> None:
        if self._stop is not None:
            self._stop()
        self._stop = self._process = None


def _pipe(process: subprocess.Popen[bytes] | None) -> IO[bytes]:
    assert process is not None, "started by now"
    assert process.stdin is not None, "made with a pipe"
    return process.stdin


def _read_replies(stream: IO[bytes], replies: queue.SimpleQueue[Any]) -> None:
    try:
        while True:
            replies.put(read_frame(stream))
    except (EOFError, OSError, ValueError, pickle.UnpicklingError):
        replies.put(None)


def _stop_process(process: subprocess.Popen[bytes], reader: threading.Thread) -> None:
    with contextlib.suppress(OSError):
        _pipe(process).close()
    try:
        process.wait(timeout=0.2)  # a child that has nothing to do ends by itself
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    reader.join(timeout=5)
    if process.stdout is not None and not reader.is_alive():
        process.stdout.close()


def write_frame(stream: IO[bytes], message: Any) -> None:
    data = pickle.dumps(message)
    stream.write(_HEADER.pack(len(data)) + data)
    stream.flush()


def read_frame(stream: IO[bytes]) -> Any:
    """The next message. Raises EOFError at the end of the stream."""
    header = stream.read(_HEADER.size)
    if len(header) < _HEADER.size:
        raise EOFError
    (length,) = _HEADER.unpack(header)
    data = stream.read(length)
    if len(data) < length:
        raise EOFError
    return pickle.loads(data)
