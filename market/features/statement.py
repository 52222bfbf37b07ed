"""Expressions as one SQL statement for DuckDB.

Stages, each a CTE: the seconds of a date, which of them exist, the spans that they cover, the bars on
them, lagged values, row terms, window aggregates, moments of several aggregates, features. Every second of a date's grid has a row, so a
window of w seconds is one of w rows: DuckDB finds its frames by counting (ROWS), several times faster
than by comparing times (RANGE).

DuckDB sums a frame through a segment tree whose nodes cover 16 and 256 rows, aligned to row numbers.
A grid is therefore made of whole blocks of 256 s: a second always has the same place in its block,
and the bits of a feature depend on the bars of its window, not on the dates and symbols that are
built in one run.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from typing import Final

from market.features.expression import (
    DAY_S,
    LIMIT,
    NEGLIGIBLE,
    WARM_S,
    Call,
    Column,
    Const,
    ExpressionError,
    Node,
    Window,
    needed,
    number,
    spans,
    text,
    walk,
)

#: Seconds in a block of the grid.
BLOCK_S: Final = 256

_NAME_LENGTH: Final = 40
_INFIX: Final = {"add": ("+", 1), "sub": ("-", 1), "mul": ("*", 2), "div": ("/", 2)}


#: The dbt model: SQL with Jinja, whose braces are doubled for `str.format`.
_MODEL: Final = """\
{{%- set own_columns = {own_columns} -%}}
{{%- set leader_columns = {leader_columns} -%}}
{{%- set features = {features} -%}}

{{%- set kept = "case when abs({{0}}) <= {limit:g} then {{0}} end" %}}

with dates as (

    select
        symbol,
        date,
        case symbol {cases} else '{default_leader}' end as leader,
        min(t_ns) // {block_s}000000000 as first_block,
        max(t_ns) // {block_s}000000000 as last_block
    from {source}
    group by symbol, date
    having bool_or(wanted)

),

grid as (

    -- Every second has a row, so a window of w rows is one of w seconds; whole blocks of {block_s} s
    -- keep the order of additions, and so the bits, apart from what else is built.
    select
        symbol,
        date,
        leader,
        unnest(range(first_block * {block_s}, (last_block + 1) * {block_s})) as t_s
    from dates

),

seconds as (

    select
        grid.*,
        own.t_ns,
        own.wanted,
        case when own.gap = 0 then own.t_ns end as own_ns,
        case when own.gap = 0 and leader.gap = 0 then own.t_ns end as lead_ns
    from grid
    left join {source} as own
        on
            grid.symbol = own.symbol
            and grid.date = own.date
            and grid.t_s * 1000000000 = own.t_ns
    left join {source} as leader
        on
            grid.leader = leader.symbol
            and own.date = leader.date
            and own.t_ns = leader.t_ns

),

coverage as (

    select
        *,
        {covered}
    from seconds
    window
    {frames}

),

