-- Makes the indexes on `user_id` btrees. A btree is built ten times as fast as a tree of prefixes (spgist), and takes new rows
-- twice as fast. A btree has no room for a text of more than 2,700 bytes. Before a run writes such a user id, the run replaces
-- the btree by a tree of prefixes.


-- Drops the trees of prefixes that earlier versions built. The next run builds btrees, or lists them in raw.waiting_indexes for
-- `loader index`.
do $$
declare
    obsolete regclass;
begin
    for obsolete in
        select pg_class.oid
        from raw.cursors
        inner join pg_index on indrelid = to_regclass(format('%I.%I', cursors.source, cursors.model))
        inner join pg_class on pg_class.oid = indexrelid
        inner join pg_am on pg_am.oid = relam
        where
            amname = 'spgist'
            and relname = md5(concat_ws(' ', cursors.model, 'spgist', '["user_id"]', false))
    loop
        execute format('drop index %s', obsolete);
    end loop;
end
$$;


create function raw.find_user_index(target regclass) returns regclass
language sql stable
set search_path = pg_catalog
as $$
    select indexrelid::regclass
    from pg_index
    inner join pg_class as indexed on indexed.oid = indrelid
    inner join pg_class as built on built.oid = indexrelid
    inner join pg_am on pg_am.oid = built.relam
    inner join pg_attribute on attrelid = indrelid and attname = 'user_id'
    where
        indrelid = target
        and amname = 'btree'
        and atttypid in ('text'::regtype, 'varchar'::regtype)
        and built.relname = md5(concat_ws(' ', indexed.relname, 'btree', '["user_id"]', false))
$$;

comment on function raw.find_user_index is 'Returns the btree on `user_id` of a served table that a run or `loader index` has built; null if there is none.';


-- Tells whether an index can refuse no row: it is not unique, calls no function of a person, and has room for any value. A
-- btree has no room for a text of 2,700 bytes, while a hash and a tree of prefixes have. A run replaces its own btree on
-- `user_id` before such a text comes.
create or replace function raw.takes_every_row(index oid) returns boolean
language sql stable
set search_path = pg_catalog
as $$
    select exists (
        select
        from pg_index
        inner join pg_class on pg_class.oid = indexrelid
        inner join pg_am on pg_am.oid = relam
        inner join pg_opclass on pg_opclass.oid = any(indclass::oid[])
        inner join pg_attribute on attrelid = indrelid and attnum = any(indkey::smallint[])
        where
            indexrelid = index
            and not indisunique and not indisexclusion and indpred is null and indexprs is null
        group by indexrelid, indrelid, amname
        having
            bool_and(opcnamespace = 'pg_catalog'::regnamespace)
            and (
                amname = 'hash'
                or (amname = 'spgist' and bool_and(opcname = 'text_ops'))
                or (amname in ('brin', 'btree') and bool_and(attlen > 0))
                or indexrelid = raw.find_user_index(indrelid)
            )
    )
$$;


create function raw.has_long_user_id(target regclass) returns boolean
language plpgsql stable
set search_path = pg_catalog
as $$
declare
    is_found boolean;
begin
    execute format('select exists (select from only %s where raw.is_long_user_id(user_id::text))', target) into is_found;
    return is_found;
end
$$;

comment on function raw.has_long_user_id is 'Whether a served table has a user id for which a btree has no room.';


