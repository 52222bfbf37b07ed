{# The columns are a primary key: unique, never NULL. #}
{% test row_key(model, columns) %}
select {{ columns | join(', ') }}, count(*) as rows
from {{ model }}
group by all
having rows > 1{% for column in columns %} or {{ column }} is null{% endfor %}
{% endtest %}
