-- Drops the hash indexes on `user_id` that earlier versions built. An insert into such an index reads all entries of the user,
-- so many events of one user made runs slow. The next run builds indexes of another type, or lists them in
-- raw.waiting_indexes for `loader index`.
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
            amname = 'hash'
            and relname = md5(concat_ws(' ', cursors.model, 'hash', '["user_id"]', false))
    loop
        execute format('drop index %s', obsolete);
    end loop;
end
$$;


-- Tells whether an index can refuse no row: it is not unique, calls no function of a person, and has room for any value. A
-- btree has no room for a text of 2,700 bytes, while a hash and a tree of prefixes have.
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
        group by indexrelid, amname
        having
            bool_and(opcnamespace = 'pg_catalog'::regnamespace)
            and (
                amname = 'hash'
                or (amname = 'spgist' and bool_and(opcname = 'text_ops'))
                or (amname in ('brin', 'btree') and bool_and(attlen > 0))
            )
    )
$$;
