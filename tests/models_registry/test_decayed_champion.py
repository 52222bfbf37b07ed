"""An alarm of the hourly monitor changes what the gate says of data that it has judged before."""

from __future__ import annotations

import shutil
from pathlib import Path

import msgspec
import planted

from market.lake import Lake
from market.settings import Settings
from models_registry import promotion, registry
from models_registry.decay import DecayState
from models_registry.manifest import bundles_folder, encode
from models_registry.pointed import DECAY_FILE
from models_registry.registry import Outcome


def test_a_live_alarm_has_the_same_data_judged_anew(
    registered: tuple[Lake, Settings], tmp_path: Path
) -> None:
    origin, source = registered
    settings = msgspec.structs.replace(source, root=str(tmp_path / "lake"))
    lake = Lake(settings.root, "synthetic")
    for part in ("training_set", "mlflow", "bundles"):
        shutil.copytree(Path(origin.uri) / part, Path(settings.root) / part)
    home = bundles_folder(settings.root, settings.model_name)

    def alarm(version: str, at_ns: int = 7) -> None:
        state = DecayState(alarm_ns=at_ns, alarm_version=version)
        (home / DECAY_FILE).write_bytes(encode(state))

    def attempt(sha: str) -> tuple[Outcome, str]:
        made = registry.train_and_register(lake, settings, sha, features=planted.FEATURES)
        (champion,) = [line for line in made.card.splitlines() if "| champion |" in line]
        return made, champion

    first, said = attempt("another")
    assert (first.reused, first.verdict) == (False, "abstain")
    assert "so it stays" in said
    alarm("8")
    assert attempt("another")[0].reused, "it is no alarm of the champion's"
    alarm("1")
    again, said = attempt("another")
    assert not again.reused
    assert (again.version, again.verdict) == ("3", "promote")
    assert "its decay alarm stands" in said
    assert attempt("another")[0].version == "3", "once"
    assert promotion.promote_latest(settings, planted.FEATURES) == (True, "3")
    alarm("3")
    assert attempt("another")[0].reused, "the champion would be made again"
