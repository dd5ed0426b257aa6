"""The report: a run's store in, one self-contained HTML page out. Reads only the store, never a model."""

from __future__ import annotations

from twoclock.report.page import render, write_report

__all__ = ["render", "write_report"]
