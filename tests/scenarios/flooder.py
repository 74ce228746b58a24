"""A program that asks a master for the wrong things, many at a time: ``flooder PORT COUNT``,
where COUNT is how many connections it makes.

The API key is in the environment as ``KEY``. Each request's answer is compared with the one that
it should have; how many there were of each kind, and what came instead, is printed as JSON.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import re
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable

from attrs import define

#: Connections at a time.
AT_ONCE = 64
#: Of those that send half a request and then nothing, how many are kept until the end.
HELD = 100
#: Seconds; a right answer takes far less.
PATIENCE = 20.0

INVALID = b'{"error":"Unauthorized: Invalid API key"}\n'
REQUIRED = b'{"error":"Unauthorized: API key required"}\n'
BAD_BODY = b'{"error":"Invalid request body"}\n'
BAD = b'{"error":"Bad Request"}\n'
METHOD = b'{"error":"Method not allowed"}\n'
LARGE = b'{"error":"Request body too large"}\n'
PLAIN_404 = b"404 page not found\n"

_HEAD = re.compile(rb"HTTP/1\.1 (\d{3}) [^\r]*\r\n(?:[^\r]*\r\n)*?Content-Length: (\d+)\r\n")

Answer = tuple[int, bytes]


class Wrong(Exception):
    """An answer that is not the right one."""


@define
class Conn:
    """A connection to the master."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    async def answer(self) -> Answer:
        """Read an answer."""
        head = await self.reader.readuntil(b"\r\n\r\n")
        found = _HEAD.match(head)
        if found is None:
            raise Wrong(repr(head[:200]))
        return int(found[1]), await self.reader.readexactly(int(found[2]))

    async def expect(self, status: int, body: bytes | None = None) -> None:
        """Read the answer that should come."""
        answer = await self.answer()
        if answer[0] != status or body not in (None, answer[1]):
            raise Wrong(f"{answer} rather than {status}, {body!r}")


