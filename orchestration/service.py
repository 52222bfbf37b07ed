"""`l2 service`: recorder, resolver, worker, Dagster and its pages as systemd units of a user, by the settings.

    l2 service install --user         shows the units, and what would be done
    l2 service install --user --yes   writes them
    l2 service remove --yes           removes them

Nothing is started or stopped here: who enables the worker's unit lets it trade. A worker that a person or a
limit stopped (exit status 3), or whose settings are wrong (2), is not started again.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from live.run import StoppedError
from market.console import Result
from market.errors import UsageError
from market.settings import Settings
from models_registry.state import on_server
from orchestration.ui import dagster_home

#: The first line of what we wrote; nothing else is replaced or removed.
MARK: Final = "# Written by `l2 service install`; changes are lost."
#: Of the environment at the installation, units get what begins so; keys never.
_PASSED: Final = (
    *("L2_", "DAGSTER_HOME", "MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI"),
    *("AWS_ENDPOINT_URL", "AWS_REGION", "AWS_DEFAULT_REGION", "AWS_PROFILE"),
)
_SECRET: Final = ("L2_API_KEY", "L2_API_SECRET", "L2_DASHBOARD_TOKEN", "L2_NOTIFY", "L2_TEST_DATA")
#: Keys, the page's token, the watch's addresses, the object store's credentials and the database's password
#: (PGPASSWORD), a line NAME=VALUE each, in the user's configuration.
KEYS: Final = "l2/keys.env"
#: What a clean end takes beside `live.closing_s`: sockets, files, the log's collection.
_MARGIN_S: Final = 60


def units(settings: Settings, environment: Mapping[str, str], folder: Path) -> dict[str, str]:
    """Name -> text of each unit; ``folder`` is where the processes run, whose ``l2.toml`` they read.

    For a lake in an object store captures are copied there every hour. Each unit reads the credentials of the store,
    and of the database where the state is on a server.
    """
    programs = Path(sys.executable).parent
    l2, live = str(programs / "l2"), settings.live
    market = ("--url", settings.record.url) if live.venue == "paper" else ()
    resolver = ("-m", "models_registry.resolver", "--every", f"{live.resolve_every_s:g}")
    dagster = ("run", "--module-name", "orchestration.definitions")
    worker_s = round(live.closing_s) + _MARGIN_S
    keys = f"EnvironmentFile=-%E/{KEYS}"
    commands: dict[str, tuple[str, Sequence[str], int, Sequence[str]]] = {
        "recorder": ("recorder of public data", (l2, "record"), _MARGIN_S, ()),
        "resolver": ("resolver of the champion", (sys.executable, *resolver), 10, ()),
        "worker": (
            f"worker on {live.venue}", (l2, "live", "--no-resolver", *market), worker_s, (keys,),
        ),
        "dagster": ("Dagster's daemon", (str(programs / "dagster-daemon"), *dagster), 30, ()),
        "ui": ("Dagster's and MLflow's pages", (l2, "ui", "--no-daemon"), 30, ()),
        "dashboard": ("page of the worker", (l2, "dashboard"), 10, (keys,)),
        "watch": ("watch over worker, recorder and daily run", (l2, "watch", "--recorder"), 10, (keys,)),
    }  # fmt: skip
    given = {
        name: value
        for name, value in environment.items()
        if name.startswith(_PASSED) and name not in _SECRET
    }
    shared = [f"Environment={_quoted(f'{n}={v}')}" for n, v in sorted(given.items())]
    in_store = "://" in settings.root
    shares = in_store or on_server(settings)
    found = {
        f"l2-{name}.service": _unit(
            name, about, command, stop_s, [*shared, *((keys,) if shares else own)], folder
        )
        for name, (about, command, stop_s, own) in commands.items()
    }
    if in_store:
        found["l2-upload.service"] = _upload([*shared, keys], l2, folder)
        found["l2-upload.timer"] = _HOURLY
    return found


_HOURLY: Final = f"""{MARK}
[Unit]
Description=L2 captures into the object store, every hour

[Timer]
OnStartupSec=5min
OnUnitInactiveSec=1h

