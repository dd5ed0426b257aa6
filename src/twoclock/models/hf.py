"""What this room asks of transformers: whether it is there, silence while it works, and loading a folder with checks.

Every error of the libraries underneath leaves here as a ModelError that names the folder, what was wrong with it and
what to do. Hub access, hashing and chat templates are ``sources``' business.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import json
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from twoclock.errors import MissingExtraError, ModelError

__all__ = ["require_local", "quiet_transformers", "read_config", "read_tokenizer", "read_model", "weight_files"]

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "vocab.json",
    "vocab.txt",
    "spiece.model",
    "sentencepiece.bpe.model",
    "tekken.json",
)


def require_local(*packages: str, purpose: str = "loading a local model") -> None:
    """Raise MissingExtraError, naming the install command, where torch, transformers or ``packages`` are missing."""
    for package in ("torch", "transformers", "safetensors", *packages):
        if importlib.util.find_spec(package) is None:
            raise MissingExtraError.of(package, "local", purpose)


@contextlib.contextmanager
def quiet_transformers() -> Iterator[None]:
    """No progress bars, advice or warnings from transformers inside; its settings are put back afterwards.

    Its GGUF reader draws a bar that no setting turns off, so what is written to standard error is dropped too.
    """
    from transformers.utils import logging

    verbosity = logging.get_verbosity()
    bars = logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


def weight_files(folder: Path) -> list[Path]:
    """The files that hold the weights, by name; safetensors where there are any, else the older pickled form."""
    for pattern in ("model*.safetensors", "*.safetensors", "pytorch_model*.bin"):
        found = sorted(p for p in folder.glob(pattern) if not p.name.startswith(("adapter_", ".")))
        if found:
            return found
    return []


def read_config(folder: Path) -> Any:
    """The transformers config of a folder that holds a causal language model; ModelError for anything else."""
    from transformers import AutoConfig, AutoModelForCausalLM

    if not (folder / "config.json").is_file():
        raise ModelError(_no_config(folder))
    try:
        with quiet_transformers():
            config = AutoConfig.from_pretrained(str(folder), local_files_only=True)
    except (OSError, ValueError, KeyError, TypeError, ImportError) as error:
        raise ModelError(
            f"{folder / 'config.json'} cannot be read by the installed transformers: {_brief(error)}; a newer model "
            "may need a newer transformers (pip install -U transformers)"
        ) from error
    mapping = AutoModelForCausalLM._model_mapping
    kind = type(config)
    classes = mapping.get(kind, ())
    names = {c.__name__ for c in (classes if isinstance(classes, (tuple, list)) else (classes,))}
    stated = set(config.architectures or ())
    if not names or getattr(config, "is_encoder_decoder", False) or (stated and not stated & names):
        what = ", ".join(sorted(stated)) or kind.__name__
        raise ModelError(
            f"{folder} holds a {what} (model type '{config.model_type}'), which is no causal language model; twoclock "
            "needs a decoder that predicts the next token, such as LlamaForCausalLM or Qwen2ForCausalLM"
        )
    return config


def _no_config(folder: Path) -> str:
    ggufs = sorted(folder.glob("*.gguf"))
    if ggufs:
        return f"{folder} has no config.json but it has a GGUF file; give that file as the model: {ggufs[0]}"
    if (folder / "adapter_config.json").is_file():
        return (
            f"{folder} holds a PEFT adapter, no whole model; give the model it was trained on, or merge the two first"
        )
    inner = sorted(p.parent.name for p in folder.glob("*/config.json"))
    hint = f"; did you mean the folder {folder / inner[0]}?" if inner else ""
    return (
        f"{folder} has no config.json, so it holds no model; expected what save_pretrained writes: config.json, "
        f"model.safetensors and the tokenizer's files{hint}"
    )


def read_tokenizer(folder: Path) -> Any:
    """The tokenizer of a folder, with a padding token; ModelError where its files are missing or damaged."""
    from transformers import AutoTokenizer

    if not any((folder / name).is_file() for name in TOKENIZER_FILES):
        raise ModelError(
            f"{folder} has no tokenizer: expected tokenizer.json (or one of {', '.join(TOKENIZER_FILES[1:])}) beside "
            "the weights; copy the tokenizer's files there, or call tokenizer.save_pretrained() on that folder"
        )
    try:
        with quiet_transformers():
            tokenizer = AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
    except Exception as error:  # the tokenizers library raises plain Exception for damaged files
        raise ModelError(f"the tokenizer in {folder} cannot be read: {_brief(error)}") from error
    if tokenizer.pad_token is None and tokenizer.eos_token is not None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def read_model(folder: Path, dtype: str) -> Any:
    """The model of a folder in a compute dtype, on the CPU; ModelError where weights are missing or damaged."""
    import torch
    from transformers import AutoModelForCausalLM

    if not weight_files(folder):
        raise ModelError(
            f"{folder} has a config.json but no weights: expected model.safetensors (or its shards, or "
            "pytorch_model.bin); was the download complete?"
        )
    _check_shards(folder)
    try:
        with quiet_transformers():
            model, info = AutoModelForCausalLM.from_pretrained(
                str(folder), dtype=getattr(torch, dtype), local_files_only=True, output_loading_info=True
            )
    except ImportError as error:
        raise ModelError(f"the weights in {folder} need a package that is not installed: {_brief(error)}") from error
    except Exception as error:  # safetensors, pickle and torch each raise their own kind for a damaged file
        raise ModelError(
            f"the weights in {folder} cannot be read: {_brief(error)}; the files may be truncated, or may not belong "
            "to this config.json"
        ) from error
    missing = sorted(info.get("missing_keys", ()))
    if missing:
        raise ModelError(
            f"the weights in {folder} lack {len(missing)} of the model's tensors, such as {missing[0]}: they belong to "
            "another model, or a file is missing"
        )
    return model


def _check_shards(folder: Path) -> None:
    index = folder / "model.safetensors.index.json"
    if (folder / "model.safetensors").is_file() or not index.is_file():
        return
    try:
        names = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
    except (OSError, ValueError, KeyError, AttributeError) as error:
        raise ModelError(f"{index} cannot be read: {_brief(error)}") from error
    absent = sorted(name for name in names if not (folder / name).is_file())
    if absent:
        raise ModelError(f"{len(absent)} of {len(names)} weight files are missing in {folder}, such as {absent[0]}")


def _brief(error: BaseException, limit: int = 300) -> str:
    """An error in one line: the libraries underneath write paragraphs."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= limit else text[:limit] + "…"
