#!/bin/sh
# `make-environment.sh NAME`: make the conda environment /opt/env of the lock file /tmp/conda-lock.yml, a copy of NAME,
# without files that are not needed at run time, and compiled, since no container may write there.
set -eu
env=/opt/env
micromamba create --yes --prefix "$env" --file /tmp/conda-lock.yml
if [ ! -x "$env/bin/python" ]; then # micromamba skips packages for other platforms, and accepts an empty result
  echo "The environment is empty: $1 holds no packages for ${TARGETPLATFORM:-this platform} ($(uname -m))." \
    "Build for a locked platform, such as linux/amd64, or create a lock file for this one." >&2
  exit 1
fi
find "$env" -depth -type d \( -name tests -o -name test \) -path '*/python3*' -exec rm -rf {} +
find "$env" \( -name '*.a' -o -name '*.pyi' -o -name '*.pyx' -o -name '*.pxd' -o -name '*.[ch]' -o -name '*.[ch]pp' \) -type f -delete
rm -rf "$env"/include "$env"/share/doc "$env"/share/man "$env"/share/info "$env"/pkgs "$env"/lib/cmake "$env"/lib/pkgconfig
rm -rf "$env"/lib/python3*/idlelib "$env"/lib/python3*/ensurepip "$env"/compiler_compat
"$env"/bin/python -m compileall -q -j 0 "$env"/lib/python3*/site-packages >/dev/null || true # some packages carry templates
sha256sum /tmp/conda-lock.yml >"$env"/conda-lock.sha256 # by which a run names the environment of its training
