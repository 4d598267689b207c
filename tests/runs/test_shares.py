"""What ranks tell each other through files."""

import threading
import time

import pytest

from sftctl.errors import RunError
from sftctl.runs.manifest import FileRecord
from sftctl.runs.shares import await_share, report_failure, report_share

FILES = {"a.bin": FileRecord(3, "abc")}


def test_a_share_arrives_late_and_leaves_no_trace(tmp_path):
    def write():
        time.sleep(0.05)
        report_share(tmp_path, 1, FILES)

    writer = threading.Thread(target=write)
    writer.start()
    assert await_share(tmp_path, 1) == FILES
    writer.join()
    assert list(tmp_path.iterdir()) == []


def test_a_failure_ends_the_waiting_with_its_reason(tmp_path):
    report_failure(tmp_path, 1, "the disk is full")
    with pytest.raises(RunError, match="rank 1 could not write its share: the disk is full"):
        await_share(tmp_path, 1)


def test_a_rank_that_never_reports_is_not_waited_for_for_ever(tmp_path):
    with pytest.raises(RunError, match=r"rank 2 did not write its share of .* within 0 s"):
        await_share(tmp_path, 2, patience_seconds=0.05)
