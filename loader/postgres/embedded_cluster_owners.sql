-- Gives the objects of the bootstrap role in a database, and its default privileges, to the role `loader`. Some objects
-- stay, because only a superuser may own them: extensions and their parts, event triggers, publications, foreign-data
-- wrappers.
do $$
declare
    item record;
    target text;
begin
    for item in
        select owned.classid, owned.objid
        from (
            select 'pg_namespace'::regclass as classid, oid as objid, nspowner as owner from pg_namespace
            union all
            select 'pg_class'::regclass, oid, relowner
            from pg_class
            where
                relkind in ('r', 'p', 'v', 'm', 'f', 'S')
                and relpersistence <> 't'
                and not exists (
                    select from pg_depend
                    where
                        pg_class.relkind = 'S'
                        and classid = 'pg_class'::regclass
                        and objid = pg_class.oid
                        and refclassid = 'pg_class'::regclass
                        and deptype in ('a', 'i')
                )
            union all
            select 'pg_type'::regclass, oid, typowner
            from pg_type
            where
                typtype in ('b', 'd', 'e', 'r', 'c')
                and not exists (select from pg_type as element where element.typarray = pg_type.oid)
                and (typrelid = 0 or exists (select from pg_class where pg_class.oid = typrelid and relkind = 'c'))
            union all
            select 'pg_proc'::regclass, oid, proowner from pg_proc
            union all
            select 'pg_operator'::regclass, oid, oprowner from pg_operator
            union all
            select 'pg_opfamily'::regclass, oid, opfowner from pg_opfamily
            union all
            select 'pg_opclass'::regclass, oid, opcowner from pg_opclass
            union all
            select 'pg_collation'::regclass, oid, collowner from pg_collation
            union all
            select 'pg_conversion'::regclass, oid, conowner from pg_conversion
            union all
            select 'pg_statistic_ext'::regclass, oid, stxowner from pg_statistic_ext
            union all
            select 'pg_ts_dict'::regclass, oid, dictowner from pg_ts_dict
            union all
            select 'pg_ts_config'::regclass, oid, cfgowner from pg_ts_config
            union all
            select 'pg_foreign_server'::regclass, oid, srvowner from pg_foreign_server
            union all
            select 'pg_largeobject'::regclass, oid, lomowner from pg_largeobject_metadata
        ) as owned
        where
            owned.owner = 10
            and (owned.objid >= 16384 or owned.classid = 'pg_largeobject'::regclass)
            and not exists (
                select from pg_depend
                where pg_depend.classid = owned.classid and pg_depend.objid = owned.objid and pg_depend.deptype = 'e'
            )
    loop
        select format('%s %s', replace(type, 'statistics object', 'statistics'), identity) into target
        from pg_identify_object(item.classid, item.objid, 0);
        execute format('alter %s owner to loader', target);
    end loop;

    for item in
        select
            case defaclobjtype
                when 'r' then 'tables' when 'S' then 'sequences' when 'f' then 'functions'
                when 'T' then 'types' when 'n' then 'schemas' else 'large objects'
            end as objects,
            case when defaclnamespace = 0 then '' else format(' in schema %I', nspname) end as place,
            privilege_type,
            case when grantee = 0 then 'public' else quote_ident(pg_get_userbyid(grantee)) end as grantee,
            case when is_grantable then ' with grant option' else '' end as option
        from pg_default_acl
        left join pg_namespace on pg_namespace.oid = defaclnamespace
        cross join aclexplode(defaclacl)
        where defaclrole = 10 and grantee <> 10
    loop
        execute format(
            'alter default privileges for role loader%s grant %s on %s to %s%s',
            item.place, item.privilege_type, item.objects, item.grantee, item.option
        );
    end loop;
    for item in
        select case defaclobjtype when 'f' then 'functions' else 'types' end as objects
        from pg_default_acl
        where
            defaclrole = 10
            and defaclnamespace = 0
            and defaclobjtype in ('f', 'T')
            and not exists (select from aclexplode(defaclacl) where grantee = 0)
    loop
        execute format('alter default privileges for role loader revoke all on %s from public', item.objects);
    end loop;

    if (
        select datdba = 10 and datname not in ('postgres', 'template0', 'template1')
        from pg_database
        where datname = current_database()
    ) then
        execute format('alter database %I owner to loader', current_database());
    end if;
end
$$
