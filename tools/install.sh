#!/bin/sh
# Make a virtual environment and install a lock file and this project into it.
# usage: tools/install.sh VENV LOCK
#        tools/install.sh VENV LOCK GROUP        a dependency group of pyproject.toml alone, as LOCK pins it
#        tools/install.sh VENV LOCK --hashes     LOCK alone, whose files have to be those of its hashes
#        tools/install.sh VENV --forget-moved    have it installed again where it was moved or copied
set -eu
venv=$1
lock=$2
group=${3:-}

# the scripts of an environment call its Python by path: after a move that of another place, or none
moved() {
    [ ! -L "$venv" ] && [ -e "$venv/bin/churn" ] || return 1
    here=$(cd "$venv/bin" && pwd -P)
    ! grep -qF "$here/python" "$venv/bin/churn"
}

if [ "$lock" = --forget-moved ]; then
    if moved; then rm -f "$venv"/.*-installed; fi
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
    version=$("$python" --version)
    echo "install: making $venv with $version"
    if command -v uv >/dev/null 2>&1; then
        if [ "$group" = --hashes ]; then seed=''; else seed=--seed; fi # pip of the day has no hash
        # shellcheck disable=SC2086
        uv venv --quiet $seed --python "$python" "$venv"
    else
        "$python" -c 'import ensurepip, venv' 2>/dev/null ||
            fail "$python has no venv module; install it (Debian, Ubuntu: apt-get install python3-venv)"
        "$python" -m venv "$venv"
    fi
fi

# wheels alone, so that nothing is run which they bring; this project is built with what is locked, too
if [ "$group" = --hashes ]; then
    echo "install: $lock into $venv, by its hashes"
    if command -v uv >/dev/null 2>&1; then
        set -- uv pip install --quiet --python "$venv/bin/python"
    else
        set -- "$venv/bin/python" -m pip install --quiet --disable-pip-version-check
    fi
    "$@" --no-deps --only-binary :all: --require-hashes -r "$lock"
    "$@" --no-deps --no-build-isolation -e .
    exit
fi

if [ -n "$group" ]; then
    echo "install: group $group into $venv"
    grep -hv '^-r' requirements.lock "$lock" >"$venv/pins.txt"
    "$venv/bin/python" -c 'import sys, tomllib
print("\n".join(tomllib.load(open("pyproject.toml", "rb"))["dependency-groups"][sys.argv[1]]))' \
        "$group" >"$venv/group.txt"
    if command -v uv >/dev/null 2>&1; then
        uv pip install --quiet --python "$venv/bin/python" -r "$venv/group.txt" -c "$venv/pins.txt"
    else
        "$venv/bin/python" -m pip install --quiet --disable-pip-version-check \
            -r "$venv/group.txt" -c "$venv/pins.txt"
    fi
    exit
fi

unpacked() {
    set -- "$venv"/lib/python*/site-packages/*.dist-info
    echo $#
}

# what pip says, on standard input, as one line that shows how far it is
progress() {
    line='\r\033[Kinstall: %.60s'
    found=0 before=$(unpacked) ticker=''
    while read -r first second rest; do
        case $first in
        Collecting | Processing)
            found=$((found + 1)) package=$second
            # shellcheck disable=SC2059
            printf "$line" "found $found packages, $package"
            ;;
        Downloading)
            # shellcheck disable=SC2059
            printf "$line" "found $found packages, downloading $package ${rest##* (}"
            ;;
        Installing)
            while sleep 1 && kill -0 $$ 2>/dev/null; do
                now=$(unpacked)
                # shellcheck disable=SC2059
                printf "$line" "unpacked $((now - before)) of $found packages"
            done &
            ticker=$!
            ;;
        esac
    done
    if [ -n "$ticker" ]; then kill "$ticker" 2>/dev/null || true; fi
    printf '\r\033[K'
}

# a log gets no more than the first line; a terminal shows that something goes on
echo "install: $lock into $venv (a minute or two, the first time)"
if [ -t 1 ] && [ "${TERM:-dumb}" != dumb ]; then quiet=''; else quiet=--quiet; fi
if command -v uv >/dev/null 2>&1; then
    # shellcheck disable=SC2086
    uv pip install $quiet --python "$venv/bin/python" -r "$lock"
    uv pip install --quiet --python "$venv/bin/python" --no-deps -e .
else
    pip() {
        "$venv/bin/python" -m pip install --disable-pip-version-check "$@"
    }
    if [ -n "$quiet" ]; then
        pip --quiet -r "$lock"
    else
        failed="$venv/.install-failed"
        rm -f "$failed"
        # shellcheck disable=SC2312  # what fails in the pipe leaves a file
        { pip -r "$lock" || touch "$failed"; } | progress
        if [ -e "$failed" ]; then exit 1; fi
    fi
    echo "install: this project"
    pip --quiet --no-deps -e .
fi
