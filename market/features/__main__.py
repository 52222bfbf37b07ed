"""Writes what is generated from the feature definitions: the dbt model, its columns, the page."""

from __future__ import annotations

from pathlib import Path

from market.features import rendering


def main() -> None:
    """Write the generated files of the repository this module stands in."""
    root = Path(__file__).resolve().parents[2]
    for name, content in rendering.generated().items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
        print(f"wrote {name}")


if __name__ == "__main__":
    main()
