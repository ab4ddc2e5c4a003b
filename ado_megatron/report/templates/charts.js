// From the chosen series to what plotly draws: panels under one another on one axis of steps.
const PANELS = [  // key, heading, curve(s), how it is written
  {key: "mixture", title: "Mixture", curve: "weight", stacked: true, format: ".2%", height: 230},
  {key: "weight", title: "Weights", curve: "weight", format: ".2%", log: true},
  {key: "gap", title: "Loss difference", curve: "gap", format: "+.4f", zero: true},
  {key: "loss", title: "Loss", curve: "loss", format: ".4f", law: true, tail: true, height: 260},
  {key: "alpha", title: "Law exponent α", curve: "alpha", format: ".3f", marks: true},
  {key: "speed", title: "Learning speed, nats per 1,000 samples", curve: "speed", format: ".3~g", log: true, marks: true},
  {key: "transfer", title: "Transfer s", curve: "transfer", format: ".3~g", log: true, marks: true},
  {key: "credit", title: "Credit h", curve: "credit", format: ".2%", log: true, marks: true},
  {key: "epochs", title: "Epochs", curve: "epochs", format: ".3f"},
  {key: "total", title: "Loss of all tokens (depends on the mixture)", curve: "total", format: ".4f", whole: true, tail: true},
  {key: "rate", title: "Samples a second", curve: "rate", format: ".1f", whole: true},
  {key: "learning_rate", title: "Learning rate", curve: "learning_rate", format: ".3~g", whole: true},
  {key: "grad_norm", title: "Gradient norm", curve: "grad_norm", format: ".3f", whole: true, tail: true},
  {key: "journal", title: "Journal", journal: true, format: "", height: 90},
];
const HIDDEN_AT_FIRST = ["weight", "credit", "rate", "learning_rate", "grad_norm", "total", "alpha"];
const many = page.arms.length > 1;
const MOST_BANDS = 6;  // lines of a panel that have a band each
const MOST_TOLD = 4;  // domains whose laws stand in the box under the mouse, too
const hasData = panel => panel.journal ? page.arms.some(arm => arm.events.length) : page.arms.some(arm => arm.curves[panel.curve]);
const state = {panels: new Set(), apart: false, window: null, touch: matchMedia("(pointer: coarse)").matches};
const css = name => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
const escaped = text => String(text).replace(/[&<>]/g, c => ({"&": "&amp;", "<": "&lt;", ">": "&gt;"})[c]);

// The rows of the chart from the top: a panel for all chosen series, or one each; a mixture for each arm.
function rowsOf() {
  const rows = [];
  for (const panel of PANELS.filter(one => state.panels.has(one.key) && hasData(one))) {
    if (panel.stacked) page.arms.forEach((arm, a) => rows.push({panel, arms: [a], series: drawn(), title: many ? `${panel.title} of ${arm.name}` : panel.title}));
    else if (state.apart && panel.curve === "loss")
      drawn().slice(0, 24).forEach(d => rows.push({panel, arms: page.arms.map((_, a) => a), series: [d], alone: true, title: `${panel.title}: ${page.names[d]}`, height: 150}));
    else rows.push({panel, arms: page.arms.map((_, a) => a), series: panel.whole || panel.journal ? [0] : drawn(), title: titleOf(panel)});
  }
  return rows;
}
function titleOf(panel) {
  if (panel.key !== "gap") return panel.title;
  return page.arms.length === 2 ? `Loss: ${page.arms[0].name} minus ${page.arms[1].name}` : `Loss: ${page.arms[0].name} minus each other arm`;
}

function stackOf(row, axis) {
  const arm = page.arms[row.arms[0]], curve = arm.curves.weight, traces = [];
  const step = [0, ...curve.step], rest = new Float64Array(step.length).fill(1);
  const add = (name, y, color) => traces.push({type: "scatter", mode: "lines", x: step, y, name: escaped(name), yaxis: axis, stackgroup: axis,
    line: {width: 0.4, color}, fillcolor: faint(color, 0.85), hovertemplate: "%{y:.2%}"});
  for (const d of row.series) {
    const y = [page.prior[d], ...curve.value(d)];
    y.forEach((value, i) => rest[i] -= value);
    add(page.names[d], y, colorOf(d));
  }
  if (Math.max(...rest) > 1e-6) add("all others", Array.from(rest, value => Math.max(value, 0)), "#9aa1ab");
  return traces;
}

