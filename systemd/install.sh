#!/bin/sh
# Installs emdenoised from the unpacked bundle this file lies in. Never uses the network.
set -eu

PREFIX=/opt/emdenoised
SERVICE=no
REMOVE=no
READER=yes
NAME='' DROP='' OUTPUT='' GROUP='' PORT=''
CONFIG=/etc/emdenoised/config.yaml
# Marks a folder as ours, so that an installation that was interrupted can be repeated.
MARK=.emdenoised
UNITS=/etc/systemd/system
UNIT=$UNITS/emdenoised.service
COMMAND=/usr/local/bin/emdenoised
SETUP=/usr/local/sbin/emdenoised-setup
COMPLETION=/usr/local/share/bash-completion/completions/emdenoised

usage() {
    cat <<TEXT
usage: install.sh [--service [--drop DIR] [--output DIR] [--group GROUP] [--name NAME] [--port PORT]]
                  [--without-reader] [--uninstall] [PREFIX]

Installs emdenoised into PREFIX ($PREFIX), a virtual environment of its own, or renews an existing one.
--service    also sets the system service up and starts it (as root): user, group, folders, settings. The folders are
             DIR, the group that may use them GROUP (\`emdenoised-setup --help\` explains these and the others).
             Settings that exist are kept, but for what is named here; a service that runs is started again.
--without-reader  leaves out RosettaSciIO, under the GPL-3.0, which reads DM3, DM4, SER, EMD and HyperSpy files.
--uninstall  removes PREFIX, and with --service the service. Settings, ledger and results stay; it reports where they are.
PYTHON=...  the Python to use (python3).
TEXT
}

fail() {
    echo "install.sh: $*" >&2
    exit 1
}

while [ $# -gt 0 ]; do
    case "$1" in
        -h | --help) usage; exit 0 ;;
        --service) SERVICE=yes ;;
        --without-reader) READER=no ;;
        --uninstall) REMOVE=yes ;;
        --name | --drop | --output | --group | --port)
            [ $# -gt 1 ] || fail "$1 needs a value"
            case "$1" in
                --name) NAME=$2 ;; --drop) DROP=$2 ;; --output) OUTPUT=$2 ;; --group) GROUP=$2 ;; --port) PORT=$2 ;;
            esac
            SERVICE=yes
            shift
            ;;
        -*) usage >&2; fail "unknown option $1" ;;
        *) PREFIX=$1 ;;
    esac
    shift
done

case "$PREFIX" in /*) ;; *) PREFIX=$(pwd)/$PREFIX ;; esac

if [ "$REMOVE" = yes ]; then
    if [ "$SERVICE" = yes ]; then
        [ "$(id -u)" = 0 ] || fail "--service needs root: sudo $0 --uninstall --service"
        systemctl disable --now emdenoised 2> /dev/null || true
        systemctl stop 'emdenoised@*.service' 2> /dev/null || true
        rm -f "$UNITS"/multi-user.target.wants/emdenoised@*.service
        for name in emdenoised.service emdenoised@.service emdenoised-gpu.service emdenoised.slice; do
            rm -rf "$UNITS/$name" "$UNITS/$name.d"
        done
        for link in "$COMMAND" "$SETUP" "$COMPLETION"; do case "$(readlink "$link")" in "$PREFIX"/*) rm -f "$link" ;; esac; done
        systemctl daemon-reload 2> /dev/null || true
    elif [ -e "$UNIT" ] && grep -q "=$PREFIX/bin/" "$UNIT"; then
        fail "the service uses $PREFIX: add --service to remove it, too"
    fi
    if [ -e "$PREFIX" ]; then
        [ -e "$PREFIX/$MARK" ] || fail "$PREFIX was not installed by this program; it was left alone"
        rm -rf "$PREFIX"
    fi
    echo "removed: $PREFIX"
    [ "$SERVICE" = no ] || cat <<TEXT
Left where they are, and yours to remove: ${CONFIG%/*} (settings), /var/lib/emdenoised (ledger, engines), the output
folder, and the user emdenoised: sudo rm -r ${CONFIG%/*} /var/lib/emdenoised && sudo userdel emdenoised
TEXT
    exit 0
fi

HERE=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)
PYTHON=${PYTHON:-python3}
read -r WANTED MACHINE FLAVOUR < "$HERE/FOR" || fail "$HERE/FOR is missing: unpack the bundle again"

command -v "$PYTHON" > /dev/null || fail "$PYTHON was not found; install Python $WANTED, or set PYTHON"
FOUND=$("$PYTHON" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
[ "$FOUND" = "$WANTED" ] || fail "this bundle is for Python $WANTED, and $PYTHON is $FOUND; set PYTHON=python$WANTED, or make a bundle with Python $FOUND"
[ "$(uname -m)" = "$MACHINE" ] || fail "this bundle is for $MACHINE, and this computer is $(uname -m)"
"$PYTHON" -c 'import ensurepip, venv' 2> /dev/null || fail "$PYTHON has no venv; on Debian and Ubuntu: apt install python3-venv"
if [ "$SERVICE" = yes ]; then
    [ "$(id -u)" = 0 ] || fail "--service needs root: sudo ./install.sh --service"
    ! dpkg-query -W -f '${db:Status-Status}' emdenoised 2> /dev/null | grep -qx installed \
        || fail "the Debian package emdenoised is installed: upgrade it by apt, or remove it first: sudo apt remove emdenoised"
    case "$PREFIX" in *[!A-Za-z0-9/._-]*) fail "a service cannot lie in a folder of such a name: $PREFIX" ;; esac
fi

echo "checking the files"
(cd "$HERE" && sha256sum --quiet --check SHA256SUMS) || fail "files are damaged or missing: copy the bundle again"

if [ -e "$PREFIX" ] && [ -n "$(ls -A "$PREFIX" 2> /dev/null || echo file)" ] && [ ! -e "$PREFIX/$MARK" ]; then
    fail "$PREFIX holds something else; name another folder"
fi

# Whatever pip is configured to do, it takes these files and no others.
for name in $(env | sed -n 's/^\(PIP_[A-Z_]*\)=.*/\1/p'); do unset "$name"; done
export PIP_CONFIG_FILE=/dev/null PIP_NO_INDEX=1 PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
unset PYTHONPATH PYTHONHOME || true

echo "installing into $PREFIX"
mkdir -p "$PREFIX"
touch "$PREFIX/$MARK"
"$PYTHON" -m venv "$PREFIX"
EXTRA=completion
case "$FLAVOUR" in rtx) EXTRA=$EXTRA,rtx ;; tensorrt) EXTRA=$EXTRA,gpu ;; esac
[ "$READER" = no ] || EXTRA=$EXTRA,formats
for OWN in "$HERE"/wheels/emdenoised-*.whl; do :; done
# By path, so that a bundle of the same version replaces the installed one; the rest only where it is older.
"$PREFIX/bin/python" -m pip install --quiet --upgrade --find-links "$HERE/wheels" "$OWN[$EXTRA]"
"$PREFIX/bin/python" -m pip install --quiet --force-reinstall --no-deps "$OWN"
"$PREFIX/bin/emdenoised" --version
COMPLETES=$PREFIX/share/bash-completion/completions/emdenoised
mkdir -p "${COMPLETES%/*}"
"$PREFIX/bin/python" -c 'import argcomplete; print(argcomplete.shellcode(["emdenoised"]))' > "$COMPLETES"

if [ "$SERVICE" = yes ]; then
    mkdir -p "${COMMAND%/*}" "${SETUP%/*}" "${COMPLETION%/*}"
    for link in "$COMMAND" "$SETUP" "$COMPLETION"; do
        [ ! -e "$link" ] || [ -L "$link" ] || fail "$link exists; move it away, then repeat this command"
    done
    ln -sfn "$PREFIX/bin/emdenoised" "$COMMAND"
    ln -sfn "$PREFIX/share/emdenoised/setup.sh" "$SETUP"
    ln -sfn "$COMPLETES" "$COMPLETION"
    set --
    [ -z "$NAME" ] || set -- "$@" --name "$NAME"
    [ -z "$DROP" ] || set -- "$@" --drop "$DROP"
    [ -z "$OUTPUT" ] || set -- "$@" --output "$OUTPUT"
    [ -z "$GROUP" ] || set -- "$@" --group "$GROUP"
    [ -z "$PORT" ] || set -- "$@" --port "$PORT"
    sh "$PREFIX/share/emdenoised/setup.sh" "$@"
else
    cat <<TEXT
Installed. To try it:   $PREFIX/bin/emdenoised doctor
                        $PREFIX/bin/emdenoised demo
The Tab key in bash:    . $COMPLETES
As a service: sudo $0 --service $PREFIX
TEXT
fi
