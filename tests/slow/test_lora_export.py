"""An exported adapter, loaded by PEFT itself, speaks as our mounted delta does."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
peft = pytest.importorskip("peft")

from lora_world import bench, make_evidence  # noqa: E402

from tiny_models import make_model, make_policy  # noqa: E402
from twoclock.errors import ConfigError  # noqa: E402
from twoclock.models.local import LocalPolicy  # noqa: E402
from twoclock.models.plain import plain_logits  # noqa: E402
from twoclock.nn.lowrank import mounted  # noqa: E402
from twoclock.slow.lora import LoraChannel, LoraConfig, LoraState  # noqa: E402
from twoclock.slow.lora_export import export_peft  # noqa: E402
from twoclock.types import Budget, Proposal  # noqa: E402

# PEFT asks transformers by a name that transformers is about to drop.
pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing.:FutureWarning")

TOKENS = list(range(40, 60))


def trained(policy: LocalPolicy, config: LoraConfig) -> LoraState:
    channel = LoraChannel(config)
    state = channel.init(policy.card, 0)
    for seed in range(2):
        result = channel.propose(bench(policy), state, make_evidence(policy, seed=seed), Budget(), seed)
        assert isinstance(result, Proposal)
        state = result.state
    return state


@pytest.mark.parametrize(
    "config",
    [
        LoraConfig(learning_rate=0.05),
        LoraConfig(rank=3, alpha=5.0, targets=("q_proj", "down_proj"), learning_rate=0.05),
        LoraConfig(rank=2, targets=("v_proj", "lm_head"), learning_rate=0.05),
    ],
    ids=["default", "some layers", "head"],
)
@pytest.mark.parametrize("name", ["llama", "gemma2"])
def test_peft_gives_the_same_logits(name: str, config: LoraConfig, tmp_path: Path) -> None:
    policy = make_policy(name)
    state = trained(policy, config)
    folder = export_peft(state, tmp_path / "adapter", "some/model")
    assert {p.name for p in folder.iterdir()} == {"adapter_config.json", "adapter_model.safetensors"}
    theirs = peft.PeftModel.from_pretrained(make_model(name), folder).eval()
    assert state.delta is not None
    with torch.no_grad():
        base = plain_logits(policy.model, TOKENS)
        with mounted(dict(policy.model.named_modules()), state.delta.payload):
            ours = plain_logits(policy.model, TOKENS)
        loaded = theirs(input_ids=torch.tensor([TOKENS])).logits[0]
    assert float((ours - base).abs().max()) > 0.1
    torch.testing.assert_close(loaded, ours, atol=1e-5, rtol=1e-5)
    for module in state.tensors:
        assert torch.equal(
            theirs.get_submodule(f"base_model.model.{module}").lora_B["default"].weight, state.tensors[module][1]
        )


def test_the_config_says_what_the_adapter_is(tmp_path: Path) -> None:
    config = LoraConfig(rank=3, alpha=5.0, targets=("q_proj", "down_proj"))
    export_peft(trained(make_policy("llama"), config), tmp_path, "some/model")
    read = peft.PeftConfig.from_pretrained(tmp_path)
    assert (read.r, read.lora_alpha, read.target_modules) == (3, 5.0, {"q_proj", "down_proj"})
    assert read.base_model_name_or_path == "some/model"
    assert json.loads((tmp_path / "adapter_config.json").read_text())["task_type"] == "CAUSAL_LM"


def test_nothing_to_export(tmp_path: Path) -> None:
    policy = make_policy("llama")
    with pytest.raises(ConfigError, match="has taken no step"):
        export_peft(LoraChannel().init(policy.card, 0), tmp_path / "adapter", "m")
    assert not (tmp_path / "adapter").exists()


def test_a_folder_in_use_is_left_alone(tmp_path: Path) -> None:
    state = trained(make_policy("llama"), LoraConfig(rank=2, targets=("q_proj",)))
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "precious").write_text("mine")
    (tmp_path / "file").write_text("mine")
    for name in ("adapter", "file"):
        with pytest.raises(ConfigError, match="not an empty folder; name a new one"):
            export_peft(state, tmp_path / name, "m")
    assert [p.name for p in (tmp_path / "adapter").iterdir()] == ["precious"]
    assert (tmp_path / "file").read_text() == "mine"
    (tmp_path / "empty").mkdir()
    assert export_peft(replace(state), tmp_path / "empty", "m").is_dir()
