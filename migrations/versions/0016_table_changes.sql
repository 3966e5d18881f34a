-- How a run changes served tables that other sessions use. No statement here waits for a lock for long: whoever waits
-- for a strong lock also stops every reader that comes later. Errors are caught and returned as text, since dbt cannot
-- catch an error.

alter table raw.columns add column next_try_at timestamptz;

comment on column raw.columns.in_the_way is 'What keeps the column from being added or widened: a lock, an object that depends on it, or the table''s size.';
comment on column raw.columns.next_try_at is 'No scheduled run tries to widen the column before this moment.';


create function raw.describe_lock_holders(target regclass) returns text
language sql
set search_path = pg_catalog
as $$
    select coalesce(string_agg(described.holder, ', ' order by described.holder), 'a lock that is free again')
    from (
        select
            concat_ws(
                ', ',
                case
                    when pg_locks.pid is null then 'a prepared transaction (of nobody'
                    when activity.usesysid is null then format('process %s (autovacuum', pg_locks.pid)
                    else format('process %s (user %s', pg_locks.pid, pg_get_userbyid(activity.usesysid))
                end,
                nullif(activity.application_name, ''),
                activity.state,
                'since ' || date_trunc('second', activity.xact_start)::text,
                string_agg(pg_locks.mode, ' and ' order by pg_locks.mode) || ')'
            ) as holder
        from pg_locks
        left join pg_stat_activity as activity on activity.pid = pg_locks.pid
        where
            pg_locks.locktype = 'relation'
            and pg_locks.database = (select oid from pg_database where datname = current_database())
            and pg_locks.relation = target
            and pg_locks.granted
            and pg_locks.pid is distinct from pg_backend_pid()
        group by pg_locks.pid, activity.usesysid, activity.application_name, activity.state, activity.xact_start
    ) as described
$$;

comment on function raw.describe_lock_holders is 'Names the sessions that hold a lock on a table.';


create function raw.is_only_autovacuum(target regclass) returns boolean
language sql
set search_path = pg_catalog
as $$
    select coalesce(bool_and(pg_locks.pid is not null and activity.usesysid is null), false)
    from pg_locks
    left join pg_stat_activity as activity on activity.pid = pg_locks.pid
    where
        pg_locks.locktype = 'relation'
        and pg_locks.database = (select oid from pg_database where datname = current_database())
        and pg_locks.relation = target
        and pg_locks.granted
        and pg_locks.pid is distinct from pg_backend_pid()
$$;

comment on function raw.is_only_autovacuum is 'Whether nothing but autovacuum holds a lock on a table. Autovacuum gives way to a session that waits for a second.';


create function raw.describe_dependents(target regclass, target_column text) returns text
language sql
set search_path = pg_catalog
as $$
    select string_agg(described.dependent, ', ' order by described.dependent)
    from (
        select distinct pg_describe_object(pg_depend.classid, pg_depend.objid, pg_depend.objsubid) as dependent
        from pg_depend
        inner join pg_attribute
            on pg_attribute.attrelid = pg_depend.refobjid and pg_attribute.attnum = pg_depend.refobjsubid
        where
            pg_depend.refclassid = 'pg_class'::regclass
            and pg_depend.refobjid = target
            and pg_attribute.attname = target_column
    ) as described
$$;

comment on function raw.describe_dependents is 'Names the objects that depend on a column.';


-- Says why a statement failed, without values from events: PostgreSQL quotes them in the message of a data exception and
-- in the detail of a violated constraint, and a trigger may quote anything.
create function raw.explain_failure(
    target regclass, target_column text, code text, message text, detail text, context text
) returns text
language sql
set search_path = pg_catalog
as $$
    select case
        when code = '55P03' then raw.describe_lock_holders(target)
        -- These details name objects.
        when code in ('0A000', '2BP01') then concat_ws(': ', message, nullif(detail, ''))
        when context ~ '^PL/.*\) line' and context !~ '^PL/pgSQL function raw\.'
            then format('%s raised an error, SQLSTATE %s', substring(context from '^(PL/.*?\)) line'), code)
        when code like '22%'
            then format(
                '%s: SQLSTATE %s',
                coalesce(raw.describe_dependents(target, target_column), 'a value that an object on the table refuses'),
                code
            )
        when code like '23%' then message
        else concat_ws(': ', raw.describe_dependents(target, target_column), message)
    end
$$;

comment on function raw.explain_failure is 'Says why a statement on a table failed, without values from events.';


-- Gives a column a wider type, or returns what is in the way. A lock is in the way of the whole table; an object of one
-- column, which is tried again after five minutes. `own_views` are views that dbt itself makes from this project's models.
create function raw.try_widening(
    table_model text,
    table_source text,
    target regclass,
    target_column text,
    wider_type text,
    own_views text[],
    most_bytes bigint,
    is_forced boolean
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
        select columns.in_the_way into reason
        from raw.columns
        where
            model = table_model and source = table_source and column_name = target_column
            and wanted_type = wider_type and next_try_at > clock_timestamp();
        if found then
            return reason;
        end if;
    end if;
    for attempt in 1..2 loop
        begin
            perform set_config('lock_timeout', case attempt when 1 then '200ms' else '1200ms' end, true);
            if not is_forced and pg_table_size(target) > most_bytes then
                return format(
                    'the table''s size of %s: a run rewrites no table over %s',
                    pg_size_pretty(pg_table_size(target)), pg_size_pretty(most_bytes)
                );
            end if;
            reason := raw.widen_column(target, target_column, wider_type, is_forced);
            if reason <> '' and not exists (
                select from unnest(string_to_array(reason, ', ')) as name
                where not exists (select from unnest(own_views) as own where to_regclass(own)::text = name)
            ) then
                reason := raw.widen_column(target, target_column, wider_type, true);
            end if;
            perform raw.release_table(table_model, table_source, 'columns');
            return reason;
        exception when others then
            get stacked diagnostics
                code = returned_sqlstate, message = message_text, detail = pg_exception_detail, context = pg_exception_context;
        end;
        exit when code <> '55P03' or not raw.is_only_autovacuum(target);
    end loop;
    reason := raw.explain_failure(target, target_column, code, message, detail, context);
    if code = '55P03' then
        perform raw.hold_table(table_model, table_source, 'columns', reason);
    else
        update raw.columns set next_try_at = clock_timestamp() + interval '5 min'
        where model = table_model and source = table_source and column_name = target_column;
    end if;
    return reason;
end
$$;

comment on function raw.try_widening is 'Gives a column a wider type without waiting long for a lock; returns what is in the way, or the empty string.';
