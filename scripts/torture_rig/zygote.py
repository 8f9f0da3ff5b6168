"""A warm interpreter that becomes trainers: the framework imported, no operation run, forked for every attempt.

A cold start of TensorFlow takes 5 of a job's 9 seconds, in which no kill can hit a fit. `serve` listens on a socket;
`python zygote.py SOCKET SCRIPT [ARGS]...` is what ksupervise supervises: it hands its descriptors and environment to
the zygote, whose fork attaches our hook, runs the script and, being the trainer, lives and dies as one. The client
dies as the trainer died.
"""

import array
import json
import os
import runpy
import signal
import socket
import sys
import threading


def serve(path: str) -> None:
    """Import Keras, then fork a trainer for every client."""
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
    import keras  # noqa: F401
    import sklearn.datasets  # noqa: F401

    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path)
    listener.listen(16)
    print("ready", flush=True)
    while True:
        client, _ = listener.accept()
        data, passed, _, _ = socket.recv_fds(client, 1 << 20, 8)
        request = json.loads(data)
        pid = os.fork()
        if pid == 0:
            listener.close()
            client.close()
            become_trainer(request, passed)
        for fd in passed:
            os.close(fd)
        client.sendall(f"{pid}\n".encode())
        threading.Thread(target=report, args=(client, pid), daemon=True).start()


def report(client: socket.socket, pid: int) -> None:
    """Tell the client how its trainer ended."""
    _, status = os.waitpid(pid, 0)
    try:
        client.sendall(f"{os.waitstatus_to_exitcode(status)}\n".encode())
        client.close()
    except OSError:
        pass


def become_trainer(request: dict[str, object], passed: list[int]) -> None:
    """In the fork: take the client's place and run its script."""
    code = 1
    try:
        os.setsid()
        environ = request["environ"]
        assert isinstance(environ, dict)
        for target, fd in zip((0, 1, 2), passed, strict=False):
            os.dup2(fd, target)
        if len(passed) > 3:
            os.dup2(passed[3], int(environ["KSUPERVISE_LOCK_FD"]))
        for fd in passed:
            os.close(fd)
        os.environ.clear()
        os.environ.update(environ)
        os.chdir(str(request["cwd"]))
        boot = environ.get("KSUPERVISE_BOOT")
        if boot:
            sys.path.insert(0, boot)
            import ksupervise.child.attach

            sys.path.remove(boot)
            ksupervise.child.attach.attach()
        argv = request["argv"]
        assert isinstance(argv, list)
        sys.argv = argv
        runpy.run_path(argv[0], run_name="__main__")
        code = 0
    except SystemExit as leaving:
        code = leaving.code if isinstance(leaving.code, int) else 1
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        try:
            import atexit

            atexit._run_exitfuncs()
            sys.stdout.flush()
        finally:
            os._exit(code)


def client(path: str, argv: list[str]) -> None:
    """Become the face of a trainer: pass signals on to it, die as it dies."""
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
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda received, frame: os.kill(pid, received))
    line = reader.readline()
    code = int(line) if line.strip() else 1
    if code < 0:
        signal.signal(-code, signal.SIG_DFL) if code != -signal.SIGKILL else None
        os.kill(os.getpid(), -code)
    sys.exit(code)


if __name__ == "__main__":
    if sys.argv[1] == "serve":
        serve(sys.argv[2])
    client(sys.argv[1], sys.argv[2:])
