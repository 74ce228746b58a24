"""URLs, and the configurations they make."""

from __future__ import annotations

import inspect
from urllib.parse import quote

import attrs
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from nodepass.config import (
    MAX_TARGETS,
    PARAMETERS,
    Address,
    ClientConfig,
    MasterConfig,
    Mode,
    RoleConfig,
    ServerConfig,
    TLSLevel,
    parse_role_url,
    parse_url,
    unused_by_forwarder,
)
from nodepass.duration import LONGEST, format_duration, parse_duration
from nodepass.errors import ConfigError
from nodepass.logs import Level
from nodepass.parameters import find_parameter
from nodepass.urlsyntax import MAX_URL

ALONE = "accepted: host:port alone, without a scheme before it"
FORM = "server|client://[KEY@]TUNNEL_HOST:PORT/TARGET_HOST:PORT"
ENCODE = "in a key write '/', '?', '#', '@' and ':' as %2F, %3F, %23, %40 and %3A"
UNUSED = (
    "{} unused, as this client is a plain forwarder and joins no server; if it is to join one, "
    "write mode=2"
)


def server(url: str) -> ServerConfig:
    config = parse_url(url)
    assert isinstance(config, ServerConfig)
    return config


def client(url: str) -> ClientConfig:
    config = parse_url(url)
    assert isinstance(config, ClientConfig)
    return config


def refusal(url: str) -> str:
    with pytest.raises(ConfigError) as caught:
        parse_url(url)
    return str(caught.value)


def test_server_defaults() -> None:
    """A server URL without parameters has the documented defaults."""
    config = server("server://:10101/127.0.0.1:8080")
    assert config == ServerConfig(
        tunnel=Address("", 10101),
        targets=(Address("127.0.0.1", 8080),),
        url="server://:10101/127.0.0.1:8080",
    )
    assert config.key is None
    assert (config.log, config.tls, config.mode) == (Level.INFO, TLSLevel.PLAIN, Mode.AUTO)
    assert (config.read, config.rate, config.slot, config.proxy) == (3600.0, 0, 65536, False)
    assert (config.max, config.crt, config.key_file) == (1024, None, None)
    assert config.warnings == ()


def test_client_defaults() -> None:
    """A client URL without parameters keeps 8 links and leaves TLS to the server."""
    config = client("client://server.example:10101/127.0.0.1:8080")
    assert (config.min, config.tls, config.ca) == (8, None, None)


GIVEN_AWAY = (
    "wire={}: old dialects give the key away to who listens, and it opens the native "
    "wire too; give old nodes another key, and name it in oldkey="
)
LENGTH_ALONE = (
    "wire={}: a client of 1.6 proves the length of its key alone, so anyone who reaches the tunnel "
    "port may join; let a firewall admit your clients only"
)


@pytest.mark.parametrize("config_type", [ServerConfig, ClientConfig])
def test_table_and_records_agree(config_type: type[RoleConfig]) -> None:
    """The default that the table documents is the one the configuration has, field by field."""
    record = config_type(tunnel=Address("", 1), targets=(Address("", 2),))
    rows = [row for row in PARAMETERS if config_type.core in row.cores]
    for row in rows:
        assert getattr(record, row.field) == row.default_value, row.name
    fields = {field.name for field in attrs.fields(config_type)}
    settable = fields - {"tunnel", "targets", "key", "flow_read", "old_min", "warnings", "url"}
    assert settable == {row.field for row in rows}


def test_every_parameter_is_documented() -> None:
    """Help texts can rely on a summary and the accepted values of each parameter, one line each."""
    for row in PARAMETERS:
        assert row.summary and row.accepts
        assert "\n" not in row.summary + row.accepts
        assert find_parameter(row.cores[0], row.name) is row


def test_all_parameters_of_a_server() -> None:
    """Each parameter of a server reaches its field."""
    config = server(
        "server://secret@0.0.0.0:1/t:2?log=event&tls=2&crt=/c.pem&key=/k.pem&max=7&mode=2"
        "&read=1h30m&rate=100&slot=0&proxy=1&wire=2.0,native&oldkey=other&workers=4"
    )
    assert (config.wire, config.oldkey) == ("2.0,native", "other")
    assert (config.key, config.workers) == ("secret", 4)
    assert (config.log, config.tls, config.mode) == (Level.EVENT, TLSLevel.FILES, Mode.TWO)
    assert (config.crt, config.key_file, config.max) == ("/c.pem", "/k.pem", 7)
    assert (config.read, config.rate, config.slot, config.proxy) == (5400.0, 100, 0, True)
    assert config.warnings == ()


