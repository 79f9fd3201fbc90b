"""The clock on a terminal: how long a command has been running, gone as soon as anything else is written."""

from __future__ import annotations

import io
import time

from interp.cli.output import Clock, Printable, unguarded


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_the_time_is_shown_while_nothing_is_written_and_taken_away():
    terminal = Terminal()
    clock = Clock("interp circuit", terminal, quiet=0.02)
    out = Printable(terminal, clock=clock)
    time.sleep(0.2)
    out.write("found\n")
    shown, found = terminal.getvalue().split("found")
    assert shown.startswith("\rinterp circuit ... 0 s\x1b[K")
    assert shown.endswith("\r\x1b[K")  # cleared before the text
    clock.end()
    length = len(terminal.getvalue())
    time.sleep(0.1)
    assert len(terminal.getvalue()) == length
    assert found.startswith("\n")


def test_who_has_a_bar_of_his_own_ends_it():
    terminal = Terminal()
    out = Printable(terminal, clock=Clock("x", terminal, quiet=0.02))
    assert unguarded(out) is terminal
    before = terminal.getvalue()
    time.sleep(0.1)
    assert terminal.getvalue() == before


def test_nothing_is_shown_where_there_is_no_terminal():
    file = io.StringIO()
    clock = Clock("x", file, quiet=0.01)
    time.sleep(0.05)
    clock.end()
    assert file.getvalue() == ""
