"""A command in a terminal of its own, as wide as a test wants it."""

import codecs
import fcntl
import os
import pty
import re
import select
import signal
import struct
import subprocess
import termios
import threading
from pathlib import Path
from typing import Any

CONTROL = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|\r")


class Terminal:
    """A command whose three streams are a pseudo-terminal, unless `streams` says otherwise."""

    def __init__(
        self,
        command: list[str],
        folder: Path,
        columns: int,
        variables: dict[str, str] | None = None,
        **streams: Any,
    ):
        self.keyboard, inside = pty.openpty()
        fcntl.ioctl(inside, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
        environment = {
            name: os.environ[name] for name in os.environ if name not in ("COLUMNS", "LINES")
        }
        environment |= {"TERM": "xterm-256color", **(variables or {})}

        def attach() -> None:  # so that Ctrl-C, and the end of the terminal, reach the command
            fcntl.ioctl(inside, termios.TIOCSCTTY, 0)
            signal.signal(signal.SIGHUP, signal.SIG_DFL)  # whatever the tests themselves run under

        self.process = subprocess.Popen(
            command,
            cwd=folder,
            env=environment,
            **{"stdin": inside, "stdout": inside, "stderr": inside, **streams},
            start_new_session=True,
            preexec_fn=attach,
        )
        os.close(inside)
        self.raw = ""
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._over = threading.Event()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        while not self._over.is_set():
            if select.select([self.keyboard], [], [], 0.05)[0]:
                try:
                    self.raw += self._decoder.decode(os.read(self.keyboard, 65536))
                except OSError:  # the command has ended
                    return

    def hang_up(self) -> None:
        """Close the terminal's window."""
        self._over.set()
        self._reader.join()
        os.close(self.keyboard)

    def end(self) -> int:
        """The exit code, once all output has been read."""
        code = self.process.wait(timeout=120)
        self._reader.join(timeout=60)
        return code

    @property
    def text(self) -> str:
        """What was printed, without colours and cursor movements."""
        return CONTROL.sub("", self.raw)

    @property
    def lines(self) -> list[str]:
        """What stays on the screen after the live lines, line by line."""
        _, _, after = self.raw.rpartition("\x1b[?25h")
        return CONTROL.sub("", after).splitlines()
