"""The feature language: one expression over bar columns, read by two engines.

An expression is written in Python's syntax and parsed into nodes. `market.features.evaluator` runs
the nodes over ring buffers; `market.features.statement` writes them as SQL. The meaning of an expression is
defined here only.

    div(sum(ofi_1, 60), mean(depth_norm, 60))
    log(div(mid_close, lag(mid_close, 60))) * 1e4
    corr(ret, lag(lead(ret), 1), 300)

========================= =========================================================================
``name``                  a bar column, ``day_s`` (seconds since midnight UTC), or a named term
``+ - *``, ``/``          arithmetic; ``/`` by a constant only
``div(a, b)``             a / b; NULL when b is zero
``log(a)``, ``sqrt(a)``   NULL unless a > 0, unless a >= 0
``abs sign sin cos``      of one value
``clip(a, low, high)``    a limited to [low, high], two constants
``least(a, b)``           the smaller of two; ``greatest`` the larger; NULL when either is
``lag(a, s)``             a as it was at exactly t - s seconds; NULL when that second has no bar
``lead(a)``               a of the leader symbol, at the seconds of this one's bars
``mean min max (a, w)``   over the bars of (t - w, t], NULLs skipped; NULL when nothing is left
``sum(a, w)``             w times the mean: a second that is missing does not make it smaller
``std(a, w)``             population standard deviation; 0 when the variance is negligible
``corr(a, b, w)``         Pearson correlation; NULL when either variance is negligible
``slope(y, x, w)``        least-squares slope of y on x; NULL when the variance of x is negligible
========================= =========================================================================

A second exists when it has a bar without a gap (of the leader too, where `lead` is used); what an
expression reads of another second is NULL, and so is its value at one. A span of w seconds that ends at t is covered when at least
four fifths of its seconds exist. A value is NULL unless all its `spans` are covered: its windows, and
the time constants of the event-time averages (`AVERAGES`) that it reads. Statistics are of the seconds
that exist.

NULL in, NULL out. A variance is negligible below 1e-8 (mean^2 + 1): the engines add in different
orders, and nearer to a constant than that the rounding of a mean decides the ninth digit of a slope.
corr and slope use the rows where both values exist. Windows do not nest, and no expression looks back
beyond 3,600 s.

Doubles may overflow. A value beyond 1e100 (`LIMIT`), infinity and NaN are NULL in a column, in a
feature, and inside an expression wherever an operation could turn them into a plausible number:
``keep`` nodes, inserted by the parser, mark those places, so that both engines drop the same
values.
"""

from __future__ import annotations

import ast
import math
from collections.abc import Callable, Collection, Mapping
from typing import Final, TypeAlias

import msgspec

from market.errors import UsageError

#: The longest look-back of an expression, seconds.
MEMORY_S: Final = 3600
#: A row is warm when its second exists and these spans are covered.
WARM_S: Final = (15, 60, 300, 900)
#: Bar columns that are averages over event time: name -> time constant, seconds. Events that a break
#: hid are missing from them as from a window.
AVERAGES: Final = {
    "quote_life": 100,
    "vpin": 100,
    **{f"hawkes_{side}_{tau}": tau for side in ("buy", "sell") for tau in (10, 100)},
}
LIMIT: Final = 1e100
NEGLIGIBLE: Final = 1e-8
DAY_S: Final = "day_s"


class ExpressionError(UsageError):
    """An expression cannot be used; the message quotes it and says where and why."""


class Const(msgspec.Struct, frozen=True, tag=True):
    """A number."""

    value: float


class Column(msgspec.Struct, frozen=True, tag=True):
    """A bar column of the symbol or its leader, ``ago`` seconds before t."""

    name: str
    leader: bool = False
    ago: int = 0


class Call(msgspec.Struct, frozen=True, tag=True):
    """An operation on values of one row; ``op`` is a key of `OPERATIONS`."""

    op: str
    args: tuple[Node, ...]


