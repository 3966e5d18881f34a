-- This model only gives an order. dbt begins with models that have no parent, and tracks, which takes longest, is such a model.
select 1 as nothing