def test_all_parameters_of_a_client() -> None:
    """Each parameter of a client reaches its field."""
    config = client("client://h:1/t:2?log=none&tls=2&ca=/ca.pem&min=3&mode=1&read=0&wire=native")
    assert (config.log, config.tls, config.ca) == (Level.NONE, TLSLevel.FILES, "/ca.pem")
    assert (config.min, config.mode, config.read) == (3, Mode.ONE, 0.0)
    assert (config.wire, config.oldkey) == ("native", None)
    assert config.warnings == (UNUSED.format("tls=2 is"),)


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("example.org:443", Address("example.org", 443)),
        ("example.org.:443", Address("example.org.", 443)),
        ("my_host-1:0", Address("my_host-1", 0)),
        ("b\u00fccher.example:80", Address("b\u00fccher.example", 80)),
        ("b%C3%BCcher.example:80", Address("b\u00fccher.example", 80)),
        (":8080", Address("", 8080)),
        ("192.0.2.1:65535", Address("192.0.2.1", 65535)),
        ("[::]:80", Address("::", 80)),
        ("[2001:DB8:0::1]:80", Address("2001:db8::1", 80)),
        ("[fe80::1%25eth0]:80", Address("fe80::1%eth0", 80)),
    ],
)
def test_addresses(text: str, address: Address) -> None:
    """Names, IPv4, bracketed IPv6 with a zone or without, and an empty host are addresses."""
    config = parse_url(f"server://{text}/{text}")
    assert config.tunnel == address
    assert config.targets == (config.tunnel,)
    assert parse_url(config.effective_url()).tunnel == config.tunnel


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("host", "the port is missing; accepted: host:port, or :port for every interface"),
        ("[::1]", "the port is missing; accepted: host:port, or :port for every interface"),
        ("host:", "the port must be a number from 0 to 65535"),
        ("https:", ALONE),
        ("host:80&mode=2", "parameters begin with '?' and are separated by '&'"),
        ("host:80;mode=2", "parameters begin with '?' and are separated by '&'"),
        ("host:65536", "the port must be a number from 0 to 65535"),
        ("host:-1", "the port must be a number from 0 to 65535"),
        ("host:http", "the port must be a number from 0 to 65535"),
        ("host:\u0661\u0662", "the port must be a number from 0 to 65535"),
        ("::1:80", "an IPv6 address is written in brackets, as in [::1]:8080"),
        ("2001:db8::1", "an IPv6 address is written in brackets, as in [::1]:8080"),
        ("[::1:80", "the brackets hold one IPv6 address, as in [::1]:8080"),
        ("[::1]x:80", "the brackets hold one IPv6 address, as in [::1]:8080"),
        ("[host]:80", "the brackets hold no valid IPv6 address"),
        ("[::1%25a!b]:80", "the zone of the IPv6 address is not an interface's name"),
        ("256.0.0.1:80", "the host is not a valid IPv4 address"),
        ("1.2.3:80", "the host is not a valid IPv4 address"),
        ("a..b:80", "the host is neither a name nor an IP address"),
        ("a$b:80", "the host is neither a name nor an IP address"),
        ("a" * 64 + ":80", "the host is neither a name nor an IP address"),
        ("%FF:80", "the host is neither a name nor an IP address"),
    ],
)
def test_bad_addresses(text: str, reason: str) -> None:
    """A bad address is refused with its place, its text and what would be accepted."""
    assert refusal(f"client://{text}/t:1") == f"tunnel address '{text}': {reason}"
    assert refusal(f"client://h:1/{text}") == f"target address '{text}': {reason}"


@pytest.mark.parametrize("text", ["http://host:80", "host:80/", "host:80/path"])
def test_a_target_is_no_url(text: str) -> None:
    """What a browser would be given is no target."""
    reason = f"target address '{text}': {ALONE} or a '/' behind it"
    assert refusal(f"client://h:1/{text}?mode=2") == reason


