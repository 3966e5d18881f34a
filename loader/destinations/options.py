"""Defines the settings of a destination, and checks them for each kind.

The database holds the settings as JSON. The settings name secrets by their places, and never contain a secret.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import msgspec

from loader.destinations.http_client import check_url
from loader.destinations.secret_files import check_reference, read_secret
from loader.errors import ConfigurationError, UsageError

KINDS = ("segment", "webhook", "files", "iterable")

ITERABLE_URLS = {"us": "https://api.iterable.com", "eu": "https://api.eu.iterable.com"}


class Options(msgspec.Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    """The settings of a destination.

    Attributes:
        url: The address of the receiver, or the place of the address.
        key: The place of the key.
        secrets: The places of the secrets that sign a webhook. A place has one secret a line.
        segment_signature: The place of a secret for `X-Signature`, as Segment signs.
        allow_http: Whether the connection may be unencrypted outside this machine.
        ca_file: A file with certificates to trust.
        folder: The folder of files.
        lanes: Number of requests that may be under way at once; calls of one user stay in order.
        rate: Largest number of requests a second; 0 for no limit.
        batch: Largest number of calls in a request; 0 for the kind's own.
        region: The data centre of an Iterable project.
        project: The type of an Iterable project.
        merge_nested_objects: Whether Iterable merges objects of a profile instead of replacing them.
        prefer_user_id: Whether an e-mail project makes users from user ids.
        create_fields: Whether Iterable may make fields; None leaves the choice to the project.
        carts: The events that update a cart.
        pages: The page and screen calls that become events.
        alias: Whether an alias call between two e-mail addresses changes the address.
        group: Whether a group call writes its traits into the profile.
        purchase_event: The name of the event that is a purchase.
        cart_event: The name of the event that updates the cart.
        nulls: Whether fields without a value are sent.
        long: The treatment of texts that are too long for a field.
    """

    url: str = ""
    key: str = ""
    secrets: tuple[str, ...] = ()
    segment_signature: str = ""
    allow_http: bool = False
    ca_file: str = ""
    folder: str = ""
    lanes: int = 1
    rate: float = 0.0
    batch: int = 0
    region: Literal["us", "eu"] = "us"
    project: Literal["hybrid", "userid", "email"] = "hybrid"
    merge_nested_objects: bool = False
    prefer_user_id: bool = False
    create_fields: bool | None = None
    carts: Literal["off", "on", "classic"] = "off"
    pages: Literal["off", "named", "all"] = "off"
    alias: Literal["off", "email"] = "off"
    group: Literal["off", "fields"] = "off"
    purchase_event: str = "Order Completed"
    cart_event: str = "Cart Updated"
    nulls: Literal["omit", "send"] = "omit"
    long: Literal["refuse", "cut"] = "refuse"


def read_options(stored: Mapping[str, Any]) -> Options:
    """Return the settings that the database holds."""
    return msgspec.convert(stored, Options)


def stored_options(options: Options) -> dict[str, Any]:
    """Return settings in the form for the database."""
    stored: dict[str, Any] = msgspec.to_builtins(options)
    return stored


def check_options(kind: str, options: Options) -> Options:
    """Return the settings of a new destination, complete and checked.

    Raises:
        UsageError: A setting is missing, wrong, or belongs to another kind.
    """
    for reference in (options.key, *options.secrets, options.segment_signature):
        if reference:
            check_reference(reference)
    if options.lanes > 1 and kind in {"files", "iterable"}:
        raise UsageError(f"A destination of the kind {kind} has one lane, so that its calls stay in order.")
    if options.ca_file:
        options = msgspec.structs.replace(options, ca_file=str(Path(options.ca_file).absolute()))
    match kind:
        case "files":
            if not options.folder:
                raise UsageError("Give the folder of the files with --folder.")
            return msgspec.structs.replace(options, folder=str(Path(options.folder).absolute()))
        case "segment":
            _require(options.url, "--url, such as https://api.segment.io")
            _require(options.key, "--key, the place of the write key, such as env:SEGMENT_KEY")
        case "webhook":
            _require(options.url, "--url, the address of the receiver")
        case "iterable":
            if options.prefer_user_id and options.project != "email":
                raise UsageError("--prefer-user-id is for e-mail projects. Other projects find users by both ids.")
            _require(options.key, "--key, the place of the API key, such as env:ITERABLE_KEY")
    if options.url and not is_place(options.url):
        check_url(options.url, allow_http=options.allow_http and kind != "iterable")
    return options


def receiver_url(options: Options, *, allow_http: bool | None = None) -> str:
    """Return the address of a receiver, from its place if the settings name a place.

    Raises:
        ConfigurationError: The place has no address, or the address is not valid.
    """
    url = read_secret(options.url) if is_place(options.url) else options.url
    try:
        return check_url(url, allow_http=options.allow_http if allow_http is None else allow_http)
    except UsageError as error:
        raise ConfigurationError(str(error)) from None


def is_place(url: str) -> bool:
    """Return whether a setting names the place of an address, because the address itself is a secret."""
    return url.startswith(("env:", "file:"))


def _require(value: str, name: str) -> None:
    if not value:
        raise UsageError(f"Give {name}.")
