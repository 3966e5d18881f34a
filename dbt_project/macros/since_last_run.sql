{#-
    The cut: the condition for the events that this run adds. An event is new if the run's snapshot shows its transaction and
    the model's snapshot cursor does not. Then the transaction had not begun (xmax), or was running (xip). A watermark cannot
    tell, because a transaction that began early may commit late. A long transaction (xmin) makes no run read events again.

    The snapshots come from settings of the transaction, which `read_from` sets. So the compiled SQL is the same in every run.
    Outside a run nothing is set, and every committed event counts as new.
-#}
{% macro since_last_run() -%}
    (
            load_xid >= pg_snapshot_xmax({{ previous_snapshot() }})
            or load_xid = any(array(select pg_snapshot_xip({{ previous_snapshot() }})))
        )
        and pg_visible_in_snapshot(load_xid, (select {{ current_snapshot() }}))
{%- endmacro %}


{#- The snapshot that the model has finished with. In its first run it shows nothing: no transaction is older than 1. -#}
{% macro previous_snapshot() -%}
    coalesce(nullif(current_setting('loader.previous_snapshot', true), ''), '1:1:')::pg_snapshot
{%- endmacro %}


{% macro current_snapshot() -%}
    coalesce(nullif(current_setting('loader.snapshot', true), ''), pg_current_snapshot()::text)::pg_snapshot
{%- endmacro %}


{% macro current_source() -%}
    coalesce(nullif(current_setting('loader.source', true), ''), source)
{%- endmacro %}


{#- The start of the invocation, the same in every table. -#}
{% macro run_started_at() -%}
    coalesce(nullif(current_setting('loader.started_at', true), '')::timestamptz, now())
{%- endmacro %}


{#-
    Locks the model's snapshot cursor for one source, and sets the settings that `since_last_run` reads in this transaction.

    A second run of the model waits at the lock for the commit of the first, and then finds the cursor moved. A run that
    started earlier and came later has a snapshot that is not newer than the cursor's. It has nothing to add.
-#}
{% macro read_from(name, source_name, rebuild) %}
    {%- call statement('cursor', fetch_result=True) -%}
        {#- Another session's lock on raw.cursors fails the table. Another run may hold the cursor's row for hours. #}
        lock table raw.cursors in row exclusive mode;

        set local lock_timeout = 0;

        insert into raw.cursors (model, source) values ('{{ name }}', '{{ source_name }}') on conflict do nothing;

        {# The lock has a statement of its own, so that the next statement sees the cursor as the other run has left it. #}
        select
            set_config('timezone', 'UTC', true),
            set_config('datestyle', 'ISO, MDY', true),
            set_config('standard_conforming_strings', 'on', true)
        from raw.cursors
        where cursors.model = '{{ name }}' and cursors.source = '{{ source_name }}'
        for update;

        select
            coalesce(cursors.snapshot::text, '') as cursor_snapshot,
            cursors.last_seq,
            cursors.rebuild_ordered,
            latest.snapshot::text as snapshot,
            raw.has_pending_columns(cursors.model, cursors.source) as has_pending_columns,
            exists (
                select from raw.held_tables as tables
                where tables.model = cursors.model and tables.source = cursors.source and tables.held = 'fill'
            ) as is_held,
            cursors.xmin = pg_current_xact_id()::xid as first_run,
            raw.find_obstacle(cursors.source, cursors.model) as in_the_way,
            transforms.started_at::text as started_at,
            set_config('lock_timeout', '{{ lock_wait() }}', true),
            set_config('loader.source', cursors.source, true),
            set_config('loader.started_at', transforms.started_at::text, true),
            set_config('loader.snapshot', latest.snapshot::text, true),
            set_config(
                'loader.previous_snapshot',
                case when {{ rebuild }} then '' else coalesce(cursors.snapshot::text, '') end,
                true
            ),
            {#- Memory for grouping the ids of a first run, on each of a few connections. -#}
            set_config('work_mem', greatest(pg_size_bytes(current_setting('work_mem')), 32 * 1024 * 1024) / 1024 || 'kB', true),
            {#- An increment is small against the history: never read all of it, however old the statistics are. -#}
            set_config('enable_seqscan', case when {{ rebuild }} or cursors.snapshot is null then 'on' else 'off' end, true)
        from raw.cursors
        cross join raw.transforms
        {#- A rebuild that had to wait for a run with a later snapshot reads up to that snapshot: tables never go back in time. #}
        cross join lateral (
            select taken.snapshot
            from (values (transforms.snapshot), (cursors.snapshot)) as taken (snapshot)
            where taken.snapshot is not null
            order by pg_snapshot_xmax(taken.snapshot) desc, (select count(*) from pg_snapshot_xip(taken.snapshot))
            limit 1
        ) as latest
        where
            cursors.model = '{{ name }}'
            and cursors.source = '{{ source_name }}'
            and transforms.id = '{{ invocation_id }}'
    {%- endcall -%}
    {%- set rows = load_result('cursor').table.rows -%}
    {%- if not rows -%}
        {%- do exceptions.raise_compiler_error("This invocation is not in raw.transforms: the project's on-run-start hook did not run.") -%}
    {%- endif -%}
    {{- return({
        'first_run': rows[0]['first_run'],
        'cursor_snapshot': rows[0]['cursor_snapshot'] or '',
        'last_seq': rows[0]['last_seq'] | int,
        'rebuild_ordered': rows[0]['rebuild_ordered'],
        'snapshot': rows[0]['snapshot'],
        'is_held': rows[0]['is_held'],
        'in_the_way': rows[0]['in_the_way'],
        'has_pending_columns': rows[0]['has_pending_columns'],
        'started_at': rows[0]['started_at'],
    }) -}}
{% endmacro %}
