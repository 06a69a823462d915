"""A process that is asked to stop cleans up and says one line; asked again, it ends at once."""

import signal
import subprocess
import sys

import pytest

PROGRAM = """
import os, sys, time
import modelcore.interrupts
from modelcore.interrupts import Interrupts

def say(text):
    sys.stdout.write(text + "\\n")
    sys.stdout.flush()

interrupts = Interrupts(last_words=lambda: say("at once"))
{settings}
try:
    {work}
except KeyboardInterrupt:
    {cleaning}
    say("cleaned up")
    sys.exit(interrupts.status)
say("not interrupted")
"""
WAIT = "say('ready'); sys.stdin.read()"


def start(work=WAIT, cleaning="pass", settings=""):
    code = PROGRAM.format(work=work, cleaning=cleaning, settings=settings)
    return subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def rest(process):
    out, err = process.communicate(timeout=60)
    assert err == ""
    return process.returncode, out


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_the_first_signal_is_an_interrupt_with_the_shells_status(number, status):
    process = start()
    assert process.stdout.readline() == "ready\n"
    process.send_signal(number)
    assert rest(process) == (status, "cleaned up\n")


def test_two_signals_at_once_count_as_one():
    process = start(work=WAIT, cleaning="say('cleaning'); sys.stdin.readline()")
    process.stdout.readline()
    process.send_signal(signal.SIGTERM)
    assert process.stdout.readline() == "cleaning\n"
    process.send_signal(signal.SIGINT)
    assert rest(process) == (143, "cleaned up\n")


AT_ONCE = "modelcore.interrupts.TOGETHER_SECONDS = -1"  # as if the second came later


SWALLOWED = """
    try:
        say('ready'); sys.stdin.read()
    except BaseException:
        say('stuck')
    sys.stdin.read()
"""


@pytest.mark.parametrize(
    "places",
    [
        {"cleaning": "say('stuck'); sys.stdin.read()"},
        {"work": SWALLOWED},
    ],
    ids=["cleaning up hangs", "a library swallowed the first"],
)
def test_a_later_one_ends_the_process_on_the_spot(places):
    process = start(settings=AT_ONCE, **places)
    process.stdout.readline()
    process.send_signal(signal.SIGINT)
    assert process.stdout.readline() == "stuck\n"
    process.send_signal(signal.SIGTERM)
    assert rest(process) == (130, "at once\n")


def test_once_all_is_done_signals_have_no_effect():
    process = start(work="interrupts.ignore(); say('ready'); sys.stdin.read()")
    process.stdout.readline()
    process.send_signal(signal.SIGINT)
    process.send_signal(signal.SIGTERM)
    assert rest(process) == (0, "not interrupted\n")


def test_a_signal_that_the_shell_had_ignored_stays_ignored():
    code = PROGRAM.format(work=WAIT, cleaning="pass", settings="")
    process = subprocess.Popen(
        ["sh", "-c", 'trap "" INT; exec "$0" -c "$1"', sys.executable, code],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    process.stdout.readline()
    process.send_signal(signal.SIGINT)
    assert rest(process) == (0, "not interrupted\n")
