"""One decoding step of a Llama-like model in as few operations as it takes, for the model kinds listed here.

A decoding step of a small model is hundreds of small operations, and what lies between the matrix products costs as
much as they do. This step reads the same weights as the model's own modules and computes the same function, with
queries, keys and values from one product, gate and up from one, and on the CPU weights laid out once as the bf16
kernels want them (the layout that they otherwise make anew at every call). ``benchmarks/round_speed.py`` prints what
that brings. Where it does not apply, the engine runs the model's own forward pass: same results up to rounding, more
time.

It does not apply to other kinds of models; where the second copy of the weights would exceed ``MAX_COPY``; and while a
module carries a hook or a forward pass other than those of :mod:`twoclock.nn.lowrank` and
:mod:`twoclock.nn.rowwise`, whose effect it could not know.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from twoclock.models.shared_attention import head_module
from twoclock.models.views import DecodeView
from twoclock.nn.lowrank import mounted_change
from twoclock.nn.rowwise import Gated, Picked, Rows, mounted_groups

__all__ = ["LeanDecoder"]

KINDS = ("LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM")
MAX_COPY = 4 * 2**30
"""Bytes."""

Product = Callable[[torch.Tensor], torch.Tensor]
Change = Callable[[torch.Tensor, Product], torch.Tensor]
"""(x [B, I], the base's product) -> the changed outputs of the products that share the input, side by side."""
Layout = Callable[[Gated], tuple[Product, Product]]
"""The products with P and with Q of a group of changes."""


@dataclass(frozen=True)
class _Fused:
    """Linear modules that read the same input, as one product."""

    modules: tuple[nn.Linear, ...]
    product: Product
    marks: tuple[tuple[int, int], ...]

    def is_current(self) -> bool:
        """Whether the modules still have the weights that the product was made from."""
        return self.marks == _marks(self.modules)

    def change(self, layout: Layout) -> Change | None:
        """What is mounted on the modules now."""
        by_row = [mounted_groups(m) for m in self.modules]
        rows = next((found[0] for found in by_row if found is not None), None)
        if rows is not None:
            return _RowChange(self.modules, rows, [() if f is None else f[1] for f in by_row], layout)
        return self._low_rank()

    def _low_rank(self) -> Change | None:
        """B is block-diagonal: each module's rank is its own."""
        found = [mounted_change(m) for m in self.modules]
        if not any(found):
            return None
        ranks = [0 if f is None else f[0].shape[0] for f in found]
        like = next(f for f in found if f is not None)[0]
        a = torch.cat([f[0] for f in found if f is not None]).t().contiguous()
        b = like.new_zeros(sum(ranks), sum(m.out_features for m in self.modules))
        row = column = 0
        for module, f, rank in zip(self.modules, found, ranks, strict=True):
            if f is not None:
                b[row : row + rank, column : column + module.out_features] = f[1]
            row, column = row + rank, column + module.out_features
        return lambda x, product: product(x).addmm_(x @ a, b)

    def __call__(self, x: torch.Tensor, change: Change | None) -> torch.Tensor:
        return self.product(x) if change is None else change(x, self.product)


@dataclass(frozen=True)
class _Part:
    """One group of changes at one of the modules."""

    columns: slice
    group: Gated
    p: Product
    q: Product
    bias: torch.Tensor | None


class _RowChange:
    """Changes by row (:mod:`twoclock.nn.rowwise`) of modules that read the same input."""

    def __init__(
        self, modules: Sequence[nn.Linear], rows: Rows, groups: Sequence[Sequence[Gated]], layout: Layout
    ) -> None:
        self.rows = rows
        self.parts: list[_Part] = []
        self.width = 0
        for module, some in zip(modules, groups, strict=True):
            columns = slice(self.width, self.width + module.out_features)
            self.parts += [_Part(columns, g, *layout(g), module.bias if g.bare else None) for g in some]
            self.width += module.out_features
        bare = [part.group.members for part in self.parts if part.group.bare]
        self.instead = bare[0] if len(bare) == len(modules) and len(set(bare)) == 1 else None
        """The changes whose rows need none of the base's products."""

    def __call__(self, x: torch.Tensor, product: Product) -> torch.Tensor:
        out = self._base(x, product)
        taken: dict[int, torch.Tensor] = {}
        for part in self.parts:
            picked = self.rows.picked(part.group.members, len(x))
            if picked is None:
                continue
            if picked.rows is not None and id(picked) not in taken:
                taken[id(picked)] = x[picked.rows]
            value = part.q(part.p(taken.get(id(picked), x)).mul_(part.group.gate(picked)))
            _put(out[:, part.columns], value if part.bias is None else value.add_(part.bias), part, picked)
        return out

    def _base(self, x: torch.Tensor, product: Product) -> torch.Tensor:
        picked = None if self.instead is None else self.rows.picked(self.instead, len(x))
        if picked is None:
            return product(x)
        out = x.new_empty(len(x), self.width)
        return out if picked.rest is None else out.index_copy_(0, picked.rest, product(x[picked.rest]))


def _put(out: torch.Tensor, value: torch.Tensor, part: _Part, picked: Picked) -> None:
    if picked.rows is None:
        out.copy_(value) if part.group.bare else out.add_(value)
    elif part.group.bare:
        out.index_copy_(0, picked.rows, value)
    else:
        out.index_add_(0, picked.rows, value)


@dataclass(frozen=True)
class _Layer:
    before: Any
    qkv: _Fused
    q_norm: Any
    k_norm: Any
    out: _Fused
    between: Any
    gate_up: _Fused
    down: _Fused
    scale: float
    window: int


class LeanDecoder:
    """See the module. Make it with :meth:`of`."""

    def __init__(self, model: Any, layers: list[_Layer]) -> None:
        self.model = model
        self.layers = layers
        self._linears = {m for layer in layers for f in _fused(layer) for m in f.modules}
        self._head = head_module(model)
        self._head_product = _product([self._head])
        self._head_marks = _marks([self._head])
        self._layouts: dict[int, tuple[torch.Tensor, tuple[Product, Product], int]] = {}
        """Of factors that outlive a call, by the id of P: P, the products, and the bytes of what was laid out."""

    @classmethod
    def of(cls, model: Any, windows: Mapping[int, int]) -> LeanDecoder | None:
        """A decoder for this model, None where there is none. ``windows``: each layer's sliding window, 0: none."""
        size = sum(p.numel() * p.element_size() for p in model.parameters())
        if type(model).__name__ not in KINDS or size > MAX_COPY or model.config.hidden_act != "silu":
            return None
        layers = []
        for index, layer in enumerate(model.model.layers):
            attention, mlp = layer.self_attn, layer.mlp
            layers.append(
                _Layer(
                    before=layer.input_layernorm,
                    qkv=_fuse(attention.q_proj, attention.k_proj, attention.v_proj),
                    q_norm=getattr(attention, "q_norm", None),
                    k_norm=getattr(attention, "k_norm", None),
                    out=_fuse(attention.o_proj),
                    between=layer.post_attention_layernorm,
                    gate_up=_fuse(mlp.gate_proj, mlp.up_proj),
                    down=_fuse(mlp.down_proj),
                    scale=attention.scaling,
                    window=windows.get(index, 0),
                )
            )
        return cls(model, layers)

    def prepare(self) -> Callable[[torch.Tensor, DecodeView], torch.Tensor] | None:
        """A step under what is mounted now: (tokens [B], view) -> logits [B, V]. None where a hook forbids it, and
        where the model's weights are no longer those that were laid out."""
        outer = {self.model.model.embed_tokens, self._head}
        for module in self.model.modules():
            hooks = [*module._forward_hooks.values(), *module._forward_pre_hooks.values()]
            if hooks and module not in outer and not (module in self._linears and mounted_change(module)):
                return None
            if "forward" in vars(module) and (hooks or module not in self._linears or mounted_groups(module) is None):
                return None
        if not all(f.is_current() for layer in self.layers for f in _fused(layer)):
            return None
        plain_head = (
            self._head_marks == _marks([self._head])
            and not self._head._forward_hooks
            and not self._head._forward_pre_hooks
        )
        head = self._head_product if plain_head else self._head
        changes = [tuple(f.change(self._layout) for f in _fused(layer)) for layer in self.layers]

        def step(tokens: torch.Tensor, view: DecodeView) -> torch.Tensor:
            return self._step(tokens, view, changes, head)

        return step

    def _layout(self, group: Gated) -> tuple[Product, Product]:
        found = self._layouts.get(id(group.p))
        if found is not None:
            return found[1]
        room = MAX_COPY - sum(size for _, _, size in self._layouts.values())
        size = sum(t.numel() * t.element_size() for t in (group.p, group.q))
        if not group.lasts or size > room:
            return _plain(group.p), _plain(group.q.t())
        made = _laid_out(group.p), _laid_out(group.q.t())
        self._layouts[id(group.p)] = (group.p, made, size)
        return made

    def _step(
        self, tokens: torch.Tensor, view: DecodeView, changes: Sequence[tuple[Change | None, ...]], head: Product
    ) -> torch.Tensor:
        inner, config = self.model.model, self.model.config
        x = inner.embed_tokens(tokens[:, None])[:, 0]
        cos, sin = inner.rotary_emb(x[:, None], view.positions[:, None])
        width = cos.shape[-1]
        # The second half of the sine with its sign, so that rotating is one fused multiply-add.
        sin = torch.cat((-sin[..., : width // 2], sin[..., width // 2 :]), dim=-1)
        heads, kv_heads = config.num_attention_heads, config.num_key_value_heads
        rows = len(tokens)
        for index, (layer, (c_qkv, c_out, c_gate_up, c_down)) in enumerate(zip(self.layers, changes, strict=True)):
            qkv = layer.qkv(_norm(layer.before, x), c_qkv).view(rows, -1, width)
            qk, v = qkv[:, : heads + kv_heads], qkv[:, heads + kv_heads :]
            if layer.q_norm is not None:
                qk = torch.cat((_norm(layer.q_norm, qk[:, :heads]), _norm(layer.k_norm, qk[:, heads:])), dim=1)
            qk = torch.addcmul(qk * cos, torch.roll(qk, width // 2, dims=-1), sin)
            q, k = qk[:, :heads, None], qk[:, heads:, None]
            seen = view.attend(q, k, v[:, :, None], index, layer.scale, 0.0, layer.window)
            x = x + layer.out(seen.reshape(rows, -1), c_out)
            both = layer.gate_up(_norm(layer.between, x), c_gate_up)
            half = both.shape[1] // 2
            x = x + layer.down(nn.functional.silu(both[:, :half]).mul_(both[:, half:]), c_down)
        return head(_norm(inner.norm, x))


def _fused(layer: _Layer) -> tuple[_Fused, _Fused, _Fused, _Fused]:
    return layer.qkv, layer.out, layer.gate_up, layer.down


def _norm(module: Any, x: torch.Tensor) -> torch.Tensor:
    return nn.functional.rms_norm(x, (x.shape[-1],), module.weight, module.variance_epsilon)


def _fuse(*modules: nn.Linear) -> _Fused:
    return _Fused(modules, _product(modules), _marks(modules))


def _marks(modules: Sequence[Any]) -> tuple[tuple[int, int], ...]:
    """What changes when a weight is replaced or written to."""
    return tuple((m.weight.data_ptr(), m.weight._version) for m in modules)


def _product(modules: Sequence[Any]) -> Product:
    """x [B, I] -> the modules' outputs side by side [B, ΣO]."""
    weights = [m.weight.detach() for m in modules]
    weight = torch.cat(weights) if len(weights) > 1 else weights[0]
    biases = [m.bias for m in modules]
    bias = None
    if any(b is not None for b in biases):
        bias = torch.cat(
            [
                weight.new_zeros(m.out_features) if b is None else b.detach()
                for m, b in zip(modules, biases, strict=True)
            ]
        )
    return _laid_out(weight, bias)


def _laid_out(weight: torch.Tensor, bias: torch.Tensor | None = None) -> Product:
    packed = _packed(weight)
    if packed is not None:
        return lambda x: torch.ops.mkldnn._linear_pointwise(x, packed, bias, "none", [], "")
    return _plain(weight, bias)


def _plain(weight: torch.Tensor, bias: torch.Tensor | None = None) -> Product:
    return lambda x: nn.functional.linear(x, weight, bias)


def _packed(weight: torch.Tensor) -> torch.Tensor | None:
    """The weight as the CPU's bf16 kernels lay it out; None where they do not serve."""
    if weight.device.type != "cpu" or weight.dtype != torch.bfloat16 or not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return None
    try:
        packed: torch.Tensor = torch.ops.mkldnn._reorder_linear_weight(weight, 64)
        probe = weight.new_ones(2, weight.shape[1])
        torch.ops.mkldnn._linear_pointwise(probe, packed, None, "none", [], "")
    except (AttributeError, RuntimeError, NotImplementedError):
        # Not a public operation: a build without it takes the plain product.
        return None
    return packed
