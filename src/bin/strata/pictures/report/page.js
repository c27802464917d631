"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const byId = (id) => document.getElementById(id);

function make(tag, text, attributes) {
  const element = document.createElement(tag);
  if (text !== undefined && text !== null) element.textContent = text;
  for (const [name, value] of Object.entries(attributes || {})) element.setAttribute(name, value);
  return element;
}

function size(bytes) {
  const units = ["B", "kB", "MB", "GB", "TB", "PB"];
  let value = bytes, unit = 0;
  while (value >= 999.5 && unit + 1 < units.length) { value /= 1000; unit += 1; }
  const digits = unit === 0 || value >= 99.95 ? 0 : value >= 9.995 ? 1 : 2;
  return String(parseFloat(value.toFixed(digits))) + units[unit];
}

// Neighbouring layers get colours far from each other.
const colour = (layer) => `hsl(${Math.round((layer * 137.5 + 210) % 360)} var(--saturation) var(--light))`;

// Nodes: {name, bytes, layer, kind, children, parent}; `children` only of directories.
function build(document, parent) {
  const isDirectory = Array.isArray(document[2]);
  const node = { name: document[0], parent, kind: 0, bytes: 0, layer: 0, main: 0, children: null, count: 0 };
  if (!isDirectory) {
    [node.name, node.bytes, node.layer, node.kind] = document;
    node.count = 1;
    node.main = node.layer;
    return node;
  }
  node.layer = document[1];
  node.children = document[2].map((child) => build(child, node));
  for (const child of node.children) { node.bytes += child.bytes; node.count += child.count; }
  node.children.sort((a, b) => b.bytes - a.bytes || (a.name < b.name ? -1 : 1));
  // Drawn as one rectangle, a directory has the colour of the largest thing in it.
  node.main = node.children.length > 0 ? node.children[0].main : node.layer;
  return node;
}
const root = build(data.tree, null);

function path(node) {
  const names = [];
  for (let at = node; at.parent; at = at.parent) names.unshift(at.name);
  return "/" + names.join("/");
}

function table(id, heads, rows) {
  const target = byId(id);
  const head = make("tr");
  heads.forEach(([text, kind]) => head.append(make("th", text, kind ? { class: kind } : {})));
  const body = make("tbody");
  for (const cells of rows) {
    const row = make("tr");
    cells.forEach((cell, at) => {
      const td = make("td", null, heads[at][1] ? { class: heads[at][1] } : {});
      td.append(cell === null || cell === undefined ? "" : cell);
      row.append(td);
    });
    body.append(row);
  }
  const top = make("thead");
  top.append(head);
  target.replaceChildren(top, body);
}

function withColour(layer, text) {
  const cell = document.createDocumentFragment();
  const mark = make("i");
  mark.style.background = colour(layer);
  cell.append(mark, text);
  return cell;
}

function drawSummary() {
  byId("facts").textContent = [data.id, data.platform, data.created, data.names.join(", ")].filter(Boolean).join(" · ");
  const cards = [
    [size(data.bytes), "in all layers"],
    [size(data.bytes - data.wasted), "that a container sees"],
    [`${size(data.wasted)} (${data.wastedPercent.toFixed(1)}%)`, "wasted"],
    [String(data.layers.length), "layers"],
    [String(data.files), "files"],
  ];
  for (const [value, what] of cards) {
    const card = make("div");
    card.append(make("b", value), make("span", what));
    byId("summary").append(card);
  }
}

function drawLayers() {
  data.layers.forEach((layer, at) => {
    const part = make("span", null, { title: `${at + 1}: ${size(layer.bytes)}` });
    part.style.background = colour(at);
    part.style.flex = `${Math.max(layer.bytes, 1)} 1 0`;
    byId("bar").append(part);
  });
  const heads = [["Layer", ""], ["Size", "number"], ["Wasted", "number"], ["Added", "number"], ["Replaced", "number"], ["Deleted", "number"], ["Hides", "number"], ["Made by", "code"]];
  const rows = data.layers.map((layer, at) => [
    withColour(at, String(at + 1)), size(layer.bytes), layer.wasted ? size(layer.wasted) : "", String(layer.added),
    String(layer.replaced), String(layer.deleted), layer.hides ? size(layer.hides) : "", layer.command || layer.id,
  ]);
  table("layers", heads, rows.reverse());
}

// A squarified treemap: rows along the shorter side, each as long as its rectangles stay near squares.
function squarify(nodes, box, place) {
  const total = nodes.reduce((sum, node) => sum + node.bytes, 0);
  if (total <= 0) return;
  const scale = (box.width * box.height) / total;
  let { x, y, width, height } = box, at = 0;
  while (at < nodes.length && width > 0.5 && height > 0.5) {
    const side = Math.min(width, height);
    let end = at, sum = 0, worst = Infinity;
    while (end < nodes.length) {
      const next = sum + nodes[end].bytes * scale;
      const most = nodes[at].bytes * scale, least = nodes[end].bytes * scale;
      const ratio = Math.max((side * side * most) / (next * next), (next * next) / (side * side * Math.max(least, 1e-9)));
      if (ratio > worst) break;
      worst = ratio; sum = next; end += 1;
    }
    const thick = sum / side;
    let along = 0;
    for (let i = at; i < end; i += 1) {
      const long = (nodes[i].bytes * scale) / thick;
      place(nodes[i], width >= height
        ? { x, y: y + along, width: thick, height: long }
        : { x: x + along, y, width: long, height: thick });
      along += long;
    }
    if (width >= height) { x += thick; width -= thick; } else { y += thick; height -= thick; }
    at = end;
  }
}

