"""Names by Segment's rules: events to tables, properties to columns, sources to schemas."""

import csv

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loader.events.naming import (
    BUILT_IN_TABLES,
    IDENTIFIER_BYTES,
    RESERVED_WORDS,
    column_name,
    identifier,
    schema_name,
    snake_case,
    table_name,
)
from tests.support.folders import DATA

UPPER, LOWER, DIGIT = range(65, 91), range(97, 123), range(48, 58)

# These names resemble real names, so Hypothesis reaches every rule often.
names = st.one_of(st.text(), st.text(alphabet="aZ9_ -.é$", max_size=20))


def vectors() -> list[tuple[str, str]]:
    """Return names and the snake case of each."""
    with (DATA / "naming_vectors.csv").open(encoding="utf-8", newline="") as file:
        rows = csv.reader(file)
        next(rows)
        return [(name, expected) for name, expected in rows]


def go_snakecase(name: str) -> str:
    """Return the snake case of a name, byte by byte, following the description of Segment's library."""
    source, output, i = name.encode("utf-8", "surrogatepass"), bytearray(), 0
    while i < len(source):
        if source[i] not in (*UPPER, *LOWER, *DIGIT):
            i += 1
            continue
        if output:
            output += b"_"
        while i < len(source) and source[i] in (*UPPER, *DIGIT):
            output.append(source[i] + 32 if source[i] in UPPER else source[i])
            i += 1
        while i < len(source) and source[i] in (*LOWER, *DIGIT):
            output.append(source[i])
            i += 1
    return output.decode("ascii")


@pytest.mark.parametrize(("name", "expected"), vectors())
def test_published_names_have_their_published_snake_case(name: str, expected: str) -> None:
    """Every published name has its published snake case."""
    assert snake_case(name) == expected


def test_the_list_of_vectors_is_complete() -> None:
    """The list of vectors is not empty and has its full length."""
    assert len(vectors()) == 68


@given(names)
def test_snake_case_is_the_bytewise_algorithm(name: str) -> None:
    """Any text gives the result of the byte-wise algorithm."""
    assert snake_case(name) == go_snakecase(name)


@given(names)
def test_snake_case_is_idempotent(name: str) -> None:
    """A name in snake case stays as it is."""
    once = snake_case(name)
    assert snake_case(once) == once


@given(names, names)
def test_snake_case_of_a_path_is_that_of_its_parts(first: str, second: str) -> None:
    """The snake case of a path is the same, whether the parts or the whole path are converted."""
    parts = [part for part in (snake_case(first), snake_case(second)) if part]
    assert snake_case(f"{first}.{second}") == "_".join(parts)


def test_vector_08_an_acronym_is_one_word() -> None:
    """An acronym is one word."""
    assert table_name("SMS Bounced") == "sms_bounced"


def test_vector_09_each_word_stays_a_word() -> None:
    """Each word stays a word."""
    assert table_name("In App Clicked") == "in_app_clicked"


def test_vector_10_a_digit_starts_no_word() -> None:
    """A capital after a small letter starts a word, and a digit does not."""
    assert table_name("iOS Opened 2x") == "i_os_opened_2x"


def test_vector_11_undocumented_events_have_tables() -> None:
    """A table's name needs no list of known events."""
    assert table_name("Email Send Skip") == "email_send_skip"


def test_vector_13_a_leading_digit_gets_an_underscore() -> None:
    """A name that starts with a digit gets an underscore in front, because no bare identifier starts with a digit."""
    assert table_name("101 Account Update") == "_101_account_update"


def test_vector_14_a_reserved_word_gets_an_underscore() -> None:
    """A reserved word gets an underscore in front."""
    assert table_name("Open") == "_open"


def test_vector_19_a_camel_case_property_becomes_snake_case() -> None:
    """A property in camel case becomes a column in snake case."""
    assert identifier(snake_case("campaignId")) == "campaign_id"


def test_vector_33_a_nested_property_becomes_one_column() -> None:
    """The path of a nested property becomes one column."""
    assert identifier(snake_case("product_id.sku")) == "product_id_sku"


def test_vector_41_a_reserved_word_as_a_column_gets_an_underscore() -> None:
    """A reserved word as a column gets an underscore in front, in PostgreSQL too."""
    assert identifier(snake_case("user")) == "_user"
    assert identifier(snake_case("tag")) == "_tag"


def test_vector_52_an_acronym_and_the_next_word_fuse() -> None:
    """An acronym and the word after it fuse."""
    assert identifier(snake_case("fromSMSSenderId")) == "from_smssender_id"


@pytest.mark.parametrize(
    ("path", "column"),
    [
        (["properties", "campaignId"], "campaign_id"),
        (["properties", "product_id", "sku"], "product_id_sku"),
        (["properties", "properties"], "properties"),
        (["context", "traits", "email"], "context_traits_email"),
        (["context", "properties", "x"], "context_properties_x"),
        (["properties", "user"], "_user"),
        (["properties", "user", "name"], "user_name"),
        (["properties", "1st", "2nd"], "_1st_2nd"),
        (["properties", "日本語", "a", "", "b"], "a_b"),
        (["properties", "日本語"], ""),
        (["properties", ""], ""),
        (["properties", "__proto__"], "proto"),
        (["properties", "a.b"], "a_b"),
        (["properties", "a", "b"], "a_b"),
        (["properties", "xmin"], "_xmin"),
        (["properties", "Ctid"], "_ctid"),
        (["context", "xmin"], "context_xmin"),
    ],
)
def test_a_property_has_a_column(path: list[str], column: str) -> None:
    """Each key becomes snake case by itself.

    Keys without letters and digits vanish, and so does `properties` in front.
    """
    assert column_name(path) == column


