"""tools/infer.py's work: from a configuration to finished feature stores."""
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from tqdm import tqdm

from dolg.core.distributed import is_main, processes_started
from dolg.core.logging import say
from dolg.data.manifest import data_record
from dolg.errors import UserError
from dolg.features.builders import build_extractor
from dolg.features.claims import Claims, claimants
from dolg.features.estimate import estimate
from dolg.features.extract import Extractor
from dolg.features.progress import Progress
from dolg.features.resuming import check_images, open_writer
from dolg.features.sources import ImageSource, images_of, revisited_set
from dolg.features.store import FeatureStore, StoreWriter
from revisitop.stores import StoreError

# Seconds between two looks at what other workers have done, and between two words on whom one waits for
_LOOK_AGAIN, _SAY_AGAIN = 1.0, 30.0
_SHOWN = 20


def infer(cfg, retry: bool = False) -> None:
    """Extract what INFER.DATASET and INFER.IMAGES name into stores under INFER.OUT_DIR.

    Any number of workers may do so at once: each computes chunks that no other has, and all return
    when the stores are whole. Started again they compute what is missing only: images that were added,
    and with `retry` those that failed or have changed. Raises UserError where all images of a store fail.
    """
    sources = _sources_of(cfg)
    extractor, provenance = build_extractor(cfg)
    for name, source in sources.items():
        try:
            writer, source = _open_writer(cfg, extractor, name, source, provenance, retry, is_main())
            if missing := writer.missing_chunks():
                if len(missing) < writer.num_chunks:
                    say(f"{writer.path}: {writer.num_chunks - len(missing)} of {writer.num_chunks} "
                        "chunks are there already")
                _work(writer, source, extractor, _worker(cfg), cfg.INFER.LEASE)
            _report(writer.path)
        except StoreError as error:
            raise UserError(str(error)) from None


def estimate_all(cfg) -> None:
    """Say what time, memory and disk `infer` will take."""
    sources = _sources_of(cfg)
    extractor, provenance = build_extractor(cfg)
    for name, source in sources.items():
        writer, source = _open_writer(cfg, extractor, name, source, provenance)
        workers = _worker(cfg)[1]
        if extractor.device.type != "cpu":      # there the workers of a machine share its cores
            workers *= processes_started(cfg.NUM_GPUS, cfg.DEVICE)
        say(estimate(extractor, writer, source, workers))


def check_all(cfg, contents: bool = False) -> None:
    """Say which stores are whole, and of the images as they are now; `contents`: by reading all of them
    again. Raises UserError that names what is wrong with the others."""
    problems = []
    for name, source in _sources_of(cfg).items():
        path = features_folder(cfg) / name
        try:
            store = FeatureStore(path)
            check_images(path, source, contents)
            store.verify()
            say(f"{path} is whole: {store.count} images, {len(store.errors())} of them failed")
        except (StoreError, UserError) as error:
            problems.append(str(error))
    if problems:
        raise UserError("; ".join(problems))


def features_folder(cfg) -> Path:
    """Where the stores of `cfg` go."""
    return Path(cfg.INFER.OUT_DIR or Path(cfg.OUT_DIR) / "features")


def _sources_of(cfg) -> dict[str, ImageSource]:
    """Store name -> images. Raises UserError where a set is missing, or none asked for."""
    sources = {}
    if cfg.INFER.DATASET:
        root = Path(cfg.INFER.DATA_DIR or cfg.DATA_DIR)
        parts = revisited_set(root, cfg.INFER.DATASET, cfg.INFER.CROP_QUERIES)
        sources = {f"{cfg.INFER.DATASET}/{part}": source for part, source in parts.items()}
    if cfg.INFER.IMAGES:
        location = Path(cfg.INFER.IMAGES)
        name = _store_name(location)
        sources[name] = images_of(location)
    if not sources:
        raise UserError("nothing to extract: set INFER.DATASET (a set in the Revisited format) or "
                        "INFER.IMAGES (a folder or a list)")
    return sources


def _store_name(location: Path) -> str:
    """The folder of INFER.OUT_DIR for the images of a folder or a list, whose name it has."""
    if location.is_dir():
        # Of . and .. the folders that they are
        name = location.name if location.name not in ("", "..") else location.resolve().name
    else:
        name = location.stem
    if name in ("", ".", ".."):
        raise UserError(f"INFER.IMAGES {location} has no name to call its store by: give a folder or list "
                        "that has one")
    return name


