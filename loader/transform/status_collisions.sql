select
    source,
    model as table,
    reason,
    count(*) as properties
from raw.collisions
group by 1, 2, 3
union all
select
    source,
    collection as table,
    'untracked' as reason,
    1 as properties
from raw.collections
where untracked
order by 1, 2, 3
