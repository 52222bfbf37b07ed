"""Expressions over ring buffers: the compiled engine of the live worker.

A `Program` is expressions lowered to bytecode on numbered registers, for two small machines: one
computes the row terms of a second, once; the other aggregates the windows and finishes the features.
The interpreter is compiled once; a new definition compiles nothing.

Each series of a ring is stored twice, side by side: its last w seconds are always one contiguous
slice. NaN is NULL.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from market.features.expression import (
    AGGREGATES,
    DAY_S,
    LIMIT,
    MEMORY_S,
    OPERATIONS,
    WARM_S,
    Call,
    Column,
    Const,
    Node,
    Window,
    needed,
    spans,
    walk,
)
from market.features.statistics import count_and_sum, extreme, pair, std
from market.kernel import compiled
from market.units import SECOND_NS

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Records = npt.NDArray[np.void]

#: Seconds in a ring.
RING_S: Final = 3840
assert RING_S > MEMORY_S


_CODE: Final = {name: code for code, name in enumerate(["load", *OPERATIONS])}
#: Registers that an instruction reads, by code.
_ARGUMENTS: Final = (0, *OPERATIONS.values())
_LOAD, _ADD, _SUB, _MUL = _CODE["load"], _CODE["add"], _CODE["sub"], _CODE["mul"]
_DIV, _NEG, _ABS, _LOG = _CODE["div"], _CODE["neg"], _CODE["abs"], _CODE["log"]
_SQRT, _SIGN, _SIN, _COS = _CODE["sqrt"], _CODE["sign"], _CODE["sin"], _CODE["cos"]
_CLIP, _LEAST, _GREATEST = _CODE["clip"], _CODE["least"], _CODE["greatest"]

_AGGREGATE: Final = {name: code for code, name in enumerate(AGGREGATES)}
_MEAN, _MIN, _MAX = (_AGGREGATE[name] for name in ("mean", "min", "max"))
_STD, _CORR = _AGGREGATE["std"], _AGGREGATE["corr"]


_INSTRUCTION: Final = np.dtype(
    [("op", "i8"), ("target", "i8"), ("x", "i8"), ("y", "i8"), ("z", "i8")]
)
_WINDOW: Final = np.dtype(
    [("op", "i8"), ("target", "i8"), ("x", "i8"), ("y", "i8"), ("seconds", "i8")]
)
_SPAN: Final = np.dtype([("output", "i8"), ("seconds", "i8"), ("needed", "i8"), ("led", "i8")])


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


class Part(NamedTuple):
    """What computes some outputs of a program after the terms; ``outputs`` are registers, -1: not computed.

    Instructions and registers are the program's own, so the values have the bits of all computed together.
    """

    windows: Records
    code: Records
    outputs: Ints
    spans: Records


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
        #: What must be covered: output -1 is the row, for it to be warm.
        self.spans = np.array(
            [(-1, seconds, needed(seconds), 0) for seconds in WARM_S]
            + [
                (n, seconds, needed(seconds), led)
                for n, one in enumerate(named.values())
                for seconds, led in spans(one)
            ],
            _SPAN,
        )

    def part(self, names: Collection[str]) -> Part:
        """The instructions that these outputs need. ValueError for a name that the program has not."""
        if unknown := sorted(set(names) - set(self.names)):
            raise ValueError(f"no feature {', '.join(unknown[:3])}")
        chosen = np.array([name in names for name in self.names])
        needed = set(self.outputs[chosen].tolist())
        kept = np.zeros(len(self.final_code), np.bool_)
        # Arguments are placed before what uses them, so one pass backwards finds all.
        for n, (op, target, *arguments) in reversed(list(enumerate(self.final_code.tolist()))):
            if target in needed:
                kept[n] = True
                needed.update(arguments[: _ARGUMENTS[op]])
        of_output = self.spans["output"]
        return Part(
            windows=self.windows[np.isin(self.windows["target"], list(needed))],
            code=self.final_code[kept],
            outputs=np.where(chosen, self.outputs, -1),
            spans=self.spans[(of_output < 0) | chosen[of_output]],
        )


class Evaluator:
    """A program over the bars of symbols, second by second.

    Push every symbol's bar of a second, then evaluate; a leader's bar that arrives after its follower
    was evaluated still counts from the next second on. Seconds that were never pushed are missing
    rows, as in a table. Warm-up pushes history the same way (`push_many`), with the breaks that it
    has: after the bars of 3,600 s, a new evaluator and an old one return the same.

    ``leaders`` gives the symbol whose bars `lead` reads; bars of other symbols are an error. ``names`` are
    the outputs to compute, all by default.
    """

    def __init__(
        self,
        program: Program,
        symbols: Sequence[str],
        leaders: Mapping[str, str],
        bar_columns: Sequence[str],
        names: Collection[str] | None = None,
    ) -> None:
        self.program = program
        self.choose(program.names if names is None else names)
        self.symbols = tuple(symbols)
        self._width = len(bar_columns)
        self._gap = list(bar_columns).index("gap")
        #: Bars as pushed: symbol -> (bar rows, the second each slot holds).
        self._bars: dict[str, tuple[Floats, Ints]] = {
            symbol: (np.full((RING_S, self._width), np.nan), np.full(RING_S, -1, np.int64))
            for symbol in dict.fromkeys([*symbols, *(leaders[one] for one in symbols)])
        }
        self._last = dict.fromkeys(self._bars, -1)
        self._leader = {symbol: leaders[symbol] for symbol in symbols}
        self._rings = {
            symbol: (
                np.full((program.rows, 2 * RING_S), np.nan),
                np.zeros((2, RING_S), np.int64),
                program.term_registers.copy(),
                program.final_registers.copy(),
            )
            for symbol in symbols
        }
        #: The last second whose terms are in the ring.
        self._derived = dict.fromkeys(symbols, -1)

    def choose(self, names: Collection[str]) -> None:
        """Compute these outputs from now on; the others are NaN. Needs no history: terms are kept of all.

        Safe from any thread. ValueError for an unknown name.
        """
        self._part = self.program.part(names)

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
        self._last[symbol] = second
        for follower, leader in self._leader.items():
            if leader == symbol and self._derived[follower] >= second:
                self._derived[follower] = second - 1

    def push_many(self, symbol: str, t_ns: Ints, bars: Floats) -> None:
        """Bars in order: ``t_ns`` int64 (n,), ``bars`` float64 (n, len(bar_columns))."""
        for t, bar in zip(t_ns.tolist(), bars, strict=True):
            self.push(symbol, t, bar)

    def evaluate(self, symbol: str) -> tuple[Floats, bool]:
        """The features at the symbol's last bar (NaN where NULL or not chosen), and whether the row is warm.

        Raises ValueError before the first bar.
        """
        last = self._last[symbol]
        if last < 0:
            raise ValueError(f"{symbol}: no bar has been pushed")
        program = self.program
        ring, existing, term_registers, final_registers = self._rings[symbol]
        rows, seconds = self._bars[symbol]
        lead_rows, lead_seconds = self._bars[self._leader[symbol]]
        _derive(
            max(self._derived[symbol], last - RING_S) + 1,
            last,
            rows,
            seconds,
            lead_rows,
            lead_seconds,
            self._gap,
            program.sources,
            program.term_code,
            program.terms,
            term_registers,
            ring,
            existing,
        )
        self._derived[symbol] = last
        out = np.empty(len(program.outputs))
        warm = _evaluate(last, ring, existing, *self._part, final_registers, out)
        return out, bool(warm)


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
    gap: int,
    sources: Ints,
    code: Records,
    terms: Ints,
    registers: Floats,
    ring: Floats,
    existing: Ints,
) -> None:
    """Fill the ring for the seconds first..last: columns, then terms; all NaN without a whole bar.

    ``existing`` (2, RING_S) counts the seconds that exist, and that exist of the leader too, up to each.
    """
    for second in range(first, last + 1):
        slot = second % RING_S
        whole = seconds[slot] == second and rows[slot, gap] == 0.0
        led = whole and lead_seconds[slot] == second and lead_rows[slot, gap] == 0.0
        existing[0, slot] = existing[0, slot - 1] + whole
        existing[1, slot] = existing[1, slot - 1] + led
        if not whole:
            for row in range(ring.shape[0]):
                ring[row, slot] = ring[row, slot + RING_S] = np.nan
            continue
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
    existing: Ints,
    windows: Records,
    code: Records,
    outputs: Ints,
    spans: Records,
    registers: Floats,
    out: Floats,
) -> bool:
    """Aggregate the windows that end at the second ``last``, then compute the features.

    Returns whether the row is warm.
    """
    slot = last % RING_S
    if existing[0, slot] == existing[0, slot - 1]:
        out[:] = np.nan
        return False
    stop = last % RING_S + RING_S + 1
    for n in range(windows.shape[0]):
        op, target, start = windows[n].op, windows[n].target, stop - windows[n].seconds
        x, y = ring[windows[n].x, start:stop], ring[windows[n].y, start:stop]
        if op == _MEAN:
            count, total = count_and_sum(x)
            registers[target] = total / count if count else np.nan
        elif op in (_MIN, _MAX):
            registers[target] = extreme(x, 1.0 if op == _MAX else -1.0)
        elif op == _STD:
            registers[target] = std(x)
        else:
            registers[target] = pair(x, y, op == _CORR)
    _run(code, registers, ring, stop)
    for n in range(outputs.shape[0]):
        out[n] = _keep(registers[outputs[n]]) if outputs[n] >= 0 else np.nan
    warm = True
    for n in range(spans.shape[0]):
        output, led = spans[n].output, spans[n].led
        if existing[led, slot] - existing[led, slot - spans[n].seconds] < spans[n].needed:
            if output < 0:
                warm = False
            else:
                out[output] = np.nan
    return warm