class Window(msgspec.Struct, frozen=True, tag=True):
    """An aggregate over the seconds of (t - seconds, t]; ``op`` is a key of `AGGREGATES`."""

    op: str
    args: tuple[Node, ...]
    seconds: int


Node: TypeAlias = Const | Column | Call | Window

#: Operation -> number of arguments.
OPERATIONS: Final[dict[str, int]] = {
    "add": 2,
    "sub": 2,
    "mul": 2,
    "div": 2,
    "neg": 1,
    "abs": 1,
    "log": 1,
    "sqrt": 1,
    "sign": 1,
    "sin": 1,
    "cos": 1,
    "clip": 3,
    "least": 2,
    "greatest": 2,
    "keep": 1,
}
#: Aggregate -> number of series.
AGGREGATES: Final[dict[str, int]] = {
    "mean": 1,
    "min": 1,
    "max": 1,
    "std": 1,
    "corr": 2,
    "slope": 2,
}
_WRITTEN = {ast.Add: "add", ast.Sub: "sub", ast.Mult: "mul"}
_FOLDED: Final[dict[str, Callable[[float, float], float]]] = {
    "add": lambda a, b: a + b,
    "sub": lambda a, b: a - b,
    "mul": lambda a, b: a * b,
    "div": lambda a, b: a / b,
}


class Language:
    """The names that an expression may use, and their definitions.

    ``columns`` are bar columns; ``terms`` name row expressions that definitions share. A term may
    use terms defined before it.
    """

    def __init__(self, columns: Collection[str], terms: Mapping[str, str] | None = None) -> None:
        self.columns = frozenset(columns) | {DAY_S}
        self.terms: dict[str, str] = {}
        #: The node of each use of a term -> its label (``lead_ret_ago_1``).
        self.labels: dict[Node, str] = {}
        for name, text in (terms or {}).items():
            if name in self.columns or name in self.terms:
                raise ExpressionError(f"term {name}: the name is taken")
            node = self.parse(text, f"term {name}")
            if windows(node):
                raise ExpressionError(f"term {name}: a term is of one row, it has no window")
            self.terms[name] = text

    def parse(self, text: str, label: str = "expression") -> Node:
        """The node of an expression. Raises ExpressionError, whose message begins with ``label``."""
        try:
            tree = ast.parse(text.strip(), mode="eval").body
            node = self._node(tree, leader=False, ago=0)
            if not uses_columns(node):
                raise ExpressionError("uses no column")
            if (seconds := memory(node)) > MEMORY_S:
                raise ExpressionError(f"looks back {seconds} s, more than {MEMORY_S} s")
        except SyntaxError as error:
            raise ExpressionError(f"{label}: {text!r}: {error.msg}") from error
        except ExpressionError as error:
            raise ExpressionError(f"{label}: {text!r}: {error}") from error
        return node

    def _node(self, tree: ast.expr, *, leader: bool, ago: int) -> Node:
        match tree:
            case ast.Constant(value=int() | float() as value) if not isinstance(value, bool):
                return Const(float(value))
            case ast.Name(id=name):
                return self._named(name, leader, ago, tree.col_offset)
            case ast.UnaryOp(op=ast.USub(), operand=operand):
                return call("neg", self._node(operand, leader=leader, ago=ago))
            case ast.BinOp(left=left, op=operator, right=right):
                a = self._node(left, leader=leader, ago=ago)
                b = self._node(right, leader=leader, ago=ago)
                if isinstance(operator, ast.Div):
                    if not isinstance(b, Const) or b.value == 0:
                        raise ExpressionError("/ divides by a constant that is not 0; use div()")
                    return call("div", a, b)
                if type(operator) in _WRITTEN:
                    return call(_WRITTEN[type(operator)], a, b)
            case ast.Call(func=ast.Name(id=name), args=args, keywords=[]):
                return self._called(name, args, leader, ago)
        raise ExpressionError(f"column {tree.col_offset + 1}: {ast.unparse(tree)} is not allowed")

    def _named(self, name: str, leader: bool, ago: int, offset: int) -> Node:
        if name == DAY_S:
            return Column(name, ago=ago)
        if name in self.columns:
            return Column(name, leader, ago)
        if name not in self.terms:
            raise ExpressionError(f"column {offset + 1}: no bar column or term named {name}")
        tree = ast.parse(self.terms[name], mode="eval").body
        node = kept(self._node(tree, leader=leader, ago=ago), _SERIES)
        self.labels[node] = ("lead_" if leader else "") + name + (f"_ago_{ago}" if ago else "")
        return node

    def _called(self, name: str, args: list[ast.expr], leader: bool, ago: int) -> Node:
        if name == "lead":
            if leader:
                raise ExpressionError("lead() of lead(): a leader has no leader")
            (inner,) = _expect(name, args, 1)
            return self._node(inner, leader=True, ago=ago)
        if name == "lag":
            inner, seconds = _expect(name, args, 2)
            node = self._node(inner, leader=leader, ago=ago + _seconds(seconds, name))
            if windows(node):
                raise ExpressionError("lag() of a window")
            return node
        op = "mean" if name == "sum" else name
        if op in AGGREGATES:
            *series, seconds = _expect(name, args, AGGREGATES[op] + 1)
            nodes = [self._node(part, leader=leader, ago=ago) for part in series]
            for node in nodes:
                if windows(node):
                    raise ExpressionError(f"{name}() of a window")
                if not uses_columns(node):
                    raise ExpressionError(f"{name}() of a constant")
            series_nodes = tuple(kept(node, _SERIES) for node in nodes)
            window = Window(op, series_nodes, _seconds(seconds, name))
            return call("mul", window, Const(float(window.seconds))) if name == "sum" else window
        if name in OPERATIONS and name not in {"keep", "add", "sub", "mul", "neg"}:
            parts = _expect(name, args, OPERATIONS[name])
            return call(name, *(self._node(part, leader=leader, ago=ago) for part in parts))
        raise ExpressionError(f"no function named {name}")


