"""A simple load on a running server, for ``flowtx bench``: connects, round trips and broadcasts.

It tells what a few hundred clients see. What a server costs, beside others, is measured by ``make bench`` in
the project's own directory, with a load that is not written in Python.
"""
