"""The page with Swagger UI: complete, and without a word to anybody but the master."""

from __future__ import annotations

import re
import subprocess
import sys
from typing import Any

from twisted.web.resource import IResource
from twisted.web.test.requesthelper import DummyRequest

from nodepass.master import swagger


def get(resource: IResource | None) -> Any:
    """Render a resource; the request it went to."""
    assert resource is not None
    request: Any = DummyRequest([b""])
    rendered: Any = resource.render(request)
    if isinstance(rendered, bytes):
        request.write(rendered)
        request.finish()
    else:
        while request.finished == 0 and request.go:
            request.go.resumeProducing()
    return request


def body(resource: IResource | None) -> str:
    """What a resource answers with."""
    return b"".join(get(resource).written).decode()


def test_the_page_loads_nothing_from_elsewhere() -> None:
    """Each address in page and script is one below the page, and each of them exists."""
    html = body(swagger.page())
    addresses = re.findall(r'(?:src|href)="([^"]*)"', html)
    files = [address.removeprefix("docs/") for address in addresses if address != "data:,"]
    assert "//" not in html.replace("<!DOCTYPE", "")
    assert files == ["swagger-ui.css", "swagger-ui-bundle.js", "start.js"]
    for name in files:
        assert swagger.asset(name) is not None
    script = body(swagger.asset("start.js"))
    assert 'url: "openapi.json"' in script and "validatorUrl: null" in script
    assert "//" not in script


def test_the_page_has_no_code_of_its_own() -> None:
    """Scripts are files, so that the policy can forbid any in the page."""
    assert re.findall(r"<script[^>]*>([^<]*)<", body(swagger.page())) == ["", ""]


def test_the_browser_is_told_to_stay_here() -> None:
    """Page and files carry a policy that allows this master alone."""
    for resource in (swagger.page(), swagger.asset("start.js"), swagger.asset("swagger-ui.css")):
        headers = get(resource).responseHeaders
        (policy,) = headers.getRawHeaders("Content-Security-Policy")
        assert "default-src 'none'" in policy
        assert "script-src 'self';" in policy and "connect-src 'self';" in policy
        assert "http" not in policy and "*" not in policy
        assert headers.getRawHeaders("X-Content-Type-Options") == ["nosniff"]


def test_files() -> None:
    """Script and style are those of Swagger UI 5, with the types that browsers insist on."""
    bundle = get(swagger.asset("swagger-ui-bundle.js"))
    text = b"".join(bundle.written).decode()
    assert len(text) > 1_000_000 and "SwaggerUIBundle" in text
    assert re.search(r'"5\.\d+\.\d+"', text)
    assert bundle.responseHeaders.getRawHeaders("Content-Type") == [
        "text/javascript; charset=utf-8"
    ]
    style = get(swagger.asset("swagger-ui.css"))
    assert b".swagger-ui" in b"".join(style.written)
    assert style.responseHeaders.getRawHeaders("Content-Type") == ["text/css; charset=utf-8"]


def test_other_files_are_not_served() -> None:
    """Nothing else of the package, nor of the machine, can be had."""
    for name in ("", "swagger.html", "oauth2-redirect.html", "../main.py", "..", "/etc/passwd",
                 "*", "swagger-ui-bundle.js.map"):  # fmt: skip
        assert swagger.asset(name) is None, name


def test_the_package_is_not_run() -> None:
    """Finding the files imports nothing of their package, and installs no reactor."""
    program = (
        "import sys; from nodepass.master import swagger, openapi, sysinfo, tcping;"
        "assert swagger.asset('swagger-ui.css') is not None;"
        "print([name for name in ('mkdocs_swagger_ui_tag', 'bs4', 'klein', 'treq',"
        " 'twisted.internet.reactor') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("[]\n", "")
