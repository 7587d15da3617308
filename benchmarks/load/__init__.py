"""The load: a program in C, as anything slower would be measured in the place of the server.

``load.c`` is built by gcc when it is needed. It keeps up to 100,000 WebSocket clients in one process on one
core, speaks as much of RFC 6455 and of Phoenix's protocol as they need, and tells what it used itself.
``floor.c`` is a server that does the least that one can.
"""
