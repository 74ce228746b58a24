"""The command with an output that nobody reads, as a process."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time


def test_goes_on_and_ends() -> None:
    """With its output stuck from the first line on, a tunnel serves, and ends at SIGTERM."""
    read, write = os.pipe()
    os.set_blocking(write, False)
    try:
        while True:
            os.write(write, b"x" * 4096)
    except BlockingIOError:
        os.set_blocking(write, True)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with socket.create_server(("127.0.0.1", 0)) as target:
        url = f"client://127.0.0.1:{port}/127.0.0.1:{target.getsockname()[1]}?mode=1&log=debug"
        program = subprocess.Popen(
            [sys.executable, "-m", "nodepass", url], stdout=write, stderr=write
        )
        os.close(write)
        try:
            deadline = time.monotonic() + 30
            while True:
                try:
                    visitor = socket.create_connection(("127.0.0.1", port), timeout=30)
                    break
                except ConnectionRefusedError:
                    assert time.monotonic() < deadline
                    time.sleep(0.05)
            target.settimeout(30)
            with visitor, target.accept()[0] as served:
                visitor.sendall(b"through")
                served.settimeout(30)
                assert served.recv(7) == b"through"
            program.send_signal(signal.SIGTERM)
            assert program.wait(30) == 0
        finally:
            program.kill()
            program.wait()
            os.close(read)
