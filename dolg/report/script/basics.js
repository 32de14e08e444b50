/* The data of the page, and how elements and figures are made of it. All files of this folder are one
   script, in the order that page.py gives; names of images are set as text, never as markup. */

const data = JSON.parse(document.getElementById("data").textContent);
const list = document.getElementById("list");
if (!list) return;

const LABELS = {e: ["easy", "\u2713"], h: ["hard", "\u2713\u2713"], o: ["ok", "\u2713"],
                j: ["junk", "\u25cb"], n: ["negative", "\u2715"]};
const SAME = 1e-6;
const FIRST = 10;
const distractors = new Set(data.images.distractors);
const $ = (id) => document.getElementById(id);
const state = {text: "", protocol: 0, method: 0, against: 0, order: "worst", filter: "all",
               hideJunk: false, shown: [], matches: null};

function make(tag, className, text) {
  const element = document.createElement(tag);
  if (className) element.className = className;
  if (text !== undefined) element.textContent = text;
  return element;
}

function svg(tag, attributes) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  return element;
}

const percent = (value) => value === null ? "\u2013" : (100 * value).toFixed(1);

function points(change) {
  const text = (100 * Math.abs(change)).toFixed(1);
  return Number(text) === 0 ? "\u00b10.0" : (change > 0 ? "+" : "\u2212") + text;
}

const score = (value) => Math.abs(value) < 100 ? value.toFixed(3) : value.toFixed(1);
const scoreText = (value) => value === null ? "no score" : `score ${score(value)}`;
const counted = (count) => count === 1 ? "1 query" : `${count} queries`;
const styleOf = (method) => `colour-${method % 7} dash-${Math.floor(method / 7) % 3}`;
const capital = (word) => word.slice(0, 1).toUpperCase() + word.slice(1);
