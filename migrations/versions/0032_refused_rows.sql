-- Writing rows of a served table that other roles have put objects on. A constraint, a trigger, a rule or a policy may
-- refuse rows. The run then leaves the table as it was and fills the others. dbt cannot catch an error, so this function
-- does. Errors that say nothing about the table go on to dbt: a full disk, a deadlock, a mistake in the SQL.
create function raw.write_rows(
    target regclass,
    statement text,
    caller_search_path text,
    is_generated boolean,
    out row_count bigint,
    out in_the_way text
)
language plpgsql
set search_path = pg_catalog
as $$
declare
    code text;
    message text;
    detail text;
    context text;
begin
    -- Triggers and a team's own SQL look names up as they would without this function.
    perform set_config('search_path', caller_search_path, true);
    execute statement;
    get diagnostics row_count = row_count;
    in_the_way := '';
exception when others then
    get stacked diagnostics
        code = returned_sqlstate, message = message_text, detail = pg_exception_detail, context = pg_exception_context;
    if
        not (is_generated and context ~ '^PL/' and context !~ '^PL/pgSQL function raw\.')
        and (
            code ~ '^(08|40|53|57|58|XX)'
            -- A policy, or a generated column with the name of a property. The SQL of a policy may have any mistake.
            or (
                code ~ '^42' and code not in ('42501', '428C9')
                and not (is_generated and exists (select from pg_class where pg_class.oid = target and relrowsecurity))
            )
            -- The SQL of a team's own model may fail to cast a value, which is the model's error.
            or (code ~ '^22' and not is_generated)
        )
    then
        raise;
    end if;
    row_count := 0;
    in_the_way := raw.explain_failure(target, null, code, message, detail, context);
end
$$;

comment on function raw.write_rows is 'Runs a statement that writes rows of a served table; returns how many, and what is in the way, or the empty string.';


-- A trigger may quote an event's values with any SQLSTATE, so the test of a function in the context comes first.
create or replace function raw.explain_failure(
    target regclass, target_column text, code text, message text, detail text, context text
) returns text
language sql
set search_path = pg_catalog
as $$
    select case
        when context ~ '^PL/' and context !~ '^PL/pgSQL function raw\.'
            then format(
                '%s raised an error, SQLSTATE %s',
                coalesce(substring(context from '^(PL/[^\n]*?\)) line'), substring(context from '^[^\n]*')),
                code
            )
        when code = '55P03' then raw.describe_lock_holders(target)
        -- These details name objects.
        when code in ('0A000', '2BP01') then concat_ws(': ', message, nullif(detail, ''))
        when code like '22%'
            then format(
                '%s: SQLSTATE %s',
                coalesce(raw.describe_dependents(target, target_column), 'a value that an object on the table refuses'),
                code
            )
        when code like '23%' then message
        else concat_ws(': ', raw.describe_dependents(target, target_column), message)
    end
$$;
