"""The trial registry: every look at a lake's data, beside its MLflow store.

A look is a training attempt, a tuning trial inside one (each of a horizon and training span: `fold.Tuned`),
or a person's research evaluation (`orchestration.research`). The gate shares its error among the procedures (settings and features, whatever the
code and the data) and deflates Sharpe ratios by the number of looks (`models_registry.statistics`).
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Final, Literal

import msgspec
import numpy as np

from market.settings import Settings
from models_registry.dataset import Features
from models_registry.evaluation import Context
from models_registry.manifest import sha256

FILE: Final = "trials.db"

_SCHEMA: Final = """
create table if not exists looks (
    id integer primary key,
    at_ns integer not null,
    kind text not null,
    procedure text not null,
    identity text not null,
    looks integer not null,
    daily text not null
)"""

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


def record(home: Path, kind: Kind, of: str, identity: str, looks: int, daily: DailyNet) -> None:
    """Count ``looks`` of one attempt of the procedure ``of``.

    ``home`` is the folder of the lake's MLflow store, ``daily`` the attempt's out-of-sample results.
    """
    text = msgspec.json.encode(dict(daily)).decode()
    with _open(home) as db:
        db.execute(
            "insert into looks (at_ns, kind, procedure, identity, looks, daily) values (?,?,?,?,?,?)",
            (time.time_ns(), kind, of, identity, looks, text),
        )


def context(home: Path, of: str) -> Context:
    """What the gate must know of the looks up to this one of procedure ``of``."""
    with _open(home) as db:
        rows = db.execute("select procedure, looks, daily from looks order by id").fetchall()
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


@contextmanager
def _open(home: Path) -> Iterator[sqlite3.Connection]:
    home.mkdir(parents=True, exist_ok=True)
    with closing(sqlite3.connect(home / FILE, timeout=60.0)) as db, db:
        db.execute(_SCHEMA)
        yield db
