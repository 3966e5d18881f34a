-- Casts of the texts of events to the types of columns, which never raise an error. A bad value must cost one NULL, not the
-- run. PostgreSQL puts the expressions of these functions in place of their calls, so that a call costs nothing.

-- Most numbers begin with a digit from 1 to 9 and have no prefix. They are not searched for letters, because the search
-- takes longer than the cast.
create function raw.is_plain_number(written text) returns boolean
language sql immutable parallel safe
return written collate "C" not like '%\_%' and (written collate "C" >= '1' or written !~ '[xXoObB]');

comment on function raw.is_plain_number is 'Whether a text that PostgreSQL reads as a number has neither a prefix nor an underscore: `0x41C3` and `4_310_021` are identifiers in events.';


create function raw.to_bigint(written text) returns bigint
language sql stable parallel safe
return case
    when pg_input_is_valid(written, 'bigint') and raw.is_plain_number(written) then written::bigint
    when octet_length(written) <= 1000 and pg_input_is_valid(written, 'numeric') and raw.is_plain_number(written)
        then case
            when written::numeric between -9223372036854775808 and 9223372036854775807 and written::numeric % 1 = 0
                then written::numeric::bigint
        end
end;

comment on function raw.to_bigint is 'The integer that a text of at most 1,000 characters holds, else NULL. 12.0 is an integer, as in a Segment warehouse; 12.5 is not cut to 12.';


create function raw.to_numeric(written text) returns numeric
language sql stable parallel safe
return case
    when
        octet_length(written) <= 1000 and pg_input_is_valid(written, 'numeric') and raw.is_plain_number(written)
        and written::numeric not in ('NaN', 'Infinity', '-Infinity')
        then written::numeric
end;

comment on function raw.to_numeric is 'The number that a text of at most 1,000 characters holds, else NULL.';


create function raw.to_boolean(written text) returns boolean
language sql immutable parallel safe
return case lower(written) when 'true' then true when 'false' then false end;

comment on function raw.to_boolean is 'The truth value that a text holds, in any case, else NULL.';


create function raw.to_time(written text) returns timestamptz
language sql stable parallel safe
return case
    when (written like '____-__-__T%' or written like '____-__-__ %') and pg_input_is_valid(written, 'timestamptz')
        then written::timestamptz
end;

comment on function raw.to_time is 'The time that a text holds, with date and time of day in ISO order, else NULL. PostgreSQL would also read `now` and `today`, which mean something else in every run.';


-- `1e131071` has eight characters in a call and 131,072 digits as text, and each use would make that text again.
create function raw.short_text(value jsonb, written text) returns text
language sql immutable parallel safe
return case
    when jsonb_typeof(value) = 'number' and not value between '-1e1000' and '1e1000'
        then 'a number of more than 1000 digits'
    else written
end;

comment on function raw.short_text is 'The text of a JSON value, or words in place of a number with too many digits for a column.';