function linesOf(row, axis) {
  const {panel} = row, traces = [];
  for (const a of row.arms) for (const d of row.series) {
    const curve = page.arms[a].curves[panel.curve];
    if (!curve) continue;
    const byArm = panel.whole || many && row.series.length === 1 && panel.key !== "gap";
    const style = {color: byArm ? armColor(a) : colorOf(d), dash: byArm ? "solid" : DASHES[(a - (panel.key === "gap")) % DASHES.length], row, axis};
    const name = panel.whole ? page.arms[a].name : many && !row.alone ? `${page.names[d]}, ${page.arms[a].name}` : many ? page.arms[a].name : page.names[d];
    traces.push(...curveOf(curve, d, name, style));
    if (panel.law) traces.push(...lawOf(page.arms[a], d, name, style));
  }
  return traces;
}

function curveOf(curve, d, name, {color, dash, row, axis}) {
  const y = curve.value(d), {panel} = row;
  if (!y.some(Number.isFinite)) return [];
  const dots = panel.law && !many && !curve.below;
  const trace = {type: "scatter", x: curve.step, y, name: escaped(name), yaxis: axis, connectgaps: true, hovertemplate: `%{y:${panel.format}}`,
    mode: dots ? "markers" : panel.marks && curve.step.length < 80 ? "lines+markers" : "lines",
    line: {color, width: 1.6, dash}, marker: {color, size: dots ? 4 : 5, opacity: dots ? 0.65 : 1}};
  if (!curve.below) return [trace];
  const below = curve.below(d), above = (curve.above || curve.below)(d);
  if (panel.marks) {
    trace.error_y = {type: "data", symmetric: false, array: above, arrayminus: below, color: faint(color, 0.55), thickness: 1, width: 2};
    return [trace];
  }
  if (row.series.length * (row.arms.length - (panel.key === "gap")) > MOST_BANDS) return [trace];
  const edge = {type: "scatter", mode: "lines", x: curve.step, yaxis: axis, line: {width: 0}, hoverinfo: "skip", meta: "edge", connectgaps: true};
  return [{...edge, y: y.map((v, i) => v - below[i])}, {...edge, y: y.map((v, i) => v + above[i]), fill: "tonexty", fillcolor: faint(color, 0.18)}, trace];
}

function lawOf(arm, d, name, {color, row, axis}) {
  const made = [], {law, validation} = arm.curves;
  if (law && law.value(d).some(Number.isFinite))
    made.push({type: "scatter", mode: "lines", x: law.step, y: law.value(d), name: escaped(name) + ", law", yaxis: axis,
      ...row.series.length > MOST_TOLD ? {hoverinfo: "skip"} : {hovertemplate: "%{y:.4f}"},
      line: {color: row.alone ? css("--ink") : color, width: 1.4, dash: "dash"}});
  if (validation && validation.value(d).some(Number.isFinite))
    made.push({type: "scatter", mode: "markers", x: validation.step, y: validation.value(d), name: escaped(name) + ", validation", yaxis: axis, hovertemplate: "%{y:.4f} (step %{x})",
      marker: {symbol: "diamond-open", color, size: 8}});
  return made;
}

const EVENT_STYLE = {alarm: ["#d13f5b", "triangle-up"], change: ["#e07b1a", "star"], fit: ["#8a929c", "circle-open"], "partial fit": ["#8a929c", "circle-x-open"], "failed fit": ["#d13f5b", "x"], gap: ["#d13f5b", "square-open"]};
function journalOf(row, axis) {
  return row.arms.flatMap(a => Object.entries(EVENT_STYLE).map(([kind, [color, symbol]]) => {
    const found = page.arms[a].events.filter(event => event.kind === kind);
    return {type: "scatter", mode: "markers", x: found.map(event => event.step), y: found.map(() => -a), yaxis: axis, name: kind, cliponaxis: false,
      text: found.map(event => wrapped(`${event.run}: ${event.text}`)), hovertemplate: "%{text}", marker: {color, symbol, size: ["change", "alarm"].includes(kind) ? 12 : 8}};
  }).filter(trace => trace.x.length));
}
const wrapped = text => escaped(text).replace(/(.{1,60})(\s|$)/g, "$1<br>").replace(/<br>$/, "");