def test_address_text_and_dialing() -> None:
    """An address prints as host:port, and a wildcard dials this host, IPv4 first."""
    assert str(Address("::1", 80)) == "[::1]:80"
    assert str(Address("", 80)) == ":80"
    assert str(Address("h", 80)) == "h:80"
    for host in ("", "0.0.0.0", "::"):
        assert Address(host, 1).wildcard
        assert Address(host, 1).dial_hosts() == ("127.0.0.1", "::1")
    assert not Address("127.0.0.1", 1).wildcard
    assert Address("h", 1).dial_hosts() == ("h",)


def test_target_list() -> None:
    """Targets are separated by commas and keep their order."""
    config = parse_url("server://:1/a:1,[::1]:2,:3")
    assert config.targets == (Address("a", 1), Address("::1", 2), Address("", 3))


def test_bad_target_lists() -> None:
    """An empty target in a list, and a list that is too long, are refused."""
    missing = "the port is missing; accepted: host:port, or :port for every interface"
    assert refusal("server://:1/a:1,") == f"target address '': {missing}"
    many = ",".join(["a:1"] * (MAX_TARGETS + 1))
    assert refusal(f"server://:1/{many}") == "256 targets; accepted: 255 at most"


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("", "the URL has no scheme; accepted: server://, client:// or master://"),
        (":1/t:2", "the URL has no scheme; accepted: server://, client:// or master://"),
        ("server:/:1/t:2", "the URL has no scheme; accepted: server://, client:// or master://"),
        ("k3y@host:1/t:2", "the URL has no scheme; accepted: server://, client:// or master://"),
        ("http://h:1/t:2", "scheme http: unknown; accepted: server, client, master"),
        (
            "master://:9090/api?tls=2",
            "tls=2: crt and key missing; accepted: crt=<file> and key=<file>",
        ),
        ("server://:1", f"the URL has no target; accepted: {FORM}"),
        ("client://:1/", f"the URL has no target; accepted: {FORM}"),
        ("client://:1?mode=2", f"the URL has no target; accepted: {FORM}"),
        (
            "server://:1/t:2?log=in fo",
            "the URL has a blank or control character; accepted: a blank as %20, and '&' between "
            "parameters",
        ),
        ("server://a%@:1/t:2", "key: a '%' begins no escape such as %40; accepted: %25 for itself"),
        ("server://%FF@:1/t:2", "key: not UTF-8 once decoded; accepted: UTF-8 text"),
        ("server://:1/t:2?tls=3", "tls=3: accepted: 0, 1 or 2"),
        ("client://:1/t:2?tls=yes", "tls=yes: accepted: 0, 1 or 2"),
        ("server://:1/t:2?mode=3", "mode=3: accepted: 0, 1 or 2"),
        ("server://:1/t:2?proxy=true", "proxy=true: accepted: 0 or 1"),
        (
            "server://:1/t:2?log=INFO",
            "log=INFO: accepted: none, debug, info, warn, error or event",
        ),
        ("client://:1/t:2?min=0", "min=0: accepted: an integer from 1 to 1000000"),
        ("server://:1/t:2?max=1e3", "max=1e3: accepted: an integer from 1 to 1000000"),
        (
            "server://:1/t:2?slot=-1",
            "slot=-1: accepted: an integer from 0 to 1000000, 0 for unlimited",
        ),
        (
            "server://:1/t:2?rate=1.5",
            "rate=1.5: accepted: Mbit/s as an integer from 0 to 1000000, 0 for unlimited",
        ),
        (
            "server://:1/t:2?read=30",
            "read=30: not a duration; accepted: 0 for none, or a duration up to 8760h, "
            "such as 300ms, 30s, 5m or 1h30m",
        ),
        (
            "server://:1/t:2?wire=quic",
            "wire=quic: accepted: native, 2.0, 1.14, 1.6 or 1.6-raw, several with commas; or any",
        ),
        (
            "server://:1/t:2?wire=native,",
            "wire=native,: accepted: native, 2.0, 1.14, 1.6 or 1.6-raw, several with commas; "
            "or any",
        ),
        (
            "server://:1/t:2?wire=1.6-raw,1.6",
            "wire=1.6-raw,1.6: 1.6-raw is 1.6 with link numbers in another form: a node has one of "
            "them; accepted: native, 2.0, 1.14, 1.6 or 1.6-raw, several with commas; or any",
        ),
        (
            "client://:1/t:2?wire=1.6",
            "wire=1.6: 1.6 can't be spoken with the key that the port gives: character 3 of the "
            "key turns the ':' of 'np://' into a line feed, which breaks the line; accepted: "
            "another key on both ends, or wire without 1.6",
        ),
        (
            "client://dull@:1/t:2?wire=native,1.6",
            "wire=native,1.6: 1.6 can't be spoken with this key: character 1 of the key turns the "
            "'n' of 'np://' into a line feed, which breaks the line; accepted: another key on both "
            "ends, or wire without 1.6",
        ),
        (
            "server://:1/t:2?workers=0",
            "workers=0: accepted: auto, or an integer from 1 to 1024",
        ),
        (
            "server://:1/t:2?tls=2",
            "tls=2: crt and key missing; accepted: crt=<file> and key=<file>",
        ),
        (
            "server://:1/t:2?tls=2&crt=/c&key=",
            "tls=2: key missing; accepted: crt=<file> and key=<file>",
        ),
        (
            "server://:1/t:2?tls=2&crt=%00&key=/k",
            "crt=\\x00: no file name has a NUL character; accepted: path of a PEM file",
        ),
    ],
)
def test_refused_urls(url: str, message: str) -> None:
    """A URL that can't be used is refused with the parameter, the value and what is accepted."""
    assert refusal(url) == message


