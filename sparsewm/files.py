"""Files: written to a temporary name and renamed when complete, read without pickle."""

from __future__ import annotations

import ctypes
import errno
import glob
import hashlib
import json
import os
import platform
import re
import shutil
import stat
import struct
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import yaml
from safetensors import SafetensorError

from sparsewm.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

REMEDY = "free some space or choose another `output`"

TEXT_BYTES = 32 << 20
"""Texts that are read are no larger."""

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


@contextmanager
def disk_errors(path: str | Path, remedy: str = REMEDY) -> Iterator[None]:
    """Turn a full disk, or a place that cannot be written to, into a `UserError` that names `path`."""
    try:
        yield
    except (OSError, RuntimeError, SafetensorError) as error:
        if _is_full(error):
            raise UserError(f"the disk is full while writing {path}: {remedy}") from None
        if isinstance(error, RuntimeError):
            raise
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"cannot write {path} ({reason}): {remedy.split(' or ')[-1]}") from None


def _is_full(error: Exception) -> bool:
    # HDF5 and safetensors pass errors of the system on as text only
    said = (text for number in _FULL for text in (f"errno = {number},", f"os error {number})"))
    return getattr(error, "errno", None) in _FULL or any(text in str(error) for text in said)


@contextmanager
def atomic_path(path: str | Path, temporary: Path | None = None) -> Iterator[Path]:
    """A temporary path that becomes `path` when the block succeeds, and vanishes otherwise.

    Args:
        path: the file to write; missing folders are made.
        temporary: the temporary name, on the same disk; by default a new one in the same folder. Large files
            have a fixed one, so that killed runs leave one behind at most.

    Raises:
        UserError: the disk is full, or the folder cannot be written to.
    """
    path = Path(path)
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with ExitStack() as held:
            if temporary is None:
                _sweep(path)
                handle, name = tempfile.mkstemp(path.suffix, _before_suffix(path), path.parent)
                _lock(held.enter_context(open(handle, "rb")))
                temporary = Path(name)
            try:
                yield temporary
                with open(temporary, "rb+") as file:
                    os.fsync(file.fileno())
                os.chmod(temporary, 0o666 & ~umask())
                os.replace(temporary, path)
            except BaseException:
                temporary.unlink(missing_ok=True)
                raise


