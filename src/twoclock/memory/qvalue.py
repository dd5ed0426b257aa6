"""Q(s,c) ≈ p(r = 1 | s, c) as a two-layer perceptron in NumPy: features, loss, gradient, Adam.

    z = o(s,c) + w₂·relu(W₁ᵀ φ(s,c) + b₁) + b₂,    Q = σ(z),    L = Σ_i a_i (log(1 + e^{z_i}) − r_i z_i) / Σ_i a_i

the single-step cross-entropy of Memento (arXiv:2508.16153, section 2.4: squared errors vanish near 0 and 1), a_i the
weight of an example and o an offset that is not learned, the prior's logit. Published: no offset, hidden 512 with
dropout .2 on a fine-tuned text encoder; here the encoder is frozen, φ holds the products and differences of the two
vectors, hidden is 64 by default and there is no dropout.
All functions are pure; a step costs O(B·F·H).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

import numpy as np
import numpy.typing as npt

from twoclock.memory.arrays import frozen
from twoclock.seeding import child_seed

__all__ = ["SCALARS", "Adam", "Net", "adam_step", "features", "first_net", "gradient", "logits", "loss", "sigmoid"]

# B examples, F features, H hidden units, D dimensions.
Array = npt.NDArray[np.float32]

SCALARS = ("similarity", "rewarded", "record", "records")
"""What φ says besides the vectors: cosine of query and key; the case's own reward minus ½ (0: nobody graded); what the
case earned so far when shown, minus the mean of all, shrunk, in logits; how much of that is known, in [0, 1)."""


@dataclass(frozen=True, eq=False)
class Net:
    """The parameters, or numbers of their shapes; float32, read-only."""

    w1: np.ndarray
    """[F, H]"""
    b1: np.ndarray
    """[H]"""
    w2: np.ndarray
    """[H]"""
    b2: np.ndarray
    """[1]"""

    def map(self, function: np.ufunc | object, *others: Net) -> Net:
        """``function`` of the arrays of all, field by field."""
        parts = [[getattr(n, f.name) for n in (self, *others)] for f in fields(self)]
        return Net(*(frozen(np.asarray(function(*arrays))) for arrays in parts))  # type: ignore[operator]


@dataclass(frozen=True, eq=False)
class Adam:
    """First and second moments (Kingma & Ba, 2015) after ``steps`` steps."""

    m: Net
    v: Net
    steps: int = 0


def features(query: Array, cases: Array, scalars: Array) -> Array:
    """φ [B, 4D + 4] of queries [B, D] or one [D], case vectors [B, D] and scalars [B, 4]: query, case, their product
    and the size of their difference, scaled so that a number is of the order of 1 in unit vectors."""
    root = np.float32(math.sqrt(cases.shape[-1]))
    queries = np.broadcast_to(query, cases.shape)
    parts = [queries * root, cases * root, queries * cases * root * root, np.abs(queries - cases) * root, scalars]
    return np.concatenate(parts, axis=-1, dtype=np.float32)


def first_net(num_features: int, hidden: int, seed: int) -> Net:
    """Uniform in ±√(6/F) in the first layer (He et al., 2015), else 0: at first Q is the offset's."""
    rng = np.random.Generator(np.random.PCG64(child_seed("q-network", seed)))

    w1 = (2.0 * rng.random((num_features, hidden)) - 1.0) * math.sqrt(6.0 / num_features)
    zeros = [frozen(np.zeros(size, np.float32)) for size in (hidden, hidden, 1)]
    return Net(frozen(w1.astype(np.float32)), *zeros)


def sigmoid(z: npt.ArrayLike) -> np.ndarray:
    """1 / (1 + e^{−z}) without overflow."""
    z = np.asarray(z)
    small = np.exp(-np.abs(z))
    return np.asarray(np.where(z >= 0, 1.0, small) / (1.0 + small))


def logits(net: Net, x: np.ndarray, offset: npt.ArrayLike = 0.0) -> np.ndarray:
    """z [B] of features [B, F] and offsets [B]."""
    return np.asarray(np.maximum(x @ net.w1 + net.b1, 0.0) @ net.w2 + net.b2 + offset)


def loss(net: Net, x: np.ndarray, labels: np.ndarray, weights: np.ndarray, offset: npt.ArrayLike = 0.0) -> float:
    """L of labels [B] in [0, 1] and weights [B] ≥ 0, not all of them 0."""
    z = logits(net, x, offset)
    return float((weights * (np.logaddexp(0.0, z) - labels * z)).sum() / weights.sum())


def gradient(net: Net, x: np.ndarray, labels: np.ndarray, weights: np.ndarray, offset: npt.ArrayLike = 0.0) -> Net:
    """∂L/∂ of each parameter: with δ_i = a_i (σ(z_i) − r_i) / Σ a, back through both layers."""
    before = x @ net.w1 + net.b1
    hidden = np.maximum(before, 0.0)
    delta = weights * (sigmoid(hidden @ net.w2 + net.b2 + offset) - labels) / weights.sum()
    back = np.outer(delta, net.w2) * (before > 0.0)
    return Net(x.T @ back, back.sum(axis=0), hidden.T @ delta, delta.sum(keepdims=True))


def adam_step(net: Net, adam: Adam, slope: Net, *, rate: float, decay: float, clip: float = 1.0) -> tuple[Net, Adam]:
    """One step against ``slope``, its norm clipped, with decoupled weight decay (AdamW; Loshchilov & Hutter, 2019)."""
    norm = math.sqrt(sum(float((getattr(slope, f.name).astype(np.float64) ** 2).sum()) for f in fields(slope)))
    shrink = min(1.0, clip / norm) if norm > 0.0 else 1.0
    steps = adam.steps + 1
    m = adam.m.map(lambda old, g: (0.9 * old + 0.1 * shrink * g).astype(old.dtype), slope)
    v = adam.v.map(lambda old, g: (0.999 * old + 0.001 * (shrink * g) ** 2).astype(old.dtype), slope)
    one, two = 1.0 - 0.9**steps, 1.0 - 0.999**steps

    def move(p: np.ndarray, first: np.ndarray, second: np.ndarray) -> np.ndarray:
        return (p - rate * (first / one / (np.sqrt(second / two) + 1e-8) + decay * p)).astype(p.dtype)

    return net.map(move, m, v), Adam(m, v, steps)
