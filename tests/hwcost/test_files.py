import subprocess
import sys
from pathlib import Path

import pytest

from hwcost.files import write_atomically


def test_a_file_is_replaced_whole(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "a.json"
    write_atomically(path, b"first")
    write_atomically(path, b"second")
    assert path.read_bytes() == b"second"
    assert [entry.name for entry in path.parent.iterdir()] == ["a.json"]
    assert path.stat().st_mode & 0o777 == 0o644


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(b"old")
    code = f"from pathlib import Path; from hwcost.files import *; write_atomically(Path({str(path)!r}), b'x' * 100000)"
    done = subprocess.run(["bash", "-c", f'ulimit -f 8; exec "{sys.executable}" -c "{code}"'], capture_output=True)
    assert done.returncode != 0
    assert path.read_bytes() == b"old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.json"]
    with pytest.raises(FileExistsError):
        write_atomically(path / "below", b"x")
