"""Mistakes a user can mend, and how every command reports them: one line, exit code 2."""

import errno
import multiprocessing
import os
import signal
import sys
from collections.abc import Callable, Iterable
from difflib import get_close_matches

_FILE_SYSTEM_ADVICE = {
    errno.ENOSPC: "the disk is full: free some space and run the same command again",
    errno.EDQUOT: "the disk quota is used up: free some space and run the same command again",
    errno.EACCES: "no permission: choose another folder or change its permissions",
    errno.EPERM: "not permitted: choose another folder or change its permissions",
    errno.EROFS: "the file system is read-only: choose another folder",
    errno.EISDIR: "this is a folder: a file is needed",
    errno.ENOTDIR: "a part of this path is a file, not a folder: choose another path",
}


class UserError(Exception):
    """A mistake its reader can mend. The message is one line: what, where, what to do."""


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """' (did you mean X?)' for the known word closest to `word`, '' where none is close."""
    close = get_close_matches(word, list(known), n=1)
    return f" (did you mean {close[0]}?)" if close else ""


def run_command(main: Callable[[], None]) -> None:
    """Run a command's `main`; a user's mistake ends it with one line on stderr and exit code 2."""
    try:
        main()
    except UserError as error:
        _fail(str(error))
    except BrokenPipeError:  # the reader of what this prints has left, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)
    except OSError as error:
        if error.errno not in _FILE_SYSTEM_ADVICE:
            raise
        _fail(f"{error.filename or 'writing'}: {_FILE_SYSTEM_ADVICE[error.errno]}")
    except KeyboardInterrupt:
        sys.exit(130)
    finally:
        _end_children()


def _end_children() -> None:
    """Data-loader workers leave signals to this process, and Python would wait until they end."""
    children = multiprocessing.active_children()
    if children:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # PyTorch's would raise that they were killed
    for child in children:
        child.kill()


def _fail(message: str) -> None:
    sys.stdout.flush()
    print(f"error: {' '.join(message.split())}", file=sys.stderr, flush=True)
    sys.exit(2)
