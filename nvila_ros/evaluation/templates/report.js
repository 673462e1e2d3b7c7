// SPDX-License-Identifier: Apache-2.0
"use strict";
const constants = JSON.parse(document.getElementById("constants").textContent);
const list = document.getElementById("episodes");
const runNames = JSON.parse(list.dataset.runs);
const SVG = "http://www.w3.org/2000/svg";

function element(name, attributes, text) {
  const made = document.createElement(name);
  for (const key in attributes || {}) made.setAttribute(key, attributes[key]);
  if (text !== undefined) made.textContent = text;
  return made;
}

function shape(parent, name, attributes, text) {
  const made = document.createElementNS(SVG, name);
  for (const key in attributes) made.setAttribute(key, attributes[key]);
  if (text !== undefined) made.textContent = text;
  parent.appendChild(made);
  return made;
}

// Metres with y up become picture units with y down.
const points = (rows) => rows.map((row) => `${row[0]},${-row[1]}`).join(" ");

function extent(runs) {
  if (runs[0].plan) return [0, -runs[0].plan.size[1], ...runs[0].plan.size];
  const all = runs.flatMap((run) => [...run.driven, ...run.reference, run.goal]);
  const xs = all.map((row) => row[0]), ys = all.map((row) => -row[1]);
  const left = Math.min(...xs) - 1, top = Math.min(...ys) - 1;
  return [left, top, Math.max(...xs) + 1 - left, Math.max(...ys) + 1 - top];
}

function drawPlan(svg, plan) {
  shape(svg, "rect", { x: 0, y: -plan.size[1], width: plan.size[0], height: plan.size[1], fill: "var(--floor)" });
  for (const [outline, colour, category, solid] of plan.pieces) {
    const piece = shape(svg, "polygon", { points: points(outline), fill: constants.colours[colour], opacity: solid ? 0.75 : 0.25, stroke: "#8888", "stroke-width": 0.02 });
    shape(piece, "title", {}, `${colour} ${category}`);
  }
  for (const wall of plan.walls) shape(svg, "polygon", { points: points(wall), fill: "var(--wall)" });
  for (const [outline, colour] of plan.doors) {
    const door = shape(svg, "polygon", { points: points(outline), fill: constants.colours[colour] });
    shape(door, "title", {}, `${colour} door`);
  }
  for (const [centre, kind] of plan.rooms) shape(svg, "text", { x: centre[0], y: -centre[1], "font-size": 0.26, fill: "var(--faint)", "text-anchor": "middle", stroke: "var(--floor)", "stroke-width": 0.08, "paint-order": "stroke" }, kind);
  for (const [outline, , category, solid] of plan.pieces) {
    if (!solid) continue;
    const x = outline.reduce((sum, row) => sum + row[0], 0) / 4, y = outline.reduce((sum, row) => sum + row[1], 0) / 4;
    shape(svg, "text", { x: x, y: -y + 0.05, "font-size": 0.15, fill: "var(--ink)", "text-anchor": "middle", stroke: "var(--floor)", "stroke-width": 0.05, "paint-order": "stroke" }, category);
  }
}

function drawPaths(svg, runs, radius_m) {
  const goal = runs[0].goal;
  shape(svg, "circle", { cx: goal[0], cy: -goal[1], r: radius_m, fill: "none", stroke: "var(--good)", "stroke-width": 0.03, "stroke-dasharray": "0.12 0.08" });
  shape(svg, "polyline", { points: points(runs[0].reference), fill: "none", stroke: "var(--oracle)", "stroke-width": 0.06, "stroke-dasharray": "0.16 0.1", "stroke-linejoin": "round" });
  const markers = runs.map((run, number) => {
    const colour = `var(--run${number})`;
    shape(svg, "polyline", { points: points(run.driven), fill: "none", stroke: colour, "stroke-width": 0.07, "stroke-linejoin": "round", "stroke-linecap": "round" });
    const end = run.driven[run.driven.length - 1];
    shape(svg, "circle", { cx: end[0], cy: -end[1], r: 0.12, fill: colour, stroke: "var(--floor)", "stroke-width": 0.03 });
    for (const row of run.decisions) {
      if (row[4] === null) continue;
      const at = run.driven[row[4]];
      shape(svg, "circle", { cx: at[0], cy: -at[1], r: 0.045, fill: "var(--floor)", stroke: colour, "stroke-width": 0.025 });
    }
    return shape(svg, "path", { d: "M0.24 0 L-0.16 0.15 L-0.08 0 L-0.16 -0.15 Z", fill: colour, stroke: "var(--floor)", "stroke-width": 0.03, visibility: "hidden" });
  });
  const start = runs[0].driven[0], angle = start.length > 2 ? -start[2] * 180 / Math.PI : 0;
  shape(svg, "path", { d: "M0.24 0 L-0.16 0.15 L-0.08 0 L-0.16 -0.15 Z", fill: "var(--ink)", transform: `translate(${start[0]} ${-start[1]}) rotate(${angle})` });
  shape(svg, "text", { x: goal[0], y: -goal[1] + 0.13, "font-size": 0.4, "text-anchor": "middle", fill: "var(--good)", stroke: "var(--floor)", "stroke-width": 0.06, "paint-order": "stroke" }, "★");
  return markers;
}