let here = root;

function drawTreemap() {
  const target = byId("treemap");
  target.replaceChildren();
  const crumbs = [];
  for (let at = here; at; at = at.parent) crumbs.unshift(at);
  byId("crumbs").replaceChildren(...crumbs.flatMap((node, at) => {
    const link = make("a", at === 0 ? "/" : node.name, { href: "#", role: "button" });
    link.addEventListener("click", (event) => { event.preventDefault(); here = node; drawTreemap(); });
    return at < 2 ? [link] : [" / ", link];
  }), `  ${size(here.bytes)}, ${here.count} files`);
  const box = { x: 0, y: 0, width: target.clientWidth, height: target.clientHeight };
  squarify((here.children || []).filter((node) => node.bytes > 0), box, (node, place) => draw(target, node, place, 4));
}

function draw(target, node, box, levels) {
  if (box.width < 3 || box.height < 3) return;
  const tile = make("div", box.width > 34 && box.height > 15 ? `${node.name}${node.children ? "/" : ""} ${size(node.bytes)}` : "",
    { title: `${path(node)}\n${size(node.bytes)}, layer ${node.layer + 1}` });
  Object.assign(tile.style, { left: `${box.x}px`, top: `${box.y}px`, width: `${box.width}px`, height: `${box.height}px`, background: colour(node.main) });
  target.append(tile);
  if (!node.children) return;
  tile.className = "dir";
  tile.tabIndex = 0;
  const enter = (event) => { event.stopPropagation(); here = node; drawTreemap(); };
  tile.addEventListener("click", enter);
  tile.addEventListener("keydown", (event) => { if (event.key === "Enter") enter(event); });
  if (levels > 1 && box.width > 60 && box.height > 50) {
    tile.style.background = "";
    const inner = { x: 3, y: 17, width: box.width - 8, height: box.height - 22 };
    squarify(node.children.filter((child) => child.bytes > 0), inner, (child, place) => draw(tile, child, place, levels - 1));
  }
}

function drawWaste() {
  const listed = data.waste.length;
  byId("wasted-summary").textContent = data.wastedFiles === 0
    ? "Nothing: no layer hides bytes of another one."
    : `${data.wastedFiles} files that are in a layer and that a later layer deletes or replaces${listed < data.wastedFiles ? `; the largest ${listed} are listed` : ""}.`;
  if (listed === 0) return;
  const heads = [["Size", "number"], ["In layer", ""], ["How", ""], ["Path", "code"]];
  table("waste", heads, data.waste.map(([name, bytes, layer, by, deleted]) =>
    [size(bytes), withColour(layer, String(layer + 1)), `${deleted ? "deleted" : "replaced"} by ${by + 1}`, name]));
}

const KINDS = ["", " (symbolic link)", " (special file)"];

function line(node, tag) {
  const element = make(tag, null, {});
  element.append(make("b", `${size(node.bytes)}  layer ${node.layer + 1}`), node.name + (node.children ? "/" : KINDS[node.kind]));
  return element;
}

// Directories are filled when they are opened first.
function drawDirectory(target, node) {
  for (const child of node.children) {
    if (!child.children) { target.append(line(child, "p")); continue; }
    const details = make("details");
    details.append(line(child, "summary"));
    details.addEventListener("toggle", () => {
      if (details.open && details.childElementCount === 1) drawDirectory(details, child);
    });
    target.append(details);
  }
}

const FOUND_LIMIT = 500;

function search() {
  const words = byId("search").value.toLowerCase().split(/\s+/).filter(Boolean);
  const target = byId("files");
  target.replaceChildren();
  byId("found").textContent = "";
  if (words.length === 0) { drawDirectory(target, root); return; }
  let found = 0;
  const visit = (node, above) => {
    for (const child of node.children) {
      const name = `${above}/${child.name}`;
      const text = name.toLowerCase();
      if (words.every((word) => text.includes(word))) {
        found += 1;
        if (found <= FOUND_LIMIT) target.append(line({ ...child, name }, "p"));
      }
      if (child.children) visit(child, name);
    }
  };
  visit(root, "");
  byId("found").textContent = `${found} found${found > FOUND_LIMIT ? `, the first ${FOUND_LIMIT} are shown` : ""}`;
}

function drawHistory() {
  let layer = 0;
  const rows = data.history.map((step) => {
    const number = step.empty ? null : layer++;
    const bytes = number === null || !data.layers[number] ? "" : size(data.layers[number].bytes);
    return [number === null ? "" : withColour(number, String(number + 1)), bytes, step.created || "", step.by || "", step.comment || ""];
  });
  table("history", [["Layer", ""], ["Size", "number"], ["Created", ""], ["Created by", "code"], ["Comment", ""]], rows.reverse());
}

byId("theme").addEventListener("click", () => {
  const dark = document.documentElement.dataset.theme
    ? document.documentElement.dataset.theme === "dark"
    : matchMedia("(prefers-color-scheme: dark)").matches;
  document.documentElement.dataset.theme = dark ? "light" : "dark";
});
byId("search").addEventListener("input", search);
addEventListener("resize", drawTreemap);
byId("config").textContent = JSON.stringify(data.config, null, 2);
drawSummary();
drawLayers();
drawTreemap();
drawWaste();
search();
drawHistory();
document.documentElement.dataset.ready = "true";
