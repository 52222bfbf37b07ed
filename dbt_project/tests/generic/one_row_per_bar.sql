{# The table has exactly the seconds of the wanted bars. #}
{% test one_row_per_bar(model) %}
select coalesce(rows.symbol, bars.symbol) as symbol, coalesce(rows.t_ns, bars.t_ns) as t_ns
from {{ model }} as rows
full join (select * from {{ ref('stg_bars') }} where wanted) as bars using (symbol, date, t_ns)
where rows.t_ns is null or bars.t_ns is null
{% endtest %}
