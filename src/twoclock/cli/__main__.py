"""``python -m twoclock.cli``: the command line without the installed script."""

from __future__ import annotations

from twoclock.cli.app import main

main(prog_name="twoclock")
