"""Which master is meant: options, environment, and the file of contexts."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

import pytest

from nodepass.ctl.contextcommands import run_context
from nodepass.ctl.contexts import (
    Context,
    Contexts,
    contexts_path,
    read_contexts,
    resolve,
    write_contexts,
    write_file,
)
from nodepass.ctl.options import parse
from nodepass.errors import ConfigError

PIN = "ab" * 32


@pytest.fixture
def environ(tmp_path: Path) -> dict[str, str]:
    """An environment with a file of two contexts."""
    environ = {"XDG_CONFIG_HOME": str(tmp_path / "config")}
    contexts = {
        "home": Context("https://home:1", "homekey", fingerprint=PIN),
        "bare": Context("https://bare:1"),
    }
    write_contexts(contexts_path(environ), Contexts("home", contexts))
    return environ


def target(environ: dict[str, str], *options: str) -> tuple[str, str, str]:
    """Address, key, and where the key came from, in one word."""
    found = resolve(parse([*options, "list"]), environ)
    return found.api, found.key, found.key_from.split()[0]


def test_precedence(environ: dict[str, str], tmp_path: Path) -> None:
    """Options, then --context, then the environment, then the default context."""
    file = tmp_path / "key"
    file.write_text("filekey\n")
    full = environ | {"NODEPASS_API": "http://env:1", "NODEPASS_API_KEY": "envkey"}

    assert target(environ) == ("https://home:1", "homekey", "context")
    assert target(full) == ("http://env:1", "envkey", "NODEPASS_API_KEY")
    assert target(full, "--context", "home") == ("https://home:1", "homekey", "context")
    assert target(full, "--context", "bare") == ("https://bare:1", "envkey", "NODEPASS_API_KEY")
    assert target(full, "--api", "http://o:1") == ("http://o:1", "envkey", "NODEPASS_API_KEY")
    assert target(full, "--key-file", str(file))[1:] == ("filekey", "--key-file")
    assert target(full, "--key-file", str(file), "--key", "k")[1:] == ("k", "--key")


def test_a_contexts_key_stays_with_its_address(environ: dict[str, str]) -> None:
    """No master ever gets the key of another one's context, nor is asked for its certificate."""
    for elsewhere in (["--api", "http://o:1"], []):
        with pytest.raises(ConfigError, match="no API key"):
            target(environ | {"NODEPASS_API": "http://env:1"}, *elsewhere)
    found = resolve(parse(["--api", "https://home:1", "--key", "k", "list"]), environ)
    assert found.trust.fingerprint is None


def test_trust(environ: dict[str, str]) -> None:
    """A context's word on the certificate holds unless an option says another."""
    assert resolve(parse(["list"]), environ).trust.fingerprint == bytes.fromhex(PIN)
    trust = resolve(parse(["list", "--insecure"]), environ).trust
    assert (trust.insecure, trust.fingerprint) == (True, None)
    with pytest.raises(ConfigError, match="only one"):
        resolve(parse(["list", "--insecure", "--ca", "x"]), environ)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--context", "gone"], "there: bare, home"),
        (["--context", "home", "--api", "http://h"], "give one of them"),
        (["--key-file", "/nonexistent"], "/nonexistent"),
        # The address before the key, which can't be right for none.
        (["--api", "home:1"], "accepted: http://HOST:PORT"),
        (["--fingerprint", "xyz"], "64 hex digits"),
    ],
)
def test_unusable(environ: dict[str, str], options: list[str], words: str) -> None:
    """Each mistake is named with its cure."""
    with pytest.raises(ConfigError, match=words):
        target(environ, *options)


def test_nothing_at_all(tmp_path: Path) -> None:
    """Without any address the three ways to give one are named."""
    with pytest.raises(ConfigError, match=r"--api URL.*NODEPASS_API.*context set NAME"):
        target({"XDG_CONFIG_HOME": str(tmp_path)})


