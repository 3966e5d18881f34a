{#-
    Gives the rights of the model's config on a table and its schema, and takes back others that this role gave, as dbt does.
    The rights of readers (`loader reader add`) stay.
-#}
{% macro give_grants(relation) %}
    {%- set grants = config.get('grants') -%}
    {%- if not grants -%}
        {{ return(none) }}
    {%- endif -%}
    {%- set readers = run_query("select name from raw.readers").columns[0].values() | map('lower') | list -%}
    {%- set present = {} -%}
    {%- for privilege, grantees in adapter.standardize_grants_dict(run_query(get_show_grant_sql(relation))).items() -%}
        {%- set others = [] -%}
        {%- for grantee in grantees if grantee.lower() not in readers -%}
            {%- do others.append(grantee) -%}
        {%- endfor -%}
        {%- do present.update({privilege: others}) if others -%}
    {%- endfor -%}
    {%- set statements = get_dcl_statement_list(relation, diff_of_two_dicts(present, grants), get_revoke_sql)
        + get_dcl_statement_list(relation, diff_of_two_dicts(grants, present), get_grant_sql) -%}
    {%- do call_dcl_statements(statements) if statements -%}
    {%- set grantees = [] -%}
    {%- for names in grants.values() -%}
        {%- do grantees.extend([names] if names is string else names) -%}
    {%- endfor -%}
    {%- do run_query("select raw.admit_grantees(" ~ string_literal(relation.schema) ~ ", " ~ text_array(grantees | unique | list) ~ ")") -%}
{% endmacro %}
