-- One row per inconsistency in the records, by kind; the other tables leave none of these rows out.
-- depends_on: {{ source('lake', 'parents') }}, {{ source('lake', 'orders') }}
-- depends_on: {{ source('lake', 'fills') }}, {{ source('lake', 'tca') }}

with parents as (select * from {{ records('parents') }}),

orders as (select * from {{ records('orders') }}),

fills as (select * from {{ records('fills') }}),

costs as (select * from {{ records('tca') }}),

booked as (

    select symbol, venue, parent_id, sum(qty_lots)::bigint as booked_lots
    from (select distinct symbol, venue, parent_id, client_id, exec_id, qty_lots from fills)
    group by all

),

findings as (

    select
        symbol, date, 'fill told twice' as kind, venue, parent_id, client_id, exec_id, time_ns,
        'counted once' as detail
    from fills
    qualify row_number() over (partition by symbol, venue, client_id, exec_id) > 1

    union all

    select
        symbol, date, 'fill of an unknown order', venue, parent_id, client_id, exec_id, time_ns,
        qty_lots || ' lots'
    from fills
    where not exists (
        select 1 from orders
        where (orders.symbol, orders.venue, orders.client_id)
            = (fills.symbol, fills.venue, fills.client_id)
    )

    union all

    -- Reconciliation closes what has no stop or no parent any more (`live.protection`).
    select
        symbol, date,
        if(parent_id = '', 'position closed by reconciliation', 'order of an unknown parent'),
        venue, parent_id, client_id, '', sent_ns, state
    from orders
    where not exists (
        select 1 from parents
        where (parents.symbol, parents.venue, parents.parent_id)
            = (orders.symbol, orders.venue, orders.parent_id)
    )

    union all

    select symbol, date, 'order without an end', venue, parent_id, client_id, '', sent_ns, state
    from orders
    where state not in ('FILLED', 'CANCELLED', 'REJECTED')

    union all

    select
        symbol, date, 'parent never measured', venue, parent_id, '', '', decision_ns,
        'its worker ended before it did'
    from parents
    where not exists (
        select 1 from costs
        where (costs.symbol, costs.venue, costs.parent_id)
            = (parents.symbol, parents.venue, parents.parent_id)
    )

    union all

    select
        symbol, date, 'parent without a fill', venue, parent_id, '', '', decision_ns,
        qty_lots || ' lots'
    from costs
    where filled_lots = 0

    union all

    select
        symbol, date, 'parent filled beyond its quantity', venue, parent_id, '', '', decision_ns,
        filled_lots || ' of ' || qty_lots || ' lots'
    from costs
    where filled_lots > qty_lots

    union all

    select
        symbol, date, 'no sound book at arrival', venue, parent_id, '', '', decision_ns,
        'the last mid known stands'
    from costs
    where not coalesce(arrival_sound, true)

    union all

    -- A late fill, reported after its parent was measured, is in the fills but not in the cost.
    select
        costs.symbol, costs.date, 'fills and cost differ', costs.venue, costs.parent_id, '', '',
        costs.end_ns,
        coalesce(booked.booked_lots, 0) || ' lots in fills, ' || costs.filled_lots || ' in the cost'
    from costs
    left join booked using (symbol, venue, parent_id)
    where coalesce(booked.booked_lots, 0) != costs.filled_lots

)

select symbol, date, kind, venue, parent_id, client_id, exec_id, time_ns, detail
from findings
where {{ requested_dates() }}
