-- Times of calls in the forms that senders use beside ISO 8601, which a cast reads. A time that could mean several
-- moments is not read: NULL says so, and a run notes the value in raw.mismatches.

create function raw.read_time(written text) returns timestamptz
language plpgsql stable strict parallel safe
as $$
declare
    value text := upper(btrim(written, E' \t\n\r'));
    part text[];
    counted numeric;
    iso text;
begin
    -- Seconds or milliseconds since 1970. Fewer digits are a date or a mistake, more are no time of this calendar.
    part := regexp_match(value, '^(-?)([0-9]{9,13})(\.[0-9]{1,9})?$');
    if part is not null then
        counted := (part[2] || coalesce(part[3], ''))::numeric;
        if length(part[2]) > 11 then
            counted := counted / 1000;
        end if;
        return timestamptz 'epoch' + (part[1] || trunc(counted, 6)::text || ' seconds')::interval;
    end if;

    -- ISO 8601 as a date alone, with two fractions, in lower case or without separators; without an offset it is UTC.
    part := regexp_match(
        value,
        '^([0-9]{4}-[0-9]{2}-[0-9]{2})(?:[T ]([0-9]{2}:[0-9]{2}(?::[0-9]{2})?)(\.[0-9]+)?(?:\.[0-9]+)?)?'
        ' *(Z|[+-][0-9]{2}(?::?[0-9]{2})?)?$'
    );
    if part is null then
        part := regexp_match(
            value,
            '^([0-9]{8})T([0-9]{4}(?:[0-9]{2})?)(\.[0-9]+)?(Z|[+-][0-9]{2}(?::?[0-9]{2})?)?$'
        );
    end if;
    if part is not null then
        iso := part[1] || 'T' || coalesce(part[2], '00:00') || coalesce(part[3], '') || coalesce(part[4], 'Z');
    else
        -- An e-mail's date (RFC 2822), with its offset, or with one of the names that mean UTC.
        part := regexp_match(
            value,
            '^(?:(?:MON|TUE|WED|THU|FRI|SAT|SUN), *)?([0-9]{1,2}) (JAN|FEB|MAR|APR|MAY|JUN|JUL|AUG|SEP|OCT|NOV|DEC) ([0-9]{4})'
            ' ([0-9]{2}:[0-9]{2}(?::[0-9]{2})?) +(?:([+-][0-9]{4})|GMT|UTC|UT|Z)$'
        );
        iso := part[1] || ' ' || part[2] || ' ' || part[3] || ' ' || part[4] || coalesce(part[5], 'Z');
    end if;
    if pg_input_is_valid(iso, 'timestamptz') then
        return iso::timestamptz;
    end if;
    return null;
end
$$;

comment on function raw.read_time is 'A time as senders write it: a date, seconds or milliseconds since 1970, ISO 8601 in any form, RFC 2822. NULL when the text is none, or may mean several moments.';
