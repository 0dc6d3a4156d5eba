"""Start the supervisor of a session folder, or (with --simulator) one of its simulators.

Run by path, with the interpreter that has the task: `python .../remote_env/server/launch.py SESSION_FOLDER`. Written
so that an interpreter that is too old still says so, and so that the supervisor imports the standard library only:
it enters the package without running `remote_env/__init__.py`.
"""

import os
import sys

PACKAGE = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
OLDEST = (3, 10)


def _write_anew(path):
    # The folder has not been looked at yet: nothing is written through a link that somebody else has put there.
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | getattr(os, "O_NOFOLLOW", 0)
    return os.fdopen(os.open(path, flags, 0o600), "w")


def _refuse_old_interpreter(folder):
    import json

    version = ".".join(str(part) for part in sys.version_info[:3])
    message = "%s is Python %s; the far end needs 3.10 or later: pass python=" % (sys.executable, version)  # noqa: UP031
    partial = os.path.join(folder, "failed.json.partial")
    with _write_anew(partial) as file:
        json.dump({"kind": "python-too-old", "message": message}, file)
    os.rename(partial, os.path.join(folder, "failed.json"))
    sys.exit(message)


def _note_process(folder):
    # For our starter: a wrapper that started us may outlive us. Where there is no /proc it has to do without.
    try:
        with open("/proc/self/stat") as file:
            begun = file.read().rpartition(")")[2].split()[19]
        numbers = os.readlink("/proc/self/ns/pid")
        with _write_anew(os.path.join(folder, "supervisor")) as file:
            file.write("%d %s %s\n" % (os.getpid(), begun, numbers))  # noqa: UP031
    except OSError:
        pass


def _set_path():
    # The script's own folder must go: its module names would shadow the standard library's.
    root = os.path.dirname(PACKAGE)
    vendor = os.path.join(root, "vendor")  # travels with an uploaded far end; an installed package wins
    sys.path[:] = [root, *sys.path[1:], *([vendor] if os.path.isdir(vendor) else [])]


def main():
    """Run what the arguments name, and exit with its status."""
    if len(sys.argv) < 2:
        sys.exit("usage: launch.py SESSION_FOLDER  (started by remote_env; to serve by hand: servers/task_server.py)")
    is_simulator = len(sys.argv) > 2 and sys.argv[2] == "--simulator"
    if not is_simulator:
        _note_process(sys.argv[1])
    if sys.version_info < OLDEST:
        _refuse_old_interpreter(sys.argv[1])
    _set_path()
    _enter_package()
    if is_simulator:
        from remote_env.server import simulator

        sys.exit(simulator.main(sys.argv[1], *(int(number) for number in sys.argv[3:])))
    from remote_env.server import supervisor

    sys.exit(supervisor.main(sys.argv[1]))


def _enter_package():
    # Its modules can be imported from now on; `__init__`, which needs gymnasium, is the simulator's to run.
    import importlib.util

    spec = importlib.util.spec_from_file_location("remote_env", os.path.join(PACKAGE, "__init__.py"))
    sys.modules["remote_env"] = importlib.util.module_from_spec(spec)  # type: ignore[arg-type]


if __name__ == "__main__":
    main()
