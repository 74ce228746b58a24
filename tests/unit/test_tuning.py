"""The NP_* environment variables."""

from __future__ import annotations

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nodepass.tuning import VARIABLES, Tuning, Variable

DURATION = "such as 300ms, 30s, 5m or 1h30m"


def test_defaults() -> None:
    """Without variables the tuning has the documented defaults."""
    assert Tuning() == Tuning(
        semaphore_limit=65536,
        udp_buffer=65507,
        udp_read_timeout=120.0,
        handshake_timeout=10.0,
        tcp_dial_timeout=30.0,
        udp_dial_timeout=10.0,
        pool_get_timeout=30.0,
        min_pool_interval=0.1,
        max_pool_interval=1.0,
        report_interval=5.0,
        service_cooldown=3.0,
        shutdown_timeout=5.0,
        share_within=0.005,
        reload_interval=3600.0,
    )
    assert Tuning.from_environ({}) == (Tuning(), ())
    assert Tuning.from_environ({"PATH": "/bin", "NP_UNKNOWN": "x"}) == (Tuning(), ())


def test_table_and_record_agree() -> None:
    """Each field has one variable, whose documented default is the field's."""
    fields = {field.name for field in attrs.fields(Tuning)} - {"portable_relay"}  # no number
    assert {row.field for row in VARIABLES} == fields
    assert len({row.name for row in VARIABLES}) == len(VARIABLES)
    for row in VARIABLES:
        assert row.parse(row.default) == getattr(Tuning(), row.field)
        assert row.summary and "\n" not in row.summary


@pytest.mark.parametrize(
    ("name", "text", "field", "value"),
    [
        ("NP_SEMAPHORE_LIMIT", "1", "semaphore_limit", 1),
        ("NP_UDP_DATA_BUF_SIZE", "1500", "udp_buffer", 1500),
        ("NP_UDP_READ_TIMEOUT", "90s", "udp_read_timeout", 90.0),
        ("NP_HANDSHAKE_TIMEOUT", "500ms", "handshake_timeout", 0.5),
        ("NP_TCP_DIAL_TIMEOUT", "1m30s", "tcp_dial_timeout", 90.0),
        ("NP_UDP_DIAL_TIMEOUT", "1s", "udp_dial_timeout", 1.0),
        ("NP_POOL_GET_TIMEOUT", " 2s ", "pool_get_timeout", 2.0),
        ("NP_MIN_POOL_INTERVAL", "1s", "min_pool_interval", 1.0),
        ("NP_MAX_POOL_INTERVAL", "100ms", "max_pool_interval", 0.1),
        ("NP_REPORT_INTERVAL", "10ms", "report_interval", 0.01),
        ("NP_SERVICE_COOLDOWN", "1s", "service_cooldown", 1.0),
        ("NP_SHUTDOWN_TIMEOUT", "0", "shutdown_timeout", 0.0),
        ("NP_SHARE_WITHIN", "0", "share_within", 0.0),
        ("NP_RELOAD_INTERVAL", "24h", "reload_interval", 86400.0),
    ],
)
def test_each_variable(name: str, text: str, field: str, value: float) -> None:
    """A variable sets its own field and no other."""
    assert Tuning.from_environ({name: text}) == (attrs.evolve(Tuning(), **{field: value}), ())


@pytest.mark.parametrize("row", VARIABLES, ids=lambda row: row.name)
@pytest.mark.parametrize("text", ["x", "-1", "9999999h", "1e3", "0.5"])
def test_bad_values(row: Variable, text: str) -> None:
    """A bad value is reported once, with name, value and what is accepted; the default is used."""
    tuning, warnings = Tuning.from_environ({row.name: text})
    assert tuning == Tuning()
    assert warnings == (f"{row.name}={text}: using {row.default}; accepted: {row.accepts}",)


