{#-
    The cut: the condition for the events that this run adds. An event is new if the run's snapshot shows its transaction and
    the model's snapshot cursor does not. Then the transaction had not begun (xmax), or was running (xip). A watermark cannot
    tell, because a transaction that began early may commit late. A long transaction (xmin) makes no run read events again.

    The snapshots come from settings of the transaction, which `raw.lock_cursor` sets. So the compiled SQL is the same in every run.
    Outside a run nothing is set, and every committed event counts as new.
-#}
{% macro since_last_run() -%}
    (
            load_xid >= pg_snapshot_xmax({{ previous_snapshot() }})
            or load_xid = any(array(select pg_snapshot_xip({{ previous_snapshot() }})))
        )
        and pg_visible_in_snapshot(load_xid, (select {{ current_snapshot() }}))
{%- endmacro %}


{#- The snapshot that the model has finished with. In the first run, the snapshot shows no event: no transaction is older than 1. -#}
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
