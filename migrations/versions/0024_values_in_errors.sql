-- What is stored of an error quotes no event: PostgreSQL's DETAIL and CONTEXT hold rows, and its messages hold values.

create function raw.without_values(message text) returns text
language sql immutable
return btrim(
    regexp_replace(
        regexp_replace(
            regexp_replace(message, '\s+(?:DETAIL|CONTEXT|LINE \d+):.*', ''),
            '(?<=: )"[^"]*"?|(?<=value )"[^"]*"?|(?<=[ (])''[^'']*''|\S+@\S+', '…', 'g'
        ),
        '\s+', ' ', 'g'
    )
);

comment on function raw.without_values is 'Returns what an error says in one line, without DETAIL, CONTEXT and quoted values.';

update raw.transforms set error = raw.without_values(error)
where error is not null;
update raw.quarantine set detail = raw.without_values(detail)
where reason = 'refused_by_database';
