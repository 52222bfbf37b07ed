"""Expressions over ring buffers: the compiled engine of the live worker.

A `Program` is expressions lowered to bytecode on numbered registers, for two small machines: one
computes the row terms of a second, once; the other aggregates the windows and finishes the features.
The interpreter is compiled once; a new definition compiles nothing.

Each series of a ring is stored twice, side by side: its last w seconds are always one contiguous
slice. NaN is NULL.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np
import numpy.typing as npt

from market.features.expression import (
    AGGREGATES,
    DAY_S,
    LIMIT,
    MEMORY_S,
    NEGLIGIBLE,
    OPERATIONS,
    Call,
    Column,
    Const,
    Node,
    Window,
    walk,
)
from market.kernel import compiled
from market.units import SECOND_NS

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Records = npt.NDArray[np.void]

#: Seconds in a ring.
RING_S: Final = 3840
assert RING_S > MEMORY_S


_CODE: Final = {name: code for code, name in enumerate(["load", *OPERATIONS])}
_LOAD, _ADD, _SUB, _MUL = _CODE["load"], _CODE["add"], _CODE["sub"], _CODE["mul"]
_DIV, _NEG, _ABS, _LOG = _CODE["div"], _CODE["neg"], _CODE["abs"], _CODE["log"]
_SQRT, _SIGN, _SIN, _COS = _CODE["sqrt"], _CODE["sign"], _CODE["sin"], _CODE["cos"]
_CLIP, _LEAST, _GREATEST = _CODE["clip"], _CODE["least"], _CODE["greatest"]

_AGGREGATE: Final = {name: code for code, name in enumerate(AGGREGATES)}
_SUM, _MEAN, _MIN, _MAX = (_AGGREGATE[name] for name in ("sum", "mean", "min", "max"))
_STD, _CORR = _AGGREGATE["std"], _AGGREGATE["corr"]


_INSTRUCTION: Final = np.dtype(
    [("op", "i8"), ("target", "i8"), ("x", "i8"), ("y", "i8"), ("z", "i8")]
)
_WINDOW: Final = np.dtype(
    [("op", "i8"), ("target", "i8"), ("x", "i8"), ("y", "i8"), ("seconds", "i8")]
)


class _Machine:
    """Instructions (op, target, x, y, z) in order, and the initial registers.

    ``ring_rows`` gives the ring row of a node of this second.
    """

    def __init__(self, ring_rows: Mapping[Node, int]) -> None:
        self._ring_rows = ring_rows
        self._register: dict[Node, int] = {}
        self._constants: dict[int, float] = {}
        self._lines: list[tuple[int, int, int, int, int]] = []
        self.windows: list[tuple[Window, int]] = []

    def place(self, node: Node) -> int:
        """The register of the node's value."""
        if node in self._register:
            return self._register[node]
        if isinstance(node, Call) and node not in self._ring_rows:
            a, b, c = (*(self.place(arg) for arg in node.args), 0, 0)[:3]
        target = self._register[node] = len(self._register)
        match node:
            case Const(value):
                self._constants[target] = value
            case Window():
                self.windows.append((node, target))
            case Column(name, leader, ago) if node not in self._ring_rows:
                self._lines.append((_LOAD, target, self._ring_rows[Column(name, leader)], ago, 0))
            case Call(op, _) if node not in self._ring_rows:
                self._lines.append((_CODE[op], target, a, b, c))
            case _:
                self._lines.append((_LOAD, target, self._ring_rows[node], 0, 0))
        return target

    @property
    def code(self) -> Records:
        return np.array(self._lines, _INSTRUCTION)

    @property
    def registers(self) -> Floats:
        values = np.full(len(self._register), np.nan)
        values[list(self._constants)] = list(self._constants.values())
        return values


