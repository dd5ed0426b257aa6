"""What the laws compare: a model's bits, a policy that counts for itself, states that have lived, a small server."""

from __future__ import annotations

import http.server
import json
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch

from tiny_world import SAMPLING, gather, tiny_bench, tiny_task
from twoclock.agent.planned_episode import CallRecord, PlannedEpisode, SubtaskRecord
from twoclock.agent.toolbox import Toolbox
from twoclock.agent.tools import as_tool
from twoclock.contracts import Channel, Task
from twoclock.hashing import content_hash
from twoclock.models.mounting import Mounting
from twoclock.models.plain import plain_logits
from twoclock.types import Budget, Completion, Conditioning, Evidence, Item, Proposal, Request, Rollout, Sampling

PROBES = ("Which number is the largest: 12, 40?", "2 + 2 = ?")


@torch.no_grad()
def logits(policy: Any, conditioning: Conditioning) -> list[torch.Tensor]:
    """What the model says of each probe under a conditioning, [T, V] each, by its own plain forward pass."""
    linears = {n: m for n, m in policy.model.named_modules() if isinstance(m, torch.nn.Linear)}
    mount = Mounting(policy.model, linears)
    weights = policy.memories.weights(conditioning)
    with mount(weights.payload if weights else None):
        return [plain_logits(policy.model, policy.render(probe, asked(conditioning, probe))) for probe in PROBES]


def asked(conditioning: Conditioning, probe: str) -> Conditioning:
    """With what memory says of the probe."""
    return conditioning.for_item(Item(id="probe", prompt=probe))


def same_bits(one: Sequence[torch.Tensor], other: Sequence[torch.Tensor]) -> bool:
    return len(one) == len(other) and all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def answers(policy: Any, conditioning: Conditioning) -> list[tuple[Completion, ...]]:
    """Sampled answers, with their log-probabilities, by the road that a run takes."""
    requests = [Request(prompt=p, conditioning=asked(conditioning, p), seeds=(1, 2)) for p in PROBES]
    return list(policy.sample(requests, SAMPLING))


def model_bits(policy: Any) -> str:
    """One hash over everything of a model that training could touch: tensors, gradients, hooks, mode."""
    parts: list[Any] = [policy.model.training, len(policy.model.state_dict())]
    for name, tensor in [*policy.model.named_parameters(), *policy.model.named_buffers()]:
        parts += [name, content_hash(tensor.detach().numpy().tobytes()), tensor.requires_grad, tensor.grad is None]
    hooks = [
        (name, len(m._forward_hooks), len(m._forward_pre_hooks), len(m._backward_hooks))
        for name, m in policy.model.named_modules()
    ]
    return content_hash([parts, hooks])


def look_up(name: str) -> str:
    """The tool that the transcripts below call."""
    return name


def agent_task() -> Any:
    """The tiny task with a toolbox, as channels find it that learn from what an agent did."""
    task: Any = tiny_task()
    task.toolbox = Toolbox([as_tool(look_up, pure=True)])
    return task


def seen_by(channel: Channel[Any], policy: Any, task: Task, **options: Any) -> Evidence:
    """What a round shows a channel: what the policy answered, or the same answers as transcripts of an agent."""
    evidence = gather(policy, task, **options)
    if channel.name not in ("subtasks", "tools"):
        return evidence
    groups = tuple(
        replace(group, rollouts=tuple(_as_transcript(r, group.item.prompt) for r in group.rollouts))
        for group in evidence.groups
    )
    return replace(evidence, groups=groups)


def _as_transcript(rollout: Rollout, question: str) -> Rollout:
    told = rollout.completion.text.encode("utf-8", "replace").decode("utf-8")
    call = CallRecord(name="look_up", arguments={"name": told}, result=told)
    subtask = SubtaskRecord(task=f"look up: {question}", result=told, done=True, calls=(call,))
    text = PlannedEpisode(answer=told, plans=((subtask.task,),), subtasks=(subtask,)).dumps()
    return replace(rollout, completion=replace(rollout.completion, text=text))


def lived(channel: Channel[Any], policy: Any, task: Task, *, rounds: int = 3) -> Any:
    """A state after some accepted proposals, each from evidence gathered under the state before."""
    state = channel.init(policy.card, 11)
    for number in range(1, rounds + 1):
        deployed = channel.condition(state, task.name)
        evidence = seen_by(channel, policy, task, conditioning=deployed, round=number)
        offer = channel.propose(tiny_bench(policy, task), state, evidence, Budget(rollouts=120), number)
        if isinstance(offer, Proposal):
            state = offer.state
    return state


@dataclass
class Meter:
    """Stands before a policy and counts what really reaches it."""

    policy: Any
    rollouts: int = 0
    tokens: int = 0

    @property
    def card(self) -> Any:
        return self.policy.card

    def sample(self, requests: Sequence[Request], sampling: Sampling) -> Any:
        rows = self.policy.sample(requests, sampling)
        self.rollouts += sum(len(row) for row in rows)
        self.tokens += sum(row[0].prompt_tokens for row in rows if row) + sum(len(c.tokens) for r in rows for c in r)
        return rows

    def __getattr__(self, name: str) -> Any:
        return getattr(self.policy, name)


@contextmanager
def chat_server() -> Iterator[str]:
    """An OpenAI-compatible endpoint on this machine; its answer follows from the messages and the seed. A message that
    says FAIL is refused."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            asked = [m["content"] for m in body["messages"]]
            refused = asked[-1] == "FAIL"
            text = content_hash([asked, body["seed"]])[: body["max_tokens"]]
            for stop in body.get("stop", []):
                text = text.split(stop)[0]
            answer = {"message": {"role": "assistant", "content": text}, "finish_reason": "stop", "index": 0}
            usage = {"prompt_tokens": sum(map(len, asked)), "completion_tokens": len(text)}
            data = json.dumps({"error": "no"} if refused else {"choices": [answer], "usage": usage}).encode()
            self.send_response(400 if refused else 200)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1"
    finally:
        server.shutdown()
        server.server_close()
