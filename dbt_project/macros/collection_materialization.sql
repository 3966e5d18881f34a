{#-
    Fills one served table per source in place.

    One transaction per source locks the cursor, creates a missing table, adds the new events in landing order, records
    mismatches, moves the cursor and reports. No table is dropped, renamed or swapped, so views, grants and open readers
    survive a run. A full refresh deletes and inserts in the same way.
-#}
{% materialization collection, adapter='postgres' %}
    {%- do check_model() -%}
    {{ run_hooks(pre_hooks, inside_transaction=False) }}
    {%- do begin() if pre_hooks | rejectattr('transaction') | list -%}
    {{ run_hooks(pre_hooks, inside_transaction=True) }}

    {%- set totals = namespace(rows=0) -%}
    {%- set relations = [] -%}
    {%- set refusals = [] -%}
    {%- set only = only_tables(model.alias) -%}
    {%- set own_sql = none if takes_found_columns(sql) else sql -%}
    {%- do check_contract(own_sql) -%}
    {%- for source_name in registered_sources(transaction_settings()) if not only or source_name ~ "." ~ model.alias in only -%}
        {%- do begin() if not loop.first -%}
        {%- set table = described_table(source_name, model.alias, model.description, own_sql) -%}
        {%- set totals.rows = totals.rows + fill_table(table) -%}
        {%- do relations.append(table.relation) if not table.is_held -%}
        {%- do refusals.append(table.refusal) if table.refusal -%}
        {%- do give_grants(table.relation) if not table.is_held -%}
        {%- do adapter.commit() -%}
        {%- do warn_of_obstacles(table) -%}
    {%- endfor -%}

    {%- do store_raw_result('main', 'INSERT ' ~ totals.rows, 'INSERT', totals.rows) -%}

    {%- if post_hooks -%}
        {%- do begin() -%}
        {{ run_hooks(post_hooks, inside_transaction=True) }}
        {%- do adapter.commit() -%}
    {%- endif -%}
    {{ run_hooks(post_hooks, inside_transaction=False) }}
    {%- do raise_refusals(refusals) -%}
    {{ return({'relations': relations}) }}
{% endmaterialization %}


{#- Describes a table of the layout: its name, its events, its yml, and the SQL of a team's own model. -#}
{% macro described_table(source_name, name, description, own_sql=none) %}
    {%- set declared = [] -%}
    {%- for column in model.columns.values() -%}
        {%- do declared.append({
            'name': column.name, 'data_type': column.data_type, 'description': column.description,
            'meta': (column.config or {}).meta or column.meta or {},
        }) -%}
    {%- endfor -%}
    {{ return({
        'source': source_name,
        'name': name,
        'description': description,
        'relation': api.Relation.create(database=target.database, schema=target_schema(source_name), identifier=name, type='table'),
        'every_event': name == 'tracks',
        'declared': declared,
        'own_sql': own_sql,
        'may_refuse_rows': false,
        'refused_by': none,
        'refusal': none,
        'is_held': false,
        'obstacles': [],
    }) }}
{% endmacro %}


{#-
    Tells whether a run adds found columns. The key `found_columns` in the model's `config.meta` decides. A run that adds them
    writes the select itself, so the model's SQL must be the macro's own call: no SQL of a team is replaced. Without the key,
    a model whose SQL is that call takes found columns.
-#}
{% macro takes_found_columns(sql) %}
    {%- set key = config.get('meta', {}).get('found_columns') -%}
    {#- The second test renders the macro again, which takes as long as all other work of an idle run for a model. -#}
    {%- set is_own_call = is_macro_call(model.raw_code) or bare_sql(sql) == bare_sql(collection(every_event=model.alias == 'tracks')) -%}
    {%- if key is not none and key is not boolean -%}
        {%- do exceptions.raise_compiler_error("Model " ~ model.name ~ ": config.meta.found_columns is " ~ key ~ ". Set the key to true or false.") -%}
    {%- elif not is_own_call and key is none -%}
        {%- do exceptions.raise_compiler_error(
            "The SQL of model " ~ model.name ~ " is more than {{ collection() }}, and config.meta.found_columns is not set. Set the key to false in the model's yml: the table then has only the columns that the yml declares."
        ) -%}
    {%- elif not is_own_call and key -%}
        {%- do exceptions.raise_compiler_error(
            "The SQL of model " ~ model.name ~ " is more than {{ collection() }}, but config.meta.found_columns is true. A run can add columns to {{ collection() }} only. Set the key to false in the model's yml, or reduce the SQL to the macro's call."
        ) -%}
    {%- endif -%}
    {{ return(is_own_call and key is not false) }}
{% endmacro %}


{#- Tells whether a model's code is the macro's call alone, without counting comments and spaces. -#}
{% macro is_macro_call(code) %}
    {%- set call = "\\{\\{-?collection\\(" ~ ("every_event=[Tt]rue" if model.alias == 'tracks' else "") ~ "\\)-?\\}\\}" -%}
    {{ return(modules.re.fullmatch(call, bare_sql(modules.re.sub('\\{#.*?#\\}', '', code, flags=modules.re.DOTALL))) is not none) }}
{% endmacro %}


{#- SQL without comments and spaces, to compare. -#}
{% macro bare_sql(sql) %}
    {{ return(modules.re.sub('--[^\\n]*|/[*].*?[*]/|\\s+', '', sql, flags=modules.re.DOTALL)) }}
{% endmacro %}


{#- A run that could not change a table succeeds, so dbt's log warns and names the obstacle. -#}
{% macro warn_of_obstacles(table) %}
    {%- for obstacle in table.obstacles -%}
        {%- do exceptions.warn(table.source ~ "." ~ table.name ~ ": " ~ obstacle ~ (" `loader widen` gives advice." if "`loader" not in obstacle else "")) -%}
    {%- endfor -%}
{% endmacro %}


{% macro raise_refusals(refusals) %}
    {%- do exceptions.raise_compiler_error("Not rebuilt: " ~ refusals | join(" ")) if refusals -%}
{% endmacro %}


{#- dbt's driver begins only the first transaction of a connection. After a commit every statement would be on its own. -#}
{% macro begin() %}
    {%- call statement('begin') -%} begin; {{ transaction_settings() }} {%- endcall -%}
{% endmacro %}