// The range of an axis: what is to be seen in the window; of a whole run without the fall of the first steps.
function rangeOf(row, traces) {
  const [from, to] = state.window || [-Infinity, Infinity], values = [];
  for (const trace of traces.filter(one => one.meta !== "edge")) {
    const bars = trace.error_y;
    for (let i = 0; i < trace.x.length; i++) if (trace.x[i] >= from && trace.x[i] <= to && Number.isFinite(trace.y[i]) && (!row.panel.log || trace.y[i] > 0)) {
      values.push(trace.y[i]);
      if (bars && !row.panel.log) for (const v of [trace.y[i] + bars.array[i], trace.y[i] - bars.arrayminus[i]]) if (Number.isFinite(v)) values.push(v);
    }
  }
  if (!values.length) return undefined;
  values.sort((a, b) => a - b);
  const cut = row.panel.tail && !state.window ? 0.97 : row.panel.zero ? 0.99 : 1;
  let low = values[row.panel.zero ? Math.floor(0.01 * values.length) : 0], high = values[Math.ceil(cut * values.length) - 1];
  if (row.panel.zero) { low = Math.min(low, 0); high = Math.max(high, 0); }
  if (row.panel.log) { low = Math.log10(low); high = Math.log10(high); }
  const margin = 0.06 * (high - low) || 0.05 * Math.abs(high) || 0.05;
  return [low - margin, high + margin];
}

function axisOf(row, traces, domain) {
  const {panel} = row, axis = {domain, fixedrange: true, gridcolor: css("--grid"), zerolinecolor: css("--line"), zeroline: !!panel.zero, nticks: 5, automargin: false};
  if (panel.stacked) return {...axis, range: [0, 1], tickformat: ".0%"};
  if (panel.journal) return {...axis, range: [0.6 - row.arms.length, 0.4], showgrid: false, ticklabelposition: "inside", tickvals: row.arms.map(a => -a), ticktext: row.arms.map(a => many ? escaped(page.arms[a].name).slice(0, 28) : "")};
  const share = panel.format === ".2%";
  return {...axis, range: rangeOf(row, traces), type: panel.log ? "log" : "linear", dtick: panel.log ? "D2" : undefined, tickformat: share ? ".2~%" : panel.log ? "~g" : undefined, exponentformat: "power"};
}

function lightsOf() {
  const colors = {color: css("--ink"), size: 12, family: "system-ui, sans-serif"};
  return {font: colors, paper_bgcolor: css("--paper"), plot_bgcolor: css("--paper"), hoverlabel: {bgcolor: css("--box"), bordercolor: css("--line"), font: {color: css("--ink"), size: 12}, namelength: 24}};
}

function layoutOf(height) {
  const narrow = element("chart").clientWidth < 560;
  return {...lightsOf(), height: height + 80, margin: {l: narrow ? 52 : 66, r: 12, t: 26, b: 42}, showlegend: false, hovermode: state.touch || drawn().length > 16 ? "closest" : "x unified",
    dragmode: state.touch ? false : "zoom", annotations: [], shapes: [], hoverdistance: 40,
    xaxis: {gridcolor: css("--grid"), zeroline: false, title: {text: "step"}, range: state.window || [0, lastStep()], anchor: "free", position: 0, tickformat: ",d",
      unifiedhovertitle: {text: "step %{x:,d}"}, showspikes: true, spikemode: "across", spikethickness: 1, spikedash: "dot", spikecolor: css("--quiet")}};
}
function tracesOf(row, axis) {
  return row.panel.stacked ? stackOf(row, axis) : row.panel.journal ? journalOf(row, axis) : linesOf(row, axis);
}

