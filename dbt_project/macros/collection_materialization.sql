{#-
    Fills one served table per source in place.

    One transaction per source locks the cursor, creates a missing table, adds the new events in landing order, records
    mismatches, moves the cursor and reports. No table is dropped, renamed or swapped, so views, grants and open readers
    survive a run. A full refresh deletes and inserts in the same way.
-#}
{% materialization collection, adapter='postgres' %}
    {{ run_hooks(pre_hooks, inside_transaction=False) }}
    {%- do begin() if pre_hooks | rejectattr('transaction') | list -%}
    {{ run_hooks(pre_hooks, inside_transaction=True) }}

    {%- set totals = namespace(rows=0) -%}
    {%- set relations = [] -%}
    {%- set refusals = [] -%}
    {%- set only = only_tables(model.alias) -%}
    {%- for source_name in registered_sources(transaction_settings()) if not only or source_name ~ "." ~ model.alias in only -%}
        {%- do begin() if not loop.first -%}
        {%- set table = described_table(source_name, model.alias, model.description) -%}
        {%- do table.update({'sql': none if takes_found_columns(sql) else sql}) -%}
        {%- set totals.rows = totals.rows + fill_table(table, source_name) -%}
        {%- do relations.append(table.relation) if not table.is_held -%}
        {%- do refusals.append(table.refusal) if table.refusal -%}
        {%- do apply_grants(table.relation, config.get('grants'), should_revoke=True) if config.get('grants') and not table.is_held -%}
        {%- do adapter.commit() -%}
        {%- do warn_of_obstacles(table) -%}
    {%- endfor -%}

    {%- call noop_statement('main', 'INSERT ' ~ totals.rows, 'INSERT', totals.rows) -%}{%- endcall -%}

    {%- if post_hooks -%}
        {%- do begin() -%}
        {{ run_hooks(post_hooks, inside_transaction=True) }}
        {%- do adapter.commit() -%}
    {%- endif -%}
    {{ run_hooks(post_hooks, inside_transaction=False) }}
    {%- do raise_refusals(refusals) -%}
    {{ return({'relations': relations}) }}
{% endmaterialization %}


{#- Describes a table of the layout: its name, its events, and the columns that its yml declares. -#}
{% macro described_table(source_name, name, description) %}
    {{ return({
        'name': name,
        'description': description,
        'relation': api.Relation.create(database=target.database, schema=source_name, identifier=name, type='table'),
        'every_event': name == 'tracks',
        'declared': model.columns.values() | list,
        'sql': none,
        'obstacles': [],
        'refusal': none,
        'may_refuse_rows': false,
        'refused_by': none,
        'is_held': false,
    }) }}
{% endmacro %}


{#-
    Tells whether a run adds found columns. The key `found_columns` in the model's `config.meta` decides. A run that adds them
    writes the select itself, so the model's SQL must be the macro's own call: no SQL of a team is replaced. Without the key,
    a model whose SQL is that call takes found columns.
-#}
{% macro takes_found_columns(sql) %}
    {%- set key = config.get('meta', {}).get('found_columns') -%}
    {#- The second test renders the macro again, which takes as long as all other work of an idle run for a model. -#}
    {%- set is_own_call = is_macro_call(model.raw_code) or bare_sql(sql) == bare_sql(collection(every_event=model.alias == 'tracks')) -%}
    {%- if key is not none and key is not boolean -%}
        {%- do exceptions.raise_compiler_error("Model " ~ model.name ~ ": config.meta.found_columns is " ~ key ~ ". Set the key to true or false.") -%}
    {%- elif not is_own_call and key is none -%}
        {%- do exceptions.raise_compiler_error(
            "The SQL of model " ~ model.name ~ " is more than {{ collection() }}, and config.meta.found_columns is not set. Set the key to false in the model's yml: the table then has only the columns that the yml declares."
        ) -%}
    {%- elif not is_own_call and key -%}
        {%- do exceptions.raise_compiler_error(
            "The SQL of model " ~ model.name ~ " is more than {{ collection() }}, but config.meta.found_columns is true. A run can add columns to {{ collection() }} only. Set the key to false in the model's yml, or reduce the SQL to the macro's call."
        ) -%}
    {%- endif -%}
    {{ return(is_own_call and key is not false) }}
{% endmacro %}


{#- Tells whether a model's code is the macro's call alone, without counting comments and spaces. -#}
{% macro is_macro_call(code) %}
    {%- set call = "\\{\\{-?collection\\(" ~ ("every_event=[Tt]rue" if model.alias == 'tracks' else "") ~ "\\)-?\\}\\}" -%}
    {{ return(modules.re.fullmatch(call, bare_sql(modules.re.sub('\\{#.*?#\\}', '', code, flags=modules.re.DOTALL))) is not none) }}
{% endmacro %}


{#- SQL without comments and spaces, to compare. -#}
{% macro bare_sql(sql) %}
    {{ return(modules.re.sub('--[^\\n]*|/[*].*?[*]/|\\s+', '', sql, flags=modules.re.DOTALL)) }}
{% endmacro %}


{#- A run that could not change a table succeeds, so dbt's log warns and names the obstacle. -#}
{% macro warn_of_obstacles(table) %}
    {%- for obstacle in table.obstacles -%}
        {%- do exceptions.warn(table.relation.schema ~ "." ~ table.name ~ ": " ~ obstacle ~ " `loader widen` gives advice.") -%}
    {%- endfor -%}
{% endmacro %}


{#- dbt's driver begins only the first transaction of a connection. After a commit every statement would be on its own. -#}
{% macro begin() %}
    {%- call statement('begin') -%} begin; {{ transaction_settings() }} {%- endcall -%}
{% endmacro %}


{#- Brings one source's table up to the invocation's snapshot. Returns the number of rows by which it grew. -#}
{% macro fill_table(table, source_name) %}
    {%- set full_refresh = should_full_refresh() -%}
    {%- set run = read_from(table.name, source_name, rebuild=full_refresh) -%}
    {%- if run.in_the_way -%}
        {%- do hold_table(table, source_name, run.in_the_way) -%}
        {{ return(0) }}
    {%- endif -%}
    {%- if run.first_run and not full_refresh and has_rows(table.relation) -%}
        {#- The next run must find no cursor either. Otherwise it would count the rows as its own. -#}
        {%- do run_query("delete from raw.cursors where model = '" ~ table.name ~ "' and source = '" ~ source_name ~ "'") -%}
        {%- do hold_table(
            table, source_name,
            source_name ~ "." ~ table.name ~ " holds rows that did not come from raw.events. Move the table away, or run with --full-refresh to replace its rows."
        ) -%}
        {{ return(0) }}
    {%- endif -%}
    {%- set shape = shape_table(table) -%}
    {%- set rebuild = full_refresh or shape.created or run.rebuild_ordered or not run.cursor_snapshot -%}

    {%- if flags.EMPTY -%}
        {%- do change_table(table, source_name, shape.statements) if shape.statements -%}
        {%- do finish_empty_table(table, source_name, shape) -%}
        {{ return(0) }}
    {%- endif -%}

    {%- set note = none -%}
    {%- if rebuild and not shape.created and lock_for_rows(table, source_name) -%}
        {{ return(0) }}
    {%- endif -%}
    {%- if run.first_run -%}
        {#- No row can be lost, because none came from an event. -#}
    {%- elif shape.created -%}
        {#- The table was dropped and has nothing to lose. It starts again from the first event. -#}
        {%- set note = describe_loss(table, source_name, 'had been dropped and is made again.') -%}
    {%- elif rebuild and allows_loss() -%}
        {%- set note = describe_loss(table, source_name, 'was rebuilt, and rows were lost, as the command allowed.') -%}
    {%- elif rebuild and not may_rebuild(table, source_name) -%}
        {%- if full_refresh -%}
            {{ return(0) }}
        {%- endif -%}
        {%- set rebuild = false -%}
    {%- endif -%}
    {%- if rebuild and not full_refresh and run.cursor_snapshot -%}
        {%- set run = read_from(table.name, source_name, rebuild=true) -%}
    {%- endif -%}

    {%- set found = count_new_events(table) -%}
    {%- set grown = {'columns': [], 'new_columns': [], 'widened': [], 'run': run} -%}
    {%- if found.rows or shape.new_columns or shape.statements or run.has_pending_columns or is_widening() -%}
        {%- set grown = grow_table(table, source_name, shape, run, rebuild) -%}
    {%- endif -%}
    {%- if grown.run.cursor_snapshot != run.cursor_snapshot -%}
        {#- Another run has filled the table between two transactions of this run. -#}
        {%- set found = count_new_events(table) -%}
    {%- endif -%}
    {%- set run = grown.run -%}
    {%- set new_columns = shape.new_columns + grown.new_columns -%}

    {%- set is_written = found.rows or rebuild or run.has_pending_columns -%}
    {%- if not shape.created and is_written and lock_for_rows(table, source_name) -%}
        {{ return(0) }}
    {%- endif -%}
    {%- do run_query("savepoint before_rows") if is_written and table.may_refuse_rows -%}
    {%- do run_query("select raw.release_table('" ~ table.name ~ "', '" ~ source_name ~ "', 'fill')") if run.is_held -%}
    {%- set rows = write_events(table, source_name, shape, run, grown.columns, found, rebuild) -%}
    {%- if table.refused_by -%}
        {%- do run_query("rollback to savepoint before_rows") -%}
        {%- do hold_table(table, source_name, table.refused_by) -%}
        {{ return(0) }}
    {%- endif -%}

    {%- if rows.skipped -%}
        {%- set left_out = source_name ~ "." ~ table.name ~ ": a rule or a trigger on the table left out " ~ rows.skipped ~ " events." -%}
        {%- do exceptions.warn(left_out) -%}
        {%- set note = note ~ " " ~ left_out if note else left_out -%}
    {%- endif -%}
    {%- if found.rows or new_columns or rebuild or grown.widened -%}
        {%- set last_seq = found.last_seq if rebuild else [run.last_seq, found.last_seq] | max -%}
        {#- A table without a snapshot that is not rebuilt has read all events again. It counts only the events that were new to it. -#}
        {%- set read_rows = found.rows if rebuild or run.cursor_snapshot else rows.added -%}
        {%- do finish_table(table, source_name, run, rebuild, read_rows, rows.added, last_seq, new_columns, grown.widened | length > 0 or run.has_pending_columns, note) -%}
    {%- elif run.snapshot != run.cursor_snapshot -%}
        {%- do run_query(pass_by_sql(table, source_name, run)) -%}
    {%- endif -%}
    {{ return(rows.added - rows.removed) }}
{% endmacro %}


{#-
    Writes the rows of a run: empties the table for a rebuild, fills columns that came late, and adds the new events. Returns
    the numbers of rows `added` and `removed`, and of events `skipped` by an object of another role. Where the table's
    `refused_by` is set, the caller takes all of that back.
-#}
{% macro write_events(table, source_name, shape, run, columns, found, rebuild) %}
    {%- set rows = {'added': 0, 'removed': 0, 'skipped': 0} -%}
    {%- do rows.update({'removed': empty_table(table, source_name)}) if rebuild -%}
    {%- do fill_late_columns(table, source_name, run, columns, rebuild) if run.has_pending_columns and not table.refused_by -%}
    {%- if table.refused_by -%}
        {{ return(rows) }}
    {%- endif -%}

    {%- if found.rows -%}
        {%- set overtaken = 0 -%}
        {%- if not rebuild and run.cursor_snapshot and found.first_seq < run.last_seq -%}
            {%- set overtaken = remove_overtaken(table, source_name, run.last_seq) -%}
        {%- endif -%}
        {#- Building the key at once after the first rows takes a third of the time of growing it row by row. -#}
        {%- set key_later = shape.created and not table.sql -%}
        {%- do add_primary_key(table.relation) if shape.created and not key_later -%}
        {%- set noting = note_mismatches(table, source_name, columns, rebuild) -%}
        {%- if table.sql and noting and not table.refused_by -%}
            {#- A team's own SQL has no place for the condition. -#}
            {%- do write_rows(table, "select count(*) from (" ~ event_select(columns, table.name, table.every_event, found.repeated, noting) ~ ") as noted") -%}
        {%- endif -%}
        {%- set at_risk = columns_at_risk(columns) if not table.sql else [] -%}
        {%- do record_wide_rows(table, source_name, columns, at_risk, found.repeated) if at_risk and not table.refused_by -%}
        {%- set insertion = insert_new_events(table, columns, found.repeated, noting, on_conflict=not key_later) -%}
        {%- set inserted = write_rows(table, insertion) if not table.refused_by else 0 -%}
        {%- do rows.update({'added': inserted - overtaken}) -%}
        {%- if not table.refused_by -%}
            {%- do add_primary_key(table.relation) if key_later -%}
            {%- do forget_mismatches_without_row(table, source_name) if table.sql -%}
            {%- do rows.update({'skipped': count_skipped_events(table)}) if table.may_refuse_rows and not table.sql -%}
        {%- endif -%}
    {%- elif shape.created -%}
        {%- do add_primary_key(table.relation) -%}
    {%- endif -%}
    {%- do check_deferred(table) -%}
    {{ return(rows) }}
{% endmacro %}


{#- Checks deferred constraints now, because nothing could catch the error at the commit. -#}
{% macro check_deferred(table) %}
    {%- do write_rows(table, "set constraints all immediate") if table.may_refuse_rows and not table.refused_by -%}
{% endmacro %}


{#-
    Runs a statement that writes or reads rows of the table, and returns the number of rows written. Where an object of
    another role refuses the rows, the table's `refused_by` names the object. Nearly all tables have no such object.
-#}
{% macro write_rows(table, statement) %}
    {%- if not table.may_refuse_rows -%}
        {{ return(run_counted(statement)) }}
    {%- endif -%}
    {%- set call -%}
        select row_count, in_the_way
        from raw.write_rows(
            {{ string_literal(table.relation) }}::regclass, {{ string_literal(statement) }}, current_setting('search_path'), {{ not table.sql }}
        )
    {%- endset -%}
    {%- set written = run_query(call).rows[0] -%}
    {%- do table.update({'refused_by': written['in_the_way']}) if written['in_the_way'] -%}
    {{ return(written['row_count'] | int) }}
{% endmacro %}


{#- Tells whether a rebuild may delete rows whose events are gone from raw.events: `--vars 'allow_loss: true'`. -#}
{% macro allows_loss() -%}
    {{ return('true' in [var('allow_loss', false) | string | lower, env_var('LOADER_ALLOW_LOSS', '')]) }}
{%- endmacro %}


{#-
    Tells whether raw.events has all events of the table for a rebuild. If not, raw.held_tables records it, and the table keeps
    its rows. A command that asked for the rebuild fails in the end, after all other tables are filled.
-#}
{% macro may_rebuild(table, source_name) %}
    {%- if run_query("select raw.order_rebuild('" ~ source_name ~ "', '" ~ table.name ~ "')").rows[0][0] -%}
        {{ return(true) }}
    {%- endif -%}
    {%- if should_full_refresh() -%}
        {%- set reason = run_query("select reason from raw.held_tables where model = '" ~ table.name ~ "' and source = '" ~ source_name ~ "' and held = 'rebuild'").rows[0][0] -%}
        {%- do table.update({'refusal': source_name ~ "." ~ table.name ~ ": " ~ reason}) -%}
    {%- endif -%}
    {{ return(false) }}
{% endmacro %}


{% macro raise_refusals(refusals) %}
    {%- do exceptions.raise_compiler_error("Not rebuilt: " ~ refusals | join(" ")) if refusals -%}
{% endmacro %}


{#- Returns the message about a table whose events raw.events no longer holds completely, after `happening`; none otherwise. -#}
{% macro describe_loss(table, source_name, happening) %}
    {%- set loss = run_query("select raw.describe_loss('" ~ source_name ~ "', '" ~ table.name ~ "')").rows[0][0] -%}
    {%- if not loss -%}{{ return(none) }}{%- endif -%}
    {%- set note = source_name ~ "." ~ table.name ~ " " ~ happening ~ " " ~ loss -%}
    {%- do log(note, info=true) -%}
    {{ return(note) }}
{% endmacro %}


{#-
    Ends a run that reads no events (`--empty`). The table has its columns, and nothing else changes. A table that was made
    here lacks the events that its cursor has seen, so the cursor starts again from the first event.
-#}
{% macro finish_empty_table(table, source_name, shape) %}
    {%- if shape.created -%}
        {%- do add_primary_key(table.relation) -%}
        {%- do run_query("update raw.cursors set snapshot = null where model = '" ~ table.name ~ "' and source = '" ~ source_name ~ "'") -%}
    {%- endif -%}
{% endmacro %}


{#- Leaves a table as it is in this run. raw.held_tables records the reason, and the time of the next try. -#}
{% macro hold_table(table, source_name, in_the_way) %}
    {%- do run_query("select raw.hold_table('" ~ table.name ~ "', '" ~ source_name ~ "', 'fill', " ~ string_literal(in_the_way) ~ ")") -%}
    {%- do table.update({'is_held': true}) -%}
    {%- do exceptions.warn(source_name ~ "." ~ table.name ~ " was left as it was: " ~ in_the_way) -%}
{% endmacro %}


{#- Runs a statement and returns the number of rows it changed. -#}
{% macro run_counted(command) %}
    {%- call statement('counted', fetch_result=False) -%}
        {{ command }}
    {%- endcall -%}
    {{ return(load_result('counted').response.rows_affected) }}
{% endmacro %}


{% macro has_rows(relation) %}
    {%- if not run_query("select exists (select from pg_class where oid = to_regclass(" ~ string_literal(relation) ~ ") and relkind in ('r', 'p'))").rows[0][0] -%}
        {{ return(false) }}
    {%- endif -%}
    {{ return(run_query("select exists (select from " ~ relation ~ ")").rows[0][0]) }}
{% endmacro %}


{#- Readers see the old rows until the commit. `truncate` would hide them. -#}
{% macro empty_table(table, source_name) %}
    {%- do run_query("delete from raw.mismatches where model = '" ~ table.name ~ "' and source = '" ~ source_name ~ "'") -%}
    {%- set removed = write_rows(table, "delete from only " ~ table.relation) -%}
    {%- if table.may_refuse_rows and not table.refused_by and run_query("select exists (select from only " ~ table.relation ~ ")").rows[0][0] -%}
        {%- do table.update({'refused_by': "a rule, a trigger or a policy: rows that were to be deleted are still there"}) -%}
    {%- endif -%}
    {{ return(removed) }}
{% endmacro %}


{#-
    Returns the number of new events without a row after the insert. A rule or a trigger of another role may leave rows out
    without an error.
-#}
{% macro count_skipped_events(table) %}
    {%- set counted -%}
        select count(distinct message_id)
        from {{ source('raw', 'events') }}
        where
            {{ event_filter(table.name, table.every_event) }}
            and {{ since_last_run() }}
            and not exists (select from {{ table.relation }} as served where served.id = message_id)
    {%- endset -%}
    {{ return(run_query(counted).rows[0][0] | int) }}
{% endmacro %}


{#- Returns the number of events to add, the part of the landing order that they span, and whether any two have one id. -#}
{% macro count_new_events(table) %}
    {%- set counted -%}
        select
            coalesce(sum(events), 0)::bigint as events,
            coalesce(min(first_seq), 0) as first_seq,
            coalesce(max(last_seq), 0) as last_seq,
            coalesce(bool_or(events > 1), false) as repeated
        from (
            select count(*) as events, min(seq) as first_seq, max(seq) as last_seq
            from {{ source('raw', 'events') }}
            where {{ event_filter(table.name, table.every_event) }} and {{ since_last_run() }}
            group by message_id
        ) as ids
    {%- endset -%}
    {%- set row = run_query(counted).rows[0] -%}
    {{ return({
        'rows': row['events'] | int,
        'first_seq': row['first_seq'] | int,
        'last_seq': row['last_seq'] | int,
        'repeated': row['repeated'],
    }) }}
{% endmacro %}


{#- Adds the rows of this run. With `repeated`, ids come more than once, and the first event of each counts. `noting` is
    the condition of `note_mismatches`. -#}
{% macro insert_new_events(table, columns, repeated, noting, on_conflict) -%}
    insert into {{ table.relation }} (
        {%- for column in columns %}
        {{ adapter.quote(column.name) }}{{ "," if not loop.last }}
        {%- endfor %}
    )
    {%- if table.sql %}
    select
        {%- for column in columns %}
        {{ adapter.quote(column.name) }}{{ "," if not loop.last }}
        {%- endfor %}
    from (
    {{ table.sql }}
    ) as selected
    {%- else %}
    {%- set at_risk = columns_at_risk(columns) %}
    {%- set selected = event_select(columns, table.name, table.every_event, repeated, noting) %}
    {{ fitting_select(columns, at_risk, selected) if at_risk else selected }}
    {%- endif %}
    {{ "on conflict (id) do nothing" if on_conflict }}
{%- endmacro %}


{#-
    Removes the rows that lose against a latecomer. Of several events with one id the first one landed counts, also when its
    transaction committed after a run had taken a later event. Only an event with a `seq` below the last one read
    (`last_seq`) can be a latecomer. The latecomer is compared, by landing order, with the event that holds the id now. That
    event came in with the run that `uuid_ts` names, or with any earlier run if that run has refilled columns. The row that
    loses is removed, so that the following insert takes the latecomer.
-#}
{% macro remove_overtaken(table, source_name, last_seq) %}
    {%- set events = source('raw', 'events') -%}
    {%- set key = "model = '" ~ table.name ~ "' and source = '" ~ source_name ~ "'" -%}
    {%- set removal -%}
        with late as materialized (
            select message_id, min(seq) as seq
            from {{ events }}
            where {{ event_filter(table.name, table.every_event) }} and {{ since_last_run() }} and seq < {{ last_seq }}
            group by message_id
        ),

        contested as materialized (
            select
                late.message_id,
                late.seq,
                case when not syncs.refilled then pg_snapshot_xmin(syncs.previous_snapshot) end as held_since
            from late
            inner join {{ table.relation }} as served on served.id = late.message_id
            left join (select * from raw.syncs where {{ key }}) as syncs on syncs.started_at = served.uuid_ts
            where late.seq < coalesce(syncs.last_seq, {{ last_seq }})
        ),

        holders as materialized (
            select message_id, min(seq) as seq
            from {{ events }}
            where
                {{ event_filter(table.name, table.every_event) }}
                and message_id in (select message_id from contested)
                and load_xid >= (select case when bool_and(held_since is not null) then min(held_since) else '1' end from contested)
                and pg_visible_in_snapshot(load_xid, (select {{ previous_snapshot() }}))
            group by message_id
        ),

        overtaken as materialized (
            select contested.message_id
            from contested
            inner join holders on holders.message_id = contested.message_id
            where contested.seq < holders.seq
        ),

        forgotten as (
            delete from raw.mismatches where {{ key }} and event_id in (select message_id from overtaken)
        )

        delete from only {{ table.relation }} where id in (select message_id from overtaken)
    {%- endset -%}
    {{ return(write_rows(table, removal)) }}
{% endmacro %}


{#-
    Returns an SQL condition that is always true. Its side effect lists the mismatches of the new row, and the times of the
    call that cannot be read. An empty string is no value. The condition is part of the insert, so a run reads and unpacks
    every event once. `tracks` lists only events without a documented collection: any other event has its mismatches at its
    own table. An event whose id is in the table makes no row and no mismatch. A rebuild need not look for such a row,
    because the table is empty.
-#}
{% macro note_mismatches(table, source_name, columns, rebuild) %}
    {%- set values = unread_times(columns) -%}
    {%- for column in columns if column.reading -%}
        {%- do values.append({'name': column.name, 'text': column.text, 'is_lost': loses_value(column)}) -%}
    {%- endfor -%}
    {%- if not values -%}{{ return('') }}{%- endif -%}
    case
        when
            {%- for value in values %}
            {{ "or " if not loop.first }}{{ value.is_lost }}
            {%- endfor %}
            then {{ "events.table_id <> 'raw.events_other'::regclass or " if table.every_event }}raw.note_mismatches(
                '{{ table.name }}',
                '{{ source_name }}',
                {{ "null" if rebuild else string_literal(table.relation) }}::regclass,
                events.message_id,
                array[{% for value in values %}'{{ value.name }}'{{ ", " if not loop.last }}{% endfor %}],
                array[
                    {%- for value in values %}
                    case when {{ value.is_lost }} then {{ kept_value(value.text) }} end{{ "," if not loop.last }}
                    {%- endfor %}
                ]
            )
        else true
    end
{%- endmacro %}


{#- The part of a value that raw.mismatches keeps. raw.events has the whole value. -#}
{% macro kept_value(value) -%}
    case when length({{ value }}) > {{ longest_number() }} then left({{ value }}, {{ longest_number() }}) || '…' else {{ value }} end
{%- endmacro %}


{#- A team's own SQL need not make a row of every event. -#}
{% macro forget_mismatches_without_row(table, source_name) %}
    {%- do run_query(
        "delete from raw.mismatches
        where
            model = '" ~ table.name ~ "' and source = '" ~ source_name ~ "' and seen_at = now()
            and not exists (select from " ~ table.relation ~ " as served where served.id = event_id)"
    ) -%}
{% endmacro %}


{#- Moves the cursor. It never moves back, because a run's snapshot is the later of its invocation's and the cursor's. -#}
{% macro move_cursor_sql(table, source_name, run, rebuild, read_rows, table_rows, last_seq) -%}
    update raw.cursors
    set
        snapshot = '{{ run.snapshot }}',
        read_rows = {{ "" if rebuild else "read_rows + " }}{{ read_rows }},
        table_rows = {{ "" if rebuild else "table_rows + " }}{{ table_rows }},
        last_seq = {{ last_seq }},
        {%- if rebuild %}
        rebuild_ordered = false,
        {%- endif %}
        updated_at = clock_timestamp()
    where model = '{{ table.name }}' and source = '{{ source_name }}'
{%- endmacro %}


{#-
    Moves the cursor past events that are not for this table: events of another source, or without a table. Otherwise every run
    would read a growing range of such events. Where there are none, nothing is written.
-#}
{% macro pass_by_sql(table, source_name, run) -%}
    {{ move_cursor_sql(table, source_name, run, false, 0, 0, run.last_seq) }}
        and exists (
            select from {{ source('raw', 'events') }}
            where
                {{ "true" if table.every_event else "collection = '" ~ table.name ~ "'" }}
                and load_xid >= pg_snapshot_xmax({{ previous_snapshot() }})
                and pg_visible_in_snapshot(load_xid, (select {{ current_snapshot() }}))
        )
{%- endmacro %}


{#- Moves the cursor and writes the sync report. -#}
{% macro finish_table(table, source_name, run, rebuild, read_rows, table_rows, last_seq, new_columns, refilled, note) %}
    {%- set finish %}
        {{ move_cursor_sql(table, source_name, run, rebuild, read_rows, table_rows, last_seq) }};

        insert into raw.syncs
            (transform_id, model, source, full_refresh, read_rows, table_rows, last_seq, new_columns, refilled, previous_snapshot, snapshot, started_at, duration, note)
        values (
            '{{ invocation_id }}', '{{ table.name }}', '{{ source_name }}', {{ rebuild }}, {{ read_rows }}, {{ table_rows }}, {{ last_seq }},
            array[{% for name in new_columns %}{{ string_literal(name) }}{{ ", " if not loop.last }}{% endfor %}]::text[],
            {{ refilled }},
            {{ "null" if rebuild or not run.cursor_snapshot else "'" ~ run.cursor_snapshot ~ "'" }},
            '{{ run.snapshot }}', '{{ run.started_at }}', clock_timestamp() - now(),
            {{ string_literal(note) if note else "null" }}
        )
        on conflict (transform_id, model, source) do update set
            read_rows = syncs.read_rows + excluded.read_rows,
            table_rows = syncs.table_rows + excluded.table_rows,
            refilled = syncs.refilled or excluded.refilled;
        {%- if rebuild %}

        select raw.release_table('{{ table.name }}', '{{ source_name }}', 'rebuild');
        {%- endif %}
    {%- endset -%}
    {%- do run_query(finish) -%}
{% endmacro %}
