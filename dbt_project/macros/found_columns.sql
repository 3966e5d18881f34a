{#-
    Found columns: the properties of a table's events, as raw.properties lists them, become columns by the rules of the
    layout (`raw.place_properties`). Names and keys come from outside. They are data and string literals here, never code.
-#}

{#- Returns all columns that a run fills, in the form of `declared_columns`. `plan` is the result of `raw.open_table`. -#}
{% macro planned_columns(plan) %}
    {%- set fractions = listed(plan.fractions) -%}
    {%- set others = {} -%}
    {%- for note in plan.columns if note.declared -%}
        {%- do others.update({note.column_name: note.paths}) -%}
    {%- endfor -%}
    {%- set declared = [] -%}
    {%- for column in model.columns.values() if column.name in others -%}
        {%- do declared.append(column) -%}
    {%- endfor -%}
    {%- set columns = declared_columns(declared, others, fractions) + found_columns(plan.columns | rejectattr('declared') | list, fractions) -%}
    {%- do cast_in_place(columns) -%}
    {{ return(columns) }}
{% endmacro %}


{#- Returns found columns in the form of `declared_columns`. -#}
{% macro found_columns(notes, fractions) %}
    {%- set columns = [] -%}
    {%- for note in notes -%}
        {%- set text = column_text({}, note.paths, fractions if note.data_type != 'text' else {}) -%}
        {%- do columns.append(read_column(note.column_name, note.data_type, text, 'found_' ~ loop.index)) -%}
    {%- endfor -%}
    {{ return(columns) }}
{% endmacro %}


{#- Returns paths as the keys of a dictionary, in which `column_text` finds them. -#}
{% macro listed(paths) %}
    {%- set listed = {} -%}
    {%- for path in paths -%}
        {%- do listed.update({tojson(path): true}) -%}
    {%- endfor -%}
    {{ return(listed) }}
{% endmacro %}


{#-
    Fills widened columns of existing rows once more from raw.events: values that the old type could not hold, and values
    that it held in another spelling (12 for 12.0). It reads up to the table's cursor, so it must run before the new rows. A
    row whose value changes gets this run's `uuid_ts`, by which readers find changes.

    With a `from_snapshot` it fills columns that were missing for a while, in the rows of events that this snapshot does not
    show. A row whose event it shows, and whose id came again, had no such value. A rebuild lists the same mismatches.
-#}
{% macro refill_columns(table, plan, columns, from_snapshot='') %}
    {%- do cast_in_place(columns) -%}
    {%- do run_query(
        "select set_config('loader.snapshot', '" ~ plan.run.previous ~ "', true), set_config('loader.previous_snapshot', '" ~ from_snapshot ~ "', true), set_config('enable_seqscan', 'on', true)"
    ) -%}
    {%- set refill -%}
        update only {{ table.relation }} as served
        set
            {{ "uuid_ts = " ~ run_started_at() ~ "," if table.declared | selectattr('name', 'equalto', 'uuid_ts') | list }}
            {% for column in columns %}{{ adapter.quote(column.name) }} = refilled.{{ adapter.quote(column.name) }}{{ ", " if not loop.last }}{% endfor %}
        from (
            select distinct on (events.message_id)
                events.message_id,
                {%- for column in columns %}
                {{ column.value }} as {{ adapter.quote(column.name) }}{{ "," if not loop.last }}
                {%- endfor %}
            from (
                {{ new_events(source('raw', 'events'), table.name, table.every_event, columns=columns) }}
            ) as events
            order by events.message_id, events.seq
        ) as refilled
        where
            refilled.message_id = served.id
            {#- A row that had to leave columns empty goes on doing so. #}
            and not exists (
                select from raw.mismatches
                where model = '{{ table.name }}' and source = '{{ table.source }}' and event_id = served.id and column_name = '*'
            )
            and (
                {%- for column in columns %}
                {{ "or " if not loop.first }}served.{{ adapter.quote(column.name) }}::text is distinct from refilled.{{ adapter.quote(column.name) }}::text
                {%- endfor %}
            )
            and {{ is_not_shown(table, 'served.id', from_snapshot) }}
    {%- endset -%}
    {%- do write_rows(table, refill) -%}
    {%- if table.refused_by -%}
        {{ return(none) }}
    {%- endif -%}

    {%- set mismatches -%}
        delete from raw.mismatches
        where
            model = '{{ table.name }}' and source = '{{ table.source }}'
            and column_name in ({% for column in columns %}'{{ column.name }}'{{ ", " if not loop.last }}{% endfor %});

        {%- for column in columns if from_snapshot and column.reading %}

        insert into raw.mismatches (model, source, event_id, column_name, value)
        select '{{ table.name }}', '{{ table.source }}', events.message_id, '{{ column.name }}', {{ kept_value(column.text) }}
        from (
            {{ new_events(source('raw', 'events'), table.name, table.every_event, true, columns=[column]) }}
        ) as events
        inner join only {{ table.relation }} as served on served.id = events.message_id
        where
            ({{ loses_value(column) }})
            and {{ is_not_shown(table, 'events.message_id', from_snapshot) }};
        {%- endfor %}

        select set_config('loader.snapshot', '{{ plan.run.snapshot }}', true), set_config('loader.previous_snapshot', '{{ plan.run.previous }}', true), set_config('enable_seqscan', 'off', true)
    {%- endset -%}
    {%- do run_query(mismatches) -%}
{% endmacro %}


{#- An SQL condition: a snapshot shows no event of the table with an id. -#}
{% macro is_not_shown(table, id, snapshot) -%}
    {%- if snapshot in ('', '1:1:') -%}
        true
    {%- else -%}
        not exists (
                select from {{ source('raw', 'events') }} as earlier
                where
                    earlier.message_id = {{ id }}
                    and {{ event_filter(table.name, table.every_event) }}
                    and pg_visible_in_snapshot(load_xid, '{{ snapshot }}')
            )
    {%- endif -%}
{%- endmacro %}
