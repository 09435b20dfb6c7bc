"""Skips are counted by reason, and fail where CULUX_REQUIRE says that the missing tool is there."""

from __future__ import annotations

from collections import Counter

import pytest

from tests.standin_cupy.fixture import standin_cupy as standin_cupy
from tests.support import NO_GPU, has_gpu, missing_tool, required_tools, requires, skip_class


@pytest.fixture
def strict():
    """A third backend, array_api_strict's, registered for one test."""
    requires("array_api_strict")
    from culux.backends.registry import registered
    from tests.strict_backend import StrictBackend

    backend = StrictBackend()
    with registered(backend):
        yield backend


@pytest.fixture
def level_is_restored():
    """No trace is left open by the test."""
    from culux.autodiff.tracer import nesting_level

    yield
    assert nesting_level() == 0


@pytest.fixture(scope="module")
def kernel_cache(tmp_path_factory):
    """Compiled kernels are shared by the tests of one file, and nothing older than them is used."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CULUX_CACHE_DIR", str(tmp_path_factory.mktemp("cache")))
        yield


def pytest_runtest_setup(item):
    if item.get_closest_marker("gpu"):
        if not has_gpu():
            pytest.skip(NO_GPU)
        requires("cupy")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport():
    return fail_if_required((yield))


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report():
    return fail_if_required((yield))


def fail_if_required(report):
    """The report, failed instead of skipped where what it misses is required; an xfail is no skip."""
    if report.skipped and not hasattr(report, "wasxfail"):
        reason = report.longrepr[2]
        if missing_tool(reason) in required_tools():
            report.outcome = "failed"
            report.longrepr = f"skipped, but CULUX_REQUIRE lists {missing_tool(reason)!r}: {skip_class(reason)}"
    return report


def pytest_terminal_summary(terminalreporter):
    reasons = Counter(skip_class(report.longrepr[2]) for report in terminalreporter.stats.get("skipped", []))
    details = ", ".join(f"{reason}: {count}" for reason, count in reasons.most_common())
    terminalreporter.write_line(f"skipped: {reasons.total()}" + (f" ({details})" if details else ""))
