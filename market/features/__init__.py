"""Features: one definition each, read by the SQL model and by the live evaluator.

To add a feature, add it to `market.features.definitions` and run ``make generate``, which writes the
dbt model, its column documentation and docs/features.md. The evaluator needs nothing more.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from functools import cache
from typing import Final

import msgspec

from market.columns import BOOK, COLUMNS
from market.features.definitions import TABLE, TERMS
from market.features.evaluator import Evaluator, Program
from market.features.expression import Column, ExpressionError, Language, Node, text, walk
from market.instruments import leader


class Feature(msgspec.Struct, frozen=True):
    """One feature; ``expected_sign`` is +1, -1, 0 (conditions others) or None (not known)."""

    name: str
    expression: str
    family: str
    rationale: str
    expected_sign: int | None
    source: str


_SIGNS: Final[dict[str, int | None]] = {"+": 1, "-": -1, "0": 0, "?": None}
_HEAD: Final = re.compile(r"(?P<name>[\w{},]+)  (?P<sign>[-+0?])  (?P<source>.+)")


def read_table(table: str) -> Iterator[Feature]:
    """The features of a definition table, in order. Raises ExpressionError naming the line."""
    family = ""
    blocks: list[tuple[re.Match[str], str, list[str], list[str]]] = []
    for number, line in enumerate(table.splitlines(), 1):
        if line.startswith("== "):
            family = line[3:]
        elif line.startswith("    | ") and blocks:
            blocks[-1][3].append(line[6:])
        elif line.startswith("    ") and blocks:
            blocks[-1][2].append(line.strip())
        elif head := _HEAD.fullmatch(line):
            blocks.append((head, family, [], []))
        elif line:
            raise ExpressionError(f"definition table, line {number}: cannot be read: {line}")
    for head, family, expression, rationale in blocks:
        yield from _expanded(
            Feature(
                name=head["name"],
                expression=" ".join(expression),
                family=family,
                rationale=" ".join(rationale),
                expected_sign=_SIGNS[head["sign"]],
                source=head["source"],
            )
        )


def _expanded(feature: Feature) -> Iterator[Feature]:
    """One feature for each value in a name with ``{15,60}``; a plain one itself."""
    before, opened, rest = feature.name.partition("{")
    if not opened:
        yield feature
        return
    values, _, after = rest.partition("}")
    for value in values.split(","):
        yield msgspec.structs.replace(
            feature,
            name=before + value + after,
            expression=feature.expression.replace("{}", value),
            rationale=feature.rationale.replace("{}", value),
        )


FEATURES: Final[tuple[Feature, ...]] = tuple(read_table(TABLE))


def feature_names() -> tuple[str, ...]:
    """Names in the order of every vector and table."""
    return tuple(feature.name for feature in FEATURES)


def formula(feature: Feature) -> str:
    """The expression without its windows and levels: features of one formula share it."""
    return re.sub(r"\d+(bps|k|m\b)?", "", feature.expression)


def is_of_book(feature: Feature) -> bool:
    """Whether the feature needs the levels of the book (`market.columns.BOOK`)."""
    columns = (one for one in walk(nodes()[feature.name]) if isinstance(one, Column))
    return any(column.name in BOOK for column in columns)


@cache
def feature_hash() -> str:
    """Hash (16 hex digits) of names and expressions in order, terms expanded."""
    lines = "\n".join(f"{name}\t{text(node)}" for name, node in nodes().items())
    return hashlib.sha256(lines.encode()).hexdigest()[:16]


@cache
def _parsed() -> tuple[Language, Mapping[str, Node]]:
    return parse(FEATURES)


def parse(features: Iterable[Feature]) -> tuple[Language, dict[str, Node]]:
    """The language of the bars, and features as nodes by name."""
    language = Language(COLUMNS, TERMS)
    named: dict[str, Node] = {}
    for feature in features:
        if feature.name in named or feature.name in COLUMNS or feature.name in TERMS:
            raise ExpressionError(f"feature {feature.name}: the name is taken")
        named[feature.name] = language.parse(feature.expression, f"feature {feature.name}")
    return language, named


def nodes() -> Mapping[str, Node]:
    """Features as nodes by name, in order."""
    return _parsed()[1]


def language() -> Language:
    """The language that the features are written in: bar columns and terms."""
    return _parsed()[0]


class FeatureEvaluator(Evaluator):
    """The features of symbols, live: push every symbol's bar of a second, then evaluate.

    Bars are float64[len(COLUMNS)] in the order of `market.bars.COLUMNS`. Besides the symbols
    themselves, their leaders' bars must be pushed. Computes the features ``names``, all by default; the
    others are NaN.
    """

    def __init__(self, symbols: Sequence[str], names: Collection[str] | None = None) -> None:
        super().__init__(
            Program(nodes(), tuple(COLUMNS)),
            symbols,
            {symbol: leader(symbol) for symbol in symbols},
            tuple(COLUMNS),
            names,
        )
