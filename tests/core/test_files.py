"""Files appear whole or not at all."""

from __future__ import annotations

import errno
import hashlib
import resource

import pytest

from nequip_core.errors import InputError
from nequip_core.files import RecordFile, atomic_write, sha256


def test_takes_the_place_of_the_old_file_at_the_end(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")
    with atomic_write(path) as file:
        file.write("new å")
        assert path.read_text() == "old"
    assert path.read_text(encoding="utf-8") == "new å"
    assert list(tmp_path.iterdir()) == [path]
    assert path.stat().st_mode & 0o600 == 0o600


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()])
def test_leaves_the_old_file_when_the_block_fails(tmp_path, error):
    path = tmp_path / "a.bin"
    path.write_bytes(b"old")

    def fail_half_way() -> None:
        with atomic_write(path, "wb") as file:
            file.write(b"half")
            raise error

    with pytest.raises((InputError, KeyboardInterrupt)):
        fail_half_way()
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_missing_folder_is_said(tmp_path):
    with pytest.raises(InputError, match="No such file or directory"), atomic_write(tmp_path / "none" / "a"):
        pass


def test_records_are_there_at_once(tmp_path):
    path = tmp_path / "log.csv"
    path.write_text("of an earlier run, which was longer")
    with RecordFile(path) as file:
        file.write("a,å\n")
        assert path.read_text(encoding="utf-8") == "a,å\n"
        file.write("1,2\n")
    assert path.read_text(encoding="utf-8") == "a,å\n1,2\n"


def test_records_that_can_not_be_written(tmp_path):
    with pytest.raises(InputError, match="No such file or directory"):
        RecordFile(tmp_path / "none" / "a")
    with RecordFile("/dev/full") as file, pytest.raises(InputError, match="No space left"):
        file.write("a")


def test_half_a_record_is_taken_back(tmp_path):
    path = tmp_path / "log.csv"
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    with RecordFile(path) as file:
        file.write("whole\n")
        resource.setrlimit(resource.RLIMIT_FSIZE, (10, before[1]))
        try:
            with pytest.raises(InputError, match="too large"):
                file.write("whole\n")
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert path.read_text() == "whole\n"


def test_sha256(tmp_path):
    path = tmp_path / "a"
    path.write_bytes(b"abc" * 100_000)
    assert sha256(path) == hashlib.sha256(b"abc" * 100_000).hexdigest()
