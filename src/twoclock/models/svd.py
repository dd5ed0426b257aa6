"""The singular value decompositions of a model's linear modules: made once for a matrix, kept in the user's cache.

One file a matrix, named by the hash of its values and of how it was taken apart, written aside and renamed: a process
that is killed loses the matrix that it was at, and the next one goes on from there; models that share a matrix share
its file; a file cannot be taken for another matrix's. What takes less than a moment is not kept on the disk.
"""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from twoclock.errors import ModelError, NumericsError, UnsupportedError
from twoclock.hashing import canonical_json, content_hash, short
from twoclock.models.cache import Progress, cache_root, exclusive
from twoclock.nn.svf import Factoring, Factors, SingularChange, factorise

__all__ = ["Spectra"]

ALGORITHM = "gesdd-float32"
FORMAT = 1
MOMENT = 1e8
"""Products O · I · min(O, I) of all matrices together below which nothing is kept on the disk."""
TELL_EVERY = 30
Mark = tuple[int, int]
"""What changes when a weight is replaced or written to."""


class Spectra:
    """The factors of one model's linear modules, in each module's dtype and on its device; made when first asked for.

    ``cache_dir`` as for :func:`~twoclock.models.cache.cache_root`. Where the cache cannot be written, the work is done
    all the same and said to be lost.
    """

    def __init__(
        self,
        linears: Mapping[str, torch.nn.Module],
        *,
        cache_dir: Path | str | None = None,
        progress: Progress | None = None,
    ) -> None:
        self._linears, self._cache_dir = linears, cache_dir
        self._tell: Progress = progress or (lambda _: None)
        self._hashes: dict[str, tuple[Mark, str]] = {}
        self._made: dict[tuple[str, Factoring], tuple[str, Factors]] = {}
        self._sets: dict[tuple[tuple[str, ...], Factoring], tuple[list[Mark], str, dict[str, Factors]]] = {}
        self.computed = 0
        """Matrices that were taken apart here and not found."""

    def factors(self, names: Sequence[str], factoring: Factoring) -> dict[str, Factors]:
        """By module name. Raises UnsupportedError for a module that is no plain linear layer, NumericsError for weights
        with NaN or infinity."""
        weights = {name: self._weight(name) for name in names}
        keep = sum(w.shape[0] * w.shape[1] * min(w.shape) for w in weights.values()) >= MOMENT
        missing = [n for n in names if self._known(n, factoring) is None]
        began = self.computed
        for count, name in enumerate(missing, 1):
            digest, before = self._digest(name), self.computed
            made = self._read_or_make(name, weights[name], digest, factoring, keep)
            if keep and self.computed > before and (self.computed - began) % TELL_EVERY == 1:
                self._tell(f"singular value decomposition: matrix {count} of {len(missing)}, once for this model")
            self._made[name, factoring] = (digest, _as_module(made, weights[name]))
        return {name: self._made[name, factoring][1] for name in names}

    def identity(self, names: Sequence[str], factoring: Factoring) -> str:
        """The hash of these matrices' values and of how they are taken apart: what offsets belong to."""
        parts = [f"{name} {self._digest(name)}" for name in sorted(names)]
        return content_hash("\n".join([_manner(factoring), *parts]))

    def of(self, change: SingularChange, *, as_kept: bool = False) -> dict[str, Factors]:
        """The factors that a change scales; ``as_kept``: in the precision that they were kept in, not the modules'.
        Raises UnsupportedError where they are not those that the change was made for."""
        names = list(change.offsets)
        known = self._sets.get((tuple(names), change.factoring))
        # An expert is put in place between two requests: where nothing has moved, nothing is looked up again.
        if known is not None and not as_kept and known[1] == change.spectrum and known[0] == self._marks(names):
            return known[2]
        if unknown := [name for name in names if name not in self._linears]:
            raise UnsupportedError(
                f"the change is for a linear layer '{unknown[0]}', which this model has not; it was made for another"
            )
        if (now := self.identity(names, change.factoring)) != change.spectrum:
            raise UnsupportedError(
                f"this change of singular values belongs to the matrices {short(change.spectrum)}, but this model's "
                f"are {short(now)}: other weights, or the same ones rounded to another dtype; what scales the singular "
                "values of one matrix means nothing on another"
            )
        if not as_kept:
            found = self.factors(names, change.factoring)
            self._sets[tuple(names), change.factoring] = (self._marks(names), now, found)
            return found
        weights = {name: self._weight(name) for name in names}
        return {n: self._read_or_make(n, w, self._digest(n), change.factoring, True) for n, w in weights.items()}

    # ------------------------------------------------------------------------------------------------------- one matrix

    def _weight(self, name: str) -> torch.Tensor:
        weight = getattr(self._linears[name], "weight", None)
        if not isinstance(weight, torch.Tensor) or weight.dim() != 2 or not weight.is_floating_point():
            raise UnsupportedError(
                f"{name} is no plain linear layer with a matrix of floating-point weights (it may be quantised), so it "
                "cannot be taken apart into singular values; leave it out of targets"
            )
        return weight

    def _marks(self, names: Sequence[str]) -> list[Mark]:
        weights = [self._linears[name]._parameters.get("weight") for name in names]
        return [(-1, -1) if w is None else (w.data_ptr(), w._version) for w in weights]

    def _known(self, name: str, factoring: Factoring) -> Factors | None:
        found = self._made.get((name, factoring))
        return found[1] if found is not None and found[0] == self._digest(name) else None

    def _digest(self, name: str) -> str:
        weight = self._weight(name)
        mark = (weight.data_ptr(), weight._version)
        known = self._hashes.get(name)
        if known is None or known[0] != mark:
            # The values as float32, so that a matrix has one name whatever dtype it is held in.
            values = weight.detach().float().cpu().contiguous().numpy()
            known = (mark, content_hash(f"{values.shape} {content_hash(values.tobytes())}"))
            self._hashes[name] = known
        return known[1]

    def _read_or_make(self, name: str, weight: torch.Tensor, digest: str, factoring: Factoring, keep: bool) -> Factors:
        if not keep:
            return self._make(name, weight, factoring)
        root = cache_root(self._cache_dir)
        path = root / "svd" / f"{content_hash(f'{digest} {_manner(factoring)}')[:40]}.safetensors"
        found = _read(path, weight.shape)
        if found is not None:
            return found
        with contextlib.ExitStack() as held:
            try:
                held.enter_context(exclusive(root / "locks" / "svd.lock", "a singular value decomposition", self._tell))
            except OSError as problem:
                return self._made_in_vain(name, weight, factoring, problem)
            found = _read(path, weight.shape)  # another process may have made it while this one waited
            if found is None:
                whole = self._from_whole(digest, weight, factoring, root)
                found = whole or self._make(name, weight, factoring)
                try:
                    _write(path, found)
                except Exception as problem:  # safetensors raises its own error type where the disk is full
                    self._tell(_lost(root, problem))
            return found

    def _from_whole(self, digest: str, weight: torch.Tensor, factoring: Factoring, root: Path) -> Factors | None:
        """Part of a decomposition that is in the cache as a whole, which saves making it again."""
        full = Factoring()
        if factoring == full:
            return None
        found = _read(root / "svd" / f"{content_hash(f'{digest} {_manner(full)}')[:40]}.safetensors", weight.shape)
        if found is None:
            return None
        r = min(factoring.rank or len(found.s), len(found.s))
        dtype = getattr(torch, factoring.precision)
        u, s, vh = found.u[:, :r].to(dtype).contiguous(), found.s[:r].contiguous(), found.vh[:r].to(dtype).contiguous()
        w = weight.detach().float().cpu()
        rest = torch.linalg.matrix_norm(w - (u.float() * s) @ vh.float()) / torch.linalg.matrix_norm(w)
        return Factors(u, s, vh, float(rest))

    def _make(self, name: str, weight: torch.Tensor, factoring: Factoring) -> Factors:
        self.computed += 1
        try:
            return factorise(weight, factoring)
        except NumericsError as problem:
            raise NumericsError(f"{name}: {problem}") from problem
        except RuntimeError as problem:
            raise ModelError(f"the singular values of {name} could not be found: {problem}") from problem

    def _made_in_vain(self, name: str, weight: torch.Tensor, factoring: Factoring, problem: Exception) -> Factors:
        self._tell(_lost(cache_root(self._cache_dir), problem))
        return self._make(name, weight, factoring)


