"""A web site of your own and the tunnel that makes it public, in one application.

    NODEPASS_KEY=... twistd -ny examples/site.tac

The site listens on this machine alone. The tunnel's client takes to it whoever visits the server,
which runs elsewhere: nodepass "server://KEY@:10101/:8080?mode=1&tls=1"
"""

import json
import os

from attrs import asdict
from klein import Klein
from twisted.application.service import Application
from twisted.application.strports import service
from twisted.web.server import Site

from nodepass import RoleService, makeService

SITE = os.environ.get("SITE", "tcp:8000:interface=127.0.0.1")
URL = os.environ.get("NODEPASS_URL", "client://server.example.org:10101/127.0.0.1:8000?mode=2&tls=1")


class Pages:
    """The site. It knows the tunnel, so it can tell how that is doing."""

    app = Klein()

    def __init__(self, tunnel: RoleService) -> None:
        self.tunnel = tunnel

    @app.route("/")
    def home(self, request: object) -> str:
        return "Hello from behind the tunnel.\n"

    @app.route("/tunnel")
    def stats(self, request: object) -> str:
        return json.dumps(asdict(self.tunnel.stats)) + "\n"


tunnel = makeService(URL)
pages = Pages(tunnel)

application = Application("site")
tunnel.setServiceParent(application)
service(SITE, Site(pages.app.resource())).setServiceParent(application)
