-- The insert of a run lists the values that a column does not hold, as it comes by them. It calls this function for such a
-- row only, so nearly no event pays for it.
create function raw.note_mismatches(
    model text, source text, served regclass, event_id text, column_names text[], lost_values text[]
) returns boolean
language plpgsql
set search_path = pg_catalog
as $$
declare
    has_row boolean := false;
begin
    if served is not null then
        execute format('select exists (select from %s where id = $1)', served) into has_row using event_id;
    end if;
    if not has_row then
        insert into raw.mismatches (model, source, event_id, column_name, value)
        select note_mismatches.model, note_mismatches.source, note_mismatches.event_id, lost.column_name, lost.lost_value
        from unnest(column_names, lost_values) as lost (column_name, lost_value)
        where lost.lost_value is not null
        on conflict on constraint mismatches_pkey do update set value = excluded.value, seen_at = excluded.seen_at;
    end if;
    return true;
end
$$;

comment on function raw.note_mismatches is 'Lists the values of an event that its row does not hold, unless the served table has a row of that id; always true.';
