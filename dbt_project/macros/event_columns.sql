{#-
    The select behind every table: one row per event, one column per column of the model's yml. The yml is the only place
    that lists columns; where a column's value comes from is told by its `meta` (`property`, `context`) or, for the
    layout's own columns, by its name.

    The call is taken apart once (`jsonb_to_record`): reading key after key from the stored value would unpack a long
    payload again for each.
-#}
{% macro collection(every_event=false) %}
    {#- A parent while dbt parses, so that tracks comes first, and none when it runs: nothing is read from it. -#}
    {%- do ref('after_tracks') if not (execute or every_event) -%}
    {%- set events = source('raw', 'events') -%}
    select
        {%- for column in model_columns() %}
        {{ column_value(column) }} as {{ adapter.quote(column.name) }}{{ "," if not loop.last }}
        {%- else %}
        1 as nothing
        {%- endfor %}
    from (
        {{ new_events(events, every_event) | indent(8) }}
    ) as events
    cross join lateral (
        {{ event_times() | indent(8) }}
    ) as times
{%- endmacro %}


{#- What the yml says of the model. A unit test is a node of its own that knows neither: it brings both. -#}
{% macro collection_name() -%}
    {{ return(model.name) }}
{%- endmacro %}


{% macro model_columns() -%}
    {{ return(model.columns.values() | list) }}
{%- endmacro %}


{#- The events of this model in this run, with the parts of the call that columns are read from: tracks has no properties. -#}
{% macro new_events(events, every_event=false) -%}
    select
        landed.seq,
        landed.message_id,
        landed.received_at,
        landed.collection,
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
        {{ event_filter(every_event) }}
        and {{ since_last_run() }}
    offset 0
{%- endmacro %}


{% macro event_filter(every_event=false) -%}
    collection {{ "is not null" if every_event else "= '" ~ collection_name() ~ "'" }}
        and source = {{ current_source() }}
{%- endmacro %}


{#- One column's value. -#}
{% macro column_value(column) -%}
    {%- set origin = column_origin(column) -%}
    {%- if origin.property or origin.context -%}
        {{ cast_value(column_text(origin), column.data_type) }}
    {%- else -%}
        {{ layout_value(column.name) }}
    {%- endif -%}
{%- endmacro %}


{#- Where the yml says a column's value is: {'property': path, 'context': path}, or neither. -#}
{% macro column_origin(column) -%}
    {{ return((column.config or {}).meta or column.meta or {}) }}
{%- endmacro %}


{#- A property or context value as text; a column that names both takes the context's first. -#}
{% macro column_text(origin) -%}
    {%- set values = [] -%}
    {%- if origin.context -%}{%- do values.append(json_text('events."context"', origin.context)) -%}{%- endif -%}
    {%- if origin.property -%}{%- do values.append(json_text('events."properties"', origin.property)) -%}{%- endif -%}
    {{ values[0] if values | length == 1 else "coalesce(" ~ values | join(", ") ~ ")" }}
{%- endmacro %}


{#- The columns every table of the layout has. -#}
{% macro layout_value(name) -%}
    {%- set values = {
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
    } -%}
    {%- if name not in values -%}
        {%- do exceptions.raise_compiler_error("Column " ~ name ~ " of " ~ collection_name() ~ " has neither meta.property nor meta.context, and is no column of the layout.") -%}
    {%- endif -%}
    {{ values[name] }}
{%- endmacro %}


{% macro event_times() -%}
    select
        {{ cast_value('events."sentAt"', 'timestamp with time zone') }} as sent_at,
        {{ cast_value('coalesce(events."originalTimestamp", events."timestamp")', 'timestamp with time zone') }} as original,
        case when events."originalTimestamp" is not null then {{ cast_value('events."timestamp"', 'timestamp with time zone') }} end as corrected,
        case when events."originalTimestamp" is not null then {{ cast_value('events."receivedAt"', 'timestamp with time zone') }} end as received_at
    offset 0
{%- endmacro %}


{#-
    When the event happened: the sender's time, corrected by how far the sender's clock was off when it sent
    (https://segment.com/docs/connections/spec/common/#timestamps). A call from Segment's raw logs has been through this:
    it carries what Segment received and computed, and keeps it. Thousands of years of skew are no clock's.
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
