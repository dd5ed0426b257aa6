"""The causal language model: embedding, blocks, head, loss, and what transformers' ``generate`` needs.

Rows of a batch may be padded anywhere: tokens are moved to their row's front, padding changes nothing and its logits
mean nothing. Positions are not given: they follow from the mask. The same text fed in pieces, cut anywhere, with the
cache handed on, gives what the whole gives.

Importing this module makes ``AutoConfig`` and ``AutoModelForCausalLM`` know the family.

Legend: B rows, T tokens, X width, V vocabulary.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, GenerationMixin, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast

from twoclock.errors import ConfigError
from twoclock.models.titans.blocks import Block
from twoclock.models.titans.cache import TitansCache
from twoclock.models.titans.config import TitansConfig
from twoclock.models.titans.layers import Norm, Weight, first_values
from twoclock.nn.neural_memory_layout import packed_index

__all__ = ["TitansForCausalLM", "TitansPreTrainedModel", "next_token_loss"]

IGNORED = frozenset({"position_ids", "cache_position", "token_type_ids", "num_items_in_batch", "output_attentions"})
"""What callers pass to every causal LM and what changes nothing here."""


class TitansPreTrainedModel(PreTrainedModel):  # type: ignore[misc]
    config_class = TitansConfig
    base_model_prefix = "model"
    _no_split_modules = ("Block",)
    _is_stateful = True

    def _init_weights(self, module: nn.Module) -> None:
        first_values(module, getattr(module, "seed_name", type(module).__name__), self.config)


class TitansForCausalLM(TitansPreTrainedModel, GenerationMixin):  # type: ignore[misc]
    """A model of any architecture of :mod:`twoclock.models.titans.config`. Train it like any other causal LM."""

    def __init__(self, config: TitansConfig) -> None:
        super().__init__(config)
        self.embedding = nn.Embedding(config.vocab_size, config.hidden_size)
        self.blocks = nn.ModuleList(Block(config, layer) for layer in range(config.num_hidden_layers))
        self.norm = Norm(config.hidden_size, config.rms_norm_eps)
        self.lm_head: nn.Linear = Weight(config.hidden_size, config.vocab_size)
        if config.tie_word_embeddings:
            self._tied_weights_keys = {"lm_head.weight": "embedding.weight"}
        for name, module in self.named_modules():
            module.seed_name = name
        self.post_init()

    def get_input_embeddings(self) -> nn.Embedding:
        return self.embedding

    def set_input_embeddings(self, value: nn.Embedding) -> None:
        self.embedding = value

    def get_output_embeddings(self) -> nn.Linear:
        return self.lm_head

    def set_output_embeddings(self, value: nn.Linear) -> None:
        self.lm_head = value

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        past_key_values: TitansCache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        use_cache: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        **more: Any,
    ) -> CausalLMOutputWithPast | tuple[torch.Tensor, ...]:
        """``input_ids`` [B, T]; ``attention_mask`` [B, T], or [B, columns fed before + T], 1 at tokens; ``labels``
        [B, T], -100 where nothing is asked: logits of a token are held to the label of the next. ``logits_to_keep``:
        of the last so many columns (0: all), or of the columns named.

        ``past_key_values`` is moved on in place; ``fork()`` it first to keep it as it was. Raises ConfigError for what
        does not fit.
        """
        if unknown := sorted(name for name, value in more.items() if name not in IGNORED and value is not None):
            raise ConfigError(f"this model takes no argument {', '.join(unknown)}")
        x = self._embedded(input_ids, inputs_embeds)
        rows, length = x.shape[:2]
        cache = self._cache_for(past_key_values, rows)
        mask = None if attention_mask is None else _mask_of(attention_mask, rows, length, cache.columns)
        packed, live, order = _packed(x, mask)
        layers, states = [], [packed]
        for block, state in zip(self.blocks, cache.layers, strict=True):
            packed, state = block(packed, state, live)
            layers.append(state)
            states.append(packed)
        keep = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        last = _unpacked(self.norm(packed), order)
        logits = self.lm_head(last[:, keep])
        loss = None
        if labels is not None:
            if tuple(labels.shape) != (rows, length) or logits.shape[1] != length:
                raise ConfigError(
                    f"labels are [B, T] = {[rows, length]}, with logits_to_keep = 0; got {list(labels.shape)} and "
                    f"{logits_to_keep}"
                )
            loss = next_token_loss(logits, labels, mask, more.get("num_items_in_batch"))
        if use_cache if use_cache is not None else self.config.use_cache:
            cache.layers, cache.rows, cache.columns = layers, rows, cache.columns + length
        elif past_key_values is None:
            cache = None  # type: ignore[assignment]
        hidden = tuple(_unpacked(s, order) for s in states) if output_hidden_states else None
        found = CausalLMOutputWithPast(loss=loss, logits=logits, past_key_values=cache, hidden_states=hidden)
        return found if return_dict is not False else cast(tuple[torch.Tensor, ...], found.to_tuple())

    def new_cache(self) -> TitansCache:
        """The state of texts of which nothing has been read."""
        return TitansCache(self.config)

    def _embedded(self, input_ids: torch.Tensor | None, inputs_embeds: torch.Tensor | None) -> torch.Tensor:
        if (input_ids is None) == (inputs_embeds is None):
            raise ConfigError("give either input_ids [B, T] or inputs_embeds [B, T, X]")
        if inputs_embeds is not None:
            if inputs_embeds.ndim != 3 or inputs_embeds.shape[2] != self.config.hidden_size:
                raise ConfigError(
                    f"inputs_embeds are [B, T, {self.config.hidden_size}]; got {list(inputs_embeds.shape)}"
                )
            return inputs_embeds
        assert input_ids is not None
        if input_ids.ndim != 2 or input_ids.is_floating_point():
            raise ConfigError(f"input_ids are whole numbers [B, T]; got {input_ids.dtype} {list(input_ids.shape)}")
        top = self.config.vocab_size
        if input_ids.numel() and (int(input_ids.min()) < 0 or int(input_ids.max()) >= top):
            raise ConfigError(
                f"input_ids are from 0 to {top - 1}; got {int(input_ids.min())} to {int(input_ids.max())}"
            )
        return cast(torch.Tensor, self.embedding(input_ids) * self.config.hidden_size**0.5)

    def _cache_for(self, given: TitansCache | None, rows: int) -> TitansCache:
        if given is None:
            return self.new_cache()
        if not isinstance(given, TitansCache):
            raise ConfigError(f"past_key_values is a TitansCache (type: model.new_cache()); got {type(given).__name__}")
        if len(given.layers) != len(self.blocks):
            raise ConfigError(f"the cache is of {len(given.layers)} layers, the model has {len(self.blocks)}")
        if given.rows is not None and given.rows != rows:
            raise ConfigError(f"the cache is of {given.rows} rows, the input has {rows}; see TitansCache.take")
        return given

    # ----------------------------------------------------------------------------------------------------- generation

    @classmethod
    def _supports_default_dynamic_cache(cls) -> bool:
        return False

    def _prepare_cache_for_generation(
        self, generation_config: Any, model_kwargs: dict[str, Any], *args: Any, **kwargs: Any
    ) -> None:
        if generation_config.cache_implementation is not None:
            raise ConfigError(
                f"cache_implementation={generation_config.cache_implementation!r}: a neural memory has a cache of its "
                "own; leave it None"
            )
        if generation_config.use_cache is False:
            return
        if model_kwargs.get("past_key_values") is None:
            model_kwargs["past_key_values"] = self.new_cache()


def next_token_loss(
    logits: torch.Tensor, labels: torch.Tensor, mask: torch.Tensor | None, items: Any = None
) -> torch.Tensor:
    """Mean over the labels that count, of -log p(label of the next column); ``items``: divide by this number instead.
    Labels of padding do not count, nor those after it: what padding says means nothing."""
    targets = labels[:, 1:]
    if mask is not None:
        targets = targets.masked_fill(~(mask[:, 1:] & mask[:, :-1]), -100)
    scores = logits[:, :-1].flatten(0, 1)
    scores = scores if scores.dtype == torch.float64 else scores.float()
    total = nn.functional.cross_entropy(scores, targets.flatten().to(logits.device), ignore_index=-100, reduction="sum")
    return total / (items if items is not None else (targets != -100).sum().clamp(min=1))


def _mask_of(given: torch.Tensor, rows: int, length: int, columns: int) -> torch.Tensor:
    """[B, T] bool: the mask's part for these columns."""
    if given.ndim != 2 or given.shape[0] != rows or given.shape[1] not in (length, columns + length):
        raise ConfigError(
            f"attention_mask is [{rows}, {length}] or, with the {columns} columns fed before, "
            f"[{rows}, {columns + length}]; got {list(given.shape)}"
        )
    return given[:, given.shape[1] - length :].bool()


def _packed(
    x: torch.Tensor, mask: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
    """x with each row's tokens at its front, which places hold one, and the order that was made; None: as it is."""
    if mask is None or bool(mask.all()):
        return x, None, None
    order = packed_index(mask)
    live = torch.arange(x.shape[1], device=x.device) < mask.sum(1, keepdim=True)
    clean = x.masked_fill(~mask.unsqueeze(-1), 0.0)  # padding may be NaN
    return clean.gather(1, order.unsqueeze(-1).expand_as(x)), live, order


def _unpacked(x: torch.Tensor, order: torch.Tensor | None) -> torch.Tensor:
    return x if order is None else x.gather(1, order.argsort(1).unsqueeze(-1).expand_as(x))


AutoConfig.register(TitansConfig.model_type, TitansConfig, exist_ok=True)
AutoModelForCausalLM.register(TitansConfig, TitansForCausalLM, exist_ok=True)
