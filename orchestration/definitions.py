"""What Dagster loads: assets, checks, jobs, schedules, sensors and the platform resource.

Loading takes seconds because every heavy library is imported inside the asset that needs it.
"""

from __future__ import annotations

from typing import Any

import dagster as dg

from assets import dbt_assets, execution, market_data, modelling, quality
from assets.platform import Platform
from market.pages import DATA_DOCS, REPORTS
from orchestration import automation, live_assets
from orchestration.run_log import progress_logger

MODULES = (market_data, quality, dbt_assets, modelling, execution, live_assets)


def _linked(spec: dg.AssetSpec) -> dg.AssetSpec:
    """With links to the other pages, which Dagster shows beside the asset."""
    settings = Platform().settings()
    to, name = settings.pages, settings.model_name
    links = {
        "reports": to.file(f"{REPORTS}/index.html"),
        "Data Docs": to.file(f"{DATA_DOCS}/index.html"),
        "MLflow": to.model(name),
        "worker": to.dashboard,
    }
    shown = " · ".join(f"[{name}]({url})" for name, url in links.items())
    return spec.merge_attributes(metadata={"pages": dg.MetadataValue.md(shown)})


_loaded: Any = dg.load_assets_from_modules(MODULES)
defs = dg.Definitions(
    assets=dg.map_asset_specs(_linked, _loaded),
    asset_checks=dg.load_asset_checks_from_modules(MODULES),
    jobs=[automation.pipeline_job, automation.retrain_job, automation.hourly_job],
    schedules=[automation.daily, automation.hourly],
    sensors=[automation.new_captures, automation.automation_sensor],
    resources={"platform": Platform()},
    loggers={"console": progress_logger},
    executor=dg.in_process_executor,
)
