"""An HTML page taken apart, for tests of reports."""

from __future__ import annotations

from html.parser import HTMLParser
from xml.etree import ElementTree


class ParsedPage(HTMLParser):
    """Words, tables by heading, pictures as XML, and the addresses that a page would fetch."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.words: list[str] = []
        self.tables: dict[str, list[list[str]]] = {}
        self.fetched: list[str] = []  #: without addresses inside the page
        self.links: list[str] = []
        self._heading, self._tag = "", ""
        self.feed(text)
        self.pictures = [
            ElementTree.fromstring("<svg" + part.split("</svg>")[0] + "</svg>")
            for part in text.split("<svg")[1:]
        ]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._tag = tag
        if tag in ("h1", "h2"):
            self._heading = ""
        elif tag == "tr":
            self.tables.setdefault(self._heading, []).append([])
        elif tag in ("td", "th"):
            self.tables[self._heading][-1].append("")
        addresses = [v for k, v in attrs if k in ("src", "href", "xlink:href") and v]
        outside = [address for address in addresses if not address.startswith("#")]
        (self.links if tag == "a" else self.fetched).extend(outside)
        self.fetched += [tag] * (tag in ("script", "link", "img", "iframe"))

    def handle_endtag(self, tag: str) -> None:
        self._tag = ""

    def handle_data(self, data: str) -> None:
        self.words.append(data)
        if self._tag in ("h1", "h2"):
            self._heading += data
        elif self._tag in ("td", "th"):
            self.tables[self._heading][-1][-1] += data

    @property
    def cells(self) -> list[str]:
        """The cells of all tables."""
        return [cell for table in self.tables.values() for line in table for cell in line]

    def rows(self, heading: str) -> dict[str, dict[str, str]]:
        """The last table under a heading: first cell of each line -> head -> cell."""
        lines = self.tables[heading]
        start = max(n for n, line in enumerate(lines) if line[1:2] and not _is_figure(line[1]))
        head = lines[start]
        return {line[0]: dict(zip(head, line, strict=True)) for line in lines[start + 1 :]}


def _is_figure(cell: str) -> bool:
    return cell == "–" or cell[:1] in "-0123456789"
