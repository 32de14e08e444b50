#!/usr/bin/env bash
# Set up and run all tests: bash scripts/test.sh [PYTEST ARGUMENTS ...]
set -euo pipefail

# The pages are tested in a browser, which comes while pip is at work; Playwright's own is a download from
# elsewhere
get_browser() {
    command -v chromium || { [ "$(id -u)" = 0 ] && apt-get update -qq &&
        DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends chromium; }
}
get_browser >/dev/null 2>&1 &
CHROMIUM=$!

source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"

# Optional packages whose tests are skipped where they cannot be had: asmk asks for a C compiler, and
# for faiss-cpu, which would overwrite faiss-gpu; pydegensac has wheels for some versions of Python
for PACKAGE in "asmk --no-deps" "pydegensac --only-binary=:all:"; do
    # shellcheck disable=SC2086
    python -c "import ${PACKAGE%% *}" 2>/dev/null || python -m pip install --quiet $PACKAGE ||
        say "going on without ${PACKAGE%% *}: its tests are skipped"
done

wait "$CHROMIUM" || say "going on without Chromium: the tests of pages in a browser are skipped"

# Two test files at a time with a thread each: processes that all start threads for all cores wait
# for one another
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
say "running the tests"
exec python -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder "$@"
