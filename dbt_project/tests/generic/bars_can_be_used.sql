{# `gap` is 0 or 1, and a bar without a gap closes at a positive, finite mid. #}
{% test bars_can_be_used(model) %}
select symbol, date, t_ns, gap, mid_close
from {{ model }}
where
    gap is null
    or gap not in (0, 1)
    or mid_close <= 0
    or not isfinite(mid_close)
    or (gap = 0 and mid_close is null)
{% endtest %}
