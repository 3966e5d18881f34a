"""The page of a report, rendered from given rows."""

import base64
import hashlib
import re
from dataclasses import replace
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Any

import pytest

from loader.report.figures import Delivery, Report
from loader.report.page import render_page
from loader.report.periods import Period
from loader.report.queries import Figure
from tests.support.html_page import Element, read_page

SENT = datetime(2026, 3, 4, 18, 5, tzinfo=UTC)
HOSTILE = [
    "<script>alert(1)</script>",
    "</script><img src=x onerror=alert(1)>",
    '" onmouseover="alert(1)',
    "' onfocus='alert(1)",
    "{{ 7 * 7 }}{% raw %}",
    "</details></table><h1>Taken over</h1>",
    "<!-- ",
    "]]>&lt;b&gt;&amp;",
    "javascript:alert(1)//",
]


def rates(**given: str) -> dict[str, Decimal | None]:
    """Return the rates of a row, of which those that are not given are missing."""
    names = ("delivery_rate", "human_open_rate", "human_click_rate", "recipient_unsubscribe_rate", "complaint_rate")
    return {name: Decimal(given[name]) if name in given else None for name in names}


def total(period: str, channel: str | None, sends: int, **given: str) -> dict[str, Any]:
    """Return a row of the totals."""
    counts = dict.fromkeys(("messages", "sends", "delivered", "unique_delivered"), sends)
    others = ("bounces", "complaints", "unique_human_opens", "unique_human_clicks", "unique_recipient_unsubscribes")
    return {"period": period, "channel": channel, **counts, **dict.fromkeys(others, 1), **rates(**given)}


def campaign(number: int, name: str | None, sends: int, **given: str) -> dict[str, Any]:
    """Return a row of the campaigns."""
    counts = {"sends": sends, "unique_delivered": sends, "last_sent_at": SENT, "number_of_rows": 2}
    return {"channel": "email", "campaign_id": number, "campaign_name": name, **counts, **rates(**given)}


def revenue(name: str, currency: str, amount: str) -> dict[str, Any]:
    """Return a row of the revenue."""
    return {
        "conversion_name": "order",
        "currency": currency,
        "channel": "email",
        "campaign_id": 7,
        "campaign_name": name,
        "conversions": Decimal(3),
        "converting_users": 2,
        "revenue": Decimal(amount),
        "revenue_per_thousand": None,
        "number_of_rows": 1,
    }


def earned(period: str, currency: str, amount: str) -> dict[str, Any]:
    """Return a row of the totals of revenue."""
    row = {"conversion_name": "order", "conversions": Decimal(3)}
    return {"period": period, "currency": currency, "revenue": Decimal(amount), **row}


def figure(*rows: dict[str, Any]) -> Figure:
    """Return a figure with rows."""
    return Figure("select 1 < 2", list(rows))


def delivery(*, waiting: int = 0, failed: str | None = None, quarantine: Figure | None = None) -> Delivery:
    """Return a state of the warehouse."""
    return Delivery(
        quarantine=quarantine or figure(),
        runs=figure({"tables_filled_at": SENT, "marts_filled_at": SENT, "failed_marts": failed}),
        waiting=figure({"waiting": waiting, "oldest_seconds": 7200.0 if waiting else None}),
    )


EMPTY = Report(
    source="Iterable",
    period=Period(date(2026, 3, 1), date(2026, 3, 30)),
    time_zone="Europe/Berlin",
    model="last_click",
    made_at=SENT,
    totals=figure(),
    days=figure(),
    funnel=figure(),
    campaigns=figure(),
    domains=figure(),
    links=figure(),
    revenue=figure(),
    revenue_totals=figure(),
    machines=figure(),
    missing_sends=figure(),
    delivery=delivery(),
)


def rendered(**changes: Any) -> Element:
    """Return the page of a report that has nothing but the given parts."""
    return read_page(render_page(replace(EMPTY, **changes)))


def headlines(page: Element) -> dict[str, list[str]]:
    """Return the numbers at the top of a page, by the name of the measure."""
    found = {}
    for each in page.all(of_class="headline"):
        name, *parts = (part.text() for part in each.children if isinstance(part, Element))
        found.setdefault(name, []).append(" | ".join(parts))
    return found


def test_the_headlines_compare_with_the_period_before() -> None:
    """Counts change in percent and rates in points, and a change has the colour of its meaning."""
    page = rendered(
        totals=figure(
            total("current", None, 1200, delivery_rate="0.98"),
            total("current", "email", 1200, human_open_rate="0.3", complaint_rate="0.002"),
            total("before", None, 1000, delivery_rate="0.99"),
            total("before", "email", 1000, human_open_rate="0.25", complaint_rate="0.001"),
        )
    )
    shown = headlines(page)
    assert shown["Messages sent"] == ["1,200 | +20.0 % before: 1,000"]
    assert shown["Delivered"] == ["98.0 % | −1.0 points before: 99.0 % | 1,200 messages"]
    assert shown["Email: opened by people"] == ["30.0 % | +5.0 points before: 25.0 % | 1 recipient"]
    assert shown["Email: clicked by people"] == ["– | before: – | 1 recipient"]
    tones = {element.text(): name for name in ("good", "bad") for element in page.all(of_class=name)}
    assert {text: tones.get(text) for text in ("−1.0 points", "+5.0 points", "+0.1 points")} == {
        "−1.0 points": "bad",
        "+5.0 points": "good",
        "+0.1 points": "bad",
    }


