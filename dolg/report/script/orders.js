/* The figures of a query, by which queries are ordered and filtered. */

const apOf = (query, method) => query.ap[method][state.protocol];

function changeOf(query) {
  const before = apOf(query, state.against), after = apOf(query, state.method);
  return before === null || after === null ? null : after - before;
}

/* Whether none of the first ten, those that the protocol leaves out aside, is right; by the places of
   the positives or, where they are not known, by the list. */
function findsNothing(query) {
  if (apOf(query, state.method) === null) return false;
  const places = query.ranks[state.method][state.protocol];
  if (places) return !places.length || places[0] >= FIRST;
  const hits = query.hits[state.method];
  if (!hits) return false;
  const protocol = data.protocols[state.protocol];
  const counted = [...hits.labels].filter((label) => !data.skipped[protocol].includes(label));
  return !counted.slice(0, FIRST).some((label) => data.positives[protocol].includes(label));
}

const FILTERS = {
  all: () => true,
  lost: (query) => changeOf(query) !== null && changeOf(query) < -SAME,
  gained: (query) => changeOf(query) !== null && changeOf(query) > SAME,
  nothing: findsNothing,
  failed: (query) => query.failed[state.method],
};

/* Numbers first, as `sign` says, then those that have none; equal ones as in the ground truth. */
function byNumber(value, sign) {
  return (a, b) => {
    const x = value(a), y = value(b);
    if (x === null || y === null) return (x === null) - (y === null) || a.index - b.index;
    return sign * (x - y) || a.index - b.index;
  };
}

const ORDERS = {
  worst: byNumber((query) => apOf(query, state.method), 1),
  best: byNumber((query) => apOf(query, state.method), -1),
  losses: byNumber(changeOf, 1),
  gains: byNumber(changeOf, -1),
  name: (a, b) => (a.name < b.name ? -1 : a.name > b.name ? 1 : a.index - b.index),
  given: (a, b) => a.index - b.index,
};

const lowered = data.images.names.map((name) => name.toLowerCase());

/* Images whose names hold the text, or null without one. */
function findImages() {
  if (!state.text) return null;
  const found = new Set();
  lowered.forEach((name, image) => { if (name.includes(state.text)) found.add(image); });
  return found;
}

function matchesText(query) {
  if (!state.text || query.name.toLowerCase().includes(state.text)) return true;
  return state.shown.some((method) =>
    query.hits[method] && query.hits[method].images.some((image) => state.matches.has(image)));
}
