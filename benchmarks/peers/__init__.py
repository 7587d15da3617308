"""flowtx beside what its users would otherwise run: ``make bench``, or parts of it:

    python -m benchmarks.peers --only connect,roundtrip --servers flowtx,ws --rounds 3 --quick

The servers, each in one process on a core of its own:

flowtx    ``twistd flow`` doing its whole job on an embedded PostgreSQL; on the epoll reactor, and on uvloop
ws        node, ``ws`` and ``jsonwebtoken``: check the token, echo, send broadcasts
uvicorn   uvicorn and Starlette: the same
channels  Django Channels on Daphne, in-memory layer: the same
floor     a server in C that echoes and sends, and looks at nothing: what the kernel takes of anybody, and
          the proof that the generator can drive more than any of the others can take

The peers are in directories beside this file, with the versions that they are measured with; they are
installed into ``build/`` when they are needed. All are given the same load by `benchmarks.load`, on another
core: the same users, tokens and messages. A peer echoes what a client of Phoenix sends.

Figures are processor time (user and system) of the server's process by unit of work, so that they hold on a
machine that has other things to do; PostgreSQL's is not in it. Each round measures every server once, in
turn; a figure is the median of the rounds, and a ratio that of the medians. Every measurement is on a server
just started and warmed up.
"""
