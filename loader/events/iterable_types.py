"""Lists Iterable's kinds of events with their names here, and the types of their properties.

A webhook has its kind in `eventName`, and an export in `dataTypeName`. Both use camel case, but not always the same
spelling, so comparisons ignore case.
"""

import re
from collections.abc import Iterable

# Kinds of events that Iterable sends to Segment, and their names there.
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

# Kinds of events that Iterable does not send to Segment. They keep their own names here.
_OTHERS = """
    embeddedClick embeddedImpression embeddedReceived embeddedSession embeddedSend embeddedSendSkip inAppDelete
    inAppRecall inAppClose inboxSession inboxMessageImpression journeyExit whatsAppBounce whatsAppClick whatsAppReceived
    whatsAppSeen whatsAppSend whatsAppSendSkip whatsAppUsageInfo smsUsageInfo rcsSend rcsSendSkip purchase customEvent
    unknownSession
""".split()

# Iterable also exports profiles of users, which are states and not events.
PROFILES = ("user", "users")

KINDS = (*SEGMENT_EVENTS, *_OTHERS)

_ALIASES = {"blastsend": "emailSend", "triggeredsend": "emailSend", "anonsession": "unknownSession"}
_SPELLINGS = {kind.lower(): kind for kind in KINDS} | _ALIASES

# A kind in the name of a file is a whole word: `smsSend` does not match `smsSendSkip.csv`.
_IN_NAME = re.compile(
    rf"(?<![a-z])(?:{'|'.join(sorted([*_SPELLINGS, *PROFILES], key=len, reverse=True))})(?![a-z])", re.IGNORECASE
)

# Properties that are not text, although a CSV file contains only text. A property has the same type in all kinds.
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
    """Return the kind of a name in the spelling of Iterable's documents; None for an unknown kind."""
    return _SPELLINGS.get(name.lower())


def kind_of_file(path: str) -> str | None:
    """Return the kind of event in a file, from the names of the file and its folders.

    Args:
        path: The file. The innermost name with a kind counts, and the longest kind in that name.

    Returns:
        The kind, a name of `PROFILES` if the file's own name contains it, or None.
    """
    for place, name in enumerate(reversed(re.split(r"[/\\]", path))):
        found = _longest(match.lower() for match in _IN_NAME.findall(name))
        if found in _SPELLINGS:
            return _SPELLINGS[found]
        # Home folders of people often lie in a folder named `users`, so only the file's own name counts.
        if found and place == 0:
            return found
    return None


def _longest(names: Iterable[str]) -> str:
    return max(names, key=lambda name: (name in _SPELLINGS, len(name)), default="")
