"""Finds the sender of a request: reads its write keys and determines its client address.

Iterable sends a token as the value of a header, alone or after the name of a scheme. Segment's libraries use Basic
authentication with the key as the user. All these values are write keys.
"""

import binascii
from base64 import b64decode
from collections.abc import Sequence
from functools import lru_cache
from ipaddress import IPv4Address, IPv4Network, IPv6Network, ip_address, ip_network
from urllib.parse import parse_qs

from loader.collector.http import Scope, header
from loader.errors import UsageError

_SCHEMES = frozenset({b"basic", b"bearer", b"oauth2", b"token"})


def basic_key(scope: Scope) -> str:
    """Return the write key of Basic authentication, with or without a colon after the key; empty if there is no key."""
    for name, value in scope["headers"]:
        if name == b"authorization":
            return _basic_user(value)
    return ""


@lru_cache(maxsize=1024)
def _basic_user(value: bytes) -> str:
    scheme, _, token = value.partition(b" ")
    if scheme.lower() != b"basic":
        return ""
    return _decoded(token.strip()).partition(b":")[0].decode(errors="replace")


def shown_keys(scope: Scope, custom_header: bytes) -> tuple[str, ...]:
    """Return all values in a webhook's request that may be its write key, the likeliest first.

    The operator of the collector chooses the name of a further header with the key, given here in lower case.
    """
    return _keys_of(header(scope, custom_header), header(scope, b"authorization"), scope["query_string"])


@lru_cache(maxsize=1024)
def _keys_of(own: bytes, authorization: bytes, query: bytes) -> tuple[str, ...]:
    keys = [own] if own else []
    authorization = authorization.strip()
    scheme, _, token = authorization.partition(b" ")
    token = token.strip()
    if scheme.lower() in _SCHEMES and token:
        if scheme.lower() == b"basic":
            # The key may be the user, the password, or both.
            user, _, password = _decoded(token).partition(b":")
            keys += [part for part in (user, password) if part]
        keys.append(token)
    if authorization:
        keys.append(authorization)
    shown = [key.decode(errors="replace") for key in keys]
    return (*shown, *parse_qs(query.decode(errors="replace")).get("writeKey", ()))


def _decoded(value: bytes) -> bytes:
    try:
        return b64decode(value + b"=" * (-len(value) % 4), validate=True)
    except (binascii.Error, ValueError):
        return b""


def trusted_networks(listed: str) -> list[IPv4Network | IPv6Network]:
    """Parse a list of addresses and networks, separated by commas.

    Raises:
        UsageError: An entry is neither an address nor a network.
    """
    try:
        return [ip_network(each.strip(), strict=False) for each in listed.split(",") if each.strip()]
    except ValueError as error:
        raise UsageError(f"LOADER_TRUSTED_PROXIES cannot be read: {error}.") from None


def client_address(scope: Scope, trusted: Sequence[IPv4Network | IPv6Network]) -> str:
    """Return the IPv4 address of a request's client; empty if the address is of another kind or unknown.

    The `X-Forwarded-For` of trusted proxies is believed.
    """
    client = scope.get("client")
    if not client:
        return ""
    hops = [client[0]]
    if forwarded := header(scope, b"x-forwarded-for"):
        hops += [hop.strip() for hop in reversed(forwarded.decode(errors="replace").split(","))]
    for hop in hops:
        try:
            address = ip_address(hop)
        except ValueError:
            return ""
        # A socket that listens on IPv4 and IPv6 reports IPv4 addresses as IPv6 addresses.
        address = getattr(address, "ipv4_mapped", None) or address
        if not any(address in network for network in trusted):
            return str(address) if isinstance(address, IPv4Address) else ""
    # All addresses belong to trusted proxies, so the farthest address counts as the client's.
    return str(address) if isinstance(address, IPv4Address) else ""
