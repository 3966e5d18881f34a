-- The work of a run around its insert into a served table. The run counts the new events, removes rows, and reports.


create function raw.add_key(target text) returns void
language plpgsql
set search_path = pg_catalog
as $$
begin
    execute format('alter table %s add primary key (id)', target);
end
$$;

comment on function raw.add_key is 'Makes the id the primary key of a served table, as in a Segment warehouse on PostgreSQL.';


create function raw.filter_collection(run_model text) returns text
language sql immutable
set search_path = pg_catalog
as $$
    select case run_model when 'tracks' then 'collection is not null' else format('collection = %L', run_model) end
$$;

comment on function raw.filter_collection is 'Returns the condition for the collections that a table has: all of them for tracks.';


-- Returns the condition for the events of a table that one snapshot shows and an earlier one does not, as the select of a
-- model has it. An empty text shows nothing.
create function raw.filter_new_events(run_model text, run_source text, previous text, latest text) returns text
language sql immutable
set search_path = pg_catalog
as $$
    select format(
        '%s and source = %L and (load_xid >= pg_snapshot_xmax(%3$L::pg_snapshot) '
        'or load_xid = any(array(select pg_snapshot_xip(%3$L::pg_snapshot)))) '
        'and pg_visible_in_snapshot(load_xid, %4$L::pg_snapshot)',
        raw.filter_collection(run_model),
        run_source,
        coalesce(nullif(previous, ''), '1:1:'),
        latest
    )
$$;

comment on function raw.filter_new_events is 'Returns the condition for the events of a table that one snapshot shows and an earlier one does not.';


-- Counts the new events of a table, and returns the part of the landing order that they span, and whether any two have
-- one id.
create function raw.count_new_events(
    run_model text, run_source text, previous text, latest text,
    out rows bigint, out first_seq bigint, out last_seq bigint, out repeated boolean
)
language plpgsql stable
set search_path = pg_catalog
as $$
begin
    execute format(
        $count$
            select
                coalesce(sum(ids.events), 0)::bigint,
                coalesce(min(ids.first_seq), 0),
                coalesce(max(ids.last_seq), 0),
                coalesce(bool_or(ids.events > 1), false)
            from (
                select count(*) as events, min(seq) as first_seq, max(seq) as last_seq
                from raw.events
                where %s
                group by message_id
            ) as ids
        $count$,
        raw.filter_new_events(run_model, run_source, previous, latest)
    )
    into rows, first_seq, last_seq, repeated;
end
$$;

comment on function raw.count_new_events is 'Counts the events of a table that one snapshot shows and an earlier one does not.';


create function raw.has_rows(target text) returns boolean
language plpgsql stable
set search_path = pg_catalog
as $$
declare
    has_any boolean := false;
begin
    if (select relkind in ('r', 'p') from pg_class where pg_class.oid = to_regclass(target)) then
        execute format('select exists (select from only %s)', target) into has_any;
    end if;
    return has_any;
end
$$;

comment on function raw.has_rows is 'Whether a table is there and has rows.';


-- Runs a statement on the rows of a served table. Where an object of another role refuses the rows, `in_the_way` names it.
-- Nearly all tables have no such object.
create function raw.write_table(
    run jsonb, statement text, caller_search_path text, out row_count bigint, out in_the_way text
)
language plpgsql
set search_path = pg_catalog
as $$
begin
    if (run ->> 'may_refuse_rows')::boolean then
        select written.row_count, written.in_the_way into row_count, in_the_way
        from raw.write_rows(
            to_regclass(raw.target_name(run)),
            statement,
            caller_search_path,
            not (run ->> 'is_own_sql')::boolean
        ) as written;
        return;
    end if;
    execute statement;
    get diagnostics row_count = row_count;
    in_the_way := '';
end
$$;

comment on function raw.write_table is 'Runs a statement on the rows of a served table; returns the number of rows, and the obstacle, or the empty string.';


