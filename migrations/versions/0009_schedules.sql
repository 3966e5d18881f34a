-- Who runs the transform again and again, and up to where every table is complete.

create table raw.schedules (
    id text primary key,
    host text not null,
    process_id integer not null,
    every interval not null,
    started_at timestamptz not null default clock_timestamp(),
    last_seen_at timestamptz not null default clock_timestamp(),
    state text not null check (state in ('running', 'idle', 'standby', 'backing off')),
    failures integer not null default 0,
    last_error text,
    next_run_at timestamptz,
    last_success_at timestamptz
);

comment on table raw.schedules is 'One row per `loader schedule`. It deletes its own when it ends; one that is not seen any more was killed.';
comment on column raw.schedules.last_seen_at is 'Every few seconds while the scheduler lives and reaches the database.';
comment on column raw.schedules.state is 'standby: another one has the lock. backing off: the last run failed, and the next try is at next_run_at.';
comment on column raw.schedules.failures is 'Failures in a row; 0 after a run in which every table was filled.';
comment on column raw.schedules.last_error is 'Why the last of them failed, without values from events.';

alter table raw.transforms add column whole boolean not null default false;

comment on column raw.transforms.whole is 'Every model was run, and none failed: every table has the events its snapshot sees.';

create index transforms_whole on raw.transforms (started_at) where whole;
