#!/usr/bin/env bash
# Set up and run all tests: bash scripts/test.sh [PYTEST ARGUMENTS ...]
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"

say "running the tests"
exec python -m pytest "$@"
