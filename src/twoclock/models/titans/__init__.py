"""Language models with a neural memory, and the models they are compared with, as transformers' causal LMs.

``config`` names one model, ``model`` is it, ``cache`` is what one has become after a text, ``sizes`` counts. Nothing is
imported here: type ``from twoclock.models.titans.model import TitansForCausalLM``.
"""

from __future__ import annotations

__all__: list[str] = []
