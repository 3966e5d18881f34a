-- Which tables a run left as they were, and why. A run that cannot fill one table still fills the others, and counts as
-- whole; the held table is tried again at its own time.

create table raw.held_tables (
    model text not null,
    source text not null,
    held text not null check (held in ('fill', 'rebuild', 'columns')),
    reason text not null,
    since timestamptz not null default clock_timestamp(),
    tried_at timestamptz not null default clock_timestamp(),
    tries integer not null default 1,
    next_try_at timestamptz,
    primary key (model, source, held)
);

comment on table raw.held_tables is 'One row per served table that the last run which tried could not fill, rebuild or change. The row goes when a run succeeds.';
comment on column raw.held_tables.held is 'fill: the table gets no new events. rebuild: it gets new events, but its old rows are not made again. columns: it gets new events, but no new columns and no wider types.';
comment on column raw.held_tables.reason is 'Why, and what to do; without values from events.';
comment on column raw.held_tables.since is 'When a run first failed at it.';
comment on column raw.held_tables.tries is 'How often a run has tried since then.';
comment on column raw.held_tables.next_try_at is 'No run tries before this moment; null where only a command by hand tries again.';

-- Notes that a run could not do something to a table. Each further try waits twice as long, from 5 seconds to 5 minutes.
create function raw.hold_table(held_model text, held_source text, held_work text, held_reason text) returns void
language sql
as $$
    insert into raw.held_tables as old (model, source, held, reason, next_try_at)
    values (held_model, held_source, held_work, held_reason, clock_timestamp() + interval '5 s')
    on conflict (model, source, held) do update set
        reason = excluded.reason,
        tried_at = excluded.tried_at,
        tries = old.tries + 1,
        next_try_at = clock_timestamp() + least(interval '5 s' * power(2, least(old.tries, 10)), interval '5 min')
$$;

comment on function raw.hold_table is 'Notes that a run could not do something to a table, and when the next run may try.';

create function raw.release_table(held_model text, held_source text, held_work text) returns void
language sql
as $$
    delete from raw.held_tables where model = held_model and source = held_source and held = held_work
$$;

comment on function raw.release_table is 'Forgets what a run could not do to a table, once a run has done it.';
