"""A tunnel as an application file for twistd.

    NODEPASS_KEY=... twistd -ny examples/tunnel.tac

Without -n it runs in the background; see "twistd --help" for log files, pid files and users.
"""

import os

from twisted.application.service import Application

from nodepass import makeService

URL = os.environ.get("NODEPASS_URL", "server://:10101/:8080?mode=1&tls=1")

application = Application("tunnel")
makeService(URL).setServiceParent(application)
