"""Tools of real MCP servers, started here as processes: calls, errors, limits, death, and no process left behind."""

from __future__ import annotations

import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from twoclock.agent.mcp import McpServer
from twoclock.agent.result_cache import ResultCache
from twoclock.agent.toolbox import Toolbox
from twoclock.errors import ConfigError, MissingExtraError
from twoclock.tasks.environments import ToolCall

SERVER = Path(__file__).with_name("mcp_server.py")
COMMAND = [sys.executable, str(SERVER)]

needs_mcp = pytest.mark.skipif(
    __import__("importlib.util").util.find_spec("mcp") is None, reason="the package 'mcp' is not installed"
)


@pytest.fixture(scope="module")
def server() -> Iterator[McpServer]:
    with McpServer.stdio(COMMAND, timeout_s=30) as opened:
        yield opened


@pytest.fixture
def box(server: McpServer) -> Toolbox:
    return Toolbox(server.tools())


def call(box: Toolbox, name: str, /, **arguments: Any) -> Any:
    return box.call(ToolCall(name=name, arguments=arguments))


def children() -> set[int]:
    """The processes that run our server, by /proc."""
    found = set()
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if str(SERVER) in entry.read_bytes().decode(errors="replace"):
                found.add(int(entry.parent.name))
        except OSError:
            continue
    return found


@needs_mcp
def test_a_servers_tools_are_tools(server: McpServer, box: Toolbox) -> None:
    assert "add" in server.tool_names
    assert box["add"].signature == "add(a: integer, b: integer = 1)"
    assert box["add"].description == "Adds two numbers."
    result = call(box, "add", a=2, b=3)
    assert (result.text, result.ok) == ("5", True)
    assert call(box, "add", a=2).text == "3"
    assert "name" in call(box, "record", name="x").text


@needs_mcp
@pytest.mark.parametrize(
    ("arguments", "said"),
    [({}, "'a' is a required property"), ({"a": "two"}, "a: 'two' is not of type 'integer'")],
)
def test_arguments_are_checked_here_before_the_server_is_asked(box: Toolbox, arguments: Any, said: str) -> None:
    result = box.call(ToolCall(name="add", arguments=arguments))
    assert result.problem == "arguments"
    assert said in result.text
    assert "Expected: add(a: integer" in result.text


@needs_mcp
def test_what_fails_there_is_an_error_here(box: Toolbox) -> None:
    result = call(box, "fails")
    assert (result.problem, result.ok) == ("raised", False)
    assert "fails failed" in result.text
    assert call(box, "add", a=1).ok, "the session goes on"


@needs_mcp
def test_a_strangers_text_is_data(box: Toolbox) -> None:
    assert "<|im_" not in call(box, "evil").text
    assert "<|im_" not in box.describe()
    assert "[cut: the first 4,000 of 1,000,000 characters]" in call(box, "big", count=1_000_000).text


@needs_mcp
def test_a_call_that_takes_too_long_is_given_up_and_the_session_goes_on() -> None:
    with McpServer.stdio(COMMAND, timeout_s=5) as server:
        server.timeout_s = 0.3
        box = Toolbox(server.tools())
        result = call(box, "slow", seconds=2)
        assert result.problem == "timeout"
        assert "no result within 0.3 s" in result.text
        server.timeout_s = 10
        assert call(box, "add", a=1).text == "2"
        hasty = Toolbox(server.tools(), timeout_s=0.1)
        assert call(hasty, "slow", seconds=0.5).text == "woke", "the server's limit holds, not the toolbox's"


@needs_mcp
def test_calls_may_come_from_many_threads(box: Toolbox) -> None:
    results: list[str] = []
    threads = [
        threading.Thread(target=lambda n=n: results.append(call(box, "add", a=n, b=0).text))  # type: ignore[misc]
        for n in range(12)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(map(int, results)) == list(range(12))


@needs_mcp
def test_a_server_that_dies_gives_errors_with_its_last_words() -> None:
    with McpServer.stdio(COMMAND, timeout_s=20) as server:
        box = Toolbox(server.tools())
        first = call(box, "die")
        assert first.problem == "raised"
        assert "die failed" in first.text
        assert "the server is out of breath" in first.text
        began = time.monotonic()
        assert not call(box, "add", a=1).ok
        assert time.monotonic() - began < 15


@needs_mcp
def test_nothing_is_left_running() -> None:
    before = children()
    server = McpServer.stdio(COMMAND)
    box = Toolbox(server.tools())
    assert len(children() - before) == 1
    server.close()
    server.close()
    deadline = time.monotonic() + 5
    while children() - before and time.monotonic() < deadline:
        time.sleep(0.05)
    assert children() - before == set()
    assert "is closed" in call(box, "add", a=1).text


@needs_mcp
@pytest.mark.parametrize(
    ("command", "said"),
    [
        (["/no/such/program"], "No such file"),
        ([sys.executable, "-c", "import sys; sys.exit('what an odd failure')"], "what an odd failure"),
        ([sys.executable, "-c", "print('no protocol', flush=True); input()"], "no answer within 2 s|imeout|closed"),
        ([sys.executable, "-c", "import time; time.sleep(60)"], "no answer within 2 s"),
        ([], "is a list such as"),
        ("python server.py", "is a list such as"),
    ],
)
def test_a_server_that_cannot_be_used_is_refused_with_the_reason(command: Any, said: str) -> None:
    began = time.monotonic()
    with pytest.raises(ConfigError, match=said):
        McpServer.stdio(command, timeout_s=2)
    assert time.monotonic() - began < 20


@needs_mcp
def test_names_are_chosen_and_wrong_ones_told(server: McpServer) -> None:
    assert [t.name for t in server.tools(only=("add", "slow"), prefix="probe.")] == ["probe.add", "probe.slow"]
    with pytest.raises(ConfigError, match="unknown tool of 'mcp_server' 'ad'; did you mean 'add'"):
        server.tools(pure=("ad",))
    with pytest.raises(ConfigError, match="must be above 0"):
        McpServer.stdio(COMMAND, timeout_s=0)


@needs_mcp
def test_only_what_we_call_pure_is_remembered(server: McpServer) -> None:
    cache = ResultCache()
    box = Toolbox(server.tools(pure=("add",)), cache=cache)
    for _ in range(2):
        call(box, "add", a=1, b=2)
        call(box, "record", name="x")
    assert dict(cache.counts) == {"misses": 1, "hits": 1}


@needs_mcp
def test_a_server_over_http_and_its_end() -> None:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    process = subprocess.Popen([*COMMAND, str(port)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 30
        while True:
            try:
                server = McpServer.http(f"http://127.0.0.1:{port}/mcp", timeout_s=5)
                break
            except ConfigError:
                assert time.monotonic() < deadline, "the server does not come up"
                time.sleep(0.2)
        with server:
            box = Toolbox(server.tools())
            assert call(box, "add", a=2, b=2).text == "4"
            process.kill()
            process.wait()
            assert not call(box, "add", a=2, b=2).ok
    finally:
        process.kill()
        process.wait()


@needs_mcp
@pytest.mark.parametrize("url", ["localhost:8000/mcp", "ftp://x/mcp", ""])
def test_an_address_of_another_form_is_refused(url: str) -> None:
    with pytest.raises(ConfigError, match="is like 'http://localhost"):
        McpServer.http(url)


def test_without_the_package_the_error_says_what_to_type(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mcp", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'twoclock\[mcp\]'"):
        McpServer.stdio(COMMAND)
