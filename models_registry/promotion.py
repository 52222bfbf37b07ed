"""Promotion and rollback: move the alias `champion` in MLflow, then the worker's local pointer."""

from __future__ import annotations

import argparse

from market.console import Result, say
from market.settings import Settings
from models_registry.manifest import bundles_folder, read_pointer
from models_registry.registry import (
    CHAMPION,
    PREVIOUS,
    RegistryError,
    aliases_of,
    latest_run,
    model_version,
    registry_client,
)
from models_registry.resolver import resolve


def promote(settings: Settings, version: str, *, in_spite_of_gate: bool = False) -> None:
    """Make a version the champion and the present one `previous`; update the local pointer.

    RegistryError for an unknown version, or one whose verdict is not `promote` unless
    ``in_spite_of_gate``.
    """
    name = settings.model_name
    with registry_client(settings) as client:
        found = model_version(client, name, version)
        verdict = found.tags.get("gate.verdict", "unknown")
        if verdict != "promote" and not in_spite_of_gate:
            raise RegistryError(
                f"{name} version {version}: the gate says {verdict} "
                f"({found.tags.get('gate.reasons', 'no reasons')}); promote another version or "
                "overrule it with --in-spite-of-gate"
            )
        aliases = aliases_of(client, name)
        present = aliases.get(CHAMPION)
        if present != version:
            # In this order a crash in between leaves a valid champion.
            if present is not None:
                client.set_registered_model_alias(name, PREVIOUS, present)
            client.set_registered_model_alias(name, CHAMPION, version)
            if verdict != "promote":
                client.set_model_version_tag(name, version, "promoted", "in spite of the gate")
    _bring_local(settings)


def rollback(settings: Settings) -> str:
    """Swap the aliases `champion` and `previous`; returns the new champion's version.

    RegistryError without a previous champion.
    """
    name = settings.model_name
    with registry_client(settings) as client:
        aliases = aliases_of(client, name)
        back, present = aliases.get(PREVIOUS), aliases.get(CHAMPION)
        if back is None or back == present:
            raise RegistryError(f"{name}: no earlier champion to go back to")
        client.set_registered_model_alias(name, CHAMPION, back)
        if present is not None:
            client.set_registered_model_alias(name, PREVIOUS, present)
    _bring_local(settings)
    return back


def latest_verdict(settings: Settings) -> tuple[str, tuple[str, ...]]:
    """Verdict and reasons of the latest attempt; ("none", ()) before the first."""
    with registry_client(settings) as client:
        run = latest_run(client, settings.model_name)
        if run is None:
            return "none", ()
        reasons = run.data.tags.get("gate.reasons", "")
        return run.data.tags["gate.verdict"], tuple(filter(None, reasons.split("; ")))


def promote_latest(settings: Settings) -> tuple[bool, str | None]:
    """Promote the latest attempt's version if its verdict is `promote`.

    Returns whether the champion changed, and its version, None without a champion.
    """
    name = settings.model_name
    with registry_client(settings) as client:
        run = latest_run(client, name)
        before = aliases_of(client, name).get(CHAMPION)
        wanted = None
        if run is not None and run.data.tags["gate.verdict"] == "promote":
            wanted = run.data.tags.get("model_version")
    if wanted is None or wanted == before:
        if before is not None and read_pointer(settings.root, name) is None:
            _bring_local(settings)
        return False, before
    promote(settings, wanted)
    return True, wanted


def _bring_local(settings: Settings) -> None:
    """Run the resolver once, as the registry and the worker share this machine."""
    bundles_folder(settings.root, settings.model_name).mkdir(parents=True, exist_ok=True)
    resolve(settings)


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
