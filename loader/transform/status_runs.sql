select
    transforms.started_at,
    transforms.status,
    extract(epoch from transforms.finished_at - transforms.started_at)::float8 as seconds,
    coalesce(sum(syncs.table_rows) filter (where syncs.model <> 'tracks'), 0)::bigint as rows_in_collections,
    coalesce(sum(syncs.table_rows) filter (where syncs.model = 'tracks'), 0)::bigint as rows_in_tracks,
    transforms.error
from (
    select * from raw.transforms
    order by started_at desc limit 5
) as transforms
left join raw.syncs on syncs.transform_id = transforms.id
group by transforms.id, transforms.started_at, transforms.status, transforms.finished_at, transforms.error
order by transforms.started_at desc
