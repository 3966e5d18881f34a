"""Renders a report as one HTML page that needs no network."""

import base64
import hashlib
from dataclasses import dataclass
from decimal import Decimal
from itertools import groupby
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from loader.report import formats
from loader.report.charts import BAR_WIDTH, HEIGHT, Chart, stack_days
from loader.report.figures import Report
from loader.report.queries import Figure, Row
from loader.runtime.terminal import count

_FOLDER = Path(__file__).parent

# The channels with their names for people, in the order of a bar from bottom to top.
_CHANNELS = {"email": "Email", "push": "Push", "in_app": "In-app", "sms": "SMS", "web_push": "Web push"}
_RESPONSES = {"human_opens": "Opens", "human_clicks": "Clicks"}

# Most currencies with a number of their own at the top of the page.
_HEADLINE_CURRENCIES = 4


@dataclass(frozen=True)
class Headline:
    """A number at the top of the page.

    Attributes:
        name: The name of the measure.
        value: The number for people.
        change: The change against the period before; empty if there is nothing to compare with.
        before: The number of the period before.
        tone: `good` or `bad` if the change is one, else empty.
        note: A further number of the same measure.
        unit: The unit of the value, if it has one.
    """

    name: str
    value: str
    change: str
    before: str
    tone: str
    note: str = ""
    unit: str = ""


def render_page(report: Report) -> str:
    """Return a report as an HTML page.

    The page allows no other script than its own, by the digest in its content security policy.
    """
    script = _text("page.js")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return (
        _environment()
        .get_template("page.html.jinja")
        .render(
            report=report,
            source=formats.sender_text(report.source),
            currents=_of_period(report.totals, "current"),
            befores={row["channel"]: row for row in _of_period(report.totals, "before")},
            headlines=_headlines(report),
            sends=_chart(report, _CHANNELS, {name: ("sends", name) for name in _CHANNELS}),
            responses=_chart(report, _RESPONSES, {name: (name, None) for name in _RESPONSES}),
            funnels=[
                (channel, list(rows)) for channel, rows in groupby(_rows(report.funnel), lambda row: row["channel"])
            ],
            channels=_CHANNELS,
            responses_names=_RESPONSES,
            rows_of=_rows,
            style=Markup(_text("page.css")),  # noqa: S704 - a file of this package
            script=Markup(script),  # noqa: S704 - a file of this package
            policy=f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'",
            bar_width=BAR_WIDTH,
            height=HEIGHT,
        )
    )


def _text(name: str) -> str:
    return (_FOLDER / name).read_text(encoding="utf-8")


def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(_FOLDER),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    for name in ("number", "percent", "money", "currency", "day", "moment", "duration", "change", "change_of_share"):
        environment.filters[name] = getattr(formats, name)
    return environment


def _rows(figure: Figure) -> list[Row]:
    """Return the rows of a figure, with the texts of all columns fit for the page."""
    return [
        {name: formats.sender_text(value) if isinstance(value, str) else value for name, value in row.items()}
        for row in figure.rows
    ]


def _of_period(figure: Figure, period: str) -> list[Row]:
    return [row for row in _rows(figure) if row["period"] == period]


def _chart(report: Report, names: dict[str, str], columns: dict[str, tuple[str, str | None]]) -> Chart:
    """Return the chart of some columns of the days, each of one channel or of all channels."""
    numbers: dict[tuple[str, Any], int] = {}
    for row in report.days.rows:
        for series, (column, channel) in columns.items():
            if channel in {None, row["channel"]}:
                key = series, row["day"]
                numbers[key] = numbers.get(key, 0) + row[column]
    return stack_days(report.period, list(names), numbers)


def _headlines(report: Report) -> list[Headline]:
    """Return the numbers at the top of the page."""
    now = {row["channel"]: row for row in _of_period(report.totals, "current")}
    before = {row["channel"]: row for row in _of_period(report.totals, "before")}
    headlines = [
        _count("Messages sent", now.get(None), before.get(None), "sends"),
        _share("Delivered", now.get(None), before.get(None), "delivery_rate", better=1, of="delivered", noun="message"),
        _count("People reached", now.get(None), before.get(None), "unique_delivered"),
    ]
    if now.get("email"):
        headlines += [
            _share(name, now["email"], before.get("email"), column, better=better, of=of, noun=noun)
            for name, column, better, of, noun in (
                ("Email: opened by people", "human_open_rate", 1, "unique_human_opens", "recipient"),
                ("Email: clicked by people", "human_click_rate", 1, "unique_human_clicks", "recipient"),
                ("Email: unsubscribed", "recipient_unsubscribe_rate", -1, "unique_recipient_unsubscribes", "recipient"),
                ("Email: marked as spam", "complaint_rate", -1, "complaints", "complaint"),
            )
        ]
    return headlines + _revenue_headlines(report)


def _revenue_headlines(report: Report) -> list[Headline]:
    """Return the revenue in each currency; currencies are never added up."""
    before = {(row["conversion_name"], row["currency"]): row for row in _of_period(report.revenue_totals, "before")}
    earning = [row for row in _of_period(report.revenue_totals, "current") if row["revenue"]]
    headlines = []
    for row in earning[:_HEADLINE_CURRENCIES]:
        earlier = before.get((row["conversion_name"], row["currency"]))
        change = formats.change(row["revenue"], earlier["revenue"]) if earlier else ""
        headlines.append(
            Headline(
                name=f"Revenue: {row['conversion_name']}",
                value=formats.money(row["revenue"]),
                change=change,
                before=formats.money(earlier["revenue"]) if earlier else formats.NOTHING,
                tone=_tone(row["revenue"] - (earlier["revenue"] if earlier else 0), 1) if change else "",
                note=f"{formats.number(row['conversions'])} conversion{'' if row['conversions'] == 1 else 's'}",
                unit=formats.currency(row["currency"]),
            )
        )
    return headlines


def _count(name: str, now: Row | None, before: Row | None, column: str) -> Headline:
    value = now[column] if now else 0
    earlier = before[column] if before else 0
    return Headline(name, formats.number(value), formats.change(value, earlier), formats.number(earlier), "")


def _share(name: str, now: Row | None, before: Row | None, column: str, *, better: int, of: str, noun: str) -> Headline:
    value: Decimal | None = now[column] if now else None
    earlier: Decimal | None = before[column] if before else None
    difference = Decimal(0) if value is None or earlier is None else value - earlier
    return Headline(
        name,
        formats.percent(value),
        formats.change_of_share(value, earlier),
        formats.percent(earlier),
        _tone(round(difference, 3), better),
        count(now[of], noun) if now else "",
    )


def _tone(difference: Decimal, better: int) -> str:
    if not difference:
        return ""
    return "good" if difference * better > 0 else "bad"