bars as (

    -- A second that does not exist has no values.
    select
        coverage.* exclude (leader),
        cast(own.t_ns // 1000000000 % 86400 as double) as {day_s}
        {{%- for column in own_columns %}},
        {{{{ kept.format('own.' ~ column) }}}} as {{{{ column }}}}
        {{%- endfor %}}
        {{%- for column in leader_columns %}},
        {{{{ kept.format('leader.' ~ column) }}}} as lead_{{{{ column }}}}
        {{%- endfor %}}
    from coverage
    left join {source} as own
        on
            coverage.symbol = own.symbol
            and coverage.date = own.date
            and coverage.own_ns = own.t_ns
    left join {source} as leader
        on
            coverage.leader = leader.symbol
            and coverage.date = leader.date
            and coverage.lead_ns = leader.t_ns

),

ago as (

    -- Not even past values: windows must not see any.
    select
        *,
        {lags}
    from bars
    window by_second as (partition by symbol, date order by t_s)

),

terms as (

    select
        *,
        {terms}
    from ago

),

aggregates as (

    select
        *,
        {aggregates}
    from terms
    window
    {frames}

),

moments as (

    select
        *,
        {moments}
    from aggregates

),

finals as (

    select
        symbol,
        date,
        t_ns,
        wanted,
        {warm} as warm,
        {finals}
    from moments

)

select
    symbol,
    date,
    t_ns,
    warm
    {{%- for feature in features %}},
    cast({{{{ kept.format(feature) }}}} as double) as {{{{ feature }}}}
    {{%- endfor %}}
from finals
where wanted
"""


class Statement:
    """The SQL of named expressions.

    ``labels`` names row expressions that are terms; the others are named by their text.
    """

    def __init__(self, named: Mapping[str, Node], labels: Mapping[Node, str]) -> None:
        self.named = dict(named)
        self.labels = labels
        nodes = list(dict.fromkeys(one for node in named.values() for one in walk(node)))
        columns = [one for one in nodes if isinstance(one, Column)]
        now = dict.fromkeys(Column(one.name, one.leader) for one in columns)
        self.columns = [one for one in now if one.name != DAY_S and not one.leader]
        self.leader_columns = [one for one in now if one.leader]
        self.lags = [one for one in columns if one.ago]
        self.windows = [one for one in nodes if isinstance(one, Window)]
        series = dict.fromkeys(arg for window in self.windows for arg in window.args)
        # A term may use another, which the statement must define first.
        self.terms = sorted(
            (one for one in series if not isinstance(one, Column)), key=lambda one: len(walk(one))
        )
        self._term_names: dict[Node, str] = {one: self.name(one) for one in self.terms}
        self._aggregates = self._plan()
        taken = [*self._term_names.values(), *self._aggregates, *map(self.name, [*now, *self.lags])]
        taken += [self.name(one) for one in self.windows if self._parts(one)]
        for name in [*named, *taken]:
            if [*named, *taken].count(name) > 1:
                raise ExpressionError(f"{name}: two columns of the statement would have that name")

    # -- names -----------------------------------------------------------------------------------

    def name(self, node: Node) -> str:
        """The statement's column of a bar column, term or window."""
        match node:
            case Column(name, leader, ago):
                return ("lead_" if leader else "") + name + (f"_ago_{ago}" if ago else "")
            case Window(op, args, seconds):
                return "_".join([op, *map(self.name, args), str(seconds)])
        if node in self.labels:
            return self.labels[node]
        # Unlike texts can read alike as names; the digest keeps them apart.
        digest = hashlib.sha256(text(node).encode()).hexdigest()[:6]
        words = "_".join(re.findall(r"[a-z]\w*", text(node)))
        return f"{words[:_NAME_LENGTH]}_{digest}"

    # -- expressions -----------------------------------------------------------------------------

    def sql(self, node: Node, level: int = 0) -> str:
        """An expression, by name where it is a term; ``level`` is the precedence around it."""
        return self._term_names.get(node) or self._written(node, level)

    def _written(self, node: Node, level: int = 0) -> str:
        match node:
            case Const(value):
                return number(value)
            case Column():
                return self.name(node)
            case Window():
                return self.name(node)
            case Call(op, args) if op in _INFIX:
                sign, own = _INFIX[op]
                left = self.sql(args[0], own)
                if op == "div" and not isinstance(args[1], Const):
                    right = f"nullif({self.sql(args[1])}, 0)"
                else:
                    right = self.sql(args[1], own + 1)
                written = f"{left} {sign} {right}"
                return f"({written})" if own < level else written
            case Call(op, args):
                return self._function(op, args)

    def _function(self, op: str, args: tuple[Node, ...]) -> str:
        a, *rest = (self.sql(arg) for arg in args)
        match op:
            case "keep":
                return f"case when abs({a}) <= {LIMIT:g} then {a} end"
            case "neg":
                return f"-({a})"
            case "log":
                return f"ln(nullif(greatest({a}, 0), 0))"
            case "sqrt":
                return f"sqrt(case when {a} >= 0 then {a} end)"
            case "clip":
                low, high = rest
                return (
                    f"case when {a} < {low} then {low} when {a} > {high} then {high} else {a} end"
                )
            case "least" | "greatest":
                sign = "<=" if op == "least" else ">="
                return f"case when {a} {sign} {rest[0]} then {a} when {a} is not null then {rest[0]} end"
            case _:
                return f"{op}({a})"

    def _window(self, node: Window) -> str:
        """A window's value, computed from several aggregates."""
        part = self._parts(node)
        match node.op:
            case "std":
                return (
                    f"case when {part['var']} < {_floor(part['mean'])} "
                    f"then 0 else sqrt({part['var']}) end"
                )
            case "corr":
                a, b = part["var_a"], part["var_b"]
                return (
                    f"case when {a} >= {_floor(part['mean_a'])} and {b} >= {_floor(part['mean_b'])} "
                    f"then {part['cov']} / (sqrt({a}) * sqrt({b})) end"
                )
            case _:
                var = part["var_b"]
                return f"case when {var} >= {_floor(part['mean_b'])} then {part['cov']} / {var} end"

    # -- aggregates ------------------------------------------------------------------------------

    def _parts(self, node: Window) -> dict[str, str]:
        """Role -> column, for the windows that need several aggregates."""
        first, *others = map(self.name, node.args)
        w = node.seconds
        if node.op == "std":
            return {"var": f"var_{first}_{w}", "mean": f"mean_{first}_{w}"}
        if not others:
            return {}
        second = others[0]
        with_b = "" if _implies(*node.args) else f"_with_{second}"
        with_a = "" if _implies(*reversed(node.args)) else f"_with_{first}"
        return {
            "cov": f"cov_{first}_{second}_{w}",
            "var_a": f"var_{first}{with_b}_{w}",
            "mean_a": f"mean_{first}{with_b}_{w}",
            "var_b": f"var_{second}{with_a}_{w}",
            "mean_b": f"mean_{second}{with_a}_{w}",
        }

    def _plan(self) -> dict[str, str]:
        """Column -> aggregate, each once."""
        aggregates: dict[str, str] = {}

        def add(name: str, aggregate: str) -> None:
            if aggregates.setdefault(name, aggregate) != aggregate:
                raise ExpressionError(f"{name}: two aggregates of the statement have that name")

        for node in self.windows:
            part = self._parts(node)
            over = f"over last_{node.seconds}"
            a, *others = map(self.name, node.args)
            match node.op:
                case "mean":
                    add(self.name(node), f"avg({a}) {over}")
                case "std":
                    add(part["var"], f"var_pop({a}) {over}")
                    add(part["mean"], f"avg({a}) {over}")
                case "corr" | "slope":
                    b = others[0]
                    add(part["cov"], f"covar_pop({a}, {b}) {over}")
                    only = "" if _implies(*reversed(node.args)) else _where(a)
                    add(part["var_b"], f"var_pop({b}) {only}{over}")
                    add(part["mean_b"], f"avg({b}) {only}{over}")
                    if node.op == "corr":
                        only = "" if _implies(*node.args) else _where(b)
                        add(part["var_a"], f"var_pop({a}) {only}{over}")
                        add(part["mean_a"], f"avg({a}) {only}{over}")
                case op:
                    add(self.name(node), f"{op}({a}) {over}")
        return aggregates

    # -- stages ----------------------------------------------------------------------------------

    def render(self, source: str, leaders: Mapping[str, str], default_leader: str) -> str:
        """The whole statement, as a dbt model over ``source``.

        ``source`` has symbol, date, t_ns, wanted and the bar columns; ``leaders`` says whose bars
        lead a symbol. One row comes out per wanted bar: symbol, date, t_ns, warm, features.
        """
        own = sorted({column.name for column in self.columns})
        lead = sorted(column.name for column in self.leader_columns)
        conditions = {name: spans(node) for name, node in self.named.items()}
        warm = [(seconds, False) for seconds in WARM_S]
        tested = sorted({span for found in conditions.values() for span in found} | set(warm))
        cases = " ".join(f"when '{a}' then '{b}'" for a, b in sorted(leaders.items()))
        lags = [
            f"case when own_ns is not null then lag({self.name(Column(one.name, one.leader))}, "
            f"{one.ago}) over by_second end as {self.name(one)}"
            for one in sorted(self.lags, key=self.name)
        ]
        covered = [
            f"own_ns is not null and count({'lead' if led else 'own'}_ns) over last_{w} >= {needed(w)}"
            f" as {_covered(w, led)}"
            for w, led in tested
        ]
        terms = [f"{self._written(node)} as {name}" for node, name in self._term_names.items()]
        aggregates = [f"{sql} as {name}" for name, sql in self._aggregates.items()]
        moments = [
            f"{self._window(node)} as {self.name(node)}"
            for node in self.windows
            if self._parts(node)
        ]
        finals = []
        for name, node in self.named.items():
            where = " and ".join(_covered(*span) for span in conditions[name])
            value = f"case when {where} then {self.sql(node)} end" if where else self.sql(node)
            finals.append(f"{value} as {name}")
        return _MODEL.format(
            source=source,
            cases=cases,
            default_leader=default_leader,
            own_columns=_listed(own),
            leader_columns=_listed(lead),
            features=_listed(list(self.named)),
            lags=_joined(lags),
            terms=_joined(terms),
            aggregates=_joined(aggregates),
            frames=",\n    ".join(
                f"last_{w} as (\n        partition by symbol, date order by t_s\n"
                f"        rows between {w - 1} preceding and current row\n    )"
                for w in sorted({w for w, _ in tested})
            ),
            covered=_joined(covered),
            warm=" and ".join(_covered(*span) for span in warm),
            moments=_joined(moments),
            finals=_joined(finals),
            limit=LIMIT,
            block_s=BLOCK_S,
            day_s=DAY_S,
        )


def _covered(seconds: int, led: bool) -> str:
    return f"{'lead_' if led else ''}covered_{seconds}"


def _implies(a: Node, b: Node) -> bool:
    """Whether b is not NULL wherever a is not: every operation is NULL when a part of it is."""
    return b in walk(a)


def _where(other: str) -> str:
    return f"filter (where {other} is not null) "


def _floor(mean: str) -> str:
    return f"{NEGLIGIBLE:g} * ({mean} * {mean} + 1)"


def _joined(parts: list[str]) -> str:
    return ",\n        ".join(parts)


def _listed(names: list[str]) -> str:
    """A Jinja list over lines of at most 100 characters."""
    lines, line = [], "   "
    for name in names:
        item = f" '{name}',"
        if len(line) + len(item) > 100:
            lines.append(line)
            line = "   "
        line += item
    return "[\n" + "\n".join([*lines, line.removesuffix(",")]) + "\n]"
