"""Tells ``twistd`` of the command ``flow`` and of the reactor ``uvloop``."""

from twisted.application.reactors import Reactor
from twisted.application.service import ServiceMaker

flow = ServiceMaker("flowtx", "flowtx.tap", "The session server for web products", "flow")
# Where uvloop is not installed, Twisted lists it as not available and refuses it in one line.
uvloop = Reactor("uvloop", "flowtx.reactors", "Twisted's asyncio reactor on uvloop (extra flowtx[speed])")
