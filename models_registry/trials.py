"""The trial registry: every look at a lake's data, beside its MLflow store.

A look is a training attempt, a tuning trial inside one (each of a horizon and training span: `fold.Tuned`),
or a person's research evaluation (`orchestration.research`). The gate divides its error by the number of procedures (settings and features, whatever the
code and the data) and deflates Sharpe ratios by the number of looks (`models_registry.statistics`).
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

import msgspec
import numpy as np

from market.settings import Settings
from models_registry.dataset import Features
from models_registry.gate import Context
from models_registry.manifest import sha256
from models_registry.store import asked

if TYPE_CHECKING:
    import sqlalchemy as sa

#: Settings that change neither what is learnt nor how it is judged.
_NEUTRAL: Final = ("threads",)

#: Days from which results enter variances and correlations.
_MIN_DAYS: Final = 5

Kind = Literal["training", "research"]

#: Net result (bps) by day number.
DailyNet = Mapping[int, float]


def procedure(settings: Settings, features: Features) -> str:
    """Hash of the settings and features that a procedure is made of (16 hex digits)."""
    model = {k: v for k, v in msgspec.to_builtins(settings.model).items() if k not in _NEUTRAL}
    parts = (repr(sorted(model.items())), repr(settings.market.symbols), features.hash)
    return sha256("\n".join((*parts, *features.names)).encode())[:16]


def record(url: str, kind: Kind, of: str, identity: str, looks: int, daily: DailyNet) -> None:
    """Count ``looks`` of one attempt of the procedure ``of``.

    ``url`` is of the lake's database of looks (`state.database`), ``daily`` the attempt's out-of-sample results.
    """
    text = msgspec.json.encode(dict(daily)).decode()
    row = {"at_ns": time.time_ns(), "kind": kind, "procedure": of, "identity": identity}
    with _open(url) as (db, table):
        db.execute(table.insert(), row | {"looks": looks, "daily": text})


def context(url: str, of: str) -> Context:
    """What the gate must know of the looks up to this one of procedure ``of``."""
    with _open(url) as (db, table):
        columns = (table.c.procedure, table.c.looks, table.c.daily)
        query = table.select().with_only_columns(*columns).order_by(table.c.id)
        rows: list[Any] = list(db.execute(query))
    # The latest of each procedure.
    daily = {name: msgspec.json.decode(text, type=dict[int, float]) for name, _, text in rows}
    series = [days for days in daily.values() if len(days) >= _MIN_DAYS]
    results = [np.array(list(days.values())) for days in series]
    sharpes = [float(x.mean() / x.std()) for x in results if x.std() > 0]
    return Context(
        procedures=len({of, *daily}),
        trials=1 + sum(count for _, count, _ in rows),
        correlation=_mean_correlation(series),
        sharpe_variance=float(np.var(sharpes, ddof=1)) if len(sharpes) > 1 else None,
        others=tuple(days for name, days in daily.items() if name != of and days),
    )


def _mean_correlation(series: Sequence[DailyNet]) -> float:
    """Mean correlation of the pairs over the days that they share; 0 without a pair."""
    found = []
    for i, one in enumerate(series):
        for other in series[:i]:
            shared = sorted(one.keys() & other.keys())
            pair = np.array([[days[day] for day in shared] for days in (one, other)])
            if len(shared) >= _MIN_DAYS and (pair.std(axis=1) > 0).all():
                found.append(float(np.corrcoef(pair)[0, 1]))
    return float(np.mean(found)) if found else 0.0


def schema() -> sa.MetaData:
    """The one table of the registry."""
    import sqlalchemy as sa

    found, whole = sa.MetaData(), sa.BigInteger().with_variant(sa.INTEGER(), "sqlite")
    texts = ("kind", "procedure", "identity")
    sa.Table(
        "looks",
        found,
        sa.Column("id", whole, primary_key=True),
        sa.Column("at_ns", whole, nullable=False),
        *(sa.Column(name, sa.Text, nullable=False) for name in texts),
        sa.Column("looks", whole, nullable=False),
        sa.Column("daily", sa.Text, nullable=False),
    )
    return found


@contextmanager
def _open(url: str) -> Iterator[tuple[sa.Connection, sa.Table]]:
    import sqlalchemy as sa

    file, made = sa.make_url(url).database, schema()
    if url.startswith("sqlite"):
        Path(str(file)).parent.mkdir(parents=True, exist_ok=True)
    engine = sa.create_engine(url)
    try:
        with (
            asked(url, "the looks at these data", sa.exc.SQLAlchemyError),
            engine.begin() as connection,
        ):
            made.create_all(connection)
            yield connection, made.tables["looks"]
    finally:
        engine.dispose()