def _manner(factoring: Factoring) -> str:
    return f"{ALGORITHM} rank={factoring.rank} precision={factoring.precision}"


def _as_module(factors: Factors, weight: torch.Tensor) -> Factors:
    """In the module's dtype, on its device; the singular values stay float32."""
    u, vh = (t.to(weight.device, weight.dtype) for t in (factors.u, factors.vh))
    return replace(factors, u=u, s=factors.s.to(weight.device), vh=vh)


# ------------------------------------------------------------------------------------------------------- files


def _read(path: Path, shape: torch.Size) -> Factors | None:
    """None where there is no such file, or none that can be used."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            error = float(json.loads((file.metadata() or {})["twoclock"])["error"])
            u, s, vh = (file.get_tensor(name) for name in ("u", "s", "vh"))
    except (OSError, SafetensorError, KeyError, TypeError, ValueError):
        return None
    fits = s.dim() == 1 and u.shape == (shape[0], len(s)) and vh.shape == (len(s), shape[1])
    return Factors(u, s, vh, error) if fits and bool(torch.isfinite(s).all()) else None


def _write(path: Path, factors: Factors) -> None:
    """Under another name first, and on the disk before it is renamed."""
    from safetensors.torch import save_file

    path.parent.mkdir(parents=True, exist_ok=True)
    for leftover in path.parent.glob(".*-*"):  # of a process that was killed: who writes here holds the lock
        leftover.unlink(missing_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.stem}-", dir=path.parent)
    os.close(handle)
    try:
        # One key: the library writes several in no fixed order.
        head = canonical_json({"format": FORMAT, "algorithm": ALGORITHM, "error": factors.error})
        tensors = {"u": factors.u.cpu(), "s": factors.s.cpu(), "vh": factors.vh.cpu()}
        save_file(tensors, name, metadata={"twoclock": head})
        with open(name, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(name, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(name)
        raise


def _lost(root: Path, problem: Exception) -> str:
    reason = getattr(problem, "strerror", None) or problem
    return (
        f"singular value decompositions cannot be kept in {root} ({reason}) and will be made again next time; free "
        "some space there, or choose another folder: export TWOCLOCK_CACHE=/a/folder/with/space"
    )
