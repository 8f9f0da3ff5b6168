"""What the script prints comes out as it went in; what we say is on stderr, and recognizable."""

from __future__ import annotations

import hashlib
import json
import os
import shlex
import subprocess
import time

import pytest

from .helpers import KSUPERVISE, Place, until

BINARY = "import os; os.write(1, bytes(range(256)) * 3); os.write(2, bytes(range(255, -1, -1)))"


def test_streams_stay_apart_and_exact(place: Place) -> None:
    done = place.run("--quiet", *place.script(BINARY))
    assert done.out == bytes(range(256)) * 3
    assert done.err == bytes(range(255, -1, -1))


def test_a_last_line_without_an_end_stays_so(place: Place) -> None:
    done = place.run("--quiet", "sh", "-c", "printf out; printf err >&2")
    assert (done.out, done.err) == (b"out", b"err")


def test_our_line_does_not_begin_inside_the_scripts(place: Place) -> None:
    done = place.run("sh", "-c", "printf err >&2")
    assert done.err.startswith(b"err\nksupervise: ")


def test_no_output_is_no_output(place: Place) -> None:
    done = place.run("--quiet", "true")
    assert (done.out, done.err) == (b"", b"")


BIG = """
import hashlib, os, random
source, digest = random.Random(7), hashlib.sha256()
for _ in range(160):
    block = source.randbytes(65536)
    digest.update(block)
    view = memoryview(block)
    while view:
        view = view[os.write(1, view):]
os.write(2, digest.hexdigest().encode())
"""


def test_ten_megabytes_come_through(place: Place) -> None:
    done = place.run("--quiet", *place.script(BIG))
    assert len(done.out) == 160 * 65536
    assert hashlib.sha256(done.out).hexdigest().encode() == done.err


def test_a_slow_reader_gets_everything_too(place: Place) -> None:
    """Slow is not blocked: nothing is dropped as long as somebody reads."""
    read, write = os.pipe()
    parent = place.start("--quiet", *place.script(BIG), stdout=write)
    os.close(write)
    size, digest = 0, hashlib.sha256()
    with open(read, "rb", buffering=0) as stream:
        while data := stream.read(65536):
            size += len(data)
            digest.update(data)
            time.sleep(0.01)  # at most 6.5 MB/s
    done = parent.wait()
    assert size == 160 * 65536
    assert digest.hexdigest().encode() == done.err


def test_the_order_within_a_stream_holds(place: Place) -> None:
    source = "import os\nfor i in range(20000): os.write(1 + i % 2, b'%d\\n' % i)"
    done = place.run("--quiet", *place.script(source))
    assert [int(line) for line in done.out.split()] == list(range(0, 20000, 2))
    assert [int(line) for line in done.err.split()] == list(range(1, 20000, 2))


def test_both_streams_into_one_file_keep_their_lines(place: Place) -> None:
    path = place.root / "both"
    with open(path, "wb") as both:
        parent = subprocess.Popen(
            [*_command(place), "sh", "-c", "echo one; echo two >&2; echo three"],
            stdout=both,
            stderr=both,
            cwd=place.root,
        )
        assert parent.wait(20) == 0
    lines = path.read_bytes().splitlines()
    assert {b"one", b"two", b"three"} < set(lines)
    assert lines.index(b"one") < lines.index(b"three")


def _command(place: Place) -> list[str]:
    return [*KSUPERVISE, "--store", str(place.store)]


def test_the_log_has_it_with_rewritten_lines_once(place: Place) -> None:
    bar = "import sys\nfor i in range(5): sys.stdout.write(f'\\r{i}/5 step')\nprint()\nprint('end', end='')"
    done = place.run("--quiet", *place.script(bar))
    assert done.out == b"".join(b"\r%d/5 step" % i for i in range(5)) + b"\nend"
    log = place.run_dir / "attempts" / "001" / "output.log"
    assert log.read_bytes() == b"4/5 step\nend\n"
    assert place.report("logs").out == b"4/5 step\nend\n"


def test_each_attempt_has_a_log(place: Place) -> None:
    place.run("--max-failures", "2", "sh", "-c", "echo $KSUPERVISE_ATTEMPT; exit 1")
    assert place.report("logs").out == b"2\n"
    assert place.report("logs", "--attempt", "1").out == b"1\n"


