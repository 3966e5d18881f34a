-- The books of the marts. They are apart from the cursors of the collections, so that a failing mart changes no number
-- of a collection.

alter table raw.cursors add column rewrites bigint not null default 0;

comment on column raw.cursors.rewrites is 'How often a run has written rows again that it had written before: rebuilds, wider columns, columns filled late.';


create table raw.marts (
    source text not null,
    mart text not null,
    version bigint not null default 0,
    oldest_version bigint not null default 0,
    logged_rows bigint not null default 0,
    fingerprint text,
    variables jsonb not null default '{}',
    filled_at timestamptz,
    last_run text,
    note text,
    error text,
    failed_at timestamptz,
    primary key (source, mart)
);

comment on table raw.marts is 'One row per source and mart: the state of its rows. Moves in the transaction of the rows.';
comment on column raw.marts.version is 'Counts the runs that changed rows; 0 before the first run.';
comment on column raw.marts.oldest_version is 'The log of changes leads from this version to the present version.';
comment on column raw.marts.logged_rows is 'Rows written to the log of changes since it was last emptied.';
comment on column raw.marts.fingerprint is 'A digest of the SQL with which the rows were made.';
comment on column raw.marts.variables is 'The variables with which the rows were made.';
comment on column raw.marts.last_run is 'The invocation that filled the mart last.';
comment on column raw.marts.note is 'The change of variables for which that run made all rows again.';
comment on column raw.marts.error is 'The reason why the last run failed; null after a success.';

create table raw.mart_inputs (
    source text not null,
    mart text not null,
    input text not null,
    version bigint not null,
    snapshot pg_snapshot,
    primary key (source, mart, input)
);

comment on table raw.mart_inputs is 'One row per mart and table that it reads: how far it has read.';
comment on column raw.mart_inputs.version is 'The version of the other mart, or the number of rewrites of the collection.';
comment on column raw.mart_inputs.snapshot is 'The snapshot of the collection''s cursor; null for an input that is a mart.';


create view raw.mart_clashes as
select
    sources.schema_name as source,
    sources.schema_name || '_marts' as mart_schema,
    case
        when octet_length(sources.schema_name || '_marts') > 63 then 'The name of the schema is too long.'
        else 'Another source has this schema.'
    end as reason
from raw.sources
where
    octet_length(sources.schema_name || '_marts') > 63
    or exists (
        select from raw.sources as other
        where other.schema_name = sources.schema_name || '_marts'
    );

comment on view raw.mart_clashes is 'The sources without marts, because the schema of their marts cannot be theirs.';


create function raw.count_rewrite() returns trigger
language plpgsql
set search_path = pg_catalog
as $$
begin
    update raw.cursors set rewrites = cursors.rewrites + 1
    where cursors.model = new.model and cursors.source = new.source;
    return null;
end
$$;

comment on function raw.count_rewrite is 'Counts a run that wrote rows of a served table again.';

create trigger count_rewrite after insert or update of refilled on raw.syncs
for each row when (new.full_refresh or new.refilled) execute function raw.count_rewrite();


-- The function returns its first argument, and never sees NULL. So the aggregate keeps the first value that is not NULL.
create aggregate raw.first_of (anyelement)(sfunc = any_value_transfn, stype = anyelement);

comment on aggregate raw.first_of (anyelement) is 'The first value that is not null, in the order of the aggregate. Takes a quarter of the time of array_agg.';


create function raw.is_time_zone(text) returns boolean
language sql stable
set search_path = pg_catalog
return exists (
    select from pg_timezone_names
    where name = $1
);

comment on function raw.is_time_zone is 'Whether a text is the IANA name of a time zone.';


-- Sets the settings of a transaction that fills a mart.
create function raw.set_mart_session(is_increment boolean) returns void
language plpgsql
set search_path = pg_catalog
as $$
begin
    perform
        set_config('timezone', 'UTC', true),
        set_config('datestyle', 'ISO, MDY', true),
        set_config('jit', 'off', true),
        set_config(
            'work_mem', greatest(pg_size_bytes(current_setting('work_mem')), 64 * 1024 * 1024) / 1024 || 'kB', true
        ),
        -- An increment is small against the history: never read all of it, however old the statistics are.
        set_config('enable_seqscan', case when is_increment then 'off' else 'on' end, true);
end
$$;

comment on function raw.set_mart_session is 'Sets the settings of a transaction that fills a mart.';


-- Locks the row of a mart for its run, and the rows of its inputs against other runs. All runs lock in one order, so that
-- no two wait for each other.
create function raw.lock_marts(run_source text, run_mart text, wanted text[]) returns void
language plpgsql
set search_path = pg_catalog
as $$
declare
    name text;
begin
    insert into raw.marts (source, mart)
    select run_source, each from unnest(wanted || run_mart) as each order by each
    on conflict do nothing;
    for name in select each from unnest(wanted || run_mart) as each order by each loop
        if name = run_mart then
            perform from raw.marts where marts.source = run_source and marts.mart = name for update;
        else
            perform from raw.marts where marts.source = run_source and marts.mart = name for share;
        end if;
    end loop;
