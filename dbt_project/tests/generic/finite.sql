{# No floating-point column has NaN or infinity: missing values are NULL. #}
{% test finite(model) %}
{%- set floats = [] -%}
{%- if execute -%}
    {%- for column in adapter.get_columns_in_relation(model) if column.dtype | lower == 'double' -%}
        {%- do floats.append(adapter.quote(column.name)) -%}
    {%- endfor -%}
{%- endif %}
select *
from {{ model }}
where
    false
    {%- for name in floats %}
    or not isfinite({{ name }})
    {%- endfor %}
{% endtest %}
