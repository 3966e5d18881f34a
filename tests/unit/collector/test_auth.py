"""The sender of a request: its keys and its address."""

from base64 import b64encode
from typing import Any

import pytest

from loader.collector.auth import basic_key, client_address, shown_keys, trusted_networks
from loader.errors import UsageError


def request(query: bytes = b"", client: str | None = "192.0.2.1", **headers: str) -> dict[str, Any]:
    """Return a request with headers."""
    return {
        "headers": [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()],
        "query_string": query,
        "client": (client, 1234) if client else None,
    }


def basic(text: str) -> str:
    """Return the header of Basic authentication."""
    return "Basic " + b64encode(text.encode()).decode()


@pytest.mark.parametrize(
    ("shown", "key"),
    [
        ("Basic YWJjMTIzOg==", "abc123"),
        (basic("abc123"), "abc123"),
        (basic("abc123:secret"), "abc123"),
        ("basic YWJjMTIzOg==", "abc123"),
        ("BASIC  YWJjMTIzOg==", "abc123"),
        ("Basic YWJjMTIzOg", "abc123"),
        ("Basic", ""),
        ("Basic ", ""),
        ("Basic ***", ""),
        ("Bearer YWJjMTIzOg==", ""),
        ("YWJjMTIzOg==", ""),
        ("", ""),
    ],
)
def test_the_key_is_the_user_of_basic_authentication(shown: str, key: str) -> None:
    """The key may have a colon and padding or not. No other text counts as a key."""
    assert basic_key(request(authorization=shown)) == key


@pytest.mark.parametrize(
    ("headers", "query"),
    [
        ({"authorization": "k1"}, b""),
        ({"authorization": "Bearer k1"}, b""),
        ({"authorization": "bearer  k1 "}, b""),
        ({"authorization": "Token k1"}, b""),
        ({"authorization": "OAuth2 k1"}, b""),
        ({"authorization": basic("k1")}, b""),
        ({"authorization": basic("k1:")}, b""),
        ({"authorization": basic(":k1")}, b""),
        ({"authorization": basic("segment:k1")}, b""),
        ({"x_token": "k1"}, b""),
        ({}, b"writeKey=k1"),
        ({}, b"a=b&writeKey=k1&writeKey=k2"),
        ({"authorization": "Bearer other", "x_token": "k1"}, b""),
    ],
)
def test_a_webhook_may_have_its_key_in_headers_or_the_query(headers: dict[str, str], query: bytes) -> None:
    """Each sender may use its own form."""
    assert "k1" in list(shown_keys(request(query, **headers), b"x-token"))


def test_the_parts_of_basic_authorization_come_before_the_whole_header() -> None:
    """The first value is nearly always the key, so that the other values need no lookup."""
    whole = basic("k1:")
    assert shown_keys(request(authorization=whole), b"x-token") == ("k1", whole.removeprefix("Basic "), whole)


def test_a_repeated_header_is_one_joined_value() -> None:
    """A proxy and a sender that both set the header must not decide the source by their order."""
    twice = {"headers": [(b"authorization", b"k1"), (b"authorization", b"k2")], "query_string": b""}
    assert shown_keys(twice, b"x-token") == ("k1, k2",)


def test_a_key_in_an_unconfigured_header_does_not_count() -> None:
    """A key in a header that is not configured does not count either."""
    assert list(shown_keys(request(x_other="k1"), b"x-token")) == []


@pytest.mark.parametrize(
    ("client", "forwarded", "address"),
    [
        ("192.0.2.1", None, "192.0.2.1"),
        ("192.0.2.1", "198.51.100.7", "192.0.2.1"),
        ("10.0.0.1", None, "10.0.0.1"),
        ("10.0.0.1", "198.51.100.7", "198.51.100.7"),
        ("10.0.0.1", "203.0.113.9, 198.51.100.7", "198.51.100.7"),
        ("10.0.0.1", "203.0.113.9, 198.51.100.7, 10.0.0.2", "198.51.100.7"),
        ("10.0.0.1", "10.0.0.3", "10.0.0.3"),
        ("10.0.0.1", "unknown", ""),
        ("10.0.0.1", "198.51.100.7, unknown", ""),
        ("10.0.0.1", "2001:db8::1", ""),
        ("::1", "198.51.100.7", "198.51.100.7"),
        ("2001:db8::1", None, ""),
        ("::ffff:192.0.2.1", None, "192.0.2.1"),
        ("::ffff:10.0.0.1", "198.51.100.7", "198.51.100.7"),
        (None, "198.51.100.7", ""),
    ],
)
def test_only_a_trusted_proxy_may_give_the_address_of_a_client(
    client: str | None, forwarded: str | None, address: str
) -> None:
    """The nearest address that is not a trusted proxy counts, and only if it is an IPv4 address."""
    headers = {"x_forwarded_for": forwarded} if forwarded else {}
    assert client_address(request(client=client, **headers), trusted_networks("10.0.0.0/8, ::1")) == address


def test_an_invalid_network_of_trusted_proxies_is_an_error() -> None:
    """The error comes at the start and names the setting. Bits beyond the mask are accepted."""
    assert [str(network) for network in trusted_networks("10.1.2.3/8,,::1")] == ["10.0.0.0/8", "::1/128"]
    with pytest.raises(UsageError, match="LOADER_TRUSTED_PROXIES"):
        trusted_networks("proxy.example.com")
