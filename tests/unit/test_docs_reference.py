"""What the manual says of the program is what the program has, and all of it."""

from __future__ import annotations

import re
import runpy
from pathlib import Path
from typing import Any

import attrs
import pytest

from nodepass import RoleService
from nodepass.address import Endpoint
from nodepass.logs import Level
from nodepass.parameters import PARAMETERS
from nodepass.relay.stream import Cause
from nodepass.tuning import VARIABLES
from nodepass.wire import Opening
from nodepass.wire.native import frames, messages, muxframes, muxlink

DOC = Path(__file__).parents[2] / "doc"
FROM_CODE: dict[str, Any] = runpy.run_path(str(DOC / "_ext" / "from_code.py"))

#: Formats that are all placeholder: what fills them is documented where it arises.
PLACEHOLDERS = {"{error}", "{warning}", "{reason}", "{line}"}


def page(name: str) -> str:
    """A page of the manual with single blanks, so that line breaks don't matter."""
    return re.sub(r"\s+", " ", (DOC / name).read_text(encoding="utf-8"))


def rows(name: str, label: str) -> list[list[str]]:
    """The cells of the simple table behind a label."""
    text = (DOC / name).read_text(encoding="utf-8").partition(f".. _{label}:")[2]
    _, head, body = re.split(r"^=+(?: +=+)+ *\n", text, maxsplit=3, flags=re.M)[:3]
    assert head
    rule = re.search(r"^=+(?: +=+)+ *$", text, flags=re.M)
    assert rule is not None
    columns = [match.span() for match in re.finditer("=+", rule[0])]
    ends = [start for start, _ in columns[1:]] + [1000]
    return [
        [line[start:end].strip() for (start, _), end in zip(columns, ends, strict=True)]
        for line in body.splitlines()
        if line and not line.startswith(" ")
    ]


@pytest.mark.parametrize("core", ["server", "client"])
def test_every_parameter_is_in_the_reference(core: str) -> None:
    """The reference of a core names each parameter that it has, what it accepts and its default."""
    text = "\n".join(FROM_CODE["parameters_rst"](core))
    terms = re.findall(r"^``(.+)``$", text, flags=re.M)
    expected = [row for row in PARAMETERS if core in row.cores]
    assert terms == [row.name for row in expected]
    for row in expected:
        assert row.accepts in text
        assert not row.default or f"Default: ``{row.default}``" in text
    assert f".. np-parameters:: {core}" in page("reference/url.rst")


def test_every_variable_is_in_the_reference() -> None:
    """The reference names each NP_ variable with its default."""
    text = "\n".join(FROM_CODE["variables_rst"]())
    assert re.findall(r"^``(.+)``$", text, flags=re.M) == [row.name for row in VARIABLES]
    for row in VARIABLES:
        assert row.summary in text and f"Default: ``{row.default}``" in text
    assert ".. np-variables::" in page("reference/environment.rst")


def test_every_level_and_line_is_in_the_reference() -> None:
    """The log's page explains each level and lists the lines of all levels that have any."""
    text = page("reference/log.rst")
    for level in Level:
        assert f"``{level.name.lower()}``" in text
    for level in {line.level for line in FROM_CODE["log_lines"]()}:
        assert f".. np-log-lines:: {level}" in text


def test_log_lines_are_found() -> None:
    """The search through the code sees lines that are plain, limited, and told once."""
    formats = {line.format: line.level for line in FROM_CODE["log_lines"]()}
    assert formats["stopped: {url}"] == "info"
    assert formats["{why}: visitor {visitor} was refused"] == "warn"
    assert formats["parameter proxy: ignored here, as {why}"] == "warn"
    assert len(formats) > 40


def test_every_warning_has_its_cause_and_cure() -> None:
    """Each warning and error that the code can log stands in the troubleshooting page as it is."""
    text = page("troubleshooting.rst")
    missing = [
        line.format
        for line in FROM_CODE["log_lines"]()
        if line.level in ("warn", "error")
        and line.format not in PLACEHOLDERS
        and f"``{line.format}``" not in text
    ]
    assert missing == []


def test_every_complaint_about_a_peer_is_explained() -> None:
    """Each reason for which nodes turn each other away stands in the troubleshooting page."""
    text = page("troubleshooting.rst")
    causes = FROM_CODE["causes"]()
    assert len(causes) > 15
    assert [cause for cause in causes if cause not in text] == []


def test_explained_warnings_exist() -> None:
    """The troubleshooting page explains no line with placeholders that the code does not log."""
    section = (DOC / "troubleshooting.rst").read_text(encoding="utf-8").partition("Links\n")[2]
    terms = re.findall(r"``([^`]*)``", " ".join(re.findall(r"^``.*$", section, flags=re.M)))
    formats = {line.format for line in FROM_CODE["log_lines"]()}
    assert len(terms) > 10
    assert [term for term in terms if term not in formats] == []


