{#- Reads the tables of `conversion_events`, which have any columns, and are tables of this product or of others. -#}

{#-
    Returns the conversion events whose table can be read, each with the table's columns and types. Others are passed over
    with a note in the log. `is_own` says that a run of this project fills the table.
-#}
{% macro readable_conversions() %}
    {%- set readable = [] -%}
    {%- for event in list_variable('conversion_events') -%}
        {%- set relation = api.Relation.create(database=target.database, schema=event.schema, identifier=event.table) -%}
        {%- set described = fromjson(run_query(
            "select jsonb_build_object(
                'can_read', coalesce(has_schema_privilege(to_regnamespace(" ~ string_literal(adapter.quote(event.schema)) ~ "), 'usage')
                    and has_table_privilege(to_regclass(" ~ string_literal(relation) ~ "), 'select'), false),
                'is_own', exists (
                    select from raw.cursors
                    where source = " ~ string_literal(event.schema) ~ " and model = " ~ string_literal(event.table) ~ "
                ),
                'columns', (
                    select coalesce(jsonb_object_agg(attname, format_type(atttypid, null)), '{}')
                    from pg_attribute
                    where attrelid = to_regclass(" ~ string_literal(relation) ~ ") and attnum > 0 and not attisdropped
                )
            )::text"
        ).rows[0][0]) -%}
        {%- set time = event.get('time') or 'timestamp' -%}
        {%- set needed = ['id', time] + (['event'] if event.get('event') else []) -%}
        {%- set lacking = needed | reject('in', described['columns']) | list -%}
        {%- if not described.can_read -%}
            {%- do log("Conversion " ~ event.name ~ " is left out: table " ~ event.schema ~ "." ~ event.table ~ " does not exist, or may not be read.", info=true) -%}
        {%- elif lacking -%}
            {%- do log("Conversion " ~ event.name ~ " is left out: table " ~ event.schema ~ "." ~ event.table ~ " has no column " ~ lacking | join(", ") ~ ".", info=true) -%}
        {%- else -%}
            {%- do readable.append({'event': event, 'relation': relation, 'time': time, 'columns': described['columns'], 'is_own': described.is_own}) -%}
        {%- endif -%}
    {%- endfor -%}
    {{ return(readable) }}
{% endmacro %}


{#- The conversion tables that runs of this project fill, as `raw.log_arrivals` takes them. -#}
{% macro own_conversion_tables() %}
    {%- set tables = [] -%}
    {%- for conversion in readable_conversions() if conversion.is_own -%}
        {%- set table = {'name': conversion.event.schema ~ "." ~ conversion.event.table, 'source': conversion.event.schema, 'model': conversion.event.table} -%}
        {%- do tables.append(table) if table not in tables -%}
    {%- endfor -%}
    {{ return(tables) }}
{% endmacro %}


{% macro has_foreign_conversions() %}
    {{ return(readable_conversions() | rejectattr('is_own') | list | length > 0) }}
{% endmacro %}


{#- A column of a conversion's table as a text without spaces around it; NULL for a column that the table lacks. -#}
{% macro conversion_text(conversion, name) -%}
    {{ text_value("stored." ~ adapter.quote(name) ~ "::text") if name in conversion['columns'] else "null::text" }}
{%- endmacro %}


{#- The time of a conversion. A time without an offset is in UTC. -#}
{% macro conversion_time(conversion, name) -%}
    {%- set type = conversion['columns'][name] -%}
    {%- set column = "stored." ~ adapter.quote(name) -%}
    {%- if type == 'timestamp with time zone' -%}
        {{ column }}
    {%- elif type in ('timestamp without time zone', 'date') -%}
        {{ column }}::timestamp at time zone 'UTC'
    {%- else -%}
        raw.to_time(btrim({{ column }}::text))
    {%- endif -%}
{%- endmacro %}


{#- The time by which rows of a table of others are found: the time of arrival, or else the time of the conversion. -#}
{% macro conversion_arrival(conversion) -%}
    {%- set names = ['received_at', 'uuid_ts'] | select('in', conversion['columns']) | list -%}
    {{ conversion_time(conversion, names[0] if names else conversion.time) }}
{%- endmacro %}


{#- The rows of all conversion tables. In an increment, the rows that have come since the last run. -#}
{% macro collected_conversions() -%}
    {%- for conversion in readable_conversions() %}
    select
        {{ string_literal(conversion.event.name) }}::text as conversion_name,
        {{ text_value("stored.id::text") }} as conversion_id,
        {{ conversion_time(conversion, conversion.time) }} as occurred_at,
        {{ conversion_arrival(conversion) }} as arrived_at,
        {%- for name in ['user_id', 'email', 'context_traits_email', 'anonymous_id'] %}
        {{ conversion_text(conversion, name) }} as {{ name }},
        {%- endfor %}
        {{ conversion_text(conversion, conversion.event.get('order_id')) }} as order_id,
        raw.to_numeric({{ conversion_text(conversion, conversion.event.get('value')) }}) as value,
        coalesce(upper({{ conversion_text(conversion, conversion.event.get('currency')) }}), {{ string_literal(var('default_currency') or 'X' * 3) }}) as currency
    from {{ conversion.relation }} as stored
    where
        stored.id is not null
        {%- if conversion.event.get('event') %}
        and stored.event::text = {{ string_literal(conversion.event.event) }}
        {%- endif %}
        {%- if conversion.is_own %}
        /*+ and stored.id = any(array(
            select id
            from {{ changes_of('int_conversion_arrivals') }} as arrivals
            where event = {{ string_literal(conversion.event.schema ~ "." ~ conversion.event.table) }}
        )) +*/
        {%- else %}
        /*+ and {{ conversion_arrival(conversion) }} >= (
            select coalesce(max(arrived_at), '-infinity') - make_interval(secs => {{ var('conversion_lookback_hours') * 3600 }})
            from {{ this }} as present
            where conversion_name = {{ string_literal(conversion.event.name) }}
        )
        and not exists (
            select from {{ this }} as present
            where conversion_name = {{ string_literal(conversion.event.name) }} and conversion_id = {{ short_text(text_value("stored.id::text")) }}
        ) +*/
        {%- endif %}
    {{- " union all" if not loop.last }}
    {%- else %}
    select
        null::text as conversion_name, null::text as conversion_id, null::timestamptz as occurred_at,
        null::timestamptz as arrived_at, null::text as user_id, null::text as email, null::text as context_traits_email,
        null::text as anonymous_id, null::text as order_id, null::numeric as value, null::text as currency
    where false
    {%- endfor %}
{%- endmacro %}


{#- The keys of the conversions whose rows have come again in tables of this product. -#}
{% macro arrived_conversions() -%}
    {%- for conversion in readable_conversions() if conversion.is_own %}
    select {{ string_literal(conversion.event.name) }}::text as conversion_name, {{ short_text(text_value("id")) }} as conversion_id
    from {{ changes_of('int_conversion_arrivals') }} as arrivals
    where event = {{ string_literal(conversion.event.schema ~ "." ~ conversion.event.table) }}
    {{- " union all" if not loop.last }}
    {%- else %}
    select null::text as conversion_name, null::text as conversion_id
    where false
    {%- endfor %}
{%- endmacro %}


{#- The attribution models, as rows. -#}
{% macro attribution_models() -%}
    {%- for one in list_variable('attribution_models') %}
    ({{ string_literal(one.name) }}::text, '{{ one.position }}'::text, '{{ one.touch }}'::text, make_interval(secs => {{ one.window_hours * 3600 }}))
    {{- "," if not loop.last }}
    {%- endfor %}
{%- endmacro %}
