"""Swagger UI: a page to read and try the interface with, which asks nobody but this master.

Its script and style are files of a package, of which nothing is imported. All addresses in the page
are relative to its own, ``<prefix>/v1/docs``, so that it works behind a proxy under another path.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from twisted.web.resource import IResource, Resource
from twisted.web.server import Request
from twisted.web.static import Data, File

__all__ = ["asset", "page"]

#: The package that has Swagger UI's files.
_PACKAGE = "mkdocs_swagger_ui_tag"

_TYPES = {
    "swagger-ui-bundle.js": "text/javascript; charset=utf-8",
    "swagger-ui.css": "text/css; charset=utf-8",
}

_START = "start.js"

_HTML = f"""\
<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>nodepass</title>
<link rel="icon" href="data:,">
<link rel="stylesheet" href="docs/swagger-ui.css">
</head>
<body>
<div id="swagger-ui"></div>
<script src="docs/swagger-ui-bundle.js"></script>
<script src="docs/{_START}"></script>
</body>
</html>
"""

# The validator would be asked on the internet. The layout is the one without a field for the
# address of another document.
_SCRIPT = """\
window.ui = SwaggerUIBundle({
  url: "openapi.json",
  dom_id: "#swagger-ui",
  deepLinking: true,
  displayRequestDuration: true,
  presets: [SwaggerUIBundle.presets.apis],
  layout: "BaseLayout",
  validatorUrl: null,
});
"""

#: Whatever the document or the script may say, a browser loads from, and talks to, this master
#: alone. Swagger UI sets styles of single elements, which needs the one exception.
_POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self' 'unsafe-inline'",
        "img-src 'self' data:",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
    )
)


def page() -> IResource:
    """Return the page, to be served at ``<prefix>/v1/docs``."""
    return _Guarded(Data(_HTML.encode(), "text/html; charset=utf-8"))


def asset(name: str) -> IResource | None:
    """Return a file that the page loads from ``<prefix>/v1/docs/<name>``; None: it has no such."""
    if name == _START:
        return _Guarded(Data(_SCRIPT.encode(), _TYPES["swagger-ui-bundle.js"]))
    if name not in _TYPES:
        return None
    path = _find(name)
    if path is None:
        return None
    # It is sent as fast as it is read, so that one who does not read holds no memory.
    file = File(str(path))
    file.type, file.encoding = _TYPES[name], None
    return _Guarded(file)


def _find(name: str) -> Path | None:
    """Return where the package has a file. The package itself is not run: it is a plugin."""
    spec = find_spec(_PACKAGE)
    for folder in (spec and spec.submodule_search_locations) or ():
        for path in sorted(Path(folder).rglob(name)):
            return path
    return None


class _Guarded(Resource):
    """Serves another resource with headers that keep the browser from going elsewhere."""

    isLeaf = True

    def __init__(self, inner: Resource) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._inner = inner

    def render(self, request: Request) -> bytes | int:
        request.setHeader(b"Content-Security-Policy", _POLICY.encode())
        request.setHeader(b"X-Content-Type-Options", b"nosniff")
        request.setHeader(b"Referrer-Policy", b"no-referrer")
        request.setHeader(b"Cache-Control", b"no-cache")
        rendered: bytes | int = self._inner.render(request)
        return rendered