def test_messages_are_as_specified() -> None:
    """The table of messages gives each message's type, and each field's tag, kind and limit."""
    specified = {
        (row[0], int(row[1]), row[2]): row[3:6] for row in rows("protocol.rst", "messages")
    }
    expected: dict[tuple[str, int, str], list[str]] = {}
    for number, cls in messages._TYPES.items():
        name = cls.__name__.upper()
        for field in attrs.fields(cls):
            data = field.metadata
            expected[name, number, field.name] = [
                str(data["tag"]),
                data["kind"].value,
                str(data["limit"]),
            ]
        if not attrs.fields(cls):
            expected[name, number, ""] = ["", "", ""]
    assert specified == expected


def test_frames_are_as_specified() -> None:
    """The tables of frames give each frame's type and longest body."""
    specified = {(row[0], int(row[1])): int(row[3]) for row in rows("protocol.rst", "frames")}
    assert specified == {(kind.name, kind.value): frames._LIMITS[kind] for kind in frames.FrameType}
    specified = {(row[0], int(row[1])): int(row[3]) for row in rows("protocol.rst", "mux-frames")}
    both = Endpoint("2001:db8::1", 50000)
    longest = {kind: size - 4 for kind, size in muxlink._SIZES.items()}  # without the number
    longest[muxframes.MuxType.FIN] = (
        len(muxframes.short(muxframes.MuxType.FIN, 1)) - muxframes.FRAME_SIZE
    )
    longest[muxframes.MuxType.OPEN] = (
        len(muxframes.open_stream(1, Opening(both, both, 0))) - muxframes.FRAME_SIZE
    )
    longest[muxframes.MuxType.DATA] = muxframes.MAX_MUX_DATA
    assert specified == {(kind.name, kind.value): longest[kind] for kind in muxframes.MuxType}


def test_the_example_of_a_shared_link_is_right() -> None:
    """The bytes that the example shows are those that the code sends."""
    text = (DOC / "protocol.rst").read_text(encoding="utf-8").partition(".. _mux-example:")[2]
    shown = re.findall(r"^   on \d, (?:taking|serving) end +((?:[0-9a-f]+ )+) ", text, flags=re.M)

    def opened(number: int) -> bytes:
        visitor = Endpoint("192.0.2.1", 49999 + number)
        return muxframes.open_stream(number, Opening(visitor, Endpoint("198.51.100.1", 8080), 0))

    def data(number: int, text: bytes) -> bytes:
        return muxframes.pack_head(muxframes.DATA_WORD + len(text), number) + text

    kinds = muxframes.MuxType
    assert [bytes.fromhex(row) for row in shown] == [
        frames.mux(),
        opened(1),
        data(1, b"hello"),
        muxframes.short(kinds.FIN, 1),
        frames.mux(),
        data(1, b"ok"),
        muxframes.short(kinds.FIN, 1),
        opened(2),
        muxframes.reset(2, Cause.REFUSED),
        opened(3),
        muxframes.window(3, 32768),
        muxframes.short(kinds.MOVE, 3),
        frames.join(1, 7, 3),
        muxframes.short(kinds.MOVED, 3),
        muxframes.short(kinds.MOVED, 3),
    ]


def test_causes_and_refusals_are_as_specified() -> None:
    """The tables of causes and refusals have each code with its name."""
    specified = [(int(row[0]), row[1]) for row in rows("protocol.rst", "causes")]
    assert specified == [(cause.value, cause.name) for cause in Cause]
    specified = [(int(row[0]), row[1]) for row in rows("protocol.rst", "refusals")]
    assert specified == [(refusal.value, refusal.name) for refusal in messages.Refusal]


def test_bounds_are_found_with_their_reasons() -> None:
    """The search through the code sees bounds, each with a reason of some length."""
    bounds = {bound.name: bound for bound in FROM_CODE["constants"]()}
    assert len(bounds) > 60
    assert bounds["LOBBY_SIZE"].value == "512"
    assert all(len(bound.reason) > 20 for bound in bounds.values())


@pytest.mark.parametrize("name", ["tunnels.tac", "site.tac"])
def test_applications_can_be_built(name: str) -> None:
    """The .tac examples make an Application with tunnels in it, and bind nothing yet."""
    from twisted.application.service import IServiceCollection

    result = runpy.run_path(str(DOC / "examples" / name))
    services = list(IServiceCollection(result["application"]))
    assert len(services) == 2
    assert any(isinstance(service, RoleService) for service in services)


def test_the_public_names_are_documented() -> None:
    """The page on Python has each public name."""
    import nodepass

    text = page("reference/python.rst")
    for name in nodepass.__all__:
        assert name.startswith("__") or re.search(rf":: {name}\b", text), name
