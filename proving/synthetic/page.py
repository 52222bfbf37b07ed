"""Writes docs/profiles.md: every parameter of a synthetic market, the named profiles, the truth tables.

python -m proving.synthetic.page
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import msgspec

from proving.synthetic.profiles import HOLDERS, PROFILES, Listing, Profile, parameters
from proving.synthetic.tables import FORETELLING, NOISE_HALF_LIVES_S, TRUTH_COLUMNS

PAGE: Final = Path(__file__).resolve().parents[2] / "docs" / "profiles.md"
_HEAD: Final = """\
# Parameters of the synthetic market

Written by `make generate` from `proving/synthetic/profiles.py` and `proving/synthetic/profiles.toml`; what it all means is in
[synthetic.md](synthetic.md). *Recorded* are figures of the recordings that calibration used, *choice* is
what nobody can record. `l2 synth --profile NAME` and the setting `synthetic.profile` take these names.
"""


def page() -> str:
    """The text of docs/profiles.md."""
    lines = [_HEAD, "## Named profiles", "", "| name | what it is | differs in |", "|---|---|---|"]
    default = msgspec.to_builtins(PROFILES["default"])
    for name, profile in PROFILES.items():
        own = msgspec.to_builtins(profile)
        changed = ", ".join(
            f"`{key}`" + ("" if key in HOLDERS else f" {_text(value)}")
            for key, value in own.items()
            if value != default[key] and key not in ("name", "about")
        )
        lines.append(f"| `{name}` | {profile.about} | {changed} |")
    lines += ["", "## Of the market", *_parameter_table(Profile, default)]
    listings = {
        listing.symbol: msgspec.to_builtins(listing) for listing in PROFILES["default"].listings
    }
    lines += [
        "",
        "## Of a listing",
        *_parameter_table(Listing, *listings.values(), names=tuple(listings)),
    ]
    for kind in HOLDERS.values():
        if kind is not Listing:
            lines += ["", f"## Of a {kind.__name__.lower()}", *_parameter_table(kind)]
    lines += ["", "## The table of truth", "", "| column | unit | meaning |", "|---|---|---|"]
    lines += [f"| `{name}` | {unit} | {said} |" for name, (_, unit, said) in TRUTH_COLUMNS.items()]
    lines += [
        "",
        "## The decoys",
        "",
        f"`noise_1` to `noise_{len(NOISE_HALF_LIVES_S)}`: noise with half-lives of "
        f"{', '.join(map(str, NOISE_HALF_LIVES_S))} s (0: white), those of even number cubed.",
    ]
    lines += [
        f"`{name}`: correlation {correlation:g} with the return to come over {horizon_s} s"
        + (", always." if name == "leaky" else ", until `in_sample_until` and none afterwards.")
        for name, (horizon_s, correlation) in FORETELLING.items()
    ]
    return "\n".join(lines) + "\n"


def _parameter_table(
    kind: Any, *values: dict[str, Any], names: tuple[str, ...] = ("default",)
) -> Iterator[str]:
    columns = names if values else ()
    yield ""
    yield "| parameter | meaning (unit), source |" + "".join(f" {name} |" for name in columns)
    yield "|---|---|" + "---|" * len(columns)
    for name, said in parameters(kind):
        cells = "".join(f" {'' if name in HOLDERS else _text(v[name])} |" for v in values)
        yield f"| `{name}` | {said} |{cells}"


def _text(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    PAGE.write_text(page())