[Install]
WantedBy=timers.target
"""


def _upload(more: Sequence[str], l2: str, folder: Path) -> str:
    """The unit that the timer starts; a store that is away is asked again an hour later."""
    lines = [
        MARK,
        *("[Unit]", "Description=L2 captures into the object store", ""),
        *("[Service]", "Type=oneshot", _folder(folder), *more),
        f'ExecStart={_quoted(l2)} "upload"',
        "NoNewPrivileges=true",
    ]
    return "\n".join(lines) + "\n"


def _folder(folder: Path) -> str:
    return f"WorkingDirectory={str(folder).replace('%', '%%')}"


def _unit(
    name: str, about: str, command: Sequence[str], stop_s: int, more: Sequence[str], folder: Path
) -> str:
    orders = ["After=l2-resolver.service", "Wants=l2-resolver.service"] if name == "worker" else []
    lines = [
        MARK,
        *("[Unit]", f"Description=L2 {about}", *orders),
        # After five failures in ten minutes somebody has to look.
        *("StartLimitIntervalSec=600", "StartLimitBurst=5", ""),
        *("[Service]", "Type=exec", _folder(folder), *more),
        f"ExecStart={' '.join(_quoted(part.replace('$', '$$')) for part in command)}",
        *(
            "Restart=on-failure",
            "RestartSec=5",
            f"RestartPreventExitStatus=2 {StoppedError.exit_status}",
        ),
        *("KillMode=mixed", f"TimeoutStopSec={stop_s}", "NoNewPrivileges=true", ""),
        *("[Install]", "WantedBy=default.target"),
    ]
    return "\n".join(lines) + "\n"


def _quoted(text: str) -> str:
    """One word of a unit file (systemd.syntax(7)), without specifiers."""
    for plain, escaped in (("\\", "\\\\"), ('"', '\\"'), ("\n", "\\n"), ("%", "%%")):
        text = text.replace(plain, escaped)
    return f'"{text}"'


def home() -> Path:
    """Where systemd looks for the units of a user (systemd.unit(5))."""
    return Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "systemd" / "user"


def install(settings: Settings, write: bool) -> dict[str, str]:
    """The units, written where ``write``. UsageError when one of that name is somebody else's."""
    environment = os.environ | {"DAGSTER_HOME": str(settings.home.absolute() / "dagster")}
    if write:
        environment["DAGSTER_HOME"] = str(dagster_home(settings))
    found = units(settings, environment, Path.cwd())
    for name in found:
        if (path := home() / name).exists() and not _is_ours(path):
            raise UsageError(f"{path}: not written by `l2 service`; move it away first")
    for name, text in found.items() if write else ():
        home().mkdir(parents=True, exist_ok=True)
        (home() / name).write_text(text)
    return found


def remove(write: bool) -> list[str]:
    """The names of our units that are there, removed where ``write``."""
    found = sorted(path for path in home().glob("l2-*.*") if _is_ours(path))
    for path in found if write else ():
        path.unlink()
    return [path.name for path in found]


def _is_ours(path: Path) -> bool:
    return path.read_text().startswith(MARK)


# -- the verb --------------------------------------------------------------------------------------


def arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `l2 service`."""
    parser.add_argument("action", choices=["install", "remove"])
    parser.add_argument("--user", action="store_true", help="units of this user, the only kind")
    parser.add_argument("--yes", action="store_true", help="do it; without, it is only shown")


def command(settings: Settings, options: argparse.Namespace) -> Result:
    """`l2 service install` and `remove`: show the units and what would be done; with ``--yes`` do it."""
    if options.action == "install" and not options.user:
        raise UsageError("only units of a user are written: l2 service install --user")
    told: list[str] = []
    if options.action == "install":
        texts = install(settings, options.yes)
        names = list(texts)
        told += [f"{home() / name}\n\n{text}" for name, text in texts.items() if not options.yes]
        keys = home().parents[1] / KEYS
        started = [name for name, text in texts.items() if "[Install]" in text]
        told += [
            f"{'wrote' if options.yes else 'would write'} {len(names)} units into {home()}",
            f"keys of the venue: {keys} with L2_API_KEY=… and L2_API_SECRET=…, readable by you alone (0600)",
            f"then: systemctl --user daemon-reload; systemctl --user enable --now {' '.join(started)}",
            "to go on without a login: loginctl enable-linger",
        ]
    else:
        names = remove(options.yes)
        told += [
            f"{'removed' if options.yes else 'would remove'} {home() / name}" for name in names
        ]
        if not names:
            told.append(f"no units of ours in {home()}")
        elif options.yes:
            told.append("then: systemctl --user daemon-reload")
        else:
            told.append(f"first stop them: systemctl --user disable --now {' '.join(names)}")
    if not options.yes:
        told.append("nothing was changed: --yes does it")
    if not options.json:
        print("\n".join(told))
    return {"units": names, "folder": str(home()), "done": options.yes}
