"""What the inbox takes and gives, on real parts: run ``python -m benchmarks.inbox`` in the project's root.

A ``twistd flow`` runs with its embedded PostgreSQL in a directory that is removed afterwards. The load
comes from this process, over loopback TCP: WebSocket and HTTP clients that frame by hand, so that they
cost little beside the server. What each of the three used of the processors stands in the table.

singles    pushes of one notification by HTTP, on 1, 8 and 64 connections that are kept
batches    the same to 100 and to 1,000 users a call
latency    from the answer to a writer's COMMIT until a client has the notification, 100 pushes a second
backlog    200,000 notifications that 1,000 users missed, until all of them have them
growth     an inbox of 100,000 beside one of 100: what a join, a page and marking as read take

Every push is counted when the client of its user has it. Each client sees to it that its own come once,
in order and without a hole; one that does not ends the run.

Pushes are compared with ``pgbench``, which calls the same SQL for as many users on the same PostgreSQL
server, in a database of its own: nothing listens there, so that its figure is what PostgreSQL does
alone. The two take turns, round by round: what disturbs the machine disturbs both. The table has the
medians of the rounds, of the ratios too, and how far those lay apart.
"""
