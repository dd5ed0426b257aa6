"""Tools of an MCP server, over stdio or streamable HTTP, through the official ``mcp`` package: a plain, blocking face.

The server's session lives in a thread with an event loop of its own, for as long as the :class:`McpServer` is open. A
call that fails, takes too long or finds the server gone raises :class:`~twoclock.agent.toolbox.ToolError`, which a
toolbox turns into a result. A server over stdio is a child process: it is ended with the session, and what it does to
itself (a crash, a hang) stays in it. Its names, descriptions and results are a stranger's text: names are cut to what
a tool's may be, and everything is neutralised where it is shown.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import functools
import importlib
import re
import tempfile
import threading
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

from twoclock.agent.tool_schema import Arguments
from twoclock.agent.toolbox import ToolError
from twoclock.agent.tools import NAME, Tool
from twoclock.errors import ConfigError, MissingExtraError, unknown_name
from twoclock.hashing import canonical_json, content_hash
from twoclock.tasks.text import clip

__all__ = ["McpServer"]

PAGES = 100
"""Pages of a listing that are read: a listing that never ends must not hang."""
CLOSE_S = 10.0
"""How long a session may take to end; the process of a server over stdio is killed within that time."""

Connect = Callable[[], Any]
"""Makes the ``mcp.Client``; called inside the event loop."""


class McpServer:
    """A session with one server. Close it, or use it as a context; tools of a closed server give errors."""

    def __init__(self, connect: Connect, name: str, *, timeout_s: float = 30.0, log: IO[str] | None = None) -> None:
        """See :meth:`stdio` and :meth:`http`. Raises ConfigError where the server does not answer in time."""
        self.name, self.timeout_s = name, timeout_s
        self._log = log
        self._last_words = ""
        self._closed = False
        self._ready: concurrent.futures.Future[Any] = concurrent.futures.Future()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread = threading.Thread(target=self._live, args=(connect,), name=f"twoclock-mcp-{name}", daemon=True)
        self._thread.start()
        try:
            self._client = self._ready.result(timeout_s)
            self._listed: list[Any] = self._wait(self._list(), timeout_s)
        except BaseException as error:
            self.close()
            if not isinstance(error, Exception):
                raise
            late = isinstance(error, TimeoutError)
            why = f"no answer within {timeout_s:g} s" if late else _why(error)
            raise ConfigError(f"MCP server '{name}' cannot be used: {why}{self._said}") from error

    @classmethod
    def stdio(
        cls,
        command: Sequence[str],
        *,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
        timeout_s: float = 30.0,
        name: str | None = None,
    ) -> McpServer:
        """Starts a server as a child process. It inherits PATH, HOME and the like; ``env`` is added."""
        if isinstance(command, str) or not command or not all(isinstance(part, str) for part in command):
            raise ConfigError(
                f"the command of an MCP server is a list such as ['python', 'server.py']; got {command!r}"
            )
        _require_limit(timeout_s)
        mcp = _package()
        stdio_client = importlib.import_module("mcp.client.stdio").stdio_client
        log = tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")  # noqa: SIM115 - close() closes it
        server = mcp.StdioServerParameters(
            command=command[0], args=list(command[1:]), env=dict(env) if env else None, cwd=cwd
        )
        called = name or Path(command[-1]).stem
        return cls(lambda: mcp.Client(stdio_client(server, errlog=log)), called, timeout_s=timeout_s, log=log)

    @classmethod
    def http(cls, url: str, *, timeout_s: float = 30.0, name: str | None = None) -> McpServer:
        """Connects to a server over streamable HTTP, such as ``http://localhost:8000/mcp``."""
        if not re.match(r"https?://[^/\s]+", url):
            raise ConfigError(f"the address of an MCP server is like 'http://localhost:8000/mcp'; got {url!r}")
        _require_limit(timeout_s)
        mcp = _package()
        return cls(lambda: mcp.Client(url), name or url.split("/")[2], timeout_s=timeout_s)

    def __enter__(self) -> McpServer:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends the session, and the server where we started it. A second time does nothing."""
        if self._closed:
            return
        self._closed = True
        if self._loop is not None:
            with suppress(RuntimeError):  # the session has ended by itself, and its loop with it
                self._loop.call_soon_threadsafe(self._end)
        self._thread.join(CLOSE_S)
        if self._log is not None:
            self._last_words = self._said
            self._log.close()

    # --------------------------------------------------------------------------------------------------------- tools

    @property
    def tool_names(self) -> tuple[str, ...]:
        """The tools as the server calls them."""
        return tuple(t.name for t in self._listed)

    def tools(self, *, pure: Collection[str] = (), prefix: str = "", only: Collection[str] | None = None) -> list[Tool]:
        """The server's tools. ``pure`` names those whose results may be remembered: the server's own hints about that
        are no proof and are not asked. ``only`` picks some. Raises ConfigError for a name that the server has not."""
        wanted = {*pure, *(only or ())}
        if unknown := [
            unknown_name(f"tool of '{self.name}'", n, self.tool_names) for n in sorted(wanted - {*self.tool_names})
        ]:
            raise ConfigError(unknown)
        return [self._tool(t, prefix, t.name in pure) for t in self._listed if only is None or t.name in only]

    def _tool(self, listed: Any, prefix: str, pure: bool) -> Tool:
        schema = dict(listed.input_schema or {"type": "object"})
        name = re.sub(r"[^A-Za-z0-9_.-]", "_", f"{prefix}{listed.name}")[:64]
        return Tool(
            name=name if NAME.fullmatch(name) else f"_{name}"[:64],
            description=listed.description or "",
            parameters=schema,
            check=_checker(schema, f"'{listed.name}' of MCP server '{self.name}'"),
            run=functools.partial(self.call, listed.name),
            pure=pure,
            version=content_hash([self.name, self._version, listed.name, schema])[:16],
            timeout_s=self.timeout_s + 1.0,  # the session's own limit comes first: it tells the server to stop
        )

    @property
    def _version(self) -> str:
        info = self._client.server_info
        return f"{info.name} {info.version}" if info is not None else ""

    def call(self, name: str, arguments: Mapping[str, Any]) -> Any:
        """The result of one call: its text where it has any, else its structured content. Raises ToolError."""
        if self._closed or not self._thread.is_alive():
            raise ToolError(f"MCP server '{self.name}' is closed{self._said}")
        try:
            call = self._client.call_tool(name, dict(arguments), read_timeout_seconds=self.timeout_s)
            result = self._wait(call, self.timeout_s + 0.5)
        except (TimeoutError, concurrent.futures.CancelledError) as error:
            raise ToolError(f"{name} gave no result within {self.timeout_s:g} s", "timeout") from error
        except Exception as error:
            late = "timed out" in str(error).lower()
            text = f"{name} gave no result within {self.timeout_s:g} s" if late else f"{name} failed: {_why(error)}"
            raise ToolError(text + ("" if late else self._said), "timeout" if late else "raised") from error
        text = "\n".join(_text(part) for part in result.content)
        if result.is_error:
            raise ToolError(f"{name} failed: {text or 'the server gave no reason'}")
        return text if text or result.structured_content is None else result.structured_content

    # ------------------------------------------------------------------------------------------------------- session

    def _live(self, connect: Connect) -> None:
        """The session's whole life, in its thread."""
        try:
            asyncio.run(self._session(connect))
        except BaseException as error:
            if not self._ready.done():
                why = error if isinstance(error, Exception) else ConnectionError("the session was ended")
                self._ready.set_exception(why)

    async def _session(self, connect: Connect) -> None:
        self._task, self._stop = asyncio.current_task(), asyncio.Event()
        self._loop = asyncio.get_running_loop()
        async with connect() as client:
            self._ready.set_result(client)
            await self._stop.wait()

    def _end(self) -> None:
        """Inside the loop: a session that is up ends by itself; one that is still coming up is cancelled."""
        self._stop.set()
        if not self._ready.done() and self._task is not None:
            self._task.cancel()

    async def _list(self) -> list[Any]:
        listed: list[Any] = []
        cursor = None
        for _ in range(PAGES):
            page = await self._client.list_tools(cursor=cursor)
            listed += page.tools
            cursor = page.next_cursor
            if cursor is None:
                break
        return listed

    def _wait(self, awaitable: Any, timeout_s: float) -> Any:
        if self._loop is None or self._loop.is_closed():
            awaitable.close()
            raise ConnectionError("the session has ended")
        future = asyncio.run_coroutine_threadsafe(awaitable, self._loop)
        try:
            return future.result(timeout_s)
        except BaseException:
            future.cancel()
            raise

    @property
    def _said(self) -> str:
        """The last thing that the server's process wrote to its standard error, for messages."""
        if self._log is None or self._log.closed:
            return self._last_words
        self._log.seek(0)
        lines = [line.strip() for line in self._log.read()[-4000:].splitlines() if line.strip()]
        return f"; it said: {clip(lines[-1], 300)}" if lines else ""


