{# Where dbt-duckdb writes an `external` model. #}
{% macro external_location(relation, config) -%}
    {{ var('out') }}/{{ relation.identifier }}
{%- endmacro %}

{% macro date_var(name) -%}
    {%- set day = var(name) -%}
    {%- if execute and not modules.re.fullmatch('\\d{4}-\\d{2}-\\d{2}', day) -%}
        {%- do exceptions.raise_compiler_error(
            "var " ~ name ~ ": expected YYYY-MM-DD, got '" ~ day ~ "'; give --vars '{" ~ name ~ ": \"2026-01-31\"}'"
        ) -%}
    {%- endif -%}
    {{ day }}
{%- endmacro %}

{% macro from_date() -%}
    {{ date_var('from_date') }}
{%- endmacro %}

{% macro to_date() -%}
    {{ date_var('to_date') }}
{%- endmacro %}

{% macro day_before(day) -%}
    {%- if day -%}
        {{ (modules.datetime.date.fromisoformat(day) - modules.datetime.timedelta(days=1)).isoformat() }}
    {%- endif -%}
{%- endmacro %}

{% macro text_list(values) -%}
    {%- for value in values -%}
        '{{ value }}'{{ ', ' if not loop.last }}
    {%- endfor -%}
{%- endmacro %}

{% macro day_after(day) -%}
    {%- if day -%}
        {{ (modules.datetime.date.fromisoformat(day) + modules.datetime.timedelta(days=1)).isoformat() }}
    {%- endif -%}
{%- endmacro %}
