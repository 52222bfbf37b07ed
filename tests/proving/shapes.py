"""The shape of JSON (its schema by example): fields, types, and the form of strings."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
MILLISECONDS = re.compile(r"1[0-9]{12}")
STRINGS = {"empty", "uuid", "milliseconds", "padded", "number", "text"}
DECIMAL = re.compile(r"-?[0-9]+(\.[0-9]+)?")

#: Enumerations of the venue's documentation, by field.
WORDS = {
    "side": {"Buy", "Sell", "", "None"},
    "S": {"Buy", "Sell"},
    "orderType": {"Limit", "Market", "UNKNOWN"},
    "timeInForce": {"GTC", "IOC", "FOK", "PostOnly"},
    "orderStatus": {
        *("New", "PartiallyFilled", "Untriggered", "Rejected", "Filled", "Cancelled"),
        *("Triggered", "Deactivated"),
    },
    "cancelType": {
        *("UNKNOWN", "CancelByUser", "CancelByReduceOnly", "CancelAllBeforeLiq", "CancelByDCP"),
        *("CancelByTpSlTsClear", "CancelBySmp"),
    },
    "createType": {
        *("", "CreateByUser", "CreateByTakeOver_PassThrough", "CreateByStopOrder"),
        *("CreateByTakeProfit", "CreateByStopLoss", "CreateByPartialTakeProfit"),
        *("CreateByPartialStopLoss", "CreateByTrailingStop"),
    },
    "execType": {"Trade", "Funding", "BustTrade"},
    "L": {"PlusTick", "ZeroPlusTick", "MinusTick", "ZeroMinusTick"},
    "tickDirection": {"PlusTick", "ZeroPlusTick", "MinusTick", "ZeroMinusTick"},
    "positionStatus": {"Normal", "Liq", "Adl"},
    "marginMode": {"ISOLATED_MARGIN", "REGULAR_MARGIN", "PORTFOLIO_MARGIN"},
    "status": {"Trading"},
    "accountType": {"UNIFIED"},
}


#: Ids and texts of any form; only that they are strings is compared.
OPAQUE = {
    *("orderId", "orderLinkId", "nextPageCursor", "retMsg", "conn_id", "req_id", "id", "note"),
    *("connId", "reqId", "Traceid"),
    *("apiKey", *WORDS),
}


def string_form(text: str) -> str:
    """The form of a string, one of `STRINGS`."""
    if not text:
        return "empty"
    if UUID.fullmatch(text):
        return "uuid"
    if MILLISECONDS.fullmatch(text):
        return "milliseconds"
    if DECIMAL.fullmatch(text):
        return "padded" if "." in text and text.endswith("0") else "number"
    return "text"


class Shape:
    """Forms by path, merged over any number of values; items of a list share one path."""

    def __init__(self, values: Iterable[Any] = ()) -> None:
        self.forms: dict[str, set[str]] = {}
        self.texts: dict[str, set[str]] = {}  #: of strings, their values
        for value in values:
            self.add("", value)

    def add(self, path: str, value: Any) -> None:
        forms = self.forms.setdefault(path, set())
        if isinstance(value, dict):
            forms.add("object")
            for name, part in value.items():
                self.add(f"{path}.{name}", part)
        elif isinstance(value, list):
            forms.add("list")
            for part in value:
                self.add(f"{path}[]", part)
        elif isinstance(value, str):
            forms.add(string_form(value))
            self.texts.setdefault(path, set()).add(value)
        else:
            forms.add(type(value).__name__)

    def fill(self, other: Shape) -> None:
        """Add the paths of another shape that this one lacks."""
        for path, forms in other.forms.items():
            if path not in self.forms:
                self.forms[path] = forms
                self.texts[path] = other.texts.get(path, set())

    def wrong_words(self) -> list[str]:
        """Values outside their field's enumeration."""
        return [
            f"{path}: {text!r}"
            for path, texts in self.texts.items()
            for text in texts
            if not _is_known(path.rpartition(".")[2].removesuffix("[]"), text)
        ]


def _is_known(field: str, text: str) -> bool:
    if field in ("orderId", "execId", "i"):
        return string_form(text) in ("uuid", "empty")
    return field not in WORDS or text in WORDS[field]


def _unlike(path: str, ours: Shape, recorded: Shape) -> set[str]:
    """Forms of ours that were not recorded at a path.

    A number without a trailing zero may have any number of decimals; one with trailing zeros needs as
    many decimals as a recorded one.
    """
    seen, shown = ours.forms[path], recorded.forms[path]
    if path.rpartition(".")[2] in OPAQUE:
        seen, shown = ({"str"} if s & STRINGS else s for s in (seen, shown))
    wrong = seen - shown
    if "padded" in shown:
        wrong -= {"number"}
    if "padded" in wrong and "number" in shown:
        padded = {text for text in ours.texts[path] if string_form(text) == "padded"}
        places = {_places(text) for text in recorded.texts[path]}
        if {_places(text) for text in padded} <= places:
            wrong -= {"padded"}
    return wrong


def _places(text: str) -> int:
    return len(text.partition(".")[2])


def differences(
    ours: Shape, recorded: Shape, *, removed: Iterable[str] = (), added: Iterable[str] = ()
) -> list[str]:
    """How our shape differs from the recorded one: fields missing, unknown or of another form.

    ``removed`` are patterns of recorded paths that the venue no longer has, ``added`` of paths that it has
    added since, without a recording.
    """
    lines = [
        f"{path} is missing"
        for path in recorded.forms
        if path not in ours.forms and not _matches(path, removed)
    ]
    for path in ours.forms:
        if path not in recorded.forms:
            if not _matches(path, added):
                lines.append(f"{path} is not recorded")
            continue
        wrong = _unlike(path, ours, recorded)
        if wrong and not _matches(path, added):
            values = sorted(ours.texts.get(path, set()))[:3]
            lines.append(f"{path} is {sorted(wrong)} {values}, not {sorted(recorded.forms[path])}")
    return lines + ours.wrong_words()


def _matches(path: str, patterns: Iterable[str]) -> bool:
    return any(re.fullmatch(pattern, path) for pattern in patterns)
