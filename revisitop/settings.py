"""What a store's manifest says of how its descriptors were made, and in what two of them differ.

Every key decides, also one that this program does not know, unless it is known to be of the images or
of the files. What one of two manifests does not record is unknown, and no difference.
"""
import hashlib
import json
import re
from collections.abc import Mapping

# Of the files, or of the images: which they are, where they came from, whether queries were cropped,
# and query expansion, which changes queries or the database on purpose
_NOT_SETTINGS = {"format", "version", "count", "dim", "chunk_size", "library", "images_digest", "cropped",
                 "data", "made_of", "expansion", "imported_from", "imported_digest"}
_OF_LOCAL_FEATURES = {"local", "local_dim", "local_dtype", "local_whitening"}
# What may change while a store grows or its data set is prepared anew, or be added by a newer version
_MAY_CHANGE = {"count", "images_digest", "data", "library", "config"}
_WORDS = {"weights_digest": "weights", "model_digest": "model",
          "config_digest": "configuration (MODEL, INPUT, TIMM, RESNET, BN.EPS or INFER.SIZE)"}


def is_recorded(manifest: Mapping) -> bool:
    """Whether a manifest says what made the descriptors; that of an import does not."""
    return any(manifest.get(key) for key in ("weights_digest", "model_digest", "config_digest"))


def made_by(manifest: Mapping, local: bool = False) -> dict:
    """What decides the descriptors, as far as it is known; `local`: and the local features."""
    aside = _NOT_SETTINGS if local else _NOT_SETTINGS | _OF_LOCAL_FEATURES
    known = {key: value for key, value in manifest.items() if key not in aside and value not in (None, "")}
    # Stores leave out what is the default, if they record such things at all
    if "weights_digest" in known or "whitening" in known:
        known.setdefault("whitening", "none")
        if local:
            known.setdefault("local_whitening", "none")
    if "config_digest" in known:
        known.setdefault("scale_pooling", "mean")
    return known


def differing_settings(first: Mapping, second: Mapping, local: bool = False) -> list[str]:
    """In what two manifests differ, in words such as "scales: [0.3535] and [0.5, 1.0]"."""
    facts, others = (_flat(made_by(manifest, local)) for manifest in (first, second))
    differing = [key for key in facts if key in others and _text(facts[key]) != _text(others[key])]
    if any(key.startswith("config.") for key in differing):      # they tell more than their digest
        differing.remove("config_digest")
    return [f"{_WORDS.get(key, key.removeprefix('config.'))}: {_shown(facts[key])} and "
            f"{_shown(others[key])}" for key in differing]


def settings_digest(manifest: Mapping, first_image: str) -> str:
    """SHA-256 by which a chunk knows its store: of what the manifest says of how all was made, and of the
    name of the store's first image. It stays the same while images are added."""
    lasting = {key: value for key, value in manifest.items() if key not in _MAY_CHANGE}
    return hashlib.sha256(_text([lasting, first_image]).encode()).hexdigest()


def config_digest(config: Mapping) -> str:
    """SHA-256 of the keys that decide descriptors, a manifest's "config"."""
    return hashlib.sha256(_text(config).encode()).hexdigest()


def _flat(settings: dict) -> dict:
    """`settings`, with the keys of "config" one by one: config.INPUT.MEAN."""
    return {key: value for name, value in settings.items()
            for key, value in (_leaves(value, name) if name == "config" else [(name, value)])}


def _leaves(value: object, name: str) -> list[tuple[str, object]]:
    if not isinstance(value, Mapping):
        return [(name, value)]
    return [leaf for key, inner in value.items() for leaf in _leaves(inner, f"{name}.{key}")]


def _text(value: object) -> str:
    return json.dumps(value, sort_keys=True)


def _shown(value: object) -> str:
    """A value for reading: of a digest the beginning tells enough."""
    text = re.sub(r"\b([0-9a-f]{12})[0-9a-f]{52}\b", r"\1", _text(value)).strip('"')
    return text if len(text) <= 80 else f"{text[:77]}..."