def test_what_was_printed_before_a_kill_is_seen(place: Place) -> None:
    """PYTHONUNBUFFERED: the last words of a killed script are not lost in its buffer."""
    source = "import os, signal; print('last words'); os.kill(os.getpid(), signal.SIGKILL)"
    done = place.run("--max-failures", "1", *place.script(source))
    assert (done.code, done.out) == (137, b"last words\n")


def test_the_users_choice_of_buffering_stands(place: Place) -> None:
    source = "import os; print(os.environ.get('PYTHONUNBUFFERED'))"
    assert place.run(*place.script(source), env={"PYTHONUNBUFFERED": "no"}).out == b"no\n"


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_a_console_that_nobody_reads_never_blocks_the_child(place: Place, stream: str) -> None:
    read, write = os.pipe()
    number = {"stdout": 1, "stderr": 2}[stream]
    source = f"import os\nfor _ in range(160): os.write({number}, b'x' * 65536)\nopen('through', 'w')"
    parent = place.start("--quiet", *place.script(source), streams={stream: write})
    os.close(write)
    until((place.root / "through").exists, "end of the script")
    assert parent.wait().code == 0
    os.close(read)
    assert (place.run_dir / "attempts/001/output.log").stat().st_size >= 160 * 65536


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_a_console_that_goes_away_ends_nothing(place: Place, stream: str) -> None:
    read, write = os.pipe()
    os.close(read)
    parent = place.start("sh", "-c", "echo one; echo two >&2; sleep 0.05; echo three; exit 0", streams={stream: write})
    os.close(write)
    assert parent.wait().code == 0
    log = (place.run_dir / "attempts/001/output.log").read_bytes()
    assert sorted(log.split()) == [b"one", b"three", b"two"]


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_closed_standard_descriptors_harm_nobody(place: Place, closed: str) -> None:
    """Output must not land in whatever file got the free number."""
    script = place.write("noisy.sh", "echo out; echo err >&2\n")
    done = place.plain(["sh", "-c", f"{shlex.join([*_command(place), 'sh', script])} {closed}"])
    assert done.code == 0
    assert sorted((place.run_dir / "attempts/001/output.log").read_bytes().split()) == [b"err", b"out"]
    assert place.record()["state"] == "completed"
    assert place.events("verdict")
    assert (place.run_dir / "lock").read_bytes() == b""


def test_ours_is_on_stderr_with_its_prefix_only(place: Place) -> None:
    done = place.run("--max-failures", "2", "sh", "-c", "exit 1")
    assert done.out == b""
    assert done.theirs == b""
    assert len(done.ours) == 3


def test_quiet_says_what_needs_attention_only(place: Place) -> None:
    done = place.run("--quiet", "--max-failures", "2", "sh", "-c", "exit 1")
    assert len(done.ours) == 2  # the restart, and the verdict
    assert done.said("attempt 2 now")
    assert done.said("gave up")


def test_json_log_is_json(place: Place) -> None:
    done = place.run("--json-log", "--max-failures", "2", "sh", "-c", "exit 1")
    records = [json.loads(line) for line in done.err.splitlines()]
    assert all("event" in record for record in records)
    assert sum("gave up" in record.get("text", "") for record in records) == 1


def test_json_log_shows_the_journal(place: Place) -> None:
    done = place.run("--json-log", "true")
    shown = {json.loads(line)["event"] for line in done.err.splitlines()}
    assert {"launched", "attempt_ended", "verdict"} <= shown


TRACEBACK = """
import threading
def inner():
    raise RuntimeError("the user's")
def outer():
    try:
        inner()
    except RuntimeError as error:
        raise ValueError("again") from error
outer()
"""


def test_a_traceback_is_what_plain_python_shows(place: Place) -> None:
    script = place.script(TRACEBACK)
    plain = place.plain(script)
    done = place.run("--max-failures", "1", *script)
    assert done.code == plain.code == 1
    assert done.theirs == plain.err
    assert b"the user's" in plain.err


@pytest.mark.parametrize("source", ["def :", "import nothing_of_that_name", "raise SystemExit('bye')", "1/0"])
def test_the_errors_of_a_start_are_what_plain_python_shows(place: Place, source: str) -> None:
    script = place.script(source)
    plain = place.plain(script)
    done = place.run("--max-failures", "1", *script)
    assert (done.code, done.out, done.theirs) == (plain.code, plain.out, plain.err)
