"""Memory models beside Transformers and a delta rule of the same size: trained at length L, tested at L, 4L, 16L, 64L.

    python experiments/neural_memory/run.py --task mqar --arm mac --tune        # three learning rates, on a seed apart
    python experiments/neural_memory/run.py --task mqar --arm mac --seed 0      # one cell: results/mqar-mac-seed0.json
    python experiments/neural_memory/run.py --task text --arm mac --seed 0 --files FOLDER
    python experiments/neural_memory/run.py --queue                             # every command, the most telling first

A cell is (task, arm, seed): a few minutes on one core. It may be killed at any time and goes on where its last
checkpoint stood (``runs/``, every half minute), to the same numbers as if it had not been. The learning rate is the
best of the same three for every arm, by the loss at length L after half the steps, on a seed of its own; ``--lr`` sets
one by hand. ``tables.py``
prints the tables and draws the picture.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from arms import ARMS, MAIN, config_of
from data import NEEDLES, TASKS, Batch, make, vocabulary

from twoclock.errors import ConfigError, NumericsError, TwoclockError
from twoclock.models.titans.model import TitansForCausalLM
from twoclock.models.titans.sizes import count_parameters

HERE = Path(__file__).parent
RATES = (2e-3, 5e-3, 1.2e-2)
TUNING_SEED = 1000
SEEDS = (0, 1, 2)
LENGTHS = (1, 4, 16, 64)
"""Times the length trained at."""
TUNED_ON = {"passkey": "number", "word": "number"}
"""Tasks that take the learning rate of another."""
CHECKPOINT_S = 30.0
CONTROL_TIMES = (1, 4, 16)


@dataclass(frozen=True)
class Setting:
    steps: int = 2000
    batch: int = 32
    length: int = 64
    warmup: int = 50
    weight_decay: float = 0.01
    clip: float = 1.0
    test_rows: int = 256
    """At lengths L and 4L; a half at 16L, a quarter at 64L."""
    files: tuple[str, ...] = field(default=())


SETTINGS = {"text": Setting(steps=1500, batch=16, length=128, test_rows=64)}


def setting_of(task: str) -> Setting:
    return SETTINGS.get(task, Setting())


@dataclass(frozen=True)
class Cell:
    task: str
    arm: str
    seed: int
    rate: float

    def name(self, tuning: bool) -> str:
        return f"{self.task}-{self.arm}-lr{self.rate:g}" if tuning else f"{self.task}-{self.arm}-seed{self.seed}"


# --------------------------------------------------------------------------------------------------------- training


def train(
    cell: Cell, setting: Setting, state: Path, checkpoint_s: float = CHECKPOINT_S
) -> tuple[TitansForCausalLM, dict[str, Any]]:
    """The trained model and its history; goes on from ``state`` where there is one of the same cell."""
    model = TitansForCausalLM(config_of(cell.arm, vocabulary(cell.task), cell.seed)).train()
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=cell.rate, betas=(0.9, 0.95), weight_decay=setting.weight_decay
    )
    identity = json.dumps([asdict(cell), asdict(setting), model.config.to_diff_dict()], sort_keys=True, default=str)
    history: dict[str, Any] = {"step": 0, "losses": [], "seconds": 0.0, "smooth": None}
    saved = restored(state, identity)
    if saved is not None:
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        history = saved["history"]
        print(f"goes on at step {history['step']}", flush=True)
    files = tuple(Path(f) for f in setting.files)
    began = last = time.monotonic()
    spent = history["seconds"]
    for step in range(history["step"], setting.steps):
        for group in optimizer.param_groups:
            group["lr"] = cell.rate * schedule(step, setting)
        batch = make(cell.task, setting.length, setting.batch, cell.seed, "train", step, files)
        loss = model(batch.ids, labels=batch.labels, use_cache=False).loss
        optimizer.zero_grad()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), setting.clip)
        value = float(loss.detach())
        if not (math.isfinite(value) and math.isfinite(float(norm))):
            raise NumericsError(f"the loss or its gradient is NaN or infinite at step {step}")
        optimizer.step()
        smooth = value if history["smooth"] is None else 0.95 * history["smooth"] + 0.05 * value
        now = time.monotonic()
        history |= {"step": step + 1, "smooth": smooth, "seconds": spent + now - began}
        if (step + 1) % 100 == 0:
            history["losses"].append([step + 1, round(smooth, 4)])
            left = history["seconds"] / (step + 1) * (setting.steps - step - 1)
            print(f"step {step + 1} of {setting.steps}: loss {smooth:.3f}, {left:.0f} s left", flush=True)
        if now - last > checkpoint_s or step + 1 == setting.steps:
            last = now
            written(
                state,
                {"identity": identity, "model": model.state_dict(), "optimizer": optimizer.state_dict()}
                | {"history": history},
            )
    return model.eval(), history


def schedule(step: int, setting: Setting) -> float:
    """Warm-up, then half a cosine down to a tenth."""
    return min(1.0, (step + 1) / setting.warmup) * (0.55 + 0.45 * math.cos(math.pi * step / setting.steps))


def restored(state: Path, identity: str) -> dict[str, Any] | None:
    if not state.exists():
        return None
    try:
        saved: dict[str, Any] = torch.load(state, weights_only=True)
    except Exception as error:
        print(f"the checkpoint {state} cannot be read and is begun anew ({type(error).__name__})", flush=True)
        return None
    return saved if saved.get("identity") == identity else None


def written(state: Path, value: dict[str, Any]) -> None:
    """Whole or not at all."""
    state.parent.mkdir(parents=True, exist_ok=True)
    beside = state.with_suffix(f".{os.getpid()}.part")
    torch.save(value, beside)
    os.replace(beside, state)


# ---------------------------------------------------------------------------------------------------------- testing


@torch.no_grad()
def score(logits: torch.Tensor, batch: Batch, task: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Of each row: right (pairs: the share of values said; needle: all of it said; text: minus bits a byte over the
    last eighth), and the loss. ``logits`` are of the columns behind ``batch.split``, and of the one before."""
    labels = batch.labels[:, batch.split :]
    asked = labels != -100
    nats = torch.nn.functional.cross_entropy(
        logits.flatten(0, 1), labels.flatten(), reduction="none", ignore_index=-100
    )
    nats = nats.view(labels.shape)
    loss = nats.sum(1) / asked.sum(1)
    if task == "text":
        part = max(1, batch.ids.shape[1] // 8)
        return -nats[:, -part:].mean(1) / math.log(2), loss
    right = (logits.argmax(-1) == labels) & asked
    if task in NEEDLES:
        return (right.sum(1) == asked.sum(1)).float(), loss
    return right.sum(1) / asked.sum(1), loss


@torch.no_grad()
def answers(model: TitansForCausalLM, batch: Batch, control: str | None = None) -> torch.Tensor:
    """Logits that say column ``split`` and those after it [B, T - split, V].

    ``control``: "zeroed", the memory silent throughout; "other", at ``split`` every row gets the memory of the row
    after it, and keeps its own window.
    """
    model.config.memory_zeroed = control == "zeroed"
    try:
        if control != "other":
            return model(batch.ids, use_cache=False).logits[:, batch.split - 1 : -1]
        # One column earlier: it says the first that is asked.
        cut = batch.split - 1
        cache = model(batch.ids[:, :cut], use_cache=True, logits_to_keep=1).past_key_values
        rows = torch.arange(len(batch.ids)).roll(-1)
        cache = cache.with_memory_of(cache.take(rows))
        return model(batch.ids[:, cut:], past_key_values=cache, use_cache=True).logits[:, :-1]
    finally:
        model.config.memory_zeroed = False


def tested(
    model: TitansForCausalLM, cell: Cell, setting: Setting, times: int, purpose: str, control: str | None
) -> dict[str, Any]:
    """Scores of fresh texts of ``times`` · L tokens."""
    length = setting.length * times
    rows = max(8, setting.test_rows // max(1, times // 8))
    at_once = max(1, min(rows, 16_384 // length))
    rights, losses, depths = [], [], []
    files = tuple(Path(f) for f in setting.files)
    try:
        for index in range(-(-rows // at_once)):
            batch = make(cell.task, length, at_once, cell.seed, purpose, index, files)
            right, loss = score(answers(model, batch, control), batch, cell.task)
            rights.append(right)
            losses.append(loss)
            depths.append(batch.depth if batch.depth is not None else torch.zeros(at_once))
    except NumericsError:
        return {"score": None, "diverged": True}
    right, loss, depth = torch.cat(rights), torch.cat(losses), torch.cat(depths)
    if not bool(loss.isfinite().all()):
        return {"score": None, "diverged": True}
    found = {"score": float(right.mean()), "se": float(right.std() / len(right) ** 0.5), "loss": float(loss.mean())}
    if cell.task in NEEDLES:
        parts = [right[(depth >= q / 4) & (depth < (q + 1) / 4 + (q == 3))] for q in range(4)]
        found["by_depth"] = [float(p.mean()) if len(p) else None for p in parts]  # type: ignore[assignment]
    return found | {"rows": len(right)}


def run_cell(cell: Cell, setting: Setting, out: Path, tuning: bool) -> dict[str, Any]:
    """Trains and tests one cell and writes its result; the result there is, where there is one."""
    name = cell.name(tuning)
    path = (out / "tune" if tuning else out) / f"{name}.json"
    state = out.parent / "runs" / f"{name}.pt"
    with alone(state.with_suffix(".lock"), name):
        if path.exists():
            print(f"{path} is there already", flush=True)
            return json.loads(path.read_text(encoding="utf-8"))  # type: ignore[no-any-return]
        config = config_of(cell.arm, vocabulary(cell.task), cell.seed)
        print(f"{name}: {count_parameters(config):,} parameters, learning rate {cell.rate:g}", flush=True)
        found: dict[str, Any] = {**asdict(cell), "setting": asdict(setting), "parameters": count_parameters(config)}
        try:
            model, history = train(cell, setting, state)
            found |= {"losses": history["losses"], "train_s": round(history["seconds"], 1)}
            found |= {"bytes": bytes_of_state(model, setting)}
            found |= {"tests": tests(model, cell, setting, tuning)}
        except NumericsError as error:
            found |= {"diverged": str(error)}
        path.parent.mkdir(parents=True, exist_ok=True)
        beside = path.with_suffix(".part")
        beside.write_text(json.dumps(found) + "\n", encoding="utf-8")
        os.replace(beside, path)
        state.unlink(missing_ok=True)
    print(f"{name}: {summary(found)}", flush=True)
    return found


def tests(model: TitansForCausalLM, cell: Cell, setting: Setting, tuning: bool) -> dict[str, Any]:
    if tuning:
        return {"1": tested(model, cell, setting, 1, "tune", None)}
    found: dict[str, Any] = {str(n): tested(model, cell, setting, n, "test", None) for n in LENGTHS}
    if model.config.has_memory:
        for control in ("zeroed", "other"):
            found[control] = {str(n): tested(model, cell, setting, n, "test", control) for n in CONTROL_TIMES}
    return found


def bytes_of_state(model: TitansForCausalLM, setting: Setting) -> dict[str, int]:
    """Of one text, after L and 4L tokens."""
    with torch.no_grad():
        return {
            str(n): model(torch.zeros(1, n * setting.length, dtype=torch.long), use_cache=True).past_key_values.bytes
            for n in (1, 4)
        }


def summary(found: dict[str, Any]) -> str:
    if "diverged" in found:
        return f"diverged ({found['diverged']})"
    said = [f"{n}L {t['score']:.3f}" for n, t in found["tests"].items() if n.isdigit() and t["score"] is not None]
    return ", ".join(said) + f"; {found['train_s']:.0f} s"


@contextmanager
def alone(lock: Path, name: str) -> Iterator[None]:
    """One process a cell; the system frees the lock of one that dies."""
    import fcntl

    lock.parent.mkdir(parents=True, exist_ok=True)
    with lock.open("w") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise ConfigError(f"another process is at work on {name}; wait for it, or run another cell") from None
        yield  # the file stays: another process may have it open


# ----------------------------------------------------------------------------------------------------- learning rates


def best_rate(task: str, arm: str, out: Path) -> float:
    """That of the least loss on the tuning seed; ConfigError where not all have been tried."""
    tuned = TUNED_ON.get(task, task)
    losses: dict[float, float] = {}
    for rate in RATES:
        path = out / "tune" / f"{Cell(tuned, arm, TUNING_SEED, rate).name(True)}.json"
        if not path.exists():
            raise ConfigError(
                f"{path} is not there: the learning rate of {arm} on {task} is yet to be tuned; type: "
                f"python experiments/neural_memory/run.py --task {tuned} --arm {arm} --tune, or give --lr"
            )
        found = json.loads(path.read_text(encoding="utf-8"))
        loss = found.get("tests", {}).get("1", {}).get("loss")
        losses[rate] = math.inf if loss is None else loss
    return min(losses, key=lambda rate: losses[rate])


def queue() -> list[str]:
    """Every command in the order of its worth."""

    def line(task: str, arm: str, last: str) -> str:
        return f"python experiments/neural_memory/run.py --task {task} --arm {arm} {last}"

    lines = []
    others = [arm for arm in ARMS if arm not in MAIN]
    for task, arms in (("mqar", MAIN), ("number", MAIN), ("mqar", others)):
        lines += [line(task, arm, "--tune") for arm in arms]
        lines += [line(task, arm, f"--seed {seed}") for seed in SEEDS for arm in arms]
    for task in ("word", "passkey"):
        lines += [line(task, arm, f"--seed {seed}") for seed in SEEDS for arm in MAIN]
    lines += [line("text", arm, "--tune") for arm in MAIN]
    lines += [line("text", arm, f"--seed {seed}") for seed in SEEDS for arm in MAIN]
    return lines


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--task", choices=TASKS)
    parser.add_argument("--arm", choices=ARMS)
    parser.add_argument("--seed", type=int, default=0, help="default: %(default)s")
    parser.add_argument("--tune", action="store_true", help="try all learning rates on the tuning seed")
    parser.add_argument("--lr", type=float, help="default: the best of those tried")
    parser.add_argument("--steps", type=int, help="default: what the task says")
    parser.add_argument("--files", type=Path, nargs="*", default=[], help="of the task text: files or folders")
    parser.add_argument("--out", type=Path, default=HERE / "results", help="default: results beside this file")
    parser.add_argument("--queue", action="store_true", help="print every command")
    given = parser.parse_args(arguments)
    if given.queue:
        print("\n".join(queue()))
        return 0
    if not given.task or not given.arm:
        parser.error("name a cell: --task and --arm (or --queue for the list)")
    if given.lr is not None and not 0 < given.lr < math.inf:
        parser.error(f"--lr is a learning rate above 0; got {given.lr}")
    if given.steps is not None and given.steps < 1:
        parser.error(f"--steps is a number of steps from 1 on; got {given.steps}")
    torch.set_num_threads(1)
    setting = setting_of(given.task)
    changes = {"files": tuple(str(f) for f in given.files)} | ({"steps": given.steps} if given.steps else {})
    setting = Setting(**asdict(setting) | changes)
    try:
        if given.tune:
            setting = replace(setting, steps=max(1, setting.steps // 2))
            for rate in (given.lr,) if given.lr else RATES:
                run_cell(Cell(given.task, given.arm, TUNING_SEED, rate), setting, given.out, tuning=True)
        else:
            rate = given.lr or best_rate(given.task, given.arm, given.out)
            run_cell(Cell(given.task, given.arm, given.seed, rate), setting, given.out, tuning=False)
    except TwoclockError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
