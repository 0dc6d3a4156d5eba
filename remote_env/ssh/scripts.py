"""The POSIX sh programs that run on the far end, and how one is run.

A script and its variables arrive on standard input, before its data: nothing but `dd` and a number stands on
a command line, where other users could read it, and no login shell (fish, csh) has to parse a script. Each
answer is a line that starts with `MARK`, since login files may print banners of their own.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from remote_env.errors import StartError
from remote_env.ssh.connection import RunningCommand, SshConnection

MARK = "@remote-env"
FAILURES = ("failed", "refusal")

_PRELUDE = r"""
mask=$(umask)
umask 077
cache="${XDG_CACHE_HOME:-$HOME/.cache}/remote-env"
say() { printf '\n@remote-env %s\n' "$1"; }
refuse() { say "refusal $1"; exit 64; }
fail() { say "failed $(printf %s "$1" | tr '\n' ' ')$(free_space)"; exit 73; }
free_space() { df -Pk "$cache" 2>/dev/null | { read -r _; read -r _ _ _ free _ && printf ', %s KiB free' "$free"; }; }
# The start time (field 22 of /proc/<pid>/stat) of a live process; nothing for a dead one or a zombie.
start_of() {
  read -r stat 2>/dev/null < "/proc/$1/stat" || return 0
  set -- ${stat##*) }
  [ "$1" = Z ] || printf %s "${20}"
}
is_alive() { [ -n "$1" ] && [ -n "$2" ] && [ "$(start_of "$1")" = "$2" ]; }
wait_gone() {
  left=$3
  while is_alive "$1" "$2"; do
    [ "$left" -gt 0 ] || return 1
    left=$((left - 1))
    sleep 0.1
  done
}
"""

# kind, digest, upload (yes | no); data: a gzipped tar
UPLOAD = r"""
final="$cache/$kind/$digest"
[ -d "$final" ] && { say "present $final"; exit 0; }
[ "$upload" = yes ] || { say "absent $final"; exit 0; }
temp="$cache/$kind/.$digest.$$"
trap 'rm -rf "$temp"' EXIT
trap 'exit 1' HUP INT TERM
why=$({ mkdir -p "$cache/$kind" && mkdir "$temp" && tar -xzf - -C "$temp"; } 2>&1) || fail "$why"
# Renamed into place; when another client was faster, its folder stays and ours goes.
why=$(mv -T "$temp" "$final" 2>&1) || [ -d "$final" ] || fail "$why"
say "present $final"
"""

# digest, session, python, size; data: settings.json of `size` bytes
START = r"""
far="$cache/farend/$digest"
[ -d "$far" ] || { say absent; exit 0; }
command -v setsid >/dev/null || refuse "setsid was not found; install util-linux"
shell=sh
command -v bash >/dev/null && shell=bash
folder="$cache/sessions/$session"
why=$(mkdir -p "$cache/sessions" 2>&1 && mkdir "$folder" 2>&1) || fail "$why"
drop() { cd / && rm -rf "$folder"; }
why=$(cat 2>&1 > "$folder/settings.json") || { drop; fail "$why"; }
[ "$(wc -c < "$folder/settings.json")" -eq "$size" ] || { drop; refuse "the settings did not arrive whole"; }
: > "$folder/log"
exec 3< "$folder/log"  # readable even when the far end has removed its folder
setsid "$shell" -c 'umask "$1"; command=$2; shift 2; eval "$command \"\$@\""' remote-env \
  "$mask" "$python" "$far/remote_env/server/launch.py" "$folder" </dev/null >>"$folder/log" 2>&1 3<&- &
pid=$!
begun=$(start_of $pid)
printf '%s %s\n' "$pid" "$begun" > "$folder/leader"
trap '' PIPE
end_group() {
  kill -s TERM -- "-$pid" 2>/dev/null
  wait_gone "$pid" "$begun" 20
  kill -s KILL -- "-$pid" 2>/dev/null  # the group's number cannot be reused: its leader is our unreaped child
  wait "$pid"
}
abandon() { trap '' HUP INT TERM; end_group; drop; exit 1; }
trap abandon HUP INT TERM
finish() { say "$1"; say log; tail -n 60 <&3; drop; exit 0; }
say "started $pid $begun $folder" || abandon
turns=0
while :; do
  alive=$(start_of $pid)
  if [ -f "$folder/failed.json" ]; then
    why=$(tr -d '\n' < "$folder/failed.json")
    end_group 2>/dev/null
    finish "refused $why"
  fi
  if [ -z "$alive" ]; then
    kill -s KILL -- "-$pid" 2>/dev/null
    wait "$pid"
    finish "died $?"
  fi
  if [ -f "$folder/ready.json" ]; then
    say "ready $(tr -d '\n' < "$folder/ready.json")" || abandon
    exit 0
  fi
  turns=$((turns + 1))
  if [ $((turns % 5)) -eq 0 ]; then
    say "progress $(tail -n 1 "$folder/log" 2>/dev/null)" || abandon
  fi
  if [ "$turns" -lt 40 ]; then sleep 0.05; else sleep 0.2; fi
done
"""

# pid, start, folder, port, tenths (how long to wait for its end), group (yes: the process leads its group)
STOP = r"""
case "$folder" in "$cache"/sessions/?*) ;; *) refuse "$folder is not a session folder" ;; esac
case "$folder" in */../*|*/..) refuse "$folder is not a session folder" ;; esac
groups=
note_group() { is_alive "$1" "$2" && groups="$groups $1:$2"; }
if [ -f "$folder/simulators" ]; then
  while read -r pgid begun rest; do note_group "$pgid" "$begun"; done < "$folder/simulators"
