/* Precision by recall of one query, drawn when it is asked for. */

function curve(query) {
  const details = make("details");
  details.append(make("summary", "", "Precision and recall"));
  details.addEventListener("toggle", () => {
    while (details.children.length > 1) details.lastChild.remove();
    if (details.open) details.append(curveChart(query));
  });
  return details;
}

/* Whether a method has found a positive, and says where. */
function hasCurve(query, method) {
  const places = query.ranks[method][state.protocol];
  return Boolean(places && places.length && apOf(query, method));
}

function curveChart(query) {
  const W = 200, H = 160, left = 28, low = 132, wide = 164, high = 124;
  const chart = svg("svg", {viewBox: `0 0 ${W} ${H}`, class: "chart", role: "img", "aria-label":
    `Precision by recall of ${query.name}, ${data.protocols[state.protocol]}`});
  for (const tick of [0, 0.5, 1]) {
    const y = low - high * tick, x = left + wide * tick;
    chart.append(svg("line", {class: "grid", x1: left, x2: left + wide, y1: y, y2: y}));
    for (const [cls, tx, ty] of [["end", left - 4, y + 4], ["middle", x, low + 13]]) {
      const text = svg("text", {class: cls, x: tx, y: ty});
      text.textContent = 100 * tick;
      chart.append(text);
    }
  }
  const text = svg("text", {class: "middle", x: left + wide / 2, y: H - 3});
  text.textContent = `recall, % (${capital(data.protocols[state.protocol])})`;
  chart.append(text);
  for (const method of state.shown) {
    if (!hasCurve(query, method)) continue;
    const places = query.ranks[method][state.protocol], ap = apOf(query, method);
    const line = interpolated(places, ap).map(([recall, precision]) =>
      `${(left + wide * recall).toFixed(1)},${(low - high * precision).toFixed(1)}`);
    chart.append(svg("polyline", {class: `series ${styleOf(method)}`, points: line.join(" ")}));
  }
  return chart;
}

/* Corners of the interpolated curve; positives that were never ranked follow from the AP. */
function interpolated(places, ap) {
  let sum = 0;
  places.forEach((place, i) => { sum += ((place ? i / place : 1) + (i + 1) / (place + 1)) / 2; });
  const positives = Math.max(places.length, Math.round(sum / ap));
  const best = places.map((place, i) => (i + 1) / (place + 1));
  for (let i = best.length - 2; i >= 0; i--) best[i] = Math.max(best[i], best[i + 1]);
  const corners = best.flatMap((precision, i) =>
    [[i / positives, precision], [(i + 1) / positives, precision]]);
  return places.length < positives ? [...corners, [places.length / positives, 0], [1, 0]] : corners;
}
