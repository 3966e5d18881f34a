-- An orchestrator may run each model by a command of its own. Together these runs fill every table, as one run does.

alter table raw.transforms add column filled text[] not null default '{}';

comment on column raw.transforms.filled is 'The models that this invocation filled, each in every source.';
comment on column raw.transforms.whole is 'Whether every model has read the events that the snapshot shows, in this invocation or in a later one.';


-- Ends the record of an invocation. `run_error` is null after a success. `models` are all models that fill served tables.
--
-- Each model has a last run that filled it. Every model has read the events of the oldest of these runs, so that run is
-- marked as `whole`.
create function raw.end_transform(run_transform text, run_error text, filled text[], models text[]) returns void
language plpgsql
set search_path = pg_catalog
as $$
begin
    -- Of two runs that end at once, the second must see the first.
    perform pg_advisory_xact_lock(hashtext('raw.end_transform'));
    update raw.transforms
    set
        finished_at = clock_timestamp(),
        status = case when run_error is null then 'success' else 'error' end,
        error = raw.without_values(run_error),
        filled = end_transform.filled,
        whole = models <@ end_transform.filled
    where id = run_transform;

    update raw.transforms set whole = true
    where
        not whole
        and not models <@ end_transform.filled
        and id = (
            select last_runs.id
            from (
                select distinct on (model.name) model.name, runs.id, runs.started_at
                from unnest(models) as model (name)
                left join (
                    select transforms.id, transforms.started_at, transforms.filled
                    from raw.transforms
                    where
                        transforms.started_at >= coalesce(
                            (
                                select complete.started_at from raw.transforms as complete
                                where complete.whole order by complete.started_at desc limit 1
                            ),
                            '-infinity'
                        )
                ) as runs on model.name = any(runs.filled)
                order by model.name, runs.started_at desc
            ) as last_runs
            order by last_runs.started_at nulls first limit 1
        );
end
$$;

comment on function raw.end_transform is 'Ends the record of an invocation, and marks the events that every model has read.';
