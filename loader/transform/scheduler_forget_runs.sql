delete from raw.transforms
where
    started_at < clock_timestamp() - interval '90 days'
    and finished_at is not null
    and not exists (
        select from raw.syncs
        where syncs.transform_id = transforms.id
    )
    and (
        not whole
        or exists (
            select from raw.transforms as later
            where later.whole and later.started_at > transforms.started_at
        )
    )
