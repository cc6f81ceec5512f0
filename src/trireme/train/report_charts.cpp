#include "trireme/train/report.h"

namespace trireme::train {

// Line charts as SVG, drawn again when their width changes.
const char* const kReportChartScript = R"js(
"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const tip = document.getElementById("tip");
const kNamespace = "http://www.w3.org/2000/svg";

function node(name, attributes, parent) {
  const element = document.createElementNS(kNamespace, name);
  for (const key in attributes) element.setAttribute(key, attributes[key]);
  if (parent) parent.appendChild(element);
  return element;
}
function text(parent, x, y, content, attributes) {
  const element = node("text", Object.assign({ x, y }, attributes || {}), parent);
  element.textContent = content;
  return element;
}
function short(x) {
  const a = Math.abs(x);
  if (a >= 1e9) return +(x / 1e9).toPrecision(3) + "B";
  if (a >= 1e6) return +(x / 1e6).toPrecision(3) + "M";
  if (a >= 1e4) return +(x / 1e3).toPrecision(3) + "k";
  return String(+x.toPrecision(4));
}
function kilo(x) { return x >= 1e3 ? +(x / 1e3).toPrecision(3) + "k" : String(+x.toPrecision(3)); }
function bytes(x) {
  if (x === 0) return "0";
  if (x >= 1e9) return +(x / 1e9).toPrecision(3) + " GB";
  if (x >= 1e6) return +(x / 1e6).toPrecision(3) + " MB";
  return +(x / 1e3).toPrecision(3) + " kB";
}
function niceTicks(low, high, count) {
  const span = high - low;
  if (!(span > 0)) return [low];
  const power = Math.pow(10, Math.floor(Math.log10(span / count)));
  const step = power * [1, 2, 2.5, 5, 10].find(m => span / (power * m) <= count);
  const ticks = [];
  for (let i = Math.ceil(low / step - 1e-9); i * step <= high + step * 1e-9; ++i) ticks.push(+(i * step).toPrecision(12));
  return ticks;
}
// A mean over a fortieth of the run; at the start the window shrinks, so that the curve does not lag behind the drop.
function smooth(values) {
  const reach = Math.max(1, Math.round(values.length / 80)), sums = [0], counts = [0];
  values.forEach((v, i) => { sums.push(sums[i] + (v === null ? 0 : v)); counts.push(counts[i] + (v === null ? 0 : 1)); });
  return values.map((v, i) => {
    const r = Math.min(reach, i), end = Math.min(i + r + 1, values.length), n = counts[end] - counts[i - r];
    return n ? (sums[end] - sums[i - r]) / n : null;
  });
}
function showTip(html, x, y) {
  tip.innerHTML = html;
  tip.style.opacity = 1;
  const box = tip.getBoundingClientRect();
  const left = x + 16 + box.width > innerWidth ? x - 16 - box.width : x + 16;
  tip.style.transform = `translate(${Math.max(6, left)}px, ${Math.max(6, Math.min(y - box.height / 2, innerHeight - box.height - 6))}px)`;
}
function hideTip() { tip.style.opacity = 0; }
function escapeHtml(s) { return s.replace(/[&<>"]/g, c => ({ "&": "&amp;", "<": "&lt;", ">": "&gt;", '"': "&quot;" }[c])); }

// series: { name, y, colour, raw?, points?, label? }; options: { format, references, zero, height }
function lineChart(id, series, options = {}) {
  const host = document.getElementById(id);
  if (!host) return;
  const x = options.x || data.metrics.step;
  series = series.filter(s => s.y.some(v => v !== null));
  if (!series.length) { host.closest("figure").remove(); return; }
  const named = series.filter(s => s.key);
  if (named.length > 1) {
    const keys = document.createElement("div");
    keys.className = "keys";
    keys.innerHTML = named.map(s => `<span><i style="background:${s.colour}"></i>${s.key}</span>`).join("");
    host.before(keys);
  }
  const format = options.format || short;
  function draw() {
    const width = host.clientWidth, height = options.height && width > 500 ? options.height : options.height ? 250 : 190;
    if (!width) return;
    host.textContent = "";
    const svg = node("svg", { viewBox: `0 0 ${width} ${height}`, height, role: "img" }, host);
    node("title", {}, svg).textContent = series.map(s => s.name).join(", ") + (options.x ? " over seconds" : " over steps");
    let low = Infinity, high = -Infinity;
    const cover = v => { if (v !== null) { low = Math.min(low, v); high = Math.max(high, v); } };
    for (const s of series) {
      // The first steps of a run are far off: they may leave the axis, so that the rest shows its shape.
      (s.raw && !options.zero && s.y.length > 50 ? s.smoothed.slice(Math.ceil(s.y.length / 40)) : s.raw && s.y.length > 50 ? s.smoothed : s.y).forEach(cover);
    }
    (options.references || []).forEach(r => cover(r.y));
    if (options.zero) low = Math.min(0, low);
    if (low === high) { const pad = Math.abs(low) * 0.1 || 1; low -= options.zero && low >= 0 ? 0 : pad; high += pad; }
    const pad = (high - low) * 0.06;
    high += pad;
    if (!(options.zero && low === 0)) low -= pad;
    const yTicks = niceTicks(low, high, height > 220 ? 6 : 4);
    const left = Math.max(...yTicks.map(t => format(t).length)) * 6.6 + 12, right = 10, top = 8, bottom = 24;
    const xLow = x.length > 1 ? x[0] : x[0] - 1, xHigh = x.length > 1 ? x[x.length - 1] : x[0] + 1;
    const px = v => left + (v - xLow) / (xHigh - xLow) * (width - left - right);
    const py = v => top + (high - v) / (high - low) * (height - top - bottom);
    for (const t of yTicks) {
      node("line", { class: "grid-line", x1: left, x2: width - right, y1: py(t), y2: py(t) }, svg);
      text(svg, left - 8, py(t) + 4, format(t), { "text-anchor": "end" });
    }
    node("line", { class: "axis", x1: left, x2: width - right, y1: height - bottom, y2: height - bottom }, svg);
    for (const t of niceTicks(xLow, xHigh, Math.max(4, Math.floor(width / 110))).filter(Number.isInteger)) {
      text(svg, px(t), height - 7, short(t), { "text-anchor": px(t) > width - 24 ? "end" : "middle" });
    }
    const clip = "clip-" + id;
    node("rect", { x: left, y: 0, width: Math.max(0, width - left - right + 2), height: height - bottom },
         node("clipPath", { id: clip }, node("defs", {}, svg)));
    const plot = node("g", { "clip-path": `url(#${clip})` }, svg);
    const path = ys => {
      let d = "", pen = false;
      ys.forEach((v, i) => {
        if (v === null) { pen = false; return; }
        d += (pen ? "L" : "M") + px(x[i]).toFixed(1) + " " + py(v).toFixed(1);
        pen = true;
      });
      return d;
    };
    for (const s of series) {
      if (s.points) {
        const at = s.y.map((v, i) => [x[i], v]).filter(p => p[1] !== null);
        node("path", { class: "curve", stroke: s.colour, d: at.map((p, i) => (i ? "L" : "M") + px(p[0]).toFixed(1) + " " + py(p[1]).toFixed(1)).join("") }, plot);
        if (at.length < 60) for (const p of at) node("circle", { class: "dot", cx: px(p[0]), cy: py(p[1]), r: 3.6, fill: s.colour }, svg);
      } else if (s.raw) {
        node("path", { class: "raw", d: path(s.y) }, plot);
        node("path", { class: "curve", stroke: s.colour, d: path(s.smoothed) }, plot);
      } else {
        node("path", { class: "curve", stroke: s.colour, d: path(s.y) }, plot);
      }
    }
    for (const r of options.references || []) {
      node("line", { class: "reference", x1: left, x2: width - right, y1: py(r.y), y2: py(r.y) }, svg);
      text(svg, width - right, py(r.y) - 5, r.name + " " + format(r.y), { class: "reference-label", "text-anchor": "end" });
    }
    const cross = node("line", { class: "cross", y1: top, y2: height - bottom, visibility: "hidden" }, svg);
    const dots = series.map(s => node("circle", { class: "dot", r: 4, fill: s.colour, visibility: "hidden" }, svg));
    svg.addEventListener("pointermove", event => {
      const box = svg.getBoundingClientRect();
      const wanted = xLow + (event.clientX - box.left - left) / (width - left - right) * (xHigh - xLow);
      let begin = 0, end = x.length - 1;
      while (begin < end) { const middle = (begin + end) >> 1; if (x[middle] < wanted) begin = middle + 1; else end = middle; }
      if (begin > 0 && wanted - x[begin - 1] < x[begin] - wanted) --begin;
      cross.setAttribute("x1", px(x[begin]));
      cross.setAttribute("x2", px(x[begin]));
      cross.setAttribute("visibility", "visible");
      let rows = "";
      series.forEach((s, k) => {
        let i = begin;
        if (s.points) while (i > 0 && s.y[i] === null) --i;
        const shown = s.raw ? s.smoothed[i] : s.y[i];
        dots[k].setAttribute("visibility", shown === null ? "hidden" : "visible");
        if (shown === null) return;
        dots[k].setAttribute("cx", px(x[i]));
        dots[k].setAttribute("cy", py(shown));
        rows += `<tr><td><i style="background:${s.colour}"></i>${s.name}</td><td><b>${(s.format || format)(s.y[i] === null ? shown : s.y[i])}</b></td></tr>`;
        if (s.raw) rows += `<tr><td><i></i>smoothed</td><td>${format(shown)}</td></tr>`;
      });
      const where = options.x ? `${short(x[begin])} s` : `step ${x[begin]} · ${short(data.metrics.tokens[begin])} tokens`;
      showTip(`${where}<table>${rows}</table>`, event.clientX, event.clientY);
    });
    svg.addEventListener("pointerleave", () => {
      hideTip();
      cross.setAttribute("visibility", "hidden");
      dots.forEach(d => d.setAttribute("visibility", "hidden"));
    });
  }
  series.forEach(s => { if (s.raw) s.smoothed = smooth(s.y); });
  new ResizeObserver(draw).observe(host);
  draw();
}

const m = data.metrics;
lineChart("chart-loss", [
  { name: "training loss", key: "training", y: m.loss, colour: "var(--accent)", raw: true },
  { name: "validation loss", key: "validation", y: m.valid_loss, colour: "var(--second)", points: true },
], { height: 320 });
lineChart("chart-bits", [{ name: "bits per byte", y: m.valid_bits_per_byte, colour: "var(--second)", points: true }],
          { references: data.baselines.map(b => ({ name: b.name, y: b.bits_per_byte })) });
if (m.mtp_loss) lineChart("chart-mtp", [{ name: "loss further ahead", y: m.mtp_loss, colour: "var(--third)", raw: true }]);
lineChart("chart-lr", [{ name: "learning rate", y: m.lr, colour: "var(--third)" }],
          { zero: true, format: v => v === 0 ? "0" : v.toExponential(1).replace(/\.0e/, "e") });
lineChart("chart-norm", [{ name: "gradient norm", y: m.grad_norm, colour: "var(--accent)", raw: true }], { zero: true });
lineChart("chart-rate", [{ name: "tokens/s", y: m.tokens_per_s, colour: "var(--accent)", raw: true }], { zero: true, format: kilo });
if (data.gemm_tflops) {
  lineChart("chart-share", [{ name: "share", y: m.model_tflops.map(v => v === null ? null : 100 * v / data.gemm_tflops), colour: "var(--third)", raw: true }],
            { zero: true, format: v => +v.toPrecision(3) + " %" });
} else {
  lineChart("chart-share", [{ name: "TFLOP/s", y: m.model_tflops, colour: "var(--third)", raw: true }], { zero: true });
}
lineChart("chart-memory", [{ name: "peak", y: m.peak_bytes, colour: "var(--second)" }], { zero: true, format: bytes });
if (data.comparison) {
  const colours = ["var(--accent)", "var(--second)", "var(--third)"];
  const series = [];
  data.comparison.runs.forEach((run, i) => {
    const name = escapeHtml(run.name), colour = colours[i % 3];
    series.push({ name, key: name, y: run.loss, colour });
    series.push({ name: name + ", validation", y: run.valid_loss, colour, points: true });
  });
  // The first tenth is far off: the axis begins after it.
  const from = Math.floor(data.comparison.seconds.length / 10);
  lineChart("chart-compare", series.map(s => Object.assign(s, { y: s.y.slice(from) })), { x: data.comparison.seconds.slice(from), height: 320 });
}
if (m.largest_load) {
  const colours = ["var(--accent)", "var(--second)", "var(--third)"];
  lineChart("chart-load", m.largest_load.map((y, i) => ({
    name: "MoE layer " + i, key: m.largest_load.length < 13 ? String(i) : "",
    y: smooth(y), colour: `color-mix(in srgb, ${colours[0]}, ${colours[1]} ${Math.round(100 * i / Math.max(1, m.largest_load.length - 1))}%)` })));
  lineChart("chart-balance", [{ name: "balancing loss", y: m.balance_loss, colour: colours[0], raw: true }]);
  lineChart("chart-entropy", [{ name: "entropy", y: m.router_entropy, colour: colours[2], raw: true }], { zero: true });
  lineChart("chart-dropped", [{ name: "dropped", y: m.dropped, colour: colours[1], raw: true }], { zero: true, format: v => +v.toPrecision(3) + " %" });
}
)js";

}  // namespace trireme::train