-- Removes the rows that lose against a latecomer, and returns how many. Of several events with one id the first one landed
-- counts, also when its transaction committed after a run had taken a later event. Only an event with a `seq` below the
-- last one read can be a latecomer. The latecomer is compared, by landing order, with the event that holds the id now. That
-- event came in with the run that `uuid_ts` names, or with any earlier run if that run has refilled columns. The row that
-- loses is removed, so that the following insert takes the latecomer.
create function raw.remove_overtaken(run jsonb, caller_search_path text, out row_count bigint, out in_the_way text)
language plpgsql
set search_path = pg_catalog
as $$
begin
    select written.row_count, written.in_the_way into row_count, in_the_way
    from raw.write_table(
        run,
        format(
            $removal$
                with late as materialized (
                    select message_id, min(seq) as seq
                    from raw.events
                    where %4$s and seq < %5$s
                    group by message_id
                ),

                contested as materialized (
                    select
                        late.message_id,
                        late.seq,
                        case when not syncs.refilled then pg_snapshot_xmin(syncs.previous_snapshot) end as held_since
                    from late
                    inner join %6$s as served on served.id = late.message_id
                    left join (select * from raw.syncs where model = %7$L and source = %2$L) as syncs
                        on syncs.started_at = served.uuid_ts
                    where late.seq < coalesce(syncs.last_seq, %5$s)
                ),

                holders as materialized (
                    select message_id, min(seq) as seq
                    from raw.events
                    where
                        %1$s
                        and source = %2$L
                        and message_id in (select message_id from contested)
                        and load_xid >= (
                            select case when bool_and(held_since is not null) then min(held_since) else '1' end from contested
                        )
                        and pg_visible_in_snapshot(load_xid, %3$L::pg_snapshot)
                    group by message_id
                ),

                overtaken as materialized (
                    select contested.message_id
                    from contested
                    inner join holders on holders.message_id = contested.message_id
                    where contested.seq < holders.seq
                ),

                forgotten as (
                    delete from raw.mismatches
                    where model = %7$L and source = %2$L and event_id in (select message_id from overtaken)
                )

                delete from only %6$s where id in (select message_id from overtaken)
            $removal$,
            raw.filter_collection(run ->> 'model'),
            run ->> 'source',
            run ->> 'previous',
            raw.filter_new_events(run ->> 'model', run ->> 'source', run ->> 'previous', run ->> 'snapshot'),
            run ->> 'last_seq',
            raw.target_name(run),
            run ->> 'model'
        ),
        caller_search_path
    ) as written;
end
$$;

comment on function raw.remove_overtaken is 'Removes the rows of a served table that an earlier landed event of their id overtakes.';


-- Moves the cursor past events that are not for this table: events of another source, or without a table. Otherwise every
-- run would read a growing range of such events. Where there are none, nothing is written.
create function raw.pass_by(run jsonb) returns void
language plpgsql
set search_path = pg_catalog
as $$
begin
    if run ->> 'snapshot' = run ->> 'previous' then
        return;
    end if;
    execute format(
        $move$
            update raw.cursors set snapshot = %1$L, updated_at = clock_timestamp()
            where
                model = %2$L and source = %3$L
                and exists (
                    select from raw.events
                    where
                        %4$s
                        and load_xid >= pg_snapshot_xmax(coalesce(nullif(%5$L, ''), '1:1:')::pg_snapshot)
                        and pg_visible_in_snapshot(load_xid, %1$L::pg_snapshot)
                )
        $move$,
        run ->> 'snapshot',
        run ->> 'model',
        run ->> 'source',
        case run ->> 'model' when 'tracks' then 'true' else format('collection = %L', run ->> 'model') end,
        run ->> 'previous'
    );
end
$$;

comment on function raw.pass_by is 'Moves the cursor of a table past events that are not for the table.';


-- The insert of new ids alone takes less time without `on conflict`. A unique violation would come late and cost the insert
-- twice, so the ids are looked up first, in the order of the key.
create function raw.has_known_ids(run jsonb) returns boolean
language plpgsql stable
set search_path = pg_catalog
as $$
declare
    has_any boolean;
begin
    execute format(
        'select exists (
            select from (select message_id from raw.events where %s order by message_id offset 0) as new
            where exists (select from %s as served where served.id = new.message_id)
        )',
        raw.filter_new_events(run ->> 'model', run ->> 'source', run ->> 'previous', run ->> 'snapshot'),
        raw.target_name(run)
    )
    into has_any;
    return has_any;
end
$$;

comment on function raw.has_known_ids is 'Whether any new event of a run has the id of a row in the served table.';


