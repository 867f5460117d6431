#!/bin/sh
# Make a virtual environment and install a lock file and this project into it.
# usage: tools/install.sh VENV LOCK
#        tools/install.sh VENV --forget-moved    have it installed again where it was moved or copied
set -eu
venv=$1
lock=$2

# the scripts of an environment call its Python by path: after a move that of another place, or none
moved() {
    [ ! -L "$venv" ] && [ -e "$venv/bin/churn" ] &&
        ! grep -qF "$(cd "$venv/bin" && pwd -P)/python" "$venv/bin/churn"
}

if [ "$lock" = --forget-moved ]; then
    if moved; then rm -f "$venv/.run-installed" "$venv/.dev-installed"; fi
    exit
fi

fail() {
    printf 'install: %s\n' "$*" >&2
    exit 1
}

# the scripts of an environment call its Python by path: PATH ends at a colon, and beside a blank the
# path is in quotes that do not keep these signs
for sign in '"' "\$" '`' "\\"; do
    case $PWD in
    *" "*"$sign"* | *"$sign"*" "*) fail "no virtual environment works below $PWD: it has a blank and $sign; rename the folder" ;;
    esac
done
case $PWD in *:*) fail "no virtual environment works below $PWD: it has a colon; rename the folder" ;; esac

supported='import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))'

# PYTHON names one; else the first that is recent enough
find_python() {
    if [ -n "${PYTHON:-}" ]; then
        set -- "$PYTHON"
    else
        set -- python3 python3.13 python3.12 python3.11 python
    fi
    for candidate in "$@"; do
        if command -v "$candidate" >/dev/null 2>&1 && "$candidate" -c "$supported" 2>/dev/null; then
            command -v "$candidate"
            return
        fi
    done
    found=$("${PYTHON:-python3}" --version 2>/dev/null || echo none)
    fail "Python 3.11, 3.12 or 3.13 is needed, found ${found}; install one or name it: make PYTHON=/path/to/python"
}

if moved; then
    echo "install: $venv was made in another place"
    rm -rf "$venv"
fi
if ! "$venv/bin/python" -c "$supported" 2>/dev/null; then
    python=$(find_python)
    rm -rf "$venv"
    echo "install: making $venv with $("$python" --version)"
    if command -v uv >/dev/null 2>&1; then
        uv venv --quiet --seed --python "$python" "$venv"
    else
        "$python" -c 'import ensurepip, venv' 2>/dev/null ||
            fail "$python has no venv module; install it (Debian, Ubuntu: apt-get install python3-venv)"
        "$python" -m venv "$venv"
    fi
fi

echo "install: $lock into $venv (a minute or two, the first time)"
if command -v uv >/dev/null 2>&1; then
    uv pip install --quiet --python "$venv/bin/python" -r "$lock"
    uv pip install --quiet --python "$venv/bin/python" --no-deps -e .
else
    "$venv/bin/python" -m pip install --quiet --disable-pip-version-check -r "$lock"
    "$venv/bin/python" -m pip install --quiet --disable-pip-version-check --no-deps -e .
fi