def test_currencies_are_never_added_up() -> None:
    """Each currency has a number of its own, against its own of the period before."""
    page = rendered(
        revenue=figure(revenue("Sale", "EUR", "1234.5"), revenue("Sale", "X" * 3, "7")),
        revenue_totals=figure(
            earned("current", "EUR", "1234.5"), earned("current", "X" * 3, "7"), earned("before", "EUR", "1000")
        ),
    )
    assert headlines(page)["Revenue: order"] == [
        "1,234.50 EUR | +23.5 % before: 1,000.00 | 3 conversions",
        "7.00 no currency | before: – | 3 conversions",
    ]
    assert page.section("revenue").table() == [
        ["Sale", "Email", "order", "3", "2", "1,234.50", "EUR", "–"],
        ["Sale", "Email", "order", "3", "2", "7.00", "no currency", "–"],
    ]


def test_a_campaign_without_a_name_has_its_number() -> None:
    """Messages of no campaign are a row too, and the page says how many rows it leaves out."""
    page = rendered(campaigns=figure(campaign(7, None, 1200, human_open_rate="0.3"), campaign(0, None, 5)))
    rows = page.section("campaigns").table()
    assert rows[0] == ["Campaign 7", "Email", "1,200", "–", "1,200", "30.0 %", "–", "–", "4 Mar 2026, 18:05 UTC"]
    assert rows[1][0] == "No campaign"
    assert "of 2 campaigns" not in page.section("campaigns").text()
    page = rendered(campaigns=figure(campaign(7, None, 1200)))
    assert "The table has 1 of 2 campaigns." in page.section("campaigns").text()


def test_a_sortable_cell_has_its_exact_value() -> None:
    """The script sorts by it, because `9 %` would come after `10 %`. A missing value is empty."""
    page = rendered(campaigns=figure(campaign(7, "Sale", 1200, delivery_rate="0.987654")))
    [table] = page.section("campaigns").all("table", of_class="sortable")
    keys = [cell.attributes["data-key"] for cell in table.all("td", of_class="n")]
    assert keys == ["1200", "0.987654", "1200", "", "", "", str(SENT.timestamp())]


@pytest.mark.parametrize("name", HOSTILE)
def test_html_in_a_senders_name_is_shown_as_text(name: str) -> None:
    """Every place that shows a sender's text shows it as it is, and the page has the elements that it always has."""

    def page_with(text: str) -> Element:
        link = {"channel": "email", "link": text, "campaigns": 1, "human_clicks": 1, "machine_clicks": 0}
        domain = {"recipient_domain": text, "sends": 1, "number_of_rows": 1, "hard_bounce_rate": None}
        others = dict.fromkeys(("soft_bounce_rate", "block_rate"))
        return rendered(
            source=text,
            time_zone=text,
            model=text,
            campaigns=figure(campaign(7, text, 1)),
            links=figure(link | {"unique_human_clicks": 1, "number_of_rows": 1}),
            domains=figure(domain | others | rates()),
            revenue=figure(revenue(text, text, "1") | {"conversion_name": text}),
            revenue_totals=figure(earned("current", text, "1") | {"conversion_name": text}),
            delivery=delivery(
                failed=text, quarantine=figure({"reason": text, "messages": 1, "last_received_at": SENT})
            ),
        )

    hostile, harmless = page_with(name), page_with("harmless")
    assert [(each.tag, each.attributes.keys()) for each in hostile.all()] == [
        (each.tag, each.attributes.keys()) for each in harmless.all()
    ]
    for section in ("campaigns", "links", "deliverability"):
        assert hostile.section(section).table()[0][0] == " ".join(name.split())
    assert hostile.all("h1")[0].text() == " ".join(f"{name}: messages and their results".split())


def test_no_address_of_a_person_is_on_the_page() -> None:
    """A sender may have put an address into a name or a link."""
    link = {"channel": "email", "link": "https://shop.example/leave/zoe%40example.com", "campaigns": 1}
    page = rendered(
        campaigns=figure(campaign(7, "For zoe@example.com", 1)),
        links=figure(link | {"human_clicks": 1, "machine_clicks": 0, "unique_human_clicks": 1, "number_of_rows": 1}),
    )
    assert "zoe" not in page.section("campaigns").text() + page.section("links").text()
    assert page.section("campaigns").table()[0][0] == "For (address)"


