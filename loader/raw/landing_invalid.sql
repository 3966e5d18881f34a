select
    number::int - 1,
    sql_error_code,
    message
from unnest(%(payloads)s::text[]) with ordinality as given (payload, number), pg_input_error_info(payload, 'jsonb')
where sql_error_code is not null
