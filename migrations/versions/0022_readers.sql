-- Roles that read the tables of sources and nothing else, and their rights on the schema of a source.

create table raw.readers (
    name text not null,
    source text not null default '',
    created_at timestamptz not null default clock_timestamp(),
    primary key (name, source)
);

comment on table raw.readers is 'One row per reader and source: a role that `loader reader add` made, which may select from the tables.';
comment on column raw.readers.source is 'The schema of the source; empty for every source, later ones too.';


-- Rights are given by the owner of the schema raw, who makes the tables, and by the role of the session, if another role
-- runs dbt. It changes only what is missing, so that runs may call it often. A role that may not change a reader goes on.
create function raw.admit_readers(schema_name text) returns void
language plpgsql
set search_path = pg_catalog
as $$
declare
    reader record;
    maker text;
    relation regclass;
    path text;
begin
    for reader in
        select distinct pg_roles.oid, pg_roles.rolname as name
        from raw.sources
        inner join raw.readers on readers.source in ('', sources.schema_name)
        inner join pg_roles on pg_roles.rolname = readers.name
        where
            sources.schema_name = admit_readers.schema_name
            and to_regnamespace(quote_ident(sources.schema_name)) is not null
    loop
        if not exists (
            select from pg_namespace
            cross join aclexplode(pg_namespace.nspacl) as entry
            where
                pg_namespace.oid = to_regnamespace(quote_ident(schema_name))
                and entry.grantee = reader.oid
                and entry.privilege_type = 'USAGE'
        ) then
            -- The lock of whoever creates a schema: two sessions that grant on one schema at once would fail.
            perform pg_advisory_xact_lock(hashtext('create schema'));
            execute format('grant usage on schema %I to %I', schema_name, reader.name);
            for maker in
                select pg_roles.rolname
                from pg_roles
                where
                    pg_has_role(pg_roles.oid, 'usage')
                    and (
                        pg_roles.oid = (select nspowner from pg_namespace where nspname = 'raw')
                        or (pg_roles.rolname = current_user and not pg_roles.rolsuper)
                    )
            loop
                execute format(
                    'alter default privileges for role %I in schema %I grant select on tables to %I',
                    maker, schema_name, reader.name
                );
            end loop;
            select string_agg(quote_ident(sources.schema_name), ', ' order by sources.id) into path
            from raw.sources
            where exists (
                select from raw.readers
                where readers.name = reader.name and readers.source in ('', sources.schema_name)
            );
            begin
                execute format(
                    'alter role %I in database %I set search_path = %s', reader.name, current_database(), path
                );
            exception when insufficient_privilege then
                raise notice 'The search path of % stays as it is.', reader.name;
            end;
        end if;

        for relation in
            select pg_class.oid
            from pg_class
            where
                pg_class.relnamespace = to_regnamespace(quote_ident(schema_name))
                and pg_class.relkind in ('r', 'p', 'v', 'm')
                and pg_has_role(pg_class.relowner, 'usage')
                and not has_table_privilege(reader.oid, pg_class.oid, 'select')
        loop
            execute format('grant select on %s to %I', relation, reader.name);
        end loop;
    end loop;
end
$$;

comment on function raw.admit_readers is 'Lets the readers of a source select from its tables, present and later ones.';
