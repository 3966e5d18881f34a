"""Addresses, secrets, signatures and waits: what every request to a receiver has in common."""

import hashlib
import hmac
import re
import socket
import threading
from base64 import b64encode
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loader.destinations.http_client import HttpClient, check_url, read_wait
from loader.destinations.model import Call, Outcome, chunks
from loader.destinations.options import Options, check_options
from loader.destinations.replies import judge
from loader.destinations.secret_files import check_reference, is_readable_by_others, read_secret
from loader.destinations.webhook import WebhookReceiver, signature_headers, webhook_id
from loader.errors import ConfigurationError, UsageError
from tests.support.receivers import Respond, receiving


def call(seq: int, body: bytes = b"{}") -> Call:
    """Return a call with a body."""
    return Call(seq, "1", "iterable", f"m{seq}", "u", "2026-03-04T10:00:00.000Z", body)


@pytest.mark.parametrize(
    "url", ["https://api.segment.io", "https://host:8443/path?token=x", "http://127.0.0.1:8080", "http://localhost/"]
)
def test_an_encrypted_address_and_one_of_this_machine_are_accepted(url: str) -> None:
    """A final slash is removed."""
    assert check_url(url, allow_http=False) == url.rstrip("/")


@pytest.mark.parametrize(
    "url",
    [
        "http://10.0.0.1/hook",
        "https://user:secret@host/",
        "ftp://host",
        "host/path",
        "https://",
        "https://ho st/secret",
        "https://host:port/",
    ],
)
def test_the_error_of_a_wrong_address_does_not_repeat_its_secret(url: str) -> None:
    """An address may contain a secret."""
    with pytest.raises(UsageError) as caught:
        check_url(url, allow_http=False)
    assert "secret" not in str(caught.value).replace("place of the secret", "")


def test_an_unencrypted_connection_in_a_private_network_must_be_allowed() -> None:
    """For Iterable it never is."""
    assert check_url("http://10.0.0.1", allow_http=True) == "http://10.0.0.1"
    with pytest.raises(UsageError, match="not be encrypted"):
        check_options("iterable", Options(key="env:K", url="http://10.0.0.1", allow_http=True))


@pytest.mark.parametrize(
    ("kind", "options", "problem"),
    [
        ("segment", Options(key="env:K"), "--url"),
        ("segment", Options(url="https://host"), "--key"),
        ("segment", Options(url="https://host", key="sk_live_secret"), "by its place"),
        ("webhook", Options(), "--url"),
        ("webhook", Options(url="https://host", secrets=("whsec_abc",)), "by its place"),
        ("files", Options(), "--folder"),
        ("files", Options(folder="x", lanes=2), "one lane"),
        ("iterable", Options(), "--key"),
        ("iterable", Options(key="env:K", prefer_user_id=True), "--prefer-user-id"),
        ("iterable", Options(key="env:K", lanes=2), "one lane"),
    ],
)
def test_settings_that_are_missing_or_wrong_are_named(kind: str, options: Options, problem: str) -> None:
    """A key that was given instead of its place is not repeated."""
    with pytest.raises(UsageError) as caught:
        check_options(kind, options)
    assert problem in str(caught.value)
    assert "sk_live" not in str(caught.value)
    assert "whsec" not in str(caught.value)


def test_a_secret_is_read_from_its_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every read looks again, so a new secret works at once."""
    place = tmp_path / "key"
    place.write_text("first\n")
    reference = check_reference(f"file:{place}")
    assert read_secret(reference) == "first"
    place.write_text("second")
    assert read_secret(reference) == "second"
    monkeypatch.setenv("PLACE_OF_KEY", "third")
    assert read_secret("env:PLACE_OF_KEY") == "third"
    place.chmod(0o600)
    assert not is_readable_by_others(reference)
    place.chmod(0o644)
    assert is_readable_by_others(reference)
    place.write_text("")
    for wrong in (reference, f"file:{tmp_path}/none", "env:NOT_THERE"):
        with pytest.raises(ConfigurationError):
            read_secret(wrong)


@pytest.mark.parametrize("reference", ["env:", "file:relative", "https://x", "secret", "file:"])
def test_the_place_of_a_secret_must_be_a_file_or_a_variable(reference: str) -> None:
    """The message does not repeat the text, which may be the secret."""
    with pytest.raises(UsageError) as caught:
        check_reference(reference)
    assert "relative" not in str(caught.value)


def test_a_webhook_is_signed_as_the_specification_says() -> None:
    """Each secret gives a signature over id, time and body."""
    secrets = ["whsec_" + b64encode(b"0123456789abcdef").decode(), "any text"]
    headers = signature_headers("msg_1", 1_614_265_330, b'{"test": 2432232314}', secrets)
    signed = b'msg_1.1614265330.{"test": 2432232314}'
    expected = [
        b64encode(hmac.new(key, signed, hashlib.sha256).digest()).decode() for key in (b"0123456789abcdef", b"any text")
    ]
    assert headers == {
        "webhook-id": "msg_1",
        "webhook-timestamp": "1614265330",
        "webhook-signature": " ".join(f"v1,{each}" for each in expected),
    }


def test_the_published_example_of_standard_webhooks_verifies() -> None:
    """Secret, body and signature stand in the documentation of the specification's libraries."""
    headers = signature_headers(
        "msg_p5jXN8AQM9LWM0D4loKWxJek",
        1_614_265_330,
        b'{"test": 2432232314}',
        ["whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"],
    )
    assert headers["webhook-signature"] == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="


