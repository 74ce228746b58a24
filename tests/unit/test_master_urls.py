"""What a master makes of posted URLs."""

from __future__ import annotations

import pytest

from nodepass.config import MasterConfig, parse_url
from nodepass.errors import ConfigError
from nodepass.master.urls import accept, same


def master(url: str = "master://:1") -> MasterConfig:
    config = parse_url(url)
    assert isinstance(config, MasterConfig)
    return config


@pytest.mark.parametrize(
    "url",
    [
        "server://k%40y:pass@:1/:2?b=2&a=1&a=3&tls=#frag",
        "client://[::1]:1/a:1,b:2?min=1",
        "server://:1/:2",
    ],
)
def test_urls_come_back_as_sent(url: str) -> None:
    """Order, repeated parameters, escapes, fragment, password and lists included."""
    assert accept(url, master()).url == url


def test_the_scheme_is_lowered() -> None:
    """And nothing else of the case."""
    assert accept("SERVER://Key@H:1/T:2", master()).url == "server://Key@H:1/T:2"


@pytest.mark.parametrize(
    "own, posted, url",
    [
        ("log=debug", "server://:1/:2", "server://:1/:2?log=debug"),
        ("log=debug", "server://:1/:2?log=warn", "server://:1/:2?log=warn"),
        ("log=debug", "server://:1/:2?slot=5&log=&b=1#f", "server://:1/:2?b=1&log=debug&slot=5#f"),
        ("tls=1", "server://:1/:2?mode=1", "server://:1/:2?mode=1&tls=1"),
        ("tls=1", "server://:1/:2?tls=0", "server://:1/:2?tls=0"),
        ("tls=1", "client://:1/:2?z=1&a=2", "client://:1/:2?z=1&a=2"),
        ("tls=0", "server://:1/:2?z=1&a=2", "server://:1/:2?z=1&a=2"),
        ("wire=any", "server://:1/:2?z=1&a=2", "server://:1/:2?z=1&a=2"),
        (
            "tls=2&crt=/a b.pem&key=/k.pem".replace(" ", "%20"),
            "server://:1/:2?key=x",
            "server://:1/:2?crt=%2Fa+b.pem&key=%2Fk.pem&tls=2",
        ),
    ],
)
def test_what_the_master_fills_in(own: str, posted: str, url: str) -> None:
    """`log` where its own URL has it, and for servers `tls` with its files; sorted by name then."""
    assert accept(posted, master(f"master://:1?{own}")).url == url


def test_config_spells_everything_out() -> None:
    """With the key and password as they are, and the master's wire."""
    config = accept("server://k:p@:1/:2?slot=5", master("master://:1?wire=any")).config
    assert config.startswith("server://k:p@:1/:2?log=info&tls=0&max=1024&")
    assert "slot=5" in config and "wire=any" in config


@pytest.mark.parametrize(
    "posted, message",
    [
        ("hello", "Invalid URL format"),
        ("master://:1", "Invalid URL scheme"),
        ("http://h:1/x:2", "Invalid URL scheme"),
        ("server://:1", "the URL has no target"),
        ("server://:1/:2?mode=7", "mode=7: accepted"),
    ],
)
def test_refused(posted: str, message: str) -> None:
    """With the line that the command would print."""
    with pytest.raises(ConfigError, match=message):
        accept(posted, master())


def test_same() -> None:
    """The order of parameters makes no difference, all else does."""
    assert same("server://:1/:2?a=1&b=2", "SERVER://:1/:2?b=2&a=1")
    assert not same("server://:1/:2?a=1", "server://:1/:2?a=2")
    assert not same("server://:1/:2", "client://:1/:2")


def test_empty_values_count_as_none_everywhere() -> None:
    """What is shown, spelled out and hosted agree, also where the master gives the wire."""
    found = accept("server://:1/:2?tls=&log=", master("master://:1?tls=1&log=debug&wire=any"))
    assert found.url == "server://:1/:2?log=debug&tls=1"
    assert "log=debug&tls=1&" in found.config
    assert found.hosted == "server://:1/:2?log=debug&tls=1&wire=any"
