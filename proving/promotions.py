"""Promotions while two resolvers follow and two readers load, after two trainings of one identity at once.

    python -m proving.promotions --seeds 1-3 [--promotions 150] [--limit 900]

Each seed has a lake of its own, of generated rows. Two processes train on it at the same time, which must leave
one version. Another training makes a second one, and the two are promoted in turn at random pauses, while two
processes follow the alias as the resolver does, and two load the champion as the worker does. None of the four
may ever fail, and at the end registry, pointer and bundle agree. Whatever hangs ends at the limit (s a seed).
"""

from __future__ import annotations

import argparse
import math
import multiprocessing
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np
import pyarrow as pa

from market.console import say, seeds
from market.errors import ModelError
from market.features import feature_names
from market.lake import Lake
from market.settings import Model, Settings
from models_registry import promotion, registry, resolver, store
from models_registry.dataset import Features
from models_registry.manifest import load_champion
from proving.bench.models import FIRST_DAY, HORIZONS, GeneratedSource

_DAYS: Final = 4
_SECONDS: Final = 3600
_FEATURES: Final = Features.of((*feature_names()[:5], "realised_vol_300"))
_FOLLOWERS: Final = 4

_PROCESSES: Final = multiprocessing.get_context("spawn")


def _settings(root: str) -> Settings:
    small = {
        "trials": 0, "select": 0, "min_train_days": 2, "min_test_blocks": 1, "train_stride_s": 5,
        "bootstrap_samples": 100, "decay_arl0_days": 1.0, "threads": 1,
    }  # fmt: skip
    return Settings(root=root, source="synthetic", model=msgspec.convert(small, Model))


def _write(root: str, seed: int) -> None:
    """The lake of a seed: its own days of the generated market."""
    lake, symbols = Lake(root, "synthetic"), _settings(root).market.symbols
    source = GeneratedSource(_DAYS, _SECONDS, FIRST_DAY + seed * _DAYS)
    for date in source.dates():
        rows = source.read([date], _FEATURES.names)
        for number, symbol in enumerate(symbols):
            own = rows.where(rows.symbol == number)
            columns = {"t_ns": own.t_ns, "mid_close": own.mid, "spread_bps": own.spread_bps}
            columns |= dict(zip(_FEATURES.names, own.features.T, strict=True))
            columns |= {
                f"y_{horizon}": pa.array(label / 1e4, from_pandas=True)
                for horizon, label in zip(HORIZONS, own.labels_bps.T, strict=True)
            }
            table = pa.table({n: _contiguous(c) for n, c in columns.items()})
            lake.write("training_set", symbol, date, table, inputs=str(seed))


def _contiguous(column: Any) -> Any:
    return np.ascontiguousarray(column) if isinstance(column, np.ndarray) else column


# -- in processes of their own ---------------------------------------------------------------------


def _train(root: str, code: str) -> tuple[str | None, bool]:
    """A training; its version, and whether that was there before."""
    lake, settings = Lake(root, "synthetic"), _settings(root)
    made = registry.train_and_register(lake, settings, code, features=_FEATURES)
    return made.version, made.reused


def _resolve(root: str, end: float) -> tuple[int, dict[str, int]]:
    settings = _settings(root)
    return _repeat(root, end, lambda: resolver.resolve(settings, _FEATURES))


def _read(root: str, end: float) -> tuple[int, dict[str, int]]:
    name = _settings(root).model_name
    return _repeat(root, end, lambda: load_champion(root, name))


def _repeat(root: str, end: float, once: Callable[[], object]) -> tuple[int, dict[str, int]]:
    """Do it until the file `stop` is there, or until ``end``; how often it was done, and errors by text."""
    done, failed = 0, Counter[str]()
    while not (Path(root) / "stop").exists() and time.time() < end:
        try:
            found = once()
        except (ModelError, OSError) as error:
            failed[str(error)] += 1
        else:
            failed["no champion"] += found is None
        done += 1
        if done == 1:
            (Path(root) / f"begun-{multiprocessing.current_process().pid}").touch()
    return done, {text: count for text, count in failed.items() if count}


# -- the proof -------------------------------------------------------------------------------------


def proved(root: str, seed: int, promotions: int, limit_s: float) -> dict[str, Any]:
    """What was found of one seed in a new folder; ``failed`` has reasons."""
    began, dice, failed = time.monotonic(), random.Random(seed), list[str]()
    end, settings = time.time() + limit_s, _settings(root)
    _write(root, seed)
    with _PROCESSES.Pool(_FOLLOWERS) as pool:
        twins = [pool.apply_async(_train, (root, "one")) for _ in range(2)]
        trained = sorted(twin.get() for twin in twins)
        if trained != [("1", False), ("1", True)]:
            failed.append(f"two trainings of one identity made {trained}")
        trained.append(pool.apply(_train, (root, "another")))
        versions = _versions(settings)
        if versions != ["1", "2"]:
            failed.append(f"three trainings of two identities left versions {versions}")
        promotion.promote(settings, "2", in_spite_of_gate=True, features=_FEATURES)
        others = [pool.apply_async(f, (root, end)) for f in (_resolve, _resolve, _read, _read)]
        while len([*Path(root).glob("begun-*")]) < _FOLLOWERS and time.time() < end:
            time.sleep(0.1)
        promoted = 0
        while promoted < promotions and time.time() < end:
            version = str(1 + promoted % 2)
            promotion.promote(settings, version, in_spite_of_gate=True, features=_FEATURES)
            promoted += 1
            time.sleep(dice.uniform(0.0, 0.1))
        (Path(root) / "stop").touch()
        done = [other.get() for other in others]
    failed += [f"{count} times: {text}" for _, each in done for text, count in each.items()]
    champion = load_champion(root, settings.model_name)
    with store.registry_client(settings) as client:
        alias = store.aliases_of(client, settings.model_name)["champion"]
    if promoted < promotions or champion is None or champion[0].version != alias:
        failed.append(f"{promoted} promotions; the alias is at {alias}, the pointer at {champion}")
    return {
        "seed": seed,
        "trainings": trained,
        "versions": versions,
        "promotions": promoted,
        "resolved": [count for count, _ in done[:2]],
        "read": [count for count, _ in done[2:]],
        "seconds": round(time.monotonic() - began, 1),
        "failed": failed,
    }


def _versions(settings: Settings) -> list[str]:
    with store.registry_client(settings) as client:
        found = client.search_model_versions(f"name = '{settings.model_name}'")
        return sorted(str(version.version) for version in found)


def _ring(*_: object) -> None:
    raise TimeoutError("not done within the limit")


def main() -> None:
    """Run the seeds, print a line of JSON of each; exit 1 when something failed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--seeds", required=True, help="e.g. 1-3")
    parser.add_argument("--promotions", type=int, default=150)
    parser.add_argument("--limit", type=float, default=900.0, metavar="S", help="a seed")
    asked, bad = parser.parse_args(), False
    signal.signal(signal.SIGALRM, _ring)
    for seed in seeds(asked.seeds):
        signal.alarm(math.ceil(asked.limit))
        with tempfile.TemporaryDirectory(prefix="l2-promotions-") as folder:
            found = proved(f"{folder}/lake", seed, asked.promotions, asked.limit)
        signal.alarm(0)
        print(msgspec.json.encode(found).decode(), flush=True)
        for reason in found["failed"]:
            say(f"FAILED: {reason}")
        bad = bad or bool(found["failed"])
    sys.exit(bad)


if __name__ == "__main__":
    main()
