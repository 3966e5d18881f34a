-- What processes that stay must know of one another: how far a spool has been drained, whether the record of the events
-- has been made again since they read it, and which table a run could not fill.
--
-- Databases that were set up while this was being written may have some of it.

create table if not exists raw.spools (
    segment text primary key,
    byte_offset bigint not null,
    updated_at timestamptz not null default now()
);

comment on table raw.spools is 'One row per file of a collector''s spool that is being drained. Its messages waited on a disk while the database was away.';
comment on column raw.spools.byte_offset is 'Everything before it has landed or is in quarantine; moves in the transaction of the rows.';

create table if not exists raw.generation (number bigint not null);

insert into raw.generation
select 1
where not exists (select from raw.generation);

comment on table raw.generation is 'How often what is recorded of the events has been made again: what a process remembers of it holds for one generation.';

alter table raw.collections add column if not exists tried_at timestamptz;

comment on column raw.collections.tried_at is 'When a run began to fill the table of a collection without a model, until it has: such a table comes last in the next run.';

comment on column raw.quarantine.entrance is 'Where it came in: a file, or which of the collector''s routes.';
