"""Probes of a run: drift, retention, plasticity, out of distribution, decomposition. A probe never changes its run."""

from __future__ import annotations

from twoclock.probing.curves import run_curve, spent_by_round
from twoclock.probing.driver import fingerprint, probe_run
from twoclock.probing.settings import Estimate, ProbeSettings

__all__ = ["Estimate", "ProbeSettings", "fingerprint", "probe_run", "run_curve", "spent_by_round"]
