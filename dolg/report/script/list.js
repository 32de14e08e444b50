/* The list of queries, and what the tools above it ask for. */

const AHEAD = 900;      // pixels beyond the window that are rendered already
let visible = [];
const watcher = new IntersectionObserver((entries) => {
  for (const entry of entries) {
    const query = queryOf(entry.target);
    if (entry.isIntersecting) fill(query);
    else if (query.filled && !query.element.contains(document.activeElement)) {
      const height = query.element.offsetHeight;
      empty(query);
      if (height) query.element.style.minHeight = `${height}px`;
    }
  }
}, {rootMargin: `${AHEAD}px 0px`});

function update() {
  watcher.disconnect();
  state.matches = findImages();
  visible = data.queries.filter((query) => FILTERS[state.filter](query) && matchesText(query));
  visible.sort(ORDERS[state.order]);
  data.queries.forEach(empty);
  list.replaceChildren(...visible.map((query) => query.element));
  for (const query of visible) {      // at once, lest the page be empty until the next frame
    const box = query.element.getBoundingClientRect();
    if (box.top > innerHeight + AHEAD) break;
    if (box.bottom > -AHEAD) fill(query);
  }
  visible.forEach((query) => watcher.observe(query.element));
  $("status").textContent = statusText();
}

function statusText() {
  const all = data.queries.length;
  const shown = visible.length === all ? counted(all) : `${visible.length} of ${counted(all)}`;
  if (state.method === state.against) return shown;
  const changes = data.queries.map(changeOf).filter((change) => change !== null);
  if (!changes.length) return shown;
  const mean = changes.reduce((sum, change) => sum + change, 0) / changes.length;
  const gained = changes.filter((change) => change > SAME).length;
  const lost = changes.filter((change) => change < -SAME).length;
  const same = changes.length - gained - lost;
  return `${shown}. ${data.methods[state.method].name} against ${data.methods[state.against].name}: `
    + `${points(mean)} points, ${gained} gained, ${lost} lost, ${same} the same`;
}

function readState() {
  state.text = $("search").value.trim().toLowerCase();
  state.protocol = Number($("protocol").value);
  state.method = Number($("method").value);
  state.against = $("against") ? Number($("against").value) : state.method;
  state.order = $("order").value;
  state.filter = $("filter").value;
  state.hideJunk = $("junk").checked;
  const boxes = [...document.getElementsByName("shown")];
  state.shown = boxes.length ? boxes.filter((box) => box.checked).map((box) => Number(box.value)) : [0];
}

/* The tools stay in view: what is scrolled to must not be behind them. */
function makeRoom() {
  const tools = document.querySelector(".tools");
  const room = getComputedStyle(tools).position === "sticky" ? tools.offsetHeight : 0;
  document.documentElement.style.scrollPaddingTop = `${room + 10}px`;
}

function changed() {
  readState();
  update();
}