function drawing(runs) {
  const box = element("div", { class: "drawing" });
  const [left, top, width, height] = extent(runs);
  const svg = shape(box, "svg", { viewBox: `${left - 0.1} ${top - 0.1} ${width + 0.2} ${height + 0.2}`, role: "img", "aria-label": "floor plan" });
  if (runs[0].plan) drawPlan(svg, runs[0].plan);
  const markers = drawPaths(svg, runs, runs[0].radius || 1);
  const legend = element("div", { class: "legend" });
  const entries = [["oracle's path", "--oracle"], ...runNames.map((name, number) => [name, `--run${number}`]), ["goal and success radius", "--good"]];
  for (const [name, colour] of entries) {
    const entry = element("span", {});
    entry.append(element("i", { style: `background:var(${colour})` }), name);
    legend.append(entry);
  }
  box.append(legend);
  return [box, markers];
}

function tenBars(shares, chosen) {
  const bars = element("div", { class: "ten" });
  shares.forEach((share, index) => {
    const kind = index === chosen ? "chosen" : share > 0 ? "some" : "";
    bars.append(element("i", { class: kind, style: `height:${Math.max(share, 3)}%`, title: `${constants.actions[index]}: ${share} %` }));
  });
  return bars;
}

function decisionTable(run, marker) {
  const table = element("table", { class: "decisions" });
  const head = table.createTHead().insertRow();
  const pictures = run.pictures.length > 0;
  for (const name of ["", ...(pictures ? ["saw"] : []), "said", "of the ten", "sure", "ms"]) head.append(element("th", {}, name));
  const body = table.createTBody();
  run.decisions.forEach(([index, confidence, shares, latency_ms, place, picture], number) => {
    const row = body.insertRow();
    row.append(element("td", { class: "small" }, number + 1));
    if (pictures) {
      const cell = row.insertCell();
      if (picture !== null) cell.append(element("img", { src: `data:image/webp;base64,${run.pictures[picture]}`, alt: `seen at decision ${number + 1}`, loading: "lazy" }));
    }
    row.append(element("td", {}, constants.actions[index]));
    const cell = row.insertCell();
    if (shares.length) cell.append(tenBars(shares, index));
    row.append(element("td", {}, confidence === null ? "" : `${Math.round(100 * confidence)} %`));
    row.append(element("td", { class: "small" }, latency_ms === null ? "" : latency_ms.toFixed(0)));
    if (place === null) return;
    row.addEventListener("mouseenter", () => {
      const [x, y, yaw] = run.driven[place];
      marker.setAttribute("transform", `translate(${x} ${-y}) rotate(${-(yaw || 0) * 180 / Math.PI})`);
      marker.setAttribute("visibility", "visible");
    });
    row.addEventListener("mouseleave", () => marker.setAttribute("visibility", "hidden"));
  });
  return table;
}

function fill(details) {
  if (details.querySelector(".episode")) return;
  const runs = JSON.parse(details.querySelector("script").textContent);
  if (!runs.length) return;
  const box = element("div", { class: runs.length > 1 ? "episode two" : "episode" });
  const [plan, markers] = drawing(runs);
  const tables = element("div", { class: "runs" });
  runs.forEach((run, number) => {
    const column = element("div", {});
    if (runs.length > 1) column.append(element("h2", { style: `color:var(--run${number})` }, runNames[number]));
    column.append(decisionTable(run, markers[number]));
    tables.append(column);
  });
  box.append(plan, tables);
  details.append(box);
}

list.addEventListener("toggle", (event) => { if (event.target.open) fill(event.target); }, true);

const episodes = [...list.children];
const search = document.querySelector("input[type=search]");
const order = document.querySelector("select");
let outcome = "";

function show() {
  const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
  let count = 0;
  for (const details of episodes) {
    const text = details.querySelector("summary").textContent.toLowerCase();
    const fits = (!outcome || details.dataset.outcome === outcome) && words.every((word) => text.includes(word));
    details.hidden = !fits;
    count += fits;
  }
  document.getElementById("shown").textContent = `${count} shown`;
}

for (const button of document.querySelectorAll("button[data-outcome]")) {
  button.addEventListener("click", () => {
    outcome = button.dataset.outcome;
    document.querySelectorAll("button[data-outcome]").forEach((other) => other.classList.toggle("on", other === button));
    show();
  });
}
search.addEventListener("input", show);
order.addEventListener("change", () => {
  const sign = { number: 1, spl: 1, error: -1, decisions: -1, collisions: -1 }[order.value];
  episodes.sort((a, b) => sign * (a.dataset[order.value] - b.dataset[order.value]));
  list.append(...episodes);
});
const wanted = location.hash && [...episodes].find((details) => details.querySelector("code").textContent === location.hash.slice(1));
if (wanted) { wanted.open = true; wanted.scrollIntoView(); }
show();
