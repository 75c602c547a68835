"""The first signal cancels, the second ends; whatever the work does, the process ends in time."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from ..support.command import Ended, finish

PROMISE = 5.0  # seconds from a signal to the end

UNTIDY = "sfasync: interrupted by SIGINT; after 0.2 s its clean-up still waited for something that does not answer\n"

PRELUDE = """
import asyncio, os, signal, sys, time
from sfasync.cli import runner
from sfasync.cli.output import Output

def ready():
    os.write(1, b"ready\\n")
"""


@contextmanager
def running(body: str) -> Iterator[subprocess.Popen[str]]:
    """A process whose `work` is given; it has said that it is ready."""
    script = PRELUDE + textwrap.dedent(body) + "\nos._exit(runner.perform(Output(), work))\n"
    process = subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    try:
        assert process.stdout.readline() == "ready\n"
        yield process
    finally:
        process.kill()
        process.communicate()


def ended(process: subprocess.Popen[str]) -> tuple[Ended, float]:
    began = time.monotonic()
    return finish(process, timeout=20), time.monotonic() - began


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_the_first_signal_cancels(number: signal.Signals, status: int) -> None:
    work = """
        async def work():
            try:
                ready()
                await asyncio.sleep(60)
            finally:
                await asyncio.sleep(0.05)
                print("cleaned up", flush=True)
    """
    with running(work) as process:
        process.send_signal(number)
        result, seconds = ended(process)
    assert (result.status, result.out, result.err) == (
        status,
        "cleaned up\n",
        f"sfasync: interrupted by {number.name}\n",
    )
    assert seconds < PROMISE


def test_an_error_during_the_clean_up_is_still_an_interruption() -> None:
    work = """
        async def work():
            try:
                ready()
                await asyncio.sleep(60)
            finally:
                raise ValueError("clean-up failed")
    """
    with running(work) as process:
        process.send_signal(signal.SIGINT)
        result, _ = ended(process)
    assert (result.status, result.err) == (130, "sfasync: interrupted by SIGINT\n")


def test_the_second_signal_ends_at_once() -> None:
    work = """
        async def work():
            try:
                ready()
                await asyncio.sleep(60)
            finally:
                ready()
                await asyncio.sleep(60)
    """
    with running(work) as process:
        assert process.stdout is not None
        process.send_signal(signal.SIGTERM)
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGINT)
        result, seconds = ended(process)
    assert result.status == 143, "the first signal is the reason"
    assert result.err == "sfasync: interrupted by SIGTERM; its clean-up was cut off\n"
    assert seconds < 1


def test_a_clean_up_that_takes_too_long_is_cut_off() -> None:
    work = """
        runner.GRACE = 0.2
        async def work():
            try:
                ready()
                await asyncio.sleep(60)
            finally:
                await asyncio.sleep(60)
    """
    with running(work) as process:
        process.send_signal(signal.SIGINT)
        result, seconds = ended(process)
    assert (result.status, result.err) == (130, UNTIDY)
    assert seconds < PROMISE


def test_who_is_in_the_middle_of_a_line_can_be_cut_off() -> None:
    """No lock of a stream is asked for; what was not written yet goes with the process."""
    work = """
        runner.GRACE = 0.2
        async def work():
            try:
                ready()
                await asyncio.sleep(60)
            finally:
                while True:
                    sys.stderr.write("")
                    sys.stdout.buffer.write(b"x" * 65536)
    """
    with running(work) as process:
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=PROMISE) == 130
        assert process.stderr is not None
        assert process.stderr.read() == UNTIDY


def test_the_last_words_are_for_programs_too() -> None:
    work = """
        runner.GRACE = 0.2
        class Output(Output):
            def __init__(self):
                super().__init__()
                self.json = True

        async def work():
            try:
                ready()
                await asyncio.sleep(60)
            finally:
                await asyncio.sleep(60)
    """
    with running(work) as process:
        process.send_signal(signal.SIGINT)
        result, _ = ended(process)
    assert (result.status, result.err) == (130, UNTIDY)
    assert (result.last["event"], result.last["code"], result.last["exit"]) == ("error", "interrupted", 130)
    assert f"sfasync: {result.last['message']}\n" == UNTIDY


def test_work_that_waits_for_a_reader_of_stdout_can_be_ended() -> None:
    work = """
        runner.GRACE = 0.2
        async def work():
            ready()
            while True:
                os.write(1, b"x" * 65536)
    """
    with running(work) as process:
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=PROMISE) == 130


def test_a_thread_that_is_stuck_does_not_hold_up_the_end() -> None:
    work = """
        async def work():
            loop = asyncio.get_running_loop()
            loop.run_in_executor(None, time.sleep, 60)
            ready()
            return 0
    """
    with running(work) as process:
        result, seconds = ended(process)
    assert result.status == 0
    assert seconds < PROMISE


def test_a_signal_that_the_caller_ignores_stays_ignored() -> None:
    work = """
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        async def work():
            os.kill(os.getpid(), signal.SIGHUP)
            ready()
            await asyncio.sleep(0.05)
            return 0
    """
    with running(work) as process:
        result, _ = ended(process)
    assert (result.status, result.err) == (0, "")


def test_work_that_is_finished_when_the_signal_comes_counts() -> None:
    work = """
        async def work():
            ready()
            os.kill(os.getpid(), signal.SIGINT)
            return 0
    """
    with running(work) as process:
        result, _ = ended(process)
    assert (result.status, result.err) == (0, "")


def test_what_asyncio_complains_about_is_not_for_users() -> None:
    work = """
        async def fails():
            raise ValueError("nobody looks")

        async def work():
            task = asyncio.create_task(fails())
            await asyncio.sleep(0)
            del task
            ready()
            return 0
    """
    with running(work) as process:
        result, _ = ended(process)
    assert (result.status, result.err) == (0, "")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("loading", ["click", "asyncio", "sfasync.engine"])
def test_a_signal_while_modules_are_being_loaded(loading: str, number: signal.Signals, tmp_path: Path) -> None:
    """Sent when the interpreter says that it has loaded one: the process may be anywhere behind that."""
    command = [sys.executable, "-X", "importtime", "-m", "sfasync", "copy", "--json", f"nbd+unix:///?socket={tmp_path}"]
    process = subprocess.Popen(
        [*command, "null:", "--connect-retry", "30"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stderr is not None
    for line in process.stderr:
        if loading in line:
            break
    process.send_signal(number)
    result = finish(process)
    assert (result.status, result.last["code"], result.last["exit"]) == (128 + number, "interrupted", 128 + number)
    assert {event["event"] for event in result.events[:-1]} <= {"progress"}, "the job may have begun"
    assert "Traceback" not in result.err


def test_the_loop_is_closed_and_the_signals_are_given_back(capsys: pytest.CaptureFixture[str]) -> None:
    from sfasync.cli.output import Output
    from sfasync.cli.runner import perform

    before = signal.getsignal(signal.SIGINT)

    async def work() -> int:
        os.kill(os.getpid(), signal.SIGINT)
        raise ValueError("odd")

    assert perform(Output(), work) == 130
    assert signal.getsignal(signal.SIGINT) is before
    assert capsys.readouterr().err == "sfasync: interrupted by SIGINT\n"


def test_garbage_is_collected_once_the_work_is_under_way() -> None:
    """Until then there is none: `main` switches it off while the command is loaded."""
    work = """
        import gc

        async def work():
            seen = [gc.isenabled()]
            await asyncio.sleep(0)
            seen += [gc.isenabled(), gc.get_freeze_count() > 0]
            ready()
            print(seen, file=sys.stderr, flush=True)  # what follows "ready" on the other stream may be read with it
            return 0

        gc.disable()
    """
    with running(work) as process:
        end, _ = ended(process)
    assert end.err == "[False, True, True]\n"