// {traces, layout} of the chart, and the titles of the panels that have nothing to show of what is chosen.
function figureOf() {
  const all = rowsOf(), rows = all.filter(row => tracesOf(row, "y").length), gap = 34;
  const heights = rows.map(row => row.height || row.panel.height || 190);
  const inside = heights.reduce((a, b) => a + b, 0) + gap * Math.max(rows.length - 1, 0), layout = layoutOf(inside);
  let top = inside;
  const traces = rows.flatMap((row, i) => {
    const axis = "y" + (i ? i + 1 : ""), domain = [Math.max((top - heights[i]) / inside, 0), top / inside];
    top -= heights[i] + gap;
    const made = tracesOf(row, axis);
    layout["yaxis" + (i ? i + 1 : "")] = axisOf(row, made, domain);
    layout.annotations.push({text: `<b>${escaped(row.title)}</b>`, showarrow: false, xref: "paper", yref: "paper", x: 0, y: domain[1], xanchor: "left", yanchor: "bottom", font: {size: 12.5}});
    if (row.panel.stacked) layout.shapes.push(...bordersOf(row, axis));
    return made;
  });
  if (state.panels.has("journal")) layout.shapes.push(...changeLines());
  return {traces, layout, missing: all.filter(row => !rows.includes(row)).map(row => row.title)};
}
function changeLines() {
  const line = {color: EVENT_STYLE.change[0], width: 1, dash: "dot"};
  const changes = page.arms.flatMap(arm => arm.events).filter(event => event.kind === "change");
  return changes.map(({step}) => ({type: "line", xref: "x", yref: "paper", x0: step, x1: step, y0: 0, y1: 1, line}));
}
function bordersOf(row, axis) {  // where the prior puts the borders of the mixture
  let sum = 0;
  const line = {color: "#ffffff", width: 1, dash: "dash"};
  if (row.series.length > 16) return [];
  return row.series.map(d => sum += page.prior[d]).filter(y => y < 0.9999).map(y => ({type: "line", xref: "paper", x0: 0, x1: 1, yref: axis, y0: y, y1: y, line}));
}

// The two charts below the curves: a row a chosen series.
function sharesFigure() {
  const series = drawn().slice(0, 40).reverse(), names = series.map(d => escaped(page.names[d]).slice(0, 28));
  const dots = (name, values, marker) => ({type: "scatter", mode: "markers", name: escaped(name), y: names, x: series.map(d => values[d]), marker, hovertemplate: "%{x:.2%}"});
  const traces = [dots("prior", page.prior, {symbol: "circle-open", size: 9, color: css("--quiet")})];
  page.arms.forEach((arm, a) => {
    const color = many ? armColor(a) : series.map(colorOf), of = many ? `, ${arm.name}` : "";
    traces.push(dots("drawn, whole run" + of, arm.drawn, {symbol: "line-ns-open", size: 12, color: many ? armColor(a) : css("--ink")}), dots("now" + of, arm.now, {size: 9, color}));
  });
  return {traces, layout: {...barsLayout(series.length), xaxis: {type: "log", dtick: "D2", tickformat: "~%", gridcolor: css("--grid"), fixedrange: true}}};
}
function gapsFigure() {
  const series = drawn().filter(d => !isGroup(d)).slice(0, 40).reverse(), names = series.map(d => escaped(page.names[d]).slice(0, 28));
  const traces = page.arms.slice(1).map((arm, i) => {
    const [value, half] = ["value", "half"].map(part => series.map(d => arm.gap[part][d]));
    return {type: "scatter", mode: "markers", name: escaped(`against ${arm.name}`), y: names, x: value, marker: {color: armColor(i + 1), size: 9}, hovertemplate: "%{x:+.4f} nats",
      error_x: half.some(Number.isFinite) ? {type: "data", array: half, color: armColor(i + 1), thickness: 1.4} : undefined};
  });
  return {traces, layout: {...barsLayout(series.length), xaxis: {gridcolor: css("--grid"), zerolinecolor: css("--ink"), title: {text: "nats; left of zero: lower in " + escaped(page.arms[0].name)}, fixedrange: true}}};
}
const barsLayout = rows => ({...lightsOf(), height: 120 + 24 * rows, margin: {l: 10, r: 10, t: many ? 70 : 40, b: 50}, hovermode: "closest", dragmode: false, legend: {orientation: "h", x: 0, y: 1, yanchor: "bottom"},
  yaxis: {automargin: true, gridcolor: css("--grid"), fixedrange: true}});
