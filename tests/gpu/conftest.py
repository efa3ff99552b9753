"""Device tests: none may skip, and without a CUDA device they end with code 2 instead of passing."""

from __future__ import annotations

from collections.abc import Generator

import pytest
import torch

NO_DEVICE = 2


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Tests of two devices are left out, not skipped, where there is one."""
    if torch.cuda.device_count() < 2:
        left_out = [item for item in items if item.get_closest_marker("two_devices")]
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in left_out]


def pytest_collection_finish(session: pytest.Session) -> None:
    """Stop where tests of this folder were asked for and can not run."""
    ours = [item for item in session.items if item.get_closest_marker("gpu")]
    if ours and not session.config.option.collectonly and not torch.cuda.is_available():
        pytest.exit("The device tests need a CUDA device that torch can use; here is none.", returncode=NO_DEVICE)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """A skip is a failure here."""
    report = yield
    if report.skipped:
        report.outcome = "failed"
        report.longrepr = f"{item.nodeid} was skipped; a device test may not: {report.longrepr}"
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(
    collector: pytest.Collector,
) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    """So is a skipped module."""
    report = yield
    if report.skipped:
        report.outcome = "failed"
        report.longrepr = f"{collector.nodeid} was skipped; a device test may not be: {report.longrepr}"
    return report
