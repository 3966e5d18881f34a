-- Functions that run statements look names up in pg_catalog alone: whoever may create objects in another schema of the
-- caller's search_path must not get them used in place of PostgreSQL's own.

do $$
declare
    signature regprocedure;
begin
    for signature in
        select pg_proc.oid
        from pg_proc
        inner join pg_language on pg_language.oid = pg_proc.prolang
        where
            pg_proc.pronamespace = 'raw'::regnamespace
            and pg_language.lanname = 'plpgsql'
            and not coalesce(pg_proc.proconfig, '{}') && array['search_path=pg_catalog']
    loop
        execute format('alter function %s set search_path = pg_catalog', signature);
    end loop;
end
$$;
