"""A server is stopped and started again while all its users are connected: what do they notice?

    python -m benchmarks.restart --clients 3000

Real processes on one database, which outlives them: ``SIGTERM``, the end, the next start at once. The clients
do what npm's ``phoenix`` does: they come back after 10, 50, 100, 150, 200, 250, 500, 1000, 2000 and then each
5000 ms, without jitter, and join with the last seq that they have. Meanwhile notifications are pushed by SQL
without a pause.
"""
