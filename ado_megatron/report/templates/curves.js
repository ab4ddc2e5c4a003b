// The numbers of the page: what python wrote, unpacked; and which series are chosen. No drawing here.
// A series is a domain or a group of domains, by its index into page.names. A curve has one row a series.
const element = id => document.getElementById(id);
const page = JSON.parse(element("data").textContent);
const FEW = page.arms.length > 1 ? 4 : 12, AT_FIRST = page.arms.length > 1 ? 3 : 8, MOST_LINES = 60;

async function unpacked(id) {
  const text = atob(element(id).textContent), bytes = new Uint8Array(text.length);
  for (let i = 0; i < text.length; i++) bytes[i] = text.charCodeAt(i);
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  return new Uint8Array(await new Response(stream).arrayBuffer());
}
function numbers(planes) {  // first bytes of all numbers, second bytes, …
  const bytes = new Uint8Array(planes.length), length = planes.length / 4;
  for (let part = 0; part < 4; part++) for (let i = 0; i < length; i++) bytes[4 * i + part] = planes[part * length + i];
  return new Float32Array(bytes.buffer);
}

// Puts what they point to in the place of the refs [offset, rows]: a function d → row of a curve, or one column.
function resolve(block) {
  const rows = ([offset], length) => d => block.subarray(offset + d * length, offset + (d + 1) * length);
  const column = ([offset, length]) => block.subarray(offset, offset + length);
  page.prior = column(page.prior);
  for (const arm of page.arms) {
    for (const curve of Object.values(arm.curves))
      for (const part of ["value", "below", "above"]) if (curve[part]) curve[part] = rows(curve[part], curve.step.length);
    for (const part of ["drawn", "now"]) arm[part] = column(arm[part]);
    if (arm.gap) for (const part of ["value", "half"]) arm.gap[part] = column(arm.gap[part]);
  }
}

const isGroup = d => d >= page.domains;
const groupOf = new Map();
page.groups.forEach(group => group.members.forEach(d => groupOf.set(d, group.series)));
const membersOf = d => isGroup(d) ? page.groups[d - page.domains].members : [];

// What is chosen: a group or some of its members, never both, so that shares add up.
const chosen = new Map();  // series → place of its colour
function choose(d, on) {
  if (!on) return void chosen.delete(d);
  if (chosen.has(d)) return;
  for (const other of isGroup(d) ? membersOf(d) : [groupOf.get(d)]) chosen.delete(other);
  const taken = new Set(chosen.values());
  let place = 0;
  while (taken.has(place)) place++;
  chosen.set(d, place);
}
function chooseLargest() {
  chosen.clear();
  const all = page.groups.length ? page.groups.map(group => group.series) : page.names.map((_, d) => d);
  all.slice(0, all.length > FEW ? AT_FIRST : FEW).forEach(d => choose(d, true));
}
const bySize = (a, b) => page.prior[b] - page.prior[a] || a - b;
const drawn = () => [...chosen.keys()].sort(bySize).slice(0, MOST_LINES);

const COLORS = ["#4e79a7", "#f28e2b", "#59a14f", "#e15759", "#b07aa1", "#76b7b2", "#d4a72c", "#ff8fa3", "#9c755f", "#2f9ed8", "#8cb82b", "#c2459b"];
const ARM_COLORS = ["#2f6fdb", "#e07b1a", "#1f9e6e", "#a55ad6", "#d13f5b", "#7d7d7d"];
const DASHES = ["solid", "dot", "dashdot", "longdash", "dash"];
const colorOf = d => COLORS[chosen.get(d) % COLORS.length];
const armColor = a => ARM_COLORS[a % ARM_COLORS.length];
const faint = (color, alpha) => color + Math.round(255 * alpha).toString(16).padStart(2, "0");

// The value of a curve at a step: of the newest point that is not after it.
function valueAt(curve, d, step) {
  if (!curve) return NaN;
  let low = 0, high = curve.step.length;
  while (low < high) { const mid = (low + high) >> 1; if (curve.step[mid] <= step) low = mid + 1; else high = mid; }
  const row = curve.value(d);
  for (let i = low - 1; i >= 0; i--) if (Number.isFinite(row[i])) return row[i];
  return NaN;
}
const lastStep = () => Math.max(...page.arms.flatMap(arm => Object.values(arm.curves).map(curve => curve.step.at(-1) || 0)));
