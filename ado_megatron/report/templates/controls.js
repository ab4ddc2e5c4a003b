// What a reader works with: the list of domains, panels, the window in time, light and dark.
const config = {responsive: true, displaylogo: false, displayModeBar: false};
let waiting = null;
function redraw() {  // once for many changes in a row
  if (waiting === null) waiting = requestAnimationFrame(() => { waiting = null; draw(); });
}

function draw() {
  const {traces, layout, missing} = figureOf();
  Plotly.react("chart", traces, layout, config);
  element("missing").textContent = missing.length && drawn().some(isGroup) ? `A group has no law of its own. Open it (▸) and choose domains to see: ${missing.join(", ")}.` : "";
  for (const [id, shown, figure] of [["shares", true, sharesFigure], ["gaps", many, gapsFigure]]) {
    element(id + "-section").hidden = !shown || !drawn().length;
    if (!element(id + "-section").hidden) { const made = figure(); Plotly.react(id, made.traces, made.layout, config); }
  }
  const size = chosen.size, left = size > MOST_LINES ? `, ${MOST_LINES} drawn` : "";
  const groups = page.groups.length ? ` in ${page.groups.length.toLocaleString("en")} groups` : "";
  element("chosen").textContent = `${size.toLocaleString("en")} of ${page.domains.toLocaleString("en")}${groups}${left}`;
  const [from, to] = state.window || [0, lastStep()];
  element("from").value = Math.round(from); element("to").value = Math.round(to);
  document.querySelectorAll("#panels button").forEach(button => button.classList.toggle("on", state.panels.has(button.dataset.key)));
  fill(null);
}

// ---------------------------------------------------------------- the list of domains
const open = new Set();
const rowOf = new Map();
const ORDERS = {
  weight: bySize,
  moved: (a, b) => moved(b) - moved(a) || a - b,
  loss: (a, b) => (valueAt(page.arms[0].curves.loss, b, Infinity) || 0) - (valueAt(page.arms[0].curves.loss, a, Infinity) || 0),
  name: (a, b) => page.names[a].localeCompare(page.names[b], "en", {numeric: true}),
};
const moved = d => Math.abs(Math.log((page.arms[0].now[d] + 1e-9) / (page.prior[d] + 1e-9)));
const words = () => element("search").value.trim().toLowerCase().split(/\s+/).filter(Boolean);
const matches = d => words().every(word => page.names[d].toLowerCase().includes(word));
const ordered = list => [...list].sort(ORDERS[element("sort").value]);

function list() {
  const rows = [], searching = words().length > 0;
  const domains = page.names.map((_, d) => d).filter(d => !isGroup(d));
  rowOf.clear();
  if (!page.groups.length) ordered(domains.filter(matches)).forEach(d => rows.push(rowFor(d)));
  for (const g of ordered(page.groups.map(group => group.series))) {
    const found = searching ? membersOf(g).filter(matches) : membersOf(g);
    if (searching && !found.length && !matches(g)) continue;
    rows.push(rowFor(g, searching || open.has(g)));
    if (searching || open.has(g)) ordered(found).forEach(d => rows.push(rowFor(d)));
  }
  element("list").replaceChildren(...rows);
  fill(null);
}

function rowFor(d, unfolded) {
  const row = document.createElement("div"), name = document.createElement("label"), box = document.createElement("input");
  const chip = document.createElement("i"), text = document.createElement("b"), weight = document.createElement("span"), loss = document.createElement("span");
  row.className = "domain" + (isGroup(d) ? " group" : page.groups.length ? " member" : "");
  row.dataset.series = d;
  name.className = "name"; box.type = "checkbox"; chip.className = "chip"; text.textContent = isGroup(d) ? `${page.names[d]} (${membersOf(d).length})` : page.names[d]; text.title = page.names[d];
  box.addEventListener("change", () => { choose(d, box.checked); redraw(); });
  name.append(box, chip, text);
  const first = document.createElement("span");
  first.style.display = "flex"; first.style.minWidth = 0;
  if (isGroup(d)) first.append(foldFor(d, unfolded));
  first.append(name);
  row.append(first, weight, loss);
  rowOf.set(d, {box, chip, weight, loss});
  return row;
}
function foldFor(d, unfolded) {
  const fold = document.createElement("button");
  fold.className = "fold"; fold.textContent = unfolded ? "▾" : "▸"; fold.setAttribute("aria-label", "members of " + page.names[d]);
  fold.addEventListener("click", () => { open.has(d) ? open.delete(d) : open.add(d); list(); });
  return fold;
}

