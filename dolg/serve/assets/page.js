"use strict";
const $ = id => document.getElementById(id);
const CORNERS = ["x1", "y1", "x2", "y2"];
const TITLES = {rrt: "rrt: a transformer", spatial: "spatial: matching points", asmk: "asmk: visual words",
                superglobal: "superglobal: refined by neighbours", aqe: "aqe: averaged query",
                alpha: "alpha: weighted query", kreciprocal: "kreciprocal: mutual neighbours",
                diffusion: "diffusion: paths between images"};
let limits = {bytes: Infinity, kinds: []}, file = null, address = "", running = null, results = [], shown = 0;

function make(tag, text, kind) {
  const element = document.createElement(tag);
  if (text !== undefined) element.textContent = text;
  if (kind) element.className = kind;
  return element;
}

function fail(message) {
  $("error").textContent = message;
  $("error").hidden = !message;
  if (message) $("error").scrollIntoView({block: "nearest"});
}

const box = makeBox($("stage"), $("box"), corners => {
  CORNERS.forEach((id, at) => { if (document.activeElement !== $(id)) $(id).value = corners ? corners[at] : ""; });
  $("whole").disabled = !corners;
  $("add").disabled = Boolean(corners);
});

// ---- the photo

async function take(chosen) {
  if (!chosen) return;
  fail("");
  if (chosen.size > limits.bytes) {
    return fail(`${chosen.name} has ${(chosen.size / 1e6).toFixed(1)} MB, and ${(limits.bytes / 1e6).toFixed(0)} MB are the most.`);
  }
  const fresh = URL.createObjectURL(chosen), trial = new Image();
  trial.src = fresh;
  try {
    await trial.decode();
  } catch {
    URL.revokeObjectURL(fresh);
    return fail(`${chosen.name || "This"} is no photo that can be shown here: choose ${limits.kinds.join(", ")}.`);
  }
  if (running) running.abort();
  URL.revokeObjectURL(address);
  [file, address] = [chosen, fresh];
  $("photo").src = fresh;
  $("name").textContent = chosen.name || "Pasted photo";
  $("name").title = `${trial.naturalWidth} x ${trial.naturalHeight} pixels`;
  $("stage").style.setProperty("--shape", trial.naturalWidth / trial.naturalHeight);
  box.reset(trial.naturalWidth, trial.naturalHeight);
  ["x1", "x2"].forEach(id => { $(id).max = trial.naturalWidth; });
  ["y1", "y2"].forEach(id => { $(id).max = trial.naturalHeight; });
  $("invitation").hidden = true;
  $("stage").hidden = $("tools").hidden = false;
  $("search").disabled = false;
}

$("file").addEventListener("change", () => { take($("file").files[0]); $("file").value = ""; });
document.addEventListener("paste", event => {
  const pasted = [...event.clipboardData.files].find(one => one.type.startsWith("image/"));
  if (pasted) { event.preventDefault(); take(pasted); }
});
document.addEventListener("dragover", event => { event.preventDefault(); document.body.classList.add("over"); });
document.addEventListener("dragleave", event => { if (!event.relatedTarget) document.body.classList.remove("over"); });
document.addEventListener("drop", event => {
  event.preventDefault();
  document.body.classList.remove("over");
  if (event.dataTransfer.files.length) take(event.dataTransfer.files[0]);
});

// ---- the box in numbers

CORNERS.forEach(id => $(id).addEventListener("change", () => {
  const values = CORNERS.map(each => $(each).value);
  if (values.every(value => value !== "")) box.set(values.map(Number));
}));
$("whole").addEventListener("click", () => { box.clear(); $("add").focus(); });
$("add").addEventListener("click", () => {
  const [width, height] = [Number($("x1").max), Number($("y1").max)];
  box.set([width / 4, height / 4, width * 3 / 4, height * 3 / 4]);
  $("box").focus();
});
$("tools").addEventListener("keydown", event => {
  if (event.key === "Enter" && event.target.matches("input")) { event.target.blur(); ask(); }
});
$("box").addEventListener("keydown", event => { if (event.key === "Enter") { event.preventDefault(); ask(); } });

// ---- asking

async function answer(response) {
  let content = {};
  try { content = await response.json(); } catch { /* what is not from the application is no JSON */ }
  if (response.ok) return content;
  const wait = response.headers.get("Retry-After");
  throw new Error(content.error || `the server answers ${response.status} ${response.statusText}`
                  + (wait ? `: try again in ${wait} seconds` : ""));
}

async function ask() {
  if (!file || !$("form").reportValidity()) return;
  if (running) running.abort();
  const mine = running = new AbortController();
  const wanted = new URLSearchParams({top: $("top").value, reranker: $("reranker").value});
  if (box.get()) wanted.set("box", box.get().join(","));
  fail("");
  document.body.classList.add("waiting");
  $("status").textContent = "Searching ...";
  try {
    const found = await answer(await fetch(`/api/search?${wanted}`, {
      method: "POST", body: file, signal: mine.signal, headers: {"Content-Type": "application/octet-stream"}}));
    show(found);
  } catch (error) {
    if (mine.signal.aborted) return;
    $("status").textContent = "";
    fail(error instanceof TypeError ? "The server cannot be reached: is it still running?" : error.message);
  } finally {
    if (running === mine) { running = null; document.body.classList.remove("waiting"); }
  }
}
$("form").addEventListener("submit", event => { event.preventDefault(); ask(); });

// ---- what was found

