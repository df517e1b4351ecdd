"""Ctrl-C and SIGTERM: how a command comes to its end, and by when.

Python runs a signal's handler in the main thread, between two of its steps. One that comes just before that thread
begins to wait for another is not seen to until the wait ends, which may be minutes; what a handler raises is dropped
where it meets a callback, and libraries catch much. So a thread hears of signals straight from the system too: it
shakes the main thread out of its waits, and ends the process when its time is over.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from time import monotonic
from typing import NoReturn

GRACE = 8.0  # seconds that a command has to close what is open, once a signal came

_SHAKE = 0.1  # seconds
_ENDS = (signal.SIGINT, signal.SIGTERM)

os.register_at_fork(after_in_child=lambda: signal.set_wakeup_fd(-1))  # what ends a child does not end its parent


@contextmanager
def ending(leave: Callable[[int], NoReturn]) -> Iterator[None]:
    """A signal raises, so that what is open is closed; then, or GRACE later, `leave` is given the exit code.

    What else comes of a signal, such as a second one while files are closed, is no fault of ours.
    """
    came, broken = list[int](), True

    def ended(number: int, frame: object) -> None:
        came.append(number)
        raise KeyboardInterrupt if number == signal.SIGINT else SystemExit(128 + number)

    try:
        with _watched(leave), _handled(ended):
            yield
            broken = False
    finally:
        if came and broken:
            leave(128 + came[0])


@contextmanager
def stopping() -> Iterator[Callable[[], bool]]:
    """Whether a signal came: what asks comes to an end by itself, within GRACE. A second one ends it where it is."""
    came = list[int]()

    def ended(number: int, frame: object) -> None:
        came.append(number)
        if len(came) > 1:
            raise SystemExit(128 + came[0])

    with _handled(ended):
        yield lambda: bool(came)
    if came:
        raise SystemExit(128 + came[0])


@contextmanager
def _handled(handler: Callable[[int, object], None]) -> Iterator[None]:
    """What is done on a signal, but for those that are ignored, as Ctrl-C is by a shell's background jobs."""
    before = {number: signal.getsignal(number) for number in _ENDS}
    try:
        for number in _ENDS:
            if before[number] != signal.SIG_IGN:
                signal.signal(number, handler)
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)


@contextmanager
def _watched(leave: Callable[[int], NoReturn]) -> Iterator[None]:
    """The thread that hears of signals. It is told of them by the system, through a pipe, whatever Python does."""
    main, over = threading.get_ident(), threading.Event()
    reader, writer = os.pipe()
    os.set_blocking(writer, False)

    def watch() -> None:
        number = 0
        while number not in _ENDS:
            number = os.read(reader, 1)[0]
            if over.is_set():
                return
        until = monotonic() + GRACE
        while not over.wait(_SHAKE):
            if monotonic() > until:
                leave(128 + number)
            signal.pthread_kill(main, signal.SIGURG)

    thread = threading.Thread(target=watch, name="signals", daemon=True)
    old = signal.signal(signal.SIGURG, lambda *_: None)  # one that nothing else uses: it only ends waits
    told = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    thread.start()
    try:
        yield
    finally:
        over.set()
        os.write(writer, b"\0")
        thread.join()
        signal.set_wakeup_fd(told)
        signal.signal(signal.SIGURG, old)
        os.close(writer)
        os.close(reader)
