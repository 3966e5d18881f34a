{#-
    The select behind every table: one row per event, one column per column of the model's yml. The yml is the only list of
    columns. A column's `meta` (`property`, `context`) gives the origin of its value; the layout's own columns are known by
    name. A run adds found columns.

    `jsonb_to_record` takes the call apart once. Reading key after key would unpack a long payload again for each key.
-#}
{% macro collection(every_event=false) %}
    {%- set known = known_columns() if execute and flags.WHICH in ('compile', 'show') and flags.INTROSPECT -%}
    {{ event_select(known or declared_columns(model_columns()), collection_name(), every_event, first_of_id=true) }}
{%- endmacro %}


{#- Returns the columns that the last run filled, found columns included, so that `dbt compile` shows the select of a run. -#}
{% macro known_columns() %}
    {%- if not config.get('meta', {}).get('found_columns') or not run_query("select to_regclass('raw.columns') is not null").rows[0][0] -%}
        {{ return([]) }}
    {%- endif -%}
    {%- set source_name = model.schema if is_production() else model.schema[target_schema('') | length:] -%}
    {%- set query -%}
        select jsonb_build_object(
            'columns', coalesce(
                jsonb_agg(to_jsonb(columns) order by added_at, column_name) filter (where not is_missing), '[]'
            ),
            'fractions', raw.place_properties({{ string_literal(model.alias) }}, {{ string_literal(source_name) }}, '[]') -> 'fractions'
        )::text as plan
        from raw.columns
        where model = {{ string_literal(model.alias) }} and source = {{ string_literal(source_name) }}
    {%- endset -%}
    {{ return(planned_columns(fromjson(run_query(query).rows[0][0]))) }}
{% endmacro %}


{#-
    The select for any table. `columns` have the form of `declared_columns`. With `first_of_id`, the select
    takes only the first landed event of each id; a run asks for it where an id repeats. SQL around the macro could not do
    so, because it does not know the landing order. `noting` is a condition for every row. `order` is the order of the rows.
    With `in_order`, the rows come in landing order, by a merge of all partitions.
-#}
{% macro event_select(columns, collection, every_event, first_of_id=false, noting='', order=none, in_order=false) -%}
    select
        {%- for column in columns %}
        {{ column.value }} as {{ adapter.quote(column.name) }}{{ "," if not loop.last }}
        {%- else %}
        1 as nothing
        {%- endfor %}
    from (
        {#- Lines are not indented, because the key of a property may hold a line break. #}
        {{ new_events(source('raw', 'events'), collection, every_event, first_of_id, columns, every_event and noting, in_order) }}
    ) as events
    cross join lateral (
        {{ event_times() | indent(8) }}
    ) as times
    {%- if noting %}
    where
        {{ noting }}
    {%- endif %}
    {%- if order %}
    order by {{ order }}
    {%- endif %}
{%- endmacro %}


{#- Returns the name of the model's table. A unit test is a node of its own, which names the model that it tests. -#}
{% macro collection_name() -%}
    {{ return((model.tested_node_unique_id or '').split('.')[-1] if model.resource_type == 'unit_test' else model.alias) }}
{%- endmacro %}


{#- Returns the columns of the model's yml. dbt does not show the yml to a unit test, so the test overrides this macro. -#}
{% macro model_columns() -%}
    {%- if execute and model.resource_type == 'unit_test' -%}
        {%- do exceptions.raise_compiler_error(
            "Unit test " ~ model.name ~ " does not list the columns that it tests. List them in the test's yml, under overrides.macros.model_columns, as the model's yml does."
        ) -%}
    {%- endif -%}
    {{ return(model.columns.values() | list) }}
{%- endmacro %}


{#-
    The events of a table in this run, with the parts of the call that columns are read from. tracks reads no properties. The
    text of each of the `columns` is read once and cast once.
-#}
{% macro new_events(events, collection, every_event=false, first_of_id=false, columns=[], with_table_id=false, in_order=false) -%}
    {%- set read = columns | selectattr('reading') | list -%}
    {%- if read -%}
    select
        events.*
        {%- for column in read if column.value_name %},
        {{ column.cast }} as {{ column.value_name }}
        {%- endfor %}
    from (
        select
            events.*,
            {%- for column in read %}
            {{ column.reading }} as {{ column.text_name }}{{ "," if not loop.last }}
            {%- endfor %}
        from (
    {%- endif %}
    select
        landed.seq,
        landed.message_id,
        landed.received_at,
        landed.collection,
        {%- if with_table_id %}
        landed.tableoid as table_id,
        {%- endif %}
        call.*
    from {{ events }} as landed
    cross join lateral jsonb_to_record(landed.payload) as call (
        "event" text,
        "userId" text,
        "anonymousId" text,
        "timestamp" text,
        "originalTimestamp" text,
        "sentAt" text,
        "receivedAt" text,
        "context" jsonb
        {%- if not every_event %},
        "properties" jsonb
        {%- endif %}
    )
    where
        {{ event_filter(collection, every_event) }}
        and {{ since_last_run() }}
        {%- if first_of_id %}
        and seq in (
            select min(seq)
            from {{ events }}
            where
                {{ event_filter(collection, every_event) | indent(8) }}
                and {{ since_last_run() | indent(8) }}
            group by message_id
        )
        {%- endif %}
    {%- if in_order %}
    order by landed.load_xid, landed.seq
    {%- endif %}
    offset 0
    {%- if read %}
        ) as events
        offset 0
    ) as events
    offset 0
    {%- endif %}
{%- endmacro %}


{% macro event_filter(collection, every_event=false) -%}
    collection {{ "is not null" if every_event else "= '" ~ collection ~ "'" }}
        and source = {{ current_source() }}
{%- endmacro %}


{#-
    Returns the columns of a yml: `name`, `data_type` and `value` (its SQL). A column from a property or the context also has
    `text`, the SQL of the text that is cast. `new_events` reads that text as `text_name` by the SQL in `reading`, and casts
    it as `value_name` by the SQL in `cast`. `others` adds further places of a column's value. `fractions` are the paths of
    numbers that no bigint holds.
-#}
{% macro declared_columns(declared, others={}, fractions={}) -%}
    {%- set layout = layout_values() -%}
    {%- set columns = [] -%}
    {%- for column in declared -%}
        {%- set origin = (column.config or {}).meta or column.meta or {} -%}
        {%- if origin.property or origin.context -%}
            {%- set text = column_text(origin, others.get(column.name, []), fractions if column.data_type != 'text' else {}) -%}
            {%- do columns.append(read_column(column.name, column.data_type, text, loop.index)) -%}
        {%- elif column.name in layout -%}
            {%- do columns.append({'name': column.name, 'data_type': column.data_type, 'text': none, 'reading': none, 'value': layout[column.name]}) -%}
        {%- else -%}
            {%- do exceptions.raise_compiler_error("Column " ~ column.name ~ " has neither meta.property nor meta.context, and is not a column of the layout.") -%}
        {%- endif -%}
    {%- endfor -%}
    {{ return(columns) }}
{%- endmacro %}


{#- A column whose value is cast from a text. A text column has the text itself. `place` makes the names unique. -#}
{% macro read_column(name, data_type, text, place) -%}
    {%- if data_type == 'text' -%}
        {{ return({'name': name, 'data_type': data_type, 'text': text, 'reading': none, 'value': text}) }}
    {%- endif -%}
    {%- set text_name = 'text_' ~ place -%}
    {%- set value_name = 'value_' ~ place -%}
    {{ return({
        'name': name, 'data_type': data_type,
        'text': 'events.' ~ text_name, 'text_name': text_name, 'reading': text,
        'value': 'events.' ~ value_name, 'value_name': value_name, 'cast': cast_value('events.' ~ text_name, data_type),
    }) }}
{%- endmacro %}


{#-
    Casts the values of a very wide table where they are used. A text and its value would be two entries of a target list,
    and PostgreSQL allows 1,664 entries.
-#}
{% macro cast_in_place(columns) -%}
    {%- set read = columns | selectattr('reading') | list -%}
    {%- for column in read if read | length > 400 -%}
        {%- do column.update({'value': column.cast, 'value_name': none}) -%}
    {%- endfor -%}
{%- endmacro %}


{#- An SQL condition: the column does not hold its text, or holds it without some digits. An empty string is no value. -#}
{% macro loses_value(column) -%}
    {%- set rounded = loses_digits(column.text, column.data_type) -%}
    ({{ column.value }} is null and {{ column.text }} <> ''){{ " or (" ~ rounded ~ ")" if rounded }}
{%- endmacro %}


{#-
    The text of the first value that an event has: the context's, the property's, then the others. `origin` has the keys of
    both, as a dotted path or as a list where a key has a dot of its own. At the paths of `fractions`, a number of very many
    digits is not written out.
-#}
{% macro column_text(origin, others=[], fractions={}) -%}
    {%- set values = [] -%}
    {%- for root, keys in (('context', origin.context), ('properties', origin.property)) if keys -%}
        {%- set keys = keys.split('.') if keys is string else keys -%}
        {%- set text = json_value('events."' ~ root ~ '"', keys, as_text=true) -%}
        {%- set is_long = fractions and tojson([root] + keys) in fractions -%}
        {%- do values.append("raw.short_text(" ~ json_value('events."' ~ root ~ '"', keys) ~ ", " ~ text ~ ")" if is_long else text) -%}
    {%- endfor -%}
    {%- for path in others -%}
        {%- set text = json_leaf('events."' ~ path[0] ~ '"', path[1:]) -%}
        {%- set is_long = fractions and tojson(path) in fractions -%}
        {%- do values.append("raw.short_text(" ~ json_value('events."' ~ path[0] ~ '"', path[1:]) ~ ", " ~ text ~ ")" if is_long else text) -%}
    {%- endfor -%}
    {{ values[0] if values | length == 1 else "coalesce(" ~ values | join(", ") ~ ")" }}
{%- endmacro %}


{#- Returns the SQL of the columns that every table of the layout has. -#}
{% macro layout_values() -%}
    {{ return({
        'id': 'events.message_id::varchar(1024)',
        'received_at': 'events.received_at',
        'uuid_ts': run_started_at(),
        'anonymous_id': 'events."anonymousId"',
        'user_id': 'events."userId"',
        'event': "nullif(events.collection, '')",
        'event_text': 'events."event"',
        'original_timestamp': 'coalesce(events."originalTimestamp", events."timestamp")',
        'sent_at': 'times.sent_at',
        'timestamp': event_time(),
    }) }}
{%- endmacro %}


{% macro event_times() -%}
    select
        {{ read_time('events."sentAt"') }} as sent_at,
        {{ read_time(sender_time()) }} as original,
        case when events."originalTimestamp" is not null then {{ read_time('events."timestamp"') }} end as corrected,
        case when events."originalTimestamp" is not null then {{ read_time('events."receivedAt"') }} end as received_at
    offset 0
{%- endmacro %}


{#-
    The text of the sender's time. A call that another instance of this product has forwarded has the mark `via`, and its
    `timestamp` is corrected by the sender's clock already.
-#}
{% macro sender_time() -%}
    case when events."originalTimestamp" is null or events."context" ? 'via' then coalesce(events."timestamp", events."originalTimestamp") else events."originalTimestamp" end
{%- endmacro %}


{#- A time of the call. Nearly all times are ISO 8601, which the cast reads. The function reads the other forms. -#}
{% macro read_time(text) -%}
    coalesce(raw.to_time({{ text }}), raw.read_time({{ text }}))
{%- endmacro %}


{#-
    Returns the times of a call for the columns that a table has: a list of `name`, `text`, and `is_lost`, an SQL condition
    for a time that cannot be read. A call from Segment's raw logs has the time that Segment computed.
-#}
{% macro unread_times(columns) -%}
    {%- set texts = {'sent_at': 'events."sentAt"', 'timestamp': sender_time()} -%}
    {%- set conditions = {
        'sent_at': 'times.sent_at is null',
        'timestamp': 'times.original is null and (times.corrected is not null and times.received_at = events.received_at) is not true',
    } -%}
    {%- set times = [] -%}
    {%- for column in columns if column.text is none and column.name in texts -%}
        {%- set text = texts[column.name] -%}
        {%- do times.append({'name': column.name, 'text': text, 'is_lost': "(" ~ conditions[column.name] ~ " and " ~ text ~ " <> '')"}) -%}
    {%- endfor -%}
    {{ return(times) }}
{%- endmacro %}


{#-
    The time of the event: the sender's time, corrected by the skew of the sender's clock
    (https://segment.com/docs/connections/spec/common/#timestamps). A call from Segment's raw logs keeps the time that Segment
    has corrected already. A skew of thousands of years is no skew of a clock, so it is not corrected.
-#}
{% macro event_time() -%}
    case
            when times.corrected is not null and times.received_at = events.received_at then times.corrected
            when times.original is null then events.received_at
            when
                times.sent_at - times.original between interval '-4000 years' and interval '4000 years'
                and events.received_at between '0001-01-01' and '9999-12-31'
                then events.received_at - (times.sent_at - times.original)
            else times.original
        end
{%- endmacro %}
