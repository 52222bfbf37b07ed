-- Rows to train on: warm, with a mid and at least one label.

select
    features.symbol,
    features.date,
    features.t_ns,
    bars.mid_close,
    bars.spread_bps,
    features.* exclude (symbol, date, t_ns, warm),
    labels.* exclude (symbol, date, t_ns)
from {{ ref('features') }} as features
inner join {{ ref('labels') }} as labels using (symbol, date, t_ns)
inner join {{ ref('stg_bars') }} as bars using (symbol, date, t_ns)
where
    features.warm
    and bars.wanted
    and bars.mid_close is not null
    and coalesce(
        {%- for h in var('horizons_s') %}labels.y_{{ h }}{{ ', ' if not loop.last }}{% endfor -%}
    ) is not null
