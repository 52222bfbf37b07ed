"""What Dagster loads: assets, checks, jobs, schedules, sensors and the platform resource.

Loading takes seconds because every heavy library is imported inside the asset that needs it.
"""

from __future__ import annotations

import dagster as dg

from assets import dbt_assets, execution, market_data, modelling, quality
from assets.platform import Platform
from orchestration import automation, live_assets
from orchestration.run_log import progress_logger

MODULES = (market_data, quality, dbt_assets, modelling, execution, live_assets)

defs = dg.Definitions(
    assets=dg.load_assets_from_modules(MODULES),
    asset_checks=dg.load_asset_checks_from_modules(MODULES),
    jobs=[automation.pipeline_job, automation.retrain_job, automation.hourly_job],
    schedules=[automation.daily, automation.hourly],
    sensors=[automation.new_captures, automation.automation_sensor],
    resources={"platform": Platform()},
    loggers={"console": progress_logger},
    executor=dg.in_process_executor,
)
