"""Drift of the live system from the base: exact over the vocabulary, and by the three estimators, on the same tokens.

Each prompt set is measured under up to three conditionings: *none*, the weights alone; *both*, live and base weights
under the learned prompt; *live*, the deployed system against the untouched base. KL(live‖base) runs along tokens that
the live model sampled, KL(base‖live) along the base's, at temperature 1 over the whole vocabulary. Nats throughout.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from twoclock.contracts import Trainable
from twoclock.evaluation import general_prompts
from twoclock.measure import Interval, SampledLogprobs, cluster_mean, cluster_ratio, estimate_drifts
from twoclock.measure.drift_estimators import Prompting, Sampler
from twoclock.probing.context import ProbeContext
from twoclock.probing.meter import OutOfBudgetError
from twoclock.probing.settings import Estimate
from twoclock.seeding import child_seed
from twoclock.types import Conditioning, Cost, Item, Request, Sampling

__all__ = ["estimate", "measure", "obstacle"]

Pair = tuple[Prompting, Conditioning, Conditioning]

SIDES = ("live", "base")
READINGS = 2
"""Times that each side reads a completion: for the exact sum, and for the log-probabilities of its tokens."""


def obstacle(context: ProbeContext) -> str | None:
    if context.parts.config.model.endpoint:
        return (
            "the model is behind an endpoint, which gives no log-probabilities of given text; what can be probed there "
            "is retention, ood and the decomposition"
        )
    if not isinstance(context.policy, Trainable):
        return f"the policy '{context.policy.card.name}' gives no log-probabilities of given text"
    return None


def estimate(context: ProbeContext) -> Estimate:
    """Each direction of each pair samples once, unless both sides are one system, and all is read by both sides to be
    scored: once for the exact sum, once for the estimators."""
    total = Estimate()
    for _, prompts, under in _sets(context):
        pairs = {(p.id, q.id) for _, p, q in _pairs(context, under) if p.id != q.id}
        each = 2 * len(prompts) * len(pairs)
        total += context.estimate(each, passes=len(SIDES) * READINGS * each, new_tokens=context.settings.tokens)
    return total


def measure(context: ProbeContext) -> dict[str, Any]:
    """``records``, one a prompt set and conditioning; see ``docs/probes.md``."""
    settings = context.settings
    records: list[dict[str, Any]] = []
    stopped = None
    planned = [
        (name, prompts, under, pair) for name, prompts, under in _sets(context) for pair in _pairs(context, under)
    ]
    known: dict[tuple[str, str, str], dict[str, Any]] = {}
    for name, prompts, under, (prompting, live, base) in planned:
        context.say(f"drift: {name}, {WORDS[prompting]}")
        key = (name, live.id, base.id)
        try:
            if key not in known:
                known[key] = _both_ways(context, name, prompts, prompting, live, base)
        except OutOfBudgetError as error:
            stopped = f"{len(records)} of {len(planned)} measurements were made: {error}"
            break
        records.append({"prompts": name, "prompting": prompting, "under": under, **known[key]})
    return {
        "temperature": 1.0,
        "max_new_tokens": settings.tokens,
        "records": records,
        "stopped": stopped,
    }


WORDS: dict[str, str] = {
    "none": "weights alone",
    "both": "weights, both under the learned prompt",
    "live": "deployed system against the untouched base",
}


def _sets(context: ProbeContext) -> list[tuple[str, list[Item], str]]:
    """(name, items, the task whose learned prompt applies): general prompts, then each task's held-out ones."""
    count = context.settings.prompts
    last = (context.begun or context.tasks)[-1]  # the learned prompt of the task of the last live round
    general = [Item(id=f"general-{n}", prompt=prompt) for n, prompt in enumerate(general_prompts()[:count])]
    sets = [("general", general, last)]
    for task in context.tasks:
        items = context.parts.tasks[task].split("heldout")[:count]
        sets.append((f"task:{task}", list(items), task))
    return sets


def _pairs(context: ProbeContext, task: str) -> list[Pair]:
    """(prompting, live side, base side); without a learned prompt the three are one."""
    weights = context.conditioning(task, ("live", "none"))
    prompt = context.conditioning(task, ("base", "learned"))
    pairs: list[Pair] = [("none", weights, Conditioning())]
    if not prompt.is_identity:
        deployed = context.conditioning(task, ("live", "learned"))
        pairs += [("both", deployed, prompt), ("live", deployed, Conditioning())]
    return pairs


