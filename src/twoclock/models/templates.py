"""Chat templates: which one a model speaks, and the named ones for a model that brings none.

A chat template is the Jinja text that turns messages (system, user, assistant) into the one string a model was trained
to continue. With a wrong one a model answers badly without any error, so none is guessed: it is the model's own, or
the user names one.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from twoclock.errors import ModelError, nearest

__all__ = ["NAMED_TEMPLATES", "apply_template"]

NAMED_TEMPLATES = {
    "chatml": (
        "{% for message in messages %}"
        "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
        "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    ),
    "plain": (
        "{% for message in messages %}"
        "{% if message['role'] == 'system' %}{{ message['content'] + '\n\n' }}"
        "{% elif message['role'] == 'user' %}{{ 'Question: ' + message['content'] + '\n' }}"
        "{% else %}{{ 'Answer: ' + message['content'] + '\n\n' }}{% endif %}"
        "{% endfor %}{% if add_generation_prompt %}{{ 'Answer:' }}{% endif %}"
    ),
}
"""``chatml`` is what many instruction-tuned models speak; ``plain`` is for base models, never taught to chat."""


def apply_template(tokenizer: Any, given: str | None, where: str) -> tuple[str, ...]:
    """Give the tokenizer its chat template and try it; returns notes for the user.

    ``given`` is a name (``chatml``, ``plain``), a path to a Jinja file, or Jinja text; ``None`` is the model's own.
    Raises ModelError where there is none, or where it cannot render a conversation.
    """
    notes: list[str] = []
    if given is not None:
        tokenizer.chat_template = _read_template(given)
        notes.extend(_stop_notes(tokenizer, given))
    elif not tokenizer.chat_template:
        raise ModelError(
            f"{where} has no chat template, so prompts and few-shot turns cannot be put into the form it was trained "
            'on; name one: chat_template = "chatml" (instruction-tuned models that use <|im_start|>), "plain" (base '
            'models: Question: … Answer: …), or "path/to/template.jinja" — in the [model] table of a config'
        )
    user = [{"role": "user", "content": "question"}]
    turn = [{"role": "assistant", "content": "reply"}, *user]
    text = _render(tokenizer, user, where)
    if "question" not in text:
        raise ModelError(f"the chat template of {where} drops the user's message; it renders as {text!r}")
    _render(tokenizer, user + turn, where)
    try:
        told = _render(tokenizer, [{"role": "system", "content": "be brief"}, *user], where)
    except ModelError:
        told = ""
    if "be brief" not in told:
        notes.append(
            "this model's chat template does not take a system message; learned system prompts cannot reach it"
        )
    return tuple(notes)


def _read_template(given: str) -> str:
    if given in NAMED_TEMPLATES:
        return NAMED_TEMPLATES[given]
    if "{{" in given or "{%" in given:
        return given
    path = Path(given).expanduser()
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        close = nearest(given, NAMED_TEMPLATES)
        hint = f"; did you mean '{close[0]}'?" if close else ""
        reason = getattr(error, "strerror", None) or error
        raise ModelError(
            f"chat_template = {given!r} is neither one of {', '.join(map(repr, sorted(NAMED_TEMPLATES)))} nor a file "
            f"that can be read ({reason}){hint}"
        ) from error


def _stop_notes(tokenizer: Any, given: str) -> list[str]:
    if given == "plain":
        return ['with the plain template give a stop string, such as stop = ["\\n"]: base models do not end answers']
    if given == "chatml" and len(tokenizer.encode("<|im_end|>", add_special_tokens=False)) != 1:
        return ['<|im_end|> is no token of this model; add stop = ["<|im_end|>"], or use another template']
    return []


def _render(tokenizer: Any, messages: list[dict[str, str]], where: str) -> str:
    try:
        text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    except Exception as error:  # Jinja errors, and whatever raise_exception() in a template makes of them
        raise ModelError(
            f"the chat template of {where} cannot render a conversation: {' '.join(str(error).split())[:300]}"
        ) from error
    return str(text)
