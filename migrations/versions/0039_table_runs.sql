-- How a run fills one served table of one source. dbt writes the select from the columns that `raw.open_table` returns. The
-- functions of the schema raw do everything else: they lock the cursor, make and change the table, find the columns, count
-- the events, and report. All of them work by hand, too.


-- Locks the cursor of a table, and sets the settings of this transaction that the select of a model reads.
--
-- A second run of the model waits at the lock for the commit of the first, and then finds the cursor moved. A run that
-- started earlier and came later has a snapshot that is not newer than the cursor's. Such a run has nothing to add.
create function raw.lock_cursor(
    run_model text, run_source text, run_transform text, is_rebuild boolean, lock_wait text
) returns jsonb
language plpgsql
set search_path = pg_catalog
as $$
declare
    found_cursor record;
begin
    -- Another session's lock on raw.cursors fails the table. Another run may hold the cursor's row for hours.
    lock table raw.cursors in row exclusive mode;
    perform set_config('lock_timeout', '0', true);
    insert into raw.cursors (model, source) values (run_model, run_source) on conflict do nothing;
    -- The lock has a statement of its own, so that the next statement sees the cursor as the other run has left it.
    perform from raw.cursors where cursors.model = run_model and cursors.source = run_source for update;
    perform
        set_config('lock_timeout', lock_wait, true),
        set_config('timezone', 'UTC', true),
        set_config('datestyle', 'ISO, MDY', true),
        set_config('standard_conforming_strings', 'on', true);

    select
        cursors.snapshot as previous,
        cursors.last_seq,
        cursors.rebuild_ordered,
        cursors.xmin = pg_current_xact_id()::xid as is_first,
        transforms.started_at,
        latest.snapshot
    into found_cursor
    from raw.cursors
    cross join raw.transforms
    -- A rebuild that had to wait for a run with a later snapshot reads up to that snapshot: tables never go back in time.
    cross join lateral (
        select taken.snapshot
        from (values (transforms.snapshot), (cursors.snapshot)) as taken (snapshot)
        where taken.snapshot is not null
        order by pg_snapshot_xmax(taken.snapshot) desc, (select count(*) from pg_snapshot_xip(taken.snapshot))
        limit 1
    ) as latest
    where cursors.model = run_model and cursors.source = run_source and transforms.id = run_transform;
    if not found then
        raise exception 'This invocation is not in raw.transforms: the project''s on-run-start hook did not run.';
    end if;

    perform
        set_config('loader.source', run_source, true),
        set_config('loader.started_at', found_cursor.started_at::text, true),
        set_config('loader.snapshot', found_cursor.snapshot::text, true),
        set_config(
            'loader.previous_snapshot',
            case when is_rebuild then '' else coalesce(found_cursor.previous::text, '') end,
            true
        ),
        -- Memory for grouping the ids of a first run, on each of a few connections.
        set_config('work_mem', greatest(pg_size_bytes(current_setting('work_mem')), 32 * 1024 * 1024) / 1024 || 'kB', true),
        -- An increment is small against the history: never read all of it, however old the statistics are.
        set_config('enable_seqscan', case when is_rebuild or found_cursor.previous is null then 'on' else 'off' end, true);

    return jsonb_build_object(
        'model', run_model,
        'source', run_source,
        'transform', run_transform,
        'is_first', found_cursor.is_first,
        'previous', coalesce(found_cursor.previous::text, ''),
        'snapshot', found_cursor.snapshot::text,
        'last_seq', found_cursor.last_seq,
        'rebuild_ordered', found_cursor.rebuild_ordered,
        'started_at', found_cursor.started_at::text
    );
end
$$;

comment on function raw.lock_cursor is 'Locks the cursor of a table for a run, sets what the select of the model reads, and returns the cursor.';


-- Makes the table of a model. Its key follows the first rows, because building the key at once takes a third of the time.
create function raw.make_table(run_model text, run_source text, declared jsonb, caller_search_path text) returns void
language plpgsql
set search_path = pg_catalog
as $$
declare
    target text := format('%I.%I', run_source, run_model);