-- Returns the indexes of a table that its model lists and the table lacks. An index of the same columns, type and
-- uniqueness counts, whoever made it. An index of a column that the table lacks is left out until the column is there.
-- With `has_long_user_ids` in the run, a tree of prefixes takes the place of a btree on `user_id`. A tree of prefixes counts as
-- that btree.
create or replace function raw.plan_indexes(run jsonb) returns table (
    name text, uniqueness text, columns text, definition text
)
language sql stable
set search_path = pg_catalog
as $$
    select
        md5(concat_ws(' ', run ->> 'model', chosen.type, wanted.columns, wanted.is_unique)),
        case when wanted.is_unique then 'unique' else '' end,
        listed.columns,
        format(
            'using %I (%s)%s',
            chosen.type,
            listed.quoted,
            -- Without it, new pages are read by every filter until the next vacuum.
            case chosen.type when 'brin' then ' with (autosummarize = on)' else '' end
        )
    from jsonb_to_recordset(run -> 'indexes') as wanted (columns jsonb, type text, is_unique boolean)
    cross join lateral (
        select
            array_agg(attname::text order by entry.number) as names,
            string_agg(attname, ', ' order by entry.number) as columns,
            string_agg(quote_ident(attname), ', ' order by entry.number) as quoted,
            wanted.type = 'btree' and not wanted.is_unique
            and array_agg(attname::text) = '{user_id}'
            and bool_and(atttypid in ('text'::regtype, 'varchar'::regtype)) as is_of_users
        from jsonb_array_elements_text(wanted.columns) with ordinality as entry (name, number)
        inner join pg_attribute
            on attrelid = to_regclass(raw.target_name(run)) and attname = entry.name and not attisdropped
    ) as listed
    cross join lateral (
        select
            case
                when listed.is_of_users and (run ->> 'has_long_user_ids')::boolean then 'spgist' else wanted.type
            end as type
    ) as chosen
    where
        cardinality(listed.names) = jsonb_array_length(wanted.columns)
        and not exists (
            select from pg_index
            inner join pg_class on pg_class.oid = indexrelid
            inner join pg_am on pg_am.oid = relam
            where
                indrelid = to_regclass(raw.target_name(run))
                and indisvalid and indpred is null and indexprs is null
                and (amname = wanted.type or (listed.is_of_users and amname = 'spgist'))
                and indisunique = wanted.is_unique
                and listed.names = (
                    select array_agg(attname::text order by entry.number)
                    from unnest(indkey::smallint[]) with ordinality as entry (attnum, number)
                    inner join pg_attribute on attrelid = indrelid and pg_attribute.attnum = entry.attnum
                    where entry.number <= indnkeyatts
                )
        )
$$;


-- Builds the indexes that a table lacks, and returns the obstacles that are new. Building the index of a large table takes
-- long, and sessions that write wait meanwhile, so `loader index` builds it beside them.
--
-- Raises an error where a long user id is to be written, and another session prevents that the btree is dropped.
create or replace function raw.make_indexes(run jsonb) returns text[]
language plpgsql
set search_path = pg_catalog
as $$
declare
    target regclass := raw.target_name(run)::regclass;
    is_created boolean := (run ->> 'is_created')::boolean;
    is_small boolean;
    user_index regclass := raw.find_user_index(target);
    missing text[] := '{}';
    planned record;
    reason text;
    obstacles text[] := '{}';
begin
    -- A team's own SQL may make any user id.
    run := run || jsonb_build_object(
        'has_long_user_ids', coalesce((run ->> 'has_long_user_ids')::boolean, false) or (run ->> 'is_own_sql')::boolean
    );
    if user_index is not null and (run ->> 'has_long_user_ids')::boolean then
        reason := raw.change_table(run ->> 'model', run ->> 'source', target, format('drop index %s', user_index), true);
        if reason <> '' then
            raise exception using
                errcode = 'lock_not_available',
                message = format(
                    'the index on user_id of %s has no room for a user id of this run, and could not be dropped. '
                    'In the way: %s. The next run tries again.',
                    target,
                    reason
                );
        end if;
    end if;
    for planned in select * from raw.plan_indexes(run) loop
        -- The size takes a lock, for which a run with all indexes need not wait.
        is_small := coalesce(is_small, is_created or pg_table_size(target) <= (run ->> 'most_bytes')::bigint);
        if is_small and planned.definition = 'using btree (user_id)' and raw.has_long_user_id(target) then
            select * into strict planned
            from raw.plan_indexes(run || '{"has_long_user_ids": true}') as replaced
            where replaced.definition = 'using spgist (user_id)';
        end if;
        if not is_small then
            reason := 'the table''s size';
        else
            reason := raw.change_table(
                run ->> 'model',
                run ->> 'source',
                target,
                format('create %s index %I on %s %s', planned.uniqueness, planned.name, target, planned.definition),
                is_created
            );
            continue when reason = '';
        end if;
        missing := missing || planned.name;
        insert into raw.waiting_indexes (model, source, name, uniqueness, columns, definition, reason)
        values (
            run ->> 'model', run ->> 'source', planned.name, planned.uniqueness, planned.columns, planned.definition, reason
        )
        on conflict on constraint waiting_indexes_pkey do update set reason = excluded.reason
        where waiting_indexes.reason <> excluded.reason;
        if found then
            obstacles := obstacles
                || format('the index on %s is not built. In the way: %s. `loader index` builds it.', planned.columns, reason);
        end if;
    end loop;
    delete from raw.waiting_indexes as built
    where built.model = run ->> 'model' and built.source = run ->> 'source' and built.name <> all(missing);
    return obstacles;
end
$$;
