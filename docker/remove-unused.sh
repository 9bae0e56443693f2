#!/usr/bin/env bash
# Removes from the image's environment what nothing uses there, and debug symbols.
#
#   remove-unused.sh LIST
#
# LIST has a path in site-packages on each line, with * and ** as in bash, of what to remove; after
# "strip ", of a library to remove the debug symbols from. A line that matches nothing is an error,
# so that the list is corrected when a package changes.
set -euo pipefail
shopt -s globstar nullglob
list=$(realpath "$1")
cd /opt/venv/lib/python3*/site-packages
while read -r pattern; do
    [[ -n $pattern && $pattern != '#'* ]] || continue
    # shellcheck disable=SC2206 # the pattern is to be expanded
    found=(${pattern#strip })
    if [[ ${#found[@]} -eq 0 ]]; then
        printf 'error: %s: nothing in the environment matches %s\n' "${list##*/}" "$pattern" >&2
        exit 1
    elif [[ $pattern == strip\ * ]]; then
        strip --strip-unneeded "${found[@]}"
    else
        rm -rf "${found[@]}"
    fi
done <"$list"
