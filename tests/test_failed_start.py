"""A run that fails before it starts leaves no claim on its folder."""

from pathlib import Path

import pytest

from tests.test_later_smaller_house import FAILS, assert_refused, run

pytestmark = pytest.mark.usefixtures("as_a_user_sees_it")


def test_run_that_fails_before_it_starts_leaves_the_folder(tmp_path: Path) -> None:
    out, missing = tmp_path / "out", [str(tmp_path / name) for name in ("images", "digits")]
    ends = [run(out, *FAILS, folder) for folder in missing]
    for end, folder in zip(ends, missing, strict=True):
        assert_refused(end, folder)
    assert missing[0] not in ends[1].errors, ends[1].message
