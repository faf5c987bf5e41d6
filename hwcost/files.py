"""Files whole: written so that nothing is ever half-written, and read only where they can be read to an end."""

import errno
import os
import stat
import tempfile
from pathlib import Path


def read_file(path: Path, most_bytes: int) -> bytes:
    """The contents of a regular file; raises `OSError` for what is none (a pipe may never end) or is larger."""
    status = path.stat()
    if stat.S_ISDIR(status.st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if not stat.S_ISREG(status.st_mode):
        raise OSError(errno.EINVAL, "Not a regular file", str(path))
    if status.st_size > most_bytes:
        raise OSError(errno.EFBIG, f"File of {status.st_size} bytes, at most {most_bytes} are read", str(path))
    return path.read_bytes()


def write_atomically(path: Path, data: bytes) -> None:
    """Replace `path` by `data` whole, or leave it as it was and raise `OSError` (a full disk, no permission)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        Path(temporary).chmod(0o644)
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
