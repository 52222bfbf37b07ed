{#
    Table function of a record table (parents, orders, fills, tca, markouts) for the symbols, from the
    day before the range to the day after it, because a parent may end after midnight. The columns are
    those of the source's schema: one that an older file lacks is NULL; without files it is empty.
#}
{% macro records(table) -%}
    {%- set files = [] -%}
    {%- set columns = [] -%}
    {%- if execute -%}
        {%- for node in graph.sources.values() if node.name == table -%}
            {%- do columns.extend(node.columns.values()) -%}
        {%- endfor -%}
        {%- set root = var('root', env_var('L2_ROOT', '../lake')) -%}
        {%- set found = run_query(
            "select file from glob('" ~ root ~ "/" ~ table ~ "/symbol=*/date=*/part.parquet')"
            ~ " where regexp_extract(file, 'symbol=([^/]+)', 1) in (" ~ text_list(var('symbols')) ~ ")"
            ~ " and regexp_extract(file, 'date=([^/]+)', 1) between '"
            ~ day_before(from_date()) ~ "' and '" ~ day_after(to_date()) ~ "' order by file"
        ) -%}
        {%- do files.extend(found.columns[0].values()) -%}
    {%- endif -%}
    (
        select
            {% for column in columns -%}
            cast(null as {{ column.data_type }}) as {{ column.name }},
            {% endfor -%}
            cast(null as varchar) as date
        where false
        {%- if files %}
        union all by name
        select *
        from read_parquet(
            [{{ text_list(files) }}],
            union_by_name = true, hive_partitioning = true, hive_types_autocast = false
        )
        {%- endif %}
    )
{%- endmacro %}

{# The dates that a run builds, as a condition on `date`. #}
{% macro requested_dates() -%}
    date between '{{ from_date() }}' and '{{ to_date() }}'
{%- endmacro %}