@pytest.mark.parametrize(
    ("url", "bad"),
    [
        ("client://h:0/t:1?mode=2", "tunnel address 'h:0'"),
        ("client://:1/t:0?mode=1", "target address 't:0'"),
        ("client://:0/a:1,t:0", "target address 't:0'"),
        ("server://:1/t:0?mode=2", "target address 't:0'"),
    ],
)
def test_port_0_dialed(url: str, bad: str) -> None:
    """Port 0 is refused where the URL alone says that the address will be dialed."""
    assert refusal(url) == f"{bad}: port 0 can't be dialed; accepted: 1 to 65535"


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("server://:1/:1?mode=1", "tunnel address ':1' and target address ':1' are one,"),
        ("server://:1/0.0.0.0:1?mode=1", "tunnel address ':1' and target address '0.0.0.0:1' are"),
        ("client://h:1/h:1?mode=1", "target address 'h:1': with mode=1 that is where this client"),
        ("client://:1/t:2,127.0.0.1:1?mode=1", "target address '127.0.0.1:1': with mode=1"),
        ("client://127.0.0.1:1/:1?mode=1", "target address ':1': with mode=1"),
        ("client://[::]:1/[::1]:1?mode=1", "target address '[::1]:1': with mode=1"),
    ],
)
def test_circles(url: str, message: str) -> None:
    """A tunnel that would listen twice at one place, or forward to itself, is refused."""
    assert refusal(url).startswith(message)


@pytest.mark.parametrize(
    "url",
    [
        "server://:1/:1?mode=2",
        "server://127.0.0.1:1/127.0.0.2:1?mode=1",
        "client://h:1/h:1?mode=2",
        "client://:1/t:1?mode=1",
        "client://0.0.0.0:1/[::1]:1?mode=1",
        "client://[::1]:1/:1?mode=1",
    ],
)
def test_no_circles(url: str) -> None:
    """One port at two places, or an address that is only dialed, is no circle."""
    parse_url(url)


@pytest.mark.parametrize(
    "url",
    [
        "server://:0/:0?mode=1",
        "server://:0/:0",
        "client://:0/t:1?mode=1",
        "client://:0/t:1",
        "client://h:1/:0?mode=2",
        "client://h:1/:0",
    ],
)
def test_port_0_listened_on(url: str) -> None:
    """Port 0 passes where the address is listened on, or may be."""
    parse_url(url)


def test_first_of_repeated_parameters_counts() -> None:
    """Of a repeated parameter the first one counts, and an empty one counts as absent."""
    assert server("server://:1/t:2?max=5&max=6").max == 5
    assert server("server://:1/t:2?max=&max=6").max == 1024
    assert server("server://:1/t:2?max&max=6").max == 1024
    assert server("server://:1/t:2?max=5&max=bad").max == 5


def test_empty_values_count_as_absent() -> None:
    """An empty value is no value: neither an error nor a warning."""
    config = server("server://:1/t:2?tls=&mode=&crt=&min=&foo=&&=")
    assert config.warnings == ()
    assert config == attrs.evolve(server("server://:1/t:2"), url=config.url)