begin
    if to_regnamespace(quote_ident(run_source)) is null then
        -- Two sessions creating one schema at once would fail, `if not exists` or not.
        perform pg_advisory_xact_lock(hashtext('create schema'));
        execute format('create schema if not exists %I', run_source);
        perform raw.admit_readers(run_source);
    end if;
    -- The key of a table foo is called foo_pkey. An event may have that name too, and then the key gets another name. No
    -- table ends in an underscore, so the new name is free.
    if (select relkind = 'i' from pg_class where oid = to_regclass(target)) then
        execute format('alter index %s rename to %I', target, left(run_model, 62) || '_');
    end if;
    -- A team may have given a column a type of its own.
    perform set_config('search_path', caller_search_path, true);
    execute (
        select format('create table %s (%s)', target, string_agg(
            format('%I %s', column_name, case column_name when 'id' then 'varchar(1024) not null' else data_type end),
            ', ' order by number
        ))
        from raw.read_declared(declared)
    );
end
$$;

comment on function raw.make_table is 'Makes the table of a model in the schema of a source, without its key.';


-- Changes a table, and returns the obstacle, or the empty string. Other sessions see a new table only after the commit, so
-- a change of a new table needs no lock.
create function raw.apply_statements(run jsonb, statements jsonb, is_forced boolean) returns text
language plpgsql
set search_path = pg_catalog
as $$
declare
    joined text := (select string_agg(statement, '; ') from jsonb_array_elements_text(statements) as statement);
begin
    if joined is null then
        return '';
    elsif (run ->> 'is_created')::boolean then
        execute joined;
        return '';
    end if;
    return raw.change_table(
        run ->> 'model', run ->> 'source', raw.target_name(run)::regclass, joined, is_forced
    );
end
$$;

comment on function raw.apply_statements is 'Changes a table of a run; returns the obstacle, or the empty string.';


-- Begins a run of one table: locks the cursor, makes a missing table, and decides whether the run makes all rows again.
-- `state` is in the result only where the run ends here; see `raw.open_table`.
create function raw.begin_table(
    run_model text, run_source text, run_transform text, declared jsonb, options jsonb, caller_search_path text
) returns jsonb
language plpgsql
set search_path = pg_catalog
as $$
declare
    target text := format('%I.%I', run_source, run_model);
    is_full_refresh boolean := (options ->> 'full_refresh')::boolean;
    run jsonb := raw.lock_cursor(run_model, run_source, run_transform, is_full_refresh, options ->> 'lock_wait');
    is_first boolean := (run ->> 'is_first')::boolean;
    is_created boolean;
    is_rebuild boolean;
    note text;
    reason text := raw.find_obstacle(run_source, run_model);
begin
    if reason is null and is_first and not is_full_refresh and raw.has_rows(target) then
        -- The next run must find no cursor either. Otherwise it would count the rows as its own.
        delete from raw.cursors where cursors.model = run_model and cursors.source = run_source;
        reason := format(
            '%s.%s holds rows that did not come from raw.events. Move the table away, or run with --full-refresh to replace '
            'its rows.',
            run_source, run_model
        );
    end if;
    if reason is not null then
        perform raw.hold_table(run_model, run_source, 'fill', reason);
        return jsonb_build_object('state', 'held', 'reason', reason);
    end if;

    is_created := raw.describe_table(target) is null;
    if is_created then
        perform raw.make_table(run_model, run_source, declared, caller_search_path);
    end if;
    is_rebuild := is_full_refresh or is_created or (run ->> 'rebuild_ordered')::boolean or run ->> 'previous' = '';

    if is_rebuild and not is_created and not (options ->> 'empty')::boolean then
        reason := raw.lock_for_rows(
            run_model, run_source, target::regclass, is_full_refresh or (options ->> 'widening')::boolean
        );
        if reason <> '' then
            return raw.describe_lock(reason);
        end if;
    end if;
    if is_first or not is_rebuild or (options ->> 'empty')::boolean then
        -- A first run can lose no row, because none came from an event.
        null;
    elsif is_created then
        -- The table was dropped and has nothing to lose. It starts again from the first event.
        note := 'had been dropped and is made again. ' || raw.describe_loss(run_source, run_model);
    elsif (options ->> 'allow_loss')::boolean then
        note := 'was rebuilt, and rows were lost, as the command allowed. ' || raw.describe_loss(run_source, run_model);
    elsif not raw.order_rebuild(run_source, run_model) then
        if is_full_refresh then
            select held_tables.reason into reason
            from raw.held_tables
            where held_tables.model = run_model and held_tables.source = run_source and held_tables.held = 'rebuild';
            return jsonb_build_object('state', 'refused', 'reason', format('%s.%s: %s', run_source, run_model, reason));
        end if;
        is_rebuild := false;
    end if;
    if is_rebuild and not is_full_refresh and run ->> 'previous' <> '' then
        run := raw.lock_cursor(run_model, run_source, run_transform, true, options ->> 'lock_wait');
    end if;
    return run || jsonb_build_object(
        'is_created', is_created,
        'is_rebuild', is_rebuild,
        'is_own_sql', not (options ->> 'found_columns')::boolean,
        'note', format('%s.%s ', run_source, run_model) || note,
        'new_columns', case
            when is_created then (select jsonb_agg(column_name order by number) from raw.read_declared(declared))
            else '[]'
        end,
        'is_refilled', false,
        'indexes', options -> 'indexes',
        'most_bytes', options -> 'most_bytes'
    );
