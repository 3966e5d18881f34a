"""The campaigns, journeys and mail domains of the sample events, with the rates at which recipients respond.

A coffee roaster sends ten campaigns in nine weeks, two journeys, and messages about orders. The rates are shares of the
delivered messages. Each campaign is sent once, so that a recipient counts once in its rates.
"""

from dataclasses import dataclass

SECONDS_OF_HOUR = 3600
SECONDS_OF_DAY = 24 * SECONDS_OF_HOUR


@dataclass(frozen=True)
class Workflow:
    """A journey of Iterable."""

    id: int
    name: str


@dataclass(frozen=True)
class Template:
    """The content of a message.

    Attributes:
        appeal: The factor of the campaign's rate of clicks.
    """

    id: int
    name: str
    appeal: float = 1.0


@dataclass(frozen=True)
class Campaign:
    """A campaign, its time of sending, and its recipients' responses.

    Attributes:
        channel: `email`, `push`, `sms`, `in_app` or `web_push`.
        text: The subject of an email, or the text of another message.
        path: The path of the link in the message.
        weekday: The day of sending, 0 for Monday; None for a message that something else triggers.
        week: The week of sending, from 0.
        hour: The hour of sending; of a step of a journey, the hours since the recipient entered.
        audience: The share of the channel's recipients that the campaign is sent to.
        open_rate: The share of messages that a person opens.
        click_rate: The share of messages in which a person clicks.
        order_rate: The share of clicks after which the person orders.
        order_value: The mean value of these orders.
    """

    id: int
    name: str
    channel: str
    channel_id: int
    message_type_id: int
    templates: tuple[Template, ...]
    text: str
    path: str
    open_rate: float
    click_rate: float
    order_rate: float
    order_value: float
    weekday: int | None = None
    week: int = 0
    hour: int = 0
    audience: float = 1.0
    workflow: Workflow | None = None
    experiment_id: int | None = None


@dataclass(frozen=True)
class MailDomain:
    """A domain of recipients' addresses, and the behaviour of its servers and readers.

    Attributes:
        share: The share of all recipients.
        proxy: The image proxy that fetches the pixels of opens, or None.
        scans: Whether a scanner opens each email, and follows some of its links, before the recipient does.
        block_rate: The share of emails that the domain blocks in the second half of the time.
    """

    name: str
    share: float
    proxy: str | None = None
    scans: bool = False
    block_rate: float = 0.0


MARKETING_EMAIL, TRANSACTIONAL_EMAIL, PUSH, SMS, IN_APP, WEB_PUSH = 30411, 30412, 30420, 30430, 30440, 30450
NEWSLETTER_LIST, OFFER_LIST = 812001, 812002

_WELCOME = Workflow(77012, "Welcome Journey")
_CART = Workflow(77055, "Cart Journey")

BLASTS = (
    Campaign(
        4310021, "New Roasts", "email", MARKETING_EMAIL, 41277, (Template(6120455, "New roasts"),),
        "{{firstName}}, three new roasts just landed", "roasts",
        open_rate=0.38, click_rate=0.032, order_rate=0.30, order_value=36.0, weekday=1, week=0, hour=15,
    ),
    Campaign(
        4310029, "Coffee School: Grind", "email", MARKETING_EMAIL, 41279, (Template(6120461, "Grind lesson"),),
        "Grind size in four minutes", "school/grind",
        open_rate=0.43, click_rate=0.038, order_rate=0.08, order_value=27.0, weekday=1, week=1, hour=15,
    ),
    Campaign(
        4310044, "Two for One", "email", MARKETING_EMAIL, 41278,
        (Template(6120470, "Offer A - plain"), Template(6120471, "Offer B - picture", appeal=2.2)),
        "Two bags for the price of one", "offers/two-for-one",
        open_rate=0.36, click_rate=0.027, order_rate=0.55, order_value=48.0, weekday=1, week=2, hour=9,
        experiment_id=52210,
    ),
    Campaign(
        4310052, "Flash Sale SMS", "sms", SMS, 41340, (Template(6120540, "Flash sale SMS"),),
        "20 % off today: https://www.example.com/sale Reply STOP to opt out", "sale",
        open_rate=0.0, click_rate=0.07, order_rate=0.45, order_value=41.0, weekday=5, week=2, hour=11,
    ),
    Campaign(
        4310077, "Single Origin Push", "push", PUSH, 41320, (Template(6120502, "Single origin push"),),
        "New single origins, {{firstName}}", "roasts/single-origin",
        open_rate=0.06, click_rate=0.0, order_rate=0.30, order_value=27.0, weekday=1, week=3, hour=12,
    ),
    Campaign(
        4310083, "Coffee School: Water", "email", MARKETING_EMAIL, 41279, (Template(6120511, "Water lesson"),),
        "The ingredient you forget", "school/water",
        open_rate=0.40, click_rate=0.034, order_rate=0.06, order_value=25.0, weekday=1, week=4, hour=15,
    ),
    Campaign(
        4310094, "Loyalty In-App", "in_app", IN_APP, 41360, (Template(6120580, "Loyalty card"),),
        "<h1>Ten cups, one free</h1>", "loyalty",
        open_rate=0.35, click_rate=0.08, order_rate=0.15, order_value=22.0, weekday=1, week=5, hour=8,
    ),
    Campaign(
        4310105, "Win-back", "email", MARKETING_EMAIL, 41278, (Template(6120593, "We miss you"),),
        "Your grinder misses you", "come-back",
        open_rate=0.31, click_rate=0.024, order_rate=0.35, order_value=31.0, weekday=1, week=6, hour=10, audience=0.6,
    ),
    Campaign(
        4310118, "Fresh Drop Web Push", "web_push", WEB_PUSH, 41380, (Template(6120611, "Fresh drop"),),
        "Three single origins this week", "roasts/fresh",
        open_rate=0.0, click_rate=0.04, order_rate=0.30, order_value=33.0, weekday=3, week=6, hour=19,
    ),
    Campaign(
        4310126, "Members' Sale", "email", MARKETING_EMAIL, 41278, (Template(6120620, "Members' sale"),),
        "For members: 25 % off all beans", "offers/members",
        open_rate=0.40, click_rate=0.042, order_rate=0.50, order_value=57.0, weekday=1, week=7, hour=9,
    ),
)  # fmt: skip