// The columns of the list: values at a step, of the first arm; null: at the end of the window.
function fill(step) {
  const at = step ?? (state.window ? Math.floor(state.window[1]) : lastStep()), {weight, loss} = page.arms[0].curves;
  element("at").textContent = `at step ${Math.round(at).toLocaleString("en")}`;
  for (const [d, row] of rowOf) {
    row.box.checked = chosen.has(d);
    row.chip.style.background = chosen.has(d) ? colorOf(d) : "none";
    const share = valueAt(weight, d, at), nats = valueAt(loss, d, at);
    row.weight.textContent = Number.isFinite(share) ? (100 * share).toFixed(share < 0.0995 ? 2 : 1) + " %" : "–";
    row.loss.textContent = Number.isFinite(nats) ? nats.toFixed(3) : "–";
  }
}

// ---------------------------------------------------------------- everything else
function setWindow(from, to) {
  const end = lastStep();
  state.window = from <= 0 && to >= end || !(to > from) ? null : [Math.max(from, 0), Math.min(to, end)];
  redraw();
}

function journal() {
  const all = page.arms.flatMap(arm => arm.events).sort((a, b) => a.step - b.step);
  const events = all.filter(event => event.kind !== "fit" || element("refits").checked);
  element("journal-section").hidden = !all.length;
  const cell = (text, kind) => { const made = document.createElement("td"); made.textContent = text; made.className = kind; return made; };
  element("journal").replaceChildren(...events.map(event => {
    const row = document.createElement("tr");
    row.append(cell(event.step.toLocaleString("en"), ""), ...several ? [cell(event.run, "left")] : [], cell(event.kind, "left"), cell(event.text, "words"));
    return row;
  }));
}

const several = page.arms.flatMap(arm => arm.runs).length > 1;

function setTheme(dark) {
  document.documentElement.classList.toggle("dark", dark);
  if (window.Plotly) redraw();
}

function connect() {
  for (const panel of PANELS.filter(hasData)) {
    const button = document.createElement("button");
    button.textContent = panel.title.split(",")[0].split(" (")[0]; button.dataset.key = panel.key;
    button.addEventListener("click", () => { state.panels.has(panel.key) ? state.panels.delete(panel.key) : state.panels.add(panel.key); redraw(); });
    element("panels").append(button);
    if (!HIDDEN_AT_FIRST.includes(panel.key)) state.panels.add(panel.key);
  }
  element("search").addEventListener("input", list);
  element("sort").addEventListener("change", list);
  element("none").addEventListener("click", () => { chosen.clear(); redraw(); });
  element("largest").addEventListener("click", () => { chooseLargest(); redraw(); });
  element("found").addEventListener("click", () => { chosen.clear(); page.names.map((_, d) => d).filter(d => !isGroup(d) && matches(d)).forEach(d => choose(d, true)); redraw(); });
  element("apart").addEventListener("change", event => { state.apart = event.target.checked; redraw(); });
  const looks = ["solid", "dotted", "dash-dotted", "long dashes", "dashes"];
  element("styles").hidden = !many;
  element("styles").textContent = page.arms.map((arm, a) => `${arm.name}: ${looks[a % looks.length]}`).join(". ") + ". In panels of one domain, a colour for each arm.";
  for (const id of ["from", "to"]) element(id).addEventListener("change", () => setWindow(+element("from").value, +element("to").value));
  const end = lastStep();
  for (const [id, from] of [["whole", 0], ["half", end / 2], ["tenth", 0.9 * end]]) element(id).addEventListener("click", () => setWindow(from, end));
  element("refits").addEventListener("change", journal);
  element("theme").addEventListener("click", () => setTheme(!document.documentElement.classList.contains("dark")));
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", event => setTheme(event.matches));
}

function follow() {  // plotly tells what is hovered and zoomed
  const chart = element("chart");
  chart.on("plotly_hover", event => fill(event.points[0].x));
  chart.on("plotly_unhover", () => fill(null));
  chart.on("plotly_relayout", change => {
    if (change["xaxis.autorange"]) setWindow(0, Infinity);
    else if ("xaxis.range[0]" in change) setWindow(change["xaxis.range[0]"], change["xaxis.range[1]"]);
  });
  chart.on("plotly_doubleclick", () => setWindow(0, Infinity));
}

async function start() {
  setTheme(matchMedia("(prefers-color-scheme: dark)").matches);
  resolve(numbers(await unpacked("block")));
  const code = document.createElement("script");
  code.textContent = new TextDecoder().decode(await unpacked("library"));
  document.head.append(code);
  element("trouble").hidden = true; element("work").hidden = false;
  element("side").open = innerWidth > 800;
  connect(); chooseLargest(); list(); journal(); draw(); follow();
  document.body.dataset.ready = "yes";  // for tests
}
start().catch(error => { element("trouble").textContent = "The curves cannot be drawn: " + error; element("trouble").hidden = false; throw error; });
