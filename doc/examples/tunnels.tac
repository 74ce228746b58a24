"""Two tunnels for `twistd -ny tunnels.tac`; the key comes from NODEPASS_KEY."""

from twisted.application.service import Application

from nodepass import makeService

application = Application("tunnels")
for url in (
    "server://:10101/:8080?mode=1&tls=1",
    "client://127.0.0.1:5353/10.0.0.53:53?mode=1",
):
    makeService(url).setServiceParent(application)
