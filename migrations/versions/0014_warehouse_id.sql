-- A collector's spool and its copy of the write keys lie outside the database. Each of them says by this id which
-- warehouse it belongs to, so that acknowledged events never land in another one by mistake.

alter table raw.cluster add column warehouse_id uuid not null default gen_random_uuid();

comment on column raw.cluster.warehouse_id is 'The id of this warehouse. A dump keeps the id. A physical copy that goes on as another warehouse needs a new one: loader warehouse-id --renew.';