-- Cuts the events of a run into parts of the landing order, as pairs of its first and last number. A first fill is one part,
-- and so is a small increment: null.
create function raw.slice_events(run jsonb) returns jsonb
language sql immutable
set search_path = pg_catalog
as $$
    select case
        when parts.count = 1 then '[null]'
        else (
            select jsonb_agg(jsonb_build_array(
                parts.first_seq + part * parts.width,
                least(parts.first_seq + (part + 1) * parts.width - 1, parts.last_seq)
            ) order by part)
            from generate_series(0, parts.count - 1) as part
        )
    end
    from (
        select
            sizes.count, sizes.first_seq, sizes.last_seq,
            (sizes.last_seq - sizes.first_seq) / sizes.count + 1 as width
        from (
            select
                (run ->> 'first_seq')::bigint as first_seq,
                (run ->> 'last_seq_read')::bigint as last_seq,
                case
                    when (run ->> 'is_created')::boolean or (run ->> 'is_own_sql')::boolean then 1
                    else 1 + ((run ->> 'rows')::bigint - 1) / 200000
                end as count
        ) as sizes
    ) as parts
$$;

comment on function raw.slice_events is 'Cuts the events of a run into parts of the landing order, each of which is inserted in the order of the key.';


-- Prepares a table for the rows of a run that `raw.open_table` calls `ready`: a rebuild removes the old rows, an increment
-- those that a latecomer overtakes. Readers see the old rows until the commit, which `truncate` would hide.
create function raw.start_rows(run jsonb, caller_search_path text) returns jsonb
language plpgsql
set search_path = pg_catalog
as $$
declare
    target text := raw.target_name(run);
    is_rebuild boolean := (run ->> 'is_rebuild')::boolean;
    removed bigint := 0;
    overtaken bigint := 0;
    has_known_ids boolean := false;
    reason text := '';
begin
    perform raw.release_table(run ->> 'model', run ->> 'source', 'fill');
    if is_rebuild then
        delete from raw.mismatches
        where mismatches.model = run ->> 'model' and mismatches.source = run ->> 'source';
        select row_count, in_the_way into removed, reason
        from raw.write_table(run, format('delete from only %s', target), caller_search_path);
        if reason = '' and (run ->> 'may_refuse_rows')::boolean and raw.has_rows(target) then
            reason := 'a rule, a trigger or a policy: rows that were to be deleted are still there';
        end if;
    elsif
        (run ->> 'rows')::bigint > 0 and run ->> 'previous' <> ''
        and (run ->> 'first_seq')::bigint < (run ->> 'last_seq')::bigint
    then
        select row_count, in_the_way into overtaken, reason from raw.remove_overtaken(run, caller_search_path);
    end if;
    if (run ->> 'may_refuse_rows')::boolean then
        -- An object of another role may fail where the ids are looked up.
        has_known_ids := true;
    elsif not is_rebuild and (run ->> 'rows')::bigint > 0 then
        has_known_ids := raw.has_known_ids(run);
    end if;
    -- The insert of a team's own SQL needs the key to leave out repeated ids.
    if (run ->> 'is_created')::boolean and (run ->> 'is_own_sql')::boolean then
        perform raw.add_key(target);
    end if;
    return jsonb_build_object(
        'removed', removed, 'overtaken', overtaken, 'has_known_ids', has_known_ids, 'in_the_way', reason
    );
end
$$;

comment on function raw.start_rows is 'Prepares a served table for the rows of a run; returns the rows removed, whether ids come again, and the obstacle.';


-- Ends the run of a table after its rows: makes the key of a new table, moves the cursor and reports.
--
-- Args:
--     run: The run as `raw.open_table` returns it.
--     inserted: The number of rows that the run inserted.
--     overtaken: The number of rows that `raw.start_rows` removed for a latecomer.
--
-- Returns:
--     `in_the_way` and `warning`. Where something is in the way, the caller takes the rows back and holds the table.
create function raw.close_table(run jsonb, inserted bigint, overtaken bigint, caller_search_path text) returns jsonb
language plpgsql
set search_path = pg_catalog
as $$
declare
    target text := raw.target_name(run);
    is_rebuild boolean := (run ->> 'is_rebuild')::boolean;
    is_own_sql boolean := (run ->> 'is_own_sql')::boolean;
    rows bigint := (run ->> 'rows')::bigint;
    added bigint := inserted - overtaken;
    events_read bigint;
    skipped bigint;
    warning text;
    reason text := '';
