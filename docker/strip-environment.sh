#!/bin/sh
# Take from a conda environment what running it does not need, and compile the rest, since no container may write there.
set -eu
env=$1
find "$env" -depth -type d \( -name tests -o -name test \) -path '*/python3*' -exec rm -rf {} +
find "$env" \( -name '*.a' -o -name '*.pyi' -o -name '*.pyx' -o -name '*.pxd' -o -name '*.[ch]' -o -name '*.[ch]pp' \) -type f -delete
rm -rf "$env"/include "$env"/share/doc "$env"/share/man "$env"/share/info "$env"/pkgs "$env"/lib/cmake "$env"/lib/pkgconfig
rm -rf "$env"/lib/python3*/site-packages/pip "$env"/bin/pip* "$env"/lib/python3*/idlelib "$env"/lib/python3*/ensurepip "$env"/compiler_compat
"$env"/bin/python -m compileall -q -j 0 "$env"/lib/python3*/site-packages >/dev/null || true # some packages carry templates