@define
class Flood:
    """All the ways to be a nuisance."""

    port: int
    key: bytes
    chance: random.Random
    held: list[Conn]

    async def connect(self) -> Conn:
        return Conn(*await asyncio.open_connection("127.0.0.1", self.port))

    def request(
        self,
        method: bytes = b"GET",
        path: bytes = b"/api/v1/instances",
        body: bytes = b"",
        key: bytes | None = b"right",
        headers: bytes = b"",
    ) -> bytes:
        used = self.key if key == b"right" else key
        lines = b"%s %s HTTP/1.1\r\nHost: here\r\n%s" % (method, path, headers)
        if used is not None:
            lines += b"X-API-Key: %s\r\n" % used
        if body:
            lines += b"Content-Length: %d\r\n" % len(body)
        return lines + b"\r\n" + body

    # Each sends what it likes on a connection, and expects what it should.

    async def wrong_key(self, conn: Conn) -> None:
        key = b"%032x" % self.chance.getrandbits(128)
        conn.writer.write(self.request(key=self.chance.choice([key, b"x", b"\xff" * 4000])))
        await conn.expect(401, INVALID)

    async def no_key(self, conn: Conn) -> None:
        conn.writer.write(self.request(b"DELETE", b"/api/v1/instances/no", key=None))
        await conn.expect(401, REQUIRED)

    async def bad_json(self, conn: Conn) -> None:
        size = self.chance.choice([1, 10, 1000, 100_000])
        body = self.chance.choice(
            [b"[" * size, b"\xff" * size, b'{"url":' + b"9" * size, b'{"url":"\\u12', b"null"]
        )
        conn.writer.write(self.request(b"POST", body=body))
        await conn.expect(400, BAD_BODY)

    async def large_by_length(self, conn: Conn) -> None:
        length = self.chance.choice([(1 << 20) + 1, 1 << 40, 10**30])
        key = self.chance.choice([b"right", None])
        head = self.request(b"POST", key=key, headers=b"Content-Length: %d\r\n" % length)
        conn.writer.write(head + b"x" * 10_000)
        await conn.expect(413, LARGE)

    async def large_in_chunks(self, conn: Conn) -> None:
        key = self.chance.choice([b"right", None])
        conn.writer.write(self.request(b"POST", key=key, headers=b"Transfer-Encoding: chunked\r\n"))
        chunk = b"10000\r\n" + b"x" * 65536 + b"\r\n"
        for _ in range(17):
            conn.writer.write(chunk)
            await conn.writer.drain()
        await conn.expect(413, LARGE)

    async def large_headers(self, conn: Conn) -> None:
        line = self.chance.choice([b"X: " + b"y" * 20_000 + b"\r\n", b"X: y\r\n" * 600])
        conn.writer.write(self.request(headers=line))
        await conn.expect(400, BAD)

    async def half_a_request(self, conn: Conn) -> None:
        whole = self.request(b"POST", body=b'{"url":"server://:1/:2"}')
        conn.writer.write(whole[: self.chance.randrange(1, len(whole))])
        await conn.writer.drain()
        if len(self.held) < HELD:
            self.held.append(conn)

    async def odd_method(self, conn: Conn) -> None:
        method, status, body = self.chance.choice(
            [
                (b"TRACE", 405, METHOD),
                (b"BREW", 405, METHOD),
                (b"get", 405, METHOD),
                (b"G{T", 400, BAD),
                (b"\x00", 400, BAD),
                (b"M" * 65, 400, BAD),
            ]
        )
        conn.writer.write(self.request(method))
        await conn.expect(status, body)

    async def odd_path(self, conn: Conn) -> None:
        path, status, body = self.chance.choice(
            [
                (b"/", 404, PLAIN_404),
                (b"/api/v1", 404, PLAIN_404),
                (b"/api/v1/../../etc/passwd", 404, PLAIN_404),
                (b"/%ff%fe", 404, b'{"error":"Not Found"}\n'),
                (b"/api/v1/instances/%00", 404, None),
                (b"/api/v1/docs/..%2f..%2fsetup.py", 404, PLAIN_404),
                (b"/api/v1/instances?" + b"a=b&" * 2000, 200, None),
                (b"/" + b"a" * 20_000, 400, BAD),
            ]
        )
        conn.writer.write(self.request(path=path))
        await conn.expect(status, body)

    async def no_http(self, conn: Conn) -> None:
        noise = [
            b"\x80\x03\x01\x02\x00\r\n\r\n",
            b"hello\r\n\r\n",
            b"GET / HTTP/1.1 more\r\n\r\n",
            b"GET / HTTP/1.1\r\nno colon\r\n\r\n",
            b"POST / HTTP/1.1\r\nContent-Length: -1\r\n\r\n",
            b"POST / HTTP/1.1\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
            b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        ]
        conn.writer.write(self.chance.choice(noise))
        await conn.expect(400, BAD)

    async def tls(self, conn: Conn) -> None:
        conn.writer.write(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03")
        try:
            raise Wrong(repr(await conn.reader.read(100)))
        except ConnectionResetError:
            pass  # as it should be

    async def pipelined(self, conn: Conn) -> None:
        first = self.request(b"POST", body=b"{")
        second = self.request(key=None)
        third = self.request(b"OPTIONS", key=None)
        fourth = self.request(path=b"/nothing")
        conn.writer.write((first + second + third + fourth) * 2)
        for _ in range(2):
            await conn.expect(400, BAD_BODY)
            await conn.expect(401, REQUIRED)
            await conn.expect(200, b"")
            await conn.expect(404, PLAIN_404)

    async def one(self, way: Callable[[Conn], Awaitable[None]]) -> None:
        """Be a nuisance in one way, on a connection of its own."""
        conn = await self.connect()
        try:
            await asyncio.wait_for(way(conn), PATIENCE)
        finally:
            if conn not in self.held:
                conn.writer.close()


async def main(port: int, count: int) -> None:
    flood = Flood(port, os.environ["KEY"].encode(), random.Random(7), [])
    ways = [
        *[flood.wrong_key] * 3,
        *[flood.bad_json] * 2,
        flood.no_key,
        flood.large_by_length,
        flood.large_in_chunks,
        flood.large_headers,
        flood.half_a_request,
        flood.odd_method,
        flood.odd_path,
        flood.no_http,
        flood.tls,
        flood.pipelined,
    ]
    done: Counter[str] = Counter()
    wrong: list[str] = []
    left = count

    async def work() -> None:
        nonlocal left
        while left > 0:
            way = flood.chance.choice(ways)
            left -= 1
            try:
                await flood.one(way)
                done[way.__name__] += 8 if way == flood.pipelined else 1
            except (Exception, asyncio.TimeoutError) as error:
                wrong.append(f"{way.__name__}: {error!r}")

    start = time.monotonic()
    await asyncio.gather(*[work() for _ in range(AT_ONCE)])
    seconds = time.monotonic() - start
    print(json.dumps({"done": done, "wrong": wrong, "seconds": round(seconds, 1)}), flush=True)
    for conn in flood.held:
        conn.writer.close()


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]), int(sys.argv[2])))