end
$$;

comment on function raw.begin_table is 'Begins a run of one served table: locks its cursor, makes it, and decides whether all rows are made again.';


create function raw.describe_lock(reason text) returns jsonb
language sql immutable
set search_path = pg_catalog
as $$
    select jsonb_build_object(
        'state', 'done',
        'is_held', true,
        'obstacles', jsonb_build_array(format('no rows were added. In the way: %s.', reason))
    )
$$;

comment on function raw.describe_lock is 'Returns the state of a table that the run leaves because of a lock.';


create function raw.describe_unchanged(reason text) returns jsonb
language sql immutable
set search_path = pg_catalog
as $$
    select case reason
        when '' then '[]'
        else jsonb_build_array(format('columns could not be added or described. In the way: %s.', reason))
    end
$$;

comment on function raw.describe_unchanged is 'Returns the obstacle of a table whose columns could not be added or described, if any.';


-- Opens a run of one table of one source, as far as it goes without the SQL of the model. `state` of the result says how
-- the run goes on:
-- - `held`: the table stays as it is, because of `reason`.
-- - `refused`: a rebuild that was asked for would lose rows, as `reason` says. The table stays as it is.
-- - `done`: there is nothing to write.
-- - `changed`: columns were added. The caller commits, so that the lock ends before the rows, and calls again.
-- - `widen`: the columns in `too_narrow` want wider types, as `raw.widen_columns` gives them. The caller then calls again.
-- - `ready`: the caller writes the rows between `raw.start_rows` and `raw.close_table`.
--
-- Args:
--     declared: The columns of the model's yml: `name`, `data_type`, `description` and `meta` of each.
--     options: `full_refresh`, `empty`, `allow_loss`, `widening` (of the command), `found_columns`, `description`,
--         `relation_docs`, `column_docs` and `indexes` (of the model: `columns`, `type` and `is_unique` of each), `lock_wait`,
--         `most_bytes` (of a table for which a run builds an index).
--     so_far: `run` of the call before, `is_changed` after a change, `is_widened` after a widening; null in the first call.
--     caller_search_path: The search path of the caller, by which a team's own types are found.
create function raw.open_table(
    run_model text, run_source text, run_transform text, declared jsonb, options jsonb, so_far jsonb,
    caller_search_path text
) returns jsonb
language plpgsql
set search_path = pg_catalog
as $$
declare
    target text := format('%I.%I', run_source, run_model);
    is_forced boolean := (options ->> 'full_refresh')::boolean or (options ->> 'widening')::boolean;
    run jsonb;
    described jsonb;
    places jsonb := '{"found": [], "others": {}, "unplaced": [], "fractions": []}';
    planned jsonb;
    previous text;
    events record;
    has_pending boolean := raw.has_pending_columns(run_model, run_source);
    reason text;
    obstacles text[] := '{}';