class Program:
    """Named expressions, lowered for the kernels.

    ``bar_columns`` names the columns of a pushed bar row. A second of the ring has ``rows`` values:
    the columns in use, own and leader's, then the terms that windows run over.
    """

    def __init__(self, named: Mapping[str, Node], bar_columns: Sequence[str]) -> None:
        self.names = tuple(named)
        nodes = list(dict.fromkeys(one for node in named.values() for one in walk(node)))
        used = [one for one in nodes if isinstance(one, Column)]
        columns = list(dict.fromkeys(Column(one.name, one.leader) for one in used))
        aggregates = [one for one in nodes if isinstance(one, Window)]
        series = dict.fromkeys(arg for one in aggregates for arg in one.args)
        terms = [one for one in series if one not in set(columns)]
        bar = {name: n for n, name in enumerate(bar_columns)} | {DAY_S: -1}
        ring_rows: dict[Node, int] = {node: n for n, node in enumerate(columns)}
        #: (bar column, or -1 for the seconds since midnight; 1 if the leader's), per ring row.
        self.sources = np.array(
            [(bar[one.name], int(one.leader)) for one in columns], np.int64
        ).reshape(-1, 2)

        machine = _Machine(ring_rows)
        #: The register of every term; terms follow the columns in the ring.
        self.terms = np.array([machine.place(one) for one in terms], np.int64)
        self.term_code, self.term_registers = machine.code, machine.registers

        ring_rows |= {node: len(columns) + n for n, node in enumerate(terms)}
        self.rows = len(ring_rows)
        machine = _Machine(ring_rows)
        self.outputs = np.array([machine.place(one) for one in named.values()], np.int64)
        self.final_code, self.final_registers = machine.code, machine.registers
        #: One per window: x and y are ring rows, equal where the aggregate is of one series.
        self.windows = np.array(
            [
                (
                    _AGGREGATE[one.op],
                    target,
                    ring_rows[one.args[0]],
                    ring_rows[one.args[-1]],
                    one.seconds,
                )
                for one, target in machine.windows
            ],
            _WINDOW,
        )


class Evaluator:
    """A program over the bars of symbols, second by second.

    Push every symbol's bar of a second, then evaluate; a leader's bar that arrives after its follower
    was evaluated still counts from the next second on. Seconds that were never pushed are missing
    rows, as in a table. Warm-up pushes history the same way (`push_many`): after 3,600 s of bars, a
    new evaluator and an old one return the same.

    ``leaders`` gives the symbol whose bars `lead` reads; bars of other symbols are an error.
    """

    def __init__(
        self,
        program: Program,
        symbols: Sequence[str],
        leaders: Mapping[str, str],
        bar_columns: Sequence[str],
    ) -> None:
        self.program = program
        self.symbols = tuple(symbols)
        self._width = len(bar_columns)
        self._gap = list(bar_columns).index("gap")
        #: Bars as pushed: symbol -> (bar rows, the second each slot holds).
        self._bars: dict[str, tuple[Floats, Ints]] = {
            symbol: (np.full((RING_S, self._width), np.nan), np.full(RING_S, -1, np.int64))
            for symbol in dict.fromkeys([*symbols, *(leaders[one] for one in symbols)])
        }
        self._last = dict.fromkeys(self._bars, -1)
        self._unbroken = dict.fromkeys(self._bars, 0)
        self._leader = {symbol: leaders[symbol] for symbol in symbols}
        self._rings = {
            symbol: (
                np.full((program.rows, 2 * RING_S), np.nan),
                program.term_registers.copy(),
                program.final_registers.copy(),
            )
            for symbol in symbols
        }
        #: The last second whose terms are in the ring.
        self._derived = dict.fromkeys(symbols, -1)

    def push(self, symbol: str, t_ns: int, bar: Floats) -> None:
        """One bar: ``bar`` is float64[len(bar_columns)] in their order, NaN where it is NULL.

        Raises ValueError for a symbol that is not evaluated, a time that is not a whole second or not
        after the symbol's last, or a row of another width.
        """
        second, rest = divmod(t_ns, SECOND_NS)
        if symbol not in self._bars:
            known = ", ".join(self._bars)
            raise ValueError(f"bar of {symbol}: not among the evaluator's symbols ({known})")
        if rest or second <= self._last[symbol]:
            raise ValueError(
                f"bar of {symbol} at {t_ns}: expected a whole second after "
                f"{self._last[symbol] * SECOND_NS}; push bars once and in order"
            )
        if bar.shape != (self._width,):
            raise ValueError(
                f"bar of {symbol} at {t_ns}: has shape {bar.shape}, expected ({self._width},)"
            )
        rows, seconds = self._bars[symbol]
        slot = second % RING_S
        rows[slot] = bar
        seconds[slot] = second
        whole = self._unbroken[symbol] if second == self._last[symbol] + 1 else 0
        self._unbroken[symbol] = whole + 1 if bar[self._gap] == 0.0 else 0
        self._last[symbol] = second
        for follower, leader in self._leader.items():
            if leader == symbol and self._derived[follower] >= second:
                self._derived[follower] = second - 1

    def push_many(self, symbol: str, t_ns: Ints, bars: Floats) -> None:
        """Bars in order: ``t_ns`` int64 (n,), ``bars`` float64 (n, len(bar_columns))."""
        for t, bar in zip(t_ns.tolist(), bars, strict=True):
            self.push(symbol, t, bar)

    def evaluate(self, symbol: str) -> tuple[Floats, bool]:
        """The features at the symbol's last bar (NaN where NULL), and whether the row is warm.

        Raises ValueError before the first bar.
        """
        last = self._last[symbol]
        if last < 0:
            raise ValueError(f"{symbol}: no bar has been pushed")
        program = self.program
        ring, term_registers, final_registers = self._rings[symbol]
        rows, seconds = self._bars[symbol]
        lead_rows, lead_seconds = self._bars[self._leader[symbol]]
        _derive(
            max(self._derived[symbol], last - RING_S) + 1,
            last,
            rows,
            seconds,
            lead_rows,
            lead_seconds,
            program.sources,
            program.term_code,
            program.terms,
            term_registers,
            ring,
        )
        self._derived[symbol] = last
        out = np.empty(len(program.outputs))
        _evaluate(
            last, ring, program.windows, program.final_code, program.outputs, final_registers, out
        )
        return out, self._unbroken[symbol] >= MEMORY_S


