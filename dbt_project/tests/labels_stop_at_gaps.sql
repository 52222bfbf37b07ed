-- A label exists exactly where every second of (t, t + 1 s + h] of the same date is a bar without a
-- gap. Counted here by running totals of such bars; the model uses gaps and islands, so that the two
-- do not share a mistake.
{{ config(meta={'dagster': {'ref': {'name': 'labels'}}}) }}

with counted as (

    select
        symbol,
        date,
        t_ns,
        sum(case when gap = 0 then 1 else 0 end) over (
            partition by symbol, date order by t_ns rows unbounded preceding
        ) as good
    from {{ ref('stg_bars') }}
    where wanted

)

select labels.*
from {{ ref('labels') }} as labels
inner join counted using (symbol, date, t_ns)
{%- for h in var('horizons_s') %}
left join counted as ends_{{ h }}
    on
        labels.symbol = ends_{{ h }}.symbol
        and labels.date = ends_{{ h }}.date
        and labels.t_ns + {{ (h + 1) * 1000000000 }} = ends_{{ h }}.t_ns
{%- endfor %}
where
    false
    {%- for h in var('horizons_s') %}
    or (labels.y_{{ h }} is not null)
    != (coalesce(ends_{{ h }}.good - counted.good, 0) = {{ h + 1 }})
    {%- endfor %}
