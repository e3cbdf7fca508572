"""The cluster that all tests here share."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from site_of_tests import Site, missing


@pytest.fixture(scope="session")
def site() -> Iterator[Site]:
    """The site, up; it is taken down at the end unless NANOCHAT_KEEP_CLUSTER is set."""
    lacking = missing()
    if lacking:
        text = f"no cluster can be made here, {', '.join(lacking)} missing"
        if os.environ.get("NANOCHAT_REQUIRE_CLUSTER"):
            pytest.fail(text)
        pytest.skip(text)
    found = Site(os.environ.get("NANOCHAT_TEST_CLUSTER", "nanochat-test"))
    found.up()
    yield found
    if not os.environ.get("NANOCHAT_KEEP_CLUSTER"):
        found.kind("delete", "cluster")
