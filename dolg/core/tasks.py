"""What a run trains: a retrieval model on images with classes, or a reranking transformer on pairs."""
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from torch import nn

from dolg.core.distributed import from_main, rank, world_size
from dolg.core.logging import say
from dolg.core.modules import FeaturePairModule, ImagePairModule, TrainingModule
from dolg.core.validation import Validation, image_judges, open_checked, pair_judges, workers_of
from dolg.data.datasets import TrainingImages
from dolg.data.image_list import ImageList
from dolg.data.loader import Batch, StepLoader
from dolg.data.pairs import Triplets, TripletSampler
from dolg.data.sampler import BalancedStepSampler, StepSampler
from dolg.data.sides import FeatureBatch, FeatureLoader, StoredFeatures, take
from dolg.errors import UserError
from dolg.features.labelled import labelled_store
from dolg.features.store import FeatureStore
from dolg.losses import build_loss
from dolg.losses.builders import DEFAULTS
from dolg.models import build_model
from dolg.search.collection import store_digest
from dolg.search.neighbours import read_neighbours
from revisitop.stores import StoreError

# A loss of pairs learns little where a smaller fraction of images has another of its class in its batch
_FEW_POSITIVES = 0.1
_STEPS_LOOKED_AT = 1000


class Task(ABC):
    """What a Trainer must know of what it trains.

    Attributes:
        model, loss: as `cfg` says, not yet on a device.
        loader: the steps of an epoch, `len(loader)` of them; `loader.epoch(epoch, start)` gives the
            batches from step `start` on. A batch has `indexes` (B,), on the CPU, and `replaced`, (index,
            reason) of images in whose place others are.
        images: the training images; None where it reads stored features.
        validation: what the run is judged by.
    """

    module_type = TrainingModule
    images = None

    def __init__(self, cfg):
        self.cfg, self.model = cfg, build_model(cfg)

    def module(self, model, compiled: bool = False) -> TrainingModule:
        """A model, this one's or its average, and the loss, as one."""
        return self.module_type(model, self.loss, self.cfg.BN.FREEZE, compiled)

    @abstractmethod
    def parts(self, batch, count: int) -> Iterator[tuple]:
        """`count` parts of a batch, each inputs and labels of the module."""

    @abstractmethod
    def name(self, index: int) -> str:
        """The image of an index in a batch."""

    def cut_images(self) -> set[int]:
        """The indexes of images that this process read in the last epoch and that are cut short."""
        return set()


