-- A run reads its new events in one statement. Before, each part of 200,000 events was a statement that read all new events
-- again.


create function raw.is_long_user_id(user_id text) returns boolean
language sql immutable
return octet_length(user_id) > 2600;

comment on function raw.is_long_user_id is 'Whether a btree may have no room for a user id.';


-- Counts the new events of a table, and returns the part of the landing order that they span, whether any two have one id,
-- and whether any has a user id for which a btree has no room. A payload that is neither long nor compressed has no such user
-- id, and is not unpacked.
drop function raw.count_new_events;

create function raw.count_new_events(
    run_model text, run_source text, previous text, latest text,
    out rows bigint, out first_seq bigint, out last_seq bigint, out repeated boolean, out has_long_user_ids boolean
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
                coalesce(bool_or(ids.events > 1), false),
                coalesce(bool_or(ids.is_long), false)
            from (
                select
                    count(*) as events,
                    min(seq) as first_seq,
                    max(seq) as last_seq,
                    bool_or(
                        (pg_column_compression(payload) is not null or pg_column_size(payload) > 2600)
                        and raw.is_long_user_id(payload ->> 'userId')
                    ) as is_long
                from raw.events
                where %s
                group by message_id
            ) as ids
        $count$,
        raw.filter_new_events(run_model, run_source, previous, latest)
    )
    into rows, first_seq, last_seq, repeated, has_long_user_ids;
end
$$;

comment on function raw.count_new_events is 'Counts the events of a table that one snapshot shows and an earlier one does not.';


drop function raw.slice_events;

-- Returns the order in which a run inserts its rows, as an SQL text for `order by`; null where the order does not matter. Random
-- ids would walk the whole key for each row, so rows come in the order of their ids. A large increment is cut into parts of
-- the landing order, each in the order of its ids, so that the rows of a day stay on few pages. A first fill has no key yet.
create function raw.insertion_order(run jsonb) returns text
language sql immutable
set search_path = pg_catalog
as $$
    select case
        when (run ->> 'is_created')::boolean or (run ->> 'is_own_sql')::boolean then null
        when parts.count = 1 then '"id"'
        else format('(events.seq - %s) / %s, "id"', parts.first_seq, (parts.last_seq - parts.first_seq) / parts.count + 1)
    end
    from (
        select
            (run ->> 'first_seq')::bigint as first_seq,
            (run ->> 'last_seq_read')::bigint as last_seq,
            1 + ((run ->> 'rows')::bigint - 1) / 200000 as count
    ) as parts
$$;

comment on function raw.insertion_order is 'Returns the order in which a run inserts its rows, as an SQL text for `order by`.';


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
create or replace function raw.open_table(
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
        'rows', events.rows, 'first_seq', events.first_seq, 'last_seq_read', events.last_seq,
        'has_long_user_ids', events.has_long_user_ids
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
        'order', raw.insertion_order(run),
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
