"""Promotion and rollback: a version is verified here, then the alias moves, then the worker's pointer.

A verdict is used once. After a promotion, a rollback or a move by hand the gate moves the alias only to
a version that was registered since.
"""

from __future__ import annotations

import argparse
from typing import Any

from market.console import Result, say
from market.errors import ModelError
from market.settings import Settings
from models_registry.dataset import Features
from models_registry.manifest import read_pointer
from models_registry.resolver import (
    ACCEPTED,
    DECIDED,
    OVERRULED,
    bring,
    champions,
    follow,
    point,
    record,
    require_verdict,
)
from models_registry.store import (
    CHAMPION,
    PREVIOUS,
    RegistryError,
    aliases_of,
    latest_attempt,
    model_version,
    registered_model,
    registry_client,
)


def promote(
    settings: Settings,
    version: str,
    *,
    in_spite_of_gate: bool = False,
    features: Features | None = None,
) -> None:
    """Make a version the champion and the present one `previous`; update the local pointer.

    RegistryError for an unknown version, or one whose verdict is not `promote` unless
    ``in_spite_of_gate``; BundleError for a damaged one, or of other ``features`` than those that run.
    Nothing has moved then.
    """
    with champions(settings) as client:
        found = model_version(client, settings.model_name, version)
        if in_spite_of_gate and found.tags.get("gate.verdict") != "promote":
            by = "l2 promote --in-spite-of-gate"
        else:
            by = "l2 promote"
            require_verdict(found)
        _move(client, settings, version, by, features or Features.defined())
        if in_spite_of_gate:
            client.set_model_version_tag(
                settings.model_name, version, OVERRULED, "in spite of the gate"
            )


def rollback(settings: Settings, features: Features | None = None) -> str:
    """Swap the aliases `champion` and `previous`; returns the new champion's version.

    RegistryError without a previous champion, BundleError when it cannot be used any more.
    """
    name = settings.model_name
    with champions(settings) as client:
        aliases = aliases_of(client, name)
        back, present = aliases.get(PREVIOUS), aliases.get(CHAMPION)
        if back is None or back == present:
            raise RegistryError(f"{name}: no earlier champion to go back to")
        _move(client, settings, back, "l2 rollback", features or Features.defined())
    return back


def latest_verdict(settings: Settings) -> tuple[str, tuple[str, ...]]:
    """Verdict and reasons of the latest attempt; ("none", ()) before the first."""
    with registry_client(settings) as client:
        run = latest_attempt(client, settings.model_name)
        if run is None:
            return "none", ()
        reasons = run.data.tags.get("gate.reasons", "")
        return run.data.tags["gate.verdict"], tuple(filter(None, reasons.split("; ")))


def promote_latest(settings: Settings, features: Features | None = None) -> tuple[bool, str | None]:
    """Promote the latest attempt's version if its verdict is `promote` and was not used before.

    Returns whether the champion changed, and its version, None without a champion.
    """
    name, features = settings.model_name, features or Features.defined()
    with champions(settings) as client:
        before = aliases_of(client, name).get(CHAMPION)
        if before != _tag(client, name, ACCEPTED) or read_pointer(settings.root, name) is None:
            try:
                pointer = follow(client, settings, features)
            except ModelError as error:  # a damaged one, or moved by hand and put back
                say(str(error))
            else:
                before = pointer.version if pointer else None
        run = latest_attempt(client, name)
        wanted = run.data.tags.get("model_version") if run else None
        if (
            wanted is None
            or run.data.tags["gate.verdict"] != "promote"
            or settings.registry.promotion == "manual"
            or int(wanted) <= _decided(client, name)
        ):
            return False, aliases_of(client, name).get(CHAMPION)
        _move(client, settings, wanted, "the gate", features)
    return True, wanted


def _move(client: Any, settings: Settings, version: str, by: str, features: Features) -> None:
    name = settings.model_name
    present = aliases_of(client, name).get(CHAMPION)
    # That of a champion is its worker's to refuse, who has said so since the definitions changed.
    pointer = bring(client, settings, version, features if version != present else None)
    if version != present:
        # In this order a crash in between leaves a valid champion.
        if present is not None:
            client.set_registered_model_alias(name, PREVIOUS, present)
        client.set_registered_model_alias(name, CHAMPION, version)
    record(client, name, version, by)
    point(settings, pointer)


def _decided(client: Any, name: str) -> int:
    """The newest version that the gate must not move to any more; of registries without the tag too."""
    aliases = aliases_of(client, name)
    champions_ = (int(aliases.get(alias, 0)) for alias in (CHAMPION, PREVIOUS))
    return int(_tag(client, name, DECIDED) or max(champions_))


def _tag(client: Any, name: str, tag: str) -> str | None:
    found = registered_model(client, name)
    return found.tags.get(tag) if found else None


# -- the verbs -------------------------------------------------------------------------------------


def promote_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `l2 promote`."""
    parser.add_argument("version", help="version in the MLflow registry")
    parser.add_argument(
        "--in-spite-of-gate", action="store_true", help="promote what the gate did not pass"
    )


def promote_command(settings: Settings, options: argparse.Namespace) -> Result:
    """`l2 promote`: make a version the champion."""
    promote(settings, options.version, in_spite_of_gate=options.in_spite_of_gate)
    say(f"{settings.model_name} version {options.version} is champion")
    return {"name": settings.model_name, "champion": options.version}


def rollback_arguments(_: argparse.ArgumentParser) -> None:
    """`l2 rollback` has no options."""


def rollback_command(settings: Settings, _: argparse.Namespace) -> Result:
    """`l2 rollback`: make the previous champion the champion again."""
    version = rollback(settings)
    say(f"{settings.model_name} version {version} is champion again")
    return {"name": settings.model_name, "champion": version}
