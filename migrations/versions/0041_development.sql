-- Development runs: runs on a target that is not production. A development run makes its tables from the latest events, in
-- schemas of its own. The run only reads the schema raw, so these functions write to schemas that the caller names.


-- Returns the least transaction id from which on all transactions landed their events at a time or later. The index of
-- transaction ids gives the answer, because ids rise with time. A transaction that began before the time may be left out.
create function raw.find_transaction(since timestamptz) returns xid8
language plpgsql stable
set search_path = pg_catalog
set enable_seqscan = off
as $$
declare
    low bigint := 1;
    high bigint := pg_snapshot_xmax(pg_current_snapshot())::text::bigint;
    middle bigint;
    landed record;
begin
    -- In a new or restored database, ids before the start or the restore say nothing of a time.
    if exists (select from raw.cluster where adopted_at >= since) then
        return '1'::xid8;
    end if;
    while low < high loop
        middle := low + (high - low) / 2;
        select events.load_xid, events.landed_at into landed
        from raw.events
        where events.load_xid >= middle::text::xid8
        order by events.load_xid
        limit 1;
        if landed is null or landed.landed_at >= since then
            high := middle;
        else
            low := landed.load_xid::text::bigint + 1;
        end if;
    end loop;
    return low::text::xid8;
end
$$;

comment on function raw.find_transaction is 'Returns the transaction id from which on events landed at a time or later.';


-- Fails where a development run would write to tables of production, or where the role may not do its part.
create function raw.check_development(ledger text, schemas text[]) returns void
language plpgsql stable
set search_path = pg_catalog
as $$
declare
    own_schema text;
begin
    foreach own_schema in array schemas || ledger loop
        if octet_length(own_schema) > 63 then
            raise exception 'The name of schema % is longer than the 63 bytes that PostgreSQL keeps.', own_schema
            using hint = 'Give the target in profiles.yml a shorter schema.';
        elsif own_schema = 'raw' or exists (select from raw.sources where schema_name = own_schema) then
            raise exception 'Schema % holds tables of production, and this target is not production.', own_schema
            using hint = 'Give the target in profiles.yml another schema.';
        elsif to_regnamespace(quote_ident(own_schema)) is null and not has_database_privilege(current_database(), 'create') then
            raise exception 'Schema % is not there, and role % may not create it.', own_schema, current_user
            using hint = format(
                'Let the owner of the database run: create schema %I authorization %I', own_schema, current_user
            );
        end if;
    end loop;
    if raw.has_foreign_transactions() then
        raise exception 'raw.events was restored, and no run of production has read it since.'
        using hint = 'Run `loader transform` on production first.';
    end if;
end
$$;

comment on function raw.check_development is 'Fails where a development run would write to tables of production, or lacks a right.';


-- Begins a development run: makes its schemas, and records the snapshot that all its tables read.
--
-- Args:
--     ledger: The schema of the run's own cursors and reports.
--     schemas: The schemas of the tables, one for each source.
--     invocation: The id of dbt's invocation.
--     days: The number of days whose events the run reads.
create function raw.open_development(ledger text, schemas text[], invocation text, days numeric) returns void
language plpgsql
set search_path = pg_catalog
as $$
declare
    own_schema text;
begin
    perform raw.check_development(ledger, schemas);
    -- Two sessions creating one schema at once would fail, `if not exists` or not.
    perform pg_advisory_xact_lock(hashtext('create schema'));
    foreach own_schema in array schemas || ledger loop
        if to_regnamespace(quote_ident(own_schema)) is null then
            execute format('create schema %I', own_schema);
        end if;
    end loop;
    if to_regclass(format('%I.transforms', ledger)) is null then
        execute format(
            $ledger$
                create table %1$I.transforms (
                    id text primary key,
                    previous_snapshot pg_snapshot not null,
                    snapshot pg_snapshot not null,
                    started_at timestamptz not null default clock_timestamp(),
                    finished_at timestamptz,
                    status text not null default 'running',
                    error text
                );
                comment on table %1$I.transforms is 'One row per development run: it reads the events that snapshot shows and previous_snapshot does not.';

                create table %1$I.cursors (
                    model text not null,
                    source text not null,
                    transform_id text not null,
                    previous_snapshot pg_snapshot not null,
                    snapshot pg_snapshot,
                    table_rows bigint not null default 0,
                    updated_at timestamptz not null default clock_timestamp(),
                    primary key (model, source)
                );
                comment on table %1$I.cursors is 'One row per table of a development run, with the events that it read; snapshot is null after a run that read none.';
            $ledger$,
            ledger
        );
    end if;
    execute format(
        'insert into %I.transforms (id, previous_snapshot, snapshot) values (%L, %L, pg_current_snapshot())',
        ledger,
        invocation,
        format('%1$s:%1$s:', raw.find_transaction(clock_timestamp() - days * interval '1 day'))
    );
