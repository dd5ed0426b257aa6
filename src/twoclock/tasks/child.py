"""The child process that a verifier runs in: ``python -m twoclock.tasks.child``, driven by ``runners.ProcessRunner``.

Standard output carries frames, so what the verifier prints is sent to standard error instead.
"""

from __future__ import annotations

import os
import queue
import sys
import threading
from pathlib import Path
from typing import IO, Any

from twoclock.errors import TwoclockError
from twoclock.tasks.loading import load_function
from twoclock.tasks.runners import perform, read_frame, write_frame


def _read(stream: IO[bytes], messages: queue.SimpleQueue[Any]) -> None:
    try:
        while True:
            messages.put(read_frame(stream))
    except (EOFError, OSError):
        os._exit(0)  # the parent is gone: end at once, also in the middle of a call that hangs


def main() -> None:
    frames_in, frames_out = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.dup2(2, 1)
    messages: queue.SimpleQueue[Any] = queue.SimpleQueue()
    threading.Thread(target=_read, args=(frames_in, messages), daemon=True).start()

    _, spec, base_dir = messages.get()
    if base_dir not in sys.path:
        sys.path.insert(0, base_dir)
    try:
        function = load_function(spec, Path(base_dir))
    except TwoclockError as error:
        write_frame(frames_out, str(error))
        return
    write_frame(frames_out, "ready")
    while True:
        _, arguments, timeout_s = messages.get()
        write_frame(frames_out, perform(function, arguments, timeout_s))


if __name__ == "__main__":
    main()
