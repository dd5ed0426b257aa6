"""An ``svf`` state for elsewhere: its vectors as one safetensors file, the best low-rank adapter that PEFT loads, or a
whole model with the change added in.

The vectors mean something on the weights that they were trained on and on no others, so the file bears the base's hash
and :func:`read_vectors` holds it to a model's. An adapter of rank k leaves out what the k largest |s (z − 1)| of each
layer are not; how much is returned and written beside it. The merged model computes what the run did, in one product.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from twoclock.errors import ConfigError, DataError, UnsupportedError
from twoclock.hashing import canonical_json, short
from twoclock.nn.svf import Factoring, Factors, SingularChange, as_low_rank, changed_weight, truncation_error
from twoclock.slow.full_export import write_model
from twoclock.slow.lora import LoraState
from twoclock.slow.lora_export import export_peft
from twoclock.slow.svf import SvfState, delta_of
from twoclock.types import Delta

__all__ = ["VECTORS_FILE", "export_adapter", "export_merged", "export_vectors", "read_vectors"]

VECTORS_FILE = "svf.safetensors"
FORMAT = 1


def export_vectors(state: SvfState, folder: str | Path, base_name: str) -> Path:
    """Write z − 1 of every layer into ``folder``/svf.safetensors, made if need be, and return the folder.

    Raises ConfigError for a state that changes nothing yet, and for a folder that holds anything.
    """
    from safetensors.torch import save_file

    _require_steps(state)
    target = _empty(folder)
    head = {
        "format": FORMAT,
        "what": "z - 1 of each linear layer: W' = U diag(s * z) Vh",
        "base": state.base,
        "base_name": base_name,
        "spectrum": state.spectrum,
        "rank": state.factoring.rank,
        "precision": state.factoring.precision,
        "step": state.step,
    }
    tensors = {name: t.contiguous() for name, t in state.offsets.items()}
    save_file(tensors, target / VECTORS_FILE, metadata={"twoclock": canonical_json(head)})
    return target


def read_vectors(path: str | Path, base_hash: str | None = None) -> Delta:
    """The change in a file (or a folder that holds it) that :func:`export_vectors` wrote. Raises DataError where it is
    none, UnsupportedError where ``base_hash`` is given and it was trained on other weights."""
    import torch
    from safetensors import SafetensorError, safe_open

    file = Path(path)
    file = file / VECTORS_FILE if file.is_dir() else file
    try:
        with safe_open(file, framework="pt") as opened:
            head = json.loads((opened.metadata() or {})["twoclock"])
            offsets = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118  (it is no mapping)
        factoring = Factoring(rank=head["rank"], precision=head["precision"])
        base, spectrum = str(head["base"]), str(head["spectrum"])
        if head["format"] != FORMAT:
            raise ValueError(f"its format is {head['format']}, and this version reads {FORMAT}")
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as problem:
        raise DataError(f"{file} holds no scaled singular values that twoclock wrote: {problem!r}") from problem
    for name, offset in offsets.items():
        if offset.dim() != 1 or offset.dtype != torch.float32 or not bool(torch.isfinite(offset).all()):
            raise DataError(f"{file}: {name} is no vector of finite float32 numbers")
    if base_hash is not None and base != base_hash:
        raise UnsupportedError(
            f"{file} was trained on base weights {short(base)} ({head.get('base_name', 'no name given')}), but the "
            f"model is {short(base_hash)}; scaled singular values mean nothing on other weights"
        )
    return delta_of(SingularChange(offsets, factoring, spectrum), base)


def export_adapter(
    state: SvfState, folder: str | Path, base_name: str, factors: Mapping[str, Factors], rank: int
) -> float:
    """Write the best change of rank ``rank`` of each layer as a PEFT adapter folder; returns ‖what is left out‖ over
    ‖the change‖, over all layers (Frobenius; 0: exact). At a layer's full rank nothing is left out.

    Raises ConfigError for a rank that no layer has, for a state that changes nothing yet, for a folder in use.
    """
    import torch

    _require_steps(state)
    most = max(len(f.s) for f in factors.values())
    if not 1 <= rank <= most:
        raise ConfigError(f"rank must be a whole number from 1 to {most}, the most that a layer has; got {rank!r}")
    pairs, left, whole = {}, 0.0, 0.0
    for name, offset in state.offsets.items():
        a, b = as_low_rank(factors[name], offset, rank)
        # One rank for all layers: a smaller one's are filled up with zeros.
        more = rank - len(a)
        pairs[name] = (torch.nn.functional.pad(a, (0, 0, 0, more)), torch.nn.functional.pad(b, (0, more)))
        mine = truncation_error(factors[name], offset, rank)
        left, whole = left + mine[0], whole + mine[1]
    low_rank = LoraState(state.seed, state.step, state.base, 1.0, pairs)
    export_peft(low_rank, folder, base_name)
    return math.sqrt(left / whole) if whole > 0 else 0.0


def export_merged(
    state: SvfState, folder: str | Path, base: str, factors: Mapping[str, Factors], dtype: str | None = None
) -> Path:
    """Write the changed model as :func:`~twoclock.slow.full_export.export_model` does; W' is summed in float32 and
    rounded once.

    Raises ConfigError also for a layer that shares its matrix with another part of the model: merged, it would change
    that part too.
    """
    _require_steps(state)

    def changed(model: Any) -> dict[str, Any]:
        own = dict(model.named_parameters())
        owners: dict[int, int] = {}
        for module in model.modules():
            for parameter in module.parameters(recurse=False):
                owners[id(parameter)] = owners.get(id(parameter), 0) + 1
        weights = {name: model.get_submodule(name).weight for name in state.offsets}
        if shared := [name for name, w in weights.items() if owners[id(w)] > 1]:
            raise ConfigError(
                f"{shared[0]} shares its matrix with another part of the model, which merging would change too; export "
                "the vectors or an adapter instead"
            )
        names = {id(parameter): name for name, parameter in own.items()}
        return {names[id(w)]: changed_weight(w, factors[name], state.offsets[name]) for name, w in weights.items()}

    return write_model(folder, base, dtype, changed)


def _require_steps(state: SvfState) -> None:
    if state.delta is None:
        raise ConfigError("there is nothing to export: this state has taken no step, so it is the base model itself")


def _empty(folder: str | Path) -> Path:
    target = Path(folder)
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise ConfigError(f"{target} is there already and not an empty folder; name a new one")
    target.mkdir(parents=True, exist_ok=True)
    return target
