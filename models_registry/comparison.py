"""Challenger against champion, on the seconds of the live worker that both predicted (`l2 ab`).

A retrain makes another version the challenger every day, too soon to decide about any. So the challengers that
followed one another beside a champion are one stream, that of the procedure, as in `models_registry.decay`: the
question is whether what it trains now is better than what it trained then.
"""

from __future__ import annotations

import argparse

import msgspec
import numpy as np

from market.console import Result, say
from market.lake import Lake
from market.settings import Settings
from models_registry.manifest import load_champion, read_pointer
from models_registry.monitoring import served
from models_registry.pointed import CHALLENGER_FILE
from models_registry.statistics import anytime_interval

#: Chance that the comparison ever names the wrong one, and the effect per hour in standard deviations
#: that it is quickest for.
AB_ALPHA, AB_EFFECT = 0.05, 0.2


class Comparison(msgspec.Struct, frozen=True, kw_only=True):
    """Challenger less champion: the mean difference of their rank products over ``hours`` hours.

    The hours are those of ``challenger``, the latest, and of ``earlier`` versions before it. ``lower`` and ``upper`` hold at every look at once; ``better`` is "challenger", "champion" or "open".
    """

    champion: str
    challenger: str
    hours: int
    difference: float
    lower: float
    upper: float
    better: str
    earlier: int = 0

    @property
    def summary(self) -> str:
        """One line."""
        return (
            f"challenger {self.challenger}{f' and {self.earlier} before it' if self.earlier else ''} less "
            f"champion {self.champion}: rank IC {self.difference:+.4f}, "
            f"between {self.lower:+.4f} and {self.upper:+.4f} over {self.hours} hours; better: {self.better}"
        )


def compare(lake: Lake, settings: Settings) -> Comparison | str:
    """Challengers against champion on the seconds that both predicted; the reason when there are none."""
    champion = load_champion(settings.root, settings.model_name)
    pointer = read_pointer(settings.root, settings.model_name, CHALLENGER_FILE)
    if champion is None or pointer is None:
        return f"no challenger of {settings.model_name} beside a champion"
    manifest = champion[1].manifest
    first = served(lake, manifest, days=365)
    first = first.where(first.version == champion[0].version)
    second = served(lake, manifest, "shadow", days=365)
    key, other = first.t_ns + first.symbol, second.t_ns + second.symbol
    first, second = first.where(np.isin(key, other)), second.where(np.isin(other, key))
    # Ranked among the same seconds as the challenger of the time.
    first = msgspec.structs.replace(first, version=second.version)
    ends, mine = first.observations(3600)
    theirs = second.observations(3600)[1]
    if len(ends) < 2:
        return (
            f"challenger {pointer.version}: no two hours beside champion {champion[0].version} yet"
        )
    difference = theirs - mine
    lower, upper = anytime_interval(difference, AB_ALPHA, AB_EFFECT)
    better = "challenger" if lower > 0 else "champion" if upper < 0 else "open"
    return Comparison(
        champion=champion[0].version,
        challenger=pointer.version,
        hours=len(ends),
        difference=float(difference.mean()),
        lower=lower,
        upper=upper,
        better=better,
        earlier=len({*second.version.tolist()} - {pointer.version}),
    )


def show(settings: Settings, found: Comparison) -> None:
    """Put a comparison on the challenger's version in the registry: tags, and metrics of its run."""
    from models_registry.store import model_version, registry_client

    with registry_client(settings) as client:
        version = model_version(client, settings.model_name, found.challenger)
        for tag, value in {
            "ab.better": found.better,
            "ab.champion": found.champion,
            "ab.hours": str(found.hours),
        }.items():
            client.set_model_version_tag(settings.model_name, found.challenger, tag, value)
        for name in ("difference", "lower", "upper"):
            if np.isfinite(getattr(found, name)):
                client.log_metric(
                    version.run_id, f"ab.{name}", getattr(found, name), step=found.hours
                )


# -- the verb --------------------------------------------------------------------------------------


def arguments(_: argparse.ArgumentParser) -> None:
    """`l2 ab` has no options."""


def command(settings: Settings, _: argparse.Namespace) -> Result:
    """`l2 ab`: compare the challenger in the worker's shadow with the champion."""
    found = compare(Lake(settings.root, settings.source), settings)
    if isinstance(found, str):
        say(found)
        return {"better": "open", "reason": found}
    show(settings, found)
    say(found.summary)
    return msgspec.to_builtins(found)  # type: ignore[no-any-return]