@pytest.mark.parametrize(
    ("url", "warnings"),
    [
        (
            "server://:1/t:2?min=4&max=5",
            ("parameter min: ignored, it does not apply to a server",),
        ),
        (
            "server://:1/t:2?min=bad",
            ("parameter min: ignored, it does not apply to a server",),
        ),
        (
            "client://:1/t:2?max=4&crt=/c",
            (
                "parameter max: ignored, it does not apply to a client",
                "parameter crt: ignored, it does not apply to a client",
            ),
        ),
        (
            "client://:1/t:2?key=hush",
            ("parameter key: ignored by a client; the tunnel key goes before the '@'",),
        ),
        (
            "server://:1/t:2?quic=1&quic=2",
            ("parameter quic: ignored, it is unknown to this version",),
        ),
        (
            "server://:1/t:2?tsl=1&MODE=1",
            (
                "parameter tsl: ignored, it is unknown to this version; did you mean tls?",
                "parameter MODE: ignored, it is unknown to this version; did you mean mode?",
            ),
        ),
        (
            "server://:1/t:2?lbs=1&type=0",
            (
                "parameter lbs: ignored, only NodePass on Go has it",
                "parameter type: ignored, only NodePass on Go has it",
            ),
        ),
        (
            "server://:1/t:2?mni=1",
            ("parameter mni: ignored, it is unknown to this version",),
        ),
        (
            "server://:1/t:2?tls=1&tls=0&max=&max=6&slot=7&slot=7",
            (
                "parameter tls: given more than once, the first value counts",
                "parameter max: given more than once, the first value counts",
            ),
        ),
        (
            "server://:1/t:2?a%0Ab=1",
            ("a parameter whose name has odd characters: ignored",),
        ),
        (
            "server://:1/t:2?tls=1&crt=/c&key=/k",
            (
                "parameter crt: ignored, it is used with tls=2 alone",
                "parameter key: ignored, it is used with tls=2 alone",
            ),
        ),
        (
            "client://:1/t:2?ca=/ca",
            ("parameter ca: ignored, it is used with tls=2 alone",),
        ),
        (
            "client://:1/t:2?oldkey=hush",
            ("parameter oldkey: ignored, wire admits no old dialect",),
        ),
        ("client://k@:1/t:2?wire=native,1.14&oldkey=other", ()),
        ("client://:1/t:2?wire=any&oldkey=other", ()),
        ("server://k@:1/t:2?wire=1.14", ()),
        ("server://k@:1/t:2?wire=1.14&oldkey=k", ()),
        ("client://k@:1/t:2?wire=1.6", ()),
        ("client://dull@:1/t:2?wire=1.6&mode=1", (UNUSED.format("the key is"),)),
        ("client://k@:1/t:2?mode=1&tls=1", (UNUSED.format("the key and tls=1 are"),)),
        ("client://:1/t:2?mode=1&tls=0", ()),
        ("client://k@:1/t:2?mode=2&tls=1", ()),
        ("client://k@:1/t:2?tls=1", ()),
        ("client://:1/t:2?wire=native,1.14", ()),
        ("client://k@:1/t:2?wire=native,1.14", (GIVEN_AWAY.format("native,1.14"),)),
        ("client://k@:1/t:2?wire=native,2.0&oldkey=k", (GIVEN_AWAY.format("native,2.0"),)),
        ("server://k@:1/t:2?wire=1.6", (LENGTH_ALONE.format("1.6"),)),
        ("server://k@:1/t:2?wire=1.6-raw", (LENGTH_ALONE.format("1.6-raw"),)),
        ("server://k@:1/t:2?wire=any", (LENGTH_ALONE.format("any"), GIVEN_AWAY.format("any"))),
        (
            "server://k@:1/t:2?wire=any&oldkey=dull",
            (
                "wire=any: 1.6 is left out, as it can't be spoken with this oldkey: character 1 of "
                "the key turns the 'n' of 'np://' into a line feed, which breaks the line",
            ),
        ),
        ("client://:1/t:2?workers=auto", ()),
    ],
)
def test_warnings(url: str, warnings: tuple[str, ...]) -> None:
    """What is ignored is named, once, and its value is not repeated."""
    assert parse_url(url).warnings == warnings