function show(found) {
  results = found.results;
  const [x1, y1, x2, y2] = found.region, whole = x2 - x1 === found.size[0] && y2 - y1 === found.size[1];
  const parts = [`${results.length} results for ${whole ? "all of the photo" : `the box of ${x2 - x1} x ${y2 - y1} pixels`}`];
  if (found.described_at) parts.push(`seen at ${found.described_at.join(" x ")} pixels`);
  if (found.reranker) parts.push(`the first ${found.reranked} reordered by ${found.reranker}`);
  if (found.reranker && results.some(result => !result.reranked)) parts.push("behind them the scores are the search's");
  $("status").textContent = parts.join(", ");
  $("empty").hidden = true;
  showTimes(found.seconds);
  $("results").replaceChildren(...results.map((result, at) => card(result, at, Boolean(found.reranker))));
  if (matchMedia("(max-width: 860px)").matches) $("found").scrollIntoView({block: "start"});
}

const milliseconds = seconds => seconds < .01 ? `${(1000 * seconds).toFixed(1)} ms` : `${Math.round(1000 * seconds)} ms`;

function showTimes(seconds) {
  const steps = Object.entries(seconds), total = steps.reduce((sum, [, time]) => sum + time, 0);
  $("bar").replaceChildren(...steps.map(([step, time]) => {
    const part = make("span", "", `step-${step}`);
    part.style.flex = `${Math.max(time / total, .001)} 0 0`;
    return part;
  }));
  $("times").querySelector("dl").replaceChildren(...[...steps, ["total", total]].map(([step, time]) => {
    const entry = make("div");
    entry.append(make("dt", step, `step-${step}`), make("dd", milliseconds(time)));
    return entry;
  }));
  $("times").hidden = false;
}

function card(result, at, reranked) {
  const item = make("li"), open = make("button", undefined, "open"), text = make("div", undefined, "text");
  const line = make("div", undefined, "line"), score = result.score === null ? "no score" : result.score.toFixed(4);
  open.type = "button";
  if (result.image) {
    const image = make("img");
    image.alt = result.name;
    image.loading = "lazy";
    image.src = result.image;
    image.addEventListener("error", () => { open.replaceChildren(make("span", "no image", "none")); open.disabled = true; });
    open.setAttribute("aria-label", `Place ${result.place}, ${result.name}: open it large`);
    open.append(image);
    open.addEventListener("click", () => enlarge(at));
  } else {
    open.append(make("span", "no image", "none"));
    open.disabled = true;
  }
  line.append(make("span", result.place, "place"), 
    result.reranked || !reranked ? make("span", score, "score") : make("span", `search ${score}`, "score searched"));
  if (reranked && result.found_at !== result.place) {
    const up = result.found_at > result.place, moved = make("span", `${up ? "▲" : "▼"} was ${result.found_at}`, "moved");
    moved.title = `the search alone had it at place ${result.found_at}, similarity ${result.similarity.toFixed(4)}`;
    line.append(moved);
  }
  text.append(line, make("span", result.name, "name"));
  item.append(open, text);
  return item;
}

function enlarge(at) {
  shown = at;
  const result = results[at];
  $("view").src = `${result.image}&size=large`;
  $("view").alt = result.name;
  $("caption").textContent = `${result.place}. ${result.name}`;
  if (!$("large").open) $("large").showModal();
}

function go(step) {
  for (let at = shown + step; at >= 0 && at < results.length; at += step) if (results[at].image) return enlarge(at);
}
$("before").addEventListener("click", () => go(-1));
$("after").addEventListener("click", () => go(1));
$("close").addEventListener("click", () => $("large").close());
$("large").addEventListener("click", event => { if (event.target === $("large")) $("large").close(); });
$("large").addEventListener("keydown", event => {
  if (event.key === "ArrowLeft") go(-1);
  if (event.key === "ArrowRight") go(1);
});
$("large").addEventListener("close", () => {
  const opened = $("results").querySelectorAll(".open")[shown];
  if (opened) opened.focus();
});

// ---- the page itself

function paint(dark) {
  document.documentElement.dataset.theme = dark ? "dark" : "light";
  $("theme").setAttribute("aria-pressed", String(dark));
  $("theme").textContent = dark ? "Light" : "Dark";
}
$("theme").addEventListener("click", () => paint($("theme").getAttribute("aria-pressed") !== "true"));

async function begin() {
  paint(matchMedia("(prefers-color-scheme: dark)").matches);
  try {
    const about = await answer(await fetch("/api/about"));
    limits = about.limits;
    $("about").textContent = `${about.images.toLocaleString("en")} images of ${about.database.join(", ")}; ${about.model}, `
      + `${about.dimensions} dimensions, on the ${about.device.toUpperCase()}`;
    $("kinds").textContent = `${limits.kinds.join(", ")}; at most ${(limits.bytes / 1e6).toFixed(0)} MB; it stays on this machine`;
    $("top").max = limits.results;
    for (const {name, missing} of about.rerankers) {
      const option = make("option", missing ? `${name} (not here)` : TITLES[name] || name);
      option.value = name;
      option.disabled = Boolean(missing);
      $("reranker").append(option);
      if (missing) $("missing").querySelector("dl").append(make("dt", name), make("dd", missing));
    }
    const lacking = about.rerankers.filter(one => one.missing).length;
    $("missing").hidden = !lacking;
    $("missing").querySelector("summary").textContent = `Why ${lacking} of ${about.rerankers.length} rerankers are not here`;
  } catch (error) {
    fail(`The server cannot be reached: ${error.message}`);
  }
}
begin();
