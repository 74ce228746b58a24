"""What Schemathesis is told about a master, so that requests that it invents do no harm.

`SCHEMATHESIS_HOOKS` names this module.
"""

from __future__ import annotations

from itertools import count
from typing import Any

import schemathesis
from schemathesis import Case, HookContext

#: Tunnels that anybody may have here, as often as they like.
URL = "server://an-honest-key-of-good-length@127.0.0.1:0/127.0.0.1:{}?mode=2&log=none"

_numbers = count()


@schemathesis.hook
def before_call(context: HookContext, case: Case, kwargs: dict[str, Any]) -> None:
    """Keep instances, and what the master dials, on this machine; end what would not end; keep
    the API key, without which nothing more is learned."""
    body, query = case.body, case.query or {}
    if isinstance(body, dict):
        if "://" in str(body.get("url")):
            # Each twice, as to give an instance the URL that it has is refused.
            body["url"] = URL.format(1 + next(_numbers) // 2 % 1000)
        if body.get("action") == "restart" and "*" in str((case.path_parameters or {}).get("id")):
            body["action"] = "reset"
    if "target" in query:
        query["target"] = "127.0.0.1:1"
    query.pop("follow", None)
