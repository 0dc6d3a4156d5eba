"""The POSIX sh programs that run on the far end; `scripts.py` runs them.

Each is preceded by its variables and `PRELUDE`. Each answer is a line that starts with `MARK`, since login files and
wrappers print banners of their own. Data on standard input is taken by its size, never to its end, and what is sent is
taken whole, whatever fails: inside a container or batch job one stream carries several programs.
"""

from __future__ import annotations

MARK = "@remote-env"
# What `ready_for_data` does: where one stream carries several programs, nothing is sent before it is asked for.
DATA_FOLLOWS, DATA_IS_ASKED_FOR = "ready_for_data() { :; }\n", "ready_for_data() { say give; }\n"

PRELUDE = r"""
mask=$(umask)
umask 077
say() { printf '\n@remote-env %s\n' "$1"; }
refuse() { say "refusal $1"; exit 64; }
if [ -z "$XDG_CACHE_HOME" ] && [ ! -d "$HOME" ]; then refuse "there is no home folder (HOME is '$HOME') for our files: \
set XDG_CACHE_HOME to a folder that you can write"; fi
cache="${XDG_CACHE_HOME:-$HOME/.cache}/remote-env"
servers="$cache/servers/$(uname -n)"
fail() { say "failed $(printf %s "$1" | tr '\n' ' ')$(free_space)"; exit 73; }
free_space() {
  near=$cache
  while [ ! -d "$near" ] && [ "$near" != "${near%/*}" ]; do near=${near%/*}; done
  df -Pk "${near:-/}" 2>/dev/null | { read -r _; read -r _ _ _ free _ && printf ', %s KiB free' "$free"; }
}
# The start time (field 22 of /proc/<pid>/stat) of a live process; nothing for a dead one or a zombie.
start_of() {
  read -r stat 2>/dev/null < "/proc/$1/stat" || return 0
  set -- ${stat##*) }
  [ "$1" = Z ] || printf %s "${20}"
}
is_alive() { [ -n "$1" ] && [ -n "$2" ] && [ "$(start_of "$1")" = "$2" ]; }
wait_gone() {
  left=$3 turn=0
  while is_alive "$1" "$2"; do
    [ "$left" -gt 0 ] || return 1
    turn=$((turn + 1))
    if [ "$turn" -le 10 ]; then sleep 0.02; else left=$((left - 1)) && sleep 0.1; fi
  done
}
# The process groups of the server in `folder` and of its simulators that live now; and what is left of those later,
# never of a number that another process has by then.
note_groups() {
  groups=
  if [ -f "$folder/simulators" ]; then
    while read -r pgid from rest; do note_group "$pgid" "$from"; done < "$folder/simulators"
  fi
  [ -f "$folder/leader" ] && read -r pgid from rest < "$folder/leader" && note_group "$pgid" "$from"
}
note_group() { is_alive "$1" "$2" && groups="$groups $1:$2"; }
kill_groups() {
  for entry in $groups; do
    now=$(start_of "${entry%:*}")
    if [ -z "$now" ] || [ "$now" = "${entry#*:}" ]; then kill -s KILL -- "-${entry%:*}" 2>/dev/null; fi
  done
}
# Where process ids mean what they mean here: a container may share our home and our machine's name.
here() { printf '%s:%s' "$(cat /proc/sys/kernel/random/boot_id 2>/dev/null)" "$(readlink /proc/self/ns/pid)"; }
# Whether a folder of ours is there; it counts as used.
touch_used() { touch -c "$1" 2>/dev/null; [ -d "$1" ]; }
# One number or string of a record.
field() { sed -n 's/.*"'"$1"'": *"\{0,1\}\([^",}]*\).*/\1/p'; }
"""

