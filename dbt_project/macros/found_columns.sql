{#-
    Found columns: the properties of a table's events, as raw.properties lists them, become columns by the rules of the
    layout. Names and keys come from outside. They are data and string literals here, never code.
-#}

{#-
    Adds and widens the columns that a table's events need, and returns all columns that this run can fill: `columns` (as
    `declared_columns` returns them), `new_columns` (names), `widened` (names), and the `run` as `read_from` returns it after
    the last change. An existing table is changed in transactions of its own, so no row may be written before. One query
    when there is nothing to do. A table whose model takes no found columns has the declared ones only.
-#}
{% macro grow_table(table, source_name, shape, run, rebuild) %}
    {%- set places = {'found': {}, 'others': {}, 'unplaced': [], 'fractions': {}} if table.sql else place_properties(table, source_name) -%}
    {%- set columns = declared_columns(table.declared, places.others, places.fractions) -%}
    {%- set statements = shape.statements | list -%}
    {%- set new_columns = shape.missing | list -%}
    {%- set too_narrow = {} -%}
    {%- set notes = [] -%}
    {%- set room = namespace(columns=1600 - shape.attributes) -%}

    {%- for column in columns -%}
        {%- do notes.append({'column_name': column.name, 'data_type': column.data_type, 'declared': true, 'paths': places.others.get(column.name, [])}) -%}
    {%- endfor -%}

    {%- for name, found in places.found.items() -%}
        {%- set wanted = least_type(found.types) -%}
        {%- set note = {'column_name': name, 'data_type': wanted, 'declared': false, 'paths': found.paths, 'first_event_id': found.event} -%}
        {%- if name not in shape.types and room.columns > 0 -%}
            {%- set room.columns = room.columns - 1 -%}
            {%- do new_columns.append(name) -%}
            {%- do statements.append("alter table " ~ table.relation ~ " add column " ~ adapter.quote(name) ~ " " ~ wanted) -%}
            {%- do statements.append("comment on column " ~ table.relation ~ "." ~ adapter.quote(name) ~ " is " ~ string_literal("Found in the events: " ~ found.paths[0] | join("."))) -%}
        {%- elif name not in shape.types -%}
            {%- do places.unplaced.append({'path': found.paths[0], 'column': name, 'reason': 'full'}) -%}
            {%- do note.update({'column_name': none}) -%}
        {%- else -%}
            {%- do note.update({'data_type': shape.types[name]}) -%}
            {%- set widest = least_type([shape.types[name], wanted]) if is_inferred_type(shape.types[name]) else shape.types[name] -%}
            {%- do too_narrow.update({name: widest}) if widest != shape.types[name] -%}
        {%- endif -%}
        {%- do notes.append(note) if note.column_name -%}
    {%- endfor -%}
    {%- set has_notes = places.found or places.others or shape.new_columns or shape.missing -%}

    {%- if statements and shape.created -%}
        {%- do run_query(statements | join("; ")) -%}
    {%- elif statements -%}
        {%- set in_the_way = change_table(table, source_name, statements) -%}
        {%- for note in notes if in_the_way and note.column_name in new_columns -%}
            {%- do note.update({
                'is_missing': true, 'wanted_type': note.data_type, 'in_the_way': in_the_way,
                'fill_from': '1:1:' if note.declared or rebuild else (run.cursor_snapshot or '1:1:'),
            }) -%}
        {%- endfor -%}
        {%- set new_columns = [] if in_the_way else new_columns -%}
        {%- if not in_the_way -%}
            {%- do record_columns(table, source_name, notes) if has_notes -%}
            {%- set run = commit_change(table, source_name, rebuild) -%}
        {%- endif -%}
    {%- endif -%}

    {%- set widened = [] -%}
    {%- do run_query("savepoint before_widening") if too_narrow -%}
    {%- for note in notes if note.column_name in too_narrow -%}
        {%- set name = note.column_name -%}
        {%- set in_the_way = widen_column(table, source_name, name, too_narrow[name]) -%}
        {%- if in_the_way -%}
            {%- do keep_type(table, note, shape.types[name], too_narrow[name], in_the_way) -%}
        {%- else -%}
            {%- do widened.append(name) -%}
            {#- Existing rows are filled below, or by the rebuild, or by the next run if this run is killed. -#}
            {%- do note.update({'data_type': too_narrow[name]}) -%}
            {%- do note.update({'fill_from': '1:1:'}) if rebuild -%}
        {%- endif -%}
    {%- endfor -%}
    {%- do refill_columns(table, source_name, run, found_columns(notes, places.fractions) | selectattr('name', 'in', widened) | list) if widened and not rebuild -%}
    {%- do check_deferred(table) if widened and not rebuild -%}
    {%- if table.refused_by -%}
        {#- An object of another role refuses the changed rows. The columns stay as they were, and the run goes on. -#}
        {%- do run_query("rollback to savepoint before_widening") -%}
        {%- for note in notes if note.column_name in widened -%}
            {%- do keep_type(table, note, shape.types[note.column_name], too_narrow[note.column_name], table.refused_by) -%}
        {%- endfor -%}
    {%- endif -%}

    {%- do columns.extend(found_columns(notes, places.fractions)) -%}
    {%- set missing = notes | selectattr('is_missing', 'defined') | map(attribute='column_name') | list -%}
    {%- set columns = columns | rejectattr('name', 'in', missing) | list -%}
    {%- do cast_in_place(columns) -%}

    {%- do record_columns(table, source_name, notes) if has_notes -%}
    {%- do record_collisions(table, source_name, places.unplaced) if places.unplaced -%}
    {%- if table.refused_by -%}
        {%- do put_off_widening(table, source_name, too_narrow) -%}
        {%- do table.update({'refused_by': none}) -%}
        {%- set widened = [] -%}
    {%- elif widened -%}
        {%- set run = commit_change(table, source_name, rebuild) -%}
    {%- endif -%}
    {{ return({'columns': columns, 'new_columns': new_columns, 'widened': widened, 'run': run}) }}
{% endmacro %}


{#- Records that a column keeps its type, and the obstacle to a wider type. -#}
{% macro keep_type(table, note, data_type, wanted_type, in_the_way) %}
    {%- do note.update({'data_type': data_type, 'wanted_type': wanted_type, 'in_the_way': in_the_way}) -%}
    {%- do table.obstacles.append("column " ~ note.column_name ~ " stays " ~ data_type ~ " instead of " ~ wanted_type ~ ". In the way: " ~ in_the_way ~ ".") -%}
{% endmacro %}


{#- Scheduled runs try to widen these columns again after five minutes. -#}
{% macro put_off_widening(table, source_name, names) %}
    {%- do run_query(
        "update raw.columns set next_try_at = clock_timestamp() + interval '5 min'
        where model = '" ~ table.name ~ "' and source = '" ~ source_name ~ "' and column_name in ('" ~ names | join("', '") ~ "')"
    ) -%}
{% endmacro %}


{#- Returns the found columns in the form of `declared_columns`. -#}
{% macro found_columns(notes, fractions) %}
    {%- set columns = [] -%}
    {%- for note in notes if not note.declared and not note.is_missing -%}
        {%- set text = column_text({}, note.paths, fractions if note.data_type != 'text' else {}) -%}
        {%- do columns.append(read_column(note.column_name, note.data_type, text, 'found_' ~ loop.index)) -%}
    {%- endfor -%}
    {{ return(columns) }}
{% endmacro %}


{#-
    Places the properties of a table's events by these rules:
    - A declared property is never flattened, and its column keeps the declared type.
    - Of several properties with one column, the declared one counts first, then the one seen first, where it is not null.
    - The layout's own columns are never overwritten. A name without letters or digits gives no column.
    - Properties that are no object give no column, and neither does a context that is no object.
    Returns `found` (by column: the paths of its values, their types, the first event), `others` (further paths of declared
    columns), `unplaced` (properties without a column of their own, with reasons) and `fractions` (the paths of numbers that
    no bigint holds).
-#}
{% macro place_properties(table, source_name) %}
    {%- set places = {'found': {}, 'others': {}, 'unplaced': [], 'fractions': {}} -%}
    {%- set declared = {} -%}
    {%- set declared_paths = {} -%}
    {%- set lengths = [0] -%}
    {%- for column in table.declared -%}
        {%- set origin = column_origin(column) -%}
        {%- do declared.update({column.name: 'event' if origin.context or origin.property else 'layout'}) -%}
        {%- for section, keys in (('context', origin.context), ('properties', origin.property)) if keys -%}
            {%- set path = [section] + keys -%}
            {%- do declared_paths.update({tojson(path): true}) -%}
            {%- do lengths.append(path | length) -%}
        {%- endfor -%}
    {%- endfor -%}

    {%- for seen in seen_properties(table, source_name) -%}
        {%- do places.fractions.update({tojson(seen.path): true}) if 'numeric' in seen.types -%}
        {%- set inside = namespace(declared=false) -%}
        {%- for length in range(2, ([seen.path | length, lengths | max] | min) + 1) if tojson(seen.path[:length]) in declared_paths -%}
            {%- set inside.declared = true -%}
        {%- endfor -%}
        {%- if not inside.declared -%}
            {%- set column = seen.column -%}
            {%- set reason = none -%}
            {%- if seen.path | length == 1 -%}
                {%- set reason = 'no_object' -%}
            {%- elif not column -%}
                {%- set reason = 'nameless' -%}
            {%- elif declared.get(column) == 'layout' -%}
                {%- set reason = 'layout' -%}
            {%- elif column in declared -%}
                {%- do places.others.setdefault(column, []).append(seen.path) -%}
                {%- set reason = 'shared' -%}
            {%- elif column in places.found -%}
                {%- do places.found[column].paths.append(seen.path) -%}
                {%- do places.found[column].types.extend(seen.types) -%}
                {%- set reason = 'shared' -%}
            {%- else -%}
                {%- do places.found.update({column: {'paths': [seen.path], 'types': seen.types, 'event': seen.event}}) -%}
            {%- endif -%}
            {%- do places.unplaced.append({'path': seen.path, 'column': column, 'reason': reason}) if reason -%}
        {%- endif -%}
    {%- endfor -%}
    {{ return(places) }}
{% endmacro %}


{#- Returns the properties of a table's events in the order of their first sight; for tracks, those of every event's context. -#}
{% macro seen_properties(table, source_name) %}
    {%- set query -%}
        select coalesce(
            jsonb_agg(
                jsonb_build_object('path', path, 'column', column_name, 'types', types, 'event', first_event_id) order by number
            ),
            '[]'
        )::text as seen
        from (
            select
                path,
                column_name,
                jsonb_agg(distinct type) as types,
                min(number) as number,
                (array_agg(first_event_id order by number))[1] as first_event_id
            from raw.properties
            cross join unnest(types) as type
            where
                source = '{{ source_name }}'
                and {{ "path[1] = 'context'" if table.every_event else "collection = '" ~ table.name ~ "'" }}
            group by path, column_name
        ) as properties
    {%- endset -%}
    {#- As one JSON text: in rows, dbt would read a key named null as no value, and a key named 1e3 as a number. -#}
    {{ return(fromjson(run_query(query).rows[0][0])) }}
{% endmacro %}


{% macro is_inferred_type(data_type) -%}
    {{ return(data_type in ['boolean', 'bigint', 'numeric', 'timestamp with time zone', 'text']) }}
{%- endmacro %}


{#- Returns the least type that holds the values of some types. -#}
{% macro least_type(types) -%}
    {%- set several = types | unique | list -%}
    {%- if several | length == 1 -%}
        {{ return(several[0]) }}
    {%- endif -%}
    {{ return('numeric' if several | reject('in', ['bigint', 'numeric']) | list | length == 0 else 'text') }}
{%- endmacro %}


{#-
    Gives a column a wider type. Returns the obstacle, if any: a lock, an object on the column, or the table's size. `loader
    widen` makes views again and rewrites a table of any size.
-#}
{% macro widen_column(table, source_name, name, data_type) %}
    {%- set call -%}
        select raw.try_widening(
            '{{ table.name }}', '{{ source_name }}', {{ string_literal(table.relation) }}::regclass, '{{ name }}', '{{ data_type }}',
            array[{% for view in project_views() %}{{ string_literal(view) }}{{ ", " if not loop.last }}{% endfor %}]::text[],
            {{ env_var('LOADER_WIDEN_BYTES', '100000000') | int }}, {{ is_widening() }}
        )
    {%- endset -%}
    {{ return(run_query(call).rows[0][0] or '') }}
{% endmacro %}


{#- Returns the views that models of this project make. dbt replaces them in every run, so a run may do so too. -#}
{% macro project_views() %}
    {%- set views = [] -%}
    {%- for node in graph.nodes.values() if node.resource_type == 'model' and node.config.materialized == 'view' -%}
        {%- do views.append(api.Relation.create(schema=node.schema, identifier=node.alias) | string) -%}
    {%- endfor -%}
    {{ return(views) }}
{% endmacro %}


{#- Tells whether this is a run of `loader widen`, or a run by hand with the same variable. -#}
{% macro is_widening() -%}
    {{ return(env_var('LOADER_WIDEN', '') == 'true') }}
{%- endmacro %}


{#-
    Fills widened columns of existing rows once more from raw.events: values that the old type could not hold, and values
    that it held in another spelling (12 for 12.0). It reads up to the table's cursor, so it must run before the new rows. A
    row whose value changes gets this run's `uuid_ts`, by which readers find changes.

    With a `from_snapshot` it fills columns that were missing for a while, in the rows of events that this snapshot does not
    show. A row whose event it shows, and whose id came again, had no such value. A rebuild lists the same mismatches.
-#}
{% macro refill_columns(table, source_name, run, columns, from_snapshot='') %}
    {%- do cast_in_place(columns) -%}
    {%- do run_query(
        "select set_config('loader.snapshot', '" ~ run.cursor_snapshot ~ "', true), set_config('loader.previous_snapshot', '" ~ from_snapshot ~ "', true), set_config('enable_seqscan', 'on', true)"
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
                where model = '{{ table.name }}' and source = '{{ source_name }}' and event_id = served.id and column_name = '*'
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
            model = '{{ table.name }}' and source = '{{ source_name }}'
            and column_name in ({% for column in columns %}'{{ column.name }}'{{ ", " if not loop.last }}{% endfor %});

        {%- for column in columns if from_snapshot and column.reading %}

        insert into raw.mismatches (model, source, event_id, column_name, value)
        select '{{ table.name }}', '{{ source_name }}', events.message_id, '{{ column.name }}', {{ kept_value(column.text) }}
        from (
            {{ new_events(source('raw', 'events'), table.name, table.every_event, true, columns=[column]) }}
        ) as events
        inner join only {{ table.relation }} as served on served.id = events.message_id
        where
            ({{ loses_value(column) }})
            and {{ is_not_shown(table, 'events.message_id', from_snapshot) }};
        {%- endfor %}

        select set_config('loader.snapshot', '{{ run.snapshot }}', true), set_config('loader.previous_snapshot', '{{ run.cursor_snapshot }}', true), set_config('enable_seqscan', 'off', true)
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


{#- Records the columns of the table, with times and first events. Writes nothing where raw.columns has them. -#}
{% macro record_columns(table, source_name, notes) %}
    {%- do run_query(
        "insert into raw.columns (model, source, column_name, data_type, declared, paths, first_event_id, wanted_type, in_the_way, is_missing, fill_from)
        select
            '" ~ table.name ~ "', '" ~ source_name ~ "', column_name, data_type, declared, paths, first_event_id, wanted_type, in_the_way,
            coalesce(is_missing, false), fill_from
        from jsonb_to_recordset(" ~ string_literal(tojson(notes)) ~ "::jsonb) as noted (
            column_name text, data_type text, declared boolean, paths jsonb, first_event_id text, wanted_type text, in_the_way text,
            is_missing boolean, fill_from pg_snapshot
        )
        on conflict (model, source, column_name) do update set
            data_type = excluded.data_type,
            declared = excluded.declared,
            paths = excluded.paths,
            wanted_type = excluded.wanted_type,
            in_the_way = excluded.in_the_way,
            is_missing = excluded.is_missing,
            added_at = case when columns.is_missing then excluded.added_at else columns.added_at end,
            fill_from = coalesce(columns.fill_from, excluded.fill_from)
        where (columns.data_type, columns.declared, columns.paths, columns.wanted_type, columns.in_the_way, columns.is_missing)
            is distinct from (excluded.data_type, excluded.declared, excluded.paths, excluded.wanted_type, excluded.in_the_way, excluded.is_missing)
            or (columns.fill_from is null and excluded.fill_from is not null)"
    ) -%}
{% endmacro %}


{#- Records the properties that have no column of their own. -#}
{% macro record_collisions(table, source_name, unplaced) %}
    {%- do run_query(
        "insert into raw.collisions (model, source, digest, path, column_name, reason)
        select '" ~ table.name ~ "', '" ~ source_name ~ "', sha256(convert_to(noted.path::text, 'UTF8')),
            array(select jsonb_array_elements_text(noted.path)), noted.\"column\", noted.reason
        from jsonb_to_recordset(" ~ string_literal(tojson(unplaced)) ~ "::jsonb) as noted (path jsonb, \"column\" text, reason text)
        on conflict (model, source, digest) do update set reason = excluded.reason where collisions.reason <> excluded.reason"
    ) -%}
{% endmacro %}