def _require_limit(timeout_s: float) -> None:
    if not timeout_s > 0:
        raise ConfigError(f"timeout_s of an MCP server must be above 0; got {timeout_s!r}")


def _package() -> Any:
    try:
        return importlib.import_module("mcp")
    except ModuleNotFoundError as missing:
        raise MissingExtraError.of(missing.name or "mcp", "mcp", "tools of an MCP server") from missing


def _checker(schema: Mapping[str, Any], what: str) -> Callable[[Mapping[str, Any]], Arguments]:
    """The check of arguments against a server's schema. References to other documents are not followed."""
    jsonschema, referencing = importlib.import_module("jsonschema"), importlib.import_module("referencing")
    kind = jsonschema.validators.validator_for(schema, default=jsonschema.Draft202012Validator)
    try:
        kind.check_schema(schema)
    except jsonschema.SchemaError as error:
        raise ConfigError(f"tool {what} has a schema that is none: {clip(error.message, 300)}") from error
    validator = kind(schema, registry=referencing.Registry())

    def check(given: Mapping[str, Any]) -> Arguments:
        plain = dict(given)
        canonical_json(plain).encode("utf-8")
        errors = sorted(validator.iter_errors(plain), key=lambda e: [str(part) for part in e.absolute_path])
        if errors:
            raise ValueError(
                "; ".join(
                    ".".join(str(p) for p in e.absolute_path) + (": " if e.absolute_path else "") + clip(e.message, 200)
                    for e in errors[:8]
                )
            )
        return Arguments(values=plain, plain=plain)

    return check


def _text(part: Any) -> str:
    """One block of a result as text; what is no text is named."""
    if getattr(part, "type", "") == "text":
        return str(part.text)
    resource = getattr(part, "resource", None)
    embedded = getattr(resource, "text", None)
    if embedded is not None:
        return str(embedded)
    kind = getattr(part, "mime_type", None) or getattr(part, "type", "data")
    return f"[{kind}, {len(getattr(part, 'data', '') or '')} characters, not shown]"


def _why(error: BaseException) -> str:
    """An error in one line: of a group, the first one inside."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return clip(f"{type(error).__name__}: {error}", 300)
