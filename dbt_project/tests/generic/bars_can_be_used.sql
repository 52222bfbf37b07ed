{# Bars say whether they have a gap, and a bar without one closes at a positive, finite price. #}
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
