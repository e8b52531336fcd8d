"""What a process does as one: keeps freed memory, ends after its threads, and does work in a fork beside it."""

from __future__ import annotations

import os
import platform
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from partitioner.process import await_threads, beside, interrupts_put_off, raise_interrupt_behind, run_until_stopped

ROOT = Path(__file__).parents[2]

FAULTS = """
import resource
import torch
from partitioner.process import keep_freed_memory

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(20):
        torch.ones(4 << 20, dtype=torch.uint8)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

torch.set_num_threads(1)
before = faults()
keep_freed_memory()
torch.ones(4 << 20, dtype=torch.uint8)
print(before, faults())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other allocators have rules of their own")
def test_memory_is_faulted_in_once() -> None:
    ended = subprocess.run([sys.executable, "-c", FAULTS], check=True, capture_output=True, text=True)
    _, after = map(int, ended.stdout.split())
    assert after < 200  # 20 times 1024 pages otherwise


@pytest.mark.parametrize("raised", ['exec("raise KeyboardInterrupt")', "raise KeyboardInterrupt"])
def test_exit_code_of_a_process_wherever_it_was_interrupted(tmp_path: Path, raised: str) -> None:
    (tmp_path / "command.py").write_text(
        "import sys\nfrom partitioner.process import interrupted\n"
        f"try:\n    {raised}\nexcept KeyboardInterrupt:\n    sys.exit(interrupted('command'))\n"
    )
    done = subprocess.run(
        [sys.executable, "-m", "command"],
        cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "command: interrupted\n")


@pytest.fixture
def forks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Forks even where earlier tests have left threads of torch's: what is done in the child needs none of them."""
    monkeypatch.setattr(threading, "active_count", lambda: 1)


forking = pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")


@forking
@pytest.mark.usefixtures("forks")
def test_the_value_comes_from_another_process() -> None:
    waiting = beside(os.getpid)
    assert waiting() != os.getpid()


@forking
@pytest.mark.usefixtures("forks")
def test_a_large_value_comes_whole() -> None:
    assert beside(lambda: b"x" * 5_000_000)() == b"x" * 5_000_000


@forking
@pytest.mark.usefixtures("forks")
def test_an_error_is_met_here() -> None:
    def fail() -> None:
        raise KeyError(os.getpid())

    waiting = beside(fail)
    with pytest.raises(KeyError, match=str(os.getpid())):
        waiting()


@forking
@pytest.mark.usefixtures("forks")
def test_a_value_that_cannot_be_sent_is_made_here() -> None:
    assert callable(beside(lambda: lambda: 1)())


@forking
@pytest.mark.usefixtures("forks")
def test_a_child_that_hangs_is_replaced() -> None:
    parent = os.getpid()

    def hang() -> int:
        if os.getpid() != parent:
            threading.Event().wait()
        return os.getpid()

    assert beside(hang, timeout_s=0.2)() == parent


INTERRUPTED = """
import os, signal
from partitioner.process import beside
os.cpu_count = lambda: 2
os.register_at_fork(before=lambda: os.kill(os.getpid(), signal.SIGINT))
try:
    beside(lambda: 1)
except KeyboardInterrupt:
    print("interrupted")
"""


@pytest.mark.skipif(sys.platform != "linux", reason="nothing is forked elsewhere")
def test_an_interrupt_during_the_fork_is_not_lost() -> None:
    done = subprocess.run([sys.executable, "-c", INTERRUPTED], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.stderr) == ("interrupted\n", "")


def test_a_process_with_threads_is_not_forked() -> None:
    stop = threading.Event()
    thread = threading.Thread(target=stop.wait)
    thread.start()
    try:
        assert beside(os.getpid)() == os.getpid()
    finally:
        stop.set()
        thread.join()


def test_who_waits_for_itself_does_not() -> None:
    await_threads([threading.current_thread()], 60)


# A thread receives over gloo from a peer that ends a second after the thread was waited for; or while Python ends,
# where that comes first.
LATE = """
import sys, threading, time
from datetime import timedelta
import torch
from torch.distributed import HashStore
from partitioner.graph.torch_private.gloo import gloo_group
from partitioner.process import await_threads

store, groups = HashStore(), {}

def connect(rank):
    groups[rank] = gloo_group(store, rank, 2, host="127.0.0.1", timeout=timedelta(seconds=60))

def receive():
    try:
        groups[0].recv([torch.zeros(4)], 1, 1).wait(timedelta(days=1))
    except RuntimeError:
        pass

def end_peer():
    time.sleep(1)
    groups.pop(1)

class AtPythonsEnd:
    def __del__(self):
        groups.pop(1, None)
        time.sleep(0.5)

connecting = [threading.Thread(target=connect, args=(rank,)) for rank in range(2)]
for thread in connecting:
    thread.start()
for thread in connecting:
    thread.join()
receiving = threading.Thread(target=receive, daemon=True)
receiving.start()
sys.last = AtPythonsEnd()
ending = threading.Thread(target=end_peer, daemon=True)
ending.start()
await_threads([receiving, ending], 0.01)
"""