def _expect(name: str, args: list[ast.expr], count: int) -> list[ast.expr]:
    if len(args) != count:
        raise ExpressionError(f"{name}() takes {count} arguments, not {len(args)}")
    return args


def _seconds(tree: ast.expr, name: str) -> int:
    match tree:
        case ast.Constant(value=int() as value) if 1 <= value <= MEMORY_S:
            return value
    raise ExpressionError(
        f"{name}() takes whole seconds from 1 to {MEMORY_S}, not {ast.unparse(tree)}"
    )


# -- making nodes ------------------------------------------------------------------------------

#: Beyond this power of ten a series is kept: squares and products of it must not overflow.
_SERIES: Final = 120.0
#: Beyond this power of ten a value may be infinite or NaN.
_FINITE: Final = 300.0
#: Operations (and which arguments) that would turn infinity or NaN into a plausible number.
_HIDING: Final[dict[str, tuple[int, ...]]] = {
    "div": (1,),
    "sign": (0,),
    "sin": (0,),
    "cos": (0,),
    "clip": (0,),
    "least": (0, 1),
    "greatest": (0, 1),
}


def call(op: str, *args: Node) -> Node:
    """An operation, folded when its arguments are constants, with ``keep`` where it is needed."""
    if op in _FOLDED and isinstance(args[0], Const) and isinstance(args[1], Const):
        return Const(_FOLDED[op](args[0].value, args[1].value))
    if op == "neg" and isinstance(args[0], Const):
        return Const(-args[0].value)
    if op == "clip":
        low, high = args[1], args[2]
        if not (isinstance(low, Const) and isinstance(high, Const) and low.value < high.value):
            raise ExpressionError("clip() takes two constants, low < high")
    hiding = _HIDING.get(op, ())
    return Call(op, tuple(kept(a, _FINITE) if n in hiding else a for n, a in enumerate(args)))


def kept(node: Node, power: float) -> Node:
    """The node, under ``keep`` when its magnitude may pass 10**power."""
    return Call("keep", (node,)) if reach(node) > power else node