class _ImagesTask(Task):
    """Of batches of `images`."""

    def index_of(self, name: str) -> int:
        """The index of the image of a name; looks at all."""
        return next(index for index in range(len(self.images)) if self.images.name(index) == name)

    def parts(self, batch: Batch, count: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        return zip(batch.images.chunk(count), batch.labels.chunk(count))

    def name(self, index: int) -> str:
        return self.images.name(index)

    def cut_images(self) -> set[int]:
        return self.loader.cut


class ImageTask(_ImagesTask):
    """A retrieval model learns from images with classes."""

    def __init__(self, cfg, device: torch.device):
        super().__init__(cfg)
        self.images = _open_images(cfg, cfg.MODEL.NUM_CLASSES)
        counts = np.bincount(self.images.labels, minlength=cfg.MODEL.NUM_CLASSES)
        self.loss = build_loss(cfg, self.model.dims, counts)
        _check_pairs(cfg, self.images.labels, self.loss)
        self.loader = _image_loader(cfg, self.images, self._sampler(), self.model.input_spec, device)
        self.validation = Validation(cfg, image_judges(cfg, self.model.input_spec, device))

    def _sampler(self) -> StepSampler | BalancedStepSampler:
        cfg, images = self.cfg, self.images
        if cfg.TRAIN.IMAGES_PER_CLASS:
            return BalancedStepSampler(images.labels, cfg.TRAIN.BATCH_SIZE, cfg.TRAIN.IMAGES_PER_CLASS,
                                       rank(), world_size(), cfg.RNG_SEED)
        return StepSampler(len(images), cfg.TRAIN.BATCH_SIZE, rank(), world_size(), cfg.RNG_SEED,
                           shuffle=True)


class FeaturePairTask(Task):
    """A reranking transformer learns from pairs of images whose features are stored."""

    module_type = FeaturePairModule

    def __init__(self, cfg, device: torch.device):
        super().__init__(cfg)
        _check_triplets(cfg)
        self.validation = Validation(cfg, pair_judges(cfg, device))
        if cfg.OPTIM.LAYER_DECAY != 1:
            raise UserError(f"OPTIM.LAYER_DECAY is {cfg.OPTIM.LAYER_DECAY}, for the layers of a backbone, "
                            f"and MODEL.ARCH {cfg.MODEL.ARCH} has none: set it to 1")
        self.loss = build_loss(cfg)
        self.store, labels = _open_labelled(cfg)
        self._check_dimensions()
        sampler = _triplet_sampler(cfg, self.store, labels)
        self.loader = FeatureLoader(
            StoredFeatures(self.store, labels), sampler, cfg.MODEL.RRT.LOCALS, self.model.scale_indexes,
            workers_of(cfg), cfg.DATA_LOADER.PIN_MEMORY and device.type == "cuda", device)

    def parts(self, batch: FeatureBatch, count: int) -> Iterator[tuple[dict, torch.Tensor]]:
        size = len(batch.labels) // count
        rows = (slice(start, start + size) for start in range(0, count * size, size))
        return ((take(batch.side, part), batch.labels[part]) for part in rows)

    def name(self, index: int) -> str:
        place = divmod(index, self.store.chunk_size)
        return self.store.chunk(place[0]).names[place[1]]

    def _check_dimensions(self) -> None:
        for has, key, what in ((self.store.dim, "GLOBAL_DIM", "descriptors"),
                               (self.store.local_dim, "DIM", "local features")):
            if has != self.cfg.MODEL.RRT[key]:
                raise UserError(f"TRAIN.PAIRS.FEATURES {self.store.path} has {what} of {has} dimensions "
                                f"(0: none), and MODEL.RRT.{key} is {self.cfg.MODEL.RRT[key]}: give "
                                f"another store (with INFER.LOCAL True), or set MODEL.RRT.{key}")


class ImagePairTask(_ImagesTask):
    """A reranking transformer, and the backbone whose map it reads, learn from pairs of images."""

    module_type = ImagePairModule

    def __init__(self, cfg, device: torch.device):
        super().__init__(cfg)
        _check_triplets(cfg)
        self.validation = Validation(cfg, pair_judges(cfg, device))
        if cfg.MODEL.RRT.FREEZE_BACKBONE and not cfg.BN.FREEZE:
            raise UserError("MODEL.RRT.FREEZE_BACKBONE True leaves the backbone as it is, and BN.FREEZE "
                            "False would change its running statistics: set it to True as well")
        # Of pairs the descriptor's layer gets no gradient, and nobody is to wait for one
        self.model.fc.requires_grad_(False)
        self.loss = build_loss(cfg)
        images = _open_images(cfg)
        store, labels = _open_labelled(cfg)
        self.images = _in_the_order_of(store, images)
        sampler = _triplet_sampler(cfg, store, labels)
        self.loader = _image_loader(cfg, self.images, sampler, self.model.input_spec, device)


# By MODEL.ARCH; the others learn from images with classes
PAIR_TASKS = {"rrt": FeaturePairTask, "rrt_sop": ImagePairTask}


def build_task(cfg, device: torch.device) -> Task:
    """What `cfg` asks to be trained (each process must call this). Raises UserError where the data are
    not there or do not fit."""
    return PAIR_TASKS.get(cfg.MODEL.ARCH, ImageTask)(cfg, device)


def _open_images(cfg, num_classes: int | None = None):
    if not cfg.TRAIN.DATASET:
        raise UserError(f"TRAIN.DATASET is empty: name a folder under DATA_DIR {cfg.DATA_DIR}")
    # Missing images are replaced as others that cannot be read are
    check = "none" if cfg.DATA_LOADER.ON_ERROR == "skip" else cfg.DATA_LOADER.CHECK
    images = open_checked(cfg, cfg.TRAIN.DATASET, cfg.TRAIN.SPLIT, num_classes, check)
    if len(images) < cfg.TRAIN.BATCH_SIZE:
        raise UserError(f"TRAIN.SPLIT has {len(images)} images, fewer than "
                        f"TRAIN.BATCH_SIZE {cfg.TRAIN.BATCH_SIZE}")
    return images


def _image_loader(cfg, images, sampler, input_spec, device: torch.device) -> StepLoader:
    dataset = TrainingImages(
        images, cfg.TRAIN.IM_SIZE, cfg.TRAIN.CROP_AREA, cfg.RNG_SEED, cfg.TRAIN.LIGHTING,
        cfg.TRAIN.RESIZE, cfg.DATA_LOADER.REDUCED_DECODE, cfg.DATA_LOADER.ON_DEVICE,
        cfg.INFER.MAX_PIXELS, cfg.DATA_LOADER.TRUNCATED == "lenient", cfg.DATA_LOADER.ON_ERROR == "skip")
    pin = cfg.DATA_LOADER.PIN_MEMORY and device.type == "cuda"
    return StepLoader(dataset, sampler, input_spec, workers_of(cfg), pin, device)


def _check_pairs(cfg, labels: np.ndarray, loss: nn.Module) -> None:
    """Raise UserError where a loss of pairs can never see two images of a class together; warn where it
    hardly does in the first epoch."""
    if not any(getattr(part, "needs_pairs", False) for part in loss.modules()):
        return
    name = cfg.LOSS.NAME or DEFAULTS[cfg.MODEL.ARCH]
    cause = f"LOSS.NAME {name} compares images of one class"
    together, per_class = cfg.TRAIN.BATCH_SIZE // cfg.TRAIN.ACCUMULATE, cfg.TRAIN.IMAGES_PER_CLASS
    if together < 2 or per_class and together == world_size():
        raise UserError(f"{cause}, and TRAIN.BATCH_SIZE {cfg.TRAIN.BATCH_SIZE} in TRAIN.ACCUMULATE "
                        f"{cfg.TRAIN.ACCUMULATE} parts leaves it no two of them at a time: raise the one or "
                        "lower the other")
    if per_class == 1:
        raise UserError(f"{cause}, and TRAIN.IMAGES_PER_CLASS is 1: give 2 or more, such as 4")
    if per_class:
        return
    if np.bincount(labels).max() < 2:
        raise UserError(f"{cause}, and no class of {cfg.TRAIN.SPLIT} has two images: give other labels, "
                        "another loss, or TRAIN.IMAGES_PER_CLASS 2, which shows each image twice")
    fraction = _with_positives(cfg, labels, together)
    if fraction < _FEW_POSITIVES:
        say(f"WARNING: {cause}, and only {fraction:.1%} of the images have another of their class in their "
            "batch, from which it can learn: set TRAIN.IMAGES_PER_CLASS, such as 4")


def _with_positives(cfg, labels: np.ndarray, together: int) -> float:
    """The fraction of the first epoch's images that have another of their class among the `together` with
    which they are compared."""
    whole = StepSampler(len(labels), cfg.TRAIN.BATCH_SIZE, 0, 1, cfg.RNG_SEED, shuffle=True)
    order = [index for step in islice(whole, _STEPS_LOOKED_AT) for _, index in step]
    groups = np.sort(labels[order].reshape(-1, together), axis=1)
    equal = groups[:, 1:] == groups[:, :-1]
    positive = np.zeros(groups.shape, bool)
    positive[:, 1:] |= equal
    positive[:, :-1] |= equal
    return float(positive.mean())


def _check_triplets(cfg) -> None:
    parts = 3 * world_size() * cfg.TRAIN.ACCUMULATE
    if cfg.TRAIN.BATCH_SIZE % parts:
        raise UserError(f"TRAIN.BATCH_SIZE is {cfg.TRAIN.BATCH_SIZE}, the images of a step's triplets, "
                        f"which {world_size()} process(es) share, in TRAIN.ACCUMULATE parts each: give a "
                        f"multiple of {parts}")


@contextmanager
def _stores_of_users() -> Iterator[None]:
    """What is wrong with a store is the user's to mend."""
    try:
        yield
    except StoreError as error:
        raise UserError(str(error)) from None


@_stores_of_users()
def _open_labelled(cfg) -> tuple[FeatureStore, np.ndarray]:
    """TRAIN.PAIRS.FEATURES, and the labels (N,) of its images."""
    if cfg.TRAIN.SPLIT.endswith(".tar"):
        raise UserError(f"TRAIN.SPLIT {cfg.TRAIN.SPLIT} is of shards, and MODEL.ARCH {cfg.MODEL.ARCH} "
                        "learns from an image list: give one, such as train_list.txt")
    if not cfg.TRAIN.PAIRS.FEATURES:
        raise UserError("TRAIN.PAIRS.FEATURES is empty: give the store of the images of TRAIN.SPLIT, in "
                        "which their neighbours were found")
    listing = Path(cfg.DATA_DIR) / cfg.TRAIN.DATASET / cfg.TRAIN.SPLIT
    # The main process reads it all; of the others none needs the names
    labels = from_main(_stores_of_users()(lambda: labelled_store(cfg.TRAIN.PAIRS.FEATURES, listing)[1]))
    return FeatureStore(cfg.TRAIN.PAIRS.FEATURES), labels


@_stores_of_users()
def _triplet_sampler(cfg, store: FeatureStore, labels: np.ndarray) -> TripletSampler:
    keys = cfg.TRAIN.PAIRS
    if not keys.NEIGHBOURS:
        raise UserError("TRAIN.PAIRS.NEIGHBOURS is empty: find them with python tools/search.py neighbours "
                        f"{store.path} --top {keys.DEPTH} --output FOLDER, and give FOLDER")
    found = read_neighbours(keys.NEIGHBOURS, [store_digest(store)], keys.DEPTH)
    triplets = Triplets(labels, found.indexes[:, :keys.DEPTH], store.status == 0, keys.MIN_POSITIVES,
                        from_class=keys.POSITIVES == "class")
    return TripletSampler(triplets, cfg.TRAIN.BATCH_SIZE, rank(), world_size(), cfg.RNG_SEED)


def _in_the_order_of(store: FeatureStore, images: ImageList) -> ImageList:
    """The images of a list in the order that a store has them in; both have the same."""
    place = {Path(images.name(index)): index for index in range(len(images))}
    order = np.array([place[images.file.parent / name] for name in store.names])
    return images.taken(order)
