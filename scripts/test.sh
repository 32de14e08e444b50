#!/usr/bin/env bash
# Set up and run all tests: bash scripts/test.sh [PYTEST ARGUMENTS ...]
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"

# Two test files at a time with a thread each: processes that all start threads for all cores wait
# for one another
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
say "running the tests"
exec python -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder "$@"