@contextmanager
def temporary_folder(path: Path) -> Iterator[Path]:
    """A folder beside `path` to build it in, which vanishes when the block ends."""
    _sweep(path)
    place = Path(tempfile.mkdtemp(path.suffix, _before_suffix(path), path.parent))
    handle = os.open(place, os.O_RDONLY) if os.name == "posix" else None
    try:
        if handle is not None:
            _lock(handle)
        yield place
    finally:
        if handle is not None:
            os.close(handle)
        shutil.rmtree(place, ignore_errors=True)


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write a safetensors file that becomes `path` when it is complete.

    safetensors writes to a temporary name of its own, which a killed process leaves behind: here in a folder
    that the next one removes.

    Raises:
        UserError: the disk is full, or the folder cannot be written to.
    """
    from safetensors.torch import save_file

    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary_folder(path.with_suffix("")) as place, atomic_path(path, place / path.name) as new:
            save_file(dict(tensors), new, dict(metadata))


def stays_inside(name: str) -> bool:
    """Whether a name that somebody else gave leads, as a path, to a place below the one it is taken from."""
    path = Path(name)
    return bool(path.parts) and not path.anchor and ".." not in path.parts and "\0" not in name


def check_no_pipes(folder: Path) -> None:
    """Refuse a folder with pipes or devices in it, for what reads them may wait for ever.

    Raises:
        UserError: there is one.
    """
    try:
        entries = list(os.scandir(folder))
    except OSError:  # no folder: its reader says what is wrong
        return
    for entry in entries:
        if entry.is_dir(follow_symlinks=False):
            check_no_pipes(Path(entry))
        elif not entry.is_file(follow_symlinks=False):
            with suppress(OSError):  # links to nothing
                kind = os.stat(entry.path).st_mode
                if not stat.S_ISREG(kind) and not stat.S_ISDIR(kind):
                    raise UserError(f"{entry.path} is a pipe or a device, no file: remove it")


def check_unwritten(path: Path) -> None:
    """Refuse a file or folder that another process is about to write.

    Raises:
        UserError: one is.
    """
    if _sweep(path):
        raise UserError(f"another process writes {path} right now: wait for it, or write to another place")


def _before_suffix(path: Path) -> str:
    """How temporary names of a file or folder begin; eight characters and its suffix follow."""
    return f".{path.stem}-"


def _sweep(path: Path) -> bool:
    """Remove what processes that were killed have left of `path`, temporaries that nobody holds.

    Returns:
        whether there are others, of processes that write it now.
    """
    held = False
    names = glob.escape(_before_suffix(path)) + "????????" + glob.escape(path.suffix)
    for old in path.parent.glob(names):
        with suppress(OSError):
            handle = os.open(old, os.O_RDONLY)
            try:
                free = _lock(handle)
            finally:
                os.close(handle)
            held = held or not free
            if free and old.is_dir() and not old.is_symlink():
                shutil.rmtree(old, ignore_errors=True)
            elif free:
                old.unlink(missing_ok=True)
    return held


def replace_folder(new: Path, path: Path) -> None:
    """Let a folder take the place of another one, if there is one; at no moment is there none."""
    old = path.with_name(f".{path.name}-old")
    if not path.exists():
        os.rename(new, path)
    elif not _exchanged(new, path):  # there is none for a moment: `recover_folder` knows where it is
        shutil.rmtree(old, ignore_errors=True)
        try:
            os.rename(path, old)
            os.rename(new, path)
        except BaseException:
            recover_folder(path)
            raise
    shutil.rmtree(old, ignore_errors=True)


def recover_folder(path: Path) -> None:
    """Put a folder back that a process was about to replace when it died."""
    old = path.with_name(f".{path.name}-old")
    if old.is_dir() and not path.exists():
        os.rename(old, path)


def _exchanged(one: Path, other: Path) -> bool:
    """Let two paths change places at once; false where the system or the disk cannot."""
    try:
        call = ctypes.CDLL(None).renameat2
    except (AttributeError, OSError, TypeError):  # other than Linux with the GNU C library
        return False
    here, exchange = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
    return bool(call(here, os.fsencode(one), here, os.fsencode(other), exchange) == 0)


def output_folder(path: str | Path) -> Path:
    """Make the folder results go to and try to write there, before any work is done in vain.

    Raises:
        UserError: it cannot be made or written to.
    """
    path = Path(path)
    with disk_errors(path):
        try:
            path.mkdir(parents=True, exist_ok=True)
        except (FileExistsError, NotADirectoryError):
            raise UserError(f"`output` {path} is a file or inside one: give a folder") from None
        tempfile.TemporaryFile(dir=path).close()
    return path


@contextmanager
def only_one(folder: Path, remedy: str = "give another `output`") -> Iterator[None]:
    """Hold a folder against other processes that ask for the same.

    Raises:
        UserError: another one holds it.
    """
    try:
        import fcntl
    except ImportError:  # Windows: nothing is promised there
        yield
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(handle)
        raise UserError(f"another process writes to {folder} right now: {remedy}") from None
    except OSError:  # a file system without locks
        pass
    try:
        yield
    finally:
        os.close(handle)


@contextmanager
def locked_file(path: Path, waiting: Callable[[], None]) -> Iterator[tuple[IO[bytes], Path]]:
    """A file for reading and writing that one process has at a time, and its path; it may be renamed.

    Where the disk or the system has no locks it is a file of a name of its own, which vanishes if the block
    fails.

    Args:
        path: made where it is missing.
        waiting: called before another process is waited for.
    """
    while True:
        with open(os.open(path, os.O_RDWR | os.O_CREAT, 0o666), "r+b") as file:
            if not _lock(file, waiting):
                break
            # whoever had it before may have renamed or removed it
            if path.exists() and os.path.samestat(os.fstat(file.fileno()), path.stat()):
                yield file, path
                return
    own = path.with_name(f"{path.name}-{platform.node()}-{os.getpid()}")
    try:
        with open(own, "w+b") as file:
            yield file, own
    except BaseException:
        own.unlink(missing_ok=True)
        raise


def _lock(file: IO[bytes] | int, waiting: Callable[[], None] | None = None) -> bool:
    """Lock a file for as long as it is open.

    Args:
        waiting: called before another process is waited for; None: it is not waited for.

    Returns:
        false where there are no locks, or where another process is not waited for.
    """
    try:
        import fcntl
    except ImportError:  # Windows
        return False
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        if waiting is None:
            return False
        waiting()
        fcntl.flock(file, fcntl.LOCK_EX)
    except OSError:  # a disk without locks
        return False
    return True


def hold(file: IO[bytes], number: int, wait: bool = False) -> bool:
    """Hold a part of a file, by number, against others until `release` or the end of this process.

    Where the disk or the system has no locks everybody holds everything.

    Args:
        file: open for writing. wait: for another holder, instead of returning false.
    """
    return _range_lock(file, number, "F_WRLCK", wait)


def release(file: IO[bytes], number: int) -> None:
    """Give up a part of a file that is held."""
    _range_lock(file, number, "F_UNLCK", False)


def _range_lock(file: IO[bytes], number: int, kind: str, wait: bool) -> bool:
    try:
        import fcntl
    except ImportError:  # Windows
        return True
    try:
        if hasattr(fcntl, "F_OFD_SETLK"):  # Linux: of this open file; others are of the whole process
            command = fcntl.F_OFD_SETLKW if wait else fcntl.F_OFD_SETLK
            # struct flock: kind, whence, start, length, no process
            fcntl.fcntl(file, command, struct.pack("hhqqi4x", getattr(fcntl, kind), 0, number, 1, 0))
        else:
            how = fcntl.LOCK_UN if kind == "F_UNLCK" else fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB)
            fcntl.lockf(file, how, 1, number)
    except (BlockingIOError, PermissionError):
        return False
    except OSError:  # a disk without locks
        return True
    return True


def cache_folder() -> Path:
    """Where files go that are made again if they are missing: $SPARSEWM_CACHE, or in the user's own."""
    user = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("SPARSEWM_CACHE") or Path(user) / "sparsewm")