def test_the_page_fetches_nothing() -> None:
    """No element names another file, and the policy forbids to load any."""
    page = render_page(EMPTY)
    loading = {"src", "href", "srcset", "action", "data", "poster", "background", "formaction", "xlink:href"}
    assert [each for each in read_page(page).all() if loading & each.attributes.keys()] == []
    assert not re.search(r"@import|url\(|https?://|fetch\(|XMLHttpRequest|import\(", page)
    [policy] = [
        each.attributes["content"]
        for each in read_page(page).all("meta")
        if each.attributes.get("http-equiv") == "Content-Security-Policy"
    ]
    assert policy.startswith("default-src 'none';")


def test_only_the_script_of_the_page_may_run() -> None:
    """The policy has the digest of the script, exactly as a browser computes it."""
    page = render_page(EMPTY)
    [script] = re.findall(r"<script>(.*?)</script>", page, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in page.replace("&#39;", "'")


def test_each_section_of_an_empty_report_says_that_there_is_no_data() -> None:
    """Nothing is divided by nothing, and no table is without rows."""
    page = rendered()
    assert page.all("table") == page.all("svg") == []
    assert headlines(page) == {
        "Messages sent": ["0 | before: 0"],
        "Delivered": ["– | before: –"],
        "People reached": ["0 | before: 0"],
    }
    for section in ("channels", "days", "funnel", "campaigns", "deliverability", "links", "revenue", "machines"):
        assert re.search(r"\b(No|Nothing)\b", page.section(section).text()), section


def test_each_section_contains_its_sql_statement() -> None:
    """The statement ends with a semicolon, and its characters are those of SQL."""
    page = rendered()
    sections = page.all("section")
    assert len(sections) == 9
    for section in sections:
        assert section.statements()[0] == "select 1 < 2;"
        assert section.all("details")


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"delivery": delivery()}, "Every landed event is in its table (all sources)."),
        ({"delivery": delivery()}, "No message of this source is in the quarantine."),
        ({"delivery": delivery()}, "Last run that filled the marts: 4 Mar 2026, 18:05 UTC."),
        ({"delivery": delivery(waiting=1)}, "1 landed event is not in the tables yet, the oldest for 2 h"),
        ({"delivery": delivery(waiting=1234)}, "1,234 landed events are not in the tables yet"),
        ({"delivery": delivery(failed="funnel, messages")}, "could not fill these marts: funnel, messages."),
        ({"delivery": None}, "The role that made this report reads tables only."),
        (
            {
                "delivery": delivery(
                    quarantine=figure({"reason": "invalid_json", "messages": 3, "last_received_at": SENT})
                )
            },
            "3 messages in the quarantine: invalid_json, the last on 4 Mar 2026, 18:05 UTC.",
        ),
    ],
)
def test_the_page_tells_how_complete_the_data_is(changes: dict[str, Any], sentence: str) -> None:
    """A reader cannot know, and the page says so."""
    assert sentence in rendered(**changes).section("completeness").text()


def test_a_reader_s_page_has_no_statement_that_a_reader_cannot_run() -> None:
    """The schema raw is not a reader's."""
    assert len(rendered(delivery=None).section("completeness").statements()) == 1
    assert len(rendered().section("completeness").statements()) == 4


def test_the_page_names_the_time_zone_of_its_days() -> None:
    """A reader cannot read the zone of the marts."""
    assert "Days are days in Europe/Berlin." in rendered().all("header")[0].text()
    assert "Days are days in the time zone of the marts." in rendered(time_zone=None).all("header")[0].text()


def test_the_charts_show_each_channel_of_each_day() -> None:
    """A bar says its day and its numbers when it is pointed at."""
    counts = {"bounces": 0, "human_opens": 4, "human_clicks": 1}
    days = [
        {"channel": channel, "day": date(2026, 3, 2), "sends": sends, **counts}
        for channel, sends in (("email", 1200), ("sms", 300))
    ]
    page = rendered(days=figure(*days))
    sent, returned = page.section("days").all("svg")
    titles = [title.text() for title in sent.all("title")]
    assert len(titles) == 30
    assert titles[:2] == ["1 Mar 2026: 0", "2 Mar 2026: 1,500 Email 1,200 SMS 300"]
    assert [title.text() for title in returned.all("title")][1] == "2 Mar 2026: 10 Opens 8 Clicks 2"
    assert page.section("days").table()[0] == ["2 Mar 2026", "Email", "1,200", "0", "4", "1"]


def test_a_page_of_the_largest_tables_is_small_enough_to_mail() -> None:
    """300 campaigns with names of 200 characters and 20 links stay below 2 MB."""
    campaigns = [campaign(number, "<" * 200, 10**9) for number in range(300)]
    earning = [revenue("<" * 200, "USD", "1234567.89") for _ in range(300)]
    assert len(render_page(replace(EMPTY, campaigns=figure(*campaigns), revenue=figure(*earning))).encode()) < 2_000_000
