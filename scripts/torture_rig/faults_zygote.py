"""A warm interpreter that becomes trainers, so that a fault does not cost two starts of TensorFlow.

`serve SOCKET` imports the framework, runs no operation, and forks for every client. `python -I -S faults_zygote.py
SOCKET SCRIPT [ARGS]...` is what ksupervise supervises: it hands its descriptors and environment to the zygote, whose
fork attaches our hook and runs the script to the interpreter's own end. The client, which our hook does not reach, as
it would not reach a shell, passes signals on and dies as the fork died; a client that is killed takes its fork along.
For the judgement it is a wrapper that is no Python. What depends on the process tree (stalls, memory) needs the real
thing: those runs are cold.
"""

from __future__ import annotations

import array
import contextlib
import gc
import json
import os
import selectors
import signal
import socket
import sys
from typing import Any

Request = tuple[dict[str, Any], list[int]]


def serve(path: str) -> Request | None:
    """Fork for every client, for ever. Returns in the fork, with what it is to do."""
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
    import keras  # noqa: F401
    import sklearn.datasets  # noqa: F401

    gc.freeze()  # what is shared need not be looked through, and with that copied, by each fork
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path)
    listener.listen(16)
    print("ready", flush=True)
    selector = selectors.DefaultSelector()
    selector.register(listener, selectors.EVENT_READ)
    while True:
        for key, _ in selector.select():
            if key.fileobj is not listener:
                _end(selector, key)
                continue
            client, _ = listener.accept()
            request, passed = _receive(client)
            pid = os.fork()
            if pid == 0:
                selector.close()
                listener.close()
                client.close()
                return request, passed
            for fd in passed:
                os.close(fd)
            client.sendall(f"{pid}\n".encode())
            pidfd = os.pidfd_open(pid)
            selector.register(pidfd, selectors.EVENT_READ, (pid, client, pidfd))
            selector.register(client, selectors.EVENT_READ, (pid, client, pidfd))


def _receive(client: socket.socket) -> Request:
    data, passed, _, _ = socket.recv_fds(client, 1 << 20, 8)
    return json.loads(data), passed


def _end(selector: selectors.BaseSelector, key: selectors.SelectorKey) -> None:
    """The fork died, or its client did."""
    pid, client, pidfd = key.data
    if key.fileobj is client:
        selector.unregister(client)
        os.kill(pid, signal.SIGKILL)
        return  # its pidfd is next
    status = os.waitid(os.P_PID, pid, os.WEXITED)
    assert status is not None
    code = status.si_status if status.si_code == os.CLD_EXITED else -status.si_status
    selector.unregister(pidfd)
    os.close(pidfd)
    with contextlib.suppress(KeyError):
        selector.unregister(client)
    with contextlib.suppress(OSError):
        client.sendall(f"{code}\n".encode())
    client.close()


def become_trainer(request: dict[str, Any], passed: list[int]) -> None:
    """In the fork: take the client's place. The script is run by whoever called, with nothing above it."""
    import tempfile

    os.setsid()
    environ = request["environ"]
    for target, fd in zip((0, 1, 2), passed, strict=False):
        os.dup2(fd, target)
    if len(passed) > 3:
        os.dup2(passed[3], int(environ["KSUPERVISE_LOCK_FD"]))
    for fd in passed:
        os.close(fd)
    os.environ.clear()
    os.environ.update(environ)
    os.chdir(request["cwd"])
    tempfile.tempdir = None
    boot = environ.get("KSUPERVISE_BOOT")
    if boot:
        sys.path.insert(0, boot)
        import ksupervise.child.attach

        sys.path.remove(boot)
        ksupervise.child.attach.attach()
    sys.argv = request["argv"]


def client(path: str, argv: list[str]) -> None:
    """Become the face of a trainer."""
    sock = socket.socket(socket.AF_UNIX)
    sock.connect(path)
    fds = [0, 1, 2]
    lock = os.environ.get("KSUPERVISE_LOCK_FD")
    if lock:
        fds.append(int(lock))
    request = json.dumps({"argv": argv, "environ": dict(os.environ), "cwd": os.getcwd()}).encode()
    sock.sendmsg([request], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))])
    reader = sock.makefile("r")
    pid = int(reader.readline())

    def pass_on(number: int, frame: object) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, pass_on)
    line = reader.readline()
    code = int(line) if line.strip() else 1
    if code < 0:
        if code != -signal.SIGKILL:
            signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    os._exit(code)


if __name__ == "__main__":
    if sys.argv[1] != "serve":
        client(sys.argv[1], sys.argv[2:])
    work = serve(sys.argv[2])
    assert work is not None
    become_trainer(*work)
    import runpy

    runpy.run_path(sys.argv[0], run_name="__main__")