def umask() -> int:
    """The permissions that new files of this process do without."""
    mask = os.umask(0)
    os.umask(mask)
    return mask


def size_text(size: float) -> str:
    """Bytes for a reader: ``"12.3 MB"``."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if size < 999.5:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:,.3g} TB"


def require_space(path: str | Path, size: int, remedy: str = REMEDY) -> None:
    """Raise a `UserError` when the disk of the file `path` has no room for `size` bytes more."""
    with disk_errors(path, remedy):
        folder = Path(path).parent
        folder.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(folder).free
    if free < size:
        raise UserError(
            f"the disk is too full for {path}: it needs {size_text(size)} and {size_text(free)} are free; "
            f"{remedy}"
        )


def write_json(path: str | Path, content: Any) -> None:
    """Write indented JSON atomically. Raises ValueError on NaN, which JSON does not know."""
    write_text(path, json.dumps(content, indent=2, allow_nan=False) + "\n")


def write_text(path: str | Path, text: str) -> None:
    """Write text atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def read_text(path: str | Path, most: int = TEXT_BYTES) -> str:
    """Text of a file of `most` bytes.

    Raises:
        OSError: it cannot be read, or is no file: pipes and devices never end.
        ValueError: no UTF-8, or larger.
    """
    path = Path(path)
    if not stat.S_ISREG(path.stat().st_mode):
        raise OSError(errno.EINVAL, "it is no file")
    if (size := path.stat().st_size) > most:
        raise ValueError(f"it has {size_text(size)}, {size_text(most)} at most are read")
    return path.read_text(encoding="utf-8")


def parse_json(path: str | Path) -> Any:
    """What a JSON file holds; errors as of `read_text`, ValueError where it is no JSON."""
    try:
        return json.loads(read_text(path))
    except RecursionError:
        raise ValueError("its values are too deep inside each other") from None


def parse_yaml(path: str | Path) -> Any:
    """What a YAML file holds, plain values alone; errors as of `parse_json`."""
    try:
        return yaml.safe_load(read_text(path, 1 << 20))
    except RecursionError:
        raise ValueError("its values are too deep inside each other") from None
    except yaml.YAMLError as error:
        raise ValueError(error) from None


def read_json(path: str | Path) -> Any:
    """Read JSON; a missing or damaged file is a `UserError`."""
    try:
        return parse_json(path)
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is not a readable JSON file ({error}): write it again") from None


def sha256_file(path: str | Path) -> str:
    """SHA-256 (hex) of a file's bytes; an OSError where it is no file, as pipes and devices never end."""
    digest = hashlib.sha256()
    if not stat.S_ISREG(os.stat(path).st_mode):
        raise OSError(errno.EINVAL, "it is no file")
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def sha256_files(paths: Iterable[Path]) -> str:
    """SHA-256 (hex) of several files' names and bytes, in their order."""
    digest = hashlib.sha256()
    for path in paths:
        digest.update(f"{path.name}\0{path.stat().st_size}\0".encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()


def slug(name: str) -> str:
    """A name as part of a file's: what is no letter, digit, dot or underscore becomes a hyphen."""
    return re.sub(r"[^\w.]+", "-", name).strip("-")
