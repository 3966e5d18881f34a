-- Old reports of runs are deleted. The last report of each table has the table's cursor. The last run that filled all
-- tables has the cursor of all. A row without its report is compared without a lower bound, with the same result.
delete from raw.syncs
where
    started_at < clock_timestamp() - interval '90 days'
    and exists (
        select from raw.syncs as later
        where later.model = syncs.model and later.source = syncs.source and later.started_at > syncs.started_at
    )
