"""What is in the process of a tunnel, and what is not."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

KEY = "k" * 32

#: Runs the command, and says on its error output which modules were there at the end.
_COMMAND = """\
import sys
from nodepass.cli import main
status = main(sys.argv[1:])
print(*sys.modules, file=sys.stderr)
sys.exit(status)
"""

#: What Twisted or a library would bring, and a tunnel doesn't use.
_SPARED = {
    "argparse",
    "ast",
    "_hashlib",
    "asyncio",
    "attr.validators",
    "base64",
    "calendar",
    "concurrent.futures",
    "cryptography.hazmat._oid",
    "cryptography.hazmat.backends.openssl",
    "cryptography.x509",
    "ctypes",
    "dataclasses",
    "difflib",
    "dis",
    "email.utils",
    "hashlib",
    "hmac",
    "html.entities",
    "http",
    "idna",
    "inspect",
    "json",
    "klein",
    "logging",
    "msgspec",
    "pickle",
    "platform",
    "random",
    "selectors",
    "service_identity",
    "ssl",
    "stringprep",
    "treq",
    "twisted.application.app",
    "twisted.internet._sslverify",
    "twisted.internet.endpoints",
    "twisted.internet.process",
    "twisted.internet.unix",
    "twisted.python.filepath",
    "twisted.python.threadpool",
    "twisted.trial",
    "twisted.web",
    "typing_extensions",
    "unittest",
    "urllib.request",
    "uuid",
    "zipfile",
}

#: What a server or a client has of the package: itself, and nothing of the other commands.
_OTHERS = re.compile(r"nodepass\.(master|ctl|client|demo|workers|tap|commandline|help)\b")


@contextmanager
def command(*arguments: str) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [sys.executable, "-c", _COMMAND, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def said(process: subprocess.Popen[str], pattern: str) -> str:
    """The first group of the first line that matches."""
    assert process.stdout is not None
    for line in process.stdout:
        if found := re.search(pattern, line):
            return found[1]
    raise AssertionError(f"{pattern} was not said")


def modules(process: subprocess.Popen[str]) -> set[str]:
    """Ends it, and returns the modules that it had."""
    process.terminate()
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 0, errors
    return set(errors.split())


def both(tls: int, wire: str) -> dict[str, set[str]]:
    """The modules of a server and of a client that have joined."""
    more = f"wire={wire}"
    with command(f"server://{KEY}@127.0.0.1:0/127.0.0.1:0?mode=1&tls={tls}&{more}") as server:
        port = said(server, r"listening for clients on 127.0.0.1:(\d+)")
        with command(f"client://{KEY}@127.0.0.1:{port}/127.0.0.1:9?mode=2&{more}") as client:
            said(client, "(tunnel established)")
            return {"client": modules(client), "server": modules(server)}


@pytest.mark.parametrize("tls", [0, 1])
def test_no_needless_module(tls: int) -> None:
    """A server and a client that have joined have imported nothing that they don't need."""
    for role, found in both(tls, "native").items():
        assert "twisted.internet.tcp" in found, role
        assert sorted(found & _SPARED) == [], role
        assert [name for name in found if _OTHERS.match(name)] == [], role


def test_one_wire_at_a_time() -> None:
    """Nodes of an old dialect have nothing of the native wire's handshake and sessions."""
    for role, found in both(0, "1.14").items():
        assert "nodepass.wire.old.peer" in found, role
        assert sorted(found & {"spake2", "nodepass.wire.native.peer"}) == [], role


def run(code: str) -> None:
    """Runs a program, which must end well."""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 0, done.stderr


