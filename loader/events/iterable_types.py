"""Iterable's own kinds of events: what they are called here, and what their properties hold.

A webhook names its kind in `eventName`, an export in its `dataTypeName`; both spell it in camel case, though not always
the same one, so case never counts.
"""

import re
from collections.abc import Iterable

# What Iterable sends to Segment, and the name it has there.
SEGMENT_EVENTS = {
    "emailBounce": "Email Bounced",
    "emailSend": "Email Delivered",
    "emailClick": "Email Link Clicked",
    "emailComplaint": "Email Marked as Spam",
    "emailOpen": "Email Opened",
    "hostedUnsubscribeClick": "Hosted Unsubscribe Click",
    "inAppClick": "In App Clicked",
    "inAppDelivery": "In App Delivered",
    "inAppOpen": "In App Opened",
    "inAppSend": "In App Sent",
    "pushUninstall": "Mobile App Uninstalled",
    "pushBounce": "Push Bounced",
    "pushSend": "Push Delivered",
    "pushOpen": "Push Opened",
    "smsBounce": "SMS Bounced",
    "smsClick": "SMS Clicked",
    "smsSend": "SMS Delivered",
    "smsReceived": "SMS Received",
    "emailSubscribe": "Subscribed",
    "emailUnSubscribe": "Unsubscribed",
    "webPushClick": "Web Push Clicked",
    "webPushSend": "Web Push Delivered",
    "emailSendSkip": "Email Send Skip",
    "pushSendSkip": "Push Send Skip",
    "smsSendSkip": "SMS Send Skip",
    "inAppSendSkip": "In App Send Skip",
    "webPushSendSkip": "Web Push Send Skip",
}

# What it keeps to itself: such an event has its own name here.
_OTHERS = """
    embeddedClick embeddedImpression embeddedReceived embeddedSession embeddedSend embeddedSendSkip inAppDelete
    inAppRecall inAppClose inboxSession inboxMessageImpression journeyExit whatsAppBounce whatsAppClick whatsAppReceived
    whatsAppSeen whatsAppSend whatsAppSendSkip whatsAppUsageInfo smsUsageInfo rcsSend rcsSendSkip purchase customEvent
    unknownSession
""".split()

# Exported as well, but it holds profiles: a state, not something that happened.
PROFILES = ("user", "users")

KINDS = (*SEGMENT_EVENTS, *_OTHERS)

_ALIASES = {"blastsend": "emailSend", "triggeredsend": "emailSend", "anonsession": "unknownSession"}
_SPELLINGS = {kind.lower(): kind for kind in KINDS} | _ALIASES

# In a file's name a kind stands alone: `smsSend` is not in `smsSendSkip.csv`, nor `purchase` in `repurchased.csv`.
_IN_NAME = re.compile(
    rf"(?<![a-z])(?:{'|'.join(sorted([*_SPELLINGS, *PROFILES], key=len, reverse=True))})(?![a-z])", re.IGNORECASE
)

# Properties that are no text, where a CSV file has nothing but text. Every kind that has one gives it the same type.
NUMBERS = frozenset(
    """
    campaignId templateId workflowId channelId messageTypeId experimentId contentId catalogLookupCount
    catalogCollectionCount productRecommendationCount hrefIndex priorityLevel fromPhoneNumberId fromSMSSenderId
    smsProviderResponse.status smsProviderResponse.code smsSendCount mmsSendCount smsReceiveCount mmsReceiveCount
    emailListId
    """.split()
)
BOOLEANS = frozenset(
    """
    isBot messageContext.saveToInbox messageContext.silentInbox contentAvailable isGhostPush notificationsEnabled
    appAlreadyRunning isSMSEstimation
    """.split()
)
DOCUMENTS = frozenset(
    """
    transactionalData labels trackedLink.snippetPathBreakdown payload emailListIds userListIds channelIds messageTypeIds
    """.split()
)


def known_kind(name: str) -> str | None:
    """Return the kind a name stands for, spelled as Iterable's documents spell it; None for one nobody has listed."""
    return _SPELLINGS.get(name.lower())


def kind_of_file(path: str) -> str | None:
    """Tell from a file's name, or those of the folders it lies in, which kind of event it holds.

    Args:
        path: The file. The innermost name that says something counts, and of it the longest kind.

    Returns:
        The kind, one of `PROFILES` when the file's own name says that it holds those, or None.
    """
    for place, name in enumerate(reversed(re.split(r"[/\\]", path))):
        found = _longest(match.lower() for match in _IN_NAME.findall(name))
        if found in _SPELLINGS:
            return _SPELLINGS[found]
        # People's folders lie in one called `users` on many a machine.
        if found and place == 0:
            return found
    return None


def _longest(names: Iterable[str]) -> str:
    return max(names, key=lambda name: (name in _SPELLINGS, len(name)), default="")
