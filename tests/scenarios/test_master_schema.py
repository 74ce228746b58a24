"""The running API against its own description, by a program that knows nothing else of it."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest_twisted
from twisted.internet import reactor
from twisted.internet.utils import getProcessOutputAndValue

from tests.scenarios.masters import KEY, master

#: Requests that are tried for each operation; more find the rare cases.
EXAMPLES = int(os.environ.get("NP_TEST_SCHEMA_EXAMPLES", "15"))

#: Neither is over by itself: one is a stream, the other may be.
ENDLESS = "/events$|/logs$"

CHECKS = (
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_headers_conformance",
    "response_schema_conformance",
    "unsupported_method",
    "ignored_auth",
)


@pytest_twisted.ensureDeferred
async def test_the_api_does_what_it_says(tmp_path: Path) -> None:
    """Schemathesis, with good and with bad requests to every operation, sees no answer that the
    description lacks, none of another form, and no failure of the server."""
    running = await master(tmp_path)
    await running.api.create(f"client://{KEY}@127.0.0.1:0/127.0.0.1:9?mode=1")
    output, errors, status = await getProcessOutputAndValue(
        sys.executable,
        [
            "-m",
            "schemathesis.cli",
            "run",
            f"http://127.0.0.1:{running.api.port}/api/v1/openapi.json",
            f"--header=X-API-Key: {running.api.key}",
            f"--exclude-path-regex={ENDLESS}",
            "--phases=examples,coverage,fuzzing",
            f"--checks={','.join(CHECKS)}",
            f"--max-examples={EXAMPLES}",
            "--seed=1",
            "--generation-database=none",
            "--request-timeout=10",
            "--no-color",
        ],
        env={**os.environ, "COLUMNS": "120"},
        path=str(tmp_path),
        reactor=reactor,
    )
    await running.stop()
    report = (output + errors).decode()
    assert status == 0, report
    # "Tested: 11" under "API Operations".
    operations = [line for line in report.splitlines() if line.strip().startswith("Tested:")]
    assert operations and int(operations[0].split(":")[1]) >= 11, report
