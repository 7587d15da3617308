"""Tells ``twistd`` of the command ``flow``."""

from twisted.application.service import ServiceMaker

flow = ServiceMaker("flowtx", "flowtx.tap", "The session server for web products", "flow")