begin
    if so_far is null then
        run := raw.begin_table(run_model, run_source, run_transform, declared, options, caller_search_path);
        if run ? 'state' then
            return run;
        end if;
    else
        run := (so_far -> 'run') || raw.lock_cursor(
            run_model, run_source, run_transform, (so_far -> 'run' ->> 'is_rebuild')::boolean, options ->> 'lock_wait'
        );
    end if;
    described := raw.describe_table(target);
    run := run || jsonb_build_object('may_refuse_rows', described -> 'may_refuse_rows', 'has_pending', has_pending);
    if (options ->> 'empty')::boolean then
        planned := raw.plan_columns(run_model, run_source, declared, described, places, options);
        reason := raw.apply_statements(run, planned -> 'statements', is_forced);
        if (run ->> 'is_created')::boolean then
            -- The table lacks the events that its cursor has seen, so the cursor starts again from the first event.
            perform raw.add_key(target);
            perform raw.make_indexes(run);
            update raw.cursors set snapshot = null where cursors.model = run_model and cursors.source = run_source;
        end if;
        return jsonb_build_object('state', 'done', 'obstacles', raw.describe_unchanged(reason));
    end if;

    previous := case when (run ->> 'is_rebuild')::boolean then '' else run ->> 'previous' end;
    select * into events from raw.count_new_events(run_model, run_source, previous, run ->> 'snapshot');
    run := run || jsonb_build_object(
        'rows', events.rows, 'first_seq', events.first_seq, 'last_seq_read', events.last_seq
    );
    if
        (options ->> 'found_columns')::boolean
        and (events.rows > 0 or has_pending or (run ->> 'is_created')::boolean or (options ->> 'widening')::boolean)
    then
        places := raw.place_properties(run_model, run_source, declared);
    end if;
    planned := raw.plan_columns(run_model, run_source, declared, described, places, options);

    -- A comment that cannot be corrected must not bring the caller back for ever. New columns may come at any time.
    if planned -> 'statements' <> '[]' and (so_far ->> 'is_changed' is null or planned -> 'new_columns' <> '[]') then
        reason := raw.apply_statements(run, planned -> 'statements', is_forced);
        if reason = '' then
            run := run || jsonb_build_object('new_columns', (run -> 'new_columns') || (planned -> 'new_columns'));
            perform raw.record_columns(run_model, run_source, planned -> 'notes')
            where places -> 'found' <> '[]' or run -> 'new_columns' <> '[]';
            if not (run ->> 'is_created')::boolean then
                return jsonb_build_object('state', 'changed', 'run', run);
            end if;
        else
            planned := raw.leave_out_columns(planned, reason, coalesce(nullif(previous, ''), '1:1:'));
            obstacles := array(select jsonb_array_elements_text(raw.describe_unchanged(reason)));
        end if;
    end if;
    if planned -> 'too_narrow' <> '[]' then
        if so_far ->> 'is_widened' is null then
            return jsonb_build_object(
                'state', 'widen', 'run', run, 'too_narrow', planned -> 'too_narrow', 'fractions', places -> 'fractions'
            );
        end if;
        planned := raw.keep_obstacles(run_model, run_source, planned);
    end if;
    if
        places -> 'found' <> '[]' or places -> 'others' <> '{}' or run -> 'new_columns' <> '[]'
        or planned -> 'statements' <> '[]'
    then
        perform raw.record_columns(run_model, run_source, planned -> 'notes');
    end if;
    if planned -> 'unplaced' <> '[]' then
        perform raw.record_collisions(run_model, run_source, planned -> 'unplaced');
    end if;

    if not (run ->> 'is_created')::boolean then
        obstacles := obstacles || raw.make_indexes(run);
        -- A unique index may be new.
        run := run || jsonb_build_object('may_refuse_rows', raw.describe_table(target) -> 'may_refuse_rows');
    end if;
    if not (events.rows > 0 or (run ->> 'is_rebuild')::boolean or has_pending) then
        perform raw.close_table(run, 0, 0, caller_search_path);
        return jsonb_build_object('state', 'done', 'obstacles', to_jsonb(obstacles));
    end if;
    if not (run ->> 'is_created')::boolean then
        reason := raw.lock_for_rows(run_model, run_source, target::regclass, is_forced);
        if reason <> '' then
            return raw.describe_lock(reason);
        end if;
    end if;
    return jsonb_build_object(
        'state', 'ready',
        'run', run,
        'repeated', events.repeated,
        'slices', raw.slice_events(run),
        'columns', (
            select coalesce(jsonb_agg(note order by number), '[]')
            from jsonb_array_elements(planned -> 'notes') with ordinality as entry (note, number)
            where note ->> 'is_missing' is null
        ),
        'fractions', places -> 'fractions',
        'late', case
            when has_pending and not (run ->> 'is_rebuild')::boolean then raw.list_late_columns(run_model, run_source)
            else '[]'
        end,
        'obstacles', to_jsonb(obstacles)
    );
end
$$;

comment on function raw.open_table is 'Opens a run of one served table, as far as it goes without the SQL of the model.';