@given(st.lists(names, min_size=1, max_size=4))
def test_columns_need_no_quotes(keys: list[str]) -> None:
    """The column needs no quotes and is not cut, whatever the keys are."""
    column = column_name(["properties", *keys])
    assert len(column.encode()) <= IDENTIFIER_BYTES
    assert column not in RESERVED_WORDS
    assert not column[:1].isdigit()
    assert set(column) <= set("abcdefghijklmnopqrstuvwxyz0123456789_")


@pytest.mark.parametrize("name", ["cmax", "cmin", "ctid", "tableoid", "xmax", "xmin"])
def test_no_property_takes_the_name_of_a_system_column(name: str) -> None:
    """A table has PostgreSQL's own columns, so a property gets another name. A table may have such a name."""
    assert column_name(["properties", name.upper()]) == f"_{name}"
    assert table_name(name) == name


@pytest.mark.parametrize("word", sorted(RESERVED_WORDS))
def test_every_reserved_word_is_prefixed_once(word: str) -> None:
    """Each reserved word gets exactly one underscore."""
    assert identifier(word) == f"_{word}"


@pytest.mark.parametrize("word", ["language", "timestamp", "campaign", "userx", "opened"])
def test_words_that_segment_does_not_reserve_stay_unchanged(word: str) -> None:
    """Words that Segment leaves bare stay bare, `language` and `timestamp` among them."""
    assert identifier(word) == word


@pytest.mark.parametrize("name", sorted(BUILT_IN_TABLES))
def test_no_event_takes_a_table_of_the_layout(name: str) -> None:
    """An event with the name of a layout table gets another table."""
    assert table_name(name.title()) == f"_{name}"


@pytest.mark.parametrize("name", ["", "日本語", "__", " ", "!?"])
def test_a_name_without_ascii_letters_and_digits_has_no_table(name: str) -> None:
    """An event whose name has no ASCII letter or digit has no table."""
    assert table_name(name) == ""


def test_spellings_of_one_name_share_a_table() -> None:
    """Different spellings of an event share one table."""
    spellings = ["Email Delivered", "email_delivered", "EmailDelivered", "email-delivered", " email  Delivered "]
    assert {table_name(spelling) for spelling in spellings} == {"email_delivered"}


@given(st.text(alphabet="ab_", min_size=1, max_size=10), st.text(alphabet="abc", min_size=1, max_size=10))
def test_long_names_that_differ_in_their_tails_stay_apart(first: str, second: str) -> None:
    """PostgreSQL would cut both names to the same 63 bytes. They stay different and are not cut."""
    long = "campaign_" * 8
    made = {identifier(f"{long}{tail}") for tail in (first, second)}
    assert len(made) == len({first, second})
    assert all(len(name.encode()) <= IDENTIFIER_BYTES for name in made)


@given(names)
def test_tables_need_no_quotes(name: str) -> None:
    """The table needs no quotes and its name is not cut, whatever the event's name is."""
    table = table_name(name)
    assert len(table.encode()) <= IDENTIFIER_BYTES
    assert table not in RESERVED_WORDS | BUILT_IN_TABLES
    assert not table[:1].isdigit()
    assert set(table) <= set("abcdefghijklmnopqrstuvwxyz0123456789_")


def test_names_of_63_bytes_are_kept() -> None:
    """A name of 63 bytes stays as it is. A name of 64 bytes is shortened."""
    assert identifier("a" * 63) == "a" * 63
    assert identifier("a" * 64)[:54] == "a" * 54
    assert len(identifier("a" * 64)) == 63
    assert len(identifier("1" * 63)) == 63


@pytest.mark.parametrize(
    ("source", "schema"),
    [
        pytest.param("Iterable", "iterable", id="vector 1"),
        pytest.param("Customer.io", "customerio", id="vector 2"),
        pytest.param("AutopilotHQ", "autopilothq", id="vector 3"),
        ("3doctors", "_3doctors"),
        ("Vero", "vero"),
        ("Bloom Library-Org", "bloom_library_org"),
        (" My  Shop ", "my_shop"),
        ("my_shop", "my_shop"),
        ("__shop__", "shop"),
        ("Café", "caf"),
        ("A - B", "a_b"),
        ("日本語", ""),
        ("...", ""),
    ],
)
def test_a_schema_is_the_name_of_its_source_in_lower_case(source: str, schema: str) -> None:
    """The schema is the name in lower case. Capitals stay together and other characters are dropped."""
    assert schema_name(source) == schema


@given(names)
def test_schemas_are_stable_identifiers(name: str) -> None:
    """A schema is an identifier without quotes. The schema of that identifier is the identifier itself."""
    schema = schema_name(name)
    assert set(schema) <= set("abcdefghijklmnopqrstuvwxyz0123456789_")
    assert not schema[:1].isdigit()
    assert schema_name(schema) == schema
