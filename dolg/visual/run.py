"""tools/visualize.py's work: from arguments to a figure."""
import argparse
from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure

from dolg.config import load_cfg
from dolg.data.boxes import Box
from dolg.errors import UserError, closest
from dolg.features.describer import load
from dolg.features.store import FeatureStore
from dolg.rerank.images import Images, StoredImages
from dolg.visual.attended import attend_pair
from dolg.visual.attention import attention_maps
from dolg.visual.draw_attended import draw_attended
from dolg.visual.draw_attention import draw_attention
from dolg.visual.draw_embedding import draw_embedding
from dolg.visual.draw_matches import draw_matches
from dolg.visual.embedding import embed
from dolg.visual.labels import labels_by_name
from dolg.visual.matches import images_of_locals, match_pair
from dolg.visual.photographs import Photograph, find_photograph, open_photograph, thumbnail
from revisitop.evaluation import check_made_alike
from revisitop.names import NameIndex

# An image's row among images
Place = tuple[Images, int]
# More pixels than this no memory has
_LARGEST_SCALE = 16
_METHOD_NAMES = {"pca": "PCA", "tsne": "t-SNE", "umap": "UMAP"}


def attention(args: argparse.Namespace) -> Figure:
    """Maps over images, of the network of a configuration."""
    boxes = _boxes(args.box, len(args.image))
    describer = load(args.cfg, args.weights, args.opts)
    keys, found = describer.cfg.INFER, []
    if not all(0 < scale <= _LARGEST_SCALE for scale in args.scales):
        raise UserError(f"--scales {' '.join(f'{scale:g}' for scale in args.scales)}: give numbers above 0, "
                        f"at most {_LARGEST_SCALE}")
    for path, box in zip(args.image, boxes):
        photo = open_photograph(path, box, max_pixels=keys.MAX_PIXELS)
        found.append((photo, attention_maps(describer.network, photo.part, args.scales or keys.SCALES,
                                            args.kinds, describer.extractor.precision, keys.SIZE)))
    return draw_attention(found)


def matches(args: argparse.Namespace) -> Figure:
    """Two images and their matches: of stores, or described here."""
    boxes = _boxes(args.box, 2)
    if args.store:
        cfg = load_cfg(args.cfg, args.opts)
        photos, places = _stored_pair(args, boxes, cfg.INFER.MAX_PIXELS)
    else:
        describer = load(args.cfg, args.weights, [*args.opts, "INFER.LOCAL", "True"])
        cfg = describer.cfg
        photos = [open_photograph(path, box, max_pixels=cfg.INFER.MAX_PIXELS)
                  for path, box in zip(args.pair, boxes)]
        places = [(images_of_locals(describer.describe_local(path, box)), 0)
                  for path, box in zip(args.pair, boxes)]
    return draw_matches(*photos, match_pair(cfg, *places[0], *places[1]))


def rrt(args: argparse.Namespace) -> Figure:
    """What a reranking transformer attends to in two images of stores."""
    weights = ["RERANK.RRT.WEIGHTS", args.weights] if args.weights else []
    cfg = load_cfg(args.cfg, [*args.opts, *weights])
    photos, places = _stored_pair(args, _boxes(args.box, 2), cfg.INFER.MAX_PIXELS)
    return draw_attended(*photos, attend_pair(cfg, *places[0], *places[1]), args.layer)


def embedding(args: argparse.Namespace) -> Figure:
    """The images of stores on a plane."""
    stores = [FeatureStore(path, args.across) for path in args.store]
    check_made_alike(stores)
    label_of = labels_by_name(args.gnd, args.list)
    places, rows = embed(stores, args.method, args.seed)
    names = [name for store in stores for name in store.names]
    names = [names[row] for row in rows.tolist()]
    labels = [label_of.get(name, "") for name in names]
    if label_of and not any(labels):
        raise UserError(f"{args.gnd or args.list} knows none of the images of the stores, such as "
                        f"{names[0]}")
    files = {}
    if args.images:
        files = {row: find_photograph(args.images, name) for row, name in enumerate(names)}
    if args.images and not any(files.values()):
        raise UserError(f"--images: none of the stores' images, such as {names[0]}, is under "
                        f"{', '.join(map(str, args.images))}")
    title = f"{len(rows)} images by {_METHOD_NAMES[args.method]} of their descriptors"
    return draw_embedding(places, labels, lambda row: files[row] and thumbnail(files[row]), title,
                          args.size if files else 0.0, args.seed)


def _stored_pair(args: argparse.Namespace, boxes: Sequence[Box | None],
                 max_pixels: int) -> tuple[list[Photograph], list[Place]]:
    """The photographs of --pair, and their rows in --store."""
    if len(args.store) > 2:
        raise UserError(f"--store names {len(args.store)} stores: give one, or the query's and the "
                        "candidate's")
    if not args.images:
        raise UserError("--store needs --images, the folders in which the stores' images are")
    stores = [FeatureStore(path, args.across) for path in args.store]
    places = [(StoredImages([store]), _row(store, name))
              for store, name in zip((stores[0], stores[-1]), args.pair)]
    photos = [_stored_photograph(args.images, name, box, max_pixels)
              for name, box in zip(args.pair, boxes)]
    return photos, places


def _row(store: FeatureStore, name: str) -> int:
    row = NameIndex(store.names).find(name)
    if row < 0:
        raise UserError(f"the store {store.path} has no image '{name}'{closest(name, store.names)}")
    return row


def _stored_photograph(folders: Sequence[Path], name: str, box: Box | None,
                       max_pixels: int) -> Photograph:
    file = find_photograph(folders, name)
    if file is None:
        raise UserError(f"--images: no file of the image '{name}' under {', '.join(map(str, folders))}")
    return open_photograph(file, box, name, max_pixels)


def _boxes(boxes: Sequence[Sequence[float]], images: int) -> list[Box | None]:
    if len(boxes) > images:
        raise UserError(f"--box: {len(boxes)} boxes for {images} images: give at most one for each")
    return [*map(tuple, boxes), *[None] * (images - len(boxes))]
