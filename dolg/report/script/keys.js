/* The keyboard. */

let current = null;     // the query that j and k move from

function goTo(query) {
  if (!query) return;
  current = query;
  fill(query);
  query.element.scrollIntoView({block: "start", behavior: "instant"});
  query.element.focus({preventScroll: true});
}

function goBy(by) {
  const at = visible.indexOf(current);
  goTo(at < 0 ? visible[by > 0 ? 0 : visible.length - 1] : visible[at + by]);
}

function focusHit(query, method, at) {
  fill(query);
  const strip = query.strips.find((one) => one.method === method);
  if (!strip || at < 0 || at >= strip.places.length) return false;
  const wide = step(), left = at * wide, box = strip.scroller;
  if (left < box.scrollLeft) box.scrollLeft = left;
  if (left + wide > box.scrollLeft + box.clientWidth) box.scrollLeft = left + wide - box.clientWidth;
  showStrip(strip, 0);
  const item = [...strip.line.children].find((one) => Number(one.dataset.at) === at);
  item.firstChild.focus({preventScroll: true});
  item.scrollIntoView({block: "nearest", inline: "nearest", behavior: "instant"});
  return true;
}

function hitOf(button) {
  const query = queryOf(button), method = Number(button.dataset.method);
  return {query, method, at: placesOf(query, method).indexOf(Number(button.dataset.place))};
}

function moveHit(by) {
  const hit = document.activeElement.closest(".hit");
  if (hit) {
    const {query, method, at} = hitOf(hit);
    return focusHit(query, method, at + by) || true;
  }
  if (!document.activeElement.closest(".query")) return false;
  const query = queryOf(document.activeElement);
  return query.strips.length > 0 && focusHit(query, query.strips[0].method, 0);
}

/* Down and up: the next method's strip, past the last the next query. */
function moveDown(by) {
  if (!document.activeElement.closest(".query")) return false;
  const hit = document.activeElement.closest(".hit");
  if (hit) {
    const {query, method, at} = hitOf(hit);
    const methods = query.strips.map((strip) => strip.method);
    const next = methods[methods.indexOf(method) + by];
    if (next !== undefined) return focusHit(query, next, Math.min(at, placesOf(query, next).length - 1));
  }
  current = queryOf(document.activeElement);
  goBy(by);
  return true;
}

function openCurrent() {
  const hit = document.activeElement.closest(".hit");
  if (hit) {
    const {query, method, at} = hitOf(hit);
    view(query, method, at);
    return true;
  }
  const article = document.activeElement.closest(".query");
  if (!article || document.activeElement !== article) return false;
  const query = queryOf(article);
  if (query.strips.length) view(query, query.strips[0].method, 0);
  return true;
}

const KEYS = {
  "/": () => { $("search").focus(); $("search").select(); return true; },
  "?": () => { $("keys").showModal(); return true; },
  j: () => { goBy(1); return true; },
  k: () => { goBy(-1); return true; },
  o: openCurrent,
  Enter: openCurrent,
  ArrowRight: () => moveHit(1),
  ArrowLeft: () => moveHit(-1),
  ArrowDown: () => moveDown(1),
  ArrowUp: () => moveDown(-1),
};
const VIEWER_KEYS = {
  ArrowRight: () => turn(1), ArrowLeft: () => turn(-1),
  ArrowDown: () => turnMethod(1), ArrowUp: () => turnMethod(-1),
};

function onKey(event) {
  if (event.ctrlKey || event.altKey || event.metaKey) return;
  if (viewer.open) {
    if (VIEWER_KEYS[event.key]) { VIEWER_KEYS[event.key](); event.preventDefault(); }
    return;
  }
  if ($("keys").open) return;
  if (event.target.closest("input, select, textarea")) {
    if (event.key === "Escape") {
      event.target.blur();
      if (event.target.value && event.target === $("search")) {
        event.target.value = "";
        changed();
      }
    }
    return;
  }
  if (Object.hasOwn(KEYS, event.key) && KEYS[event.key]()) event.preventDefault();
}