begin
    if (run ->> 'is_created')::boolean then
        if not is_own_sql then
            perform raw.add_key(target);
        end if;
        warning := nullif(array_to_string(raw.make_indexes(run), ' '), '');
        if rows > 0 then
            -- Autovacuum may take minutes to come, and readers come at once.
            execute format('analyze %s', target);
        end if;
    end if;
    if rows > 0 and is_own_sql then
        -- A team's own SQL need not make a row of every event.
        execute format(
            'delete from raw.mismatches
            where
                model = %L and source = %L and seen_at = now()
                and not exists (select from %s as served where served.id = event_id)',
            run ->> 'model', run ->> 'source', target
        );
    elsif rows > 0 and (run ->> 'may_refuse_rows')::boolean then
        skipped := raw.count_skipped(run);
        if skipped > 0 then
            warning := format(
                '%s.%s: a rule or a trigger on the table left out %s events.', run ->> 'source', run ->> 'model', skipped
            );
        end if;
    end if;
    if (run ->> 'may_refuse_rows')::boolean then
        -- Nothing could catch the error of a deferred constraint at the commit.
        select in_the_way into reason from raw.write_table(run, 'set constraints all immediate', caller_search_path);
        if reason <> '' then
            return jsonb_build_object('in_the_way', reason);
        end if;
    end if;
    if (run ->> 'has_pending')::boolean then
        -- Columns that are still missing after a rebuild lack all values.
        update raw.columns set fill_from = case when columns.is_missing then '1:1:'::pg_snapshot end
        where
            columns.model = run ->> 'model' and columns.source = run ->> 'source'
            and columns.fill_from is not null and (is_rebuild or not columns.is_missing);
    end if;

    if not (rows > 0 or is_rebuild or run -> 'new_columns' <> '[]' or (run ->> 'is_refilled')::boolean) then
        perform raw.pass_by(run);
        return jsonb_build_object('in_the_way', '');
    end if;
    -- A table without a snapshot that is not rebuilt has read all events again. It counts only those that were new to it.
    events_read := case when is_rebuild or run ->> 'previous' <> '' then rows else added end;
    update raw.cursors
    set
        snapshot = (run ->> 'snapshot')::pg_snapshot,
        read_rows = case when is_rebuild then 0 else cursors.read_rows end + events_read,
        table_rows = case when is_rebuild then 0 else cursors.table_rows end + added,
        last_seq = case
            when is_rebuild then (run ->> 'last_seq_read')::bigint
            else greatest(cursors.last_seq, (run ->> 'last_seq_read')::bigint)
        end,
        rebuild_ordered = cursors.rebuild_ordered and not is_rebuild,
        updated_at = clock_timestamp()
    where cursors.model = run ->> 'model' and cursors.source = run ->> 'source';
    insert into raw.syncs (
        transform_id, model, source, full_refresh, read_rows, table_rows, last_seq, new_columns, refilled,
        previous_snapshot, snapshot, started_at, duration, note
    )
    select
        run ->> 'transform', run ->> 'model', run ->> 'source', is_rebuild, events_read, added, cursors.last_seq,
        array(select jsonb_array_elements_text(run -> 'new_columns')),
        (run ->> 'is_refilled')::boolean or (run ->> 'has_pending')::boolean,
        case when not is_rebuild then nullif(run ->> 'previous', '')::pg_snapshot end,
        cursors.snapshot, (run ->> 'started_at')::timestamptz, clock_timestamp() - now(),
        nullif(concat_ws(' ', run ->> 'note', warning), '')
    from raw.cursors
    where cursors.model = run ->> 'model' and cursors.source = run ->> 'source'
    on conflict (transform_id, model, source) do update set
        read_rows = syncs.read_rows + excluded.read_rows,
        table_rows = syncs.table_rows + excluded.table_rows,
        refilled = syncs.refilled or excluded.refilled;
    if is_rebuild then
        perform raw.release_table(run ->> 'model', run ->> 'source', 'rebuild');
    end if;
    return jsonb_build_object('in_the_way', '', 'warning', warning);
end
$$;

comment on function raw.close_table is 'Ends the run of a table: makes its key, moves its cursor and writes the report.';


-- A rule or a trigger of another role may leave rows out without an error.
create function raw.count_skipped(run jsonb) returns bigint
language plpgsql stable
set search_path = pg_catalog
as $$
declare
    skipped bigint;
begin
    execute format(
        'select count(distinct message_id) from raw.events
        where %s and not exists (select from %s as served where served.id = message_id)',
        raw.filter_new_events(
            run ->> 'model',
            run ->> 'source',
            case when not (run ->> 'is_rebuild')::boolean then run ->> 'previous' end,
            run ->> 'snapshot'
        ),
        raw.target_name(run)
    )
    into skipped;
    return skipped;
end
$$;

comment on function raw.count_skipped is 'Counts the new events of a table without a row in the table.';