def test_segments_signature_has_the_value_of_its_example(monkeypatch: pytest.MonkeyPatch) -> None:
    """The HMAC-SHA1 of the body, in lower-case hexadecimal digits."""
    monkeypatch.setenv("SHARED_SECRET", "shhh")
    body = b'{"type":"delete","userId":"019mr8mf4r","timestamp":"2012-12-02T00:30:08.276Z"}'
    with receiving() as receiver:
        options = Options(url=receiver.url, segment_signature="env:SHARED_SECRET")
        sender = WebhookReceiver(options, lambda: datetime.now(UTC))
        assert sender.send([call(1, body)], window="w").outcome is Outcome.TAKEN
        sender.close()
    [request] = receiver.requests
    assert request.headers["x-signature"] == "ec890cbd94f0c6f339496c0a426896ffb0bada93"


def test_a_secret_that_is_not_base64_is_a_wrong_setting() -> None:
    """The destination is paused then, and the message does not repeat the secret."""
    with pytest.raises(ConfigurationError) as caught:
        signature_headers("m", 1, b"", ["whsec_*"])
    assert "*" not in str(caught.value)


def test_the_id_of_a_batch_comes_from_its_calls() -> None:
    """A repeated batch has the same id."""
    assert webhook_id([call(1), call(2)]) == webhook_id([call(1), call(2)])
    assert webhook_id([call(1), call(2)]) != webhook_id([call(1), call(3)])


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        (None, None),
        ("7", 7.0),
        ("0", 0.0),
        ("1.5", 1.5),
        ("86400", 3600.0),
        ("-1", None),
        ("soon", None),
        ("Thu, 01 Jan 1970 00:16:50 GMT", 10.0),
        ("Thu, 01 Jan 1970 00:00:00 GMT", 0.0),
        ("Thu, 01 Jan 2060 00:00:00 GMT", 3600.0),
    ],
)
def test_a_wait_is_read_as_seconds_or_as_a_date(header: str | None, seconds: float | None) -> None:
    """At most an hour."""
    assert read_wait(header, now=1000.0) == seconds


@pytest.mark.parametrize(
    ("status", "outcome"),
    [
        (200, Outcome.TAKEN),
        (204, Outcome.TAKEN),
        (302, Outcome.CONFIG),
        (400, Outcome.REFUSED),
        (401, Outcome.CONFIG),
        (403, Outcome.CONFIG),
        (404, Outcome.CONFIG),
        (408, Outcome.AGAIN),
        (409, Outcome.REFUSED),
        (410, Outcome.CONFIG),
        (413, Outcome.REFUSED),
        (422, Outcome.REFUSED),
        (425, Outcome.AGAIN),
        (429, Outcome.AGAIN),
        (500, Outcome.AGAIN),
        (599, Outcome.AGAIN),
    ],
)
def test_the_status_alone_decides_the_outcome_of_an_answer(status: int, outcome: Outcome) -> None:
    """The body may say anything."""
    with receiving() as receiver:
        receiver.answer = lambda _: Respond(status, b'{"code": "Success"}' if status != 204 else b"")
        client = HttpClient(receiver.url)
        answer = client.post("/path", b"{}", {"X": "y"})
        client.close()
    assert answer.status == status
    assert judge(answer, "host").outcome is outcome


def test_no_redirect_is_followed() -> None:
    """The key goes to the configured address alone."""
    with receiving() as receiver, receiving() as elsewhere:
        receiver.answer = lambda _: Respond(307, headers={"Location": elsewhere.url})
        client = HttpClient(receiver.url)
        assert client.post("", b"{}", {"Api-Key": "k"}).status == 307
        client.close()
        assert elsewhere.requests == []


