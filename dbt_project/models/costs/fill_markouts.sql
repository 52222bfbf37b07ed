-- One row per execution and one per unfilled rest of an order, with their markouts.
-- depends_on: {{ source('lake', 'fills') }}, {{ source('lake', 'markouts') }}
-- depends_on: {{ source('lake', 'parents') }}

with fills as (

    select *
    from {{ records('fills') }}
    where {{ requested_dates() }}
    qualify row_number() over (partition by symbol, venue, client_id, exec_id) = 1

),

markouts as (

    select *
    from {{ records('markouts') }}
    qualify row_number() over (partition by symbol, venue, client_id, exec_id) = 1

),

parents as (

    select distinct symbol, venue, parent_id, algorithm, coalesce(spread_regime, 'unknown') as spread_regime
    from {{ records('parents') }}

),

-- An execution of an unknown order, or one that was reported late, has no markouts.
executed as (

    select
        fills.symbol,
        fills.date,
        fills.venue,
        fills.parent_id,
        fills.client_id,
        fills.exec_id,
        'filled' as outcome,
        fills.liquidity,
        fills.side,
        fills.qty_lots,
        fills.price_ticks,
        fills.fee_e8,
        fills.venue_ns as time_ns,
        markouts.* exclude (
            symbol, date, venue, parent_id, client_id, exec_id, outcome, liquidity, side, qty_lots,
            price_ticks, time_ns
        )
    from fills
    left join markouts using (symbol, venue, client_id, exec_id)

),

given_up as (

    select *, cast(0 as bigint) as fee_e8
    from markouts
    where exec_id = '' and {{ requested_dates() }}

),

rows as (

    select * from executed
    union all by name
    select * from given_up

)

select
    rows.symbol,
    rows.date,
    rows.venue,
    rows.parent_id,
    rows.client_id,
    rows.exec_id,
    coalesce(parents.algorithm, 'unknown') as algorithm,
    coalesce(parents.spread_regime, 'unknown') as spread_regime,
    rows.outcome,
    rows.liquidity,
    rows.side,
    rows.qty_lots,
    rows.price_ticks,
    rows.fee_e8,
    rows.time_ns,
    rows.rested_s,
    rows.mid_ticks,
    rows.queue_ahead_lots,
    rows.markout_1s_bps,
    rows.markout_5s_bps,
    rows.markout_30s_bps,
    rows.markout_60s_bps
from rows
left join parents using (symbol, venue, parent_id)
