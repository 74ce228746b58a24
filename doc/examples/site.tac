"""A web site and the tunnel that shows it to the world, in one process: `twistd -ny site.tac`."""

import json

from klein import Klein
from twisted.application.internet import StreamServerEndpointService
from twisted.application.service import Application
from twisted.internet import reactor
from twisted.internet.endpoints import serverFromString
from twisted.web.server import Site

from nodepass import makeService

tunnel = makeService("client://server.example.org:10101/127.0.0.1:8000?mode=2&tls=1")
app = Klein()


@app.route("/")
def home(request):
    """Tell how the tunnel is that this request came through."""
    request.setHeader("Content-Type", "application/json")
    stats = tunnel.stats
    return json.dumps({"sessions": stats.tcps, "idle links": stats.pool, "ping": stats.ping})


application = Application("site")
site = serverFromString(reactor, "tcp:8000:interface=127.0.0.1")
StreamServerEndpointService(site, Site(app.resource())).setServiceParent(application)
tunnel.setServiceParent(application)
