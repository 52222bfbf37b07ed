-- One row per symbol, date and second. A date's rows are its own bars (`wanted`) and, before them,
-- the tail of the day before, for warm-up only. A tail row carries the date that it warms up, not
-- its own: windows partitioned by symbol and date then see the same rows whatever range is built,
-- and give the same bits.
--
-- `not materialized`: DuckDB would materialise an expression used twice, with all columns and dates.

with bars as not materialized (

    -- depends_on: {{ source('lake', 'bars') }}
    select *
    from {{ bars() }}

),

own as (

    select *, symbol in ({{ text_list(var('symbols')) }}) as wanted
    from bars
    where date between '{{ from_date() }}' and '{{ to_date() }}'

),

tail as (

    select
        * replace (cast(cast(date as date) + 1 as varchar) as date),
        false as wanted
    from bars
    where
        date between '{{ day_before(from_date()) }}' and '{{ day_before(to_date()) }}'
        -- A date ends with the bar of the next midnight.
        and t_ns > epoch_ns(cast(date as date) + 1) - {{ var('tail_s') * 1000000000 }}

)

select symbol, date, t_ns, wanted, columns(* exclude (symbol, date, t_ns, wanted)) from own
union all by name
select symbol, date, t_ns, wanted, columns(* exclude (symbol, date, t_ns, wanted)) from tail
