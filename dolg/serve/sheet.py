"""A picture of a photograph, its box, and what was found for it."""
from functools import cache
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from dolg.data.decode import ImageError, read_image
from dolg.errors import UserError
from dolg.files import atomic_file
from dolg.serve.finder import Found, Result

_PAPER, _INK, _PALE, _RULE, _ACCENT = "#fbfaf7", "#1d2430", "#667085", "#d9d6cd", "#c2410c"
_WIDTH, _MARGIN, _GAP = 1500, 48, 20
_TILE_HEIGHT, _CAPTION = 168, 62
_COLUMNS, _QUERY_WIDTH, _QUERY_HEIGHT = 5, 520, 420
# Results that are drawn: a WebP picture has at most 16,383 pixels a side, and more are not looked at
MOST_DRAWN = 100


def write_sheet(path: Path, photo: Path, found: Found, title: str, max_pixels: int) -> None:
    """Write the picture, with the first MOST_DRAWN results, as `path`: JPEG, PNG or WebP, as its ending
    says.

    title: of the database and the model. Images that are not there, or cannot be read, are named tiles.
    Raises UserError for an ending that is none.
    """
    kind = kind_of_picture(path)
    drawn = found.results[:MOST_DRAWN]
    rows = -(-len(drawn) // _COLUMNS)
    query = _thumbnail(photo, (_QUERY_WIDTH, _QUERY_HEIGHT), max_pixels)
    top = _MARGIN + (query.height if query else _TILE_HEIGHT) + 2 * _GAP
    height = top + rows * (_TILE_HEIGHT + _CAPTION + _GAP) + _MARGIN - _GAP
    sheet = Image.new("RGB", (_WIDTH, height), _PAPER)
    draw = ImageDraw.Draw(sheet)
    _draw_query(sheet, draw, query, photo.name, found, title)
    draw.line([(_MARGIN, top - _GAP), (_WIDTH - _MARGIN, top - _GAP)], fill=_RULE, width=2)
    tile = (_WIDTH - 2 * _MARGIN - (_COLUMNS - 1) * _GAP) // _COLUMNS
    for number, result in enumerate(drawn):
        corner = (_MARGIN + number % _COLUMNS * (tile + _GAP),
                  top + number // _COLUMNS * (_TILE_HEIGHT + _CAPTION + _GAP))
        _draw_result(sheet, draw, corner, tile, result, bool(found.reranker), max_pixels)
    with atomic_file(path) as file:
        sheet.save(file, kind, quality=90)


def kind_of_picture(path: Path) -> str:
    """Pillow's name for it. Raises UserError for an ending that is none."""
    kind = Image.registered_extensions().get(path.suffix.lower())
    if kind not in ("JPEG", "PNG", "WEBP"):
        raise UserError(f"{path} ends in no kind of picture: give .jpg, .png or .webp")
    return kind


def _draw_query(sheet: Image.Image, draw: ImageDraw.ImageDraw, query: Image.Image | None, name: str,
                found: Found, title: str) -> None:
    x, y = _MARGIN, _MARGIN
    if query:
        sheet.paste(query, (x, y))
        scale = query.width / found.size[0]
        x1, y1, x2, y2 = (round(corner * scale) for corner in found.region)
        if (x2 - x1, y2 - y1) != query.size:
            draw.rectangle([x + x1, y + y1, x + x2 - 1, y + y2 - 1], outline="white", width=7)
            draw.rectangle([x + x1 + 2, y + y1 + 2, x + x2 - 3, y + y2 - 3], outline=_ACCENT, width=3)
        x += query.width + 2 * _GAP
    draw.text((x, y - 4), _fitted(draw, name, _font(30, bold=True), _WIDTH - _MARGIN - x), _INK,
              _font(30, bold=True))
    steps = ",  ".join(f"{step} {1000 * seconds:.0f} ms" for step, seconds in found.seconds.items())
    lines = [title, _region_text(found), steps]
    if found.reranker:
        lines.insert(2, f"the first {found.reranked} reordered by {found.reranker}")
    for number, line in enumerate(lines):
        text = _fitted(draw, line, _font(19), _WIDTH - _MARGIN - x)
        draw.text((x, y + 48 + 30 * number), text, _PALE, _font(19))


def _region_text(found: Found) -> str:
    x1, y1, x2, y2 = found.region
    whole = f"{found.size[0]} x {found.size[1]} pixels"
    if (x2 - x1, y2 - y1) == found.size:
        return f"{whole}, all of it"
    return f"{whole}, cut to {x1} {y1} {x2} {y2}"


def _draw_result(sheet: Image.Image, draw: ImageDraw.ImageDraw, corner: tuple[int, int], width: int,
                 result: Result, reranked: bool, max_pixels: int) -> None:
    x, y = corner
    image = result.image and _thumbnail(result.image, (width, _TILE_HEIGHT), max_pixels)
    if image:
        sheet.paste(image, (x, y + _TILE_HEIGHT - image.height))
    else:
        draw.rectangle([x, y, x + width, y + _TILE_HEIGHT], fill="#efece4", outline=_RULE)
        draw.text((x + width // 2, y + _TILE_HEIGHT // 2), "no image", _PALE, _font(17), anchor="mm")
    place = f"{result.place}"
    draw.text((x, y + _TILE_HEIGHT + 8), place, _ACCENT, _font(21, bold=True))
    left = x + draw.textlength(place, _font(21, bold=True)) + 12
    moved = reranked and result.found_at != result.place
    searched = reranked and not result.reranked
    text = (("search " if searched else "") + f"{result.score:.4f}"
            + (f"   was {result.found_at}" if moved else ""))
    draw.text((left, y + _TILE_HEIGHT + 11), text, _PALE if searched else _INK, _font(17))
    draw.text((x, y + _TILE_HEIGHT + 36), _fitted(draw, result.name, _font(16), width), _PALE, _font(16))


def _thumbnail(path: Path, size: tuple[int, int], max_pixels: int) -> Image.Image | None:
    try:
        pixels = read_image(path, max_pixels)
    except ImageError:      # its tile says so, and the others are worth seeing
        return None
    image = Image.fromarray(pixels.permute(1, 2, 0).numpy())
    image.thumbnail(size, Image.Resampling.LANCZOS)
    scale = min(size[0] / image.width, size[1] / image.height)
    return image if scale <= 1 else image.resize([max(1, round(side * scale)) for side in image.size],
                                                 Image.Resampling.BICUBIC)


def _fitted(draw: ImageDraw.ImageDraw, text: str, font: ImageFont.FreeTypeFont, width: float) -> str:
    """The end of a text, which tells images apart, as far as there is room."""
    text = text.encode(errors="replace").decode().replace("\n", " ")
    if draw.textlength(text, font) <= width:
        return text
    while text and draw.textlength("…" + text, font) > width:
        text = text[1:]
    return "…" + text


@cache
def _font(size: int, bold: bool = False) -> ImageFont.FreeTypeFont:
    import matplotlib       # whose fonts have more letters than Pillow's

    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    return ImageFont.truetype(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / name, size)