_USES = """\
import asyncio
asyncio.run(asyncio.sleep(0))

from twisted.internet.defer import Deferred, succeed
async def wait(): return await succeed(5).asFuture(asyncio.get_running_loop())
assert asyncio.run(wait()) == 5

async def wait(): return await succeed(5)
assert Deferred.fromCoroutine(wait()).result == 5

from twisted.python import compat
compat.cookielib.CookieJar()
assert compat.escape("<") == "&lt;"

from twisted.plugin import IPlugin, getPlugins
list(getPlugins(IPlugin))

from twisted.internet import base, posixbase, unix
posixbase.ssl.CertificateOptions()
assert posixbase.unix.Port is unix.Port
base.threads.deferToThread

import sys
from twisted.internet import protocol, reactor, threads
class Child(protocol.ProcessProtocol):
    def processEnded(self, reason): reactor.stop()
def spawn(_): reactor.spawnProcess(Child(), sys.executable, [sys.executable, "-c", ""])
reactor.callWhenRunning(lambda: threads.deferToThread(int).addCallback(spawn))
reactor.run()

import attr, attrs, inspect
def number(text: str) -> int: return int(text)
@attrs.define
class Counted:
    count: int = attrs.field(converter=number, validator=attrs.validators.instance_of(int))
assert Counted("3") == Counted(3) != Counted(4) and repr(Counted(3)) == "Counted(count=3)"
assert attr.validators.optional and inspect.signature(number).return_annotation is int
from twisted.internet.address import IPv4Address
try: IPv4Address("SCTP", "127.0.0.1", 1)
except ValueError: pass
else: raise AssertionError

import logging, setproctitle, uuid
setproctitle.logger.setLevel(logging.ERROR)
assert logging.getLogger("setproctitle").level == logging.ERROR
from twisted.logger import LogLevel, STDLibLogObserver, eventAsJSON, eventFromJSON
STDLibLogObserver()
from twisted.logger import formatEvent
assert formatEvent({"log_format": "{a[0]} {b()}", "a": [1], "b": lambda: 2}) == "1 2"
event = eventAsJSON({"log_level": LogLevel.warn})
assert eventFromJSON(event)["log_level"] is LogLevel.warn
assert "02e59486-f24d-46ad-8224-3acdf2a5732a" in event

from incremental import _IncrementalConfig
assert _IncrementalConfig(True, "a", "b") == _IncrementalConfig(True, "a", "b")

from twisted.python.deprecate import deprecatedKeywordParameter, warnAboutFunction
from incremental import Version
deprecatedKeywordParameter(Version("a", 1, 0, 0), "text")(number)
warnAboutFunction(uuid.uuid4, "old")
from typing import ForwardRef, Optional, get_type_hints
def hinted(a: Optional["int"]): pass
assert get_type_hints(hinted) == {"a": Optional[int]}
import typing_extensions
assert typing_extensions.override is not number

from twisted.application.service import Application
Application("a")

import calendar, datetime, hashlib, pickle
when = datetime.datetime(2026, 1, 2, tzinfo=datetime.timezone.utc)
assert pickle.loads(pickle.dumps(when)) == when
assert datetime.datetime.strptime("2026", "%Y").strftime("%Y-%m") == "2026-01"
assert hashlib.md5(b"").update and hashlib.sha256().name == "sha256"
assert pickle.loads(pickle.dumps(calendar.MONDAY)) == calendar.MONDAY

from twisted.internet.address import UNIXAddress
assert UNIXAddress("a").name == b"a"

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from datetime import datetime
from OpenSSL import crypto
x509.RFC822Name("a@example.org")
key, name = ec.generate_private_key(ec.SECP256R1()), x509.Name([])
certificate = x509.CertificateBuilder(
    name, name, key.public_key(), 1, datetime(2026, 1, 1), datetime(2027, 1, 1)
).sign(key, SHA256())
assert crypto.X509.from_cryptography(certificate).to_cryptography() == certificate
crypto.X509Store().set_time(datetime(2026, 1, 1))

from spake2 import SPAKE2_A, SPAKE2_B
one, two = SPAKE2_A(b"k"), SPAKE2_B(b"k")
shares = one.start(), two.start()
assert SPAKE2_A.from_serialized(one.serialize()).finish(shares[1]) == two.finish(shares[0])

import ctypes, pathlib
pathlib.Path("/"), ctypes.c_int(1)
"""


_PAGES = """\
import mmap, struct
from nodepass.relay.engine import connection, tls
from nodepass.relay.engine.openssl import address_of_buffer
from OpenSSL._util import ffi

def resident(buffer):
    # Linux: bit 63 of a page's entry says that it is there.
    first = int(ffi.cast("uintptr_t", address_of_buffer(buffer))) // mmap.PAGESIZE
    count = len(buffer) // mmap.PAGESIZE
    with open("/proc/self/pagemap", "rb") as file:
        file.seek(8 * first)
        entries = struct.unpack(f"{count}Q", file.read(8 * count))
    return sum(entry >> 63 for entry in entries)

for module in connection, tls:
    assert resident(module._buffer) == 0, module
    module._buffer[0] = 1
    assert 0 < resident(module._buffer), module
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the engine is Linux's")
def test_buffers_that_nothing_was_read_into() -> None:
    """The engine's buffers take memory when something is read, and only as far as it goes."""
    run(_PAGES)


def test_nothing_is_lost() -> None:
    """What was spared is there when somebody does need it."""
    run(f"from nodepass import lean\nlean.import_twisted(); lean.import_pake()\n{_USES}")


def test_no_stand_in_stays() -> None:
    """Whoever imports a module afterwards gets the module, and no reactor is installed."""
    run(
        "import sys\n"
        "from nodepass import lean\n"
        "lean.import_twisted(); lean.import_pake()\n"
        "assert 'spake2' in sys.modules\n"
        "assert 'asyncio' not in sys.modules and 'twisted.internet.tcp' in sys.modules\n"
        "assert 'twisted.internet.reactor' not in sys.modules\n"
        "assert not [m for m in sys.modules.values() if isinstance(m, lean._StandIn)]\n"
    )


def test_a_program_has_twisted_as_it_is() -> None:
    """The package used from Python changes nothing about Twisted, nor does the command when Twisted
    is there already."""
    run("import sys, nodepass.service; assert 'asyncio' in sys.modules")
    run(
        "import twisted.internet.defer, sys\n"
        "before = sys.modules['asyncio']\n"
        "from nodepass.lean import import_twisted\n"
        "import_twisted()\n"
        "assert sys.modules['asyncio'] is before\n"
    )
