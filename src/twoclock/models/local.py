"""A local model as a policy: chat templates, sampling, teacher forcing, exact KL. Holds no learned state; what changes
the model arrives in each conditioning and is mounted for the length of one call."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, get_args

import torch

from twoclock.errors import ConfigError, UnsupportedError, unknown_name
from twoclock.models.engine import Draft, Engine, Mounted, Prompted
from twoclock.models.lean import LeanDecoder
from twoclock.models.mounting import CHANGES, Change
from twoclock.models.packing import common_prefix, pack
from twoclock.models.plain import plain_generate, plain_logits
from twoclock.models.retrofit.policy import Memories
from twoclock.models.shared_attention import attention_windows, forward, hidden_states, text_config
from twoclock.models.steering import Steering
from twoclock.models.svd import Spectra
from twoclock.models.teacher_forcing import Side, Stats, TeacherForcing, model_head
from twoclock.models.views import TreeView
from twoclock.nn.sampling import uniforms
from twoclock.nn.summed import Summed
from twoclock.nn.svf import Factoring, Factors, SingularChange
from twoclock.types import Completion, Conditioning, Delta, PolicyCard, Request, Sampling, SoftState, TokenShift

__all__ = ["LocalPolicy", "SvfForm", "open_local"]

SvfForm = Literal["delta", "factored"]


class LocalPolicy:
    """A transformers causal LM as a :class:`~twoclock.contracts.Policy` and a :class:`~twoclock.contracts.Trainable`.

    ``shared`` says whether the shared-attention path is used; ``notes`` say why not. ``max_rows`` bounds the rows
    decoded at once, ``packed_tokens`` the tokens of one teacher-forced pass. ``svf_form`` is how rows under changes of
    singular values are sampled (:mod:`twoclock.nn.svf`); scored they are in delta form. ``cache_dir`` is where their
    factors are kept, ``progress`` is told while they are made.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        *,
        name: str,
        base_hash: str,
        max_rows: int = 64,
        packed_tokens: int = 2048,
        check: bool = True,
        svf_form: SvfForm = "factored",
        cache_dir: Path | str | None = None,
        progress: Callable[[str], None] | None = None,
    ) -> None:
        if svf_form not in get_args(SvfForm):
            raise ConfigError(unknown_name("svf_form", svf_form, get_args(SvfForm)))
        # The base never moves: gradients are for deltas alone, and cost nothing where none is trained.
        self.model = model.requires_grad_(False)
        self.tokenizer = tokenizer
        self.notes: list[str] = []
        self._ends = _end_tokens(model, tokenizer)
        self._linears = {n: m for n, m in model.named_modules() if isinstance(m, torch.nn.Linear)}
        self.svf_form = svf_form
        self.spectra = Spectra(self._linears, cache_dir=cache_dir, progress=progress)
        self._forcing = TeacherForcing(model, self._linears, packed_tokens, self.spectra)
        self._engine = Engine(model, self._ends, max_rows=max_rows)
        self._card = PolicyCard(name=name, base_hash=base_hash, trainable=True, context_tokens=_context_tokens(model))
        self._render = lru_cache(maxsize=4096)(self._render_uncached)
        self._prefix = lru_cache(maxsize=256)(self._prefix_uncached)
        self.shared = self._forcing.shared = self._check_shared() if check else True
        self.steering = Steering(self)
        """What is done with conditionings that shift the logits, and the models that stand beside this one."""
        self.memories = Memories(self)
        """What is done with memories that are read beside the model."""

    # ------------------------------------------------------------------------------------------------------- policy

    @property
    def card(self) -> PolicyCard:
        return self._card

    @property
    def dtype(self) -> str:
        """The compute dtype, such as ``bfloat16``."""
        return str(self.model.dtype).removeprefix("torch.")

    @property
    def base_hash(self) -> str:
        return self._card.base_hash

    def sample(self, requests: Sequence[Request], sampling: Sampling) -> list[tuple[Completion, ...]]:
        if any(request.conditioning.shifts for request in requests):
            return self.steering.sample(requests, sampling)
        results: list[tuple[Completion, ...]] = [()] * len(requests)
        stopped = self._stopper(sampling.stop)
        for deltas, indices in self._batches(requests):
            with self._mount_rows(deltas) as mounted:
                for index, completions in self._sample_mounted(mounted, indices, requests, sampling, stopped):
                    results[index] = completions
        return results

    def _batches(self, requests: Sequence[Request]) -> list[tuple[list[Delta | None], list[int]]]:
        """What can be sampled together, whatever its changes of weights, and then what stands alone, each with the
        changes in it."""
        by_delta: dict[str, list[int]] = {}
        deltas: dict[str, Delta | None] = {}
        for index, request in enumerate(requests):
            delta = self.memories.weights(request.conditioning)
            by_delta.setdefault(_name(delta), []).append(index)
            deltas[_name(delta)] = delta
        rows = [key for key, delta in deltas.items() if self._has_rows(delta)]
        batches = [([deltas[k] for k in rows], sorted(i for k in rows for i in by_delta[k]))] if rows else []
        return batches + [([deltas[k]], by_delta[k]) for k in by_delta if k not in rows]

    @contextmanager
    def _mount_rows(self, deltas: Sequence[Delta | None]) -> Iterator[Mounted]:
        """These changes for the length of a batch, each for its own rows."""
        names = tuple(_name(delta) for delta in deltas)
        changes = [self._payload(delta) for delta in deltas]
        mount = self._forcing.mount
        rows_of = isinstance(changes[0], SingularChange) or (isinstance(changes[0], Summed) and not changes[0].whole)
        if len(changes) == 1 and not rows_of:
            with mount(changes[0]):
                yield Mounted(names)
        else:
            with torch.no_grad(), mount.rows(changes, bare=self.svf_form == "factored") as rows:
                yield Mounted(names, rows)

    def _sample_mounted(
        self, mounted: Mounted, indices: list[int], requests: Sequence[Request], sampling: Sampling, stopped: Any
    ) -> list[tuple[int, tuple[Completion, ...]]]:
        todo: list[tuple[int, Prompted]] = []
        done: list[tuple[int, tuple[Completion, ...]]] = []
        for index in indices:
            request = requests[index]
            tokens = self.render(request.prompt, request.conditioning)
            if len(tokens) + sampling.max_new_tokens > self._card.context_tokens:
                error = (
                    f"the prompt has {len(tokens)} tokens and {sampling.max_new_tokens} are to be added, but the model "
                    f"reads at most {self._card.context_tokens}"
                )
                failed = Completion(
                    tokens=(), logprobs=(), text="", finish="error", prompt_tokens=len(tokens), error=error
                )
                done.append((index, (failed,) * len(request.seeds)))
                continue
            todo.append(
                (
                    index,
                    self._prompted(request, mounted.names.index(_name(self.memories.weights(request.conditioning)))),
                )
            )
        if not todo:
            return done
        if self.shared:
            drafts = self._engine.generate(mounted, [s for _, s in todo], sampling, stopped)
        else:
            drafts = []
            for _, s in todo:
                mounted.assign(s.change)
                drafts.append([self._plain(s.tokens, seed, sampling, stopped) for seed in s.seeds])
        for (index, sequence), row in zip(todo, drafts, strict=True):
            done.append((index, tuple(self._completion(d, len(sequence.tokens), sampling.stop) for d in row)))
        return done

    def _prompted(self, request: Request, change: int = 0) -> Prompted:
        """The prompt, and how much of it others begin with too."""
        told = request.conditioning
        tokens = self.render(request.prompt, told)
        # Exemplars from memory are one item's own: kept as a prefix they would be read alone, and never again.
        prefix = () if told.recalled and told.exemplars else self.shared_prefix(told)
        shared = len(prefix) if tokens[: len(prefix)] == prefix and len(tokens) > len(prefix) else 0
        return Prompted(tokens, shared, request.seeds, change)

    def _plain(self, tokens: tuple[int, ...], seed: int, sampling: Sampling, stopped: Any) -> Draft:
        out, logprobs = plain_generate(self.model, tokens, seed, sampling, self._ends, stopped)
        if not math.isfinite(logprobs[-1]):
            return Draft(out[:-1], logprobs[:-1], "error")
        ended = out[-1] in self._ends or (stopped is not None and stopped(out))
        return Draft(out, logprobs, "stop" if ended else "length")

    def _completion(self, draft: Draft, prompt_tokens: int, stop: tuple[str, ...]) -> Completion:
        if draft.finish == "error":
            error = f"after {len(draft.tokens)} tokens the model's next-token logits were NaN or infinite"
            return Completion(tokens=(), logprobs=(), text="", finish="error", prompt_tokens=prompt_tokens, error=error)
        text = self.tokenizer.decode(draft.tokens, skip_special_tokens=True)
        cuts = [text.find(s) for s in stop if s in text]
        return Completion(
            tokens=tuple(draft.tokens),
            logprobs=tuple(draft.logprobs),
            text=text[: min(cuts)] if cuts else text,
            finish="stop" if draft.finish == "stop" else "length",
            prompt_tokens=prompt_tokens,
        )

    def _stopper(self, stop: tuple[str, ...]) -> Any:
        if not stop:
            return None
        # A special token has no text, so a stop string that is one is known by its id.
        special = {token.content: i for i, token in self.tokenizer.added_tokens_decoder.items() if token.special}
        ids = {special[s] for s in stop if s in special}
        return lambda tokens: (
            tokens[-1] in ids
            or any(s in self.tokenizer.decode(tokens, skip_special_tokens=True) for s in stop if s not in special)
        )

    # ---------------------------------------------------------------------------------------------------- rendering

    def render(self, prompt: str, conditioning: Conditioning) -> tuple[int, ...]:
        """The token ids that the model reads before it answers."""
        return self._render(conditioning.told(prompt), conditioning.system, conditioning.exemplars)

    def prompt_tokens(self, prompt: str, conditioning: Conditioning) -> int:
        return len(self.render(prompt, conditioning))

    def shared_prefix(self, conditioning: Conditioning) -> tuple[int, ...]:
        """The tokens that every prompt under this conditioning begins with: a function of the conditioning alone."""
        return self._prefix(conditioning.system, conditioning.exemplars)

    def _render_uncached(
        self, prompt: str, system: str | None, exemplars: tuple[tuple[str, str], ...]
    ) -> tuple[int, ...]:
        messages = [] if system is None else [{"role": "system", "content": system}]
        for question, answer in exemplars:
            messages += [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
        messages.append({"role": "user", "content": prompt})
        try:
            text = self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        except Exception as problem:  # Jinja errors, and whatever raise_exception() in a template makes of them
            parts = " with a system message" * (system is not None) + f" and {len(exemplars)} earlier turns"
            raise UnsupportedError(
                f"the chat template of {self._card.name} cannot render a conversation{parts}: {problem}"
            ) from problem
        return tuple(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def _prefix_uncached(self, system: str | None, exemplars: tuple[tuple[str, str], ...]) -> tuple[int, ...]:
        # Two prompts that share no first character agree exactly on what comes before any prompt.
        one, other = (self._render(p, system, exemplars) for p in ("Apple", "7"))
        return one[: common_prefix([one, other])]

    # ------------------------------------------------------------------------------------------------------ weights

    def _payload(self, delta: Delta | None) -> Change | None:
        if delta is None:
            return None
        if delta.base != self.base_hash:
            raise UnsupportedError(
                f"the delta {delta.id[:12]} was trained on base weights {delta.base[:12]}, but this model is "
                f"{self.base_hash[:12]}; a delta means nothing on other weights"
            )
        if not isinstance(delta.payload, CHANGES):
            raise UnsupportedError(
                f"this policy cannot apply a delta of kind '{delta.kind}' with a payload of the type "
                f"{type(delta.payload).__name__}; it applies 'lora', 'svf' and 'full'"
            )
        return delta.payload

    def _mount(self, delta: Delta | None) -> AbstractContextManager[None]:
        return self._forcing.mount(self._payload(delta))

    def _has_rows(self, delta: Delta | None) -> bool:
        """Whether rows under this change can stand in a batch with others."""
        return self._forcing.mount.has_rows(self._payload(delta))

    def linear_shapes(self, patterns: Sequence[str]) -> dict[str, tuple[int, int]]:
        known = {name.rsplit(".", 1)[-1] for name in self._linears}
        unknown = [p for p in patterns if p not in known]
        if unknown:
            raise ConfigError(
                [f"no linear layer is called '{p}' in this model; it has: {', '.join(sorted(known))}" for p in unknown]
            )
        return {
            name: (module.out_features, module.in_features)
            for name, module in self._linears.items()
            if name.rsplit(".", 1)[-1] in patterns
        }

    def singular_factors(self, patterns: Sequence[str], factoring: Factoring) -> tuple[str, dict[str, Factors]]:
        """See :class:`~twoclock.contracts.Factorable`."""
        names = list(self.linear_shapes(patterns))
        return self.spectra.identity(names, factoring), self.spectra.factors(names, factoring)

    def parameter_shapes(self, patterns: Sequence[str]) -> dict[str, tuple[int, ...]]:
        shapes = {name: tuple(p.shape) for name, p in self.model.named_parameters()}
        owners = {name: name.split(".")[-2] if "." in name else name for name in shapes}
        if unknown := [p for p in patterns if p not in owners.values()]:
            known = ", ".join(sorted(set(owners.values())))
            raise ConfigError(
                [f"no module with parameters is called '{p}' in this model; it has: {known}" for p in unknown]
            )
        return {name: shape for name, shape in shapes.items() if not patterns or owners[name] in patterns}

    # ---------------------------------------------------------------------------------------------- teacher forcing

    def sequence_stats(
        self,
        prompts: Sequence[str],
        conditioning: Conditioning,
        completions: Sequence[Sequence[Sequence[int]]],
        *,
        temperature: float,
        change: Any = None,
    ) -> list[Stats]:
        if conditioning.shifts:
            return self.steering.sequence_stats(
                prompts, conditioning, completions, temperature=temperature, change=change
            )
        if change is not None:
            mount = self._forcing.mount(self.memories.beside(conditioning, change))
        else:
            mount = self._mount(self.memories.weights(conditioning))
        with mount:
            return self._forcing.stats([self.render(p, conditioning) for p in prompts], completions, temperature)

    def reverse_kl(
        self,
        prompts: Sequence[str],
        conditioning: Conditioning,
        completions: Sequence[Sequence[Sequence[int]]],
        teachers: Sequence[Conditioning],
        *,
        temperature: float,
        change: Any = None,
        forward: float = 0.0,
    ) -> list[torch.Tensor]:
        if conditioning.shifts or any(teacher.shifts for teacher in teachers):
            return self.steering.reverse_kl(
                prompts, conditioning, completions, teachers, temperature=temperature, change=change, forward=forward
            )
        if change is None:
            own = self._payload(self.memories.weights(conditioning))
        else:
            own = self.memories.beside(conditioning, change)
        weights = [self.memories.weights(teacher) for teacher in teachers]
        by_delta: dict[str, list[int]] = {}
        for i, delta in enumerate(weights):
            by_delta.setdefault(_name(delta), []).append(i)
        results: dict[int, torch.Tensor] = {}
        for some in by_delta.values():
            student = Side([self.render(prompts[i], conditioning) for i in some], own)
            taught = [self.render(prompts[i], teachers[i]) for i in some]
            other = Side(taught, self._payload(weights[some[0]]))
            found = self._forcing.reverse_kl(student, other, [completions[i] for i in some], temperature, forward)
            results.update(zip(some, found, strict=True))
        return [results[i] for i in range(len(prompts))]

    def chunks(
        self, prompts: Sequence[str], conditioning: Conditioning, completions: Sequence[Sequence[Sequence[int]]]
    ) -> list[list[int]]:
        if conditioning.shifts:
            return self.steering.chunks(prompts, conditioning, completions)
        return self._forcing.chunks([self.render(p, conditioning) for p in prompts], completions)

    def exact_kl(
        self, prompts: Sequence[str], completions: Sequence[Sequence[int]], p: Conditioning, q: Conditioning
    ) -> list[float]:
        if p.id == q.id:
            return [0.0] * len(prompts)
        if p.shifts or q.shifts:
            return self.steering.exact_kl(prompts, completions, p, q)
        return self._forcing.kl(self._side(prompts, p), self._side(prompts, q), completions)

    def logprobs_under(
        self,
        prompts: Sequence[str],
        completions: Sequence[Sequence[int]],
        conditionings: Sequence[Conditioning],
        *,
        temperature: float = 1.0,
    ) -> list[list[list[float]]]:
        if any(conditioning.shifts for conditioning in conditionings):
            return self.steering.logprobs_under(prompts, completions, conditionings, temperature=temperature)
        return self._forcing.logprobs([self._side(prompts, c) for c in conditionings], completions, temperature)

    def token_shifts(self, prompt: str, conditioning: Conditioning, tokens: Sequence[int]) -> tuple[TokenShift, ...]:
        """See :class:`~twoclock.contracts.Shifting`."""
        return self.steering.token_shifts(prompt, conditioning, tokens)

    def _side(self, prompts: Sequence[str], conditioning: Conditioning) -> Side:
        return Side([self.render(p, conditioning) for p in prompts], self._payload(self.memories.weights(conditioning)))

    # ----------------------------------------------------------------------------------------------------- memories

    def memory_shape(self) -> tuple[int, int]:
        """See :class:`~twoclock.contracts.Memorizing`."""
        return self.memories.shape()

    def text_tokens(self, text: str | tuple[str, str]) -> int:
        """See :class:`~twoclock.contracts.Memorizing`."""
        return self.memories.text_tokens(text)

    def memorized(self, soft: SoftState, texts: Sequence[str | tuple[str, str]]) -> SoftState:
        """See :class:`~twoclock.contracts.Memorizing`."""
        return self.memories.memorized(soft, texts)

    # ------------------------------------------------------------------------------------------------------- checks

    @torch.no_grad()
    def _check_shared(self) -> bool:
        """Whether the shared path gives this model's own distributions, packed and decoded, on a few tokens."""
        vocab = int(text_config(self.model).vocab_size)
        tokens = [int(u * min(vocab, 4096)) for u in uniforms(0, 24)]
        device = self.model.device
        try:
            packed = pack([tokens[:12], tokens[:8]], [[tokens[12:18], tokens[18:]], [tokens[12:16]]])
            view = TreeView(packed, device)
            ours = forward(self.model, packed.tokens[None].to(device), view.positions[None], view)
            windows = attention_windows()
            _check_windows(text_config(self.model), windows, self._card.context_tokens)
            theirs = plain_logits(self.model, [*tokens[:12], *tokens[18:]])[-2]
            mine = ours[packed.predicted_from[0][1][-1]]
            error = float((mine.float().softmax(-1) - theirs.float().softmax(-1)).abs().sum()) / 2
            self._require_close(error, "when packed")
            again = model_head(self.model)(
                hidden_states(self.model, packed.tokens[None].to(device), view.positions[None], view)
            )
            error = float((again.softmax(-1) - ours.float().softmax(-1)).abs().sum(-1).max()) / 2
            self._require_close(error, "when the head is run apart")
            self._check_decoding(tokens, None)
        except CHECK_FAILURES as reason:
            self.notes.append(f"prompts are not shared between rollouts, the slow path is used: {reason}")
            return False
        try:
            lean = LeanDecoder.of(self.model, windows)
            if lean is not None:
                self._check_decoding(tokens, lean)
            self._engine.lean = lean
        except CHECK_FAILURES as reason:
            self.notes.append(f"decoding goes through the model's own modules: {reason}")
        return True

    def _check_decoding(self, tokens: list[int], lean: LeanDecoder | None) -> None:
        # Without end tokens, so that every draft has its length.
        engine = Engine(self.model, frozenset())
        engine.lean = lean
        prompts = [Prompted(tuple(tokens[:12]), 8, (0, 1)), Prompted(tuple(tokens[:8] + tokens[12:14]), 8, (2,))]
        for prompt, drafts in zip(prompts, engine.generate("", prompts, Sampling(max_new_tokens=3)), strict=True):
            for draft in drafts:
                plain = plain_logits(self.model, [*prompt.tokens, *draft.tokens])[-4:-1].float().softmax(-1)
                chosen = plain[range(3), draft.tokens].tolist()
                error = max(abs(math.exp(a) - b) for a, b in zip(draft.logprobs, chosen, strict=True))
                self._require_close(error, "when decoded")

    def _require_close(self, error: float, where: str) -> None:
        """Refuses the shared path where probabilities differ by more than the dtype's rounding explains."""
        if not error <= (0.05 if self.model.dtype in (torch.bfloat16, torch.float16) else 1e-3):
            raise UnsupportedError(f"next-token probabilities differ by {error:.2g} {where}")


CHECK_FAILURES = (
    UnsupportedError,
    TypeError,
    ValueError,
    RuntimeError,
    AttributeError,
    KeyError,
    IndexError,
)
"""What a model that does not behave as those we know may raise while it is tried out."""


def _check_windows(config: Any, seen: Mapping[int, int], context: int) -> None:
    """Refuses a model whose layers do not hand over what limits their attention: the few tokens of the other checks
    lie within any window."""
    missing = [layer for layer in range(config.num_hidden_layers) if layer not in seen]
    if missing:
        which = "every layer computes" if not seen else f"layers {missing} compute"
        raise UnsupportedError(f"{which} attention without transformers' interface")
    window = getattr(config, "sliding_window", None) or 0
    default = "sliding_attention" if window else "full_attention"
    kinds = getattr(config, "layer_types", None) or [default] * config.num_hidden_layers
    unknown = sorted(set(kinds) - {"full_attention", "sliding_attention"})
    if unknown:
        raise UnsupportedError(f"layers of the kind {', '.join(unknown)} are not known here")
    for layer, kind in enumerate(kinds):
        expected = window if kind == "sliding_attention" else 0
        if seen[layer] != expected and min(w for w in (seen[layer], expected) if w) < context:
            raise UnsupportedError(f"layer {layer} has a window of {expected} tokens but attends with {seen[layer]}")


def _name(delta: Delta | None) -> str:
    return delta.id if delta else ""


def _end_tokens(model: Any, tokenizer: Any) -> frozenset[int]:
    ends: set[int] = set()
    for value in (getattr(model.generation_config, "eos_token_id", None), tokenizer.eos_token_id):
        if isinstance(value, int):
            ends.add(value)
        elif value:
            ends.update(int(v) for v in value)
    return frozenset(ends)


def _context_tokens(model: Any) -> int:
    return int(getattr(text_config(model), "max_position_embeddings", 2048) or 2048)


def open_local(
    source: str,
    *,
    dtype: str = "auto",
    device: str = "auto",
    chat_template: str | None = None,
    threads: int | None = None,
    max_rows: int = 64,
    packed_tokens: int = 2048,
    progress: Callable[[str], None] | None = None,
) -> LocalPolicy:
    """A policy from a model source; see :func:`twoclock.models.sources.load_model` for what a source is."""
    from twoclock.models.sources import load_model

    if threads:
        torch.set_num_threads(threads)
    loaded = load_model(source, dtype=dtype, device=device, progress=progress, chat_template=chat_template)
    policy = LocalPolicy(
        loaded.model,
        loaded.tokenizer,
        name=loaded.name,
        base_hash=loaded.base_hash,
        max_rows=max_rows,
        packed_tokens=packed_tokens,
        progress=progress,
    )
    policy.notes[:0] = loaded.notes
    return policy
