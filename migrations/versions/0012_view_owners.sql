-- No code of another role runs with the rights of the loader's role. Three ways led there: a materialized view filled
-- before its owner was set, a literal of a user's type read while a view was created, and a function found in `public`
-- instead of in pg_catalog.


-- Reading a literal of a domain, composite or range type runs functions of the type's owner, as the role that creates the
-- view. Types of extensions are code of a superuser.
create function raw.why_not_recreated(view_oid oid)
returns text
language sql stable
set search_path = pg_catalog
as $$
    select
        case
            when
                pg_class.relkind not in ('v', 'm')
                or exists (select from pg_rewrite where ev_class = view_oid and rulename <> '_RETURN')
                or exists (select from pg_trigger where tgrelid = view_oid)
                then 'has rules or triggers'
            when not pg_has_role(pg_class.relowner, 'usage') or not pg_has_role(pg_class.relowner, 'set')
                then 'belongs to ' || quote_ident(pg_get_userbyid(pg_class.relowner))
            when exists (
                select
                from pg_depend as used
                inner join pg_type on pg_type.oid = used.refobjid
                where
                    used.refclassid = 'pg_type'::regclass
                    and (
                        (
                            used.classid = 'pg_rewrite'::regclass
                            and used.objid in (select pg_rewrite.oid from pg_rewrite where ev_class = view_oid)
                        )
                        or (
                            used.classid = 'pg_class'::regclass
                            and used.objid in (select indexrelid from pg_index where indrelid = view_oid)
                        )
                    )
                    and not exists (
                        select from pg_depend as extension
                        where
                            extension.classid = 'pg_type'::regclass
                            and extension.objid in (pg_type.oid, pg_type.typelem)
                            and extension.deptype = 'e'
                    )
            ) then 'uses a type of its own'
        end
    from pg_class
    where pg_class.oid = view_oid
$$;

comment on function raw.why_not_recreated is 'Why `loader widen` leaves a view as it is: its owner has to drop it. Null when the view can be created again.';


-- Gives a column a wider type, its values cast. A view on the column forbids that: then nothing is done, and the function
-- returns the obstacles. If asked for, it creates the views again with their owners, grants and comments. A materialized
-- view is filled last, because PostgreSQL runs a refresh with the rights of the view's owner.
create or replace function raw.widen_column(target regclass, target_column text, data_type text, with_views boolean)
returns text
language plpgsql
set search_path = pg_catalog
as $$
declare
    dependents oid[];
    obstacles text;
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

    select string_agg(view_oid::regclass::text || ' ' || reason, ', ' order by position) into obstacles
    from unnest(dependents) with ordinality as listed (view_oid, position)
    cross join lateral raw.why_not_recreated(view_oid) as reason
    where reason is not null;
    if obstacles is not null then
        return obstacles;
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
        script := script || format(
            'create %s %s%s as %s%s', dependent.kind, dependent.name, dependent.options, dependent.definition,
            case when dependent.relkind = 'm' then ' with no data' else '' end
        );
        script := script || format('alter %s %s owner to %I', dependent.kind, dependent.name, dependent.owner);
        for item in select pg_get_indexdef(indexrelid) as statement from pg_index where indrelid = dependent.oid loop
            script := script || item.statement;
        end loop;
        if dependent.relispopulated and dependent.relkind = 'm' then
            script := script || format('refresh materialized view %s', dependent.name);
        end if;
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


alter function raw.revoke_all set search_path = pg_catalog;
alter function raw.adopt_cluster set search_path = pg_catalog;
alter function raw.count_rows set search_path = pg_catalog;
alter function raw.count_tracks_only set search_path = pg_catalog;

comment on column raw.columns.in_the_way is 'What keeps it: the views that depend on the column. `loader widen` creates them again with the new type where it may.';