@pytest.mark.slow
def test_a_thread_that_comes_late_out_of_torch_does_not_abort_the_process() -> None:
    done = subprocess.run([sys.executable, "-c", LATE], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


ENDING = """
import atexit, sys, threading
from partitioner.process import end_at_once
atexit.register(print, "freed")
if sys.argv[1] == "busy":
    threading.Thread(target=threading.Event().wait, args=(0.2,)).start()
print("done")
end_at_once(3)
"""


@pytest.mark.parametrize(("kind", "said", "code"), [("idle", "done\n", 3), ("busy", "done\nfreed\n", 0)])
def test_a_process_ends_at_once_unless_it_is_at_work(kind: str, said: str, code: int) -> None:
    ran = subprocess.run([sys.executable, "-c", ENDING, kind], capture_output=True, text=True, check=False)
    assert (ran.stdout, ran.returncode) == (said, code)


def test_an_interrupt_is_not_lost_behind_the_errors_in_its_wake() -> None:
    def fail() -> None:
        try:
            try:
                raise KeyboardInterrupt
            finally:
                raise AssertionError("a mode cannot be left")
        except AssertionError as error:
            raise ValueError("cannot be traced") from error

    with pytest.raises(ValueError, match="cannot be traced") as caught:
        fail()
    with pytest.raises(KeyboardInterrupt):
        raise_interrupt_behind(caught.value)
    raise_interrupt_behind(ValueError())


def test_signals_wait_for_the_blocks_end_and_are_handled_once_each() -> None:
    handled: list[int] = []
    before = signal.signal(signal.SIGUSR1, lambda number, _: handled.append(number))

    def work() -> None:
        with interrupts_put_off() as came:
            for number in (signal.SIGUSR1, signal.SIGINT, signal.SIGUSR1, signal.SIGINT):
                signal.raise_signal(number)
            assert (handled, len(came)) == ([], 4)

    try:
        with pytest.raises(KeyboardInterrupt):
            work()
        assert handled == [signal.SIGUSR1]
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGUSR1, before)


def test_in_another_thread_no_signal_is_put_off() -> None:
    def put_off() -> None:
        with interrupts_put_off() as came:
            assert not came
        done.append(True)

    done: list[bool] = []
    thread = threading.Thread(target=put_off)
    thread.start()
    thread.join()
    assert done


STORM = """
import os, signal, sys, time
from partitioner.process import run_until_stopped

def stop(times):
    for _ in range(times):
        os.kill(os.getpid(), getattr(signal, sys.argv[1]))

def work():
    try:
        try:
            stop(1)
        finally:
            stop(3)  # in what is done on the way out
    except Exception:
        return 2
    finally:
        if sys.argv[2] == "in an error":
            raise ValueError("what an interrupt leaves")

class Late:  # Python lets go of it at its very end, after it has restored the handlers of signals
    def __init__(self):
        self.kill, self.arguments = os.kill, (os.getpid(), getattr(signal, sys.argv[1]))

    def __del__(self):
        self.kill(*self.arguments)

late = Late()
status = run_until_stopped("command", work)
stop(5)
time.sleep(0.01)
sys.exit(status)
"""


@pytest.mark.parametrize("where", ["on the way out", "in an error"])
@pytest.mark.parametrize(("number", "status", "word"), [("SIGINT", 130, "interrupted"), ("SIGTERM", 143, "terminated")])
def test_a_command_ends_with_one_message_however_often_it_is_stopped(
    number: str, status: int, word: str, where: str
) -> None:
    done = subprocess.run(
        [sys.executable, "-c", STORM, number, where], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stdout, done.stderr) == (status, "", f"command: {word}\n")


FINALIZER = """
import os, signal, sys
from partitioner.process import run_until_stopped

class Stopped:
    def __del__(self):
        os.kill(os.getpid(), getattr(signal, sys.argv[1]))
        list(range(10))

def work():
    Stopped()
    signal.pause()  # as what takes long

sys.exit(run_until_stopped("command", work))
"""


@pytest.mark.parametrize(("number", "status", "word"), [("SIGINT", 130, "interrupted"), ("SIGTERM", 143, "terminated")])
def test_a_signal_that_comes_in_a_finalizer_is_not_lost(number: str, status: int, word: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", FINALIZER, number], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stdout, done.stderr) == (status, "", f"command: {word}\n")


LEFT_BEHIND = """
import os, signal, sys
from partitioner.process import run_until_stopped

class Bar:  # as tqdm's, which draws itself when it is let go of
    def __del__(self):
        print("drawn", file=sys.stderr)

def work():
    bar = Bar()
    try:
        os.kill(os.getpid(), getattr(signal, sys.argv[1]))
    except BaseException as error:
        keeps = error  # which refers to this frame, and so to the bar and to itself
        raise

sys.exit(run_until_stopped("command", work))
"""


@pytest.mark.parametrize(("number", "status", "word"), [("SIGINT", 130, "interrupted"), ("SIGTERM", 143, "terminated")])
def test_nothing_is_drawn_after_the_message(number: str, status: int, word: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", LEFT_BEHIND, number], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stdout, done.stderr) == (status, "", f"drawn\ncommand: {word}\n")


def test_a_command_that_nobody_stops_leaves_signals_as_they_were() -> None:
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)

    def fail() -> int:
        raise KeyError

    assert run_until_stopped("command", lambda: 7) == 7
    with pytest.raises(KeyError):
        run_until_stopped("command", fail)
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before
