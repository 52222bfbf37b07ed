-- Forward log returns: y_h(t) = ln mid(t + 1 s + h) - ln mid(t + 1 s).
-- The second between close and first price is the time to decide and to reach the venue.

with bars as (

    select symbol, date, t_ns, mid_close, gap
    from {{ ref('stg_bars') }}
    where wanted

),

valid as (

    -- Gaps and islands: in a run of seconds without a gap, time minus row number is constant.
    select
        symbol,
        date,
        t_ns,
        ln(mid_close) as ln_mid,
        t_ns - 1000000000 * row_number() over (partition by symbol, date order by t_ns) as stretch
    from bars
    where gap = 0

),

forward as (

    select
        symbol,
        date,
        t_ns
        {%- for h in var('horizons_s') %},
        lead(ln_mid, {{ h }}) over unbroken - ln_mid as y_{{ h }}
        {%- endfor %}
    from valid
    window unbroken as (partition by symbol, date, stretch order by t_ns)

)

select
    bars.symbol,
    bars.date,
    bars.t_ns
    {%- for h in var('horizons_s') %},
    forward.y_{{ h }}
    {%- endfor %}
from bars
left join forward
    on
        bars.symbol = forward.symbol
        and bars.date = forward.date
        and bars.t_ns + 1000000000 = forward.t_ns
