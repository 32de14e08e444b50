/* A query: rendered when it comes into view, its strips of results only as far as they are seen. */

data.queries.forEach((query, index) => {
  query.index = index;
  query.element = make("article", "query");
  query.element.id = `query-${index}`;
  query.element.tabIndex = -1;
  query.element.setAttribute("aria-label", `Query ${query.name}`);
  query.strips = [];
  query.filled = false;
});
const queryOf = (element) => data.queries[Number(element.closest(".query").id.slice(6))];

function rem() {
  return parseFloat(getComputedStyle(document.documentElement).fontSize);
}

function step() {
  return parseFloat(getComputedStyle(document.documentElement).getPropertyValue("--step")) * rem();
}

function reserve(query) {
  const narrow = matchMedia("(max-width: 46rem)").matches;
  const strips = state.shown.length * (narrow ? 14.2 : 12.9);
  query.element.style.minHeight = `${(narrow ? strips + 12 : Math.max(strips, 17) + 1) * rem()}px`;
}

function empty(query) {
  query.element.replaceChildren();
  query.strips = [];
  query.filled = false;
  reserve(query);
}

function fill(query) {
  if (query.filled) return;
  query.filled = true;
  query.element.replaceChildren(about(query), results(query));
  query.element.style.minHeight = "";
  query.strips.forEach((strip) => showStrip(strip, 0));
}

function about(query) {
  const part = make("div", "about");
  const cut = query.crop !== null && data.cropped[state.method];
  part.append(cut ? photo(query.crop, query.name, `Query ${query.name}, cut to its box`)
                  : photo(query.tile, query.name, `Query ${query.name}`, query.box));
  part.append(make("h3", "name", query.name));
  const counts = Object.entries(query.counts).map(([label, count]) => `${count} ${label}`);
  part.append(make("p", "", counts.join(", ")));
  const failed = failedText(query);
  if (failed) part.append(make("p", "down", failed));
  if (cut && query.box) {
    const whole = photo(query.tile, query.name, "The whole photograph, its box marked", query.box);
    whole.classList.add("whole");
    part.append(whole);
  }
  if (state.shown.some((method) => hasCurve(query, method))) part.append(curve(query));
  return part;
}

/* In which methods the query's extraction failed; a query without a positive has no AP. */
function failedText(query) {
  const methods = data.methods.filter((_, method) => query.failed[method]);
  if (!methods.length) return "";
  const where = methods.length === data.methods.length ? ""
    : ` in ${methods.map((method) => method.name).join(", ")}`;
  const scored = query.failed.some((failed, method) => failed && apOf(query, method) !== null);
  return `its extraction failed${where}${scored ? ": AP is 0" : ""}`;
}

function results(query) {
  const part = make("div", "strip");
  part.addEventListener("scroll", () => {
    if (query.waiting) return;
    query.waiting = true;
    requestAnimationFrame(() => {
      query.waiting = false;
      query.strips.forEach((strip) => showStrip(strip, 0));
    });
  }, {passive: true});
  for (const method of state.shown) part.append(methodRow(query, method, part));
  return part;
}

function methodRow(query, method, scroller) {
  const row = make("section", "method");
  row.setAttribute("aria-label", data.methods[method].name);
  const heading = make("h4");
  const title = make("span");
  const name = make("span", "name", data.methods[method].name);
  title.append(make("span", `swatch ${styleOf(method)}`), name);
  heading.append(title);
  data.protocols.forEach((protocol, p) => heading.append(apText(query, method, protocol, p)));
  row.append(heading);
  const hits = query.hits[method];
  if (!hits || !hits.images.length) {
    const why = !data.methods[method].lists ? "Its lists are not known."
      : query.failed[method] ? "No results: the query's extraction failed." : "No results.";
    row.append(make("p", "none", why));
    return row;
  }
  const places = [...hits.images.keys()].filter((i) => !(state.hideJunk && hits.labels[i] === "j"));
  const line = make("ol", "results");
  line.style.width = `${places.length * step()}px`;
  row.append(line);
  query.strips.push({query, method, places, line, scroller, from: 0, to: 0});
  return row;
}

function apText(query, method, protocol, p) {
  const text = make("span", p === state.protocol ? "ap chosen" : "ap");
  text.append(`${capital(protocol)} `, make("b", "", percent(query.ap[method][p])));
  const before = query.ap[state.against][p], after = query.ap[method][p];
  if (method !== state.against && before !== null && after !== null) {
    const change = after - before;
    const kind = Math.abs(change) <= SAME ? "" : change > 0 ? "up" : "down";
    text.append(" ", make("span", `change ${kind}`, points(change)));
  }
  return text;
}

/* Tiles of a strip that are seen, and one screen on either side; `least` at any rate. */
function showStrip(strip, least) {
  const wide = step(), view = strip.scroller.clientWidth || innerWidth;
  const margin = Math.min(view, 8 * wide);
  const from = Math.max(0, Math.floor((strip.scroller.scrollLeft - margin) / wide));
  const seen = Math.ceil((strip.scroller.scrollLeft + view + margin) / wide);
  const to = Math.min(strip.places.length, Math.max(seen, least));
  if (from === strip.from && to === strip.to) return;
  const kept = new Map([...strip.line.children].map((item) => [Number(item.dataset.at), item]));
  for (const [at, item] of kept) {
    if ((at < from || at >= to) && !item.contains(document.activeElement)) item.remove();
  }
  for (let at = from; at < to; at++) if (!kept.has(at)) strip.line.append(tile(strip, at, wide));
  strip.from = from;
  strip.to = to;
}

function tile(strip, at, wide) {
  const hits = strip.query.hits[strip.method], place = strip.places[at], image = hits.images[place];
  const [label, sign] = LABELS[hits.labels[place]], name = data.images.names[image];
  const item = make("li", label);
  item.dataset.at = at;
  item.style.left = `${at * wide}px`;
  item.setAttribute("aria-posinset", at + 1);
  item.setAttribute("aria-setsize", strip.places.length);
  const button = make("button", "hit");
  button.type = "button";
  button.tabIndex = at === 0 ? 0 : -1;
  button.title = name;
  button.dataset.method = strip.method;
  button.dataset.place = place;
  if (state.matches && state.matches.has(image)) button.classList.add("found");
  const kind = distractors.has(image) ? `${label}, distractor` : label;
  const value = hits.scores[place];
  button.setAttribute("aria-label", `Result ${place + 1}, ${kind}, ${scoreText(value)}: ${name}`);
  const frame = make("div", "frame");
  frame.append(picture(data.images.tiles[image], name, ""));
  const line = make("div", "line");
  line.append(make("span", "label", `${sign} ${label}`), make("span", "", place + 1));
  const text = make("div", "name", `${value === null ? "no score" : score(value)} ${name}`);
  button.append(frame, line, text);
  item.append(button);
  return item;
}
