"""A page as a browser would read it, for the report's tests."""

from __future__ import annotations

import json
from html.parser import HTMLParser
from typing import Any


class Page(HTMLParser):
    """What a browser would make of the page: elements, visible text, scripts, figures."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.ids: list[str] = []
        self.scripts: list[str] = []
        self.data: list[Any] = []
        self.texts: list[str] = []
        self.open: str = ""
        self.kind: str | None = None
        self.feed(html)
        self.text = " ".join(" ".join(self.texts).split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        self.tags.append((tag, values))
        if values.get("id"):
            self.ids.append(str(values["id"]))
        if tag in ("script", "style"):
            self.open, self.kind = tag, values.get("type")

    def handle_endtag(self, tag: str) -> None:
        if tag == self.open:
            self.open = ""

    def handle_data(self, data: str) -> None:
        if self.open == "script" and self.kind == "application/json":
            self.data.append(json.loads(data))
        elif self.open == "script":
            self.scripts.append(data)
        elif not self.open:
            self.texts.append(data)
