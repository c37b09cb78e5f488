#!/bin/sh
# Makes a service of an installed emdenoised: user, group, folders, settings, units, start. install.sh and the Debian
# package run it; so may you, to change folders or to add a camera. Repeating it does no harm.
set -eu

HERE=$(dirname -- "$(readlink -f -- "$0")")
PREFIX=${HERE%/share/emdenoised}
SETTINGS=/etc/emdenoised
UNITS=/etc/systemd/system
BASE=/srv/emdenoised
NAME='' DROP='' OUTPUT='' STATE='' PORT='' STAGE='' PACKAGED=no CHANGED=no
GROUP=emdenoised

usage() {
    cat <<TEXT
usage: $(basename -- "$0") [--name NAME] [--drop DIR] [--output DIR] [--group GROUP] [--port PORT]

Sets the service emdenoised up and starts it. What is not given stays as it is, or gets the value in brackets:
--name NAME    another camera: the service emdenoised@NAME with its own settings, $SETTINGS/NAME.yaml
--drop DIR     where micrographs arrive ($BASE/drop; with a name $BASE/NAME/drop); made if missing
--output DIR   where results go ($BASE/denoised; with a name $BASE/NAME/denoised); made if missing
--group GROUP  the group whose members save micrographs and read results ($GROUP); made if missing
--port PORT    of the live page (8642; with a name the next that no settings have)
TEXT
}

fail() {
    echo "$(basename -- "$0"): $*" >&2
    exit 1
}

folder_named() { # OPTION DIR: as an absolute path
    case "$2" in
        '' | *'$'* | *"
"*) fail "$1: not the name of a folder that settings can hold: '$2'" ;;
        /*) printf %s "$2" ;;
        *) printf %s "$(pwd)/$2" ;;
    esac
}

while [ $# -gt 0 ]; do
    case "$1" in
        -h | --help) usage; exit 0 ;;
        --packaged) PACKAGED=yes; shift; continue ;;
        --name | --drop | --output | --group | --port | --stage) [ $# -gt 1 ] || fail "$1 needs a value" ;;
        *) usage >&2; fail "unknown argument $1" ;;
    esac
    case "$1" in
        --name) NAME=$2 ;;
        --drop) DROP=$(folder_named "$1" "$2") CHANGED=yes ;;
        --output) OUTPUT=$(folder_named "$1" "$2") CHANGED=yes ;;
        --group) GROUP=$2 CHANGED=yes ;;
        --port) PORT=$2 CHANGED=yes ;;
        --stage) STAGE=$2 ;;
    esac
    shift 2
done

case "$NAME" in config | -* | *[!A-Za-z0-9_-]*) fail "--name '$NAME': use letters, digits, - and _, and not 'config'" ;; esac
case "$GROUP" in '' | -* | *[!A-Za-z0-9._-]*) fail "--group '$GROUP' is not the name of a group" ;; esac
case "$PORT" in 0* | *[!0-9]* | ??????*) fail "--port '$PORT' is not a port" ;; esac
CONFIG=$SETTINGS/${NAME:-config}.yaml
SERVICE=emdenoised${NAME:+@$NAME}.service
HOME_OF_STATE=/var/lib/emdenoised${NAME:+-$NAME}
FOLDERS=$BASE${NAME:+/$NAME}

# The units, and from the first of them the one for further cameras.
write_units() {
    mkdir -p "$1"
    for unit in emdenoised.service emdenoised-gpu.service emdenoised.slice; do
        sed "s|/opt/emdenoised/|$PREFIX/|" "$HERE/$unit" > "$1/$unit"
    done
    sed -e 's|/etc/emdenoised/config\.yaml|/etc/emdenoised/%i.yaml|' -e 's|/var/lib/emdenoised|&-%i|' \
        -e 's|^StateDirectory=emdenoised|&-%i|' -e 's|^SyslogIdentifier=emdenoised|&-%i|' \
        -e 's|^Description=.*|& (%i)|' "$1/emdenoised.service" > "$1/emdenoised@.service"
}

# Settings, from standard input to standard output, with those of our values that are not empty.
with_ours() {
    DROP=$DROP OUTPUT=$OUTPUT STATE=$STATE PORT=$PORT awk '
        function quoted(text) {
            if (text ~ /^[A-Za-z0-9\/._-]+$/) return text
            gsub(/\047/, "\047\047", text)
            return "\047" text "\047"
        }
        /^[^ #]/ { group = $1 }
        { key = $1; sub(/:$/, "", key); value = ENVIRON[toupper(key)] }
        group == "folders:" && /^  (drop|output|state): / && value != "" { print "  " key ": " quoted(value); next }
        group == "monitor:" && /^  listen: / && ENVIRON["PORT"] != "" { print "  listen: 127.0.0.1:" ENVIRON["PORT"]; next }
        { print }'
}

shipped_settings() {
    for file in "$HERE"/../../lib/python3*/site-packages/daemon/config.yaml; do :; done
    [ -e "$file" ] || fail "$PREFIX: emdenoised is not installed there"
    if [ -n "$NAME" ]; then echo "# emdenoised@$NAME: the settings of one camera, made by emdenoised-setup"; fi
    with_ours < "$file"
}

