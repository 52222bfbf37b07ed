{#
    Rows are at whole seconds of their date, from one second after midnight to the next midnight
    included; `tail_s` allows earlier rows.
#}
{% test seconds_of_date(model, tail_s=0) %}
select symbol, date, t_ns
from {{ model }}
where
    t_ns % 1000000000 != 0
    or t_ns <= epoch_ns(cast(date as date)) - {{ tail_s | int * 1000000000 }}
    or t_ns > epoch_ns(cast(date as date) + 1)
{% endtest %}