@compiled
def _run(code: Records, registers: Floats, ring: Floats, stop: int) -> None:
    """Execute instructions; ``stop - 1`` is this second's slot in the upper half of the ring."""
    for n in range(code.shape[0]):
        op, target = code[n].op, code[n].target
        x, y, z = code[n].x, code[n].y, code[n].z
        if op == _LOAD:
            registers[target] = ring[x, stop - 1 - y]
            continue
        a = registers[x]
        value = np.nan
        if op == _ADD:
            value = a + registers[y]
        elif op == _SUB:
            value = a - registers[y]
        elif op == _MUL:
            value = a * registers[y]
        elif op == _DIV:
            if registers[y] != 0.0:
                value = a / registers[y]
        elif op == _NEG:
            value = -a
        elif op == _ABS:
            value = abs(a)
        elif op == _LOG:
            if a > 0.0:
                value = np.log(a)
        elif op == _SQRT:
            if a >= 0.0:
                value = np.sqrt(a)
        elif op == _SIGN:
            value = np.sign(a)
        elif op == _SIN:
            value = np.sin(a)
        elif op == _COS:
            value = np.cos(a)
        elif op == _CLIP:
            value = registers[y] if a < registers[y] else registers[z] if a > registers[z] else a
        elif op == _LEAST:
            value = _lesser(a, registers[y], 1.0)
        elif op == _GREATEST:
            value = _lesser(a, registers[y], -1.0)
        else:
            value = _keep(a)
        registers[target] = value


@compiled
def _lesser(a: float, b: float, sign: float) -> float:
    """The smaller of two, or with sign -1 the larger; NaN when either is."""
    if a != a or b != b:
        return np.nan
    return a if sign * a <= sign * b else b


@compiled
def _keep(value: float) -> float:
    """The value; NaN when it is beyond LIMIT."""
    return value if abs(value) <= LIMIT else np.nan


@compiled
def _derive(
    first: int,
    last: int,
    rows: Floats,
    seconds: Ints,
    lead_rows: Floats,
    lead_seconds: Ints,
    sources: Ints,
    code: Records,
    terms: Ints,
    registers: Floats,
    ring: Floats,
) -> None:
    """Fill the ring for the seconds first..last: columns, then terms; all NaN without a bar."""
    for second in range(first, last + 1):
        slot = second % RING_S
        if seconds[slot] != second:
            for row in range(ring.shape[0]):
                ring[row, slot] = ring[row, slot + RING_S] = np.nan
            continue
        led = lead_seconds[slot] == second
        for row in range(sources.shape[0]):
            column, leader = sources[row, 0], sources[row, 1]
            value = np.nan
            if column < 0:
                value = float(second % 86_400)
            elif not leader:
                value = _keep(rows[slot, column])
            elif led:
                value = _keep(lead_rows[slot, column])
            ring[row, slot] = ring[row, slot + RING_S] = value
        _run(code, registers, ring, slot + RING_S + 1)
        for n in range(terms.shape[0]):
            row = sources.shape[0] + n
            ring[row, slot] = ring[row, slot + RING_S] = registers[terms[n]]