end
$$;

comment on function raw.lock_marts is 'Locks a mart for its run, and the inputs of the mart against other runs.';


create function raw.describe_variables(old_variables jsonb, new_variables jsonb) returns text
language sql immutable
set search_path = pg_catalog
return (
    select
        string_agg(
            format('%s went from %s to %s', key, coalesce((old_variables -> key)::text, 'nothing'), value::text), ', '
            order by key
        )
    from jsonb_each(new_variables)
    where old_variables -> key is distinct from value
);

comment on function raw.describe_variables is 'Describes the variables that have changed, or returns null.';


-- Plans the run of a mart. A mart that is due also looks for rows of tables that no log covers. `state` of the result says how the run goes on:
-- - `missing`: an input has never been filled, and `note` names it.
-- - `unchanged`: no input has changed.
-- - `increment`: the mart changes by the logged changes of its inputs.
-- - `full`: all rows are made again.
create function raw.open_mart(
    run_source text, run_mart text, run_transform text, wanted text[], new_fingerprint text, new_variables jsonb,
    is_forced boolean, is_due boolean
) returns jsonb
language plpgsql
set search_path = pg_catalog
as $$
declare
    book raw.marts;
    state text := 'unchanged';
    seen jsonb;
    absent text;
    changed text;
    input record;
begin
    perform raw.lock_marts(run_source, run_mart, wanted);
    select * into book from raw.marts where marts.source = run_source and marts.mart = run_mart;
    select marts.mart into absent
    from raw.marts
    where marts.source = run_source and marts.mart = any(wanted) and marts.version = 0
    limit 1;
    if absent is not null then
        return jsonb_build_object('state', 'missing', 'note', absent);
    end if;

    for input in
        select
            marts.mart,
            marts.version,
            read.version as read_version,
            read.version is null or read.version < marts.oldest_version or read.version > marts.version as is_lost
        from raw.marts
        left join raw.mart_inputs as read
            on read.source = run_source and read.mart = run_mart and read.input = marts.mart
        where marts.source = run_source and marts.mart = any(wanted)
    loop
        if input.is_lost then
            state := 'full';
        elsif input.read_version < input.version and state = 'unchanged' then
            state := 'increment';
        end if;
        perform set_config('loader.since_' || input.mart, coalesce(input.read_version, 0)::text, true);
    end loop;

    changed := raw.describe_variables(book.variables, new_variables) where book.version > 0;
    if is_forced or book.version = 0 or changed is not null or book.fingerprint is distinct from new_fingerprint then
        state := 'full';
    elsif is_due and state = 'unchanged' then
        state := 'increment';
    end if;
    perform raw.set_mart_session(state = 'increment');
    select jsonb_object_agg(marts.mart, marts.version) into seen
    from raw.marts
    where marts.source = run_source and marts.mart = any(wanted);
    return jsonb_build_object(
        'state', state,
        'source', run_source,
        'mart', run_mart,
        'version', book.version + 1,
        'inputs', coalesce(seen, '{}'),
        'fingerprint', new_fingerprint,
        'variables', new_variables,
        'transform', run_transform,
        'note', changed
    );
end
$$;

comment on function raw.open_mart is 'Plans the run of a mart, and locks the mart and its inputs.';


-- Empties the part of a log that all readers have read. A log of more than a million rows is emptied whole, because a
-- reader has left it for too long. That reader is made again in its next run.
create function raw.trim_log(run_source text, run_mart text, log text) returns void
language plpgsql
set search_path = pg_catalog
as $$
declare
    read_by_all bigint;
begin
    select
        case when marts.logged_rows > 1000000 then marts.version else coalesce(min(read.version), marts.version) end
    into read_by_all
    from raw.marts
    left join raw.mart_inputs as read on read.source = marts.source and read.input = marts.mart
    where marts.source = run_source and marts.mart = run_mart
    group by marts.source, marts.mart;
    -- A run with nothing new does not even read the log.
    if not exists (
        select from raw.marts
        where marts.source = run_source and marts.mart = run_mart and marts.logged_rows > 0
    ) then
        return;
    end if;
    execute format('delete from %s where version <= %s', log, read_by_all);
    update raw.marts
    set
        oldest_version = greatest(marts.oldest_version, read_by_all),
        logged_rows = case when read_by_all >= marts.version then 0 else marts.logged_rows end
    where marts.source = run_source and marts.mart = run_mart;
end
$$;

comment on function raw.trim_log is 'Empties the part of a mart''s log of changes that all readers have read.';


-- Ends the run of a mart. A run without a change keeps the version, so that no reader runs for nothing.
create function raw.close_mart(plan jsonb, changed_rows bigint) returns void
language plpgsql
set search_path = pg_catalog
as $$
declare
    is_full boolean := plan ->> 'state' = 'full';
