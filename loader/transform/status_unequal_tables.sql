select
    source,
    model as table,
    rows,
    missing
from (
    select
        source,
        model,
        raw.count_rows(source, model) as rows,
        raw.count_events(source, model, snapshot, false) - read_rows + table_rows
        - raw.count_rows(source, model) as missing
    from raw.cursors
    where snapshot is not null
) as compared
where missing <> 0
order by source, model
