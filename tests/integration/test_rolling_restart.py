"""A new process takes the place of another one while users are connected: they notice next to nothing.

``python -m benchmarks.restart`` does the same with thousands of them.
"""

from __future__ import annotations

import pytest_twisted

from benchmarks.restart.run import restart


@pytest_twisted.ensureDeferred
async def test_nothing_is_lost_and_nobody_is_seen_to_leave(database_url: str) -> None:
    figures = await restart(300, database_url)
    assert figures.codes == {"1012": 300}
    assert (figures.lost, figures.doubled) == (0, 0), figures
    assert figures.pushed > 100
    # Neither who follows the events, nor who asks for somebody's status, finds that anybody has left.
    assert (figures.left_within, figures.shown_offline) == (0, 0), figures
    assert figures.exit_status == -15
