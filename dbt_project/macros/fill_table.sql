{#-
    A run of one table of one source. The functions of the schema raw do all but the SQL of the select: they lock the cursor,
    change the table, count the events and report. See the comments of these functions.
-#}

{#- Brings one source's table up to the invocation's snapshot. Returns the number of rows by which it grew. -#}
{% macro fill_table(table) %}
    {%- if not is_production() -%}
        {{ return(make_development_table(table)) }}
    {%- endif -%}
    {%- set plan = open_table(table) -%}
    {%- do log(plan.run.note, info=true) if plan.run and plan.run.note -%}
    {%- if plan.state == 'held' -%}
        {%- do leave_table(table, plan.reason) -%}
    {%- elif plan.state == 'refused' -%}
        {%- do table.update({'refusal': plan.reason}) -%}
    {%- elif plan.is_held -%}
        {%- do table.update({'is_held': true}) -%}
    {%- endif -%}
    {%- if plan.state != 'ready' -%}
        {{ return(0) }}
    {%- endif -%}

    {%- do change_types(table, plan) if not plan.run.is_created -%}
    {%- do run_query("savepoint before_rows") if plan.run.may_refuse_rows -%}
    {%- set added = write_events(table, plan) -%}
    {%- if table.refused_by -%}
        {%- do run_query("rollback to savepoint before_rows") -%}
        {%- do run_query("select raw.hold_table('" ~ table.name ~ "', '" ~ table.source ~ "', 'fill', " ~ string_literal(table.refused_by) ~ ")") -%}
        {%- do leave_table(table, table.refused_by) -%}
        {{ return(0) }}
    {%- endif -%}
    {{ return(added) }}
{% endmacro %}


{#- Warns of declared columns with another type than the yml declares, and fails where the column may not hold a value. -#}
{% macro change_types(table, plan) %}
    {%- set changed = call_function(
        "raw.change_types", json_literal(plan.run), json_literal(table.declared), should_full_refresh() and plan.run.is_rebuild, "current_setting('search_path')"
    ) -%}
    {%- do exceptions.raise_compiler_error(changed.error) if changed.error -%}
    {%- for warning in changed.warnings -%}
        {%- do exceptions.warn(table.source ~ "." ~ table.name ~ ": " ~ warning ~ " It keeps its type until --full-refresh --select " ~ table.name ~ ".") -%}
    {%- endfor -%}
{% endmacro %}


{#- raw.held_tables has the reason, and the time of the next try. -#}
{% macro leave_table(table, reason) %}
    {%- do table.update({'is_held': true}) -%}
    {%- do exceptions.warn(table.source ~ "." ~ table.name ~ " was left as it was: " ~ reason) -%}
{% endmacro %}


{#-
    Returns the plan of a run, as `raw.open_table` returns it. A changed table is committed before the rows, because its lock
    would stop readers for as long as the rows take. Then the cursor is locked again: another run may have read events.
-#}
{% macro open_table(table) %}
    {%- set options = {
        'full_refresh': should_full_refresh(), 'empty': flags.EMPTY, 'allow_loss': allows_loss(), 'widening': is_widening(),
        'found_columns': table.own_sql is none, 'description': table.description, 'lock_wait': lock_wait(),
        'relation_docs': config.persist_relation_docs(), 'column_docs': config.persist_column_docs(),
        'indexes': reader_indexes(), 'most_bytes': most_bytes(),
    } -%}
    {%- set so_far = {} -%}
    {%- set opened = namespace(plan={'state': 'changed'}) -%}
    {%- for call in range(10) if opened.plan.state in ('changed', 'widen') -%}
        {%- set opened.plan = call_function(
            "raw.open_table", string_literal(table.name), string_literal(table.source), string_literal(invocation_id),
            json_literal(table.declared), json_literal(options), json_literal(so_far) if so_far else "null",
            "current_setting('search_path')"
        ) -%}
        {%- do table.obstacles.extend(opened.plan.obstacles or []) -%}
        {%- if opened.plan.state in ('changed', 'widen') -%}
            {%- set is_widened = opened.plan.state == 'widen' and widen_columns(table, opened.plan) -%}
            {%- do opened.plan.run.update({'is_refilled': true}) if is_widened -%}
            {%- do so_far.update({'run': opened.plan.run, 'is_' ~ ('changed' if opened.plan.state == 'changed' else 'widened'): true}) -%}
            {%- do adapter.commit() -%}
            {%- do begin() -%}
        {%- endif -%}
    {%- endfor -%}
    {%- if opened.plan.state in ('changed', 'widen') -%}
        {%- do table.obstacles.append("new columns came in each of 10 tries, so the next run adds the rows.") -%}
    {%- endif -%}
    {%- do table.update({'may_refuse_rows': opened.plan.run.may_refuse_rows if opened.plan.run}) -%}
    {{ return(opened.plan) }}
{% endmacro %}


{#-
    Writes the rows of a run, and returns the number of rows by which the table grew. Where an object of another role is in
    the way, the table's `refused_by` names the object, and the caller takes all of that back.
-#}
{% macro write_events(table, plan) %}
    {%- set run = json_literal(plan.run) -%}
    {%- set started = call_function("raw.start_rows", run, "current_setting('search_path')") -%}
    {%- do table.update({'refused_by': started.in_the_way}) if started.in_the_way -%}
    {%- set columns = planned_columns(plan) -%}
    {%- for late in plan.late if not table.refused_by -%}
        {%- do refill_columns(table, plan, columns | selectattr('name', 'in', late.names) | list, late.snapshot) -%}
    {%- endfor -%}

    {%- set inserted = insert_new_events(table, plan, columns, started.has_known_ids) if plan.run.rows and not table.refused_by else 0 -%}
    {%- if table.refused_by -%}
        {{ return(0) }}
    {%- endif -%}
    {%- set closed = call_function("raw.close_table", run, inserted, started.overtaken, "current_setting('search_path')") -%}
    {%- do table.update({'refused_by': closed.in_the_way}) if closed.in_the_way -%}
    {%- do exceptions.warn(closed.warning) if closed.warning -%}
    {{ return(inserted - started.overtaken - started.removed) }}
{% endmacro %}


{#-
    Inserts the rows of the new events, and returns their number. dbt shows this statement as the model's.
    `raw.insertion_order` explains the order of the rows. A first fill inserts in landing order.
-#}
{% macro insert_new_events(table, plan, columns, has_known_ids) %}
    {%- set is_created = plan.run.is_created and not table.own_sql -%}
    {%- set may_repeat = has_known_ids or table.own_sql -%}
    {%- set noting = note_mismatches(table, columns, plan.run.is_rebuild and not may_repeat) -%}
    {%- if table.own_sql -%}
        {#- A team's own SQL has no place for the condition. -#}
        {%- do write_rows(table, "select count(*) from (" ~ event_select(columns, table.name, table.every_event, plan.repeated, noting) ~ ") as noted") if noting -%}
    {%- else -%}
        {%- do record_wide_rows(table, columns, plan.repeated) -%}
    {%- endif -%}
    {%- if table.refused_by -%}
        {{ return(0) }}
    {%- endif -%}
    {%- set selected = event_select(columns, table.name, table.every_event, plan.repeated, noting, plan.order, in_order=is_created and table.every_event) if not table.own_sql -%}
    {{ return(write_rows(table, insertion_sql(table, columns, selected, may_repeat and not is_created), 'main')) }}
{% endmacro %}


{#- Returns the insert of a run: the rows of a select of the layout, or those of a team's own SQL. -#}
{% macro insertion_sql(table, columns, selected, may_repeat) %}
    insert into {{ table.relation }} (
        {%- for column in columns %}
        {{ adapter.quote(column.name) }}{{ "," if not loop.last }}
        {%- endfor %}
    )
    {%- if table.own_sql %}
    select
        {%- for column in columns %}
        {{ adapter.quote(column.name) }}{{ "," if not loop.last }}
        {%- endfor %}
    from (
    {{ table.own_sql }}
    ) as selected
    {%- else %}
    {{ fitting_select(columns, selected) }}
    {%- endif %}
    {{ "on conflict (id) do nothing" if may_repeat }}
{% endmacro %}


{#-
    Runs a statement that writes or reads rows of the table, and returns the number of rows written. Where an object of
    another role refuses the rows, the table's `refused_by` names the object. Nearly all tables have no such object.
-#}
{% macro write_rows(table, command, name='rows') %}
    {%- if table.may_refuse_rows -%}
        {%- call statement(name, fetch_result=True) -%}
            select row_count, in_the_way
            from raw.write_rows(
                {{ string_literal(table.relation) }}::regclass, {{ string_literal(command) }}, current_setting('search_path'), {{ not table.own_sql }}
            )
        {%- endcall -%}
        {%- set written = load_result(name).table.rows[0] -%}
        {%- do table.update({'refused_by': written['in_the_way']}) if written['in_the_way'] -%}
        {{ return(written['row_count'] | int) }}
    {%- endif -%}
    {%- call statement(name) -%}
        {{ command }}
    {%- endcall -%}
    {{ return(load_result(name).response.rows_affected) }}
{% endmacro %}


{#-
    Gives columns of a table wider types, and returns whether any column got one. The existing rows get the values that the
    old types could not hold; a rebuild fills all rows in any case.
-#}
{% macro widen_columns(table, plan) %}
    {%- do run_query("savepoint before_widening") -%}
    {%- do table.update({'may_refuse_rows': plan.run.may_refuse_rows}) -%}
    {%- set result = call_function(
        "raw.widen_columns", json_literal(plan.run), json_literal(plan.too_narrow), text_array(project_views()),
        most_bytes(), is_widening()
    ) -%}
    {%- set widened = result.notes | rejectattr('wanted_type') | list -%}
    {%- if widened and not plan.run.is_rebuild -%}
        {%- do refill_columns(table, plan, found_columns(widened, listed(plan.fractions))) -%}
        {%- do write_rows(table, "set constraints all immediate") if table.may_refuse_rows and not table.refused_by -%}
    {%- endif -%}
    {%- if table.refused_by -%}
        {#- An object of another role refuses the changed rows. The columns stay as they were, and the run goes on. -#}
        {%- do run_query("rollback to savepoint before_widening") -%}
        {%- do table.obstacles.extend(call_function(
            "raw.refuse_widening", json_literal(plan.run), json_literal(plan.too_narrow), json_literal(result.notes), string_literal(table.refused_by)
        )) -%}
        {%- do table.update({'refused_by': none}) -%}
        {{ return(false) }}
    {%- endif -%}
    {%- do table.obstacles.extend(result.obstacles) -%}
    {{ return(widened | length > 0) }}
{% endmacro %}


{#- Returns the views that models of this project make. dbt replaces them in every run, so a run may do so too. -#}
{% macro project_views() %}
    {%- set views = [] -%}
    {%- for node in graph.nodes.values() if node.resource_type == 'model' and node.config.materialized == 'view' -%}
        {%- do views.append(api.Relation.create(schema=node.schema, identifier=node.alias) | string) -%}
    {%- endfor -%}
    {{ return(views) }}
{% endmacro %}


{#- Returns the `indexes` of the model's config, in dbt's form; none with `--vars 'reader_indexes: false'`. -#}
{% macro reader_indexes() %}
    {%- set indexes = [] -%}
    {%- if 'false' not in [var('reader_indexes', true) | string | lower, env_var('LOADER_READER_INDEXES', '') | lower] -%}
        {%- for entry in config.get('indexes', []) -%}
            {%- set index = adapter.parse_index(entry) -%}
            {%- do indexes.append({'columns': index.columns, 'type': index.type or 'btree', 'is_unique': index.unique}) -%}
        {%- endfor -%}
    {%- endif -%}
    {{ return(indexes) }}
{% endmacro %}


{#- Returns the size of a table, in bytes, up to which a run widens its columns and builds its indexes. -#}
{% macro most_bytes() -%}
    {{ return(env_var('LOADER_WIDEN_BYTES', '100000000') | int) }}
{%- endmacro %}


{#- Tells whether this is a run of `loader widen`, or a run by hand with the same variable. -#}
{% macro is_widening() -%}
    {{ return(env_var('LOADER_WIDEN', '') == 'true') }}
{%- endmacro %}


{#- Tells whether a rebuild may delete rows whose events are gone from raw.events: `--vars 'allow_loss: true'`. -#}
{% macro allows_loss() -%}
    {{ return('true' in [var('allow_loss', false) | string | lower, env_var('LOADER_ALLOW_LOSS', '')]) }}
{%- endmacro %}


{#- Calls a function of the schema raw that returns JSON. The arguments are SQL. The result comes as one text: in rows, dbt
    would read a key named null as no value, and a key named 1e3 as a number. -#}
{% macro call_function(name) %}
    {%- set arguments = varargs | join(", ") -%}
    {%- call statement('function', fetch_result=True) -%}
        select {{ name }}({{ arguments }})::text as result
    {%- endcall -%}
    {{ return(fromjson(load_result('function').table.rows[0][0])) }}
{% endmacro %}


{% macro json_literal(value) -%}
    {{ return(string_literal(tojson(value)) ~ "::jsonb") }}
{%- endmacro %}
