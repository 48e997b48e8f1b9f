"use strict";
// All text goes in as text: names come from configurations and from the network.

const SVG = "http://www.w3.org/2000/svg";
const SPANS = { quarter: ["seconds", 900], day: ["minutes", 1440] };
const HISTORY_EVERY = 5;  // it is long: not with each refresh
let span = "quarter";
let history = {};
let cards = new Map();
let turns = 0;

const byId = (id) => document.getElementById(id);

function make(tag, text = "", className = "") {
  const element = document.createElement(tag);
  element.textContent = text;
  element.className = className;
  return element;
}

function scaled(value, step, units) {
  let unit = 0;
  while (value >= step && unit < units.length - 1) { value /= step; unit += 1; }
  return `${value >= 100 || unit === 0 ? Math.round(value) : value.toFixed(1)} ${units[unit]}`;
}

const rate = (bytes) => scaled(bytes * 8, 1000, ["bit/s", "kbit/s", "Mbit/s", "Gbit/s"]);
const size = (bytes) => scaled(bytes, 1000, ["B", "kB", "MB", "GB", "TB"]);

function path(points, which, most, length) {
  const first = length - points.length;
  return points.map((point, index) => {
    const y = 100 - 98 * point[which] / most;
    return `${index ? "L" : "M"}${first + index} ${y.toFixed(1)}`;
  }).join("");
}

function card(name) {
  const root = make("article");
  const part = { root, state: make("p"), down: make("span", "", "down"), up: make("span", "", "up"),
                 detail: make("p"), most: make("span"), since: make("span") };
  const rates = make("div", "", "rates");
  rates.append(part.down, part.up);
  const svg = document.createElementNS(SVG, "svg");
  svg.setAttribute("preserveAspectRatio", "none");
  svg.setAttribute("role", "img");
  svg.setAttribute("aria-label", `Rate of ${name}`);
  part.svg = svg;
  part.paths = ["down", "up"].map((direction) => {
    const line = document.createElementNS(SVG, "path");
    line.setAttribute("class", direction);
    svg.append(line);
    return line;
  });
  const scale = make("div", "", "scale");
  scale.append(part.since, part.most);
  root.append(make("h3", name), part.state, rates, part.detail, svg, scale);
  return part;
}

function draw(name, part) {
  const [kind, length] = SPANS[span];
  const points = history[name] ? history[name][kind] : [];
  const most = Math.max(1, ...points.map((point) => Math.max(point[0], point[1])));
  part.svg.setAttribute("viewBox", `0 0 ${length - 1} 100`);
  part.paths.forEach((line, which) => line.setAttribute("d", path(points, which, most, length)));
  part.most.textContent = points.length ? `up to ${rate(most)}` : "no history yet";
  part.since.textContent = span === "quarter" ? "15 minutes ago" : "24 hours ago";
}

function showLines(lines) {
  const names = lines.map((line) => line.name);
  if (names.join("\n") !== [...cards.keys()].join("\n")) {
    cards = new Map(names.map((name) => [name, card(name)]));
    byId("lines").replaceChildren(...[...cards.values()].map((part) => part.root));
  }
  for (const line of lines) {
    const part = cards.get(line.name);
    part.state.textContent = line.state;
    part.state.className = line.good ? "" : "bad";
    part.down.textContent = `↓ ${rate(line.down)}`;
    part.up.textContent = `↑ ${rate(line.up)}`;
    const details = [];
    if (line.rtt) details.push(`round trip ${(line.rtt * 1000).toFixed(0)} ms`);
    if (line.subflows !== undefined) details.push(line.subflows === 1 ? "1 subflow" : `${line.subflows} subflows`);
    if (line.received !== undefined) details.push(`${size(line.received)} down, ${size(line.sent)} up so far`);
    part.detail.textContent = details.join(" · ");
    draw(line.name, part);
  }
}

function show(status) {
  byId("role").textContent = status.role;
  byId("version").textContent = `Version ${status.version}`;
  byId("health").replaceChildren(
    ...status.health.map((line) => make("li", line.text, line.good ? "" : "bad")));
  showLines(status.lines);
  byId("who").replaceChildren(...status.who.map((who) => {
    const row = make("tr");
    const name = make("th", who.name);
    name.scope = "row";
    row.append(name, make("td", String(who.open)), make("td", size(who.received)), make("td", size(who.sent)));
    return row;
  }));
  byId("quiet").hidden = status.events.length > 0;
  byId("events").replaceChildren(...status.events.map((event) => {
    const item = make("li");
    const when = new Date(event.time * 1000);
    const time = make("time", when.toLocaleString());
    time.dateTime = when.toISOString();
    item.append(time, event.text);
    return item;
  }));
}

async function ask(what) {
  const answer = await fetch(what, { cache: "no-store", signal: AbortSignal.timeout(8000) });
  if (!answer.ok) throw new Error(`${what}: ${answer.status}`);
  return answer.json();
}

async function refresh() {
  if (!document.hidden) {
    try {
      if (turns % HISTORY_EVERY === 0) history = await ask("/history.json");
      turns += 1;
      const status = await ask("/status.json");
      if (status.role) show(status);
      byId("stale").hidden = true;
    } catch {
      turns = 0;
      byId("stale").hidden = false;
    }
  }
  setTimeout(refresh, 2000);
}

for (const choice of Object.keys(SPANS)) {
  byId(choice).addEventListener("click", () => {
    span = choice;
    for (const other of Object.keys(SPANS)) byId(other).setAttribute("aria-pressed", String(other === span));
    cards.forEach((part, name) => draw(name, part));
  });
}
refresh();
