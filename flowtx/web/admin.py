"""The admin endpoint as a whole: all calls, who may make them, and from where."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from flowtx.metrics import Metrics
from flowtx.settings import Settings
from flowtx.web.api import Api, Route
from flowtx.web.browsers import own_hosts
from flowtx.web.keys import ApiKeys
from flowtx.web.openapi import DescriptionCall
from flowtx.web.site import AdminSite


def admin_site(
    settings: Settings,
    routes: Iterable[Route],
    keys: ApiKeys,
    *,
    reactor: Any,
    metrics: Metrics | None = None,
) -> AdminSite:
    """Make what the admin endpoint serves.

    Args:
        settings: the settings.
        routes: the calls of the API.
        keys: who may make them.
        reactor: the time.
        metrics: counts; None where nobody does.
    """
    described = [*routes]
    described.extend(DescriptionCall(described).routes())
    resource = Api(described, keys).resource()
    return AdminSite(resource, hosts=own_hosts(settings), reactor=reactor, metrics=metrics)