# kind, digest, size (of the gzipped tar that is the data; 0: only ask)
UPLOAD = r"""
final="$cache/$kind/$digest"
touch_used "$final" && { say "present $final"; exit 0; }
[ "$size" -gt 0 ] || { say "absent $final"; exit 0; }
temp="$cache/$kind/.$digest.$$"
trap 'rm -rf "$temp"' EXIT
trap 'exit 1' HUP INT TERM PIPE  # PIPE: our client is gone
why=$(mkdir -p "$cache/$kind" 2>&1 && mkdir "$temp" 2>&1) || fail "$why"
ready_for_data
why=$(head -c "$size" 2>&1 | { tar -xzf - -C "$temp" 2>&1; status=$?; cat >/dev/null; exit "$status"; }) || fail "$why"
# Renamed into place; when another client was faster, its folder stays and ours goes.
why=$(mv -T "$temp" "$final" 2>&1) || [ -d "$final" ] || fail "$why"
say "present $final"
# What nobody has used for 60 days goes, and what a killed upload left. Renamed first, so that nobody finds half of it,
# and looked at again then: whoever uses a version touches it before it looks whether it is there.
find "$cache/$kind" -mindepth 1 -maxdepth 1 -type d \( -mtime +60 -o -name '.*' -mtime +2 \) 2>/dev/null |
while read -r old; do
  name=${old##*/}
  grep -qs -e "$name" "$cache"/sessions/*/settings.json "$cache"/sessions/*/leader && continue
  gone="$cache/$kind/.gone.$$.$name"
  mv -T "$old" "$gone" 2>/dev/null || continue
  if [ -n "$(find "$gone" -maxdepth 0 -mtime +2)" ] || ! mv -T "$gone" "$old" 2>/dev/null; then rm -rf "$gone"; fi
done
"""

# digest, session, python, size; data: settings.json of `size` bytes
START = r"""
far="$cache/farend/$digest"
touch_used "$far" || { say absent; exit 0; }
command -v setsid >/dev/null || refuse "setsid was not found; install util-linux"
shell=sh
command -v bash >/dev/null && shell=bash
folder="$cache/sessions/$session"
pid= begun=
drop() { cd / && rm -rf "$folder"; }
end_group() {  # after so many tenths of a second by force
  note_groups
  kill -s TERM -- "-$pid" 2>/dev/null
  wait_gone "$pid" "$begun" "$1"
  kill -s KILL -- "-$pid" 2>/dev/null  # the group's number cannot be reused: its leader is our unreaped child
  wait "$pid"
  kill_groups
}
# Our client is gone, or our terminal is, at any line from here on.
abandon() {
  trap '' HUP INT TERM PIPE
  pid=${pid:-$!}
  begun=${begun:-${pid:+$(start_of "$pid")}}
  [ -z "$pid" ] || end_group 20 2>/dev/null
  drop
  exit 1
}
trap abandon HUP INT TERM PIPE
why=$(mkdir -p "$cache/sessions" 2>&1 && mkdir "$folder" 2>&1) || fail "$why"
ready_for_data
why=$(head -c "$size" | { cat 2>&1 > "$folder/settings.json"; status=$?; cat >/dev/null; exit "$status"; }) ||
  { drop; fail "$why"; }
[ "$(wc -c < "$folder/settings.json")" -eq "$size" ] || { drop; refuse "the settings did not arrive whole"; }
: > "$folder/log"
exec 3< "$folder/log"  # readable even when the far end has removed its folder
setsid "$shell" -c 'umask "$1"; command=$2; shift 2; eval "$command \"\$@\""' remote-env \
  "$mask" "$python" "$far/remote_env/server/launch.py" "$folder" </dev/null >>"$folder/log" 2>&1 3<&- &
pid=$!
begun=$(start_of $pid)
printf '%s %s %s\n%s\n' "$pid" "$begun" "$(here)" "$far" > "$folder/leader"
finish() { trap '' HUP INT TERM PIPE; say "$1"; say log; tail -n 60 <&3; drop; exit 0; }
say "started $pid $begun $folder" || abandon
# The server's own process, which a wrapper may outlive; it counts where its number means what it means here.
numbers=$(readlink /proc/self/ns/pid)
is_server_gone() {
  [ -f "$folder/supervisor" ] && read -r own begun_at place < "$folder/supervisor" || return 1
  [ "$place" = "$numbers" ] && ! is_alive "$own" "$begun_at"
}
turns=0
while :; do
  alive=$(start_of $pid)
  if [ -f "$folder/failed.json" ]; then
    why=$(tr -d '\n' < "$folder/failed.json")
    end_group 20 2>/dev/null
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
  if is_server_gone && ! wait_gone "$pid" "$begun" 3 && [ ! -f "$folder/failed.json" ]; then
    end_group 3 2>/dev/null
    finish "died unknown"
  fi
  turns=$((turns + 1))
  if [ $((turns % 5)) -eq 0 ]; then
    say "progress $(tail -n 1 "$folder/log" 2>/dev/null | tail -c 500)" || abandon
  fi
  if [ "$turns" -lt 40 ]; then sleep 0.02; else sleep 0.2; fi
done
"""

