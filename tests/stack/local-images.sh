#!/usr/bin/env bash
# The images that the stack runs in Docker, made where no image registry can be reached.
#
#   local-images.sh          installs an engine if there is none, starts it if it does not
#                            answer, builds and tags the images that are missing
#   local-images.sh stop     stops the engine that this script started
#
# Everything comes from the package archive that apt is set up with (apt-get, debootstrap) and
# from Maven's configured repository (mvn). Needs root, Linux, Debian or Ubuntu; a first run takes
# some minutes. The Postgres is the distribution's own whatever the tag says, so the tag that it
# always gets is its major version: run the stack with TAILRACE_PG_VERSION set to it. An image of
# one of these names that this script did not build is left alone; each that it built has the
# label "local-images.recipe", so that a changed recipe is built again.
#
# Settings (environment):
#   LOCAL_IMAGES_DIR      work files, dockerd.pid, dockerd.log   [local-images, for temporary files]
#   LOCAL_IMAGES_DATA     where a started engine keeps its data  [/var/lib/docker]
#   POSTGRES_TAGS         more tags for the image postgres       [none]
#   KAFKA_TAGS            tags for apache/kafka                  [the version in pom.xml]
set -euo pipefail

pom=$(dirname "${BASH_SOURCE[0]}")/pom.xml
version() { sed -n "s:.*<$1.version>\(.*\)</$1.version>.*:\1:p" "$pom"; }

dir=${LOCAL_IMAGES_DIR:-${TMPDIR:-/tmp}/local-images}
data=${LOCAL_IMAGES_DATA:-/var/lib/docker}
kafka=$(version kafka)
log4j=$(version log4j)
read -ra postgres_tags <<<"${POSTGRES_TAGS:-}"
read -ra kafka_tags <<<"${KAFKA_TAGS:-$kafka}"
label=local-images.recipe
. /etc/os-release
base=local-images/base:$VERSION_CODENAME
export DEBIAN_FRONTEND=noninteractive
PATH=$PATH:/usr/sbin:/sbin

say() { printf 'local-images: %s\n' "$*"; }
die() { say "$*" >&2; exit 1; }