def test_mode_of_the_file(environ: dict[str, str]) -> None:
    """It is written for its owner alone, and refused when others may read the keys in it."""
    path = contexts_path(environ)
    assert path.stat().st_mode & 0o777 == 0o600
    os.chmod(path, 0o640)
    with pytest.raises(ConfigError, match="chmod 600"):
        read_contexts(path)
    write_contexts(path, Contexts("", {"bare": Context("http://bare:1")}))
    os.chmod(path, 0o644)
    assert read_contexts(path).contexts["bare"].api == "http://bare:1"


def test_on_the_disk_before_it_has_the_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A power cut leaves the old file or the new one: bytes first, then the name, then both."""
    path = tmp_path / "file"
    path.write_text("old")
    steps: list[str] = []
    replace = os.replace

    def note_sync(file: int) -> None:
        kind = os.fstat(file)
        if stat.S_ISDIR(kind.st_mode):
            steps.append("directory")
        else:
            steps.append(f"{kind.st_size} bytes of a file of mode {stat.S_IMODE(kind.st_mode):o}")

    def note_replace(old: str, new: str) -> None:
        steps.append("name")
        replace(old, new)

    monkeypatch.setattr(os, "fsync", note_sync)
    monkeypatch.setattr(os, "replace", note_replace)
    write_file(str(path), "new!")
    assert steps == ["4 bytes of a file of mode 600", "name", "directory"]
    assert path.read_text() == "new!"

    def fail(_: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(ConfigError, match=r"file: Input/output error"):
        write_file(str(path), "newer")
    assert os.listdir(tmp_path) == ["file"]
    assert path.read_text() == "new!"


@pytest.mark.parametrize(
    "text",
    ["x", "[contexts.a]\nkey='k'", "[contexts.a]\napi='h'\nkye='k'", "default=5", "\xff"],
)
def test_unusable_file(environ: dict[str, str], text: str) -> None:
    """A file that can't be used is named, and no part of it is guessed at."""
    path = contexts_path(environ)
    path.write_text(text, encoding="latin-1")
    with pytest.raises(ConfigError, match=r"ctl\.toml"):
        read_contexts(path)


def test_commands(environ: dict[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    """Contexts are set, made the default and listed; no key is ever shown."""

    def run(*options: str) -> None:
        assert run_context(parse(["context", *options]), environ) == 0

    run("set", "new", "--api", "http://new:1", "--key", "newkey")
    run("use", "new")
    assert target(environ) == ("http://new:1", "newkey", "context")
    run("list")
    out = capsys.readouterr().out
    assert "*  new   http://new:1" in out and "newkey" not in out
    # Another address is another master; what is not mentioned stays otherwise.
    run("set", "home", "--insecure")
    assert read_contexts(contexts_path(environ)).contexts["home"] == Context(
        "https://home:1", "homekey", insecure=True
    )
    run("set", "home", "--api", "https://other:1")
    assert read_contexts(contexts_path(environ)).contexts["home"] == Context("https://other:1")
    for options, words in (
        (["use"], "NAME"),
        (["use", "gone"], "gone"),
        (["delete", "gone"], "gone"),
        (["set", "x"], "--api"),
        (["set", "x", "--api", "x"], "accepted"),
        (["set", "x", "--api", "https://x", "--fingerprint", "x"], "64 hex"),
        (["set", "x", "--api", "http://x", "--insecure"], "about TLS"),
        (["set", "x", "--api", "https://x", "--ca", "x", "--insecure"], "only one"),
    ):
        with pytest.raises(ConfigError, match=words):
            run(*options)


def test_delete(environ: dict[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    """One that is forgotten is the default no more; the others stay."""
    assert run_context(parse(["context", "delete", "home"]), environ) == 0
    assert "default: none" in capsys.readouterr().out
    found = read_contexts(contexts_path(environ))
    assert (list(found.contexts), found.default) == (["bare"], "")


def test_first_context_is_the_default(tmp_path: Path) -> None:
    """Whoever has one master need not choose it."""
    environ = {"XDG_CONFIG_HOME": str(tmp_path / "a" / "b")}
    run_context(parse(["context", "set", "x", "--api", "http://x", "--key", "k"]), environ)
    assert target(environ) == ("http://x", "k", "context")
