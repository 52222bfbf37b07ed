"""The shape of JSON: which fields there are, of what types, and how their strings are written."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
MILLISECONDS = re.compile(r"1[0-9]{12}")
STRINGS = {"empty", "uuid", "milliseconds", "padded", "number", "text"}
DECIMAL = re.compile(r"-?[0-9]+(\.[0-9]+)?")

#: Values of fields that take one of a list, as the venue's documentation enumerates them.
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


#: Identities and texts that say nothing by their form; only that they are strings is compared.
OPAQUE = {
    *("orderId", "orderLinkId", "nextPageCursor", "retMsg", "conn_id", "req_id", "id", "note"),
    *("connId", "reqId", "Traceid"),
    *("apiKey", *WORDS),
}


def string_form(text: str) -> str:
    """What a string is written as."""
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
    """Forms by path, merged over any number of values. Items of a list share one path."""

    def __init__(self, values: Iterable[Any] = ()) -> None:
        self.forms: dict[str, set[str]] = {}
        self.texts: dict[str, set[str]] = {}  #: of strings, what they say
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
        """Take over what another has at paths that this has not."""
        for path, forms in other.forms.items():
            if path not in self.forms:
                self.forms[path] = forms
                self.texts[path] = other.texts.get(path, set())

    def wrong_words(self) -> list[str]:
        """Values that are none of their field's list."""
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

    A number that happens to end without a zero may be one of so many places; one that ends in zeros
    has to have as many places as some that was recorded.
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
    ours: Shape, recorded: Shape, *, gone: Iterable[str] = (), newer: Iterable[str] = ()
) -> list[str]:
    """What of ours is not as recorded: fields that lack, that are too many, that are written otherwise.

    ``gone`` are patterns of recorded paths that the venue has no longer, ``newer`` of those that it has
    added since, without a recording.
    """
    told = [
        f"{path} is missing"
        for path in recorded.forms
        if path not in ours.forms and not _matches(path, gone)
    ]
    for path in ours.forms:
        if path not in recorded.forms:
            if not _matches(path, newer):
                told.append(f"{path} is not recorded")
            continue
        wrong = _unlike(path, ours, recorded)
        if wrong and not _matches(path, newer):
            values = sorted(ours.texts.get(path, set()))[:3]
            told.append(f"{path} is {sorted(wrong)} {values}, not {sorted(recorded.forms[path])}")
    return told + ours.wrong_words()


def _matches(path: str, patterns: Iterable[str]) -> bool:
    return any(re.fullmatch(pattern, path) for pattern in patterns)
