"""The door for research, from a notebook or a script: one's own columns, models, signals and algorithms.

    lab = research.Lab("lake")
    bars = lab.table("bars", "2026-03-02", "2026-03-03", ["BTCUSDT"], kind="polars")
    column = lab.column("pressure", "avg(ofi_1) over (order by t_ns rows 29 preceding)")
    lab.feature(column)                               # its IC, stability and probes
    look = lab.judge(Ridge(), ["ofi_60", column])     # by the pipeline's folds, baselines, statistics, probes
    lab.backtest(look.expectations, "ridge")          # over events, beside the champion
    lab.keep(look)                                    # a run in MLflow that no alias and no gate reads

`Lab.feature`, `Lab.judge` and `Lab.backtest` are looks at the lake: each is counted, and lowers every deflated
Sharpe ratio from then on, those of training included (`models_registry.trials`).
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from math import isfinite
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final, Literal

import msgspec
import numpy as np
import pyarrow as pa

from assets.contracts import columns as described
from assets.modelling import git_sha
from execution.algorithms import ALGORITHMS
from execution.algorithms.working import Working
from execution.study import StudyReport, study
from live.history import SymbolHistory, book_states
from market.events import Events
from market.features import feature_hash, feature_names
from market.lake import Lake
from market.settings import Settings, load
from market.store import holds_lake
from models_registry import baselines, card, gate, probes, training, trials
from models_registry.card import About
from models_registry.dataset import TABLE, Features, LakeSource, fingerprint
from models_registry.ensemble import SCALE_FEATURE
from models_registry.evaluation import Evaluation, metrics, rank_product
from models_registry.fold import Fits, Trainer
from models_registry.manifest import load_champion, sha256
from models_registry.own import (
    Column,
    Label,
    OwnSource,
    OwnTrainer,
    ResearchError,
    combinatorial,
    computed,
    queried,
)
from models_registry.pictures import pictures
from models_registry.probes import Probe
from models_registry.registry import CARD_FILE
from models_registry.state import database
from models_registry.statistics import minimum_track_record, moments, probabilistic_sharpe
from models_registry.store import registry_client
from models_registry.validation import effective_count, lower_bound
from orchestration.backtest.command import backtest
from orchestration.backtest.report_tables import report_text
from orchestration.backtest.run import signal_model
from orchestration.backtest.span import Span, instruments_of_span, seconds_of, span_of

Kind = Literal["arrow", "polars", "pandas"]

#: Columns of the training set that are no features; its labels are named y_SECONDS.
_KEYS: Final = ("symbol", "date", "t_ns", "mid_close", "spread_bps")
#: Units by the ending of a column's name, which is the project's convention (`market.units`).
_UNITS: Final = (
    ("_ns", "ns"),
    ("_bps", "bps"),
    ("_ticks", "ticks"),
    ("_lots", "lots"),
    ("_s", "s"),
)


class Look(msgspec.Struct, frozen=True, kw_only=True):
    """One look at a lake, of which it was the ``number``-th: figures, probes, and a text in Markdown.

    ``evaluations`` are of the walk-forward, or of each path; ``expectations`` (symbol, t_ns, expected_bps)
    what a model expected out of sample on the first of them.
    """

    kind: str
    name: str
    number: int
    figures: Mapping[str, float]
    text: str
    probes: tuple[Probe, ...] = ()
    evaluations: tuple[Evaluation, ...] = ()
    expectations: pa.Table | None = None

    def __str__(self) -> str:
        return card.fixed_width(self.text)

    def _repr_markdown_(self) -> str:
        return self.text


class Lab:
    """A lake opened for research: by its folder (with the l2.toml in it), by settings, or by those in force.

    ResearchError where there is none.
    """

    def __init__(self, lake: str | Path | Settings | None = None) -> None:
        if isinstance(lake, Settings) or lake is None:
            found = lake or load()
        else:
            file = Path(lake) / "l2.toml"
            found = load(file if file.exists() else None, overrides=[f"root={lake}"])
        if not holds_lake(found.root):
            raise ResearchError(
                f"{found.root}: no lake; name the folder of one, or make one (make demo)"
            )
        self.lake = Lake(found.root)
        self.settings = msgspec.structs.replace(found, source=self.lake.source)

    # -- tables ------------------------------------------------------------------------------------

    def units(self, table: str) -> dict[str, str]:
        """Unit or meaning of each column of a table. ResearchError where there is none of that name."""
        if table not in (there := self.lake.tables()) or not (held := self.lake.partitions(table)):
            raise ResearchError(f"{table}: no such table; there are {', '.join(there)}")
        known = {"symbol": "instrument"}
        for part in ("bars", "features", "labels"):
            known.update(described(part, self.settings.model.horizons_s))
        names = (*self.lake.as_written(table, *held[-1]).schema_arrow.names, "symbol")
        ends = {name: [unit for end, unit in _UNITS if name.endswith(end)] for name in names}
        return {name: known.get(name) or (*ends[name], "")[0] for name in names}

    def table(
        self, name: str, first: str = "", last: str = "", symbols: Sequence[str] = (),
        columns: Sequence[str] = (), kind: Kind = "arrow",
    ) -> Any:  # fmt: skip
        """Rows of a table over UTC dates, both included; by default all dates, symbols and columns.

        Arrow fields carry the metadata ``unit``, a pandas frame ``attrs["units"]``; Polars keeps neither.
        """
        units, held = self.units(name), self.lake.partitions(name)
        if unknown := [column for column in columns if column not in units]:
            raise ResearchError(f"{name}: no column {unknown[0]!r}; it has {', '.join(units)}")
        chosen = symbols or tuple(dict.fromkeys(symbol for symbol, _ in held))
        days = [day for symbol, day in held if symbol in chosen]
        if not days:
            raise ResearchError(f"{name}: nothing of {', '.join(chosen)}")
        wanted = [
            *(key for key in ("t_ns",) if columns and key in units and key not in columns),
            *columns,
        ]
        wanted = [column for column in wanted if column != "symbol"]
        try:
            found = self.lake.load(
                name, chosen, first or min(days), last or max(days), wanted or None
            )
        except ValueError as error:
            raise ResearchError(f"{first} to {last}: {error}; a date is like 2026-03-02") from error
        fields = [field.with_metadata({"unit": units[field.name]}) for field in found.schema]
        return _as(found.cast(pa.schema(fields)), kind, units)

    def sql(self, query: str, kind: Kind = "arrow") -> Any:
        """The result of a query; the lake's tables are views with ``symbol`` and ``date``."""
        with self.lake.connect() as connection:
            return _as(queried(connection, query, query), kind, {})

    def column(
        self, name: str, made: str | Callable[..., Any], table: str = "bars", first: str = "",
        last: str = "",
    ) -> Column:  # fmt: skip
        """A column of one's own over the seconds of a table, computed symbol by symbol; it is no look yet.

        ``made`` is an SQL expression over the table's columns, or a function whose parameters name them and
        get pandas Series by time. It gives one value for each row.
        """
        given = self.units(table)
        if isinstance(made, str):
            needed = [word for word in dict.fromkeys(re.findall(r"\w+", made)) if word in given]
        else:
            needed = list(inspect.signature(made).parameters)
        values, found = {}, []
        for symbol in self.settings.market.symbols:
            rows = self.table(table, first, last, [symbol], ["t_ns", *needed]).sort_by("t_ns")
            own, probe = computed(name, made, rows)
            values[symbol] = rows["t_ns"].to_numpy(), own
            found.append(probe)
        worst = max(found, key=lambda probe: probe.value)
        return Column(name=name, values=values, probe=worst)

    # -- looks -------------------------------------------------------------------------------------

    def feature(
        self, column: Column | str, horizon_s: int = 0, first: str = "", last: str = ""
    ) -> Look:
        """A column, or a feature by its name, against the label of one horizon (by default the primary).

        Figures: the rank IC within dates and symbols, its two-sided 95 % bounds (stationary bootstrap over
        time), its stability over dates; the leakage probes of a column.
        """
        name, model = column if isinstance(column, str) else column.name, self.settings.model
        horizon_s = horizon_s or model.primary_s
        if horizon_s not in model.horizons_s:
            raise ResearchError(f"{horizon_s} s: there are labels of {model.horizons_s} s")
        source, features = self._source([column], first, last)
        seen, by_day = [], {}
        for day in source.dates():
            rows = source.read([day], [name])
            label = rows.labels_bps[:, model.horizons_s.index(horizon_s)]
            product = rank_product(rows.symbol, rows.features[:, 0].astype(np.float64), label)
            seen.append((rows.t_ns, product))
            if not np.isnan(product).all():
                by_day[day] = float(np.nanmean(product))
        if not by_day:
            raise ResearchError(
                f"{name}: no value at a second of the training set that has a label"
            )
        t_ns, product = (np.concatenate(parts) for parts in zip(*seen, strict=True))
        known, ics = ~np.isnan(product), np.array(list(by_day.values()))
        ic = float(product[known].mean())
        low, high = (
            sign * lower_bound(
                t_ns, sign * product, known.astype(np.float64), block_s=model.bootstrap_block_s,
                samples=model.bootstrap_samples, seed=model.seed, confidence=0.975,
            )
            for sign in (1.0, -1.0)
        )  # fmt: skip
        found = probes.of_data(source, [name], horizon_s)
        found += (column.probe,) if isinstance(column, Column) else ()
        figures = {
            "ic": ic, "ic_low": low, "ic_high": high, "n_eff": effective_count(t_ns[known], horizon_s),
            "coverage": float(known.mean()), "days": float(len(ics)),
            "days_of_its_sign": float(np.mean(ics * ic > 0)), "day_deviation": float(ics.std()),
        }  # fmt: skip
        number = self._record(self._procedure("feature", f"{name} {horizon_s}", features), 1, {})
        text = (
            f"# {name} at {horizon_s} s: rank IC {ic:.4f} ({low:.4f} to {high:.4f})\n\n{figures['n_eff']:,.0f} "
            f"independent labels on {known.mean():.1%} of the seconds; {figures['days_of_its_sign']:.0%} of "
            f"{len(ics)} dates have its sign; look {number} at this lake\n\n"
            + _rows(("date", "rank IC"), [(day, f"{value:.4f}") for day, value in by_day.items()])
        )
        text += _probe_rows(found)
        return Look(
            kind="feature", name=name, number=number, figures=figures, text=text, probes=found
        )

    def judge(
        self, model: Any = None, features: Sequence[str | Column] = (), name: str = "",
        folds: Literal["walk_forward", "combinatorial"] = "walk_forward", first: str = "",
        last: str = "", groups: int = 6, test_groups: int = 2, label: Label = "return",
    ) -> Look:  # fmt: skip
        """A model with scikit-learn's ``fit`` and ``predict`` (`models_registry.own.OwnTrainer`), or without
        one the pipeline's ensemble, on some features and columns (by default all features). One's own may
        learn another ``label``.

        By the folds of training, with its baselines and the champion, or on every path of combinatorial
        purged cross-validation with so many ``groups``.
        """
        settings, learnt = self.settings, "" if label == "return" else f" {label}"
        name = name or ("ensemble" if model is None else type(model).__name__)
        if model is None and learnt:
            raise ResearchError(f"label {label!r}: the ensemble learns returns; give a model")
        source, chosen = self._source(features, first, last)
        fits: Fits = Trainer if model is None else partial(OwnTrainer, own=model, name=name)
        found = probes.of_data(source, chosen.names, settings.model.primary_s)
        found += tuple(column.probe for column in features if isinstance(column, Column))
        source = source.learning(label, settings.model)
        found += probes.of_pipeline(source, settings, chosen, fits)
        procedure = self._procedure(f"model {folds}{learnt}", name, chosen)
        context = msgspec.structs.replace(
            trials.context(database(settings, "looks"), procedure),
            rows=tuple(gate.probe_row(probe) for probe in found),
        )
        evaluate = partial(training.evaluate, source, settings, chosen, context=context, fits=fits)
        if folds == "combinatorial":
            paths = combinatorial(source, settings.model, groups, test_groups)
            evaluations = tuple(evaluate(folds=path) for path in paths)
        else:
            champion = load_champion(settings.root, settings.model_name)
            made = evaluate(champion=(champion[0].version, champion[1]) if champion else None)
            whole, every = self._source((), first, last)
            judged = baselines.judge(whole, settings, every, None) if made.results else ()
            evaluations = (msgspec.structs.replace(made, baselines=judged),)
        shared = sorted(set.intersection(*(set(one.daily) for one in evaluations)))
        daily = {day: float(np.mean([one.daily[day] for one in evaluations])) for day in shared}
        looks = 1 + sum(one.looks - 1 for one in evaluations)
        number = self._record(procedure, looks, daily)
        each = [metrics(one) for one in evaluations]
        known = moments(np.array(list(daily.values())))
        figures = {key: float(np.mean([one[key] for one in each if key in one])) for key in each[0]}
        figures |= {"psr": probabilistic_sharpe(known), "min_days": minimum_track_record(known)}
        pooled = evaluations[0].pooled
        expected = None
        if pooled is not None:
            names = np.array(settings.market.symbols)[pooled.rows.symbol]
            expected = pa.table(
                {"symbol": names, "t_ns": pooled.rows.t_ns, "expected_bps": pooled.expected_bps}
            )
        return Look(
            kind=f"model {folds}", name=name, number=number, figures=figures, probes=found,
            text=self._text(f"{name}, look {number} at this lake", evaluations, found)
            + f"\nPSR {figures['psr']:.3f} of {len(daily)} daily results. Research promotes nothing.\n",
            evaluations=evaluations, expectations=expected,
        )  # fmt: skip

    def backtest(
        self, signal: Any, name: str, first: str = "", last: str = "",
        algorithm: str | type[Working] = "", **options: Any,
    ) -> Look:  # fmt: skip
        """A signal over the lake's events, traded as a model's expectations are, beside the champion if any.

        ``signal`` is a table (Arrow, Polars or pandas) of symbol, t_ns and expected_bps over the primary
        horizon, or None for the champion itself, to try an ``algorithm``. ``options`` are those of
        `orchestration.backtest.command.backtest`.
        """
        settings = self.settings
        model = "" if signal is None else signal_model(settings, signal, name)
        champion = load_champion(settings.root, settings.model_name)
        given: dict[str, Any] = {"against": "champion" if champion and signal is not None else None}
        given |= {
            "bounded": False,
            "workers": 1,
            "first": first or None,
            "last": last or None,
            **options,
        }
        own = {algorithm.__name__: algorithm} if isinstance(algorithm, type) else {}
        if algorithm:
            chosen: Any = next(iter(own), algorithm)
            execution = msgspec.structs.replace(settings.execution, algorithm=chosen)
            settings = msgspec.structs.replace(settings, execution=execution)
        with _registered(own):
            result = backtest(settings, model=model, **given)
        procedure = self._procedure(
            "backtest", f"{name} {settings.execution.algorithm}", Features.of([])
        )
        number = self._record(procedure, 1, {})
        figures = {
            f"{row}.{key}": float(value)
            for row, values in result["rows"].items()
            for key, value in values.items()
            if isinstance(value, int | float)
        }
        text = (
            f"# Backtest of {name}: look {number} at this lake\n\n```\n{report_text(result)}\n```\n"
        )
        return Look(kind="backtest", name=name, number=number, figures=figures, text=text)

    def study(
        self, own: Mapping[str, type[Working]], beside: Sequence[str] = ("market", "passive"),
        first: str = "", last: str = "", symbols: Sequence[str] = (), **options: Any,
    ) -> StudyReport:  # fmt: skip
        """Algorithms of one's own, by name, on the same parents as ours ``beside`` them, over the lake's events.

        ``options`` are those of `execution.study.study`. It measures costs alone, and is no look.
        """
        symbols = symbols or self.settings.market.symbols
        span = span_of(self.lake, symbols, first or None, last or None)
        instruments, _ = instruments_of_span(self.lake, symbols, span)
        # The span may begin anywhere, and a study needs the book from its first row on.
        known = book_states(self.lake, instruments, span.first_ns) or {}
        feeds = {symbol: self._events(symbol, span, known.get(symbol)) for symbol in symbols}
        with _registered(own):
            found = study(feeds, instruments, self.settings, algorithms=(*beside, *own), **options)
        if not found.rows:
            raise ResearchError(
                "study: no parent came to its end; ask for a longer span, or from midnight"
            )
        return found

    def keep(self, look: Look, note: str = "") -> str:
        """Keep a look as a run of the experiment ``MODEL-research`` in the lake's MLflow; the run's id.

        It registers no model; the gate, promotions and training read another experiment.
        """
        import mlflow

        tags = {"research": look.kind, "look": str(look.number), "git_sha": git_sha(), "note": note}
        with (
            registry_client(self.settings, f"{self.settings.model_name}-research"),
            mlflow.start_run(run_name=look.name, tags=tags) as run,
            TemporaryDirectory() as scratch,
        ):
            mlflow.log_metrics(
                {key: value for key, value in look.figures.items() if isfinite(value)}
            )
            mlflow.log_text(look.text, CARD_FILE)
            for file, image in (
                pictures(look.evaluations[0], None).items() if look.evaluations else ()
            ):
                (Path(scratch) / file).write_bytes(image)
                mlflow.log_artifact(f"{scratch}/{file}", "pictures")
            return str(run.info.run_id)

    # -- parts -------------------------------------------------------------------------------------

    def _events(self, symbol: str, span: Span, known: SymbolHistory | None) -> Iterator[Events]:
        for _, rows in seconds_of(self.lake, symbol, span):
            book = known and known.book.snapshot_rows(int(rows["receive_ns"][0]))
            yield rows if book is None else np.concatenate([book, rows])
            known = None

    def _source(
        self, chosen: Sequence[str | Column], first: str, last: str
    ) -> tuple[OwnSource, Features]:
        """The training set on these dates with these features, and that of the scale, which is always one."""
        symbols = self.settings.market.symbols
        of_lake = LakeSource(self.lake, symbols, self.settings.model.horizons_s)
        days = [day for day in of_lake.dates() if (first or day) <= day <= (last or day)]
        if not days:
            between = f"from {first or 'the first'} to {last or 'the last'} date"
            raise ResearchError(f"training_set: nothing {between}; make it with l2 pipeline")
        held = [n for n in self.units(TABLE) if n not in _KEYS and not n.startswith("y_")]
        own = {column.name: column for column in chosen if isinstance(column, Column)}
        names = [column if isinstance(column, str) else column.name for column in chosen] or held
        if unknown := [name for name in names if name not in held and name not in own]:
            raise ResearchError(
                f"{unknown[0]}: no feature of the training set; make it with Lab.column"
            )
        defined = feature_hash() if set(held) <= set(feature_names()) else Features.of(held).hash
        features = Features(names=tuple(dict.fromkeys((*names, SCALE_FEATURE))), hash=defined)
        return OwnSource(of_lake, days, symbols, own), features

    def _procedure(self, kind: str, name: str, features: Features) -> str:
        of = trials.procedure(self.settings, features)
        return sha256(f"research {kind} {name} {of}".encode())[:16]

    def _record(self, procedure: str, looks: int, daily: Mapping[int, float]) -> int:
        """Count the looks; how many there are at the lake now."""
        home = database(self.settings, "looks")
        trials.record(home, "research", procedure, procedure, looks, daily)
        return trials.context(home, procedure).trials - 1

    def _text(self, title: str, evaluations: Sequence[Evaluation], found: Sequence[Probe]) -> str:
        one, settings = evaluations[0], self.settings
        if len(evaluations) > 1:
            head = (
                "path",
                "rank IC",
                "≥",
                *(f"net bps at {r.row} (≥, trades)" for r in one.results),
            )
            cells = [
                (f"{n}", f"{e.ic.rank:.4f}", f"{e.ic_lower:.4f}",
                 *(f"{r.net_bps:.3f} ({r.net_lower_bps:.3f}, {r.trades:,})" for r in e.results))
                for n, e in enumerate(evaluations, 1)
            ]  # fmt: skip
            return f"# {title}\n\n{_rows(head, cells)}{_probe_rows(found)}"
        about = About(
            name=title, source=self.lake.source, git_sha=git_sha(), fee_row=settings.model.fee_row,
            fingerprint=fingerprint(self.lake, settings.market.symbols, one.dates),
            block_s=settings.model.bootstrap_block_s,
        )  # fmt: skip
        return card.text(one, None, about)


def _as(found: pa.Table, kind: Kind, units: Mapping[str, str]) -> Any:
    if kind == "arrow":
        return found
    if kind == "polars":
        import polars

        return polars.from_arrow(found)
    if kind != "pandas":
        raise ResearchError(f"kind {kind!r}: expected arrow, polars or pandas")
    frame = found.to_pandas()
    frame.attrs["units"] = {name: units.get(name, "") for name in found.column_names}
    return frame


def _rows(head: Sequence[str], cells: Sequence[Sequence[str]]) -> str:
    lines = (head, ["---"] * len(head), *cells)
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def _probe_rows(found: Sequence[Probe]) -> str:
    cells = [(probe.name, "pass" if probe.passed else "FAIL", probe.text) for probe in found]
    return "\n" + _rows(("probe", "", ""), cells)


@contextmanager
def _registered(own: Mapping[str, type[Working]]) -> Iterator[None]:
    """More algorithms for as long as the block runs, in this process."""
    if taken := [name for name in own if name in ALGORITHMS]:
        raise ResearchError(f"algorithm {taken[0]}: there is one of that name; give it another")
    ALGORITHMS.update(own)
    try:
        yield
    finally:
        for name in own:
            del ALGORITHMS[name]