# port, tenths (how long to wait for its end), and pid, start, folder; or session: whatever was started for it
STOP = r"""
group=
if [ -n "$session" ]; then
  folder="$cache/sessions/$session"
  [ -f "$folder/leader" ] && read -r pid start rest < "$folder/leader" && group=-
fi
case "$folder" in "$cache"/sessions/?*) ;; *) refuse "$folder is not a session folder" ;; esac
case "$folder" in */../*|*/..) refuse "$folder is not a session folder" ;; esac
note_groups
outcome=gone
if is_alive "$pid" "$start"; then
  outcome=stopped
  kill -s TERM -- "$group$pid"
  wait_gone "$pid" "$start" "$tenths" || { outcome=killed; kill -s KILL "$pid"; }
fi
kill_groups
why=$(rm -rf "$folder" 2>&1) || refuse "$folder cannot be removed: $why"
for record in "$servers/$port.json" "$servers/$port."*.json; do  # a killed server leaves it
  [ "$outcome" != stopped ] && [ "$(field pid 2>/dev/null < "$record")" = "$pid" ] && rm -f "$record"
done
say "$outcome"
"""

# folder, lines
LOG_TAIL = r"""
say log
tail -n "$lines" "$folder/log" 2>/dev/null
"""

# port. Servers of several network namespaces may have one port, and all but the first have `<port>.<pid>.json`: the one
# of our network, else the first that lives, else the first.
FIND = r"""
ours=$(readlink /proc/self/ns/net)
rank=0
for file in "$servers/$port.json" "$servers/$port."*.json; do
  content=$(tr -d '\n' 2>/dev/null < "$file") || continue
  pid=$(printf %s "$content" | field pid)
  begun=$(start_of "${pid:-0}")
  this=1
  [ "$begun" = "$(printf %s "$content" | field start_time)" ] && this=2 &&
    [ "$(readlink "/proc/${pid:-0}/ns/net")" = "$ours" ] && this=3
  [ "$this" -gt "$rank" ] && rank=$this && answer="${pid:-0}:$begun $content"
done
if [ "$rank" -gt 0 ]; then say "found $answer"; else say none; fi
"""

