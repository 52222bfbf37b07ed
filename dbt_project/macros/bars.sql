{#
    Table function of the bars that a range needs: the symbols and their leaders, from the day before
    to the last date, except those that the var `unfit` names. Files are listed one by one, because an
    old one outside the range may have other columns.
#}
{% macro bars() -%}
    {%- set files = [] -%}
    {%- if execute -%}
        {%- set root = var('root', env_var('L2_ROOT', '../lake')) -%}
        {%- set found = run_query(
            "select file from glob('" ~ root ~ "/bars/symbol=*/date=*/part.parquet')"
            ~ " where regexp_extract(file, 'symbol=([^/]+)', 1) in ("
            ~ text_list((var('symbols') + var('leaders')) | unique) ~ ")"
            ~ " and regexp_extract(file, 'date=([^/]+)', 1) between '"
            ~ day_before(from_date()) ~ "' and '" ~ to_date() ~ "'"
            ~ " and not list_contains([" ~ text_list(var('unfit', [])) ~ "]::varchar[],"
            ~ " regexp_extract(file, 'symbol=([^/]+)', 1) || ' '"
            ~ " || regexp_extract(file, 'date=([^/]+)', 1)) order by file"
        ) -%}
        {%- do files.extend(found.columns[0].values()) -%}
        {%- if not files -%}
            {%- do exceptions.raise_compiler_error(
                root ~ "/bars: nothing from " ~ from_date() ~ " to " ~ to_date() ~ " for "
                ~ var('symbols') | join(', ') ~ "; materialise bars, or set L2_ROOT to another lake"
            ) -%}
        {%- endif -%}
    {%- endif -%}
    read_parquet(
        [{{ text_list(files) }}],
        hive_partitioning = true, hive_types_autocast = false
    )
{%- endmacro %}
