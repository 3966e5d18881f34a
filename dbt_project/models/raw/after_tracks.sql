-- Nothing but an order: dbt begins with the models nothing is below, and tracks, which takes longest, is one of them.
select 1 as nothing
