-- What the tables are made of, as the runs made them, and how a column's type is changed.

create table raw.columns (
    model text not null,
    source text not null,
    column_name text not null,
    data_type text not null,
    declared boolean not null,
    paths jsonb not null default '[]',
    first_event_id text,
    added_at timestamptz not null default clock_timestamp(),
    wanted_type text,
    in_the_way text,
    primary key (model, source, column_name)
);

comment on table raw.columns is 'One row per column of a served table: since when it is there, and for which event.';
comment on column raw.columns.declared is 'The model''s yml lists it; otherwise a run has found it in the events.';
comment on column raw.columns.paths is 'Where a found column''s values are in the event; of several, the first that is not null counts.';
comment on column raw.columns.wanted_type is 'The type that would hold every value seen, while something keeps the column from getting it.';
comment on column raw.columns.in_the_way is 'What keeps it: the views that depend on the column. `loader widen` makes them again with the new type.';

create table raw.collisions (
    model text not null,
    source text not null,
    digest bytea not null,
    path text[] not null,
    column_name text not null,
    reason text not null check (reason in ('shared', 'layout', 'nameless', 'full')),
    seen_at timestamptz not null default clock_timestamp(),
    primary key (model, source, digest)
);

comment on table raw.collisions is 'One row per property without a column of its own: its values are whole in raw.events.';
comment on column raw.collisions.reason is 'shared: another property has the column, and this one fills it where that one is null. layout: the column is one of the layout''s own. nameless: its name has no ASCII letter or digit. full: the table has as many columns as PostgreSQL allows.';


-- Gives a column a wider type, its values cast. A view on the column forbids that: then nothing is done, and what is in
-- the way is returned; or, if asked for, the views are made again as they were, with their owners, grants and comments.
create function raw.widen_column(target regclass, target_column text, data_type text, with_views boolean)
returns text
language plpgsql
as $$
declare
    dependents oid[];
    script text[] := '{}';
    dependent record;
    item record;
    statement text;
begin
    with recursive found as (
        select pg_rewrite.ev_class as oid, 1 as depth
        from pg_depend
        inner join pg_rewrite on pg_rewrite.oid = pg_depend.objid
        inner join pg_attribute
            on pg_attribute.attrelid = pg_depend.refobjid and pg_attribute.attnum = pg_depend.refobjsubid
        where
            pg_depend.classid = 'pg_rewrite'::regclass
            and pg_depend.refclassid = 'pg_class'::regclass
            and pg_depend.refobjid = target
            and pg_attribute.attname = target_column
            and pg_rewrite.ev_class <> target
        union
        select pg_rewrite.ev_class, found.depth + 1
        from found
        inner join pg_depend on pg_depend.refclassid = 'pg_class'::regclass and pg_depend.refobjid = found.oid
        inner join pg_rewrite on pg_rewrite.oid = pg_depend.objid
        where pg_depend.classid = 'pg_rewrite'::regclass and pg_rewrite.ev_class <> found.oid
    )

    select array_agg(deepest.oid order by deepest.depth, deepest.oid) into dependents
    from (select found.oid, max(found.depth) as depth from found group by found.oid) as deepest;

    if dependents is not null and not with_views then
        return (select string_agg(view_oid::regclass::text, ', ' order by view_oid::regclass::text) from unnest(dependents) as view_oid);
    end if;

    for dependent in
        select
            pg_class.oid,
            pg_class.oid::regclass::text as name,
            pg_class.relkind,
            pg_class.relispopulated,
            pg_class.relacl,
            pg_get_userbyid(pg_class.relowner) as owner,
            coalesce(' with (' || array_to_string(pg_class.reloptions, ', ') || ')', '') as options,
            rtrim(pg_get_viewdef(pg_class.oid), ';') as definition,
            case pg_class.relkind when 'm' then 'materialized view' else 'view' end as kind
        from unnest(dependents) with ordinality as listed (oid, position)
        inner join pg_class on pg_class.oid = listed.oid
        order by listed.position
    loop
        if dependent.relkind not in ('v', 'm') or exists (
            select from pg_rewrite where ev_class = dependent.oid and rulename <> '_RETURN'
        ) or exists (select from pg_trigger where tgrelid = dependent.oid) then
            raise exception '% has rules or triggers of its own', dependent.name
            using hint = 'Drop it, run `loader widen` again, and create it anew.', errcode = 'feature_not_supported';
        end if;
        script := script || format(
            'create %s %s%s as %s%s', dependent.kind, dependent.name, dependent.options, dependent.definition,
            case when dependent.relkind = 'm' and not dependent.relispopulated then ' with no data' else '' end
        );
        script := script || format('alter %s %s owner to %I', dependent.kind, dependent.name, dependent.owner);
        for item in select pg_get_indexdef(indexrelid) as statement from pg_index where indrelid = dependent.oid loop
            script := script || item.statement;
        end loop;
        if dependent.relacl is not null then
            script := script || format('select raw.revoke_all(%L)', dependent.name);
        end if;
        for item in
            select
                privilege_type as privilege,
                case when grantee = 0 then 'public' else quote_ident(pg_get_userbyid(grantee)) end as grantee,
                case when is_grantable then ' with grant option' else '' end as option,
                column_list
            from (
                select entry.*, '' as column_list from aclexplode(dependent.relacl) as entry
                union all
                select entry.*, format(' (%I)', pg_attribute.attname)
                from pg_attribute
                cross join aclexplode(pg_attribute.attacl) as entry
                where pg_attribute.attrelid = dependent.oid
            ) as grants
        loop
            script := script || format(
                'grant %s%s on %s to %s%s', item.privilege, item.column_list, dependent.name, item.grantee, item.option
            );
        end loop;
        for item in
            select
                pg_description.description,
                case
                    when pg_description.objsubid = 0 then format('%s %s', dependent.kind, dependent.name)
                    else format('column %s.%I', dependent.name, pg_attribute.attname)
                end as object
            from pg_description
            left join pg_attribute
                on pg_attribute.attrelid = pg_description.objoid and pg_attribute.attnum = pg_description.objsubid
            where pg_description.objoid = dependent.oid and pg_description.classoid = 'pg_class'::regclass
        loop
            script := script || format('comment on %s is %L', item.object, item.description);
        end loop;
    end loop;

    for dependent in
        select
            pg_class.oid::regclass::text as name,
            case pg_class.relkind when 'm' then 'materialized view' else 'view' end as kind
        from unnest(dependents) with ordinality as listed (oid, position)
        inner join pg_class on pg_class.oid = listed.oid
        order by listed.position desc
    loop
        execute format('drop %s %s', dependent.kind, dependent.name);
    end loop;

    execute format(
        'alter table %s alter column %I type %s using %I::%s', target, target_column, data_type, target_column, data_type
    );

    foreach statement in array script loop
        execute statement;
    end loop;
    return '';
end
$$;

comment on function raw.widen_column is 'Changes a column''s type; returns what is in the way, or the empty string when it is done.';


create function raw.revoke_all(target text) returns void
language plpgsql
as $$
declare
    grantee_name text;
begin
    for grantee_name in
        select distinct case when entry.grantee = 0 then 'public' else quote_ident(pg_get_userbyid(entry.grantee)) end
        from pg_class
        cross join aclexplode(coalesce(pg_class.relacl, acldefault('r', pg_class.relowner))) as entry
        where pg_class.oid = target::regclass
    loop
        execute format('revoke all on %s from %s', target, grantee_name);
    end loop;
end
$$;

comment on function raw.revoke_all is 'Takes back every privilege on a relation, default privileges included.';
