# Sourced by the scripts of this folder: the cache, and the life of one background server.
#
# Downloads and builds are kept in one folder, so that every later run works offline. The servers' data is in the DIR each one is given.
CACHE=$(realpath -m "${TRUNKLINE_CACHE:-$HOME/.cache/trunkline}")

# Two first calls at the same time: one downloads, the other waits for it. The lock is held by file descriptor 9 until `unlock`.
lock() { mkdir -p "$(dirname "$1")"; exec 9>"$1.lock"; flock 9; }
unlock() { exec 9>&-; }

# server_pid PIDFILE WORD: prints the pid if that server is running. A pid that the system gave to some other program meanwhile does not
# have WORD (the server's own path and port) on its command line.
server_pid() {
  local pid; pid=$(cat "$1" 2>/dev/null) || return 1
  tr '\0' ' ' 2>/dev/null <"/proc/$pid/cmdline" | grep -qF -- "$2" && echo "$pid"
}

# stop_server PIDFILE WORD: SIGTERM, then SIGKILL after 20 s; returns when the process is gone.
stop_server() {
  local pid; pid=$(server_pid "$1" "$2") || { echo "not running"; return 0; }
  kill "$pid"
  for _ in $(seq 200); do server_pid "$1" "$2" >/dev/null || { rm -f "$1"; echo "stopped pid=$pid"; return 0; }; sleep 0.1; done
  kill -9 "$pid"; rm -f "$1"; echo "killed pid=$pid"
}

# leash PIDFILE WORD DIR: with LEASH=1 the server lives as long as this script's standard input stays open, then DIR is removed too.
# Tests hold the other end of that pipe: however they end, kill -9 included, no server and no data are left behind.
leash() {
  [ "${LEASH:-}" = 1 ] || return 0
  setsid bash -c '. "$1/lib.sh"; cat >/dev/null; while pid=$(server_pid "$2" "$3"); do kill -9 "$pid"; sleep 0.05; done; rm -rf "$4"' \
    leash "$SERVICES" "$@" <&0 >/dev/null 2>&1 9>&- &
}

# fail LOG: the end of a server's log, to stderr, and exit 1.
fail() { tail -20 "$1" >&2; exit 1; }