fi
[ -f "$folder/leader" ] && read -r pgid begun < "$folder/leader" && note_group "$pgid" "$begun"
outcome=gone
if is_alive "$pid" "$start"; then
  outcome=stopped
  if [ "$group" = yes ]; then kill -s TERM -- "-$pid"; else kill -s TERM "$pid"; fi
  wait_gone "$pid" "$start" "$tenths" || { outcome=killed; kill -s KILL "$pid"; }
fi
# What is left of the groups that were ours a moment ago; never a number that another process has by now.
for entry in $groups; do
  now=$(start_of "${entry%:*}")
  if [ -z "$now" ] || [ "$now" = "${entry#*:}" ]; then kill -s KILL -- "-${entry%:*}" 2>/dev/null; fi
done
why=$(rm -rf "$folder" 2>&1) || refuse "$folder cannot be removed: $why"
record="$cache/servers/$(uname -n)/$port.json"  # a killed server leaves it
named=$(sed -n 's/.*"pid": *\([0-9][0-9]*\).*/\1/p' "$record" 2>/dev/null)
[ "$outcome" != stopped ] && [ "$named" = "$pid" ] && rm -f "$record"
say "$outcome"
"""

# folder, lines
LOG_TAIL = r"""
say log
tail -n "$lines" "$folder/log" 2>/dev/null
"""

# port
FIND = r"""
file="$cache/servers/$(uname -n)/$port.json"
content=$(tr -d '\n' 2>/dev/null < "$file") || { say none; exit 0; }
pid=$(printf %s "$content" | sed -n 's/.*"pid": *\([0-9][0-9]*\).*/\1/p')
say "found ${pid:-0}:$(start_of "${pid:-0}") $content"
"""


class Answer(NamedTuple):
    """What a script said: the word and the rest of its first marked line, and all lines after it."""

    word: str
    rest: str
    following: str


def start_script(
    connection: SshConnection,
    script: str,
    variables: Mapping[str, object],
    *,
    data: bytes = b"",
    deadline: float,
) -> RunningCommand:
    """Start `script` with `variables` set and `data` on its standard input; raises as `run`."""
    settings = "".join(f"{name}={shlex.quote(str(value))}\n" for name, value in variables.items())
    program = (settings + _PRELUDE + script).encode()
    command = f"""exec sh -c 'eval "$(dd bs=1 count={len(program)} 2>/dev/null)"'"""
    return connection.start_command(command, stdin=program + data, deadline=deadline)


def run_script(
    connection: SshConnection,
    script: str,
    variables: Mapping[str, object],
    *,
    data: bytes = b"",
    deadline: float,
) -> Answer:
    """Run `script` to its end and return its answer.

    Raises:
        StartError: the script could not do its work; the message says what the host said.
        DeadlineExceeded, ConnectionLost: as `SshConnection.run`.
    """
    with start_script(connection, script, variables, data=data, deadline=deadline) as running:
        chunks = []
        while chunk := running.read_some(deadline):
            chunks.append(chunk)
        done = running.finish(b"".join(chunks), deadline)
    _, found, answer = done.stdout.decode(errors="replace").partition(f"\n{MARK} ")
    if not found:
        raise no_answer(connection, done.returncode, done.stderr)
    line, _, following = answer.partition("\n")
    word, _, rest = line.partition(" ")
    if word in FAILURES:
        raise failure(connection, word, rest)
    return Answer(word, rest, following)


def answers(running: RunningCommand, deadline: float) -> Iterator[str]:
    """The script's answers as they come, without their mark; all lines after `log` are one answer."""
    pending = b""
    while data := running.read_some(deadline):
        *lines, pending = (pending + data).split(b"\n")
        for line in lines:
            text = line.decode(errors="replace")
            if text.startswith(MARK + " "):
                yield text[len(MARK) + 1 :]
            elif text:
                yield "| " + text


def no_answer(connection: SshConnection, returncode: int, stderr: bytes) -> StartError:
    """The error for a script that said nothing."""
    said = stderr.decode(errors="replace").strip()[-500:]
    return StartError(
        f"{connection.login.host} did not run our shell script (exit status {returncode}): "
        f"{said or 'no message'}. It must be a Linux machine with a POSIX sh that accepts commands over SSH"
    )


def failure(connection: SshConnection, word: str, why: str) -> StartError:
    """The error for one of the answers in `FAILURES`."""
    host = connection.login.host
    if word == "refusal":
        return StartError(f"{host}: {why}")
    return StartError(
        f"{host} cannot take the far end's files: {why.strip() or 'no reason given'}. They go to "
        "${XDG_CACHE_HOME:-~/.cache}/remote-env there: free space or make that folder writable"
    )
