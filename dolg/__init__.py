"""dolg: instance-level image retrieval. See README.md for the commands, docs/python.md for Python."""

__version__ = "0.1.0"
__all__ = ["Index", "UserError", "load"]

_PLACES = {"Index": "dolg.search.indexes", "UserError": "dolg.errors", "load": "dolg.features.describer"}


def __getattr__(name: str):
    # When asked for: a command that shows its help need not wait for PyTorch
    if name not in _PLACES:
        raise AttributeError(f"module 'dolg' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_PLACES[name]), name)
