-- One row per order: outcome, times, queue position, and markouts of its unfilled rest.
-- depends_on: {{ source('lake', 'orders') }}, {{ source('lake', 'parents') }}
-- depends_on: {{ source('lake', 'fills') }}, {{ source('lake', 'markouts') }}

with orders as (

    select *
    from {{ records('orders') }}
    where {{ requested_dates() }}
    qualify row_number() over (partition by symbol, venue, client_id) = 1

),

parents as (

    select distinct symbol, venue, parent_id, algorithm, coalesce(spread_regime, 'unknown') as spread_regime
    from {{ records('parents') }}

),

filled as (

    select
        symbol,
        venue,
        client_id,
        sum(qty_lots)::bigint as booked_lots,
        coalesce(sum(qty_lots) filter (liquidity = 'maker'), 0)::bigint as maker_lots,
        min(venue_ns) as first_fill_ns,
        max(venue_ns) as last_fill_ns
    from (
        select distinct symbol, venue, client_id, exec_id, qty_lots, liquidity, venue_ns
        from {{ records('fills') }}
    )
    group by all

),

markouts as (

    select
        symbol,
        venue,
        client_id,
        max(queue_ahead_lots) as queue_ahead_lots,
        max(markout_1s_bps) filter (exec_id = '') as rest_markout_1s_bps,
        max(markout_5s_bps) filter (exec_id = '') as rest_markout_5s_bps,
        max(markout_30s_bps) filter (exec_id = '') as rest_markout_30s_bps,
        max(markout_60s_bps) filter (exec_id = '') as rest_markout_60s_bps
    from {{ records('markouts') }}
    group by all

)

select
    orders.symbol,
    orders.date,
    orders.venue,
    orders.client_id,
    orders.parent_id,
    coalesce(parents.algorithm, 'unknown') as algorithm,
    coalesce(parents.spread_regime, 'unknown') as spread_regime,
    orders.side,
    orders.order_type,
    orders.time_in_force,
    orders.state,
    orders.reason,
    orders.sent_ns,
    orders.changed_ns,
    orders.amends,
    orders.qty_lots,
    orders.price_ticks,
    orders.filled_lots,
    coalesce(filled.booked_lots, 0) as booked_lots,
    coalesce(filled.maker_lots, 0) as maker_lots,
    orders.filled_lots / nullif(orders.qty_lots, 0) as fill_rate,
    (orders.changed_ns - orders.sent_ns) / 1e9 as lived_s,
    (filled.first_fill_ns - orders.sent_ns) / 1e9 as first_fill_s,
    (filled.last_fill_ns - orders.sent_ns) / 1e9 as last_fill_s,
    markouts.queue_ahead_lots,
    markouts.rest_markout_1s_bps,
    markouts.rest_markout_5s_bps,
    markouts.rest_markout_30s_bps,
    markouts.rest_markout_60s_bps
from orders
left join parents using (symbol, venue, parent_id)
left join filled using (symbol, venue, client_id)
left join markouts using (symbol, venue, client_id)
