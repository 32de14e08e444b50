/* The large view: a result beside its query. */

const viewer = $("viewer");
let viewed = null;      // {query, method, at}: a place in what the strip shows

function placesOf(query, method) {
  const hits = query.hits[method];
  return !hits ? [] : [...hits.images.keys()].filter((i) => !(state.hideJunk && hits.labels[i] === "j"));
}

function view(query, method, at) {
  const places = placesOf(query, method);
  if (!places.length) return;
  viewed = {query, method, at: Math.min(Math.max(at, 0), places.length - 1)};
  const hits = query.hits[method], place = places[viewed.at], image = hits.images[place];
  const [label, sign] = LABELS[hits.labels[place]], name = data.images.names[image];
  $("viewer-title").textContent =
    `${data.methods[method].name}: result ${place + 1} of ${hits.images.length}, ${sign} ${label}`;
  const shownQuery = photo(query.tile, query.name, `Query ${query.name}`, query.box);
  $("viewer-query").replaceChildren(shownQuery, caption("Query", query.name));
  const holder = make("div", `holder ${label}`), frame = make("div", "frame");
  frame.append(picture(data.images.tiles[image], name, `Result ${place + 1}, ${label}: ${name}`));
  holder.append(frame);
  const kind = distractors.has(image) ? "Distractor" : "Image";
  $("viewer-result").replaceChildren(holder, caption(kind, name));
  $("viewer-facts").textContent = `${scoreText(hits.scores[place])}${elsewhere(query, method, image)}`;
  $("before").disabled = viewed.at === 0;
  $("after").disabled = viewed.at === places.length - 1;
  if (!viewer.open) viewer.showModal();
}

function caption(kind, name) {
  const text = make("figcaption");
  text.append(`${kind} `, make("span", "name", name));
  return text;
}

/* Where other methods have the same image. */
function elsewhere(query, method, image) {
  return state.shown.filter((other) => other !== method && query.hits[other]).map((other) => {
    const at = query.hits[other].images.indexOf(image), total = query.hits[other].images.length;
    return `; ${data.methods[other].name}: ${at < 0 ? `not in the first ${total}` : `place ${at + 1}`}`;
  }).join("");
}

function turn(by) {
  view(viewed.query, viewed.method, viewed.at + by);
}

function turnMethod(by) {
  const next = state.shown[state.shown.indexOf(viewed.method) + by];
  if (next !== undefined && placesOf(viewed.query, next).length) view(viewed.query, next, viewed.at);
}
