"""Write keys in calls and bodies are found and removed, whatever else is wrong with the text."""

import json

import pytest

from loader.events.model import Event, Refused
from loader.events.segment import parse_line, parse_lines
from loader.events.tracking_api import Limits, parse_calls, read_batch, read_call
from loader.events.written_keys import blank_write_keys, find_write_key, take_write_key

KEY = "k1-SECRET_key"
CALL = '"userId":"u","event":"E","messageId":"m"'

# Other errors of a call, in front of its other fields.
FLAWS = {
    "nothing": "",
    "lone surrogate": r'"x":"cut \ud83d",',
    "lone surrogate in a name": r'"cut \ud83d":1,',
    "NUL": r'"x":"\u0000",',
    "depth": f'"x":{"[" * 2000}{"]" * 2000},',
    "no JSON": '"x":tru,',
    "cut short": '"x":{"y":',
    "no user": '"userId":5,',
    "a large number": '"x":1e400,',
    "a type": '"type":"identify",',
}
SPELLINGS = {
    "plain": f'"writeKey":"{KEY}"',
    "spaced": f'"writeKey" :\t"{KEY}"',
    "as numbers": rf'"write\u004bey":"{KEY}"',
    "doubled": f'"writeKey":"{KEY}","writeKey":"{KEY}"',
}


def kept(messages: list[Event | Refused]) -> bytes:
    """Return everything that the database would store of messages."""
    return b"\n".join(message.payload for message in messages)


@pytest.mark.parametrize("spelling", SPELLINGS.values(), ids=SPELLINGS)
@pytest.mark.parametrize("flaw", FLAWS.values(), ids=FLAWS)
def test_c3_no_write_key_is_kept_of_any_call(flaw: str, spelling: str) -> None:
    """Events and refusals contain no key, for each entrance that reads tracking calls."""
    for text in (f"{{{spelling},{flaw}{CALL}}}", f"{{{CALL},{flaw}{spelling}}}"):
        body = text.encode()
        call = read_call(body, "track", Limits())
        assert call.write_key == KEY
        events, refused = parse_calls([call], 1)
        messages = [*events, *refused, *parse_line(body, 0), *parse_lines(body + b"\n" + body, 0)]
        if flaw != FLAWS["cut short"]:
            _, calls = read_batch(b'{"batch":[%b]}' % body, Limits())
            assert [each.write_key for each in calls] == [KEY]
            events, refused = parse_calls(calls, 1)
            messages += [*events, *refused]
        assert len(messages) >= 3
        assert KEY.encode() not in kept(messages)


def test_c3_no_write_key_is_kept_of_a_batch_array_or_text() -> None:
    """The line holds a batch, an array of calls or a single value."""
    item = {"writeKey": KEY, "userId": "u"}
    for body in ({"batch": [item]}, [item], json.dumps(item)):
        messages = list(parse_line(json.dumps(body).encode(), 0))
        assert messages
        assert KEY.encode() not in kept(messages)


def test_a_property_called_write_key_stays() -> None:
    """Such a property is not the sender's key. It stays in a call with a key too, and in a repaired call."""
    for flaw in ("", r',"x":"\ud83d"'):
        text = f'{{{CALL},"type":"track","properties":{{"writeKey":"mine"}}{flaw},"writeKey":"{KEY}"}}'
        event = next(m for m in parse_line(text.encode(), 0) if isinstance(m, Event))
        assert json.loads(event.payload)["properties"] == {"writeKey": "mine"}


def test_a_call_without_a_key_keeps_its_bytes() -> None:
    """The bytes stay, whatever the call contains."""
    for text in (b'{ "a" : 1 }', rb'{"a":"\u0041"}', b'{"writeKeys":1}', b'{"properties":{"writeKey":1}}', b"", b"7"):
        assert take_write_key(text) == ("", text)


@pytest.mark.parametrize(
    ("text", "key", "left"),
    [
        (b'{"writeKey" : "k1","batch":{', "k1", b'{"writeKey" : "","batch":{'),
        (b'{"batch":[{"writeKey":"a"},{"writeKey":"b"}', "a", b'{"batch":[{"writeKey":""},{"writeKey":""}'),
        (b'{"batch":{', "", b'{"batch":{'),
        (b'{"writeKey":"k1', "k1", b'{"writeKey":"'),
        (b'{"writeKey":"k\\u0031"', "k1", b'{"writeKey":""'),
        (b"{writeKey: 'k1', batch", "k1", b"{writeKey: '', batch"),
        (b"writeKey=k1&batch", "k1", b"writeKey=&batch"),
        (rb'"{\"writeKey\":\"k1\",\"a\":1', "k1", rb'"{\"writeKey\":\"\",\"a\":1'),
        (rb'{"\u0077rite\u004Bey":"k1"', "k1", rb'{"\u0077rite\u004Bey":""'),
        (b'{"writeKey":null,"a":', "", b'{"writeKey":null,"a":'),
        (b'{"overwriteKey":"a"', "", b'{"overwriteKey":"a"'),
    ],
)
def test_c3_a_write_key_in_an_unreadable_text_is_found_and_removed(text: bytes, key: str, left: bytes) -> None:
    """The text can then be kept, and its source is known."""
    assert find_write_key(text) == key
    assert blank_write_keys(text) == left