def _open_writer(cfg, extractor: Extractor, name: str, source: ImageSource, provenance: dict,
                 retry: bool = False, check: bool = True) -> tuple[StoreWriter, ImageSource]:
    """The store `name` of the images of `source`, to be filled, and these in its order."""
    cropped = name.endswith("/query") and bool(source.boxes)
    data = data_record(source.folder)
    if variant := cfg.INFER.IMAGE_VARIANT or (data and data["variant"]):
        provenance = {**provenance, "image_variant": variant}
    if data:
        provenance = {**provenance, "data": data}
    return open_writer(
        features_folder(cfg) / name, source, extractor.dim, cfg.INFER.CHUNK_SIZE,
        {**provenance, "cropped": cropped}, extractor.local_dim, cfg.INFER.LOCAL_DTYPE, retry, check)


def _worker(cfg) -> tuple[int, int]:
    """This worker's number, from 0, and how many there are: INFER.TOTAL_NUM runs of so many processes
    each."""
    processes = int(os.environ.get("WORLD_SIZE", 1))
    number = (cfg.INFER.CUT_NUM - 1) * processes + int(os.environ.get("RANK", 0))
    return number, cfg.INFER.TOTAL_NUM * processes


def _work(writer: StoreWriter, source: ImageSource, extractor: Extractor,
          worker: tuple[int, int], lease: float) -> None:
    """Fill a store together with the other workers, until it is whole."""
    if not writer.grows:
        writer.create()
    claims = Claims(writer.path / ".claims", lease, writer.manifest["images_digest"])
    waiting = _Waiting(claims)
    try:
        if writer.grows:
            _add_images(writer, claims)
        with Progress(writer, extractor, show=is_main()) as progress:
            def on_batch(images: int) -> None:
                claims.renew()
                progress.advance(images)

            def on_chunk(chunk: int) -> None:
                claims.release(chunk)
                progress.look()

            while writer.missing_chunks():
                before = progress.mine
                extractor.fill(writer, source, _chunks_to_do(writer, claims, *worker), on_batch,
                               on_chunk)
                if progress.mine == before:     # others have all that is left
                    waiting.say()
                    time.sleep(_LOOK_AGAIN)
                    progress.look()
        say(progress.summary())
        writer.remove_leftovers()
    finally:
        claims.close(done=not writer.missing_chunks())


def _add_images(writer: StoreWriter, claims: Claims) -> None:
    """Give a store's manifest the images that were added. Raises UserError where workers are alive that
    know the store without them."""
    if others := claims.others():
        raise UserError(f"{writer.path} cannot take more images while workers are at it that know nothing of "
                        f"them ({'; '.join(others[:3])}): wait for them, or stop them, and run the same "
                        "command again")
    writer.create()


class _Waiting:
    """Says from time to time whose chunks a worker waits for."""

    def __init__(self, claims: Claims):
        self._claims, self._next = claims, time.monotonic() + _LOOK_AGAIN

    def say(self) -> None:
        if is_main() and time.monotonic() >= self._next:
            self._next = time.monotonic() + _SAY_AGAIN
            others = claimants(self._claims.folder)
            tqdm.write(f"{self._claims.folder.parent}: waiting for {'; '.join(others[:3]) or 'other workers'}"
                       f"{'; ...' if others[3:] else ''}. Chunks of workers that give no sign of life are "
                       f"taken over after INFER.LEASE ({self._claims.lease:g}) seconds", file=sys.stderr)


def _chunks_to_do(writer: StoreWriter, claims: Claims, number: int, of: int) -> Iterator[int]:
    """Chunks for this worker, each claimed: its share, then what is left of the others'."""
    for chunk in sorted(writer.missing_chunks(), key=lambda chunk: chunk % of != number):
        if not writer.is_written(chunk) and claims.take(chunk):
            if writer.is_written(chunk):        # by one that finished in between
                claims.release(chunk)
            else:
                yield chunk


def _report(path: Path) -> None:
    """Say what is in a finished store, which images failed, and which were described with a warning. Raises
    UserError if all failed."""
    store = FeatureStore(path)
    errors, warnings = store.errors(), store.warnings()
    say(f"{path}: {store.count} images, {store.dim} dimensions"
        + (f", {len(errors)} FAILED and are marked in the store (--retry-failed tries them again):"
           if errors else ""))
    _say_some(errors)
    if warnings:
        say(f"WARNING: {len(warnings)} images were described all the same:")
        _say_some(warnings)
    if errors and len(errors) == store.count:
        reasons = list(dict.fromkeys(reason for _, reason in errors))
        raise UserError(f"all {store.count} images of {path} failed ({'; '.join(reasons[:3])}"
                        f"{'; ...' if reasons[3:] else ''}): mend what these reasons say, and give "
                        "--retry-failed")


def _say_some(images: list[tuple[str, str]]) -> None:
    for name, reason in images[:_SHOWN]:
        say(f"  {name}: {reason}")
    if len(images) > _SHOWN:
        say(f"  ... and {len(images) - _SHOWN} more")
