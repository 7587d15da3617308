"""PostgreSQL's own benchmark, as the measure of what the database does alone."""

from __future__ import annotations

import asyncio
import re
import tempfile
from math import ceil

from flowtx.storage.cluster import postgres_programs

_RATE = re.compile(r"^tps = ([0-9.]+) \(without initial connection time\)", re.MULTILINE)


async def pgbench(url: str, script: str, *, clients: int, seconds: float) -> float:
    """Run a script again and again.

    Args:
        url: the database.
        script: SQL, and pgbench's own commands.
        clients: how many connections run it at once.
        seconds: how long; whole ones.

    Returns:
        Transactions per second.

    Raises:
        RuntimeError: it failed.
    """
    with tempfile.NamedTemporaryFile("w", suffix=".sql") as file:
        file.write(script)
        file.flush()
        process = await asyncio.create_subprocess_exec(
            str(postgres_programs() / "pgbench"),
            "--no-vacuum",
            f"--client={clients}",
            f"--time={ceil(seconds)}",
            f"--file={file.name}",
            url,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        try:
            async with asyncio.timeout(seconds + 30):
                out, err = await process.communicate()
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
    found = _RATE.search(out.decode())
    if process.returncode or found is None or b"failed transactions: 0 " not in out:
        raise RuntimeError(f"pgbench failed: {err.decode()}{out.decode()}")
    return float(found[1])