# Live servers; what dead ones left behind is removed: by process id and start time, and only where these numbers are
# those of this machine and boot, or the log is a month old.
LIST = r"""
lives() { is_alive "$(printf %s "$1" | field pid)" "$(printf %s "$1" | field start_time)"; }
where=$(here)
is_old() { [ -n "$(find "$1" -maxdepth 0 "$2" "+$3" 2>/dev/null)" ]; }
is_dead() {
  pid= begun= place=
  [ -f "$1/leader" ] && read -r pid begun place < "$1/leader"
  if [ -f "$1/ready.json" ]; then
    lives "$(cat "$1/ready.json")" && return 1
  else
    is_old "$1" -mmin 15 || return 1  # somebody may be starting it
  fi
  is_alive "$pid" "$begun" && return 1
  if [ -f "$1/simulators" ]; then
    while read -r pid begun; do is_alive "$pid" "$begun" && return 1; done < "$1/simulators"
  fi
  [ "$place" = "$where" ] || { is_old "$1" -mtime 30 && { [ ! -f "$1/log" ] || is_old "$1/log" -mtime 30; }; }
}
say servers
for folder in "$cache"/sessions/*; do
  [ -d "$folder" ] && is_dead "$folder" && rm -rf "$folder"
done
for file in "$servers"/*.json; do
  content=$(tr -d '\n' 2>/dev/null < "$file") || continue
  if lives "$content"; then
    say "server $content"
    continue
  fi
  folder=$(printf %s "$content" | field session_folder)
  # A server that was started by hand has its folder elsewhere, which need not be a folder of this container.
  case "$folder" in "$cache"/sessions/*) ;; *) is_old "$file" -mtime 30 || continue ;; esac
  [ ! -d "$folder" ] && [ "$(tr -d '\n' < "$file")" = "$content" ] && rm -f "$file"
done
"""

# launch, bootstrap; everything after it on standard input is the bootstrap's.
LAUNCH = r"""
world() { printf '%s %s' "$(cat /proc/sys/kernel/random/boot_id 2>/dev/null)" "$(readlink /proc/self/ns/net)"; }
shell=sh
command -v bash >/dev/null && shell=bash
say "outside $(world)"
umask "$mask"
# A prefix that ignores the end of its input (`srun --pty`) would keep its job when our client is gone without a word:
# when the login that we run in has ended, all that runs in our process group is hung up.
read -r stat < "/proc/$$/stat"
set -- ${stat##*) }
login=$2 ours=$3 begun=$(start_of "$2")
watch() {
  [ -n "$begun" ] || return
  trap 'kill "$!"; exit' TERM
  while is_alive "$login" "$begun"; do
    sleep 2 &
    wait "$!"
  done
  kill -s HUP -- "-$ours"
}
watch </dev/null >/dev/null 2>&1 &
watcher=$!
"$shell" -c 'launch=$1; shift; eval "$launch \"\$@\""' remote-env "$launch" sh -c "$bootstrap"
status=$?
kill "$watcher"
say "left $status"
"""

# What the prefix runs. Nothing may be sent before it says that it is inside: a terminal would echo and change it.
BOOTSTRAP = r"""
if [ -t 0 ] || [ -t 1 ]; then
  terminal=0
  [ -t 0 ] || terminal=1
  why=$(stty raw -echo <&$terminal 2>&1) || {
    printf '\n@remote-env refusal the terminal that this prefix makes cannot be made raw: %s\n' "$why"
    exit 70
  }
fi
world="$(cat /proc/sys/kernel/random/boot_id 2>/dev/null) $(readlink /proc/self/ns/net)"
printf '\n@remote-env inside %s\n' "$world"
while read -r word size nonce && [ "$word" = run ]; do
  program=$(dd bs=1 count="$size" 2>/dev/null)
  (eval "$program")
  status=$?
  printf '\n@remote-env done %s %s\n' "$nonce" "$status"
  [ "$status" != 99 ] || exit 0
done
"""

# pid, start, interpreter, loader, size; data: the relay's source. It becomes the relay, beside the server `pid`.
RELAY = r"""
is_alive "$pid" "$start" || { say gone; exit 0; }
exec "$interpreter" -I -S -c "$loader" "$size"
"""

RELAY_LOADER = r"""
import os, sys
os.write(1, b"\n@remote-env give\n")
size, source = int(sys.argv[1]), b""
while len(source) < size:
    part = os.read(0, size - len(source))
    if not part:
        sys.exit(1)
    source += part
exec(compile(source, "relay.py", "exec"), {"__name__": "__main__"})
"""