begin
    update raw.marts
    set
        version = case when is_full or changed_rows > 0 then (plan ->> 'version')::bigint else marts.version end,
        oldest_version = case when is_full then (plan ->> 'version')::bigint else marts.oldest_version end,
        logged_rows = case when is_full then 0 else marts.logged_rows + changed_rows end,
        fingerprint = plan ->> 'fingerprint',
        variables = plan -> 'variables',
        filled_at = clock_timestamp(),
        last_run = plan ->> 'transform',
        note = plan ->> 'note',
        error = null,
        failed_at = null
    where marts.source = plan ->> 'source' and marts.mart = plan ->> 'mart';
    insert into raw.mart_inputs (source, mart, input, version)
    select plan ->> 'source', plan ->> 'mart', entry.key, entry.value::bigint
    from jsonb_each_text(plan -> 'inputs') as entry
    on conflict (source, mart, input) do update set version = excluded.version;
    delete from raw.mart_inputs
    where
        mart_inputs.source = plan ->> 'source' and mart_inputs.mart = plan ->> 'mart'
        and not plan -> 'inputs' ? mart_inputs.input;
end
$$;

comment on function raw.close_mart is 'Ends the run of a mart: moves its version, and the versions that it has read.';


-- Writes the ids of the events that tables have got since the last call to a log, up to the snapshot of each table's
-- cursor. The log gets no ids where the readers must read all rows again: after a rewrite of a table, after a restore, and
-- where the new events are many against the old. `tables` lists `name`, `source` and `model` of each table.
create function raw.log_arrivals(
    run_source text, run_mart text, tables jsonb, log text, is_forced boolean
) returns bigint
language plpgsql
set search_path = pg_catalog
as $$
declare
    book raw.marts;
    is_full boolean;
    table_rows bigint;
    arrived bigint := 0;
    more bigint;
    each record;
begin
    perform raw.lock_marts(run_source, run_mart, '{}');
    perform raw.trim_log(run_source, run_mart, log);
    select * into book from raw.marts where marts.source = run_source and marts.mart = run_mart;
    is_full := is_forced or book.version = 0;
    table_rows := 0;
    perform set_config('enable_seqscan', 'off', true);
    for each in
        select
            wanted.name,
            cursors.source,
            cursors.model,
            cursors.snapshot,
            cursors.table_rows,
            read.snapshot as previous,
            cursors.rewrites is distinct from read.version or read.snapshot::text = '1:1:' as is_rewritten
        from jsonb_to_recordset(tables) as wanted (name text, source text, model text)
        inner join raw.cursors on cursors.source = wanted.source and cursors.model = wanted.model
        left join raw.mart_inputs as read
            on read.source = run_source and read.mart = run_mart and read.input = wanted.name
        where cursors.snapshot is not null
    loop
        table_rows := table_rows + each.table_rows;
        is_full := is_full or each.is_rewritten;
        if not is_full and each.snapshot::text <> each.previous::text then
            execute format(
                'insert into %s (version, event, id) select %s, %L, message_id from raw.events where %s group by message_id',
                log, book.version + 1, each.name,
                raw.filter_new_events(each.model, each.source, each.previous::text, each.snapshot::text)
            );
            get diagnostics more = row_count;
            arrived := arrived + more;
        end if;
    end loop;
    is_full := is_full or (arrived > 20000 and arrived > table_rows / 5);
    if is_full then
        execute format('delete from %s', log);
    end if;
    update raw.marts
    set
        version = marts.version + case when is_full or arrived > 0 then 1 else 0 end,
        oldest_version = case when is_full then marts.version + 1 else marts.oldest_version end,
        logged_rows = case when is_full then 0 else marts.logged_rows + arrived end,
        filled_at = clock_timestamp(),
        error = null,
        failed_at = null
    where marts.source = run_source and marts.mart = run_mart;
    insert into raw.mart_inputs (source, mart, input, version, snapshot)
    select run_source, run_mart, wanted.name, cursors.rewrites, cursors.snapshot
    from jsonb_to_recordset(tables) as wanted (name text, source text, model text)
    inner join raw.cursors on cursors.source = wanted.source and cursors.model = wanted.model
    where cursors.snapshot is not null
    on conflict (source, mart, input) do update set version = excluded.version, snapshot = excluded.snapshot
    where (mart_inputs.version, mart_inputs.snapshot::text) is distinct from (excluded.version, excluded.snapshot::text);
    return arrived;
end
$$;

comment on function raw.log_arrivals is 'Writes the ids of the events that collections have got since the last call to a log.';


-- Reads the ids that a column of subscriptions holds: a JSON array, or one JSON number. Everything else is passed over.
create function raw.read_ids(written text) returns setof bigint
language plpgsql stable
set search_path = pg_catalog
as $$
declare
    value jsonb;
begin
    if not pg_input_is_valid(written, 'jsonb') then
        return;
    end if;
    value := written::jsonb;
    if jsonb_typeof(value) = 'number' then
        value := jsonb_build_array(value);
    end if;
    if jsonb_typeof(value) <> 'array' then
        return;
    end if;
    return query
    select distinct raw.to_bigint(element #>> '{}') as id
    from jsonb_array_elements(value) as element
    where jsonb_typeof(element) in ('number', 'string') and raw.to_bigint(element #>> '{}') <> 0;
end
$$;

comment on function raw.read_ids is 'The whole numbers other than 0 of a JSON array, or of one JSON number.';