end
$$;

comment on function raw.open_development is 'Begins a development run: makes its schemas, and records the snapshot that all its tables read.';


create function raw.finish_development(ledger text, invocation text, failure text) returns void
language plpgsql
set search_path = pg_catalog
as $$
begin
    execute format(
        'update %I.transforms set finished_at = clock_timestamp(), status = %L, error = %L where id = %L',
        ledger,
        case when failure is null then 'success' else 'error' end,
        failure,
        invocation
    );
end
$$;

comment on function raw.finish_development is 'Records the end of a development run, with its error, or null.';


-- Makes a table of a development run again, empty and with all columns, and sets what the select of the model reads. Views
-- on the table go with it, as with a table that dbt makes. A table that no development run made is left alone.
--
-- Args:
--     ledger: The schema of the run's own cursors and reports.
--     table_schema: The schema of the table.
--     declared, options, caller_search_path: As in `raw.open_table`.
--
-- Returns:
--     `columns` and `fractions`, as `raw.open_table` returns them.
create function raw.open_development_table(
    ledger text, table_schema text, run_model text, run_source text, invocation text, declared jsonb, options jsonb,
    caller_search_path text
) returns jsonb
language plpgsql
set search_path = pg_catalog
as $$
declare
    target text := format('%I.%I', table_schema, run_model);
    is_own boolean;
    transform record;
    places jsonb := '{"found": [], "others": {}, "unplaced": [], "fractions": []}';
    planned jsonb;
    statement text;
begin
    execute format(
        'select exists (select from %I.cursors where model = %L and source = %L)', ledger, run_model, run_source
    )
    into is_own;
    if to_regclass(target) is not null and not is_own then
        raise exception '% is there, and no development run made it.', target
        using hint = 'Rename or drop it, or give the target in profiles.yml another schema.';
    end if;
    execute format('select previous_snapshot, snapshot, started_at from %I.transforms where id = %L', ledger, invocation)
    into transform;
    if transform.snapshot is null then
        raise exception 'This invocation is not in %.transforms: the project''s on-run-start hook did not run.', ledger;
    end if;
    perform
        set_config('timezone', 'UTC', true),
        set_config('datestyle', 'ISO, MDY', true),
        set_config('standard_conforming_strings', 'on', true),
        set_config('loader.source', run_source, true),
        set_config('loader.started_at', transform.started_at::text, true),
        set_config('loader.previous_snapshot', transform.previous_snapshot::text, true),
        set_config('loader.snapshot', transform.snapshot::text, true);

    execute format('drop table if exists %s cascade', target);
    perform raw.make_table(run_model, table_schema, declared, caller_search_path);
    perform raw.add_key(target);
    if (options ->> 'found_columns')::boolean then
        places := raw.place_properties(run_model, run_source, declared);
    end if;
    planned := raw.plan_columns(run_model, table_schema, declared, raw.describe_table(target), places, options);
    perform set_config('search_path', caller_search_path, true);
    for statement in select jsonb_array_elements_text(planned -> 'statements') loop
        execute statement;
    end loop;
    execute format(
        'insert into %I.cursors (model, source, transform_id, previous_snapshot) values (%L, %L, %L, %L)
        on conflict (model, source) do update set
            transform_id = excluded.transform_id, previous_snapshot = excluded.previous_snapshot, snapshot = null,
            table_rows = 0, updated_at = excluded.updated_at',
        ledger, run_model, run_source, invocation, transform.previous_snapshot
    );
    return jsonb_build_object('columns', planned -> 'notes', 'fractions', places -> 'fractions');
end
$$;

comment on function raw.open_development_table is 'Makes a table of a development run again, empty, and returns its columns.';


create function raw.close_development_table(
    ledger text, run_model text, run_source text, invocation text, inserted bigint
) returns void
language plpgsql
set search_path = pg_catalog
as $$
begin
    execute format(
        'update %1$I.cursors set snapshot = transforms.snapshot, table_rows = %5$L, updated_at = clock_timestamp()
        from %1$I.transforms
        where cursors.model = %2$L and cursors.source = %3$L and transforms.id = %4$L',
        ledger, run_model, run_source, invocation, inserted
    );
end
$$;

comment on function raw.close_development_table is 'Records the rows of a table of a development run, and the events that it has read.';


create function raw.count_new_ids(
    run_model text, run_source text, previous pg_snapshot, latest pg_snapshot
) returns bigint
language plpgsql stable
set search_path = pg_catalog
as $$
declare
    counted bigint;
begin
    execute format(
        'select count(distinct message_id) from raw.events where %s',
        raw.filter_new_events(run_model, run_source, previous::text, latest::text)
    )
    into counted;
    return counted;
end
$$;

comment on function raw.count_new_ids is 'Counts the ids of the events of a table that one snapshot shows and an earlier one does not.';