def test_requests_without_an_answer_or_a_connection_are_sent_again() -> None:
    """The reason names the host and the failure, and no part of the address."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        client = HttpClient(f"http://127.0.0.1:{port}/path?token=secret", silence_seconds=0.2)
        silent = client.post("", b"{}", {})
        client.close()
    gone = HttpClient(f"http://127.0.0.1:{port}/path?token=secret")
    refused = gone.post("", b"{}", {})
    gone.close()
    assert silent.failure == "no answer from 127.0.0.1: the receiver was silent for too long"
    assert refused.failure == "no answer from 127.0.0.1: a connection cannot be made"
    for answer in (silent, refused):
        assert answer.status == 0
        assert judge(answer, "host").outcome is Outcome.AGAIN


def test_a_request_whose_tls_handshake_failed_is_sent_again() -> None:
    """A receiver that restarts may break off in the middle of the greeting, so the same batch goes again."""
    with receiving() as plain:
        client = HttpClient(plain.url.replace("http://", "https://"))
        answer = client.post("", b"{}", {})
        client.close()
    assert answer.failure == "no encrypted connection to 127.0.0.1"
    assert judge(answer, "host").outcome is Outcome.AGAIN


@pytest.mark.parametrize("content", [None, "no certificate"])
def test_certificates_that_cannot_be_read_are_a_wrong_setting(tmp_path: Path, content: str | None) -> None:
    """The message names the file."""
    place = tmp_path / "ca.pem"
    if content:
        place.write_text(content)
    with pytest.raises(ConfigurationError, match=re.escape(f"The certificates in {place} cannot be read")):
        HttpClient("https://localhost", str(place))


@given(st.text() | st.from_regex(r"[A-Z][a-z]{2}, \d{1,2} [A-Z][a-z]{2} \d{2,4} \d\d:\d\d:\d\d( GMT| [+-]\d{4})?"))
def test_any_wait_is_between_nothing_and_an_hour(header: str) -> None:
    """The receiver may write any text in the header."""
    seconds = read_wait(header, now=1000.0)
    assert seconds is None or 0 <= seconds <= 3600


def test_a_date_to_wait_for_is_compared_with_the_receivers_clock() -> None:
    """The clock of this machine may be wrong."""
    with receiving() as receiver:
        times = {"Date": "Thu, 01 Jan 1970 00:00:10 GMT", "Retry-After": "Thu, 01 Jan 1970 00:01:00 GMT"}
        receiver.answer = lambda _: Respond(429, headers=times)
        client = HttpClient(receiver.url)
        assert client.post("", b"{}", {}).wait_seconds == 50
        client.close()


@pytest.mark.parametrize(
    ("answer", "outcome"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf", Outcome.AGAIN),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n", Outcome.AGAIN),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", Outcome.AGAIN),
        (b"HTTP/1.1 2", Outcome.AGAIN),
        (b"SSH-2.0-OpenSSH_9.6\r\n", Outcome.AGAIN),
        (b"HTTP/1.1 200 OK\r\nX: " + b"x" * 200_000 + b"\r\n\r\n", Outcome.AGAIN),
        (b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 4\r\n\r\nnone", Outcome.TAKEN),
        (b"HTTP/1.1 200 OK\r\nContent-Type: image/png\r\n\r\n\x00\xff", Outcome.TAKEN),
        (b"HTTP/1.1 200 OK\r\n\r\n" + b"x" * 5_000_000, Outcome.TAKEN),
    ],
)
def test_an_answer_counts_if_it_is_whole(answer: bytes, outcome: Outcome) -> None:
    """Its form and its content do not matter: the status decides."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            taken, _ = server.accept()
            with taken, suppress(OSError):
                # A connection that ends with unread bytes is reset, and the answer would be lost.
                request = b""
                while not request.endswith(b"\r\n\r\n{}"):
                    request += taken.recv(65_536)
                taken.sendall(answer)

        thread = threading.Thread(target=serve)
        thread.start()
        client = HttpClient(f"http://127.0.0.1:{server.getsockname()[1]}")
        assert judge(client.post("", b"{}", {}), "host").outcome is outcome
        client.close()
        thread.join()


def test_a_request_to_an_unknown_host_is_sent_again() -> None:
    """The reason names the host."""
    client = HttpClient("https://host.invalid")
    answer = client.post("", b"{}", {})
    client.close()
    assert answer.failure == "no answer from host.invalid: the name of the host is unknown"
    assert judge(answer, "host").outcome is Outcome.AGAIN


def test_a_secret_with_a_line_break_is_a_wrong_setting() -> None:
    """A line break in a key would end the header."""
    client = HttpClient("http://127.0.0.1:9")
    with pytest.raises(ConfigurationError) as caught:
        client.post("", b"", {"Api-Key": "a\r\nX: b"})
    assert "X: b" not in str(caught.value)


def test_calls_are_divided_by_number_and_size() -> None:
    """A call over the size is alone."""
    calls = [call(n, b"x" * size) for n, size in enumerate((10, 10, 10, 500, 10))]
    assert [[each.seq for each in run] for run in chunks(calls, 2, 100)] == [[0, 1], [2], [3], [4]]
    assert [len(run) for run in chunks(calls, 100, 10_000)] == [5]
    assert list(chunks([], 10, 10)) == []
