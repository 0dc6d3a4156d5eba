"""A stand-in for `remote_env/server/launch.py`, written into a package folder of its own.

It obeys the contract between the SSH start and the far end (session folder, settings.json, ready.json, failed.json,
the `simulators` file, `servers/<node>/<port>.json`) and serves bytes: an echo, and on b"B" one megabyte. What it does
wrong is chosen by `settings["task"]["mode"]`. Some things only a stand-in can do: die at a chosen moment, hang,
refuse for a chosen reason.
"""

from __future__ import annotations

import textwrap
from pathlib import Path

_LAUNCH = r"""
import json, os, shutil, signal, socket, subprocess, sys, threading, time

folder = sys.argv[1]
with open(os.path.join(folder, "settings.json")) as file:
    settings = json.load(file)
mode = settings["task"].get("mode", "serve")
cache = os.path.join(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"), "remote-env")

def start_time(pid):
    with open("/proc/%d/stat" % pid) as file:
        return file.read().rpartition(")")[2].split()[19]

with open(os.path.join(folder, "supervisor"), "w") as file:
    file.write("%d %s %s\n" % (os.getpid(), start_time(os.getpid()), os.readlink("/proc/self/ns/pid")))

def write(path, value):
    with open(path + ".partial", "w") as file:
        json.dump(value, file)
    os.rename(path + ".partial", path)

def unblock():
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGTERM])

print("loading the task", flush=True)
if mode == "die":
    print("ImportError: no module named the_task", flush=True)
    sys.exit(7)
if mode == "crash":
    os.kill(os.getpid(), signal.SIGSEGV)
if mode == "refuse":
    write(os.path.join(folder, "failed.json"), {"kind": settings["task"]["kind"], "message": "cannot listen"})
    sys.exit(1)
if mode == "hang":
    time.sleep(600)

signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])  # until there is who ends it
simulator = subprocess.Popen(["sleep", "600"], start_new_session=True, preexec_fn=unblock)
with open(os.path.join(folder, "simulators"), "w") as file:
    file.write("%d %s\n" % (simulator.pid, start_time(simulator.pid)))

listener = socket.socket()
for buffer in (socket.SO_SNDBUF, socket.SO_RCVBUF):  # small, so that a sender notices who does not read
    listener.setsockopt(socket.SOL_SOCKET, buffer, 65536)
listener.bind(tuple(settings["listen"]["tcp"]))
listener.listen(8)
address = list(listener.getsockname())
facts = {"pid": os.getpid(), "start_time": start_time(os.getpid())}
os.makedirs(os.path.join(cache, "servers", os.uname().nodename), mode=0o700, exist_ok=True)
record = os.path.join(cache, "servers", os.uname().nodename, "%d.json" % address[1])
write(record, dict(facts, token=settings["token"], session_folder=folder, task_label="echo"))
write(os.path.join(folder, "ready.json"), dict(facts, listen={"tcp": address}, python="3", protocol=1))
print("serving", flush=True)

def end(number, frame):
    simulator.kill()
    simulator.wait()
    os.remove(record)
    shutil.rmtree(folder)
    os._exit(0)

if mode == "stubborn":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
else:
    signal.signal(signal.SIGTERM, end)
signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGTERM])

def serve(connection):
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    while True:
        data = connection.recv(65536)
        if not data:
            return connection.close()
        connection.sendall(b"x" * 1000000 if data == b"B" else data)

while True:
    threading.Thread(target=serve, args=(listener.accept()[0],), daemon=True).start()
"""


def write_package(folder: Path) -> Path:
    """A package folder under `folder` whose launch.py is the stand-in; its path."""
    package = folder / "remote_env"
    (package / "server").mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (package / "server" / "launch.py").write_text(textwrap.dedent(_LAUNCH))
    return package
