"""The messages of a control link: all survive, newer ones are skipped, none is too long."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nodepass.wire.native.messages import (
    _TYPES,
    MAX_HELLO,
    MAX_MESSAGE,
    About,
    Answer,
    Hello,
    Kind,
    Leave,
    Message,
    MessageError,
    MessageReader,
    Ping,
    Pong,
    decode,
    encode,
    expect,
    framed,
)


def _values(attribute: Any) -> st.SearchStrategy[Any]:
    kind, limit = attribute.metadata["kind"], attribute.metadata["limit"]
    if kind is Kind.NUMBER:
        return st.integers(0, 2 ** (8 * limit) - 1)
    if kind is Kind.BYTES:
        return st.binary(max_size=limit)
    # What fits whatever its characters are.
    return st.text(st.characters(exclude_categories=["Cs"]), max_size=limit // 4)


def _of(cls: type[Message]) -> st.SearchStrategy[Message]:
    fields = attrs.fields(cls)
    return st.builds(cls, **{field.name: _values(field) for field in fields})


MESSAGES = st.sampled_from(list(_TYPES.values())).flatmap(_of)


@given(MESSAGES)
def test_messages_survive(message: Message) -> None:
    """Every message of any type comes out as it went in, within the longest length."""
    raw = encode(message)
    assert len(raw) - 2 <= MAX_MESSAGE
    assert decode(raw[2:]) == message


@given(_of(Hello), _of(Answer))
def test_what_comes_before_the_proof_is_short(hello: Message, answer: Message) -> None:
    """The longest Hello and Answer fit into what an unproven peer may send."""
    assert len(encode(hello)) - 2 <= MAX_HELLO
    assert len(encode(answer)) - 2 <= MAX_HELLO


@given(st.lists(MESSAGES, max_size=5), st.data())
def test_messages_survive_any_cut(messages: list[Message], data: st.DataObject) -> None:
    """The reader gives the same messages wherever the stream is cut."""
    stream = b"".join(map(encode, messages))
    cuts = data.draw(st.lists(st.integers(0, len(stream)), max_size=10).map(sorted))
    reader = MessageReader(MAX_MESSAGE)
    got = []
    for a, b in pairwise([0, *cuts, len(stream)]):
        reader.feed(stream[a:b])
        while (body := reader.next()) is not None:
            got.append(decode(body))
    assert got == messages
    assert len(reader) == 0


@given(_of(Hello))
def test_a_hello_survives_a_cut_at_every_byte(hello: Message) -> None:
    """Nothing comes out before the last byte, and then the message does."""
    reader = MessageReader()
    raw = encode(hello)
    for byte in raw[:-1]:
        reader.feed(bytes((byte,)))
        assert reader.next() is None
    reader.feed(raw[-1:])
    body = reader.next()
    assert body is not None
    assert framed(body) == raw


@given(st.binary(max_size=200))
def test_garbage_raises_only_message_errors(body: bytes) -> None:
    """Bytes that nobody encoded are a message, unknown, or MessageError."""
    try:
        decode(body)
    except MessageError:
        pass


@given(st.sampled_from(sorted(_TYPES)), st.binary(max_size=100))
def test_wrong_fields_raise_only_message_errors(kind: int, rest: bytes) -> None:
    """A known type with any fields is a message or a MessageError."""
    try:
        decode(bytes((kind,)) + rest)
    except MessageError:
        pass


@given(MESSAGES, st.data())
def test_mutated_messages_raise_only_message_errors(message: Message, data: st.DataObject) -> None:
    """A message with a byte changed, added or missing is a message or a MessageError."""
    body = bytearray(encode(message)[2:])
    at = data.draw(st.integers(0, len(body) - 1))
    how = data.draw(st.sampled_from(["change", "insert", "delete", "cut"]))
    if how == "change":
        body[at] = data.draw(st.integers(0, 255))
    elif how == "insert":
        body.insert(at, data.draw(st.integers(0, 255)))
    elif how == "delete":
        del body[at]
    else:
        del body[at:]
    try:
        decode(bytes(body))
    except MessageError:
        pass


def test_too_long_a_message_is_refused_at_once() -> None:
    """The announced length alone is enough; the limit may be raised later."""
    reader = MessageReader()
    reader.feed((MAX_HELLO + 1).to_bytes(2, "big"))
    with pytest.raises(MessageError, match=str(MAX_HELLO)):
        reader.next()
    reader.limit = MAX_MESSAGE
    assert reader.next() is None


def test_unknown_messages_and_fields_are_skipped() -> None:
    """A newer node may say more: unknown types give None, unknown fields are left out."""
    assert decode(b"\xc8anything") is None
    raw = encode(Ping(time=5))[2:] + b"\x63\x00\x03new"
    assert decode(raw) == Ping(time=5)


def test_the_first_of_a_repeated_field_counts() -> None:
    """A field given twice is not read two ways."""
    assert decode(encode(Ping(time=5))[2:] + encode(Ping(time=9))[3:]) == Ping(time=5)


@pytest.mark.parametrize("cls", _TYPES.values())
def test_needed_fields_are_needed(cls: type[Message]) -> None:
    """A message without a field that has no default is refused by its name."""
    needed = [field.name for field in attrs.fields(cls) if field.default is attrs.NOTHING]
    if needed:
        with pytest.raises(MessageError, match=f"{cls.__name__} message without {needed[0]}"):
            decode(bytes((cls.TYPE,)))
    else:
        assert decode(bytes((cls.TYPE,))) == cls()


@pytest.mark.parametrize("cls", _TYPES.values())
def test_fields_are_bounded(cls: type[Message]) -> None:
    """A value above its field's limit is refused."""
    for field in attrs.fields(cls):
        size = field.metadata["limit"] + 1
        raw = bytes((cls.TYPE, field.metadata["tag"])) + size.to_bytes(2, "big") + b"x" * size
        with pytest.raises(MessageError, match=cls.__name__):
            decode(raw)


def test_long_text_is_cut_between_characters() -> None:
    """A text that is too long is sent as far as it fits, never half a character."""
    message = decode(encode(Leave(reason="é" * 200 + "x"))[2:])
    assert message == Leave(reason="é" * 128)


def test_text_that_is_no_text_does_no_harm() -> None:
    """Bytes that are no UTF-8, and surrogates of this end's, become replacement characters."""
    message = decode(b"\x10\x01\x00\x02\xff\xfe")
    assert message == About(name="\ufffd\ufffd")
    assert decode(encode(About(name="a\udcff"))[2:]) == About(name="a?")


def test_expect() -> None:
    """What was not due is refused by both names."""
    assert expect(Ping, Ping(time=1)) == Ping(time=1)
    with pytest.raises(MessageError, match="Pong where Ping was due"):
        expect(Ping, Pong(time=1))
    with pytest.raises(MessageError, match="an unknown message where Ping was due"):
        expect(Ping, None)
