select pg_describe_object(pg_shdepend.classid, pg_shdepend.objid, pg_shdepend.objsubid)
from pg_shdepend
inner join pg_database on pg_database.oid = pg_shdepend.dbid
where
    pg_shdepend.refclassid = 'pg_authid'::regclass
    and pg_shdepend.refobjid = %(role)s::regrole
    and pg_shdepend.deptype = 'o'
    and pg_database.datname = current_database()
limit 5
