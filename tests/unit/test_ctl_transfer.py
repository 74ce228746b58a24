"""Documents of instances, and what one would change on a master."""

from __future__ import annotations

import pytest

from nodepass.client.models import Instance, Meta, Peer
from nodepass.config import MasterConfig, parse_url
from nodepass.ctl.transfer import (
    Document,
    Entry,
    Step,
    Totals,
    document,
    dump,
    load,
    plan,
    same_url,
)
from nodepass.errors import ConfigError
from nodepass.master.urls import accept

URL = "server://k@:1/:2?tls=1"
META = Meta(Peer("s", "1", "p"), {"a": "", "b c": "\u00e9\n"})

WEB = Instance(
    id="aaaaaaaa", alias="web", type="server", status="stopped", url=URL, meta=META, tcprx=2**53 + 1
)
BARE = Instance(id="bbbbbbbb", type="client", status="running", url="client://:1/:2", restart=True)


@pytest.mark.parametrize("form", ["toml", "json"])
def test_there_and_back(form: str) -> None:
    """What was exported is read as it was, and changes nothing where it came from."""
    text = dump(document([WEB, BARE]), form)
    found = load(text, "file")
    assert found == document([WEB, BARE])
    assert found.instances[0].totals == Totals(tcprx=2**53 + 1)
    assert [step.sign for step in plan([WEB, BARE], found.instances)] == ["=", "="]


@pytest.mark.parametrize("form", ["toml", "json"])
def test_nothing_moves_a_terminal(form: str) -> None:
    """Controls of all kinds, direction marks and tag characters are escaped, and come back."""
    # CSI, RLO, a character of a hidden text, line separator, and what encoders escape themselves.
    nasty = "\x9b2J\u202e\U000e0041\u2028\x1b\x7f\t\r\n\\u0041 \u00e9"
    one = Instance(id="a", alias=nasty, url="server://:1/:2", meta=Meta(tags={nasty: nasty}))
    text = dump(document([one]), form)
    assert text.replace("\n", "").isprintable() and "\u00e9" in text
    assert load(text, "file") == document([one])


def test_empty_members_are_left_out() -> None:
    """A document to read holds what there is to say."""
    text = dump(Document(1, [Entry(url="server://:1/:2")]), "toml")
    assert text.splitlines()[1:] == [
        "format = 1",
        "",
        "[[instances]]",
        'url = "server://:1/:2"',
    ] or ('instances = [\n    { url = "server://:1/:2" },\n]' in text)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("format = 2", "format 2"),
        ("", "format"),
        ("{", "accepted"),
        ("format = 1\n[[instances]]\nid='a'", "url"),
        ("format = 1\n[[instances]]\nurl='a'\nalais='b'", "alais"),
        ('{"format":1,"instances":[{"url":5}]}', "instances"),
        ('{"format":1,"instances":[{"url":"","id":"a"},{"url":"","id":"a"}]}', "more than once"),
    ],
)
def test_no_documents(text: str, words: str) -> None:
    """What can't be used is told with the file and the place."""
    with pytest.raises(ConfigError) as caught:
        load(text, "some.toml")
    assert words in str(caught.value)
    assert "some.toml" in str(caught.value) and "\n" not in str(caught.value)


def entry(of: Instance = WEB, **members: object) -> Entry:
    """The entry of an instance, with differences."""
    [plain] = document([of]).instances
    return Entry(**{**{name: getattr(plain, name) for name in Entry.__struct_fields__}, **members})  # type: ignore[arg-type]


def test_changes() -> None:
    """Every difference is told with what was and what will be; totals and states are none."""
    new = entry(
        url="server://k@:1/:3?tls=1",
        alias="www",
        restart=True,
        status="running",
        meta=Meta(Peer("s", "2", ""), {"b c": "x", "d": ""}),
        totals=Totals(),
    )
    [step] = plan([WEB], [new])
    assert step.sign == "~" and step.id == WEB.id
    assert step.changes == (
        ("url", URL, "server://k@:1/:3?tls=1"),
        ("alias", "web", "www"),
        ("restart", "no", "yes"),
        ("peer type", "1", "2"),
        ("peer alias", "p", ""),
        ("tag a", "", ""),
        ("tag b c", "\u00e9\n", "x"),
        ("tag d", "", ""),
    )


def test_what_can_not_be_changed_is_no_difference() -> None:
    """An alias can't be taken away, and a restart policy that is not mentioned stays."""
    assert plan([WEB], [entry(alias="", restart=None)])[0].changes == ()


@pytest.mark.parametrize(
    "url",
    [
        "SERVER://k@:1/:2?max=5#shop",
        "server://k@:1/:2#shop",
        "Client://:1/:2?read=1h&max=7",
        "server://k@:1/:2?tls=",
    ],
)
def test_what_a_master_makes_of_a_url_is_no_difference(url: str) -> None:
    """Whatever this version's master stores for a URL, a second import leaves it alone."""
    for own in ("master://:9", "master://:9?log=debug&tls=1"):
        config = parse_url(own)
        assert isinstance(config, MasterConfig)
        stored = accept(url, config).url
        assert same_url(url, stored), stored


def test_matching() -> None:
    """By id first; then by URL and alias; then, without an id, by the only alias."""
    twin = Instance(id="cccccccc", alias="web", url=URL)
    moved = entry(id="dddddddd")
    nameless = Entry(url="server://:9/:9", alias="web")

    assert plan([WEB], [moved])[0].id == WEB.id
    assert plan([WEB], [nameless])[0].id == WEB.id
    assert plan([WEB, twin], [nameless])[0].id is None
    assert plan([WEB], [entry(id="dddddddd", url="server://:9/:9")])[0].id is None
    assert plan([WEB], [Entry(url="server://:9/:9")]) == [Step(Entry(url="server://:9/:9"))]
    # The one that is WEB by its id is not taken by the entry before it.
    steps = plan([WEB, twin], [entry(id=""), entry()])
    assert [step.id for step in steps] == [twin.id, WEB.id]
    # Two entries never share an instance.
    assert [step.id for step in plan([WEB], [moved, entry(id="eeeeeeee")])] == [WEB.id, None]


@pytest.mark.parametrize(
    ("wanted", "stored", "same"),
    [
        ("server://:1/:2", "server://:1/:2", True),
        ("server://:1/:2", "server://:1/:3", False),
        ("server://:1/:2", "server://:1/:2?log=info&tls=1", True),
        ("server://:1/:2?tls=0", "server://:1/:2?tls=1", False),
        ("server://:1/:2?max=5&tls=1", "server://:1/:2?log=info&max=5&tls=1", True),
        ("server://:1/:2?max=5", "server://:1/:2", False),
        ("server://:1/:2", "server://:1/:2?max=5", False),
        ("server://:1/:2?read=1h&max=5", "server://:1/:2?max=5&read=1h", True),
        (" SERVER://K@h:1/:2", "server://K@h:1/:2", True),
        ("server://k@h:1/:2", "server://K@h:1/:2", False),
        ("server://:1/:2#shop", "server://:1/:2?log=info#shop", True),
        ("server://:1/:2?max=5#a?b", "server://:1/:2?log=info&max=5#a?b", True),
        ("server://:1/:2#shop", "server://:1/:2", False),
        ("server://:1/:2?max=5#a", "server://:1/:2?max=5#b", False),
        ("server://:1/:2?log=&max=5", "server://:1/:2?log=info&max=5", True),
    ],
)
def test_same_url(wanted: str, stored: str, same: bool) -> None:
    """What a master fills in from its own URL makes no difference, all else does."""
    assert same_url(wanted, stored) is same