@pytest.mark.parametrize(
    ("name", "text", "accepts"),
    [
        ("NP_SEMAPHORE_LIMIT", "0", "an integer from 1 to 1000000"),
        ("NP_UDP_DATA_BUF_SIZE", "65508", "an integer from 1 to 65507"),
        ("NP_REPORT_INTERVAL", "5", f"a duration from 10ms to 8760h, {DURATION}"),
        ("NP_REPORT_INTERVAL", "9ms", f"a duration from 10ms to 8760h, {DURATION}"),
        ("NP_REPORT_INTERVAL", "0", f"a duration from 10ms to 8760h, {DURATION}"),
        ("NP_SHUTDOWN_TIMEOUT", "8761h", f"a duration from 0 to 8760h, {DURATION}"),
    ],
)
def test_bounds_are_named(name: str, text: str, accepts: str) -> None:
    """A value just out of bounds is refused, and the bounds are given in words."""
    _, (warning,) = Tuning.from_environ({name: text})
    assert warning.startswith(f"{name}={text}: using ")
    assert warning.endswith(f"; accepted: {accepts}")


def test_empty_counts_as_absent() -> None:
    """An empty variable, as in a container's template, is no variable."""
    assert Tuning.from_environ({row.name: "" for row in VARIABLES}) == (Tuning(), ())


def test_every_bad_value_is_reported() -> None:
    """Several bad values get a line each, and good ones among them still count."""
    environ = {"NP_REPORT_INTERVAL": "x", "NP_SERVICE_COOLDOWN": "1s", "NP_RELOAD_INTERVAL": "y"}
    tuning, warnings = Tuning.from_environ(environ)
    assert tuning == attrs.evolve(Tuning(), service_cooldown=1.0)
    assert [warning.partition("=")[0] for warning in warnings] == [
        "NP_REPORT_INTERVAL",
        "NP_RELOAD_INTERVAL",
    ]


@pytest.mark.parametrize(
    ("environ", "found"),
    [
        ({"NP_MIN_POOL_INTERVAL": "2s"}, ("2s", "1s")),
        ({"NP_MAX_POOL_INTERVAL": "50ms"}, ("100ms", "50ms")),
        ({"NP_MIN_POOL_INTERVAL": "3s", "NP_MAX_POOL_INTERVAL": "2s"}, ("3s", "2s")),
    ],
)
def test_crossed_pool_intervals(environ: dict[str, str], found: tuple[str, str]) -> None:
    """A shortest interval above the longest is reported, and the defaults of both are used."""
    tuning, warnings = Tuning.from_environ(environ)
    assert tuning == Tuning()
    assert warnings == (
        f"NP_MIN_POOL_INTERVAL={found[0]} is above NP_MAX_POOL_INTERVAL={found[1]}: "
        "using 100ms and 1s",
    )


@given(st.dictionaries(st.sampled_from([row.name for row in VARIABLES]), st.text()))
def test_no_environment_stops_the_program(environ: dict[str, str]) -> None:
    """Whatever the values, there is a tuning within bounds, and warnings of one printable line."""
    tuning, warnings = Tuning.from_environ(environ)
    for row in VARIABLES:
        assert row.least <= getattr(tuning, row.field) <= row.most
    assert all(warning.isprintable() for warning in warnings)


def test_misspelt_names() -> None:
    """The name of a variable that is nearly one of ours is reported; what is of others is not."""
    tuning, warnings = Tuning.from_environ(
        {"NP_SHAREWITHIN": "0", "NP_RELAYS": "x", "NP_MASTER_WORKERS": "2", "NP_STATE": "x"}
    )
    assert tuning == Tuning() and warnings == (
        "NP_SHAREWITHIN: ignored, it is unknown; did you mean NP_SHARE_WITHIN?",
        "NP_RELAYS: ignored, it is unknown; did you mean NP_RELAY?",
    )


def test_relay() -> None:
    """NP_RELAY=portable asks for Twisted's transports; any other value is reported and ignored."""
    assert Tuning.from_environ({"NP_RELAY": " portable "}) == (Tuning(portable_relay=True), ())
    assert Tuning.from_environ({"NP_RELAY": ""}) == (Tuning(), ())
    assert Tuning.from_environ({"NP_RELAY": "fast"}) == (
        Tuning(),
        ("NP_RELAY=fast: ignored; accepted: portable",),
    )
