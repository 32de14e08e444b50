"""The one exception for mistakes that a user can mend."""

import difflib


class UserError(Exception):
    """A wrong key, file, label or value: the message says what, and what to do instead.

    Commands print it as one line and exit with status 1; anything else is a bug and keeps
    its traceback.
    """


def closest(name: str, allowed) -> str:
    """" (did you mean 'x'?)" for the nearest of `allowed`, or nothing."""
    near = difflib.get_close_matches(str(name), [str(a) for a in allowed], n=1, cutoff=0.5)
    return f" (did you mean '{near[0]}'?)" if near else ""


def choose(table: dict, name: str, key: str):
    """`table[name]`, or a UserError that lists what the configuration key `key` may be."""
    if name not in table:
        options = ", ".join(sorted(table))
        raise UserError(f"{key} is '{name}': choose one of {options}{closest(name, table)}")
    return table[name]
