"""The words of the page and the definitions of its numbers, each with unit and sign."""

from __future__ import annotations

__all__ = ["METRICS", "WORDS"]

METRICS: tuple[tuple[str, str, str], ...] = (
    (
        "Reward",
        "0 to 1, higher is better",
        "What the task's verifier gives to one answer. A failed grade (the verifier raised or ran out of time) is 0.",
    ),
    (
        "Held-out reward",
        "0 to 1, higher is better",
        "The mean reward on items that are never trained on and never judge a proposal, sampled at the training "
        "temperature. n counts items.",
    ),
    (
        "Interval",
        "95 %, in the unit of its number",
        "Over items (prompts for drift): Wilson's where each item is right or wrong, otherwise a bootstrap of items. "
        "It says how far another draw of items could move the number, not how far another training seed could.",
    ),
    (
        "Total gain",
        "−1 to 1, positive is better",
        "A(trained weights, learned prompt) − A(base weights, no prompt), A being the held-out reward.",
    ),
    ("Fast effect", "−1 to 1, positive is better", "A(base, learned prompt) − A(base, no prompt): the prompt alone."),
    ("Slow effect", "−1 to 1, positive is better", "A(trained, no prompt) − A(base, no prompt): the weights alone."),
    (
        "Interaction",
        "−2 to 2",
        "Total − fast − slow: what only the two together do. Negative: both learned the same thing.",
    ),
    (
        "Residual use of the prompt",
        "−1 to 1",
        "A(trained, learned prompt) − A(trained, no prompt): what would be lost if the prompt were dropped now.",
    ),
    (
        "Forgetting F",
        "−1 to 1, positive is loss",
        "The mean over earlier tasks of (the best score the task ever had before the last phase, the start included) − "
        "(its score now).",
    ),
    (
        "Backward transfer BWT",
        "−1 to 1, negative is loss",
        "The mean over earlier tasks of (score after the last phase) − (score right after the task's own phase).",
    ),
    (
        "Forward transfer FWT",
        "−1 to 1, higher is better",
        "The mean over later tasks of (score just before the task's own phase) − (score at the start).",
    ),
    ("Final average ACC", "0 to 1, higher is better", "The mean over tasks of the score after the last phase."),
    (
        "Anytime average AAA",
        "0 to 1, higher is better",
        "The mean over phases of the mean score on the tasks met so far.",
    ),
    (
        "Drift KL(live‖base)",
        "nats a token, 0 is no change",
        "How far the trained weights are from the base, along continuations that the trained weights write; exact over "
        "the vocabulary at each token, without any prompt.",
    ),
    (
        "Drift KL(base‖live)",
        "nats a token, 0 is no change",
        "The other direction, along continuations that the base writes: large where the trained weights lost something "
        "that the base would have said.",
    ),
    (
        "Effect of a lesson",
        "−1 to 1, positive is better",
        "The reward with the lesson minus without it, over groups that hold rollouts of one item under both; the mean "
        "and the 95 % interval of its posterior from a prior of 0 ± 0.25.",
    ),
    (
        "Dead group",
        "share of groups",
        "A group whose rollouts all have the same reward: a policy gradient learns nothing from it.",
    ),
    (
        "Tokens",
        "count",
        "Read: prompt tokens, a prompt shared by several rollouts once. Written: sampled tokens. Trained: completion "
        "tokens that carried loss.",
    ),
)
"""Name, unit and direction, definition."""

WORDS: tuple[tuple[str, str], ...] = (
    ("Fast clock", "Writes that change no weights: prompts, exemplars, memory. Each can be taken back exactly."),
    ("Slow clock", "Writes to a delta on top of the immutable base weights. Each version can be restored exactly."),
    ("Channel", "One way to learn, on one of the two clocks. The channel null learns nothing and is the comparison."),
    ("Round", "One turn of the loop: read, roll out, grade, allocate, propose, judge, commit."),
    ("Step", "One optimizer step."),
    ("Trial", "A paired comparison of two states on the same fresh items."),
    ("Item, rollout, group", "One problem; one sampled answer to it; all rollouts of one item in one round."),
    ("Phase", "A stretch of the stream of tasks: some rounds on one task."),
    ("Proposal, verdict", "A next state that a channel offers; what the gate says of it, with the reason."),
    (
        "Action",
        "commit: the offered state is live. reject: it was judged and dropped. decline: the channel had nothing to "
        "offer. rollback: an earlier state was made live again. consolidate: lessons moved from the fast clock to the "
        "weights. refuse: a consolidation that failed a check. wait: the allocator passes the channel over from here "
        "on, for the reason given. init: the first state, which changes nothing. A rollback whose cause begins with "
        "'taken back' is the evidence's own.",
    ),
    (
        "Lesson",
        "One thing that a fast channel has learned and can take back by itself: a prompt, an entry of memory, a shift.",
    ),
    ("Drift", "How far the weights have moved from the base, as a divergence between what the two would say."),
    ("Retention", "The score on earlier tasks after later ones were learned."),
)
