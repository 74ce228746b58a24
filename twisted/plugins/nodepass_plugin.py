"""Makes ``twistd nodepass`` exist. Read for every ``twistd`` command, so it imports nothing of ours."""

from twisted.application.service import ServiceMaker

nodepass = ServiceMaker("nodepass", "nodepass.tap", "A universal TCP and UDP tunnel.", "nodepass")