SHIPPED_EMAIL = Campaign(
    4199650, "Order Shipped", "email", TRANSACTIONAL_EMAIL, 41301, (Template(5990112, "Order shipped"),),
    "Your order {{orderId}} is on the way", "orders",
    open_rate=0.70, click_rate=0.20, order_rate=0.0, order_value=0.0, hour=26,
)  # fmt: skip
READY_SMS = Campaign(
    4199655, "Pickup Reminder SMS", "sms", SMS, 41341, (Template(5990140, "Pickup reminder"),),
    "Your order {{orderId}} is ready", "orders",
    open_rate=0.0, click_rate=0.10, order_rate=0.0, order_value=0.0, hour=4,
)  # fmt: skip

WELCOME_STEPS = (
    Campaign(
        4288907, "Welcome 1 - Hello", "email", MARKETING_EMAIL, 41280, (Template(6098331, "Welcome hello"),),
        "Welcome to the roastery", "welcome",
        open_rate=0.58, click_rate=0.09, order_rate=0.30, order_value=34.0, workflow=_WELCOME,
    ),
    Campaign(
        4288930, "Welcome 2 - Push", "push", PUSH, 41321, (Template(6098377, "Welcome push"),),
        "Thanks for joining", "shop",
        open_rate=0.12, click_rate=0.0, order_rate=0.20, order_value=26.0, hour=48, workflow=_WELCOME,
    ),
    Campaign(
        4288941, "Welcome 3 - First Brew", "email", MARKETING_EMAIL, 41280, (Template(6098390, "First brew"),),
        "Your first brew, step by step", "first-brew",
        open_rate=0.52, click_rate=0.07, order_rate=0.25, order_value=37.0, hour=120, workflow=_WELCOME,
    ),
    Campaign(
        4288950, "Welcome 4 - Tour", "in_app", IN_APP, 41361, (Template(6098398, "App tour"),),
        "<h1>Three things to try</h1>", "tour",
        open_rate=0.70, click_rate=0.15, order_rate=0.05, order_value=21.0, hour=168, workflow=_WELCOME,
    ),
)  # fmt: skip
CART_STEPS = (
    Campaign(
        4288980, "Cart 1 - Reminder", "email", MARKETING_EMAIL, 41281, (Template(6098470, "Cart reminder"),),
        "You left something behind", "cart",
        open_rate=0.52, click_rate=0.08, order_rate=0.40, order_value=44.0, hour=1, workflow=_CART,
    ),
    Campaign(
        4288999, "Cart 2 - Web Push", "web_push", WEB_PUSH, 41381, (Template(6098490, "Cart nudge"),),
        "Your beans are waiting", "cart",
        open_rate=0.0, click_rate=0.06, order_rate=0.30, order_value=40.0, hour=20, workflow=_CART,
    ),
    Campaign(
        4289004, "Cart 3 - SMS", "sms", SMS, 41342, (Template(6098497, "Cart SMS"),),
        "Still thinking? https://www.example.com/cart Reply STOP to opt out", "cart",
        open_rate=0.0, click_rate=0.09, order_rate=0.35, order_value=42.0, hour=44, workflow=_CART,
    ),
)  # fmt: skip

DOMAINS = (
    MailDomain("bigmail.example", 0.42, proxy="Gmail"),
    MailDomain("orchard.example", 0.20, proxy="Apple"),
    MailDomain("yonder.example", 0.14, proxy="Yahoo"),
    MailDomain("example.com", 0.11),
    MailDomain("corporate.example", 0.08, scans=True),
    MailDomain("postbox.example", 0.05, block_rate=0.24),
)

FIRST_NAMES = (
    "Aiko Anna Ben Carla David Elif Emma Farid Grace Hugo Ines Jonas Kofi Lena Maria Nadia Omar Paula Priya Samuel "
    "Tom Vera Wei Zoe"
).split()
LAST_NAMES = (
    "Adler Alvarez Becker Bianchi Brown Costa Dubois Evans Garcia Haddad Ito Jensen Kaya Lopez Mensah Novak Okafor "
    "Patel Petrov Rossi Silva Smith Tanaka Weber"
).split()
# City, region, country, time zone, and the currency of a person's orders.
PLACES = (
    ("San Francisco", "CA", "United States", "America/Los_Angeles", "USD"),
    ("Austin", "TX", "United States", "America/Chicago", "USD"),
    ("Brooklyn", "NY", "United States", "America/New_York", "USD"),
    ("Berlin", "BE", "Germany", "Europe/Berlin", "EUR"),
)
