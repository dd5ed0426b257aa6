"""Prompts as fast memory: a population of system prompts and exemplars with a Pareto pool; state is a value."""

from __future__ import annotations

from twoclock.fast.prompts.channel import PromptsChannel
from twoclock.fast.prompts.config import PromptsConfig
from twoclock.fast.prompts.state import Candidate, Pool, PromptsState, Score
from twoclock.fast.spec import FastSpec

__all__ = ["SPEC", "Candidate", "Pool", "PromptsChannel", "PromptsConfig", "PromptsState", "Score"]

SPEC = FastSpec(
    config=PromptsConfig,
    build=lambda config, reflector: PromptsChannel(config, reflector),
    summary="a population of system prompts and exemplars, searched on the policy as it is now",
)
