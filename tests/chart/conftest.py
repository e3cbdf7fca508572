"""helm, and the chart rendered with each file of values, once."""

from __future__ import annotations

import os
import shutil
from functools import cache
from pathlib import Path

import pytest
from rendered_chart import FILES, Chart, Rendered


@pytest.fixture(scope="session")
def chart() -> Chart:
    """The chart; where there is no helm the test is skipped or, where a cluster is required, fails."""
    # /var/lib/kind-local/bin is where `kind` puts helm if the host has none.
    helm = shutil.which("helm", path=os.pathsep.join([os.environ["PATH"], "/var/lib/kind-local/bin"]))
    if helm:
        return Chart(helm)
    if os.environ.get("NANOCHAT_REQUIRE_CLUSTER"):
        pytest.fail("helm is not on PATH")
    pytest.skip("helm is not on PATH")


@pytest.fixture(scope="session")
def _renders(chart: Chart):
    return cache(chart.render)


@pytest.fixture(params=FILES, ids=lambda path: path.stem)
def values(request: pytest.FixtureRequest) -> Path:
    return request.param


@pytest.fixture
def rendered(values: Path, _renders) -> Rendered:
    """The chart with one file of values."""
    return _renders(values)
