{#-
    The two forms of a mart's SQL. The compiled SQL computes all rows. Between the marks `/*+` and `+*/` stands SQL that an
    increment adds, and between two marks `/*-*/` stands SQL that an increment leaves out. So the compiled SQL of a model
    is valid as it is, in dbt's unit tests too.
-#}

{#- Returns the SQL of a model for one source, in one of the two forms. `ref` names the tables of LOADER_SCHEMA. -#}
{% macro mart_sql(sql, source_name, is_increment) %}
    {%- set own = for_source(modules.re.sub("/[*]changed.*?changed[*]/", "", sql, flags=modules.re.DOTALL), source_name) -%}
    {%- if is_increment -%}
        {{ return(modules.re.sub("/[*]-[*]/.*?/[*]-[*]/", "", own, flags=modules.re.DOTALL) | replace("/*+", "") | replace("+*/", "")) }}
    {%- endif -%}
    {{ return(modules.re.sub("/[*][+].*?[+][*]/", "", own, flags=modules.re.DOTALL) | replace("/*-*/", "")) }}
{% endmacro %}


{#- Returns the SQL of the changed keys, which the model puts between the tags of `changed_keys`. -#}
{% macro changed_keys_sql(sql, source_name) %}
    {{ return(for_source(modules.re.search("/[*]changed(.*?)changed[*]/", sql, flags=modules.re.DOTALL).group(1), source_name)) }}
{% endmacro %}


{% macro for_source(sql, source_name) %}
    {%- set own = env_var('LOADER_SCHEMA', 'iterable') -%}
    {%- set prefix = adapter.quote(target.database) ~ "." -%}
    {{ return(
        sql | replace(prefix ~ adapter.quote(mart_schema(own)) ~ ".", prefix ~ adapter.quote(mart_schema(source_name)) ~ ".")
        | replace(prefix ~ adapter.quote(target_schema(own)) ~ ".", prefix ~ adapter.quote(target_schema(source_name)) ~ ".")
    ) }}
{% endmacro %}


{#- The keys that an increment computes again: `{% call changed_keys() %} select … {% endcall %}` at the top of a model. -#}
{% macro changed_keys() -%}
    /*changed
    {{ caller() }}
    changed*/
{%- endmacro %}


{#- SQL that only an increment has. -#}
{% macro in_increment(text) -%}
    /*+ {{ text }} +*/
{%- endmacro %}


{#- The logged changes of a mart that this run has not read yet. `sign` is -1 in a row as it was, 1 in a row as it is. -#}
{% macro changes_of(mart) -%}
    {%- do ref(mart) -%}
    {%- set relation = api.Relation.create(
        database=target.database, schema=mart_schema(env_var('LOADER_SCHEMA', 'iterable')), identifier=log_name(mart)
    ) -%}
    (select * from {{ relation }} where version > current_setting('loader.since_{{ mart }}')::bigint)
{%- endmacro %}


{#- The rows of a mart; in an increment, only those with a changed value of a column. -#}
{% macro rows_of_changed(mart, column) -%}
    (select * from {{ ref(mart) }} /*+ where {{ column }} = any(array(select {{ column }} from changed)) +*/)
{%- endmacro %}


{#-
    The rows of a mart with a column `sign`, for sums. All rows have sign 1. In an increment, the rows are the changed ones:
    with sign -1 as the mart had them, with sign 1 as it has them. So a sum of `sign * value` is the difference.
-#}
{% macro signed_rows(mart) -%}
    /*-*/ (select 1 as sign, present.* from {{ ref(mart) }} as present) /*-*/ /*+ {{ changes_of(mart) }} +*/
{%- endmacro %}


{#-
    The rows of a mart with a column `sign`, for distinct counts. In an increment, the rows are all those of each group that
    has a changed row: with sign -1 as the group was, with sign 1 as it is. `group` is a list of SQL expressions
    over columns, and `index` is the condition of an index scan for them.
-#}
{% macro rows_before_and_after(mart, group, condition='true') -%}
    {%- set key = graph_node(mart).config.unique_key -%}
    {%- set names = graph_node(mart).columns.keys() | list -%}
    /*-*/ (select 1 as sign, present.* from {{ ref(mart) }} as present where {{ condition }}) /*-*/ /*+ (
        with logged as materialized (
            select distinct on ({{ key | join(", ") }}) *
            from {{ changes_of(mart) }} as logged
            order by {{ key | join(", ") }}, version, sign
        ),

        touched as materialized (
            select distinct
                {%- for expression in group %}
                {{ expression }} as part_{{ loop.index }}{{ "," if not loop.last }}
                {%- endfor %}
            from {{ changes_of(mart) }} as logged
            where {{ condition }}
        ),

        present as materialized (
            select present.*
            from touched
            cross join lateral (
                select *
                from {{ ref(mart) }} as stored
                where
                    {%- for expression in group %}
                    {{ expression }} = touched.part_{{ loop.index }} and
                    {%- endfor %}
                    {{ condition }}
                offset 0
            ) as present
        )

        select 1 as sign, {{ names | join(", ") }}
        from present
        union all
        select -1 as sign, {{ names | join(", ") }}
        from (
            {#- The planner has no statistics of these rows. PostgreSQL has no nested loop for a full join. #}
            select
                {%- for name in names %}
                case when logged.sign is null then present.{{ name }} else logged.{{ name }} end as {{ name }}{{ "," if not loop.last }}
                {%- endfor %}
            from present
            full join logged on {% for column in key %}logged.{{ column }} = present.{{ column }}{{ " and " if not loop.last }}{% endfor %}
            where logged.sign is distinct from 1
        ) as before
        where {{ condition }}
    ) +*/
{%- endmacro %}


{#- The node of a mart. While dbt parses, the graph is empty, and the SQL is not used. -#}
{% macro graph_node(name) %}
    {%- for node in (graph.nodes or {}).values() if node.resource_type == 'model' and node.name == name -%}
        {{ return(node) }}
    {%- endfor -%}
    {{ return({'config': {'unique_key': ['nothing']}, 'columns': {'nothing': none}}) }}
{% endmacro %}


{#- The changed rows of a mart, as they are now. -#}
{% macro changed_rows(mart) -%}
    {%- set key = graph_node(mart).config.unique_key | join(", ") -%}
    (
        select *
        from (
            select distinct on ({{ key }}) *
            from {{ changes_of(mart) }} as logged
            order by {{ key }}, version desc, sign desc
        ) as latest
        where sign = 1
    )
{%- endmacro %}
