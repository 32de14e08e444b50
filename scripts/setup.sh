# Sourced by the other scripts: leaves `python` with everything installed.
# Uses the active virtual environment if there is one, else .venv in the repository.

ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
cd "$ROOT"

say() { printf '\n== %s\n' "$*"; }

set_up() {
    local env="${VIRTUAL_ENV:-${CONDA_PREFIX:-}}"
    if [ -n "$env" ]; then
        say "using the active virtual environment $env"
    else
        env="$ROOT/.venv"
        if [ -x "$env/bin/python" ]; then
            say "using $env"
        else
            say "making the virtual environment $env"
            python3 -c 'import sys; sys.exit("error: Python 3.11 or newer is needed, this is "
                + sys.version.split()[0] if sys.version_info < (3, 11) else 0)'
            python3 -m venv "$env"
        fi
        # shellcheck disable=SC1091
        source "$env/bin/activate"
    fi
    # The stamp names what was installed and for which checkout (the project is installed
    # editable), so that a second run skips pip
    local stamp="$env/.dolg-installed" want
    want="$ROOT $(cat requirements.txt setup.py "${BASH_SOURCE[0]}" | sha256sum)"
    if [ "$(cat "$stamp" 2>/dev/null)" = "$want" ]; then
        say "requirements are installed already"
    else
        say "installing requirements (PyTorch with its CUDA libraries: 5 GB, a minute or more)"
        # Python compiles what it imports; pip would compile all of it, for most of a minute
        python -m pip install --quiet --disable-pip-version-check --no-compile -r requirements.txt \
            "pytest>=8" "pytest-xdist>=3" "playwright>=1.49" "nbclient>=0.10" "ipykernel>=6" \
            "pytorch-metric-learning>=2.0" "h5py>=3" "protobuf>=4" "scikit-learn>=1.5" \
            "onnx>=1.17" "onnxscript>=0.3" "onnxruntime>=1.20"
        printf '%s\n' "$want" > "$stamp"
    fi
}

set_up
