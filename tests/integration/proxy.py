"""A TCP proxy that cuts, delays and goes silent; run it in a process of its own.

    python proxy.py HOST PORT        (or a socket directory as HOST)

It prints the port that it listens on, takes one command a line, answers each with ``ok``, and ends
with its standard input.

    pass         forward
    hole         keep every connection open and forward nothing: what comes is forwarded after
                 ``pass``, but a connection that is made during the hole stays in it for ever
    cut          reset all connections
    delay MS     forward each piece so much later
    lose-commit  forward the next COMMIT, and reset its connection in place of the answer
"""

from __future__ import annotations

import asyncio
import subprocess
import sys

from psycopg2 import extensions


class Proxy:
    """The proxy's process, as seen by a test.

    Attributes:
        url: the given database URL, by way of the proxy.
    """

    def __init__(self, url: str) -> None:
        options = extensions.parse_dsn(url)
        self._process = subprocess.Popen(
            [sys.executable, __file__, options["host"], options.get("port", "5432")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._process.stdout is not None
        port = self._process.stdout.readline().strip()
        self.url = extensions.make_dsn(**{**options, "host": "127.0.0.1", "port": port})

    def __call__(self, command: str) -> None:
        """Give a command, and return when it is obeyed."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(command + "\n")
        self._process.stdin.flush()
        assert self._process.stdout.readline() == "ok\n"

    def close(self) -> None:
        self._process.kill()
        self._process.communicate()


class _Server:
    def __init__(self, host: str, port: int) -> None:
        self.host, self.port = host, port
        self.open = asyncio.Event()
        self.open.set()
        self.delay = 0.0
        self.lose_commit = False
        self.writers: set[asyncio.StreamWriter] = set()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.writers.add(writer)
        if not self.open.is_set():
            return
        if self.host.startswith("/"):
            there = await asyncio.open_unix_connection(f"{self.host}/.s.PGSQL.{self.port}")
        else:
            there = await asyncio.open_connection(self.host, self.port)
        self.writers.add(there[1])
        lost = asyncio.Event()
        try:
            await asyncio.gather(
                self.pump(reader, there[1], lost, from_client=True),
                self.pump(there[0], writer, lost, from_client=False),
            )
        except OSError:
            pass
        finally:
            for one in (writer, there[1]):
                self.writers.discard(one)
                one.transport.abort()

    async def pump(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        lost: asyncio.Event,
        *,
        from_client: bool,
    ) -> None:
        while data := await reader.read(65536):
            if self.delay:
                await asyncio.sleep(self.delay)
            await self.open.wait()
            if from_client and self.lose_commit and b"COMMIT" in data:
                self.lose_commit = False
                lost.set()
            elif not from_client and lost.is_set():
                writer.transport.abort()
                return
            writer.write(data)
            await writer.drain()
        writer.transport.abort()

    def obey(self, command: str, *args: str) -> None:
        if command == "pass":
            self.delay = 0.0
            self.open.set()
        elif command == "hole":
            self.open.clear()
        elif command == "cut":
            for writer in self.writers:
                writer.transport.abort()
        elif command == "delay":
            self.delay = float(args[0]) / 1000
        elif command == "lose-commit":
            self.lose_commit = True
        else:
            raise ValueError(command)


async def main(host: str, port: int) -> None:
    proxy = _Server(host, port)
    for own in range(21000, 32000):
        try:
            server = await asyncio.start_server(proxy.serve, "127.0.0.1", own)
            break
        except OSError:
            continue
    sys.stdout.write(f"{server.sockets[0].getsockname()[1]}\n")
    sys.stdout.flush()
    loop = asyncio.get_running_loop()
    while line := await loop.run_in_executor(None, sys.stdin.readline):
        proxy.obey(*line.split())
        sys.stdout.write("ok\n")
        sys.stdout.flush()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], int(sys.argv[2])))
