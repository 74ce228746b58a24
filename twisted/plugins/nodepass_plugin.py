"""Makes ``twistd nodepass`` exist. Every ``twistd`` reads it, so it imports nothing of ours."""

from twisted.application.service import ServiceMaker

nodepass = ServiceMaker("nodepass", "nodepass.tap", "A universal TCP and UDP tunnel.", "nodepass")
