"""``python -m tests.fuzz.guided TARGET[,TARGET…] DIRECTORY [OPTION…]``: atheris, on one target or several.

The first byte of an input says which of them gets the rest. It ends with the first fault, by the rules and
options of libFuzzer; see `tests.fuzz.search`, which runs it.
"""

from __future__ import annotations

import sys

import atheris

# What is to be measured must be read by way of it.
with atheris.instrument_imports(include=["flowtx"]):
    from tests.fuzz.targets import TARGETS


def main(names: list[str], arguments: list[str]) -> None:
    runs = [TARGETS[name].run for name in names]

    def once(data: bytes) -> None:
        if data:
            runs[data[0] % len(runs)](data[1:])

    atheris.Setup([sys.argv[0], *arguments], once)
    atheris.Fuzz()


if __name__ == "__main__":
    main(sys.argv[1].split(","), sys.argv[2:])
