-- What dbt has done: which transactions each model has seen, and what each run added.

create table raw.transforms (
    id text primary key,
    snapshot pg_snapshot not null,
    started_at timestamptz not null default clock_timestamp(),
    finished_at timestamptz,
    status text not null default 'running' check (status in ('running', 'success', 'error', 'interrupted')),
    error text
);

create index transforms_started_at on raw.transforms (started_at);

comment on table raw.transforms is 'One row per dbt invocation, by its invocation id.';
comment on column raw.transforms.snapshot is 'Every model of the invocation reads exactly the events of transactions finished in this snapshot.';
comment on column raw.transforms.started_at is 'Also the uuid_ts of every row the invocation adds.';

create table raw.cursors (
    model text not null,
    source text not null,
    snapshot pg_snapshot,
    read_rows bigint not null default 0,
    table_rows bigint not null default 0,
    last_seq bigint not null default 0,
    updated_at timestamptz not null default clock_timestamp(),
    primary key (model, source)
);

comment on table raw.cursors is 'One row per model and source: what it has seen. Moves in the transaction of the rows.';
comment on column raw.cursors.snapshot is 'The snapshot it has finished with; null before its first run.';
comment on column raw.cursors.read_rows is 'Events read since the last full refresh.';
comment on column raw.cursors.table_rows is 'Rows they became; the difference are events whose id was there already.';
comment on column raw.cursors.last_seq is 'The highest seq among them: a new event below it may have overtaken one of them.';

create table raw.syncs (
    transform_id text not null,
    model text not null,
    source text not null,
    full_refresh boolean not null,
    read_rows bigint not null,
    table_rows bigint not null,
    last_seq bigint not null,
    new_columns text[] not null default '{}',
    previous_snapshot pg_snapshot,
    snapshot pg_snapshot,
    started_at timestamptz not null,
    duration interval not null,
    primary key (transform_id, model, source)
);

create index syncs_started_at on raw.syncs (model, source, started_at);

comment on table raw.syncs is 'One row per model, source and invocation that changed something: the sync report.';
comment on column raw.syncs.table_rows is 'By how many rows the table grew.';
comment on column raw.syncs.last_seq is 'The cursor''s, as the invocation left it.';
comment on column raw.syncs.started_at is 'The invocation''s, and the uuid_ts of the rows added.';

create table raw.mismatches (
    model text not null,
    source text not null,
    event_id text not null,
    column_name text not null,
    value text not null,
    seen_at timestamptz not null default now(),
    primary key (model, source, event_id, column_name)
);

comment on table raw.mismatches is 'One row per value its column cannot hold: NULL in the table, whole in raw.events.';