defaults() {
    : "${DROP:=$FOLDERS/drop}" "${OUTPUT:=$FOLDERS/denoised}"
    STATE=$HOME_OF_STATE
    if [ -n "$NAME" ] && [ -z "$PORT" ]; then
        PORT=8643
        while cat "$SETTINGS"/*.yaml 2> /dev/null | grep -q "^  listen: .*:$PORT\b"; do PORT=$((PORT + 1)); done
    fi
}

make_people() {
    getent group emdenoised > /dev/null || groupadd --system emdenoised
    getent passwd emdenoised > /dev/null || useradd --system --gid emdenoised --home-dir /var/lib/emdenoised \
        --no-create-home --shell /usr/sbin/nologin emdenoised
    getent group "$GROUP" > /dev/null || groupadd "$GROUP"
    [ "$GROUP" = emdenoised ] || usermod --append --groups "$GROUP" emdenoised
}

# One that exists keeps its owner and its rights, unless an earlier run made it for the group emdenoised. One that the
# settings named before is not made: it may be on a share that is not mounted.
make_folder() { # DIR OWNER NEW
    if [ ! -d "$1" ]; then
        [ "$3" = new ] || return 0
        install -d -m 2770 -o "$2" -g "$GROUP" "$1"
    elif [ "$(stat -c %U:%G "$1")" = "$2:emdenoised" ]; then
        chgrp "$GROUP" "$1"
    fi
}

write_settings() {
    new=$SETTINGS/.new.yaml
    install -d -m 755 "$SETTINGS"
    if [ -e "$CONFIG" ]; then with_ours < "$CONFIG" > "$new"; else shipped_settings > "$new"; fi
    said=$("$PREFIX/bin/emdenoised" check --config "$new") || { rm -f "$new"; fail "$CONFIG cannot be used; it was left as it is"; }
    : "${DROP:=$(printf '%s\n' "$said" | sed -n 's/^  drop    //p')}" "${OUTPUT:=$(printf '%s\n' "$said" | sed -n 's/^  output  //p')}"
    printf '%s\n' "$said" | grep -qxF "  drop    $DROP" && printf '%s\n' "$said" | grep -qxF "  output  $OUTPUT" \
        || { rm -f "$new"; fail "$CONFIG: its folders are not written as in the shipped file; edit drop and output yourself, then run this again"; }
    chmod 644 "$new"
    if cmp -s "$new" "$CONFIG"; then rm -f "$new"; else mv -f "$new" "$CONFIG"; fi
}

page() { # an address, the path of a socket, or null
    sed -n -e 's|^  listen: \([^ ]*/[^ ]*\).*|\1|p; t' -e 's|^  listen: \(null\).*|none (monitor.listen: null)|p; t' \
        -e 's|^  listen: \([^ ]*\).*|http://\1/|p' "$CONFIG" | head -n 1
}

start() {
    if [ ! -d /run/systemd/system ]; then
        echo "systemd does not run here; once it does: systemctl enable --now $SERVICE"
        return
    fi
    systemctl daemon-reload
    if [ "$CHANGED" = no ]; then
        systemctl try-restart emdenoised.service 'emdenoised@*.service'
        return
    fi
    systemctl enable --quiet "$SERVICE"
    systemctl restart "$SERVICE" || fail "$SERVICE did not start; the reason: journalctl -u $SERVICE -n 20"
    cat <<TEXT
$SERVICE runs. It watches $DROP and writes to $OUTPUT; settings: $CONFIG
The live page: $(page)
Who saves micrographs and reads results needs the group $GROUP: sudo usermod -aG $GROUP NAME, and to log in again.
TEXT
}

if [ -n "$STAGE" ]; then # for the Debian package: what it holds, below another root
    PREFIX=${PREFIX#"$STAGE"}
    write_units "$STAGE/usr/lib/systemd/system"
    defaults
    mkdir -p "$STAGE$SETTINGS"
    shipped_settings > "$STAGE$CONFIG"
    exit 0
fi

[ "$(id -u)" = 0 ] || fail "this needs root: sudo $0"
umask 022
make_people
if [ "$PACKAGED" = yes ]; then # dpkg has units and settings, and starts the service
    grep -q "^  drop: $BASE/drop$" "$CONFIG" && make_folder "$BASE/drop" root new
    grep -q "^  output: $BASE/denoised$" "$CONFIG" && make_folder "$BASE/denoised" emdenoised new
    exit 0
fi
case "$PREFIX" in *[!A-Za-z0-9/._-]*) fail "a service cannot lie in a folder of such a name: $PREFIX" ;; esac
[ -e /usr/lib/systemd/system/emdenoised.service ] || write_units "$UNITS"
if [ ! -e "$CONFIG" ]; then
    CHANGED=yes
    defaults
fi
NEW_DROP=${DROP:+new} NEW_OUTPUT=${OUTPUT:+new}
write_settings
if [ "$CHANGED" = yes ]; then
    make_folder "$DROP" root "$NEW_DROP"
    make_folder "$OUTPUT" emdenoised "$NEW_OUTPUT"
    install -d -m 700 -o emdenoised -g emdenoised "$HOME_OF_STATE"
    (cd / && runuser -u emdenoised -- "$PREFIX/bin/emdenoised" doctor --config "$CONFIG") \
        || fail "the service was not started; correct what is named above, then repeat this command"
fi
start
