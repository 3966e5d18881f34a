-- How a run adds columns and rows to served tables that other sessions use. A run that finds a table locked goes on with
-- the other tables, and without the column.

alter table raw.columns add column is_missing boolean not null default false;
alter table raw.columns add column fill_from pg_snapshot;

comment on column raw.columns.is_missing is 'A run could not add the column yet; events go into the table without it.';
comment on column raw.columns.fill_from is 'Rows of events that this snapshot does not show lack the column''s value; null when no row does.';
create index columns_fill_from on raw.columns (model, source) where fill_from is not null;


-- Work for a run although nothing has landed: columns to add, to widen or to fill.
create function raw.has_pending_columns(table_model text, table_source text) returns boolean
language sql stable
as $$
    select
        exists (
            select from raw.columns
            where model = table_model and source = table_source and fill_from is not null
        )
        or exists (
            select from raw.held_tables
            where model = table_model and source = table_source and held = 'columns'
        )
$$;

comment on function raw.has_pending_columns is 'Whether a table has columns that a run is still to add, to widen or to fill.';


-- Runs statements that change a served table, and returns the empty string, or what is in the way.
create function raw.change_table(
    table_model text, table_source text, target regclass, statements text, is_forced boolean
) returns text
language plpgsql
set lock_timeout = '200ms'
set search_path = pg_catalog
as $$
declare
    reason text;
    code text;
    message text;
    detail text;
    context text;
begin
    if not is_forced then
        select held_tables.reason into reason
        from raw.held_tables
        where model = table_model and source = table_source and held = 'columns' and next_try_at > clock_timestamp();
        if found then
            return reason;
        end if;
    end if;
    for attempt in 1..2 loop
        begin
            -- Autovacuum gives way after PostgreSQL's deadlock_timeout, which is 1 second.
            perform set_config('lock_timeout', case attempt when 1 then '200ms' else '1200ms' end, true);
            execute statements;
            perform raw.release_table(table_model, table_source, 'columns');
            return '';
        exception when others then
            get stacked diagnostics
                code = returned_sqlstate, message = message_text, detail = pg_exception_detail, context = pg_exception_context;
        end;
        exit when code <> '55P03' or not raw.is_only_autovacuum(target);
    end loop;
    reason := raw.explain_failure(target, null, code, message, detail, context);
    perform raw.hold_table(table_model, table_source, 'columns', reason);
    return reason;
end
$$;

comment on function raw.change_table is 'Changes a served table without waiting long for a lock; returns what is in the way, or the empty string.';


-- Takes the lock that writing rows needs, and returns the empty string, or what is in the way. A session that waits for
-- this lock stops no reader.
create function raw.lock_for_rows(table_model text, table_source text, target regclass, is_forced boolean) returns text
language plpgsql
set lock_timeout = '200ms'
set search_path = pg_catalog
as $$
declare
    reason text;
begin
    if not is_forced then
        select held_tables.reason into reason
        from raw.held_tables
        where model = table_model and source = table_source and held = 'fill' and next_try_at > clock_timestamp();
        if found then
            return reason;
        end if;
    end if;
    begin
        execute format('lock table only %s in row exclusive mode', target);
        return '';
    exception when lock_not_available then
        reason := raw.describe_lock_holders(target);
    end;
    perform raw.hold_table(table_model, table_source, 'fill', reason);
    return reason;
end
$$;

comment on function raw.lock_for_rows is 'Takes the lock that writing rows of a served table needs; returns what is in the way, or the empty string.';
