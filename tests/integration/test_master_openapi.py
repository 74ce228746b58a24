"""The OpenAPI document is a valid one, and a running master does what it says and nothing else."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from attrs import define
from openapi_spec_validator import OpenAPIV31SpecValidator

ROOT = Path(__file__).parents[2]

#: Requests that are invented for each route, at most, in each way.
EXAMPLES = os.environ.get("NP_TEST_EXAMPLES", "8")

#: What each answer is checked for. Left out is whether data in the right form is accepted: not
#: every text is a URL, and the instance that stands for the API key can't be deleted.
CHECKS = (
    "not_a_server_error,status_code_conformance,content_type_conformance,"
    "response_headers_conformance,response_schema_conformance,negative_data_rejection,"
    "unsupported_method,allow_header_conformance,ignored_auth,"
    "use_after_free,ensure_resource_availability"
)


@define
class Master:
    """A master as a process."""

    api: str
    key: str
    log: Path


@pytest.fixture
def master(tmp_path: Path) -> Iterator[Master]:
    """A master whose log shows what went wrong inside."""
    environ = {"NP_STATE": str(tmp_path / "nodepass.db"), "NP_MASTER_WORKERS": "1"}
    log = tmp_path / "log"
    with open(log, "w") as output:
        process = subprocess.Popen(
            [sys.executable, "-u", "-m", "nodepass", "master://127.0.0.1:0/some/where?log=info"],
            env={**os.environ, "PYTHONPATH": str(ROOT), **environ},
            stdout=output,
            stderr=output,
        )
    try:
        deadline = time.monotonic() + 20
        while (port := re.search(r"API on \S+:(\d+), prefix (\S+)", log.read_text())) is None:
            assert time.monotonic() < deadline and process.poll() is None, log.read_text()
            time.sleep(0.05)
        key = re.search(r"API Key created: (\w+)", log.read_text())
        assert key is not None
        yield Master(f"http://127.0.0.1:{port[1]}{port[2]}", key[1], log)
    finally:
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0


def test_master_does_what_its_document_says(master: Master, tmp_path: Path) -> None:
    """Whatever is asked, the status, Content-Type and form of the answer are those of the
    document, without a key it is 401, and nothing is an error of the master's own."""
    with urllib.request.urlopen(f"{master.api}/openapi.json", timeout=20) as answer:
        OpenAPIV31SpecValidator(json.load(answer)).validate()
    # The stream of events has no end: other tests are about it.
    done = subprocess.run(
        [
            *[Path(sys.executable).parent / "schemathesis", "run", f"{master.api}/openapi.json"],
            *["--header", f"X-API-Key: {master.key}", "--exclude-path", "/events"],
            *["--checks", CHECKS, "--max-examples", EXAMPLES, "--seed", "1", "--no-shrink"],
            *["--request-timeout", "10", "--generation-database", "none", "--no-color"],
        ],
        cwd=tmp_path,
        env={
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "SCHEMATHESIS_HOOKS": "tests.schemahooks",
        },
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
    counts = re.search(r"(\d+) generated, (\d+) passed", done.stdout)
    assert counts is not None and int(counts[1]) == int(counts[2]) > 300, done.stdout[-2000:]
    log = master.log.read_text()
    assert "ERROR" not in log and "unexpectedly" not in log, log[-4000:]