# step NAME COMMAND...: runs it with its output in a log, and prints how long it took
step() {
    local name=$1 t=$EPOCHREALTIME log
    shift
    log=$dir/${name// /-}.log
    if ! "$@" >"$log" 2>&1 </dev/null; then
        tail -n 40 "$log" >&2
        die "$name failed (full output: $log)"
    fi
    printf 'local-images: %-28s %6.1f s\n' "$name" \
        "$(awk -v a="$t" -v b="$EPOCHREALTIME" 'BEGIN { print b - a }')"
}

answers() { docker version --format '{{.Server.Version}}' >/dev/null 2>&1; }

packages() {
    apt-get install -y --no-install-recommends "$@" && return
    apt-get update && apt-get install -y --no-install-recommends "$@"
}

our_pid() { # prints the pid of the dockerd that this script started, if it runs
    local pid
    pid=$(cat "$dir/dockerd.pid" 2>/dev/null) || return 1
    [[ $(cat "/proc/$pid/comm" 2>/dev/null) == dockerd ]] && echo "$pid"
}

launch() { # flags...
    local i child
    rm -f "$dir/dockerd.pid"
    setsid nohup dockerd --pidfile "$dir/dockerd.pid" --data-root "$data" "$@" \
        >"$dir/dockerd.log" 2>&1 </dev/null &
    child=$!
    for ((i = 0; i < 300; i++)); do
        answers && return
        kill -0 "$child" 2>/dev/null || return 1
        sleep 0.1
    done
    kill "$child"
    wait "$child" || true
    return 1
}

start_engine() {
    if [[ -d /run/systemd/system ]]; then
        systemctl start docker
        answers
        return
    fi
    # The plain engine first; then without firewall rules (published ports still work,
    # through docker's own proxy); then with no overlay file system as well.
    launch || launch --iptables=false ||
        launch --iptables=false --storage-driver=vfs
}

stop_engine() {
    local pid i
    pid=$(our_pid) || { say "no engine of ours runs"; return; }
    kill "$pid"
    for ((i = 0; i < 300; i++)); do
        [[ -d /proc/$pid ]] || { say "engine $pid stopped"; rm -f "$dir/dockerd.pid"; return; }
        sleep 0.1
    done
    die "engine $pid did not stop"
}

# absent RECIPE IMAGE...: true if an image is missing or was built from another recipe
absent() {
    local recipe=$1 have image
    shift
    for image; do
        have=$(docker image inspect --format "{{index .Config.Labels \"$label\"}}" "$image" 2>/dev/null) || return 0
        [[ -z $have || $have == "$recipe" || $have == '<no value>' ]] || return 0
    done
    return 1
}

# tag_all FROM IMAGE...: names our image, but never takes a name from a foreign one
tag_all() {
    local from=$1 have image
    shift
    for image; do
        if have=$(docker image inspect --format "{{index .Config.Labels \"$label\"}}" "$image" 2>/dev/null) &&
            [[ -z $have || $have == '<no value>' ]]; then
            say "$image exists and is not ours: kept"
            continue
        fi
        docker tag "$from" "$image"
    done
}

recipe_of() { # the files of a build context, and further words
    local d=$1
    shift
    { printf '%s\n' "$@"; cd "$d" && find . -maxdepth 1 -type f ! -name '*.log' -print0 | sort -z | xargs -0 sha256sum; } |
        sha256sum | cut -c1-16
}

# The archives that this machine's own apt uses, as one-line sources.
archives() {
    apt-get indextargets --format '$(ORIGIN)|deb $(REPO_URI) $(RELEASE) $(COMPONENT)' 'Created-By: Packages' |
        awk -F'|' -v id="$ID" 'tolower($1) == id { print $2 }' | sort -u
}

make_base() {
    local root=$dir/root mirror
    mirror=$(archives | awk -v s="$VERSION_CODENAME" '$3 == s { print $2; exit }')
    [[ -n $mirror ]] || { apt-get update && mirror=$(archives | awk -v s="$VERSION_CODENAME" '$3 == s { print $2; exit }'); }
    rm -rf "$root"
    # A function that is asked for its result does not end at a failure by itself.
    debootstrap --variant=minbase "$VERSION_CODENAME" "$root" $mirror || return
    archives >"$root/etc/apt/sources.list"
    printf 'path-exclude /usr/share/%s/*\n' doc man locale info lintian >"$root/etc/dpkg/dpkg.cfg.d/lean"
    printf '#!/bin/sh\nexit 101\n' >"$root/usr/sbin/policy-rc.d"
    chmod 755 "$root/usr/sbin/policy-rc.d"
    tar -C "$root" --numeric-owner --xattrs \
        --exclude='./var/cache/apt/*' --exclude='./var/lib/apt/lists/*' \
        --exclude='./usr/share/doc/*' --exclude='./usr/share/man/*/*' --exclude='./usr/share/locale/*' \
        --exclude='./dev/*' --exclude='./proc/*' --exclude='./sys/*' -c . |
        docker import --change 'CMD ["bash"]' --change "LABEL $label=$base_recipe" - "$base"
    rm -rf "$root"
}

build() { # CONTEXT RECIPE IMAGE
    docker buildx version >/dev/null 2>&1 || export DOCKER_BUILDKIT=0
    docker build --network host --label "$label=$2" -t "$3" "$1"
}

postgres_context() {
    mkdir -p "$dir/postgres"
    cat >"$dir/postgres/Dockerfile" <<EOF
FROM $base
ENV LANG=C.UTF-8 PGDATA=/var/lib/postgresql/data
RUN export DEBIAN_FRONTEND=noninteractive \\
 && apt-get update \\
 && apt-get install -y --no-install-recommends postgresql-common \\
 && sed -ri 's/#(create_main_cluster) .*\$/\\1 = false/' /etc/postgresql-common/createcluster.conf \\
 && apt-get install -y --no-install-recommends postgresql \\
 && apt-get clean && rm -rf /var/lib/apt/lists/* \\
 && ln -s /usr/lib/postgresql/*/bin/* /usr/local/bin/ \\
 && sed -ri "s/^#?(listen_addresses) .*/\\1 = '*'/" /usr/share/postgresql/*/postgresql.conf.sample \\
 && install -d -o postgres -g postgres -m 3777 /var/run/postgresql \\
 && install -d -o postgres -g postgres -m 0700 "\$PGDATA" \\
 && install -d /docker-entrypoint-initdb.d
COPY docker-entrypoint.sh /usr/local/bin/
RUN chmod 755 /usr/local/bin/docker-entrypoint.sh
STOPSIGNAL SIGINT
EXPOSE 5432
ENTRYPOINT ["docker-entrypoint.sh"]
CMD ["postgres"]
EOF
    cat >"$dir/postgres/docker-entrypoint.sh" <<'EOF'
#!/bin/bash
# The part of the official image's entrypoint that tests use: POSTGRES_USER,
# POSTGRES_PASSWORD, POSTGRES_DB, POSTGRES_INITDB_ARGS, POSTGRES_HOST_AUTH_METHOD,
# /docker-entrypoint-initdb.d, and server options as arguments. As there, the server
# that runs during set-up logs to stdout and the one that stays logs to stderr.
set -eo pipefail
[[ ${1:0:1} != - ]] || set -- postgres "$@"
[[ $1 == postgres ]] || exec "$@"
if [[ $(id -u) == 0 ]]; then
    install -d -o postgres -g postgres -m 0700 "$PGDATA"
    exec setpriv --reuid=postgres --regid=postgres --init-groups "$0" "$@"
fi
if [[ ! -s $PGDATA/PG_VERSION ]]; then
    user=${POSTGRES_USER:-postgres} auth=${POSTGRES_HOST_AUTH_METHOD:-scram-sha-256}
    export PGUSER=$user PGDATABASE=${POSTGRES_DB:-$user}
    if [[ -z $POSTGRES_PASSWORD && $auth != trust ]]; then
        echo 'Error: Database is uninitialized and superuser password is not specified.' >&2
        exit 1
    fi
    if [[ -n $POSTGRES_PASSWORD ]]; then
        eval 'initdb --username="$user" --pwfile=<(printf "%s\n" "$POSTGRES_PASSWORD") --encoding=UTF8 --no-sync '"$POSTGRES_INITDB_ARGS"
    else
        eval 'initdb --username="$user" --encoding=UTF8 --no-sync '"$POSTGRES_INITDB_ARGS"
    fi
    printf '\nhost all all all %s\n' "$auth" >>"$PGDATA/pg_hba.conf"
    options=("${@:2}" -c "listen_addresses=" -p 5432)
    pg_ctl -D "$PGDATA" -o "$(printf '%q ' "${options[@]}")" -w start
    sql=(psql -v ON_ERROR_STOP=1 --no-password --no-psqlrc)
    if [[ $PGDATABASE != postgres ]]; then
        "${sql[@]}" -d postgres --set db="$PGDATABASE" <<<'CREATE DATABASE :"db";'
    fi
    for f in /docker-entrypoint-initdb.d/*; do
        case $f in
        *.sh) if [[ -x $f ]]; then "$f"; else . "$f"; fi ;;
        *.sql) "${sql[@]}" -f "$f" ;;
        *.sql.gz) gunzip -c "$f" | "${sql[@]}" ;;
        esac
    done
    pg_ctl -D "$PGDATA" -m fast -w stop
    unset PGUSER PGDATABASE
    printf '\nPostgreSQL init process complete; ready for start up.\n\n'
fi
exec "$@"
EOF
}

kafka_context() {
    mkdir -p "$dir/kafka"
    cat >"$dir/kafka/pom.xml" <<EOF
<project xmlns="http://maven.apache.org/POM/4.0.0">
  <modelVersion>4.0.0</modelVersion>
  <groupId>local</groupId><artifactId>kafka-libs</artifactId><version>1</version>
  <dependencies>
    <dependency><groupId>org.apache.kafka</groupId><artifactId>kafka_2.13</artifactId><version>$kafka</version></dependency>
    <!-- Kafka brings slf4j-api 1.7, so the binding must be log4j-slf4j-impl. With
         log4j-slf4j2-impl the broker runs but logs nothing, and a wait for
         "Kafka Server started" never ends. -->
    <dependency><groupId>org.apache.logging.log4j</groupId><artifactId>log4j-slf4j-impl</artifactId><version>$log4j</version></dependency>
    <dependency><groupId>org.apache.logging.log4j</groupId><artifactId>log4j-core</artifactId><version>$log4j</version></dependency>
  </dependencies>
</project>
EOF
    cat >"$dir/kafka/log4j2.yaml" <<'EOF'
Configuration:
  Appenders:
    Console:
      name: STDOUT
      PatternLayout:
        pattern: "[%d] %p %m (%c)%n"
  Loggers:
    Root:
      level: INFO
      AppenderRef:
        - ref: STDOUT
EOF
    cat >"$dir/kafka/server.properties" <<'EOF'
process.roles=broker,controller
node.id=1
controller.quorum.voters=1@localhost:9093
listeners=PLAINTEXT://:9092,CONTROLLER://:9093
advertised.listeners=PLAINTEXT://localhost:9092
controller.listener.names=CONTROLLER
listener.security.protocol.map=CONTROLLER:PLAINTEXT,PLAINTEXT:PLAINTEXT
offsets.topic.replication.factor=1
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
EOF
    cat >"$dir/kafka/run" <<'EOF'
#!/usr/bin/env bash
# Kafka's own KafkaDockerWrapper makes server.properties out of the KAFKA_* variables
# (with any of them set, the file of defaults is not used at all, as in the official
# image) and formats the storage; then the broker takes this process's place.
set -e
: "${CLUSTER_ID:=5L6g3nShT-eMCtK--X86sw}" "${KAFKA_HEAP_OPTS:=-Xms256m -Xmx512m}"
export CLUSTER_ID
java=(java -XX:+UseSerialGC -XX:TieredStopAtLevel=1 -cp '/opt/kafka/libs/*')
result=$(env -u KAFKA_HEAP_OPTS "${java[@]}" kafka.docker.KafkaDockerWrapper setup \
    --default-configs-dir /etc/kafka/docker \
    --mounted-configs-dir /mnt/shared/config \
    --final-configs-dir /opt/kafka/config 2>&1) ||
    grep -i 'already formatted' <<<"$result" || { echo "$result"; exit 1; }
exec "${java[@]}" $KAFKA_HEAP_OPTS $KAFKA_OPTS \
    -Dlog4j2.configurationFile=/opt/kafka/config/log4j2.yaml \
    kafka.Kafka /opt/kafka/config/server.properties
EOF
    cat >"$dir/kafka/Dockerfile" <<EOF
FROM $base
ENV LANG=C.UTF-8
RUN export DEBIAN_FRONTEND=noninteractive \\
 && apt-get update \\
 && apt-get install -y --no-install-recommends default-jre-headless \\
 && apt-get clean && rm -rf /var/lib/apt/lists/* \\
 && useradd --uid 1000 --user-group --no-create-home appuser \\
 && install -d -o appuser -g appuser /opt/kafka /opt/kafka/config /mnt/shared/config /etc/kafka/docker
COPY libs /opt/kafka/libs
COPY run log4j2.yaml server.properties /etc/kafka/docker/
RUN cp /etc/kafka/docker/log4j2.yaml /etc/kafka/docker/tools-log4j2.yaml && chmod 755 /etc/kafka/docker/run
USER appuser
EXPOSE 9092
CMD ["/etc/kafka/docker/run"]
EOF
    printf '*.log\npom.xml\ntarget\n' >"$dir/kafka/.dockerignore"
}

kafka_jars() {
    rm -rf "$dir/kafka/libs"
    mvn -q -B -f "$dir/kafka/pom.xml" dependency:copy-dependencies \
        -DincludeScope=runtime -DoutputDirectory="$dir/kafka/libs"
}

postgres_major() { docker run --rm --network none --entrypoint postgres "$1" --version | sed -E 's/^[^0-9]*([0-9]+).*/\1/'; }

mkdir -p "$dir"
[[ ${1:-} != stop ]] || { stop_engine; exit; }
[[ $# == 0 ]] || die "usage: ${0##*/} [stop]"
[[ $(id -u) == 0 ]] || die "needs root"
begin=$EPOCHREALTIME

if ! answers; then
    command -v docker >/dev/null && command -v dockerd >/dev/null ||
        step "install engine" packages docker.io
    step "start engine" start_engine
fi
say "engine $(docker version --format '{{.Server.Version}}'), $(docker info --format "{{.Driver}}"), pid $(our_pid || echo 'not ours')"

postgres_context
kafka_context
base_recipe=$({ echo "$base"; declare -f make_base; } | sha256sum | cut -c1-16)
pg_recipe=$(recipe_of "$dir/postgres" "$base_recipe")
kafka_recipe=$(recipe_of "$dir/kafka" "$base_recipe")
pg_images=(local-images/postgres:latest "${postgres_tags[@]/#/postgres:}")
kafka_images=("${kafka_tags[@]/#/apache/kafka:}")

need_base() {
    absent "$base_recipe" "$base" || return 0
    command -v debootstrap >/dev/null || step "install debootstrap" packages debootstrap
    step "base image" make_base
}

if absent "$pg_recipe" "${pg_images[@]}"; then
    need_base
    step "postgres image" build "$dir/postgres" "$pg_recipe" local-images/postgres:latest
    tag_all local-images/postgres:latest "${postgres_tags[@]/#/postgres:}" "postgres:$(postgres_major local-images/postgres:latest)"
fi
if absent "$kafka_recipe" "${kafka_images[@]}"; then
    need_base
    command -v mvn >/dev/null || step "install maven" packages maven
    step "kafka jars" kafka_jars
    step "kafka image" build "$dir/kafka" "$kafka_recipe" local-images/kafka:latest
    tag_all local-images/kafka:latest "${kafka_images[@]}"
fi

docker image prune --force --filter "label=$label" >/dev/null # what a rebuild left untagged
docker images --filter "label=$label" --format 'local-images: {{.Repository}}:{{.Tag}} {{.Size}}'
printf 'local-images: %-28s %6.1f s\n' total \
    "$(awk -v a="$begin" -v b="$EPOCHREALTIME" 'BEGIN { print b - a }')"
