-- A rebuild deletes the rows of a table and makes them again from raw.events. Where raw.events has lost events since the
-- table read them, the rows would be lost as well.

alter table raw.syncs add column note text;

comment on column raw.syncs.note is 'What somebody should know of the run of this table, in a sentence.';


-- A table without a snapshot is compared as it is now: its rows may be all that is known of what it has read.
create function raw.describe_loss(schema_name text, table_name text) returns text
language plpgsql stable
as $$
declare
    was_read bigint;
    held bigint;
begin
    select
        case
            when cursors.snapshot is null
                then greatest(cursors.read_rows, raw.count_rows(schema_name, table_name))
            else cursors.read_rows
        end,
        raw.count_events(schema_name, table_name, coalesce(cursors.snapshot, pg_current_snapshot()), false)
    into was_read, held
    from raw.cursors
    where cursors.source = schema_name and cursors.model = table_name;
    if held < was_read then
        return format('raw.events holds %s of the %s events that the table has read.', held, was_read);
    end if;
    return null;
end
$$;

comment on function raw.describe_loss is 'Says how many events of a table raw.events has lost; null where it holds all of them.';


-- Returns whether the table's rows may be made again. If not, the table goes on by increments and is noted as held.
create function raw.order_rebuild(schema_name text, table_name text) returns boolean
language plpgsql
as $$
declare
    served text := format('%I.%I', schema_name, table_name);
    has_rows boolean := false;
    loss text;
begin
    if to_regclass(served) is not null then
        execute format('select exists (select from %s)', served) into has_rows;
    end if;
    if has_rows then
        loss := raw.describe_loss(schema_name, table_name);
    end if;
    update raw.cursors set rebuild_ordered = loss is null where source = schema_name and model = table_name;
    if loss is null then
        perform raw.release_table(table_name, schema_name, 'rebuild');
        return true;
    end if;
    insert into raw.held_tables as old (model, source, held, reason)
    values (
        table_name,
        schema_name,
        'rebuild',
        format(
            '%s A rebuild would delete the rows of the others. Restore the events and rebuild the table, or accept the '
            'loss: `loader transform --full-refresh --allow-loss --select %s.%s`, or with plain dbt '
            '`--full-refresh --vars ''allow_loss: true''`.',
            loss, schema_name, table_name
        )
    )
    on conflict (model, source, held) do update set
        reason = excluded.reason,
        tried_at = excluded.tried_at,
        tries = old.tries + 1,
        next_try_at = null;
    return false;
end
$$;

comment on function raw.order_rebuild is 'Orders that the next run makes a table''s rows again, unless rows would be lost.';