def reach(node: Node) -> float:
    """The largest power of ten that a node's magnitude can have; inf when it may overflow."""
    match node:
        case Const(value):
            return math.log10(abs(value)) if value else 0.0
        case Column():
            return 100.0
        case Window(op, args, _):
            a = reach(args[0])
            return {"corr": 1.0, "slope": a + reach(args[-1]) + 12}.get(op, a)
        case Call(op, args):
            return _reach(op, args)


def _reach(op: str, args: tuple[Node, ...]) -> float:
    powers = [reach(arg) for arg in args]
    match op:
        case "keep":
            return 100.0
        case "sign" | "sin" | "cos":
            return 0.0
        case "clip":
            return max(powers[1:])
        case "add" | "sub":
            power = max(powers) + 0.5
        case "mul":
            power = sum(powers)
        case "div":
            power = powers[0] - powers[1] if isinstance(args[1], Const) else math.inf
        case "log":
            power = 3.0 if powers[0] <= _FINITE else math.inf
        case "sqrt":
            power = powers[0] / 2
        case _:
            power = max(powers)
    return power if power <= _FINITE else math.inf


# -- properties of nodes ------------------------------------------------------------------------------


def walk(node: Node) -> list[Node]:
    """The node and everything below it, without repeats; arguments come before their users."""
    seen: dict[Node, None] = {}

    def visit(one: Node) -> None:
        if one not in seen:
            for arg in getattr(one, "args", ()):
                visit(arg)
            seen[one] = None

    visit(node)
    return list(seen)


def windows(node: Node) -> list[Window]:
    """The windows in a node."""
    return [one for one in walk(node) if isinstance(one, Window)]


def uses_columns(node: Node) -> bool:
    """Whether the node reads any bar column, so that it is not a constant."""
    return any(isinstance(one, Column) for one in walk(node))


def needed(seconds: int) -> int:
    """How many seconds of a span must exist for it to be covered."""
    return -(-4 * seconds // 5)


def spans(node: Node) -> list[tuple[int, bool]]:
    """The spans that must be covered for a value to exist: (seconds, whether by the leader too)."""
    match node:
        case Const():
            return []
        case Column(name, leader, ago):
            return [(ago + AVERAGES[name], leader)] if name in AVERAGES else []
        case Window(_, args, seconds):
            return [(seconds, any(isinstance(one, Column) and one.leader for one in walk(node)))]
        case Call(_, args):
            return sorted({span for arg in args for span in spans(arg)})


def memory(node: Node) -> int:
    """Seconds of bars that decide the value (look-back): w for a window of w, s + 1 for a lag of s."""
    match node:
        case Const():
            return 0
        case Column(name, _, ago):
            return ago + AVERAGES.get(name, 1)
        case Window(_, args, seconds):
            return seconds - 1 + max(memory(arg) for arg in args)
        case Call(_, args):
            return max(memory(arg) for arg in args)


_SYMBOL: Final = {"add": " + ", "sub": " - ", "mul": " * "}


def text(node: Node) -> str:
    """The expression again, terms written out: equal texts mean equal features."""
    match node:
        case Const(value):
            return number(value)
        case Column(name, leader, ago):
            inner = f"lead({name})" if leader else name
            return f"lag({inner}, {ago})" if ago else inner
        case Window(op, args, seconds):
            return f"{op}({', '.join(map(text, args))}, {seconds})"
        case Call("keep", (inner_node,)):
            return text(inner_node)
        case Call("neg", (inner_node,)):
            return f"-({text(inner_node)})"
        case Call(op, args) if op in _SYMBOL:
            sign = _SYMBOL[op]
            return "(" + sign.join(map(text, args)) + ")"
        case Call(op, args):
            return f"{op}({', '.join(map(text, args))})"


def number(value: float) -> str:
    """A constant as text that SQL and Python both read as the same double."""
    if value == int(value) and abs(value) < 1e15:
        return str(int(value))
    written = repr(value)
    return written if "e" in written else f"{written}e0"
