"""Ctrl-C while modules are loaded ends the program at once, without a traceback. `cli` imports this before the others.

The commands handle Ctrl-C themselves. Loading takes seconds, and Python would print where it was at that moment.
"""

from __future__ import annotations

import signal
import threading

_ours = (
    threading.current_thread() is threading.main_thread()
    and signal.getsignal(signal.SIGINT) is signal.default_int_handler  # else somebody else handles or ignores it
)
if _ours:
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def finished() -> None:
    """Ctrl-C raises KeyboardInterrupt again."""
    global _ours
    if _ours:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    _ours = False
