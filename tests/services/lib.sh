# Functions for the scripts in this folder: cached downloads, and one background server per data folder.
#
# Downloads and builds are kept in CACHE, so that later runs need no network. A server's data is in the
# DIR that its script is given.
CACHE=$(realpath -m "${TRUNKLINE_CACHE:-$HOME/.cache/trunkline}")

# fail LOG: prints the end of a log on stderr and exits with 1.
fail() { tail -20 "$1" >&2; exit 1; }

# require PROGRAM..: exits with a message if the machine lacks one of these programs.
require() {
  local program
  for program in "$@"; do
    command -v "$program" >/dev/null || { echo "this machine has no $program" >&2; exit 1; }
  done
}

# ---- cached downloads and builds

# content_hash FILE..: prints a short hash of the files, for the name of a cached build.
content_hash() { cat "$@" | sha256sum | cut -c 1-16; }

# lock PATH: takes the lock PATH.lock, held by file descriptor 9 until `unlock`.
lock() { mkdir -p "$(dirname "$1")"; exec 9>"$1.lock"; flock 9; }
unlock() { exec 9>&-; }

# build_once TARGET COMMAND..: unless TARGET exists, runs COMMAND TARGET.tmp and renames the result to
# TARGET, so that an interrupted build never looks complete. A concurrent call waits for the first one.
# COMMAND must join its parts with &&: `set -e` has no effect in it. Its output goes to TARGET.log.
build_once() {
  local target=$1; shift
  [ -e "$target" ] && return
  lock "$target"
  if [ ! -e "$target" ]; then
    rm -rf "$target.tmp"
    "$@" "$target.tmp" >"$target.log" 2>&1 9>&- || fail "$target.log"
    mv "$target.tmp" "$target"
  fi
  unlock
}

# maven_libraries FOLDER GROUP:ARTIFACT:VERSION..: downloads jars with their runtime dependencies.
maven_libraries() {
  local folder=$1 group artifact version coordinates; shift
  command -v mvn >/dev/null || { echo "this machine has no mvn"; return 1; }
  mkdir -p "$folder" || return
  { echo '<project><modelVersion>4.0.0</modelVersion><groupId>t</groupId><artifactId>t</artifactId>'
    echo '<version>1</version><packaging>pom</packaging><dependencies>'
    for coordinates in "$@"; do
      IFS=: read -r group artifact version <<<"$coordinates"
      printf '<dependency><groupId>%s</groupId><artifactId>%s</artifactId><version>%s</version></dependency>\n' \
        "$group" "$artifact" "$version"
    done
    echo '</dependencies></project>'; } > "$folder/pom.xml"
  mvn -B -q -ntp -f "$folder/pom.xml" dependency:copy-dependencies -DincludeScope=runtime -DoutputDirectory="$folder" &&
    rm "$folder/pom.xml"
}

# maven_file FOLDER COORDINATES: downloads one artifact (group:artifact:version:type[:classifier]).
maven_file() {
  command -v mvn >/dev/null || { echo "this machine has no mvn"; return 1; }
  mvn -B -q -ntp dependency:copy -Dartifact="$2" -DoutputDirectory="$1"
}

# python_packages VENV PACKAGE==VERSION..: creates a virtual environment with these packages. It is not
# renamed when complete, because its scripts contain its path: the file `done` marks it as complete.
python_packages() {
  local venv=$1; shift
  [ -f "$venv/done" ] && return
  lock "$venv"
  if [ ! -f "$venv/done" ]; then
    rm -rf "$venv"
    { "${PYTHON:-python3}" -m venv "$venv" && "$venv/bin/pip" install -q "$@"; } >"$venv.log" 2>&1 9>&- || fail "$venv.log"
    touch "$venv/done"
  fi
  unlock
}

