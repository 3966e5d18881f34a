-- What runs have noted of themselves. The last report of each table says where its cursor stands, and the last run that
-- filled every table where all of them do. A row whose report is gone is compared without its lower bound: as rightly.
delete from raw.syncs
where
    started_at < clock_timestamp() - interval '90 days'
    and exists (
        select from raw.syncs as later
        where later.model = syncs.model and later.source = syncs.source and later.started_at > syncs.started_at
    )