@compiled
def _evaluate(
    last: int,
    ring: Floats,
    windows: Records,
    code: Records,
    outputs: Ints,
    registers: Floats,
    out: Floats,
) -> None:
    """Aggregate the windows that end at the second ``last``, then compute the features."""
    stop = last % RING_S + RING_S + 1
    for n in range(windows.shape[0]):
        op, target, start = windows[n].op, windows[n].target, stop - windows[n].seconds
        x, y = ring[windows[n].x, start:stop], ring[windows[n].y, start:stop]
        if op in (_SUM, _MEAN):
            count, total = _sum(x)
            registers[target] = (total if op == _SUM else total / count) if count else np.nan
        elif op in (_MIN, _MAX):
            registers[target] = _extreme(x, 1.0 if op == _MAX else -1.0)
        elif op == _STD:
            registers[target] = _std(x)
        else:
            registers[target] = _pair(x, y, op == _CORR)
    _run(code, registers, ring, stop)
    for n in range(outputs.shape[0]):
        out[n] = _keep(registers[outputs[n]])


# Most windows have no NaN, and kept values are too small to overflow: a plain sum in four independent
# accumulators is NaN only when a value is missing. Then the loop that skips NaN runs.


@compiled
def _sum(x: Floats) -> tuple[int, float]:
    """Count and sum of the values that are not NaN."""
    s0 = s1 = s2 = s3 = 0.0
    for k in range(x.size // 4):
        i = 4 * k
        s0 += x[i]
        s1 += x[i + 1]
        s2 += x[i + 2]
        s3 += x[i + 3]
    total = (s0 + s1) + (s2 + s3)
    for i in range(x.size // 4 * 4, x.size):
        total += x[i]
    if total == total:
        return x.size, total
    count, total = 0, 0.0
    for i in range(x.size):
        if x[i] == x[i]:
            total += x[i]
            count += 1
    return count, total


@compiled
def _products(x: Floats, mean_x: float, y: Floats, mean_y: float) -> float:
    """Sum of products of centred values, over the rows where both exist."""
    s0 = s1 = s2 = s3 = 0.0
    for k in range(x.size // 4):
        i = 4 * k
        s0 += (x[i] - mean_x) * (y[i] - mean_y)
        s1 += (x[i + 1] - mean_x) * (y[i + 1] - mean_y)
        s2 += (x[i + 2] - mean_x) * (y[i + 2] - mean_y)
        s3 += (x[i + 3] - mean_x) * (y[i + 3] - mean_y)
    total = (s0 + s1) + (s2 + s3)
    for i in range(x.size // 4 * 4, x.size):
        total += (x[i] - mean_x) * (y[i] - mean_y)
    if total == total:
        return total
    total = 0.0
    for i in range(x.size):
        if x[i] == x[i] and y[i] == y[i]:
            total += (x[i] - mean_x) * (y[i] - mean_y)
    return total


@compiled
def _extreme(x: Floats, sign: float) -> float:
    """The largest value that is not NaN, or with sign -1 the smallest; NaN when there is none."""
    best = -np.inf
    for i in range(x.size):
        if sign * x[i] > best:
            best = sign * x[i]
    return sign * best if best > -np.inf else np.nan


@compiled
def _negligible(variance: float, mean: float) -> bool:
    return variance < NEGLIGIBLE * (mean * mean + 1.0)


@compiled
def _std(x: Floats) -> float:
    """Population standard deviation; 0 when the variance is negligible, NaN without a value."""
    count, total = _sum(x)
    if count == 0:
        return np.nan
    mean = total / count
    variance = _products(x, mean, x, mean) / count
    return 0.0 if _negligible(variance, mean) else np.sqrt(variance)


@compiled
def _pair(x: Floats, y: Floats, correlation: bool) -> float:
    """Correlation of x and y, or slope of x on y, where both exist."""
    count, total_x = _sum(x)
    count_y, total_y = _sum(y)
    if count < x.size or count_y < y.size:
        x, y = x.copy(), y.copy()
        for i in range(x.size):
            if x[i] != x[i] or y[i] != y[i]:
                x[i] = y[i] = np.nan
        count, total_x = _sum(x)
        count_y, total_y = _sum(y)
    if count == 0:
        return np.nan
    mean_x, mean_y = total_x / count, total_y / count
    var_y = _products(y, mean_y, y, mean_y) / count
    if _negligible(var_y, mean_y):
        return np.nan
    cov: float = _products(x, mean_x, y, mean_y) / count
    if not correlation:
        return float(cov / var_y)
    var_x = _products(x, mean_x, x, mean_x) / count
    if _negligible(var_x, mean_x):
        return np.nan
    return float(cov / (np.sqrt(var_x) * np.sqrt(var_y)))
