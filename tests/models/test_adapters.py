"""Adapters as PEFT writes them: read back, they are the change that was exported; what is more than that is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from tiny_world import open_tiny, tiny_adapter  # noqa: E402
from twoclock.errors import ModelError  # noqa: E402
from twoclock.models.adapters import is_adapter, read_adapter  # noqa: E402
from twoclock.models.plain import plain_logits  # noqa: E402
from twoclock.slow.lora import LoraState  # noqa: E402
from twoclock.slow.lora_export import export_peft  # noqa: E402

BASE = "b" * 64


def state(seed: int = 0) -> LoraState:
    generator = torch.Generator().manual_seed(seed)
    tensors = {
        f"model.layers.{n}.mlp.down_proj": (
            torch.randn(2, 64, generator=generator),
            torch.randn(32, 2, generator=generator),
        )
        for n in (0, 1)
    }
    return LoraState(seed, 3, BASE, 2.5, tensors)


def rewrite(folder: Path, **changes: Any) -> Path:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    return folder


def test_what_was_exported_comes_back(tmp_path: Path) -> None:
    mine = state()
    folder = export_peft(mine, tmp_path / "adapter", "base")
    assert is_adapter(folder)
    assert not is_adapter(tmp_path)
    found = read_adapter(folder, BASE)
    assert (found.kind, found.base) == ("lora", BASE)
    for name, (a, b) in mine.tensors.items():
        again = found.payload.tensors[name]
        assert torch.allclose(again[1] @ again[0] * found.payload.scale, b @ a * mine.scale, atol=1e-5)
    assert read_adapter(folder, BASE) == found
    assert read_adapter(folder, "c" * 64) != found
    assert read_adapter(export_peft(state(1), tmp_path / "other", "base"), BASE) != found


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")
def test_it_is_what_peft_makes_of_it(tiny_folder: Path) -> None:
    """The same logits as PEFT's own model, with a scale of each kind."""
    peft = pytest.importorskip("peft")
    policy = open_tiny(tiny_folder)
    ids = [5, 9, 30, 41]
    for changes in ({}, {"use_rslora": True}, {"alpha_pattern": {"layers.1.mlp.down_proj": 9}}):
        folder = rewrite(
            tiny_adapter.__wrapped__(3, 0.3), target_modules=["down_proj"], task_type="CAUSAL_LM", **changes
        )
        delta = read_adapter(folder, policy.base_hash)
        with torch.no_grad(), policy._mount(delta):
            mine = plain_logits(policy.model, ids)
        theirs = peft.PeftModel.from_pretrained(open_tiny(tiny_folder).model, str(folder))
        with torch.no_grad():
            assert torch.allclose(mine, theirs(input_ids=torch.tensor([ids])).logits[0], atol=1e-4)


def test_what_is_no_low_rank_change_is_refused(tmp_path: Path) -> None:
    for n, (changes, told) in enumerate(
        (
            ({"use_dora": True}, "use_dora is set"),
            ({"bias": "all"}, "bias is 'all'"),
            ({"modules_to_save": ["lm_head"]}, "modules_to_save is set"),
            ({"peft_type": "IA3"}, "of the type 'IA3'"),
        )
    ):
        with pytest.raises(ModelError, match=told):
            read_adapter(rewrite(export_peft(state(), tmp_path / str(n), "base"), **changes), BASE)


def test_damage_is_told(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    folder = export_peft(state(), tmp_path / "a", "base")
    file = folder / "adapter_model.safetensors"
    tensors = load_file(file)
    first = next(iter(tensors))
    save_file({k: v for k, v in tensors.items() if k != first}, file)
    with pytest.raises(ModelError, match="do not fit together"):
        read_adapter(folder, BASE)
    save_file({**tensors, "base_model.model.x.lora_embedding_A": tensors[first].clone()}, file)
    with pytest.raises(ModelError, match="no part of a LoRA"):
        read_adapter(folder, BASE)
    file.write_bytes(b"not tensors")
    with pytest.raises(ModelError, match="cannot be read"):
        read_adapter(folder, BASE)
    file.unlink()
    with pytest.raises(ModelError, match="save it as safetensors"):
        read_adapter(folder, BASE)
    (folder / "adapter_config.json").write_text("{")
    with pytest.raises(ModelError, match="cannot be read"):
        read_adapter(folder, BASE)
