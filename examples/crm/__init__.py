"""A deals board for a sales team: what an application on flowtx looks like.

Run it with ``make crm`` or ``python -m examples.crm``, and open the two links that it prints.

- ``board.py`` has the Channel: who looks at the board, what is moved, who is told.
- ``deals.py`` keeps the deals in PostgreSQL; a move and its notification are one transaction.
- ``static/`` is the page, over the stock Phoenix client; ``__main__.py`` runs everything.

``twistd -n flow --app examples.crm:make_router --database "$DATABASE_URL"`` runs the application without
the page; ``DATABASE_URL`` is where it finds its own table, too.
"""

from __future__ import annotations

from examples.crm.board import make_router

__all__ = ["make_router"]