# go_client NAME: builds the Go program in clients/NAME once, and sets BIN to its path.
go_client() {
  SOURCE=$SERVICES/clients/$1
  BIN=$CACHE/clients/$1-$(content_hash "$SOURCE"/*)
  [ -e "$BIN" ] || require go
  build_once "$BIN" build_go_client
}
build_go_client() { (cd "$SOURCE" && GOFLAGS=-mod=readonly nice go build -o "$1" .); }

# debian_download HOME SUITE PACKAGE..: downloads packages of a Debian suite, with all dependencies, into
# HOME/debs. It runs apt with its own state, in which nothing is installed, so that every dependency
# is included, also libc.
debian_download() {
  local home=$1 suite=$2 a=$1/apt mirror key=/usr/share/keyrings/debian-archive-keyring.gpg p; shift 2
  command -v apt-get >/dev/null && command -v dpkg-deb >/dev/null ||
    { echo "this machine has no apt-get or no dpkg-deb" >&2; return 1; }
  # The mirror that the machine itself uses.
  mirror=$(cat /etc/apt/sources.list.d/debian.sources /etc/apt/sources.list 2>/dev/null |
    awk '/^URIs:/{print $2; exit} /^deb /{for (i = 2; i <= NF; i++) if ($i ~ /:\/\//) {print $i; exit}}')
  [ -n "$mirror" ] || { echo "/etc/apt names no Debian mirror: this needs a Debian system" >&2; return 1; }
  mkdir -p "$a/lists/partial" "$home/debs/partial"
  echo "deb [signed-by=$key] $mirror $suite main" > "$a/sources.list"
  # The servers' own maintenance scripts need Perl; the scripts here do not use them.
  for p in perl perl-base; do
    printf 'Package: %s\nStatus: install ok installed\nVersion: 999:1\nArchitecture: %s\nMulti-Arch: allowed\nMaintainer: x\nDescription: x\n\n' \
      $p "$(dpkg --print-architecture)"
  done > "$a/status"
  local options=(-o Dir::State="$a" -o Dir::State::Lists="$a/lists" -o Dir::State::status="$a/status" -o Dir::Cache="$a"
    -o Dir::Cache::archives="$home/debs" -o Dir::Etc::SourceList="$a/sources.list" -o Dir::Etc::SourceParts=/dev/null
    -o Dir::Etc::Preferences=/dev/null -o Dir::Etc::PreferencesParts=/dev/null -o APT::Install-Recommends=false
    -o APT::Sandbox::User=root -o Acquire::Languages=none -o Acquire::Retries=3
    -o Acquire::IndexTargets::deb::DEP-11::DefaultEnabled=false -o Binary::apt-get::APT::Keep-Downloaded-Packages=true)
  apt-get "${options[@]}" -qq update
  apt-get "${options[@]}" -qq -y --download-only install "$@"
}

# debian_unpack HOME PROGRAM..: unpacks HOME/debs into HOME/root and installs nothing. HOME/bin then has
# the programs (such as `sbin/mysqld`), each of which runs with the loader and libraries of HOME/root.
debian_unpack() {
  local home=$1 r=$1/root t=$1/root.tmp l d lib loader b; shift
  rm -rf "$t"; mkdir -p "$t"/usr/{lib,bin,sbin,lib64} "$home/bin"
  for l in lib bin sbin lib64; do ln -s usr/$l "$t/$l"; done
  for d in "$home"/debs/*.deb; do
    dpkg-deb --fsys-tarfile "$d" | tar -x -C "$t" --keep-directory-symlink --exclude=./usr/share/{doc,man}
  done
  lib=$(dirname "$(find "$t/usr/lib" -name 'libc.so.6' | head -1)"); lib=$r${lib#"$t"}
  loader=$(find "$t/usr/lib" -name 'ld-linux-*.so.*' | head -1); loader=$r${loader#"$t"}
  for b in "$@"; do
    printf '#!/bin/sh\nexec %s --library-path %s --argv0 %s %s "$@"\n' "$loader" "$lib" "${b#*/}" "$r/usr/$b" > "$home/bin/${b#*/}"
    chmod +x "$home/bin/${b#*/}"
  done
  mv "$t" "$r"
}

# debian_server HOME SUITE "PACKAGE.." "PROGRAM..": downloads and unpacks packages once; see above.
debian_server() {
  local home=$1 suite=$2 packages=$3 programs=$4
  [ -d "$home/root" ] && return
  lock "$home"
  if [ ! -d "$home/root" ]; then
    mkdir -p "$home"
    # shellcheck disable=SC2086  # several packages and programs
    ls "$home/debs/${packages%% *}"_*.deb >/dev/null 2>&1 ||
      debian_download "$home" "$suite" $packages >"$home/download.log" 2>&1 9>&- || fail "$home/download.log"
    # shellcheck disable=SC2086
    debian_unpack "$home" $programs
  fi
  unlock
}

# ---- one background server

# server_pid PIDFILE WORD: prints the pid if that server is running. WORD is a part of its command line
# (its path or port) that distinguishes it from a process to which the system gave the same pid later.
server_pid() {
  local pid; pid=$(cat "$1" 2>/dev/null) || return 1
  tr '\0' ' ' 2>/dev/null <"/proc/$pid/cmdline" | grep -qF -- "$2" && echo "$pid"
}

# stop_server PIDFILE WORD: sends SIGTERM, after 20 s SIGKILL, and returns when the process has ended.
stop_server() {
  local pid; pid=$(server_pid "$1" "$2") || { echo "not running"; return 0; }
  kill "$pid"
  for _ in $(seq 200); do
    server_pid "$1" "$2" >/dev/null || { rm -f "$1"; echo "stopped pid=$pid"; return 0; }
    sleep 0.1
  done
  kill -9 "$pid"; rm -f "$1"; echo "killed pid=$pid"
}

# leash PIDFILE WORD DIR: with LEASH=1, kills the server and removes DIR when this script's standard
# input is closed. A test process holds the other end of that pipe, so that no server and no data
# remain when it ends, even by kill -9.
leash() {
  [ "${LEASH:-}" = 1 ] || return 0
  setsid bash -c '. "$1/lib.sh"; cat >/dev/null; while pid=$(server_pid "$2" "$3"); do kill -9 "$pid"; sleep 0.05; done; rm -rf "$4"' \
    leash "$SERVICES" "$@" <&0 >/dev/null 2>&1 9>&- &
}

# wait_until_up PID PORT LOG PROBE..: prints `up pid=.. port=..` once PROBE succeeds. If the process
# ends first, or after two minutes, prints the end of LOG and exits with 1.
wait_until_up() {
  local pid=$1 port=$2 log=$3 deadline=$((SECONDS + 120)); shift 3
  while [ $SECONDS -lt $deadline ]; do
    "$@" && { echo "up pid=$pid port=$port"; return; }
    kill -0 "$pid" 2>/dev/null || break
    sleep 0.1
  done
  kill "$pid" 2>/dev/null || true
  fail "$log"
}

# accepts_connections PORT: a server listens on 127.0.0.1:PORT.
accepts_connections() { (exec 3<>"/dev/tcp/127.0.0.1/$1") 2>/dev/null; }

# http_status PORT PATH: prints the status code that 127.0.0.1:PORT answers to a GET request.
http_status() {
  (exec 3<>"/dev/tcp/127.0.0.1/$1"
    printf 'GET %s HTTP/1.0\r\n\r\n' "$2" >&3
    read -r -t 5 _ code _ <&3; echo "$code") 2>/dev/null
}

# ---- Apache Kafka

# debezium_plugin: downloads Debezium's MySQL connector once, and sets PLUGIN to its folder.
debezium_plugin() {
  local version=${DEBEZIUM_VERSION:-3.6.1.Final}
  PLUGIN=$CACHE/debezium-$version
  build_once "$PLUGIN" download_debezium "$version"
}
download_debezium() {
  mkdir -p "$2/plugins" &&
    maven_file "$2" "io.debezium:debezium-connector-mysql:$1:tar.gz:plugin" &&
    tar -xf "$2"/*.tar.gz -C "$2/plugins" && rm "$2"/*.tar.gz
}

# kafka_settings: prints the properties that every node has, in a single node and in a cluster.
kafka_settings() {
  cat <<P
process.roles=broker,controller
controller.listener.names=CONTROLLER
# Few partitions of the internal topics: each one costs files and start-up time.
offsets.topic.num.partitions=4
transaction.state.log.num.partitions=4
# The first member of a group joins immediately instead of after 3 s.
group.initial.rebalance.delay.ms=0
# Retention, compaction and the abort of timed-out transactions run every second (defaults: 5 min,
# 15 s, 10 s).
log.initial.task.delay.ms=1000
log.retention.check.interval.ms=1000
log.cleaner.backoff.ms=1000
transaction.abort.timed.out.transaction.cleanup.interval.ms=1000
# Records of up to 16 MiB need no per-topic setting.
message.max.bytes=16777216
replica.fetch.max.bytes=16777216
P
}

# kafka_format DATA S CLUSTER [ARGS]: formats the data folder of the node with the properties S.properties.
# A folder without meta.properties is left over from an interrupted format and is formatted again.
kafka_format() {
  [ -f "$1/meta.properties" ] && return
  rm -rf "$1"
  "$SERVICES/kafka-tool" kafka.tools.StorageTool format -t "$3" -c "$2.properties" "${@:4}" >"$2.log" 2>&1 || fail "$2.log"
}

# kafka_cluster_id: prints a new id in the form of `StorageTool random-uuid`, without starting Java. It
# begins with T, because a leading - would look like a flag.
kafka_cluster_id() { echo "T$(head -c 16 /dev/urandom | base64 | tr '+/' '-_' | cut -c 2-22)"; }

# kafka_launch S: starts the node with the properties S.properties in the background, logging to S.log.
# S.pid is the JVM's pid, because kafka-tool ends in exec.
kafka_launch() {
  rm -f "$1.log"   # kafka_accepts_clients must not see the log of an earlier start
  KAFKA_LOG=INFO setsid "$SERVICES/kafka-tool" kafka.Kafka "$1.properties" </dev/null >"$1.log" 2>&1 &
  echo $! > "$1.pid"
}

# kafka_accepts_clients S: the node has logged that its broker is unfenced. Its port opens earlier.
kafka_accepts_clients() { grep -qs 'Kafka Server started' "$1.log"; }

# ---- OpenSearch and Elasticsearch

# search_node CLASSPATH MAIN: starts or stops (see COMMAND) the node on PORT, whose home is D/PORT.
search_node() {
  local node=$D/$PORT server=$D/$PORT.server word pid
  word="$node http.port=$PORT "
  [ $COMMAND = stop ] && { stop_server "$server.pid" "$word"; return; }
  pid=$(server_pid "$server.pid" "$word") && { echo "up pid=$pid port=$PORT"; return; }
  mkdir -p "$node"
  # The disk thresholds are off: on a nearly full disk they would make indices read-only.
  # shellcheck disable=SC2086  # several options
  setsid java ${JAVA_OPTS:--Xms512m -Xmx512m} -cp "$1" "$2" "$node" http.port="$PORT" network.host=127.0.0.1 \
    cluster.routing.allocation.disk.threshold_enabled=false \
    ${SEARCH_DISCOVERY:-discovery.type=single-node transport.port=0} ${SEARCH_EXTRA:-} </dev/null >"$server.log" 2>&1 & pid=$!
  echo $pid > "$server.pid"
  leash "$server.pid" "$word" "$D"
  wait_until_up $pid "$PORT" "$server.log" cluster_is_healthy
}

# cluster_is_healthy: every primary shard can be read, also after a restart on existing data.
cluster_is_healthy() { [ "$(http_status "$PORT" "/_cluster/health?wait_for_status=yellow&timeout=2s")" = 200 ]; }