@pytest.mark.parametrize(
    ("user", "key"),
    [
        ("", None),
        ("secret@", "secret"),
        ("@", None),
        (":password@", None),
        ("secret:password@", "secret"),
        ("p%40ss%2Fw%3A%25@", "p@ss/w:%"),
        ("p@ss@", "p@ss"),
        ("sch%C3%BC@", "sch\u00fc"),
        ("a+b@", "a+b"),
    ],
)
def test_key(user: str, key: str | None) -> None:
    """The key is the percent-decoded user; a password behind it is kept in the URL alone, and the
    warning of that repeats nothing of either."""
    url = f"server://{user}:1/t:2"
    config = parse_url(url)
    assert config.key == key
    assert config.url == url
    assert parse_url(url, key="other").key == (key or "other")
    assert parse_url(url, key="").key == key
    cut = ("key: what follows its ':' is ignored; in a key write ':' as %3A",)
    warnings = cut if ":" in user else ()
    assert parse_url(url).warnings == warnings
    empty = "the key from NODEPASS_KEY is empty: it counts as none"
    assert parse_url(url, key="").warnings == (warnings if key else (*warnings, empty))


def test_key_from_outside_at_a_forwarder() -> None:
    """It may be another URL's, and is no reason for a warning."""
    assert parse_url("client://:1/t:2?mode=1", key="k").warnings == ()


@pytest.mark.parametrize(
    "url",
    [
        "server://hush/hush@:1/t:2",
        "server://hush?hush@:1/t:2",
        "server://hush#hush@:1/t:2",
        "server://x:1?hush@:1/t:2",
        "server://x:1/hush?hush@:1/t:2",
    ],
)
def test_key_that_is_not_encoded(url: str) -> None:
    """A key with "/", "?" or "#" in it gets a hint how to write it, and no part of it is shown."""
    message = refusal(url)
    assert message.endswith(ENCODE)
    assert "hush" not in message


def test_at_sign_in_a_file_name() -> None:
    """An "@" in the query is not taken for the end of a key when all else is in order."""
    assert server("server://:1/t:2?tls=2&crt=/a@b&key=/k").crt == "/a@b"


def test_harmless_differences() -> None:
    """Case of the scheme, blanks around the URL and a fragment make no difference."""
    config = parse_url("  SERVER://:1/t:2?max=5#part\n")
    assert config == attrs.evolve(server("server://:1/t:2?max=5"), url=config.url)


def test_repr_hides_the_key() -> None:
    """A configuration in a traceback or a log shows neither its key nor its URL."""
    assert "hush" not in repr(parse_url("server://hush@:1/t:2?oldkey=hush"))


def test_effective_url() -> None:
    """The effective URL has every parameter with a value, and *** for the key and its password."""
    assert parse_url("server://hush:hush@:1/a:2,[::1]:3?max=5&min=1&x=y").effective_url() == (
        "server://***@:1/a:2,[::1]:3?log=info&tls=0&max=5&mode=0&read=1h&rate=0&slot=65536"
        "&proxy=0&wire=native&workers=1"
    )
    assert parse_url("client://h:1/t:2?tls=1&workers=auto&wire=1.14,native").effective_url() == (
        "client://h:1/t:2?log=info&tls=1&min=8&mode=0&read=1h&rate=0&slot=65536"
        "&proxy=0&wire=1.14,native&workers=auto"
    )
    shown = parse_url("client://h:1/t:2?wire=any&oldkey=hush").effective_url()
    assert shown.endswith("&wire=any&oldkey=***&workers=1")


def test_dialects() -> None:
    """They come in the order in which they were given, each once; `any` has what the key allows."""
    assert client("client://h:1/t:2").dialects == ("native",)
    assert client("client://h:1/t:2?wire=1.14,2.0,1.14,native").dialects == (
        "1.14",
        "2.0",
        "native",
    )
    every = ("native", "2.0", "1.14", "1.6")
    assert client("client://k@h:1/t:2?wire=any").dialects == every
    assert client("client://k@h:1/t:2?wire=native,any").dialects == every
    assert client("client://dull@h:1/t:2?wire=any").dialects == every[:-1]
    assert client("client://dull@h:1/t:2?wire=any&oldkey=k").dialects == every
    # The key of a tunnel without one comes from its port: that of port 1 has "0" in third place.
    assert client("client://h:1/t:2?wire=any").dialects == every[:-1]
    assert client("client://h:443/t:2?wire=any").dialects == every


