{# The parts of every measured parent's shortfall sum to its total, to 1e-9 bps. #}
{% test parts_sum_to_the_total(model) %}
select symbol, parent_id, total_bps
from {{ model }}
where
    total_bps is not null
    and not abs(
        delay_bps + spread_bps + impact_bps + timing_bps + opportunity_bps + fees_bps - total_bps
    ) <= 1e-9
{% endtest %}
