-- One row per parent order: implementation shortfall in parts, beside the pre-trade estimate.
-- depends_on: {{ source('lake', 'parents') }}, {{ source('lake', 'tca') }}
-- depends_on: {{ source('lake', 'orders') }}, {{ source('lake', 'fills') }}

with parents as (

    select *
    from {{ records('parents') }}
    where {{ requested_dates() }}
    qualify row_number() over (partition by symbol, venue, parent_id) = 1

),

costs as (

    select * exclude (date)
    from {{ records('tca') }}
    qualify row_number() over (partition by symbol, venue, parent_id) = 1

),

booked as (

    select symbol, venue, parent_id, sum(qty_lots)::bigint as booked_lots
    from (
        select distinct symbol, venue, parent_id, client_id, exec_id, qty_lots
        from {{ records('fills') }}
    )
    group by all

),

placed as (

    select
        symbol,
        venue,
        parent_id,
        count(*) as orders,
        sum(amends)::bigint as amends,
        count(*) filter (state = 'REJECTED') as rejected_orders
    from {{ records('orders') }}
    group by all

)

select
    parents.symbol,
    parents.date,
    parents.venue,
    parents.parent_id,
    parents.algorithm,
    coalesce(costs.picked, '') as picked,
    parents.side,
    parents.decision_ns,
    parents.deadline_ns,
    (parents.decision_ns // 3600000000000) % 24 as hour,
    costs.arrival_ns,
    costs.end_ns,
    case
        when costs.parent_id is null then 'unmeasured'
        when costs.filled_lots = 0 then 'unfilled'
        when costs.filled_lots < costs.qty_lots then 'partial'
        else 'complete'
    end as state,
    parents.qty_lots,
    costs.filled_lots,
    coalesce(booked.booked_lots, 0) as booked_lots,
    parents.size_usdt,
    case
        when parents.size_usdt < 5000 then 'below 5 k'
        when parents.size_usdt < 20000 then '5 to 20 k'
        when parents.size_usdt < 100000 then '20 to 100 k'
        else '100 k and more'
    end as size_bucket,
    parents.qty_lots / nullif(parents.depth_lots, 0) as depth_share,
    coalesce(parents.spread_regime, 'unknown') as spread_regime,
    parents.sigma_bps,
    parents.volume_lots_s,
    parents.signal_bps,
    coalesce(placed.orders, 0) as orders,
    coalesce(placed.amends, 0) as amends,
    coalesce(placed.rejected_orders, 0) as rejected_orders,
    parents.decision_mid_ticks,
    costs.arrival_mid_ticks,
    coalesce(costs.arrival_sound, true) as arrival_sound,
    costs.fill_ticks,
    costs.filled_lots / costs.qty_lots as fill_rate,
    costs.maker_share,
    costs.time_to_fill_s,
    costs.delay_bps,
    costs.spread_bps,
    case when costs.parent_id is not null then coalesce(costs.impact_bps, 0) end as impact_bps,
    costs.timing_bps,
    costs.opportunity_bps,
    costs.fees_bps,
    costs.total_bps,
    coalesce(costs.impact_by, 'none') as impact_by,
    costs.foretold_bps,
    costs.vs_arrival_bps,
    costs.vs_twap_bps,
    costs.vs_vwap_bps,
    costs.vs_close_bps,
    costs.markout_1s_bps,
    costs.markout_5s_bps,
    costs.markout_30s_bps,
    costs.markout_60s_bps,
    parents.estimate_spread_bps,
    parents.estimate_impact_bps,
    parents.estimate_timing_bps,
    parents.estimate_fees_bps,
    parents.estimate_risk_bps,
    parents.estimate_spread_bps + parents.estimate_impact_bps + parents.estimate_timing_bps
    + parents.estimate_fees_bps as estimate_bps,
    costs.total_bps - (
        parents.estimate_spread_bps + parents.estimate_impact_bps + parents.estimate_timing_bps
        + parents.estimate_fees_bps
    ) as error_bps
from parents
left join costs using (symbol, venue, parent_id)
left join booked using (symbol, venue, parent_id)
left join placed using (symbol, venue, parent_id)