def test_key_for_old_nodes() -> None:
    """They have the one that is theirs, or the key, or none."""
    assert client("client://k@h:1/t:2?wire=1.14&oldkey=o%26").key_for_old == "o&"
    assert client("client://k@h:1/t:2?wire=1.14").key_for_old == "k"
    assert client("client://h:1/t:2?wire=1.14").key_for_old is None


def test_idle_links_for_old_servers() -> None:
    """A `min` holds for every server; without one, old servers get more, as links are used up."""
    found = [
        client(f"client://k@h:1/t:2?{query}")
        for query in ("", "wire=any", "wire=1.14", "wire=1.14&min=3", "wire=native,1.14&min=3")
    ]
    assert [(each.min, each.old_min) for each in found] == [(8, 64)] * 2 + [(64, 64)] + [(3, 3)] * 2


KEYS = st.text(min_size=1, max_size=20).filter(
    lambda text: not any(0xD800 <= ord(char) < 0xE000 for char in text)
)
HOSTS = st.sampled_from(["", "h", "b\u00fccher.example", "192.0.2.1", "::1", "fe80::1%eth0"])
# Ports of tunnels and targets differ, so that no tunnel meets itself.
TUNNELS = st.builds(Address, HOSTS, st.integers(1, 999))
TARGETS = st.builds(Address, HOSTS, st.integers(1000, 65535))
COMMON = {
    "tunnel": TUNNELS,
    "targets": st.lists(TARGETS, min_size=1, max_size=4).map(tuple),
    "key": st.none() | KEYS,
    "log": st.sampled_from(Level),
    "mode": st.sampled_from(Mode),
    "read": st.integers(0, int(LONGEST) * 1000).map(lambda ms: ms / 1000),
    "rate": st.integers(0, 10**6),
    "slot": st.integers(0, 10**6),
    "proxy": st.booleans(),
}
FILES = st.text(
    st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1
) | st.just("/\udcff")
SERVERS = st.builds(
    ServerConfig,
    **COMMON,
    max=st.integers(1, 10**6),
    tls=st.just(TLSLevel.FILES),
    crt=FILES,
    key_file=FILES,
) | st.builds(ServerConfig, **COMMON, tls=st.sampled_from([TLSLevel.PLAIN, TLSLevel.SELF_SIGNED]))
CLIENTS = st.builds(
    ClientConfig,
    **COMMON,
    min=st.integers(1, 10**6),
    tls=st.just(TLSLevel.FILES),
    ca=st.none() | FILES,
) | st.builds(ClientConfig, **COMMON, tls=st.none() | st.sampled_from([TLSLevel.PLAIN]))


@given(SERVERS | CLIENTS)
def test_effective_url_round_trip(config: ServerConfig | ClientConfig) -> None:
    """An effective URL, read again, gives the same configuration, the key apart, and no warning but
    the plain forwarder's."""
    url = config.effective_url()
    key = None if config.key is None else "***"
    # A `read` that is spelled out holds for UDP sessions too, and a `min` for all dialects.
    expected = attrs.evolve(config, key=key, url=url, flow_read=config.read or None)
    if isinstance(expected, ClientConfig):
        expected = attrs.evolve(expected, old_min=expected.min)
        if expected.mode is Mode.ONE:
            expected = attrs.evolve(expected, warnings=unused_by_forwarder(expected, key))
    assert parse_url(url) == expected


PIECES = st.sampled_from(
    ["server://", "client://", "@", ":", "/", "?", "&", "=", "#", "%", "[", "]", ",", "::1", "h:1",
     "/t:2", "tls=2", "read=", "1h", "0", "key", "\u0663", "\udcff", " "]
)  # fmt: skip


@given(st.text() | st.lists(PIECES | st.text(max_size=3)).map("".join))
@example("server://[::1%2525]:1/t:2")
@example("server://:1/t:2?read=" + "9" * 5000 + "h")
@example("server://:" + "9" * 5000 + "/t:2")
def test_any_text_parses_or_is_refused(text: str) -> None:
    """Whatever the text, the outcome is a configuration or a ConfigError of one printable line."""
    try:
        config = parse_url(text)
    except ConfigError as error:
        assert str(error).isprintable()
        assert len(str(error)) < 400
    else:
        assert all(warning.isprintable() for warning in config.warnings)
        parse_url(config.effective_url())


