"""A journal of a study that survives a worker which was stopped in the middle of a record."""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from optuna.storages.journal import BaseJournalBackend, JournalFileSymlinkLock


class Journal(BaseJournalBackend):
    """Records of a study, one a line of JSON, in a file that workers of one host share.

    A record counts once its line is whole. What a worker left of its last one, when it was killed or the disk
    was full, is cut off before the next is appended; blank lines are left out.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = JournalFileSymlinkLock(str(path))
        self._read = (0, 0, 0)  # records, bytes and lines that were read
        path.touch()

    def read_logs(self, log_number_from: int) -> Iterator[dict[str, Any]]:
        """All records from a number on.

        Raises:
          ValueError: for a line that holds no record; the message names file and line.
        """
        records, offset, lines = self._read if self._read[0] <= log_number_from else (0, 0, 0)
        with self._path.open("rb") as file:
            file.seek(offset)
            for line in file:
                if not line.endswith(b"\n"):
                    return  # not whole yet, or never
                offset, lines = offset + len(line), lines + 1
                if line.strip():
                    record = self._record(line, lines)
                    records += 1
                    self._read = (records, offset, lines)
                    if records > log_number_from:
                        yield record

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        """Appends records, after a whole line."""
        text = "".join(json.dumps(log, separators=(",", ":")) + "\n" for log in logs)
        self._lock.acquire()
        try:
            with self._path.open("r+b") as file:
                file.seek(_whole_lines(file))
                file.truncate()
                file.write(text.encode())
                file.flush()
                os.fsync(file.fileno())
        finally:
            self._lock.release()

    def _record(self, line: bytes, number: int) -> dict[str, Any]:
        try:
            record = json.loads(line)
        except ValueError:
            record = None
        if not isinstance(record, dict) or not {"op_code", "worker_id"} <= set(record):
            shown = line[:40].decode(errors="replace").strip()
            raise ValueError(f"{self._path}:{number}: expected a record of a study, got {shown!r}")
        return record


def _whole_lines(file: Any) -> int:
    """Bytes of a file up to the end of its last whole line."""
    end = file.seek(0, os.SEEK_END)
    while end:
        start = max(0, end - 4096)
        file.seek(start)
        newline = file.read(end - start).rfind(b"\n")
        if newline >= 0:
            return start + newline + 1
        end = start
    return 0