def _both_ways(
    context: ProbeContext,
    name: str,
    prompts: Sequence[Item],
    prompting: Prompting,
    live: Conditioning,
    base: Conditioning,
) -> dict[str, Any]:
    if live.id == base.id:
        exact = Interval(0.0, 0.0, 0.0, len(prompts), 0.95, "exact").as_dict()
        same: dict[str, Any] = {
            "per_token": exact, "per_sequence": exact, "tokens": 0, "sequences": len(prompts), "estimates": {},
        }  # fmt: skip
        return {"identical": True, "live_base": same, "base_live": same}
    return {
        "identical": False,
        "live_base": _one_way(context, name, prompts, prompting, "live", live, base),
        "base_live": _one_way(context, name, prompts, prompting, "base", live, base),
    }


def _one_way(
    context: ProbeContext,
    name: str,
    prompts: Sequence[Item],
    prompting: Prompting,
    sampler: Sampler,
    live: Conditioning,
    base: Conditioning,
) -> dict[str, Any]:
    """The direction whose first argument sampled."""
    first, second = (live, base) if sampler == "live" else (base, live)
    sampling = Sampling(max_new_tokens=context.settings.tokens, temperature=1.0)
    requests = [
        Request(
            prompt=item.prompt,
            conditioning=first.for_item(item),
            seeds=(child_seed("probe-drift", context.seed, name, sampler, i),),
        )
        for i, item in enumerate(prompts)
    ]
    completions = [row[0] for row in context.policy.sample(requests, sampling)]
    kept = [(p, list(c.tokens)) for p, c in zip(prompts, completions, strict=True) if c.finish != "error" and c.tokens]
    items, tokens = [item for item, _ in kept], [t for _, t in kept]
    model = context.policy
    assert isinstance(model, Trainable)
    means: list[float] = []
    for some, p, q in _asked(items, first, second):
        means += model.exact_kl([items[i].prompt for i in some], [tokens[i] for i in some], p, q)
    lengths = [len(t) for t in tokens]
    read = sum(model.prompt_tokens(item.prompt, side.for_item(item)) for item in items for side in (live, base))
    context.meter.add(Cost(prompt_tokens=READINGS * (read + len(SIDES) * sum(lengths))))
    sums = [mean * length for mean, length in zip(means, lengths, strict=True)]
    names, seed = list(range(len(sums))), child_seed("probe-drift-interval", context.seed)
    return {
        "per_token": cluster_ratio(sums, lengths, names, seed=seed).as_dict(),
        "per_sequence": cluster_mean(sums, names, seed=seed).as_dict(),
        "tokens": sum(lengths),
        "sequences": len(kept),
        "estimates": _estimates(model, items, tokens, prompting, sampler, live, base, name, sampling, seed)
        if kept
        else {},
    }


def _asked(items: Sequence[Item], *sides: Conditioning) -> Iterator[tuple[Sequence[int], Conditioning, Conditioning]]:
    """(places of items, both sides as those items see them): all at once, or item by item where there is memory."""
    one, other = sides
    if not (one.recall or other.recall):
        yield from [(range(len(items)), one, other)] if items else []
        return
    for place, item in enumerate(items):
        yield [place], one.for_item(item), other.for_item(item)


def _estimates(
    model: Trainable,
    items: Sequence[Item],
    tokens: Sequence[Sequence[int]],
    prompting: Prompting,
    sampler: Sampler,
    live: Conditioning,
    base: Conditioning,
    name: str,
    sampling: Sampling,
    seed: int,
) -> dict[str, Any]:
    """k1, k2 and k3 on the same tokens, from the log-probabilities of both sides."""
    scored: list[list[list[float]]] = [[], []]
    for some, p, q in _asked(items, live, base):
        texts, answers = [items[i].prompt for i in some], [tokens[i] for i in some]
        for side, rows in zip(scored, model.logprobs_under(texts, answers, [p, q], temperature=sampling.temperature),
                              strict=True):  # fmt: skip
            side += rows
    record = SampledLogprobs(
        sampler=sampler, live=scored[0], base=scored[1], prompts=name, prompting=prompting, sampling=sampling
    )
    return {
        found.estimator: {
            "per_token": found.per_token.as_dict(),
            "per_sequence": found.per_sequence.as_dict(),
            "unbiased": found.is_unbiased,
            "suspect": found.suspect,
        }
        for found in estimate_drifts(record, seed=seed)
    }
