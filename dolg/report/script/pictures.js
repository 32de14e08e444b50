/* Thumbnails: files beside the page, or embedded in it. */

const blocks = new Map();

/* Address of a thumbnail: a file's, or what is embedded, which is read by the block. */
function address(number) {
  if (data.files.length) return data.files[number];
  const block = Math.floor(number / data.block);
  if (!blocks.has(block)) blocks.set(block, $(`tiles-${block}`).textContent.split(" "));
  return "data:image/jpeg;base64," + blocks.get(block)[number % data.block];
}

/* A picture, or, where there is none, its name and the reason. */
function picture(tile, name, alt) {
  if (typeof tile === "string") {
    const missing = make("div", "missing");
    missing.append(make("b", "name", name), make("span", "", tile));
    return missing;
  }
  const image = make("img");
  image.alt = alt;
  image.decoding = "async";
  image.draggable = false;
  image.src = address(tile);
  image.addEventListener("load", () => {      // a large view has the picture's shape
    image.parentElement.style.setProperty("--ratio", image.naturalWidth / image.naturalHeight);
  });
  return image;
}

function photo(tile, name, alt, box) {
  const content = picture(tile, name, alt);
  if (typeof tile === "string") return content;
  const frame = make("div", "photo");
  frame.append(content);
  if (box) {
    const mark = make("div", "box");
    ["left", "top", "width", "height"].forEach((side, i) => { mark.style[side] = `${100 * box[i]}%`; });
    frame.append(mark);
  }
  return frame;
}