BROKEN = ["", "/", "/t:2?mode=9", "/t", "/t:2?read=1&x=y", "/t:0?mode=2", "/t:2?tls=2"]


@given(
    st.text(st.sampled_from("QWXYZ\u00df%/?#@:&=+ \n'[]"), min_size=8, max_size=20).filter(
        lambda key: sum(char in "QWXYZ" for char in key) > 4
    ),
    st.sampled_from(BROKEN),
)
def test_no_message_contains_the_key(key: str, rest: str) -> None:
    """However the rest is broken, neither the key nor its encoded form is in the message."""
    encoded = quote(key, safe="")
    message = refusal(f"server://{encoded}@:1{rest}")
    assert key not in message
    assert encoded not in message


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("0", 0.0),
        ("0s", 0.0),
        ("300ms", 0.3),
        ("30s", 30.0),
        ("5m", 300.0),
        ("1h30m", 5400.0),
        ("1h0m0s", 3600.0),
        ("1.5s", 1.5),
        ("8760h", LONGEST),
    ],
)
def test_durations(text: str, seconds: float) -> None:
    """Durations are read as documented."""
    assert parse_duration(text) == seconds


@pytest.mark.parametrize(
    "text",
    ["", "1", "s", "-1s", "+1s", "1 s", "1d", "1m1h", "1s1s", ".5s", "1.s", "1e3s", "8761h",
     "0.1ms", "\u0661s", "1S", "inf", "nan", "00"],
)  # fmt: skip
def test_bad_durations(text: str) -> None:
    """What is no duration, out of bounds, or would be rounded to nothing is refused."""
    with pytest.raises(ValueError):
        parse_duration(text)


@given(st.integers(0, int(LONGEST) * 1000))
def test_duration_round_trip(milliseconds: int) -> None:
    """A duration that was written is read as the same number."""
    seconds = milliseconds / 1000
    assert parse_duration(format_duration(seconds)) == seconds


def test_pure() -> None:
    """Reading a URL needs no reactor: nothing of twisted.internet is named in these modules."""
    for name in ("address", "config", "duration", "parameters"):
        module = __import__(f"nodepass.{name}", fromlist=[name])
        assert "twisted" not in inspect.getsource(module)


def test_masters() -> None:
    """A master has an address, a prefix without a slash at its end, and what instances inherit."""
    config = parse_url("master://:9090")
    assert isinstance(config, MasterConfig)
    assert (config.listen, config.prefix, config.given) == (Address("", 9090), "/api", frozenset())
    for path, prefix in (("/", "/api"), ("/x/", "/x"), ("//a//b/", "/a/b")):
        assert parse_url(f"MASTER://h:1{path}").prefix == prefix
    config = parse_url("master://h:1/p?tls=1&log=debug&crt=")
    assert config.given == {"tls", "log"}
    assert config.effective_url() == "master://h:1/p?log=debug&tls=1&wire=native"


def test_masters_on_a_unix_socket() -> None:
    """The path of the socket takes the place of host and port, its slashes as escapes."""
    config = parse_url("master://unix:%2Frun%2Fapi.sock/p")
    assert (config.listen, config.unix, config.prefix) == (None, "/run/api.sock", "/p")
    assert config.effective_url().startswith("master://unix:%2Frun%2Fapi.sock/p?")
    with pytest.raises(ConfigError, match="no absolute path"):
        parse_url("master://unix:api.sock/p")


def test_odd_prefixes() -> None:
    """Only what needs no escape anywhere can be a prefix."""
    for path in ("/<id>", "/%3Cid%3E", "/a?b".replace("?", "%3F"), "/é"):
        with pytest.raises(ConfigError, match="odd characters"):
            parse_url(f"master://:1{path}")


def test_a_master_is_no_tunnel() -> None:
    """Where only a tunnel will do, it is refused; a user name is of no use to it."""
    with pytest.raises(ConfigError, match="accepted: server, client"):
        parse_role_url("master://:1")
    assert "API key" in parse_url("master://me@:1").warnings[0]


def test_the_longest_url() -> None:
    """What is longer is refused by its length, and not repeated."""
    url = "server://:1/:2?crt="
    assert parse_url(url + "x" * (MAX_URL - len(url)))
    with pytest.raises(ConfigError, match="16385 characters"):
        parse_url(url + "x" * (MAX_URL - len(url) + 1))
